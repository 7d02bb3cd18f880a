// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"math"
	"math/bits"
	"time"
)

// Histogram buckets are those of a Prometheus native histogram of schema 3 over
// seconds: eight to each power of two, native index i covering
// (2^((i-1)/8), 2^(i/8)] seconds. Bucket b of a zone is native index b+FirstIndex,
// so that no reader has to redistribute anything. What is shorter than the lowest
// bound is in the lowest bucket, what is longer than the highest in the overflow bucket.
const (
	// Schema is the native histogram's.
	Schema = 3
	// FirstIndex is the native index of the lowest bucket: up to 2^-20 s, about 1 us.
	FirstIndex = -20 << Schema
	// LastIndex is that of the highest bounded bucket: up to 64 s.
	LastIndex = 6 << Schema
	// Buckets counts those with an upper bound; one more holds the overflow.
	Buckets = LastIndex - FirstIndex + 1
)

// Words of a histogram in the zone. There is no count: it is the sum over the
// buckets, so that a reader never sees the two disagree.
const (
	histogramSum     = 0 // ns
	histogramBuckets = 2 // behind a spare word
	histogramWords   = histogramBuckets + Buckets + 1
)

// Histogram is a copy of one, as readers get it.
type Histogram struct {
	Sum     time.Duration
	Count   uint64 // of all buckets
	Buckets [Buckets + 1]uint64
}

// Bound is the upper bound of a bucket in seconds, the very float64 that
// Prometheus computes for the native index; infinite for the overflow bucket.
func Bound(bucket int) float64 {
	if bucket >= Buckets {
		return math.Inf(1)
	}
	index := bucket + FirstIndex
	return math.Ldexp(fractions[index&(1<<Schema-1)], index>>Schema+1)
}

// fractions are 2^(i/8-1): the bounds within an octave, as mantissas in [0.5, 1).
var fractions = [1 << Schema]float64{
	0.5, 0.5452538663326288, 0.5946035575013605, 0.6484197773255048,
	0.7071067811865475, 0.7711054127039704, 0.8408964152537144, 0.9170040432046711,
}

// Durations in ns are sorted into cells, sixteen to each octave, by their leading
// bits. A cell is narrower than a bucket, so it holds one bound at most: a look-up
// and one comparison find the bucket, exactly and without floating point.
const (
	cellBits    = 4
	firstOctave = 9 // 512 ns; anything shorter is in the lowest bucket
	octaves     = 27
)

type bucketTable struct {
	cells  [octaves << cellBits]uint8 // bucket of the cell's shortest duration
	bounds [Buckets + 1]int64         // longest duration of each bucket, ns
}

// bucketOfCell is computed once and not written again.
var bucketOfCell = newBucketTable()

func newBucketTable() *bucketTable {
	t := new(bucketTable)
	for b := range Buckets {
		t.bounds[b] = int64(Bound(b) * float64(time.Second))
	}
	t.bounds[Buckets] = math.MaxInt64
	b := 0
	for cell := range t.cells {
		shortest := int64(1<<cellBits+cell&(1<<cellBits-1)) << (cell>>cellBits + firstOctave - cellBits)
		for shortest > t.bounds[b] {
			b++
		}
		t.cells[cell] = uint8(b)
	}
	return t
}

// bucketOf finds the bucket of a duration.
func bucketOf(d time.Duration) int {
	octave := bits.Len64(uint64(max(d, 0))) - 1
	if octave < firstOctave {
		return 0
	}
	if octave >= firstOctave+octaves {
		return Buckets
	}
	within := int(d>>(octave-cellBits)) & (1<<cellBits - 1)
	b := int(bucketOfCell.cells[(octave-firstOctave)<<cellBits+within])
	if int64(d) > bucketOfCell.bounds[b] {
		b++
	}
	return b
}

func observe(h words, d time.Duration) {
	h.add(histogramSum, uint64(max(d, 0)))
	h.add(histogramBuckets+bucketOf(d), 1)
}

func readHistogram(h words, dst *Histogram) {
	dst.Count = 0
	for i := range dst.Buckets {
		dst.Buckets[i] = h.load(histogramBuckets + i)
		dst.Count += dst.Buckets[i]
	}
	dst.Sum = time.Duration(h.load(histogramSum))
}
