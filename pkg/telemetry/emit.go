// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"math"

	dto "github.com/prometheus/client_model/go"

	"github.com/xgw-project/xgw/pkg/zone"
)

// emitter tells the metrics of one reading.
type emitter struct{ to *buffers }

func (e emitter) counter(d *desc, v uint64, labels ...string) {
	e.value(d, dto.MetricType_COUNTER, float64(v), labels)
}

func (e emitter) gauge(d *desc, v float64, labels ...string) {
	e.value(d, dto.MetricType_GAUGE, v, labels)
}

func (e emitter) value(d *desc, kind dto.MetricType, v float64, labels []string) {
	e.to.next(d, kind, labels).number = v
}

func (e emitter) histogram(d *desc, h *zone.Histogram, labels ...string) {
	e.withExemplars(d, h, nil, labels...)
}

// withExemplars is a histogram that tells of some traces, by its classic buckets.
func (e emitter) withExemplars(d *desc, h *zone.Histogram, traces *[classicBuckets]*dto.Exemplar, labels ...string) {
	out := e.to.next(d, dto.MetricType_HISTOGRAM, labels).metric.Histogram
	if out == nil {
		return // it cannot be told
	}
	encode(h, out)
	if traces == nil {
		return // as before: traces are never forgotten
	}
	if traces[classicBuckets-1] != nil && len(out.Bucket) < classicBuckets { // the last bucket is not written unless it has more to say
		all, upper := h.Count, math.Inf(1)
		out.Bucket = append(out.Bucket, &dto.Bucket{CumulativeCount: &all, UpperBound: &upper})
	}
	for i, b := range out.Bucket {
		b.Exemplar = traces[i]
	}
}

// encode turns the zone's buckets into both forms, in the buffers of what out was before of
// the same histogram: native buckets for who asks for protobuf, a few classic ones for text.
// client_golang's constant histograms have one or the other. Nothing is redistributed: they
// are native buckets already. Up to 2^-20 s, about a microsecond, is the native zero
// bucket; over 64 s is in the bucket that follows, up to 70 s.
func encode(h *zone.Histogram, out *dto.Histogram) {
	if out.SampleCount == nil {
		schema, threshold := int32(zone.Schema), zone.Bound(0)
		*out = dto.Histogram{
			SampleCount: new(uint64), SampleSum: new(float64), Schema: &schema, ZeroThreshold: &threshold, ZeroCount: new(uint64),
		}
	} else if *out.SampleCount == h.Count && *out.SampleSum == h.Sum.Seconds() {
		return // no bucket goes down: all are what they were
	}
	*out.SampleCount, *out.SampleSum, *out.ZeroCount = h.Count, h.Sum.Seconds(), h.Buckets[0]
	classic(h, out)
	spans(h, out)
}

// maxGap is how many empty buckets cost less than a span of their own.
const maxGap = 2

// spans are runs of buckets, each count as the difference to the one before. The
// offset of the first run is a native index, that of others the gap.
func spans(h *zone.Histogram, out *dto.Histogram) {
	runs, deltas := out.PositiveSpan[:0], out.PositiveDelta[:0]
	var before int64
	next := -zone.FirstIndex // as a bucket of the zone: native index 0
	for b := 1; b < len(h.Buckets); b++ {
		n := int64(h.Buckets[b])
		if n == 0 {
			continue
		}
		if len(runs) == 0 || b-next > maxGap {
			if len(runs) < cap(runs) && runs[:len(runs)+1][len(runs)] != nil {
				runs = runs[:len(runs)+1]
			} else {
				runs = append(runs, &dto.BucketSpan{Offset: new(int32), Length: new(uint32)})
			}
			run := runs[len(runs)-1]
			*run.Offset, *run.Length = int32(b-next), 0
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
	out.PositiveSpan, out.PositiveDelta = runs, deltas
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

// classic fills the buckets up to all bounds, and one above them if out has that.
func classic(h *zone.Histogram, out *dto.Histogram) {
	for i := len(out.Bucket); i < classicBuckets-1; i++ {
		upper := classicBound(i)
		out.Bucket = append(out.Bucket, &dto.Bucket{CumulativeCount: new(uint64), UpperBound: &upper})
	}
	sum, next := uint64(0), 0
	for i, b := range out.Bucket[:classicBuckets-1] {
		for last := lastWithin(i); next <= last; next++ {
			sum += h.Buckets[next]
		}
		*b.CumulativeCount = sum
	}
	if len(out.Bucket) == classicBuckets {
		*out.Bucket[classicBuckets-1].CumulativeCount = h.Count
	}
}
