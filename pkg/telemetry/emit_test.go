// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/xgw-project/xgw/pkg/zone"
)

// native decodes spans and deltas: counts by native index.
func native(h *dto.Histogram) map[int]int64 {
	out := map[int]int64{}
	index, next, count := 0, 0, int64(0)
	for _, s := range h.GetPositiveSpan() {
		index += int(s.GetOffset())
		for range s.GetLength() {
			count += h.GetPositiveDelta()[next]
			if count != 0 {
				out[index] = count
			}
			index++
			next++
		}
	}
	return out
}

func nativeTotal(h *dto.Histogram) uint64 {
	total := h.GetZeroCount()
	for _, n := range native(h) {
		total += uint64(n)
	}
	return total
}

// Any content of a zone's histogram is what both forms say.
func TestHistogramForms(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 200 {
		var h zone.Histogram
		for range round % 40 {
			b := r.IntN(len(h.Buckets))
			if round%3 == 0 { // neighbours, with small gaps
				b = 80 + r.IntN(12)
			}
			n := uint64(r.IntN(1000))
			h.Buckets[b] += n
			h.Count += n
		}
		checkForms(t, &h, fresh(&h))
	}
	full := zone.Histogram{}
	for i := range full.Buckets {
		full.Buckets[i] = uint64(i + 1)
		full.Count += uint64(i + 1)
	}
	checkForms(t, &full, fresh(&full))
}

func checkForms(t *testing.T, h *zone.Histogram, got *dto.Histogram) {
	t.Helper()
	if got.GetSampleCount() != h.Count || nativeTotal(got) != h.Count {
		t.Fatalf("count %d, native %d, want %d", got.GetSampleCount(), nativeTotal(got), h.Count)
	}
	if got.GetZeroCount() != h.Buckets[0] || got.GetZeroThreshold() != math.Exp2(-20) {
		t.Errorf("zero bucket %d up to %g", got.GetZeroCount(), got.GetZeroThreshold())
	}
	buckets := native(got)
	for b := 1; b < len(h.Buckets); b++ {
		if buckets[b+zone.FirstIndex] != int64(h.Buckets[b]) {
			t.Fatalf("native index %d: %d, want %d", b+zone.FirstIndex, buckets[b+zone.FirstIndex], h.Buckets[b])
		}
	}
	for _, c := range got.GetBucket() {
		below := uint64(0)
		for b, n := range h.Buckets {
			if zone.Bound(b) <= c.GetUpperBound() {
				below += n
			}
		}
		if c.GetCumulativeCount() != below {
			t.Fatalf("up to %g: %d, want %d", c.GetUpperBound(), c.GetCumulativeCount(), below)
		}
	}
}

// The spans are those that client_golang makes of the same buckets.
func TestSpansAreAsTheLibrarys(t *testing.T) {
	h := zone.Histogram{}
	positive := map[int]int64{}
	for _, b := range []int{1, 2, 4, 7, 100, 101, 102, 160, 161, zone.Buckets} {
		h.Buckets[b] = uint64(b)
		h.Count += uint64(b)
		positive[b+zone.FirstIndex] = int64(b)
	}
	d := prometheus.NewDesc("x", "x", nil, nil)
	m, err := prometheus.NewConstNativeHistogram(d, h.Count, 0, positive, nil, 0, zone.Schema, zone.Bound(0), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var theirs dto.Metric
	if err := m.Write(&theirs); err != nil {
		t.Fatal(err)
	}
	ours := fresh(&h)
	a, b := native(theirs.GetHistogram()), native(ours)
	if len(a) != len(b) || len(theirs.GetHistogram().GetPositiveSpan()) != len(ours.GetPositiveSpan()) {
		t.Errorf("theirs %v, ours %v", theirs.GetHistogram(), ours)
	}
	for i, n := range a {
		if b[i] != n {
			t.Errorf("index %d: theirs %d, ours %d", i, n, b[i])
		}
	}
}

// fresh is the histogram in buffers of its own.
func fresh(h *zone.Histogram) *dto.Histogram {
	out := &dto.Histogram{}
	encode(h, out)
	return out
}

// Buffers that are used again, for more and for fewer buckets, say what fresh ones do.
func TestHistogramInUsedBuffers(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var used dto.Histogram
	for round := range 200 {
		var h zone.Histogram
		for range r.IntN(30) {
			n := uint64(r.IntN(1000)) + 1
			h.Buckets[r.IntN(len(h.Buckets))] += n
			h.Count += n
		}
		h.Sum = time.Duration(round+1) * time.Second // no two are the same
		encode(&h, &used)
		if want := fresh(&h); !proto.Equal(&used, want) {
			t.Fatalf("round %d: %v, want %v", round, &used, want)
		}
	}
}
