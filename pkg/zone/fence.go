// SPDX-License-Identifier: Apache-2.0

package zone

import "math"

// Fence tells workers, at once and in order, what they must no longer believe of what they
// keep in memory: the supervisor raises it, and who keeps something remembers the fence of
// the moment before it was asked for. A raise is in shared memory when Raise returns, so
// nothing that a worker looks at after that can be older.
//
// It is a count of raises and the last of what they were about. Who is further behind than
// that has to ask again, whatever it keeps.
type Fence struct{ mem words }

// The fence's words: the count on a cache line of its own, then a ring.
const (
	fenceCount = 0
	fenceRing  = lineWords
	fenceKept  = 4 * lineWords
	fenceWords = fenceRing + fenceKept
)

// What a raise can be about beside one FenceID.
const (
	FenceAll     = uint64(math.MaxUint64) - iota
	FenceKnown   // all API keys that are known
	FenceUnknown // all that are known to be none
)

// FenceID stands for one id in a raise. Two ids may share one: both are then asked for again.
func FenceID[T string | []byte](id T) uint64 {
	// FNV-1a; that of hash/fnv would allocate.
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * prime
	}
	return min(h, FenceUnknown-1)
}

// Fence is the zone's.
func (z *Zone) Fence() *Fence { return &Fence{z.header[headFence : headFence+fenceWords]} }

// Raise is for the supervisor alone, and not from two goroutines at once.
func (f *Fence) Raise(about uint64) {
	n := f.mem.load(fenceCount)
	f.mem.store(fenceRing+int(n%fenceKept), about)
	f.mem.store(fenceCount, n+1)
}

// Now is how often it was raised.
func (f *Fence) Now() uint64 { return f.mem.load(fenceCount) }

// Since tells whether what was kept at the fence of before still holds: nothing was raised
// since about it, about its kind (FenceKnown or FenceUnknown) or about all. now is the fence
// that this is true for.
func (f *Fence) Since(before, id, kind uint64) (now uint64, holds bool) {
	now = f.Now()
	if now == before {
		return now, true
	}
	if now-before >= fenceKept {
		return now, false
	}
	for n := before; n != now; n++ {
		if about := f.mem.load(fenceRing + int(n%fenceKept)); about == id || about == kind || about == FenceAll {
			return now, false
		}
	}
	// What was just read may have been written over meanwhile.
	return now, f.Now()-before < fenceKept
}
