// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"math"
	"sync"
	"testing"
	"time"
)

// What workers charge comes to the supervisor once, under an id that all gateways share; a key that
// is not used any more makes room.
func TestShares(t *testing.T) {
	z, other := mustCreate(t, zonePath(t), small()), mustCreate(t, zonePath(t), small())
	s := z.Shares()
	k := z.LimitBuckets().Key(7, []byte("alice"))
	for range 3 {
		if !s.Charge(k, 7, []byte("alice")) {
			t.Fatal("no room in an empty table")
		}
	}
	s.Return(k)
	s.Return(k + 1) // nobody's
	got := s.Collect(nil, 100)
	if len(got) != 1 || got[0].Key != k || got[0].Limit != 7 || got[0].Charges != 2 {
		t.Fatalf("collected: %+v", got)
	}
	there := other.LimitBuckets().Key(7, []byte("alice"))
	other.Shares().Charge(there, 7, []byte("alice"))
	if far := other.Shares().Collect(nil, 100); there == k || len(far) != 1 || far[0].ID != got[0].ID || far[0].Charges != 1 {
		t.Errorf("another gateway has %+v of key %x, this one %+v", far, there, got)
	}
	if a, b, c := shareID(7, []byte("alice")), shareID(8, []byte("alice")), shareID(7, []byte("bob")); a == b || a == c {
		t.Error("limits or keys share an id")
	}
	s.Charge(k, 7, []byte("alice"))
	if n := s.Pending(&got[0]); n != 1 {
		t.Errorf("%d pending, want 1", n)
	}
	s.Return(k)
	s.Return(k)
	if got = s.Collect(nil, 100); len(got) != 1 || got[0].Charges != -1 {
		t.Errorf("more was given back than charged: %+v", got)
	}
	for range idleRounds {
		if got := s.Collect(nil, 100); len(got) > 0 {
			t.Fatalf("nothing was charged: %+v", got)
		}
	}
	if s.mem.load(s.set(k)) != 0 || s.Pending(&got[0]) != 0 {
		t.Error("a key that nobody uses keeps its place")
	}
}

// A full set has no room for further keys, and says so; those of a place's last key are not
// told to anybody under the new one.
func TestSharesAreBounded(t *testing.T) {
	s := mustCreate(t, zonePath(t), small()).Shares()
	inSet := func(n uint64) uint64 { return 5 + n*(s.mask+1) }
	for n := range uint64(setBuckets) {
		if !s.Charge(inSet(n), 1, key(int(n))) {
			t.Fatalf("key %d has no place", n)
		}
	}
	if s.Charge(inSet(99), 1, key(99)) {
		t.Error("a ninth key has a place")
	}
	before := s.Collect(nil, 1) // one set, whole
	if len(before) != setBuckets {
		t.Fatalf("%d keys of a full set", len(before))
	}
	// The worker that took the place next died before it wrote the id.
	at := s.set(inSet(0))
	s.mem.store(at, inSet(50))
	s.add(at, 1)
	s.next = 0
	for _, x := range s.Collect(nil, 1) {
		for _, b := range before {
			if x.ID == b.ID {
				t.Errorf("key %x has the id of %x", x.Key, b.Key)
			}
		}
	}
}

// Nothing is lost between workers that charge and the supervisor that collects.
func TestSharesOfManyWorkers(t *testing.T) {
	l := small()
	l.Shares = 1 << 14 // no set has nine of so few keys, whatever the zone's secret
	l.Size = l.Need()
	z := mustCreate(t, zonePath(t), l)
	s := z.Shares()
	const workers, rounds, keys = 4, 5000, 40
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range rounds {
				k := key(i % keys)
				if !s.Charge(z.LimitBuckets().Key(1, k), 1, k) {
					t.Error("no room")
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	sums := map[[2]uint64]int64{}
	var buffer []Share
	collect := func() {
		buffer = s.Collect(buffer[:0], math.MaxInt)
		for _, x := range buffer {
			sums[x.ID] += x.Charges
		}
	}
	for running := true; running; collect() {
		select {
		case <-done:
			running = false
		default:
		}
	}
	if len(sums) != keys {
		t.Errorf("%d keys, want %d", len(sums), keys)
	}
	for id, n := range sums {
		if n != workers*rounds/keys {
			t.Errorf("%x: %d charges, want %d", id, n, workers*rounds/keys)
		}
	}
}

func TestChargeDoesNotAllocate(t *testing.T) {
	s := mustCreate(t, zonePath(t), small()).Shares()
	k, n := key(1), uint64(0)
	if got := testing.AllocsPerRun(100, func() { n++; s.Charge(n, 1, k); s.Charge(1, 1, k); s.Return(1) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// What others charged holds here, too, as far as all gateways' bursts go.
func TestRaise(t *testing.T) {
	b := mustCreate(t, zonePath(t), small()).LimitBuckets()
	r, k, now := NewRate(10, time.Second, 5).Shared(), b.Key(1, key(1)), int64(time.Hour)
	for range 5 {
		b.Take(k, now, r)
	}
	b.Raise(k, now, now+int64(400*time.Millisecond)) // less than there is already
	b.Raise(k, now, now-1)
	if got := b.Take(k, now, r); got.OK || got.Wait != 100*time.Millisecond {
		t.Errorf("its own burst: %+v", got)
	}
	b.Raise(k, now, now+int64(2*time.Second))
	if got := b.Take(k, now, r); got.OK || got.Wait != 1600*time.Millisecond {
		t.Errorf("with what others charged: %+v", got)
	}
	fresh := b.Key(1, key(2))
	b.Raise(fresh, now, now+int64(300*time.Millisecond))
	for i := range 3 {
		if got := b.Take(fresh, now, r); got.OK != (i < 2) {
			t.Errorf("request %d of a key that others charged with 3 of 5: %+v", i, got)
		}
	}
	b.Raise(fresh, now, now+int64(time.Hour))
	if got := b.Take(fresh, now, r); got.OK || got.Wait > 23*time.Second {
		t.Errorf("more than 16 gateways can owe: %+v", got)
	}
	if got := b.Take(fresh, now, NewRate(10, time.Second, 5)); got.Wait != 100*time.Millisecond {
		t.Errorf("a limit of this gateway alone: %+v", got)
	}
}
