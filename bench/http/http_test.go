// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xgw-project/xgw/pkg/config"
)

const goodH2load = `TLS Protocol: TLSv1.3
Cipher: TLS_AES_128_GCM_SHA256
Application protocol: h2
finished in 1.00s, 10.00 req/s, 1.86MB/s
requests: 10 total, 12 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 10 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.86MB (1949010) total, 219.65KB (224924) headers (space savings 93.62%), 366.00KB (1000) data
`

// A figure is only worth something if every way to get a wrong one is refused.
func TestParseLoad(t *testing.T) {
	swap := strings.NewReplacer
	small, resumed := &benchCase{body: 100}, &benchCase{body: 100, resume: true}
	for _, tt := range []struct {
		name  string
		parse func(string, *benchCase) (int64, error)
		c     *benchCase
		text  string
		want  int64 // 0: refused
	}{
		{"wrk", parseWrk, small, "Running\nresult 10 2000 0 0 0 0 0\n", 10},
		{"wrk, nothing answered", parseWrk, small, "result 0 0 0 0 0 0 0\n", 0},
		{"wrk, read error", parseWrk, small, "result 10 2000 0 1 0 0 0\n", 0},
		{"wrk, status", parseWrk, small, "result 10 2000 0 0 0 1 0\n", 0},
		{"wrk, short bodies", parseWrk, small, "result 10 999 0 0 0 0 0\n", 0},
		{"wrk, no result", parseWrk, small, "Running\n", 0},
		{"h2load", parseH2load, small, goodH2load, 10},
		{"h2load, errored", parseH2load, small, swap("0 errored", "2 errored").Replace(goodH2load), 0},
		{"h2load, 3xx", parseH2load, small, swap("10 2xx, 0 3xx", "9 2xx, 1 3xx").Replace(goodH2load), 0},
		{"h2load, h1", parseH2load, small, swap("protocol: h2", "protocol: http/1.1").Replace(goodH2load), 0},
		{"h2load, TLS 1.2", parseH2load, small, swap("TLSv1.3", "TLSv1.2").Replace(goodH2load), 0},
		{"h2load, short bodies", parseH2load, small, swap("(1000)", "(999)").Replace(goodH2load), 0},
		{"full", parseClient, small, "result 10 0 1000\n", 10},
		{"full, one resumed", parseClient, small, "result 10 1 1000\n", 0},
		{"resumed", parseClient, resumed, "result 1000 984 100000\n", 1000},
		{"paced", parsePaced, small, "result 10 700 2000\n", 10},
		{"paced, short bodies", parsePaced, small, "result 10 700 900\n", 0},
		{"resumed, many full", parseClient, resumed, "result 1000 900 100000\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.parse(tt.text, tt.c)
			if (err != nil) != (tt.want == 0) || (err == nil && got != tt.want) {
				t.Errorf("got %d, %v, want %d", got, err, tt.want)
			}
		})
	}
}

func TestCheckSeen(t *testing.T) {
	for _, tt := range []struct {
		name string
		seen seen
		ok   bool
	}{
		{"kept alive", seen{connections: 64, requests: 10_000}, true},
		{"a connection for each", seen{connections: 10_000, requests: 10_000}, false},
		{"a connection for each tenth", seen{connections: 1_000, requests: 10_000}, false},
		{"some left under way", seen{connections: 564, requests: 10_064}, true},
		{"not all arrived", seen{connections: 64, requests: 9_999}, false},
		{"more than the load says", seen{connections: 64, requests: 20_000}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := checkSeen(10_000, 64, tt.seen); (err == nil) != tt.ok {
				t.Errorf("got %v, want none: %v", err, tt.ok)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	s, err := parseStat("12 (a) b (c) S 7 12 12 0 -1 4194560 100 0 0 0 250 50 30 5 20 0 1 0 9 1 1 1")
	if err != nil || s != (stat{parent: 7, ticks: 335}) {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := parseStat("12 (a"); err == nil {
		t.Error("a line cut short was taken")
	}
	all := map[int]stat{1: {}, 10: {parent: 1}, 12: {parent: 11}, 11: {parent: 10}, 13: {parent: 1}}
	if diff := cmp.Diff([]int{10, 11, 12}, descendants(all, 10)); diff != "" {
		t.Error(diff)
	}
	if got := descendants(all, 99); got != nil {
		t.Errorf("a process that is gone has %v", got)
	}
}

func TestRecord(t *testing.T) {
	r := result{name: "case", unit: "us/request", figures: map[string][]float64{ours: {30, 10, 20}, "nginx": {40, 20}, "haproxy": {50, 25, 10}, "nginx" + logged: {40}}}
	want := record{Name: "case", Unit: "us/request", Ours: 20, Peers: map[string]float64{"nginx": 30, "haproxy": 25, "nginx-log": 40}, Ratio: 0.8, RatioLogged: 0.5}
	if diff := cmp.Diff(want, r.record()); diff != "" {
		t.Error(diff)
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Active connections: 2 \nserver accepts handled requests\n 5 5 70 \nReading: 0 Writing: 1 Waiting: 1 \n")
	if err != nil || got != (seen{connections: 5, requests: 70}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parseStatus("502"); err == nil {
		t.Error("something else was taken for a status")
	}
}

func TestCoreTime(t *testing.T) {
	text := "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 1000 1000 4 5 6 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\n"
	if got, err := coreTime(text, 0); err != nil || got != 21*tick {
		t.Errorf("got %s, %v, want %s", got, err, 21*tick)
	}
	if _, err := coreTime(text, 2); err == nil {
		t.Error("found a core that is not there")
	}
}

// The bench writes a configuration; this notices when its keys change.
func TestXGWConfig(t *testing.T) {
	text := fmt.Sprintf(xgwConfig, "/tmp/dir", addrXGW+":443", addrUpstream+":"+upstreamPort)
	c, err := config.Parse("gateway.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Workers != 1 || !c.Pin || c.Log.Access == "off" || c.Listeners[0].MinVersion != "1.3" || c.Interfaces[0].Mode != "native" {
		t.Errorf("not what the bench says it measures: %+v", c)
	}
}
