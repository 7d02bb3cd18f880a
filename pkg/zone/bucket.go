// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"math"
	"time"

	"github.com/dchest/siphash"
)

// LimitBuckets are the state of request limits: one bucket for each limit and key that was
// met lately, in one table that all workers share, so that a limit is one limit however
// many workers there are. Nobody locks anything: a bucket is two words, and what one
// worker does between the two is found by the other, who tries again.
//
// A bucket is the theoretical arrival time of GCRA: the moment, by CLOCK_MONOTONIC in
// ns, at which its key's requests will have drained. One that lies in the past holds
// nothing, and its place goes to whoever needs it. When a set of the table has no such
// place, the bucket that would drain first is evicted; its key begins anew. While none is
// evicted a limit passes at most rate x t + burst, whoever asks from whichever worker (and
// one more of a key that comes back in the very moment in which its empty place is taken).
type LimitBuckets struct {
	mem    words
	mask   uint64 // of sets
	k0, k1 uint64
}

// A set is two cache lines of eight buckets: key, then arrival time. Key 0 is a free place.
const (
	setBuckets  = 8
	setWords    = 2 * setBuckets
	bucketBytes = 16
)

func newLimitBuckets(mem []byte, k0, k1 uint64) *LimitBuckets {
	w := wordsOf(mem)
	return &LimitBuckets{mem: w, mask: uint64(len(w)/setWords - 1), k0: k0, k1: k1}
}

// keyBuckets gives a new zone's buckets their secret.
func (z *Zone) keyBuckets(k0, k1 uint64) {
	z.header.store(headSecret, k0)
	z.header.store(headSecret+1, k1)
	z.buckets.k0, z.buckets.k1 = k0, k1
}

// Rate is what a limit allows each of its keys.
type Rate struct {
	Interval  int64 // ns between two requests that just conform, from 1
	Tolerance int64 // ns by which requests may come before that: the burst
	// Debt is by how many ns a bucket may be ahead beyond that, for what others have charged.
	Debt int64
}

// NewRate makes the rate of so many requests in each period, of which burst may come at
// once. All are at least 1. Where they do not divide, it errs on the side of fewer.
func NewRate(requests uint64, period time.Duration, burst uint64) Rate {
	r := Rate{Interval: 1 + (int64(period)-1)/int64(min(requests, math.MaxInt64))}
	r.Tolerance = math.MaxInt64 / 4
	if before := burst - 1; before < uint64(r.Tolerance/r.Interval) {
		r.Tolerance = int64(before) * r.Interval
	}
	return r
}

// sharers are so many gateways whose bursts at one moment a shared bucket still owes for.
const sharers = 16

// Shared is the rate of a limit that holds over several gateways: all of them may pass a burst
// before they hear of each other, and it is made up for.
func (r Rate) Shared() Rate {
	r.Debt = math.MaxInt64 / 4
	if one := r.Tolerance + r.Interval + int64(time.Second); one < r.Debt/sharers {
		r.Debt = (sharers - 1) * one
	}
	return r
}

// Taken is what came of a request.
type Taken struct {
	OK      bool
	Excess  time.Duration // how far ahead the bucket was before: 0 when it was empty
	Wait    time.Duration // until a request would conform, when it did not
	Evicted bool          // a bucket in use had to go for this one
}

// Key hashes what a limit tells clients apart by, under the zone's own secret: nobody
// outside can choose keys that share a bucket or a set. limit keeps those of different
// limits apart.
func (b *LimitBuckets) Key(limit uint64, key []byte) uint64 {
	k := siphash.Hash(b.k0^limit, b.k1, key)
	if k == 0 {
		return 1 // 0 is a free place
	}
	return k
}

// Take charges the key's bucket with one request at now (CLOCK_MONOTONIC, ns), if that
// conforms; a request that does not is not charged. It allocates nothing.
func (b *LimitBuckets) Take(key uint64, now int64, r Rate) Taken {
	var t Taken
	for {
		at, evicted := b.find(key, now)
		t.Evicted = t.Evicted || evicted
		arrival := b.mem.load(at + 1)
		excess := max(int64(arrival)-now, 0)
		if most := r.Tolerance + r.Interval + r.Debt; excess > most {
			// The limit was lowered in burst or raised in rate since: what it never
			// could have reached must not be waited for.
			b.mem.swap(at+1, arrival, uint64(now+most))
			excess = most
		}
		t.Excess = time.Duration(excess)
		if excess > r.Tolerance {
			t.Wait = time.Duration(excess - r.Tolerance)
			return t
		}
		if b.mem.swap(at+1, arrival, uint64(now+excess+r.Interval)) && b.mem.load(at) == key {
			t.OK = true
			return t
		}
		// Another worker was faster, or the place has become another key's, which is then
		// charged for one request too many.
	}
}

// Return takes back the charge of a request that came to nothing after all.
func (b *LimitBuckets) Return(key uint64, now int64, r Rate) {
	set := b.set(key)
	for i := set; i < set+setWords; i += 2 {
		for b.mem.load(i) == key {
			arrival := b.mem.load(i + 1)
			if int64(arrival) <= now || b.mem.swap(i+1, arrival, arrival-uint64(r.Interval)) {
				return
			}
		}
	}
}

// Raise has the key's bucket drain no sooner than at to: so much was charged elsewhere.
func (b *LimitBuckets) Raise(key uint64, now, to int64) {
	for to > now {
		at, _ := b.find(key, now)
		arrival := b.mem.load(at + 1)
		if int64(arrival) >= to || b.mem.swap(at+1, arrival, uint64(to)) && b.mem.load(at) == key {
			return
		}
	}
}

func (b *LimitBuckets) set(key uint64) int { return int(key&b.mask) * setWords }

// find is the place of the key's bucket; a new one is empty. evicted tells that a bucket
// in use was given up for it.
func (b *LimitBuckets) find(key uint64, now int64) (at int, evicted bool) {
	set := b.set(key)
	for {
		victim, owner, first := -1, uint64(0), int64(math.MaxInt64)
		for i := set; i < set+setWords; i += 2 {
			k := b.mem.load(i)
			if k == key {
				return i, evicted
			}
			arrival := int64(b.mem.load(i + 1))
			if k == 0 {
				arrival = math.MinInt64
			}
			if arrival < first {
				victim, owner, first = i, k, arrival
			}
		}
		if first > now {
			// In use. It is emptied before it changes hands: the new key must not inherit.
			if !b.mem.swap(victim+1, uint64(first), uint64(now)) {
				continue
			}
			evicted = true
		}
		if b.mem.swap(victim, owner, key) {
			return b.settle(key, victim, now), evicted
		}
	}
}

// settle makes one of two buckets of the key, which two workers may have made at once in
// different places: the first place holds, and what the other has goes into it.
func (b *LimitBuckets) settle(key uint64, mine int, now int64) int {
	set := b.set(key)
	for i := set; i < set+setWords; i += 2 {
		if i == mine || b.mem.load(i) != key {
			continue
		}
		from, to := i, mine
		if i < mine {
			from, to = mine, i
		}
		// Freed first: who charges it after this finds that it is not the key's any more.
		if !b.mem.swap(from, key, 0) {
			continue
		}
		if held := int64(b.mem.load(from+1)) - now; held > 0 {
			b.add(to, held, now)
		}
		if from == mine {
			return to
		}
	}
	return mine
}

// add puts ns into the bucket.
func (b *LimitBuckets) add(at int, ns, now int64) {
	for {
		arrival := b.mem.load(at + 1)
		if b.mem.swap(at+1, arrival, uint64(max(int64(arrival), now)+ns)) {
			return
		}
	}
}

// Places is how many buckets there is room for.
func (b *LimitBuckets) Places() int { return len(b.mem) / 2 }

// Used estimates how many buckets hold something at now, from so many sets of the table, spread
// evenly over it: the whole is never walked.
func (b *LimitBuckets) Used(now int64, sets int) int {
	all := len(b.mem) / setWords
	sets = max(1, min(sets, all))
	used := 0
	for n := range sets {
		set := n * all / sets * setWords
		for i := set; i < set+setWords; i += 2 {
			if b.mem.load(i) != 0 && int64(b.mem.load(i+1)) > now {
				used++
			}
		}
	}
	return used * all / sets
}
