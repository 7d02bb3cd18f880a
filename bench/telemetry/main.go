// SPDX-License-Identifier: Apache-2.0

// Command telemetry measures what it costs to ask: how long a scrape of 1,000 routes takes and
// how many bytes it has; the 99th percentile at half load with a scrape each second and
// without; and CPU per request of a gateway that writes its access log to disk and is scraped
// each second beside one that does neither. It runs on loopback, without a
// kernel plane, and needs root, nginx, wrk and bin/xgw; run it by `make bench-telemetry`.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/telemetry"
	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	routes  = 1000
	sources = 1_000_000
	scrapes = 15
	// scrapeTime is how long a scrape may take at most.
	scrapeTime = 20 * time.Second
)

// figure is one line of the results.
type figure struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	Aim   float64 `json:"aim,omitempty"` // at most
}

func main() {
	work := run
	if len(os.Args) > 1 && os.Args[1] == scraperWord {
		work = scraperMain
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-telemetry:", err)
		os.Exit(1)
	}
}

// parts of the bench, in order.
var parts = []struct {
	name    string
	measure func(dir, upstream string) ([]figure, error)
}{{"scrape", measureScrapes}, {"latency", measureLatency}, {"cost", measureCost}}

func run() error {
	only := flag.String("only", "", "a part: scrape, latency or cost; writes nothing")
	flag.Parse()
	if err := standAside(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "xgw-bench-telemetry")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	up, stop, err := startUpstream(dir)
	defer stop()
	if err != nil {
		return err
	}
	var all []figure
	for _, p := range parts {
		if *only != "" && *only != p.name {
			continue
		}
		figures, err := p.measure(filepath.Join(dir, p.name), up)
		if err != nil {
			return err
		}
		all = append(all, figures...)
	}
	for _, f := range all {
		fmt.Printf("%-46s %10.2f %-12s (%.2f to %.2f)", f.Name, f.Value, f.Unit, f.Low, f.High)
		if f.Aim > 0 {
			fmt.Printf("  aim: at most %g", f.Aim)
		}
		fmt.Println()
	}
	if *only != "" {
		return nil
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile("bench/results/telemetry.json", append(text, '\n'), 0o644)
}

// median is the figure of several values.
func median(name, unit string, aim float64, values []float64) figure {
	slices.Sort(values)
	h := func(v float64) float64 { return math.Round(v*100) / 100 }
	return figure{name, unit, h(values[len(values)/2]), h(values[0]), h(values[len(values)-1]), aim}
}

// middle is the median of several values with the interval that has the true one in it at 95 %:
// between two of them, by the binomial distribution, whatever theirs is.
func middle(name, unit string, aim float64, values []float64) figure {
	f := median(name, unit, aim, values) // sorted, from here on
	n := float64(len(values))
	low := max(int(n/2-0.98*math.Sqrt(n)), 0)
	h := func(v float64) float64 { return math.Round(v*100) / 100 }
	f.Low, f.High = h(values[low]), h(values[len(values)-1-low])
	return f
}

// measureScrapes scrapes a zone with a million live sources under one limit, and 1,000 routes.
func measureScrapes(dir, _ string) ([]figure, error) {
	z, err := zone.Create(dir, zone.Layout{Size: 256 << 20, Workers: 2, Routes: routes + 2})
	if err != nil {
		return nil, err
	}
	defer func() { _ = z.Remove() }() // the file's directory goes, too
	buckets, rate := z.LimitBuckets(), zone.NewRate(1, time.Hour, 10)
	for i := range sources {
		if !buckets.Take(buckets.Key(1, fmt.Appendf(nil, "10.%d.%d.%d", i>>16, i>>8&255, i&255)), int64(time.Hour), rate).OK {
			return nil, errors.New("a source that asked once is refused")
		}
	}
	for i := range routes {
		slot := z.RouteSlot(fmt.Sprintf("route-%d", i))
		for n := range 200 {
			z.Worker(n%2).Request(slot, 200, time.Duration(n*n)*time.Microsecond, zone.RequestOK)
		}
	}
	s := telemetry.New(ledger.New(ledger.Sources{Zone: z}), telemetry.Options{Log: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() { _ = s.Serve(l) }() // it ends with the listener
	defer l.Close()
	var all []figure
	for _, form := range []struct{ name, accept string }{
		{"text", ""}, {"protobuf", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"},
	} {
		var times []float64
		bytes := 0
		for range scrapes {
			began := time.Now()
			n, err := scrape("http://"+l.Addr().String()+"/metrics", form.accept)
			if err != nil {
				return nil, err
			}
			times, bytes = append(times, time.Since(began).Seconds()*1000), n
		}
		mb := float64(bytes) / 1e6
		all = append(all, median("scrape of 1,000 routes, "+form.name, "ms", 50, times), median("size of it, "+form.name, "MB", 5, []float64{mb}))
	}
	return all, nil
}
