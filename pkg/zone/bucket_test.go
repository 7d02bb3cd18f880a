// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func key(n int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func TestNewRate(t *testing.T) {
	for _, tt := range []struct {
		requests uint64
		period   time.Duration
		burst    uint64
		want     Rate
	}{
		{1, time.Second, 1, Rate{1e9, 0, 0}},
		{1, time.Second, 3, Rate{1e9, 2e9, 0}},
		{3, time.Second, 2, Rate{333333334, 333333334, 0}}, // no more than three in a second
		{1e9, time.Second, 1, Rate{1, 0, 0}},
		{5e9, time.Second, 1, Rate{1, 0, 0}},
		{1, time.Hour, 2, Rate{36e11, 36e11, 0}},
		{1, time.Second, math.MaxUint64, Rate{1e9, math.MaxInt64 / 4, 0}},
		{math.MaxUint64, time.Second, 1, Rate{1, 0, 0}},
	} {
		if got := NewRate(tt.requests, tt.period, tt.burst); got != tt.want {
			t.Errorf("%d in %v, burst %d: %+v, want %+v", tt.requests, tt.period, tt.burst, got, tt.want)
		}
	}
}

// With a driven clock: what a limit passes of what is offered, at rates below, at and
// above its own, is rate x t + burst or what was offered. (With a burst of 1 a request that
// comes early waits for the next one's turn, and less than the rate may pass.)
func TestTakeHoldsTheRate(t *testing.T) {
	const rate, seconds, start = 100, 20, int64(1e15)
	for _, burst := range []uint64{2, 10, 250} {
		for _, offered := range []float64{0.5, 1, 1.5, 3, 50} {
			b := mustCreate(t, zonePath(t), small()).LimitBuckets()
			k := b.Key(1, []byte("client"))
			r := NewRate(rate, time.Second, burst)
			n := int(offered * rate * seconds)
			passed := 0
			for i := range n {
				now := start + int64(float64(i)/(offered*rate)*1e9)
				taken := b.Take(k, now, r)
				if taken.OK {
					passed++
				} else if again := b.Take(k, now+int64(taken.Wait)-1, r); again.OK {
					t.Fatalf("burst %d, %v times the rate: a request conformed before its wait of %v was over", burst, offered, taken.Wait)
				}
			}
			want := min(n, rate*seconds+int(burst)-1)
			if off := passed - want; off < -1 || off > 1 {
				t.Errorf("burst %d, %v times the rate: %d of %d passed, want %d", burst, offered, passed, n, want)
			}
		}
	}
}

func TestTakeTells(t *testing.T) {
	b := mustCreate(t, zonePath(t), small()).LimitBuckets()
	k, r := b.Key(1, []byte("a")), NewRate(10, time.Second, 3)
	const now = int64(5e12)
	for i := range 3 {
		if got, want := b.Take(k, now, r), (Taken{OK: true, Excess: time.Duration(i) * 100 * time.Millisecond}); got != want {
			t.Errorf("request %d: %+v, want %+v", i, got, want)
		}
	}
	refused := Taken{Excess: 300 * time.Millisecond, Wait: 100 * time.Millisecond}
	for range 2 { // the first one was not charged
		if got := b.Take(k, now, r); got != refused {
			t.Errorf("%+v, want %+v", got, refused)
		}
	}
	if got := b.Take(b.Key(2, []byte("a")), now, r); !got.OK || got.Excess != 0 {
		t.Errorf("another limit with the same key: %+v", got)
	}
	if got := b.Take(b.Key(1, []byte("b")), now, r); !got.OK || got.Excess != 0 {
		t.Errorf("another key: %+v", got)
	}
	b.Return(k, now, r)
	if got := b.Take(k, now, r); !got.OK {
		t.Errorf("what was returned cannot be taken again: %+v", got)
	}
	for range 10 {
		b.Return(k, now, r)
	}
	if got := b.Take(k, now, r); !got.OK || got.Excess != 0 {
		t.Errorf("returned down to nothing: %+v", got)
	}
	// A limit that was loosened is not held back by what the former one let gather.
	slow := NewRate(1, time.Hour, 2)
	b.Take(b.Key(3, nil), now, slow)
	b.Take(b.Key(3, nil), now, slow)
	if got := b.Take(b.Key(3, nil), now, r); got.OK || got.Wait > 100*time.Millisecond {
		t.Errorf("loosened: %+v", got)
	}
	if got := b.Take(b.Key(3, nil), now+1e8, r); !got.OK {
		t.Errorf("loosened, after its interval: %+v", got)
	}
}

// Workers are processes that map the zone; mappings of one process do for them. All hammer
// the same few keys: not one more request passes than the limit allows, and not one less.
func TestTakeFromManyWorkers(t *testing.T) {
	path := zonePath(t)
	z := mustCreate(t, path, small())
	const burst, keys = 1000, 5
	r := NewRate(1, time.Hour, burst)
	now := int64(1e12)
	var passed [keys]atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		w, err := OpenFile(dup(t, z))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		wg.Go(func() {
			for i := range keys * burst {
				k := i % keys
				if w.LimitBuckets().Take(w.LimitBuckets().Key(9, key(k)), now, r).OK {
					passed[k].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for k := range passed {
		if n := passed[k].Load(); n != burst {
			t.Errorf("key %d: %d passed, the burst is %d", k, n, burst)
		}
	}
	if used, want := z.LimitBuckets().Used(now, math.MaxInt), keys; used != want {
		t.Errorf("%d buckets hold something, want %d", used, want)
	}
}

// New keys of one set, from all sides at once, over and over: each gets one bucket, and of
// each no more passes than its burst.
func TestTakeMakesOneBucket(t *testing.T) {
	b := mustCreate(t, zonePath(t), small()).LimitBuckets()
	r := NewRate(1, time.Hour, 3)
	for round := range 3000 {
		now := int64(1e15) + int64(round)*int64(time.Hour)*10 // all buckets are empty again
		var keys []uint64
		for n := range uint64(3) {
			keys = append(keys, (b.mask+1)*(uint64(round)*3+n+1)|1) // all in set 1
		}
		var passed [3]atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 3 {
					for i, k := range keys {
						if b.Take(k, now, r).OK {
							passed[i].Add(1)
						}
					}
				}
			})
		}
		wg.Wait()
		for i := range passed {
			if n := passed[i].Load(); n != 3 {
				t.Fatalf("round %d, key %d: %d passed, the burst is 3", round, i, n)
			}
		}
		if used := b.Used(now, math.MaxInt); used != 3 {
			t.Fatalf("round %d: %d buckets are used for 3 keys", round, used)
		}
	}
}

// Two buckets of one key, as two workers can make them at once, become one that holds the
// sum.
func TestSettle(t *testing.T) {
	b := mustCreate(t, zonePath(t), small()).LimitBuckets()
	const k, now = uint64(1), int64(1e12)
	set := b.set(k)
	for _, mine := range []int{set + 2, set + 6} {
		clear(b.mem[set : set+setWords])
		b.mem.store(set+2, k)
		b.mem.store(set+3, uint64(now+5))
		b.mem.store(set+6, k)
		b.mem.store(set+7, uint64(now+7))
		if at := b.settle(k, mine, now); at != set+2 {
			t.Errorf("made at %d: place %d holds, want the first", mine-set, at-set)
		}
		if b.mem.load(set+6) != 0 || b.mem.load(set+3) != uint64(now+12) {
			t.Errorf("made at %d: the bucket holds %d, and the other place key %d", mine-set, int64(b.mem.load(set+3))-now, b.mem.load(set+6))
		}
	}
}

// A full set gives up the bucket that would drain first, says so, and the new key begins
// empty. Empty buckets go silently.
func TestTakeEvicts(t *testing.T) {
	b := mustCreate(t, zonePath(t), small()).LimitBuckets()
	r := NewRate(1, time.Second, 100)
	const now = int64(1e12)
	inSet := func(n int) uint64 { return (b.mask + 1) * uint64(n+1) }
	for n := range setBuckets {
		for range n + 1 { // the first key's drains first
			if got := b.Take(inSet(n), now, r); !got.OK || got.Evicted {
				t.Fatalf("key %d: %+v", n, got)
			}
		}
	}
	if got := b.Take(inSet(8), now, r); !got.OK || !got.Evicted || got.Excess != 0 {
		t.Errorf("ninth key of a full set: %+v", got)
	}
	if got := b.Take(inSet(1), now, r); got.Evicted || got.Excess != 2*time.Second {
		t.Errorf("a key that was to stay: %+v", got)
	}
	if got := b.Take(inSet(0), now, r); !got.Evicted || got.Excess != 0 {
		t.Errorf("the key that had to go begins anew: %+v", got)
	}
	if got := b.Take(inSet(20), now+int64(time.Hour), r); got.Evicted || !got.OK {
		t.Errorf("among drained ones: %+v", got)
	}
}

// The default zone holds a million live keys and loses next to none.
func TestMillionKeys(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 128 MB of shared memory: not with -short")
	}
	b := mustCreate(t, zonePath(t), Layout{Workers: 2}).LimitBuckets()
	const n, now = 1_000_000, int64(1e15)
	r := NewRate(1, time.Hour, 2)
	evicted := 0
	for i := range n {
		if b.Take(b.Key(1, key(i)), now, r).Evicted {
			evicted++
		}
	}
	kept := 0
	for i := range n {
		if b.Take(b.Key(1, key(i)), now, r).Excess > 0 {
			kept++
		}
	}
	if used := b.Used(now, 4096); used < n*95/100 || used > n*105/100 {
		t.Errorf("estimated %d buckets in use of %d", used, n)
	}
	if evicted > n/500 || kept < n-n/250 {
		t.Errorf("%d of %d live keys were evicted, %d kept", evicted, n, kept)
	}
	t.Logf("%d places: %d of %d live keys were evicted", b.Places(), evicted, n)
}

func TestBucketSecret(t *testing.T) {
	a, b := mustCreate(t, zonePath(t), small()), mustCreate(t, zonePath(t), small())
	if a.LimitBuckets().Key(1, key(1)) == b.LimitBuckets().Key(1, key(1)) {
		t.Error("two zones hash alike: keys that collide could be computed")
	}
	w, err := OpenFile(dup(t, a))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if a.LimitBuckets().Key(1, key(1)) != w.LimitBuckets().Key(1, key(1)) {
		t.Error("workers of one zone hash differently: a limit would be several")
	}
}

func TestTakeDoesNotAllocate(t *testing.T) {
	b := mustCreate(t, zonePath(t), small()).LimitBuckets()
	r, k, n := NewRate(1, time.Second, 1), key(1), int64(0)
	if got := testing.AllocsPerRun(100, func() { n++; b.Take(b.Key(1, k), n, r) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// A lookup among a million live keys, hash included.
func BenchmarkTake(bench *testing.B) {
	b := mustCreate(bench, zonePath(bench), Layout{Workers: 2}).LimitBuckets()
	const n = 1 << 20
	r := NewRate(1000, time.Second, 1000)
	for i := range n {
		b.Take(b.Key(1, key(i)), 1, r)
	}
	keys := make([][]byte, 1<<16)
	for i := range keys {
		keys[i] = key(rand.IntN(n))
	}
	for i := 0; bench.Loop(); i++ {
		b.Take(b.Key(1, keys[i&(len(keys)-1)]), int64(i), r)
	}
}
