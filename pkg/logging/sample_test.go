// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/zone"
)

func TestSampling(t *testing.T) {
	rules := samplingRules([]config.Sampling{
		{Routes: []string{"health", "static"}, Share: 0, Slow: time.Second},
		{Routes: []string{"all"}, Share: 1, Slow: time.Hour},
		{Share: 0.25, Slow: 500 * time.Millisecond},
	})
	const n = 20000
	for _, tt := range []struct {
		route   string
		status  int
		outcome zone.RequestOutcome
		took    time.Duration
		share   float64
	}{
		{"health", 200, zone.RequestOK, 0, 0},
		{"static", 304, zone.RequestOK, 999 * time.Millisecond, 0},
		{"health", 301, zone.RequestRouteReply, 0, 0},
		{"health", 200, zone.RequestOK, time.Second, 1},
		{"health", 404, zone.RequestOK, 0, 1},
		{"health", 502, zone.RequestUpstreamRefused, 0, 1},
		{"health", 200, zone.RequestUpstreamReset, 0, 1}, // cut
		{"health", 499, zone.RequestClientReset, 0, 1},
		{"all", 200, zone.RequestOK, 0, 1},
		{"other", 200, zone.RequestOK, 0, 0.25},
		{"", 200, zone.RequestOK, 0, 0.25},
		{"other", 200, zone.RequestOK, 500 * time.Millisecond, 1},
		{"other", 429, zone.RequestLimited, 0, 1},
	} {
		r := zone.AccessRecord{Status: tt.status, Outcome: tt.outcome, Duration: tt.took}
		kept := 0
		for range n {
			if keeps(rules, &r, tt.route) {
				kept++
			}
		}
		// Sixteen standard deviations of the share that is left to chance.
		if got := float64(kept) / n; got < tt.share-0.05 || got > tt.share+0.05 || (tt.share == 0 || tt.share == 1) && got != tt.share {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	if r := (zone.AccessRecord{Status: 200}); !keeps(nil, &r, "any") {
		t.Error("without rules something is left out")
	}
}

// What the configuration says of format, sampling and redaction, the drainer does, and counts
// what it leaves out; exemplars are made of all.
func TestDrainerConfigured(t *testing.T) {
	z := mustZone(t)
	slot := z.RouteSlot("health")
	var out bytes.Buffer
	d := NewDrainer(z, &out, nil, zoneNames(z))
	d.Configure(&config.Log{Format: "json", Redact: []string{"token"}, Sampling: []config.Sampling{{Routes: []string{"health"}, Share: 0, Slow: time.Hour}}})
	seen := 0
	d.Observe = func(r *zone.AccessRecord) {
		if seen++; bytes.Contains(r.Target, []byte("s3cret")) {
			t.Errorf("observed %s", r.Target)
		}
	}
	stop := start(d)
	for _, status := range []int{200, 500, 200} {
		r := record()
		r.Route, r.Status, r.Target = slot, status, []byte("/?token=s3cret")
		z.Worker(0).Access.Put(&r)
	}
	stop()
	var line struct {
		Status int    `json:"status"`
		Target string `json:"target"`
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Status != 500 || line.Target != "/?token=***" {
		t.Errorf("%v: %s", err, out.String())
	}
	if seen != 3 || d.SampledOut() != 2 || d.Lines() != 1 {
		t.Errorf("%d seen, %d left out, %d lines", seen, d.SampledOut(), d.Lines())
	}
}
