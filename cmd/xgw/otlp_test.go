// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/xgw-project/xgw/pkg/lab/otlptest"
)

// A gateway pushes its metrics, and a span of each exchange whose trace is recorded: by the
// client's word, or as one of so many. The upstream is told the same identifiers. A Collector
// that is away costs no request; what it did not get is counted.
func TestOTLP(t *testing.T) {
	collector := otlptest.Start(t, "127.0.0.1:0", nil)
	var mu sync.Mutex
	told := map[string]string{} // path -> traceparent
	up := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		told[r.URL.Path] = r.Header.Get("Traceparent")
	}))
	t.Cleanup(up.Close)
	dir := t.TempDir()
	yaml := gatewayYAML(dir, "127.0.0.1:0", up.Listener.Addr().String(), "workers: 1\npin: false\n")
	yaml = strings.Replace(yaml, `telemetry: {`, `telemetry: {otlp: {endpoint: "http://`+collector.Address+`", interval: 1s, trace_one_in: 4}, `, 1)
	g := startGateway(t, startHere, "otlp", dir, yaml)
	c := client(true)
	ask := func(path, parent string) {
		t.Helper()
		q, _ := http.NewRequest("GET", "https://"+g.address+path, nil)
		if parent != "" {
			q.Header.Set("Traceparent", parent)
		}
		r, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if r.StatusCode != http.StatusOK {
			t.Fatalf("%s: status %d", path, r.StatusCode)
		}
	}
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	ask("/recorded?key=secret", "00-"+trace+"-"+parent+"-01")
	ask("/unrecorded", "00-"+trace+"-"+parent+"-00")
	for i := range 8 {
		ask(fmt.Sprint("/undecided", i), "")
	}
	eventually(t, "three spans and the metrics come", func() bool {
		m := collector.Metric("xgw_request_outcomes_total")
		return len(collector.Spans()) >= 3 && m != nil && otlptest.Point(m, "outcome", "ok") == 10
	})
	begun := 0
	for _, s := range collector.Spans() {
		path := otlptest.Attributes(s.GetAttributes())["url.path"]
		mu.Lock()
		want := told[path]
		mu.Unlock()
		if got := "00-" + hex.EncodeToString(s.GetTraceId()) + "-" + hex.EncodeToString(s.GetSpanId()) + "-01"; got != want {
			t.Errorf("%s: span %s, the upstream was told %s", path, got, want)
		}
		switch {
		case path == "/recorded":
			if hex.EncodeToString(s.GetParentSpanId()) != parent || hex.EncodeToString(s.GetTraceId()) != trace {
				t.Errorf("span of trace %x and parent %x", s.GetTraceId(), s.GetParentSpanId())
			}
		case strings.HasPrefix(path, "/undecided") && len(s.GetParentSpanId()) == 0:
			begun++
		default:
			t.Errorf("a span of %s: %v", path, s)
		}
	}
	if begun != 2 {
		t.Errorf("%d of 8 traces that nobody decided about are recorded, want 2", begun)
	}

	collector.Stop()
	for i := range 50 {
		ask(fmt.Sprint("/meanwhile", i), "00-"+trace+"-"+parent+"-01")
	}
	failed := func(what string) int {
		return sumSeries(t, g.scrape(t), `xgw_otlp_pushed_total{result="failed",signal="`+what+`"}`)
	}
	eventually(t, "what the Collector does not get is counted", func() bool { return failed("spans") == 50 && failed("metrics") > 0 })
	back := otlptest.Start(t, collector.Address, nil)
	ask("/again", "00-"+trace+"-"+parent+"-01")
	eventually(t, "it comes again", func() bool {
		ask("/again", "00-"+trace+"-"+parent+"-01")
		return len(back.Spans()) > 0 && back.Metric("xgw_otlp_pushed_total") != nil
	})
	for _, said := range []string{"the Collector does not take spans", "the Collector takes spans again"} {
		eventually(t, "the log says "+said, func() bool { return strings.Contains(g.log.String(), said) })
	}
}
