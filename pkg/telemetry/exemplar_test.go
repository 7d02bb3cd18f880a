// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Each bucket of a route has the trace of its last sampled exchange, that above all bounds
// too; routes without a slot share the last one's.
func TestExemplars(t *testing.T) {
	z := mustZone(t, 2, 16)
	api := z.RouteSlot("api")
	e := NewExemplars(z.Layout().Routes)
	note := func(route int, d time.Duration, trace string, sampled bool) {
		z.Worker(0).Request(route, 200, d, zone.RequestOK)
		e.Note(&zone.AccessRecord{Route: route, Start: time.Unix(1_700_000_000, 0), Duration: d, Trace: []byte(trace), Sampled: sampled})
	}
	note(api, 3*time.Millisecond, "first", true)
	note(api, 3*time.Millisecond, "second", true)
	note(api, 3*time.Millisecond, "unsampled", false)
	note(api, time.Minute, "slow", true)
	note(1000, time.Second, "stranger", true)
	note(zone.NoRoute, time.Microsecond, "nowhere", true)
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	w := httptest.NewRecorder()
	New(ledger.New(ledger.Sources{Zone: z}), Options{Log: slog.New(slog.DiscardHandler), Exemplars: e}).http.Handler.ServeHTTP(w, r)
	text := w.Body.String()
	for _, line := range []string{
		`xgw_request_duration_seconds_bucket{route="api",le="0.00390625"} 3 # {trace_id="second"} 0.003 1.700000000003e+09`,
		`xgw_request_duration_seconds_bucket{route="api",le="+Inf"} 4 # {trace_id="slow"} 60.0 1.70000006e+09`,
		`xgw_request_duration_seconds_bucket{route="overflow",le="1.0"} 1 # {trace_id="stranger"} 1.0 1.700000001e+09`,
		`xgw_request_duration_seconds_bucket{route="none",le="0.0009765625"} 1 # {trace_id="nowhere"} 1e-06 1.700000000000001e+09`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no %s in\n%s", line, grepped(text, "trace_id"))
		}
	}
	if n := strings.Count(text, "trace_id"); n != 4 {
		t.Errorf("%d exemplars:\n%s", n, grepped(text, "trace_id"))
	}
}

func grepped(text, word string) (out string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			out += line
		}
	}
	return out
}
