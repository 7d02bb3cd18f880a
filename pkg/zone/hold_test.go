// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestHolds(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	a, b := z.Holds(0), z.Holds(1)
	const k, most = 77, 3
	take := func(h *Holds, want Held, open uint64) {
		t.Helper()
		if n, got := h.Take(k, most); got != want || n != open {
			t.Errorf("%d, %d open: want %d and %d", got, n, want, open)
		}
	}
	take(a, HeldOne, 1)
	take(b, HeldOne, 2)
	take(b, HeldOne, 3)
	take(a, HeldMost, 3)
	take(b, HeldMost, 3)
	b.Return(k)
	take(a, HeldOne, 3)
	a.Return(k + 1) // nobody's
	// The worker of slot 0 dies, and what it had is given back; the other's is not.
	z.Worker(0).Set(GaugeState, uint64(StateDead))
	take(b, HeldOne, 2)
	take(z.Holds(0), HeldOne, 3) // its replacement
	take(b, HeldMost, 3)
	for range 2 {
		b.Return(k)
	}
	a.Return(k)
	a.Return(k) // once too often
	take(b, HeldOne, 1)
}

// A full set counts no further keys, and says so; one that is given back makes room.
func TestHoldsAreBounded(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	h := z.Holds(0)
	inSet := func(n uint64) uint64 { return 5 + n*(h.mask+1) }
	for n := range uint64(setBuckets) {
		if _, got := h.Take(inSet(n), 1); got != HeldOne {
			t.Fatalf("key %d: %d", n, got)
		}
	}
	if _, got := h.Take(inSet(99), 1); got != HeldNone {
		t.Errorf("a ninth key: %d", got)
	}
	if _, got := h.Take(inSet(3), 1); got != HeldMost {
		t.Errorf("a key that is there: %d", got)
	}
	h.Return(inSet(3))
	if _, got := h.Take(inSet(99), 1); got != HeldOne {
		t.Errorf("with room again: %d", got)
	}
}

// Never more are open than may be, whoever takes and returns at once, and all that was
// taken comes back.
func TestHoldsFromManyWorkers(t *testing.T) {
	l := small()
	l.Workers = 4
	l.Size = l.Need()
	z := mustCreate(t, zonePath(t), l)
	const most = 5
	var open, got atomic.Int64
	var wg sync.WaitGroup
	for i := range 4 {
		h := z.Holds(i)
		for range 2 { // two goroutines of each worker
			wg.Go(func() {
				for range 5000 {
					if _, r := h.Take(9, most); r != HeldOne {
						continue
					}
					got.Add(1)
					if n := open.Add(1); n > most {
						t.Errorf("%d are open", n)
					}
					open.Add(-1)
					h.Return(9)
				}
			})
		}
	}
	wg.Wait()
	for i := range most {
		if n, r := z.Holds(i%4).Take(9, most); r != HeldOne || n != uint64(i)+1 {
			t.Errorf("at the end: %d, %d open", r, n)
		}
	}
	if got.Load() < 1000 {
		t.Errorf("only %d of 40000 were let in", got.Load())
	}
}

func TestHoldsDoNotAllocate(t *testing.T) {
	h := mustCreate(t, zonePath(t), small()).Holds(0)
	if got := testing.AllocsPerRun(100, func() { h.Take(1, 1); h.Return(1) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// One more and one less, among the open connections of 10,000 clients on two workers.
func BenchmarkHolds(bench *testing.B) {
	z := mustCreate(bench, zonePath(bench), Layout{Workers: 2})
	h, other, b := z.Holds(0), z.Holds(1), z.LimitBuckets()
	var keys [10_000]uint64
	for i := range keys {
		keys[i] = b.Key(1, key(i))
		h.Take(keys[i], 10)
		other.Take(keys[i], 10)
	}
	for i := 0; bench.Loop(); i++ {
		k := keys[i*7919%len(keys)]
		if _, r := h.Take(k, 10); r != HeldOne {
			bench.Fatal(r)
		}
		h.Return(k)
	}
}
