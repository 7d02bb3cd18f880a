// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/xgw-project/xgw/pkg/zone"
)

// libraryMetrics are metrics for client_golang's registry, made anew each time.
type libraryMetrics []prometheus.Metric

func (m libraryMetrics) Describe(chan<- *prometheus.Desc) {}
func (m libraryMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, one := range m {
		ch <- one
	}
}

// Whatever comes and goes between readings, the families are those that client_golang's
// registry makes of the same, in its order.
func TestFamiliesAreAsTheLibrarys(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	all := []*desc{newDesc(0, "b_total", "B.", []string{"zeta", "alpha"}), newDesc(1, "a", "A.", []string{"one"}), newDesc(2, "c", "C.", nil)}
	f := newBuffers(all)
	for round := range 100 {
		var theirs libraryMetrics
		f.begin()
		e := emitter{f}
		tell := func(d *desc, n uint64, labels ...string) {
			kind := prometheus.GaugeValue
			if d == all[0] {
				kind = prometheus.CounterValue
				e.counter(d, n, labels...)
			} else {
				e.gauge(d, float64(n), labels...)
			}
			theirs = append(theirs, prometheus.MustNewConstMetric(prometheus.NewDesc(d.name, d.help, d.labels, nil), kind, float64(n), labels...))
		}
		for i := range 20 {
			if r.IntN(8) > 0 {
				tell(all[0], r.Uint64N(1000), fmt.Sprint("z", i%7), fmt.Sprint("a", i))
			}
			if r.IntN(3) > 0 && round%5 > 0 {
				tell(all[1], r.Uint64N(1000), fmt.Sprint("v", 20-i))
			}
		}
		tell(all[2], uint64(round))
		registry := prometheus.NewRegistry()
		registry.MustRegister(theirs)
		want, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.end()
		if err != nil || len(got) != len(want) {
			t.Fatalf("round %d: %d families, want %d, %v", round, len(got), len(want), err)
		}
		for i := range want {
			if !proto.Equal(got[i], want[i]) {
				t.Fatalf("round %d: %v\nwant %v", round, got[i], want[i])
			}
		}
	}
}

// Series that cannot be told cost no others.
func TestSeriesThatCannotBeTold(t *testing.T) {
	all := []*desc{newDesc(0, "a", "A.", []string{"l"}), newDesc(1, "b", "B.", []string{"l"})}
	f := newBuffers(all)
	for range 2 {
		f.begin()
		e := emitter{f}
		for _, l := range []string{"good", "\xff", "twice", "twice"} {
			e.counter(all[0], 1, l)
		}
		e.histogram(all[1], &zone.Histogram{}, "\xff")
		e.gauge(all[0], 1) // without its label
		got, err := f.end()
		if len(got) != 1 || len(got[0].GetMetric()) != 2 {
			t.Errorf("families %v; want one with two series", got)
		}
		if err == nil || strings.Count(err.Error(), "not UTF-8") != 2 || !strings.Contains(err.Error(), "told twice") || !strings.Contains(err.Error(), "0 labels instead of 1") {
			t.Errorf("error %v", err)
		}
	}
}

// A reading of as many series as before makes none of them anew, and what exemplars say
// follows.
func TestReadingMakesNothingAnew(t *testing.T) {
	d := newDesc(0, "d", "D.", []string{"route"})
	f := newBuffers([]*desc{d})
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("route-", i)
	}
	var h zone.Histogram
	read := func(traces *[classicBuckets]*dto.Exemplar) []*dto.MetricFamily {
		h.Buckets[90]++
		h.Count++
		h.Sum += time.Second
		f.begin()
		for _, name := range names {
			emitter{f}.withExemplars(d, &h, traces, name)
		}
		got, err := f.end()
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	read(nil)
	if n := testing.AllocsPerRun(10, func() { read(nil) }); n > 2 {
		t.Errorf("%v allocations for 100 series", n)
	}
	above := &dto.Exemplar{Value: new(float64)}
	for range 2 {
		buckets := read(&[classicBuckets]*dto.Exemplar{classicBuckets - 1: above})[0].GetMetric()[0].GetHistogram().GetBucket()
		if len(buckets) != classicBuckets || buckets[classicBuckets-1].GetExemplar() != above || buckets[classicBuckets-1].GetCumulativeCount() != h.Count {
			t.Errorf("buckets %v", buckets)
		}
	}
}

// Two readings at once have a buffer each; one is kept.
func TestReadingsAtOnce(t *testing.T) {
	r := &reader{collector: &collector{metrics: newMetrics(), gate: &gate{closed: true}}, process: prometheus.NewRegistry()}
	_, first, err := r.Gather()
	if err != nil || r.idle != nil {
		t.Fatalf("a reading under way: idle is %v, %v", r.idle, err)
	}
	_, second, _ := r.Gather()
	first()
	kept := r.idle
	if _, third, _ := r.Gather(); kept == nil || r.idle != nil {
		t.Error("the buffers of the first reading are not used again")
	} else {
		third()
	}
	second()
	if r.idle == nil {
		t.Error("none is kept")
	}
}
