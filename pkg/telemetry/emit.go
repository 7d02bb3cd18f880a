// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xgw-project/xgw/pkg/zone"
)

// emitter sends metrics of one scrape.
type emitter struct{ ch chan<- prometheus.Metric }

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.value(d, prometheus.CounterValue, float64(v), labels)
}

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.value(d, prometheus.GaugeValue, v, labels)
}

func (e emitter) value(d *prometheus.Desc, t prometheus.ValueType, v float64, labels []string) {
	m, err := prometheus.NewConstMetric(d, t, v, labels...)
	if err != nil { // a label that is not UTF-8: this series is missing and the log says why
		m = prometheus.NewInvalidMetric(d, err)
	}
	e.ch <- m
}

func (e emitter) histogram(d *prometheus.Desc, h *zone.Histogram, labels ...string) {
	e.withExemplars(d, h, nil, labels...)
}

// withExemplars is a histogram that tells of some traces, by its classic buckets.
func (e emitter) withExemplars(d *prometheus.Desc, h *zone.Histogram, traces *[classicBuckets]*dto.Exemplar, labels ...string) {
	value := encode(h)
	if traces != nil {
		if traces[classicBuckets-1] != nil { // the last bucket is not written unless it has more to say
			all, upper := h.Count, math.Inf(1)
			value.Bucket = append(value.Bucket, &dto.Bucket{CumulativeCount: &all, UpperBound: &upper})
		}
		for i, b := range value.Bucket {
			b.Exemplar = traces[i]
		}
	}
	e.ch <- histogram{desc: d, labels: prometheus.MakeLabelPairs(d, labels), value: value}
}

// histogram is one metric in two forms: native buckets for who asks for protobuf, a
// few classic ones for text. client_golang's constant histograms have one or the other.
type histogram struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	value  *dto.Histogram
}

func (h histogram) Desc() *prometheus.Desc { return h.desc }

func (h histogram) Write(out *dto.Metric) error {
	out.Label, out.Histogram = h.labels, h.value
	return nil
}

// encode turns the zone's buckets into both forms. Nothing is redistributed: they
// are native buckets already. Up to 2^-20 s, about a microsecond, is the native zero
// bucket; over 64 s is in the bucket that follows, up to 70 s.
func encode(h *zone.Histogram) *dto.Histogram {
	count, seconds, zeros := h.Count, h.Sum.Seconds(), h.Buckets[0]
	schema, threshold := int32(zone.Schema), zone.Bound(0)
	out := &dto.Histogram{
		SampleCount: &count, SampleSum: &seconds,
		Schema: &schema, ZeroThreshold: &threshold, ZeroCount: &zeros,
		Bucket: classic(h),
	}
	out.PositiveSpan, out.PositiveDelta = spans(h)
	return out
}

// maxGap is how many empty buckets cost less than a span of their own.
const maxGap = 2

// spans are runs of buckets, each count as the difference to the one before. The
// offset of the first run is a native index, that of others the gap.
func spans(h *zone.Histogram) (runs []*dto.BucketSpan, deltas []int64) {
	var before int64
	next := -zone.FirstIndex // as a bucket of the zone: native index 0
	for b := 1; b < len(h.Buckets); b++ {
		n := int64(h.Buckets[b])
		if n == 0 {
			continue
		}
		if len(runs) == 0 || b-next > maxGap {
			offset, length := int32(b-next), uint32(0)
			runs = append(runs, &dto.BucketSpan{Offset: &offset, Length: &length})
			next = b
		}
		run := runs[len(runs)-1]
		for ; next < b; next++ {
			deltas = append(deltas, -before)
			before = 0
			*run.Length++
		}
		deltas = append(deltas, n-before)
		before = n
		*run.Length++
		next = b + 1
	}
	return runs, deltas
}

// Classic bounds are the powers of two from about 1 ms to 16 s.
const (
	firstClassic   = -10
	lastClassic    = 4
	classicBuckets = lastClassic - firstClassic + 2 // with that above all bounds
)

// lastWithin is the last bucket of the zone within a classic one.
func lastWithin(i int) int { return (firstClassic+i)<<zone.Schema - zone.FirstIndex }

func classicBound(i int) float64 { return zone.Bound(lastWithin(i)) }

func classic(h *zone.Histogram) []*dto.Bucket {
	out := make([]*dto.Bucket, 0, classicBuckets)
	sum, next := uint64(0), 0
	for i := range classicBuckets - 1 {
		last := lastWithin(i)
		for ; next <= last; next++ {
			sum += h.Buckets[next]
		}
		count, upper := sum, zone.Bound(last)
		out = append(out, &dto.Bucket{CumulativeCount: &count, UpperBound: &upper})
	}
	return out
}
