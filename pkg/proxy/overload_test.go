// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// A refused request gets 503 with Retry-After over a connection that lives on, even where a
// small body came with it; a connection's first request is served.
func TestOverloadRefusal(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		g := newGateway(t, []string{httpUpstream(t, echo)}, func(s *policy.Snapshot) { s.OverloadDelay = 5 * time.Millisecond })
		c := g.client(h2)
		ask := func(body string) int {
			t.Helper()
			r, err := c.Post(g.url("/"), "text/plain", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				t.Fatal(err)
			}
			after, _ := strconv.Atoi(r.Header.Get("Retry-After")) // none is 0
			if (r.StatusCode == 503) != (after >= 7 && after <= 30) {
				t.Errorf("status %d with Retry-After %d", r.StatusCode, after)
			}
			return r.StatusCode
		}
		r, err := g.client(h2).Get(g.url("/")) // by another connection: by then nobody measures any more
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		o := &g.worker.overload
		o.line.Store(g.worker.now() + int64(20*time.Second)) // others were refused, too
		o.standing.Store(true)                               // and no exchange may be under way
		if status := ask("first"); status != 200 {
			t.Errorf("the first request of a connection: %d", status)
		}
		for range 3 {
			if status := ask("small"); status != 503 {
				t.Errorf("refused with %d", status)
			}
		}
		o.room.Store(1)
		if status := ask("again"); status != 200 {
			t.Errorf("with room for one: %d", status)
		}
		o.room.Store(0)
		off := g.snapshot
		off.OverloadDelay = 0
		if err := g.worker.Apply(&off, g.certs); err != nil {
			t.Fatal(err)
		}
		if status := ask("last"); status != 200 {
			t.Errorf("with no overload_delay: %d", status)
		}
		if n := g.slab.Load(zone.ConnectionsAccepted); n != 2 {
			t.Errorf("%d connections: a refusal must not cost a handshake", n)
		}
		refused := 0
		for _, r := range g.records(7) {
			if r.Outcome == zone.RequestOverload && r.Status == 503 {
				refused++
			}
		}
		if n := g.slab.LoadRequest(zone.RequestOverload); n != 3 || refused != 3 {
			t.Errorf("%d counted, %d recorded", n, refused)
		}
	})
}

// What is done most in an overload makes no garbage.
func TestRefusalDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ex := &Exchange{client: &nobody{}, method: []byte("HEAD")}
	refuse := func() {
		r := overloadRefusal
		r.retryAfter = 15
		ex.refuse(&r)
	}
	if n := testing.AllocsPerRun(100, refuse); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if r := &ex.reply; r.Status != 503 || len(r.Fields) != 3 || string(r.Fields[2].Value) != "15" || r.Body.Length != int64(len("503 the gateway is overloaded\n")) {
		t.Errorf("reply: %+v", r)
	}
}

// Those who are refused are told to come back one after the other, more or less, within half a minute.
func TestRefusedComeBackInLine(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
	var wrong string
	for range 3 { // the clock goes on meanwhile
		o := &overload{worker: g.worker}
		o.standing.Store(true)
		o.spacing.Store(int64(200 * time.Millisecond))
		told := map[int]int{}
		for range 1000 {
			told[o.wait()]++
		}
		first := 0
		wrong = ""
		for s := 1; s < 30; s++ {
			first += told[s]
			if n := told[s]; s <= 15 && n > 20 {
				wrong = fmt.Sprintf("%d are told to come back after %d s, want 5 or a few more: %v", n, s, told)
			}
		}
		if first < 500 || len(told) > 30 || told[30] < 300 {
			wrong = fmt.Sprintf("the others are not told half a minute at most, and half of that at least: %v", told)
		}
		if o.line.Store(0); o.wait() != 1 {
			wrong = "whoever is refused when all are back is told more than a second"
		}
		o.line.Store(g.worker.now() + int64(20*time.Second))
		if o.standing.Store(false); o.wait() != 1 {
			wrong = "whoever is refused for want of memory stands in the line"
		}
		if wrong == "" {
			return
		}
	}
	t.Error(wrong)
}

// Where a refusal costs much, one follows the fewer that are served the more will wait, but never more than half of them, unless very many do.
func TestOverloadTakes(t *testing.T) {
	o := &overload{}
	o.room.Store(10)
	for _, row := range []struct {
		spare, waiting, trend int64
		cheap, takes          bool
		left                  int64 // of spare
	}{
		{100, 10, 0, true, true, 100}, {0, 11, 0, true, false, 0}, {0, 10, 50, true, true, 0},
		{100, 0, 0, false, true, 100}, {7, 10, 0, false, true, 7}, {8, 10, 0, false, false, 0}, {3, 20, 0, false, true, 3}, {5, 20, 0, false, false, 1},
		{1, 40, 0, false, true, 1}, {2, 40, 0, false, false, 0}, {1, 80, 0, false, true, 1}, {2, 80, 0, false, false, 0}, {0, 81, 0, false, false, 0},
		{100, 40, -40, false, true, 100}, {7, 40, -30, false, true, 7}, {3, 10, 10, false, true, 3}, {4, 10, 10, false, false, 0}, {0, 81, -99, false, false, 0},
		{100, 1, 500, false, true, 100}, {3, 2, 500, false, false, 1},
	} {
		o.spare.Store(row.spare)
		o.trend.Store(row.trend)
		if got := o.takes(row.waiting, row.cheap); got != row.takes || o.spare.Load() != row.left {
			t.Errorf("%+v: %v, and %d are left", row, got, o.spare.Load())
		}
	}
	o.spare.Store(0)
	for range 20 {
		o.leave(&place{hasTurn: true})
		o.leave(&place{})
	}
	if n := o.spare.Load(); n != 10 {
		t.Errorf("of those who had a turn 20 ended, and %d count, want 10", n)
	}
}

// Work for refusals that cost as much as exchanges is not taken for theirs, or fewer and fewer might wait the more are refused.
func TestRefusalsDoNotMakeExchangesDear(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, func(s *policy.Snapshot) { s.OverloadDelay = 5 * time.Millisecond })
	const each = 50_000 // ns
	for _, row := range []struct {
		served, refused, dear, want int64 // want: ns for an exchange
	}{
		{100, 0, 0, each}, {100, 300, 300, each}, // as much as before
		{100, 300, 0, each * 9 / 8}, // four times as much, for refusals that cost nothing: twice is believed, by an eighth
	} {
		o := &overload{worker: g.worker, cost: each}
		o.study(tally{refused: row.refused, dear: row.dear, all: row.served + row.refused, work: (row.served + row.refused) * each, at: 1}, true)
		if o.cost != row.want || o.room.Load() != 4*int64(5*time.Millisecond)/row.want {
			t.Errorf("%+v: an exchange costs %d ns, and %d may wait", row, o.cost, o.room.Load())
		}
	}
}

// A rest ends in time, early with the overload or the connection, and once.
func TestRestEnds(t *testing.T) {
	for _, row := range []struct {
		now           int64
		over, closing bool
		ends          bool
	}{{99, false, false, false}, {101, false, false, true}, {99, true, false, true}, {99, false, true, true}} {
		c := &conn{worker: &Worker{}, rested: make(chan struct{}, 1)}
		c.worker.overload.standing.Store(!row.over)
		c.closing.Store(row.closing)
		c.restUntil.Store(100)
		c.wake(row.now)
		if ends := len(c.rested) == 1; ends != row.ends {
			t.Errorf("%+v: ends %v", row, ends)
		}
		if row.ends {
			c.wake(row.now) // would wait for ever, if it woke again
		}
	}
}

// While refusals are many, an HTTP/1.1 client that does not wait is not read.
func TestOverloadRest(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
	o := &g.worker.overload
	c := g.raw()
	took := func() time.Duration {
		began := time.Now()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.reply("GET")
		return time.Since(began)
	}
	took()
	o.standing.Store(true) // and no exchange may be under way: two refusals
	took()
	quick := min(took(), took(), took())
	o.line.Store(g.worker.now() + int64(20*time.Second)) // others were refused, too
	o.heavy.Store(true)
	took()
	slow := took()
	if slow < time.Second/2 || quick > slow/2 {
		t.Errorf("%v while refusals are few, %v while they are many", quick, slow)
	}
	o.standing.Store(false)
}

// With most of the worker's memory in use requests are refused, the first of a connection too.
func TestScarceMemory(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
	get := func() int {
		r, err := g.client(false).Get(g.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	if status := get(); status != 200 {
		t.Fatalf("status %d", status)
	}
	runtime.GC()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	limit := debug.SetMemoryLimit(int64(live[0].Value.Uint64()) * 5 / 4)
	defer debug.SetMemoryLimit(limit)
	refused := func() bool { return get() == 503 }
	eventually(t, "a request is refused", refused)
	debug.SetMemoryLimit(limit)
	eventually(t, "a request is served", func() bool { return !refused() })
}

// What is measured is the queue that stands before a request.
func TestOverloadIsNoticed(t *testing.T) {
	g := newGateway(t, []string{plainUpstream(t)}, func(s *policy.Snapshot) { s.OverloadDelay = time.Millisecond })
	o := &overload{worker: g.worker} // which nobody else measures for
	if err := o.turns.open(); err != nil {
		t.Fatal(err)
	}
	defer o.turns.close()
	go o.turns.hand()
	wait := func(w time.Duration) { // what listen does when a byte was under way for so long
		o.sent.Store(cpuTime() - int64(w))
		o.arrived()
	}
	window := func(waits ...time.Duration) {
		o.shortest.Store(int64(time.Hour))
		for _, w := range waits {
			wait(w)
		}
		o.judge()
	}
	long, short := 50*time.Millisecond, time.Duration(0)
	for range 3 {
		window(long, long, short, long)
	}
	if o.standing.Load() {
		t.Fatal("a queue that comes and goes was taken for an overload")
	}
	shorter := (overloadBegins - 1) * time.Millisecond
	for range 3 {
		window(shorter, shorter)
	}
	if o.standing.Load() {
		t.Fatal("a short queue was taken for an overload")
	}
	for range 2 {
		o.began = o.tally()
		g.worker.slab.Request(0, 503, 0, zone.RequestUpstreamSaturated)
		window(shorter, shorter)
	}
	if !o.standing.Load() {
		t.Fatal("a queue that an upstream's limits keep short was not taken for one")
	}
	o.wait()
	if o.end(); o.line.Load() != 0 {
		t.Error("places in the line outlive the overload: the next one would send people away for those who were served since")
	}
	o.strikes = 0
	o.began = o.tally()
	window(long, long)
	if window(long, long); !o.standing.Load() {
		t.Fatal("a queue that stands was not taken for one")
	}
	turns := func() int {
		o.turns.mu.Lock()
		defer o.turns.mu.Unlock()
		return o.turns.most
	}
	if n := turns(); n != leastTurns {
		t.Errorf("an overload begins with %d turns, want %d", n, leastTurns)
	}
	if wait(short); turns() != leastTurns {
		t.Error("there are more turns though nobody waits for one")
	}
	const crowd = 6 * leastTurns
	on := make(chan *place, crowd) // those that go on
	places := make([]place, crowd)
	for i := range places {
		go func() {
			o.under.Add(1)
			o.enter(&places[i])
			on <- &places[i]
		}()
	}
	taken := func() (taken, waiting int) {
		o.turns.mu.Lock()
		defer o.turns.mu.Unlock()
		return o.turns.taken, len(o.turns.waiting) - o.turns.next
	}
	eventually(t, "all have a turn or wait for one", func() bool { n, waiting := taken(); return n+waiting == crowd })
	if n, _ := taken(); n != leastTurns {
		t.Errorf("%d have a turn, want %d", n, leastTurns)
	}
	if wait(short); turns() <= leastTurns {
		t.Error("there are no more turns though the wait is short")
	}
	o.turns.set(4 * leastTurns)
	o.turns.mu.Lock()
	o.turns.taken -= 10 // came free, and were not handed on yet
	o.turns.mu.Unlock()
	wait(long)
	if n, want := turns(), 2*leastTurns; n != want {
		t.Errorf("a measurement leaves %d turns, want %d", n, want)
	}
	o.turns.mu.Lock()
	o.turns.taken += 10
	o.turns.mu.Unlock()
	for range 10 {
		wait(long)
	}
	if n := turns(); n != leastTurns {
		t.Errorf("%d turns, whatever the wait: want %d", n, leastTurns)
	}
	for left := crowd; left > 0; left-- { // each that leaves lets another go on
		o.leave(<-on)
	}
	if n, waiting := taken(); n != 0 || waiting != 0 {
		t.Errorf("at the end %d have a turn and %d wait", n, waiting)
	}
	for range calmWindows + 1 { // something was refused in the first
		window(short)
	}
	if o.standing.Load() {
		t.Error("the overload does not end")
	}
}
