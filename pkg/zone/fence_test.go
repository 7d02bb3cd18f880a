// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"fmt"
	"hash/fnv"
	"path/filepath"
	"sync"
	"testing"
)

func testFence(t *testing.T) *Fence {
	t.Helper()
	z, err := Create(filepath.Join(t.TempDir(), "zone"), Layout{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { z.Close() })
	return z.Fence()
}

func TestFence(t *testing.T) {
	const id, other = 7, 8
	for _, tt := range []struct {
		name   string
		raised []uint64
		known  bool // an API key's id that is known holds
		none   bool // one that is known to be none
	}{
		{"nothing", nil, true, true},
		{"the id", []uint64{id}, false, false},
		{"another", []uint64{other}, true, true},
		{"another, then it", []uint64{other, id, other}, false, false},
		{"all", []uint64{FenceAll}, false, false},
		{"those that are known", []uint64{FenceKnown}, false, true},
		{"those that are none", []uint64{FenceUnknown}, true, false},
		{"as many as are kept, less one", make([]uint64, fenceKept-1), true, true},
		{"as many as are kept", make([]uint64, fenceKept), false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := testFence(t)
			f.Raise(id) // before it was kept
			before := f.Now()
			for _, about := range tt.raised {
				f.Raise(about)
			}
			now, known := f.Since(before, id, FenceKnown)
			_, none := f.Since(before, id, FenceUnknown)
			if known != tt.known || none != tt.none || now != before+uint64(len(tt.raised)) {
				t.Errorf("known %v, none %v, now %d; want %v, %v, %d", known, none, now-before, tt.known, tt.none, len(tt.raised))
			}
			if _, holds := f.Since(now, id, FenceKnown); !holds {
				t.Error("what is asked for after the raise does not hold")
			}
		})
	}
}

// Whatever the readers' pace, a raise about an id is not missed.
func TestFenceIsNeverMissed(t *testing.T) {
	f := testFence(t)
	const rounds = 20_000
	var all sync.WaitGroup
	for id := uint64(1); id <= 2; id++ {
		all.Go(func() {
			at, seen := uint64(0), false
			for at < rounds {
				now, holds := f.Since(at, id, FenceKnown)
				seen = seen || !holds
				if !seen && now > 64 { // the id was raised by then
					t.Errorf("id %d held from %d to %d", id, at, now)
					return
				}
				at = now
			}
		})
	}
	for n := range uint64(rounds) {
		f.Raise(n % 64)
	}
	all.Wait()
}

func TestFenceID(t *testing.T) {
	for _, s := range []string{"", "a", "k3y-ID"} {
		h := fnv.New64a()
		fmt.Fprint(h, s)
		if got := FenceID(s); got != h.Sum64() || FenceID([]byte(s)) != got {
			t.Errorf("%q: %x, want %x", s, got, h.Sum64())
		}
	}
	id := []byte("k3y-ID")
	if n := testing.AllocsPerRun(100, func() { FenceID(id) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A fence that was raised leaves the layout as it is.
func TestFenceAndLayoutAreApart(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	for i := range uint64(100) {
		z.Fence().Raise(i)
	}
	w, err := OpenFile(dup(t, z))
	if err != nil {
		t.Fatal("a worker that comes later: ", err)
	}
	defer w.Close()
	if w.Layout() != z.Layout() {
		t.Errorf("layout %+v, want %+v", w.Layout(), z.Layout())
	}
}
