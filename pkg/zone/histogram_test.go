// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// within8 compares exactly: d ns <= 2^(index/8) s, that is d^8 <= 2^index * 10^72.
func within8(d int64, index int) bool {
	left := new(big.Int).Exp(big.NewInt(d), big.NewInt(8), nil)
	right := new(big.Int).Exp(big.NewInt(10), big.NewInt(72), nil)
	if index >= 0 {
		right.Lsh(right, uint(index))
	} else {
		left.Lsh(left, uint(-index))
	}
	return left.Cmp(right) <= 0
}

// wantBucket is the definition in whole numbers.
func wantBucket(d int64) int {
	b := 0
	for b < Buckets && !within8(d, b+FirstIndex) {
		b++
	}
	return b
}

// longest is the longest duration in a bucket, found without the code under test.
func longest(b int) int64 {
	low, high := int64(1), int64(100*time.Second)
	for low < high {
		mid := (low + high + 1) / 2
		if within8(mid, b+FirstIndex) {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return low
}

func TestBucketBoundsExact(t *testing.T) {
	for b := range Buckets {
		d := longest(b)
		if got := bucketOf(time.Duration(d)); got != b {
			t.Errorf("%d ns is in bucket %d, want %d", d, got, b)
		}
		if got := bucketOf(time.Duration(d + 1)); got != b+1 {
			t.Errorf("%d ns is in bucket %d, want %d", d+1, got, b+1)
		}
	}
	for _, tt := range []struct {
		d    time.Duration
		want int
	}{
		{math.MinInt64, 0}, {-1, 0}, {0, 0}, {1, 0}, {511, 0}, {512, 0}, {953, 0}, {954, 1},
		{64 * time.Second, Buckets - 1}, {64*time.Second + 1, Buckets}, {1<<36 - 1, Buckets}, {1 << 36, Buckets}, {math.MaxInt64, Buckets},
		{time.Second, -FirstIndex}, {time.Second + 1, -FirstIndex + 1},
	} {
		if got := bucketOf(tt.d); got != tt.want {
			t.Errorf("%d ns is in bucket %d, want %d", tt.d, got, tt.want)
		}
	}
}

func TestBucketProperties(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		d := int64(random.Uint64() >> (random.IntN(40) + 24))
		if got, want := bucketOf(time.Duration(d)), wantBucket(d); got != want {
			t.Fatalf("%d ns is in bucket %d, want %d", d, got, want)
		}
	}
	before := 0
	for d := int64(1); d < int64(200*time.Second); d += 1 + d/5000 {
		b := bucketOf(time.Duration(d))
		if b < before || b > before+1 {
			t.Fatalf("buckets jump from %d to %d at %d ns", before, b, d)
		}
		before = b
	}
	if before != Buckets {
		t.Errorf("200 s is in bucket %d", before)
	}
}

func TestBound(t *testing.T) {
	for b := 1; b < Buckets; b++ {
		if Bound(b) <= Bound(b-1) {
			t.Errorf("bound %d is not above the one before", b)
		}
	}
	if Bound(0) != math.Ldexp(1, -20) || Bound(-FirstIndex) != 1 || Bound(Buckets-1) != 64 || !math.IsInf(Bound(Buckets), 1) {
		t.Errorf("bounds are %v, %v, %v, %v", Bound(0), Bound(-FirstIndex), Bound(Buckets-1), Bound(Buckets))
	}
}

// nativeIndex is where Prometheus's own client counts a value.
func nativeIndex(t *testing.T, seconds float64) int {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", NativeHistogramBucketFactor: 1.1})
	h.Observe(seconds)
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		t.Fatal(err)
	}
	if m.Histogram.GetSchema() != Schema || len(m.Histogram.PositiveSpan) != 1 {
		t.Fatalf("unexpected histogram %v", m.Histogram)
	}
	return int(m.Histogram.PositiveSpan[0].GetOffset())
}

// Buckets are Prometheus's: each bound lies in the bucket that it closes, and both
// sides of it are where the client library has them.
func TestBucketsAreNative(t *testing.T) {
	for b := range Buckets {
		if got := nativeIndex(t, Bound(b)); got != b+FirstIndex {
			t.Errorf("bound %d is in native bucket %d", b, got-FirstIndex)
		}
		if got := nativeIndex(t, math.Nextafter(Bound(b), 100)); got != b+1+FirstIndex {
			t.Errorf("above bound %d is native bucket %d", b, got-FirstIndex)
		}
		for _, d := range []time.Duration{time.Duration(longest(b)), time.Duration(longest(b) + 1)} {
			if bucketOf(d) == 0 || bucketOf(d) == Buckets {
				continue // ours are open there
			}
			if got, want := bucketOf(d)+FirstIndex, nativeIndex(t, d.Seconds()); got != want {
				t.Errorf("%d ns: bucket %d, Prometheus has %d", d, got, want)
			}
		}
	}
}

func TestHistogramRead(t *testing.T) {
	h := make(words, histogramWords)
	all := []time.Duration{-time.Second, 0, time.Microsecond, time.Millisecond, time.Millisecond, time.Second, time.Hour}
	sum := time.Duration(0)
	for _, d := range all {
		observe(h, d)
		sum += max(d, 0)
	}
	var got Histogram
	got.Buckets[7] = 99 // what was there goes
	readHistogram(h, &got)
	want := Histogram{Sum: sum, Count: uint64(len(all))}
	for _, d := range all {
		want.Buckets[bucketOf(d)]++
	}
	if got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func BenchmarkBucketOf(b *testing.B) {
	sum := 0
	for i := range b.N {
		sum += bucketOf(time.Duration(i&0xffff) << 14)
	}
	if sum == 0 && b.N > 1 {
		b.Fatal("nothing was counted")
	}
}
