// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xgw-project/xgw/pkg/zone"
)

// emitter sends metrics of one scrape.
type emitter struct{ ch chan<- prometheus.Metric }

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.send(prometheus.NewConstMetric(d, prometheus.CounterValue, float64(v), labels...))
}

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.send(prometheus.NewConstMetric(d, prometheus.GaugeValue, v, labels...))
}

func (e emitter) send(m prometheus.Metric, err error) {
	if err == nil {
		e.ch <- m
	}
	// An error is a wrong number of labels: a test gathers every metric.
}

// classicBounds are bucket numbers of the bounds that text exposition shows: the
// powers of two from about 1 ms to 16 s.
func classicBounds() []int {
	var out []int
	for exponent := -10; exponent <= 4; exponent++ {
		out = append(out, exponent<<zone.Schema-zone.FirstIndex)
	}
	return out
}

// histogram sends both forms in one metric: native buckets for those who ask for
// protobuf, a few classic ones for text. Durations over the highest bound are
// under the bucket above it.
func (e emitter) histogram(d *prometheus.Desc, h *zone.Histogram, labels ...string) {
	positive := make(map[int]int64)
	for i, n := range h.Buckets {
		if n > 0 {
			positive[i+zone.FirstIndex] = int64(n)
		}
	}
	native, err := prometheus.NewConstNativeHistogram(d, h.Count, h.Sum.Seconds(), positive, nil, 0, zone.Schema, 0, time.Time{}, labels...)
	if err != nil {
		return
	}
	e.ch <- withClassic{native, h.Buckets}
}

// withClassic adds classic buckets to a native histogram.
type withClassic struct {
	prometheus.Metric
	buckets [zone.Buckets + 1]uint64
}

func (m withClassic) Write(out *dto.Metric) error {
	if err := m.Metric.Write(out); err != nil {
		return err
	}
	out.Histogram.CreatedTimestamp = nil // not known
	sum, next := uint64(0), 0
	for _, bound := range classicBounds() {
		for ; next <= bound; next++ {
			sum += m.buckets[next]
		}
		count, upper := sum, zone.Bound(bound)
		out.Histogram.Bucket = append(out.Histogram.Bucket, &dto.Bucket{CumulativeCount: &count, UpperBound: &upper})
	}
	return nil
}
