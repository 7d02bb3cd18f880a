// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// bench is a cache and a store that answers by hand.
type bench struct {
	*testing.T
	*Cache
	slab    *zone.Slab
	asked   chan string
	now     int64
	times   Times
	records map[string]*Record
}

func newBench(t *testing.T) *bench {
	z, err := zone.Create(filepath.Join(t.TempDir(), "zone"), zone.Layout{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		T: t, slab: z.Worker(0), asked: make(chan string, 10_000), now: int64(time.Hour),
		times: Times{Known: time.Minute, Unknown: time.Second, Stale: time.Hour}, records: map[string]*Record{},
	}
	b.Cache = NewCache(z.Fence(), b.slab)
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		b.Cache.Run(func(ids []string) error {
			for _, id := range ids {
				b.asked <- id
			}
			return nil
		}, stop)
	})
	t.Cleanup(func() { close(stop); running.Wait(); z.Close() })
	return b
}

func (b *bench) add(id string) {
	_, r, err := New(Record{ID: id, Consumer: "c"}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	b.records[id] = &r
}

// question is the next one that was sent.
func (b *bench) question() string {
	b.Helper()
	select {
	case id := <-b.asked:
		return id
	case <-time.After(10 * time.Second):
		b.Fatal("nothing was asked")
		return ""
	}
}

// answers answers the next n questions.
func (b *bench) answers(n int) {
	for range n {
		id := b.question()
		b.Answer([]Answer{{ID: id, Record: b.records[id]}}, b.now)
	}
}

// finds looks a key up while somebody answers n questions.
func (b *bench) finds(id string, n int) (known bool, err error) {
	b.Helper()
	var answering sync.WaitGroup
	answering.Go(func() { b.answers(n) })
	k, err := b.Find([]byte(id), b.now, &b.times)
	answering.Wait()
	if len(b.asked) > 0 {
		b.Errorf("%s: more was asked than expected: %s", id, <-b.asked)
	}
	return k != nil, err
}

func (b *bench) expect(when, id string, questions int, known bool) {
	b.Helper()
	if got, err := b.finds(id, questions); got != known || err != nil {
		b.Errorf("%s: %s is known: %v, %v", when, id, got, err)
	}
}

func TestCache(t *testing.T) {
	b := newBench(t)
	b.add("a")
	b.expect("at first", "a", 1, true)
	b.expect("again", "a", 0, true)
	b.expect("at first", "nobody", 1, false)
	b.expect("again", "nobody", 0, false)
	b.now += int64(b.times.Unknown)
	b.expect("after its time", "nobody", 1, false)
	b.expect("before its time", "a", 0, true)
	b.now += int64(b.times.Known)
	b.expect("after its time, in the background", "a", 1, true)
	b.expect("again", "a", 0, true)
	delete(b.records, "a")
	b.now += 2 * int64(b.times.Known)
	b.expect("when it is gone, after twice its time", "a", 1, false)
	b.expect("again", "a", 0, false)
	b.add("nobody")
	b.now += int64(b.times.Unknown)
	b.expect("when it came", "nobody", 1, true)
	if b.slab.Load(zone.KeysAsked) != 6 || b.slab.Load(zone.KeysCached) != 6 {
		t.Errorf("asked %d, cached %d", b.slab.Load(zone.KeysAsked), b.slab.Load(zone.KeysCached))
	}
}

// Of what the fence was raised about nothing is believed, and the rest stays.
func TestCacheHeedsTheFence(t *testing.T) {
	b := newBench(t)
	b.add("a")
	b.add("b")
	for _, id := range []string{"a", "b", "nobody"} {
		b.expect("at first", id, 1, id != "nobody")
	}
	for _, tt := range []struct {
		about          uint64
		a, b, nobodies int // questions
	}{
		{zone.FenceID("a"), 1, 0, 0}, {zone.FenceKnown, 1, 1, 0}, {zone.FenceUnknown, 0, 0, 1}, {zone.FenceAll, 1, 1, 1}, {zone.FenceID("c"), 0, 0, 0},
	} {
		b.fence.Raise(tt.about)
		what := fmt.Sprintf("raised about %x", tt.about)
		b.expect(what, "a", tt.a, true)
		b.expect(what, "b", tt.b, true)
		b.expect(what, "nobody", tt.nobodies, false)
		b.expect("after that", "a", 0, true)
	}
}

// An answer that was read before the fence was raised does not count, whoever waits for it.
func TestCacheAsksAgainForWhatChangedMeanwhile(t *testing.T) {
	b := newBench(t)
	b.add("a")
	old := *b.records["a"]
	got := make(chan *Key)
	find := func() { k, _ := b.Find([]byte("a"), b.now, &b.times); got <- k }
	go find()
	b.question()
	b.records["a"].Revoke(time.Now())
	b.fence.Raise(zone.FenceID("a"))
	go find() // joins the question
	b.Answer([]Answer{{ID: "a", Record: &old}}, b.now)
	b.answers(1)
	for range 2 {
		if k := <-got; k == nil || !k.Revoked {
			t.Errorf("found %+v", k)
		}
	}
}

func TestCacheAsksOnceForAll(t *testing.T) {
	b := newBench(t)
	b.add("a")
	var finders sync.WaitGroup
	var found atomic.Int64
	for range 50 {
		finders.Go(func() {
			if k, _ := b.Find([]byte("a"), b.now, &b.times); k != nil {
				found.Add(1)
			}
		})
	}
	b.answers(1)
	finders.Wait()
	if found.Load() != 50 || b.slab.Load(zone.KeysAsked) != 1 {
		t.Errorf("%d found it, by %d questions", found.Load(), b.slab.Load(zone.KeysAsked))
	}
}

// A store that does not answer: known keys go on, for a time; unknown ones are no "no".
func TestCacheOfDeadStore(t *testing.T) {
	b := newBench(t)
	b.add("a")
	b.expect("at first", "a", 1, true)
	fails := func(id string, questions int, want error) {
		t.Helper()
		var answering sync.WaitGroup
		answering.Go(func() {
			for range questions {
				b.Answer([]Answer{{ID: b.question(), Failed: true}}, b.now)
			}
		})
		k, err := b.Find([]byte(id), b.now, &b.times)
		answering.Wait()
		if !errors.Is(err, want) || (k != nil) != (want == nil) {
			t.Errorf("%s after %s: %v, %v", id, time.Duration(b.now)-time.Hour, k != nil, err)
		}
	}
	fails("new", 1, ErrUnanswered)
	fails("new", 1, ErrUnanswered) // it is asked for again
	b.now += 2 * int64(b.times.Known)
	fails("a", 1, nil)
	fails("a", 0, nil) // not asked for again at once
	b.now += int64(answerTime)
	fails("a", 1, nil)
	b.fence.Raise(zone.FenceID("a"))
	fails("a", 1, ErrUnanswered) // revoked, it may be
	b.expect("when it answers again", "a", 1, true)
	b.now += int64(b.times.Stale)
	fails("a", 1, ErrUnanswered)
	if b.slab.Load(zone.KeysStale) != 3 || b.slab.Load(zone.KeysUnanswered) != 4 {
		t.Errorf("stale %d, unanswered %d", b.slab.Load(zone.KeysStale), b.slab.Load(zone.KeysUnanswered))
	}
	b.giveUp() // the supervisor is gone
	fails("a", 0, ErrUnanswered)
}

// Many ids that are none cost known keys nothing and memory not much.
func TestCacheIsBounded(t *testing.T) {
	b := newBench(t)
	b.known.most, b.unknown.most = 8, 8
	b.add("a")
	b.expect("at first", "a", 1, true)
	for i := range 100 {
		b.expect("a flood", fmt.Sprint(i), 1, false)
	}
	b.expect("after it", "a", 0, true)
	for i := range 100 {
		id := fmt.Sprint("k", i)
		b.add(id)
		b.expect("many keys", id, 1, true)
		b.expect("one that is used among them", "a", 0, true)
	}
	if n := b.slab.Load(zone.KeysEvicted); n != 93 || len(b.known.places) != 8 || len(b.known.entries) != 8 || len(b.unknown.entries) != 8 {
		t.Errorf("evicted %d, known %d in %d, unknown %d", n, len(b.known.places), len(b.known.entries), len(b.unknown.entries))
	}
	// More questions than there is room for are not asked.
	var finders sync.WaitGroup
	for i := range maxFlights + 10 {
		finders.Go(func() { _, _ = b.Find(fmt.Appendf(nil, "f%d", i), b.now, &b.times) })
	}
	finders.Wait()
	if n := b.slab.Load(zone.KeysUnanswered); n != maxFlights+10 {
		t.Errorf("%d were not answered", n)
	}
	if n := len(b.asked); n != maxFlights {
		t.Errorf("%d were asked", n)
	}
}

func TestCacheHitDoesNotAllocate(t *testing.T) {
	b := newBench(t)
	b.add("a")
	b.expect("at first", "a", 1, true)
	b.expect("at first", "nobody", 1, false)
	a, nobody := []byte("a"), []byte("nobody")
	if n := testing.AllocsPerRun(1000, func() {
		b.fence.Raise(zone.FenceID("other"))
		_, _ = b.Find(a, b.now, &b.times)
		_, _ = b.Find(nobody, b.now, &b.times)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCacheHit(b *testing.B) {
	z, err := zone.Create(filepath.Join(b.TempDir(), "zone"), zone.Layout{Workers: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer z.Close()
	c := NewCache(z.Fence(), z.Worker(0))
	text, r, _ := New(Record{Consumer: "c"}, time.Now())
	_, secret, _ := Split([]byte(text))
	times := Times{Known: time.Hour, Unknown: time.Hour, Stale: time.Hour}
	id := []byte(r.ID)
	c.mu.Lock()
	c.ask(id)
	c.mu.Unlock()
	c.Answer([]Answer{{ID: r.ID, Record: &r}}, 0)
	b.ReportAllocs()
	for b.Loop() {
		k, err := c.Find(id, 1, &times)
		if err != nil || !k.Opens(secret, time.Time{}) {
			b.Fatal("not found")
		}
	}
}
