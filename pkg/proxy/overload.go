// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

// overload finds out whether requests wait for this worker, and has some of them refused
// then, so that the others are served as fast as ever. What is measured is what a request
// goes through: a byte is written into a pipe, and the goroutine that reads it is woken by
// the poller and takes its turn behind all that are ready, as a connection's goroutine does.
// The wait is told in CPU time of the worker, its work, which is what stands before the
// request; what else the machine does to the worker no refusal would mend.
//
// A queue that comes and goes is no overload, nor is one that many clients make who wait for
// each other; only one that is long and stands: when even the shortest wait of a window was
// overloadBegins times overload_delay, twice in a row, or overload_delay itself where an upstream's limits
// refuse some already: they keep a queue from growing longer, and refuse as late as others are served. From then on only so many exchanges have a
// turn at the same time, so that whatever becomes ready waits for few: who is refused learns it
// soon. Each measurement changes that number: upwards when the wait is short, so that the
// worker is never without work, downwards when it is above half of overload_delay. As many as
// make a wait at which an overload begins stay behind for a turn, in their order, so that there is
// always somebody to serve next, and more are refused, and told when to come back. Without turns all that have begun are
// served at the same time, each with an upstream connection of its own.
//
// A worker that serves few requests is not measured. While there is no overload an exchange takes
// no lock: it is counted as it comes, runs and ends, and looks twice whether a queue stands.
type overload struct {
	worker   *Worker
	wake     chan struct{} // by the sweeper: there is something to measure
	standing atomic.Bool   // a queue stands: there is an overload
	scarce   atomic.Bool   // memory is, and all requests are refused
	heavy    atomic.Bool   // refusing itself costs a good part of the worker
	refused  atomic.Int64  // since the worker began
	dear     atomic.Int64  // of those, what cost about as much as an exchange
	line     atomic.Int64  // the end of that in which those who were refused come back, by the worker's clock, ns
	spacing  atomic.Int64  // between two places of it, ns; 0: not known

	// Exchanges that were admitted, tunnels apart, those of them that run, and how many of the
	// others there may be in an overload.
	under, running, room atomic.Int64
	spare                atomic.Int64 // exchanges served for which nobody was refused yet, as far as they count
	trend                atomic.Int64 // how many more will wait after trendTime, or fewer
	turns                turns

	far, near *os.File     // the pipe
	token     [1]byte      // what goes through it
	sent      atomic.Int64 // CPU time at which the byte in it was written; 0: there is none
	shortest  atomic.Int64 // wait of this window, ns
	measured  atomic.Int64 // waits of this window, and their sum, ns
	waited    atomic.Int64

	// The watcher's.
	strikes, calm, light int   // windows in a row
	began                tally // when this window did
	known                tally // when costs and the pace of exchanges were last looked at
	cost                 int64 // CPU time of an exchange, lately; 0: not known

	// The sweeper's.
	lastSeen uint64
	live     []metrics.Sample
}

const (
	// A window is at least so long, and has so many measurements or as many times the limit
	// of waits.
	overloadWindow = 50 * time.Millisecond
	windowMeasured = 8
	windowWaited   = 2 * overloadBegins
	overloadBegins = 4                    // times the limit
	quietProbe     = 5 * time.Millisecond // between two measurements, as long as nothing stands
	busyProbe      = 2 * time.Millisecond
	// A worker with fewer exchanges in a window is taken to be quiet.
	quietExchanges = 20
	// What fraction of the turns a measurement adds or takes; one of a wait that is far too long takes half of them.
	steerShare = 6
	leastTurns = 16
	leastRoom  = 16 // may wait for one, whatever they cost
	// Where a refusal costs as much as half of an exchange it comes after roomPrice that are served when as many wait as have room, and
	// sooner the more wait, but after leastPrice at the soonest, until mostRooms wait: else a crowd that comes at once
	// would be refused as a whole, the worker do nothing else, and be without work afterwards. Counted as waiting are those
	// who will be after trendTime if it goes on as in the last windows: many are refused while a queue grows, and nobody who would
	// be missed when it is gone. As long as fewer wait than a share of the room nobody is refused for what may come: a machine that stands still for a
	// moment makes a short queue grow fast, too.
	roomPrice  = 8
	leastPrice = 2
	mostRooms  = 8
	roomQuiet  = 8
	trendTime  = 400 * time.Millisecond
	// So many windows without a refusal end an overload. Until then the next queue is noticed
	// at once: clients that wait as they were told come back together.
	calmWindows = 40
	// When there is more than one refusal to so many exchanges served, refusals cost a good part of
	// the worker: an HTTP/1.1 connection that was refused is not read for as long as its client was told
	// to wait, since clients that do not would have nobody served, but not for longer than this.
	heavyShare   = 8
	lightWindows = 20
	longestRest  = 5 * time.Second
	// Of so many exchanges one is of somebody who was refused before, where all do as they are told.
	returnShare = 16
	longestWait = 30*time.Second - 1
)

func (w *Worker) newOverload() (err error) {
	o := &w.overload
	*o = overload{worker: w, live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}, wake: make(chan struct{}, 1)}
	if err = o.turns.open(); err == nil {
		if o.far, o.near, err = os.Pipe(); err != nil {
			o.turns.close()
		}
	}
	return err
}

// limit is the wait that is too long; 0: none is.
func (o *overload) limit() time.Duration {
	if s := o.worker.current.Load(); s != nil {
		return s.policy.OverloadDelay
	}
	return 0
}

// admit says whether a request of the connection may be served: 0, or after how many seconds the client should come
// back. cheap says that a refusal costs little beside an exchange.
func (c *conn) admit(cheap bool) (retryAfter int) {
	if c.mayWait(cheap) {
		return 0
	}
	return c.worker.overload.turnAway(cheap)
}

// mayWait says whether a request of the connection may be served, and counts it then. Its first may: the handshake has cost more than
// that.
func (c *conn) mayWait(cheap bool) bool {
	first := !c.asked
	c.asked = true
	o := &c.worker.overload
	waiting := o.under.Add(1) - o.running.Load()
	if !o.scarce.Load() && (first || !o.standing.Load() || o.takes(waiting, cheap)) {
		return true
	}
	o.under.Add(-1)
	return false
}

// turnAway counts a refusal, and says after how many seconds the client should come back.
func (o *overload) turnAway(cheap bool) (retryAfter int) {
	o.refused.Add(1)
	if !cheap {
		o.dear.Add(1)
	}
	return o.wait()
}

// takes says whether one more may wait for its turn.
func (o *overload) takes(waiting int64, cheap bool) bool {
	room := o.room.Load()
	if cheap {
		return waiting <= room
	}
	over := waiting + o.trend.Load()
	switch {
	case waiting > mostRooms*room:
		return false
	case over <= 0 || waiting <= room/roomQuiet:
		return true
	}
	price := max(roomPrice*room/over, leastPrice)
	if o.spare.Load() < price {
		return true
	}
	o.spare.Add(-price)
	return false
}

// wait is what a refused client is told to wait, in seconds: until about the next free place of a line in which those who were
// refused come back, one after the other and so few at a time that they alone would make little work. However large a
// crowd is that does as it is told, refusals become few, and it comes back neither at once nor too late to keep the
// worker busy.
func (o *overload) wait() int {
	if !o.standing.Load() {
		return 1 // it is memory that is scarce, which says nothing of how fast exchanges go
	}
	now := o.worker.now()
	for {
		at := o.line.Load()
		next := min(max(at, now)+o.spacing.Load(), now+int64(longestWait))
		if o.line.CompareAndSwap(at, next) {
			return int(scatter(next-now)/int64(time.Second)) + 1
		}
	}
}

// scatter takes a place from anywhere around the one that is next: seconds are all that a client can be told, so that those
// who are refused in one moment would otherwise come back in one, for ever.
func scatter(wait int64) int64 { return min(wait/2+rand.Int64N(wait+1), int64(longestWait)) }

// stir wakes the watcher when the worker has something to do; the sweeper calls it.
func (o *overload) stir() {
	o.weigh()
	n := o.worker.idCounter.Load()
	busy := n-o.lastSeen >= quietExchanges
	o.lastSeen = n
	if !busy || o.limit() == 0 {
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// weigh refuses requests while three quarters of the worker's memory are in use: GOMEMLIMIT
// has the collector work ever harder above, and would never refuse anything.
func (o *overload) weigh() {
	metrics.Read(o.live)
	most := debug.SetMemoryLimit(-1)
	o.scarce.Store(o.live[0].Value.Uint64() > uint64(most/4*3))
}

// watch measures while there is something to measure, window by window.
func (o *overload) watch() {
	defer o.turns.close()
	defer o.end()
	defer o.far.Close() // which ends listen
	defer o.near.Close()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-o.worker.stop:
			return
		case <-o.wake:
		}
		for more := true; more; more = o.standing.Load() || o.strikes != 0 {
			if !o.window(pause) {
				return
			}
		}
	}
}

// window measures for one window; false: the worker has stopped.
func (o *overload) window(pause *time.Timer) (lives bool) {
	lives = true // after a panic, too
	defer o.guard()
	o.shortest.Store(int64(time.Hour))
	o.measured.Store(0)
	o.waited.Store(0)
	if o.began = o.tally(); !o.standing.Load() {
		o.known = o.began // there may have been nothing to do before
	}
	last := int64(0)
	for end := o.worker.now() + int64(overloadWindow); o.worker.now() < end || !o.enough(); {
		now := cpuTime()
		o.probe(now)
		if o.standing.Load() && now-last > int64(busyProbe/2) {
			pause.Reset(busyProbe)
		} else {
			pause.Reset(quietProbe)
		}
		last = now
		select {
		case <-o.worker.stop:
			return false
		case <-pause.C:
		}
	}
	o.judge()
	return true
}

// enough says whether there are measurements to judge by; a worker that has nothing more to
// do soon has them. A byte that is still under way has waited for so long at least.
func (o *overload) enough() bool {
	most := windowWaited * int64(o.limit())
	if since := o.sent.Load(); since != 0 {
		if wait := cpuTime() - since; wait >= most {
			o.shortest.Store(min(o.shortest.Load(), wait))
			return true
		}
	}
	return o.measured.Load() >= windowMeasured || o.waited.Load() >= most
}

// probe writes a byte, unless the last one is still under way.
func (o *overload) probe(now int64) {
	if o.sent.Load() != 0 {
		return
	}
	o.sent.Store(now)
	if _, err := o.near.Write(o.token[:]); err != nil {
		o.sent.Store(0)
	}
}

// listen reads the bytes. As a sock that may find nothing does, it first goes behind all that
// are ready: connections whose peers are quick never wait for the poller.
func (o *overload) listen() {
	var b [1]byte
	for {
		if _, err := o.far.Read(b[:]); err != nil {
			return
		}
		runtime.Gosched()
		o.arrived()
	}
}

func (o *overload) arrived() {
	defer o.guard()
	wait := cpuTime() - o.sent.Swap(0)
	o.measured.Add(1)
	o.waited.Add(wait)
	o.shortest.Store(min(o.shortest.Load(), wait))
	o.hold(wait)
}

// hold changes, in an overload, how many have a turn.
func (o *overload) hold(wait int64) {
	if !o.standing.Load() {
		return
	}
	target := int64(o.limit()) / 2
	t := &o.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if !o.standing.Load() {
		return // it ended just now, and so did turns
	}
	switch {
	case wait > target:
		if t.next == len(t.waiting) { // else those that are free are given away soon
			t.most = min(t.most, t.taken)
		}
		if wait > 2*target {
			t.most /= 2
		} else {
			t.most -= t.most / steerShare
		}
	case wait < target/2 && t.next < len(t.waiting):
		t.most += t.most/steerShare + 1
	}
	t.most = max(t.most, leastTurns)
	t.pass()
}

// begin begins an overload. Of its window is known how much of the CPU the worker got, and so how fast exchanges go: those
// that began in it are more than will end in as much time.
func (o *overload) begin(now tally) {
	o.room.CompareAndSwap(0, leastRoom)
	o.turns.set(leastTurns)
	o.calm = 0
	o.spare.Store(leastRoom)
	o.spacing.Store(returnShare * o.cost * (now.at - o.began.at) / max(now.work-o.began.work, 1))
	o.standing.Store(true)
}

// end ends it: whoever waits goes on, and nobody has a place in the line any more.
func (o *overload) end() {
	o.standing.Store(false)
	o.line.Store(0)
	o.turns.set(math.MaxInt)
}

// learn keeps count of what an exchange costs, and by that of how many may wait. Where many come at once, most of
// the work is for those that do not end yet, and says little.
func (o *overload) learn(ended, worked int64) {
	cost := worked / ended
	if o.cost != 0 {
		cost = (7*o.cost + min(cost, 2*o.cost)) / 8
	}
	o.cost = cost
	o.room.Store(max(overloadBegins*int64(o.limit())/max(cost, 1), leastRoom))
}

// pace keeps count of how long after each other exchanges end at best: what was done can be done, but a window that was
// slow says little even when the worker had more to do, for the machine may have stood still.
func (o *overload) pace(served, took int64, busy bool) {
	spacing, last := returnShare*took/served, o.spacing.Load()
	switch {
	case last == 0:
		last = spacing
	case spacing < last:
		last += (spacing - last) / 4
	case busy:
		last += min(spacing-last, last) / 64
	}
	o.spacing.Store(last)
}

// tally is what there was since the worker began: requests refused and all of them, CPU time, and time by the worker's clock.
// Waiting is how many do, saturated for how many an upstream had no connection.
type tally struct{ refused, dear, all, work, at, waiting, saturated int64 }

func (o *overload) tally() tally {
	return tally{
		o.refused.Load(), o.dear.Load(), int64(o.worker.idCounter.Load()), cpuTime(), o.worker.now(), o.under.Load() - o.running.Load(),
		int64(o.worker.slab.LoadRequest(zone.RequestUpstreamSaturated)),
	}
}

// study looks at what is known once there are exchanges enough; where they are slow that takes several windows.
func (o *overload) study(now tally, busy bool) {
	served := now.all - o.known.all - (now.refused - o.known.refused)
	switch {
	case served >= quietExchanges:
		o.learn(served+now.dear-o.known.dear, now.work-o.known.work)
		if o.standing.Load() { // else those that begin are more than those that end
			o.pace(served, now.at-o.known.at, busy)
		}
		o.known = now
	case o.under.Load() == 0:
		o.known = now
	}
}

// foresee follows how the number of those who wait changes.
func (o *overload) foresee(now tally) {
	change := (now.waiting - o.began.waiting) * int64(trendTime) / max(now.at-o.began.at, 1)
	o.trend.Store((o.trend.Load() + change) / 2)
}

// judge ends a window.
func (o *overload) judge() {
	limit := int64(o.limit())
	shortest := o.shortest.Load()
	now := o.tally()
	turned := now.refused - o.began.refused
	served := now.all - o.began.all - turned
	if o.light++; turned > served/heavyShare {
		o.light = 0
	}
	o.heavy.Store(o.light < lightWindows)
	o.study(now, turned > 0 || o.turns.wanted())
	o.foresee(now)
	if !o.standing.Load() {
		begins := overloadBegins * limit
		if now.saturated > o.began.saturated {
			begins = limit
		}
		o.strikes++
		if limit == 0 || shortest <= begins {
			o.strikes = 0
		}
		if o.strikes >= 2 {
			o.begin(now)
			o.worker.log.Warn("overloaded: some requests are refused with 503", "wait", time.Duration(shortest), "overload_delay", time.Duration(limit))
		}
		return
	}
	o.calm++
	if turned > 0 {
		o.calm = 0
	}
	if limit == 0 || o.calm >= calmWindows && o.line.Load() <= now.at {
		o.strikes = 0
		o.end()
		o.worker.log.Info("no longer overloaded", "refused", now.refused)
	}
}

// cpuTime is what the process has had of the CPU, ns.
func cpuTime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) // cannot fail for this clock
	return ts.Nano()
}

func (o *overload) guard() {
	if v := recover(); v != nil {
		o.worker.recovered(v)
	}
}

var overloadRefusal = refusal{status: 503, outcome: zone.RequestOverload, text: "the gateway is overloaded"}

// refuseOverload answers a request that there is no room for. What little body came with it
// is read, so that the connection lives: another would cost a handshake.
func (c *conn) refuseOverload(ex *Exchange, retryAfter int) {
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	_ = giveID(ex)
	defer ex.record()
	if err := ex.skipSmallBody(); err != nil {
		ex.failRead(err)
		return
	}
	r := overloadRefusal
	r.retryAfter = retryAfter
	ex.refuse(&r)
}

// rest keeps a refused client that does not wait as it was told from costing another refusal.
func (c *conn) rest(retryAfter int) {
	o := &c.worker.overload
	if !o.heavy.Load() {
		return
	}
	if c.rested == nil {
		c.rested = make(chan struct{}, 1)
	}
	most := longestRest/2 + rand.N(longestRest/2) // or those who were refused in one moment would come back in one
	c.restUntil.Store(c.worker.until(min(time.Duration(retryAfter)*time.Second, most)))
	select {
	case <-c.rested:
	case <-c.worker.stop:
	}
}

// wake ends a rest, early with the overload or the connection. The sweeper calls it, since it looks at all connections anyway:
// thousands of timers would cost more than refusals do.
func (c *conn) wake(now int64) {
	by := c.restUntil.Load()
	if by != 0 && (now > by || c.closing.Load() || !c.worker.overload.standing.Load()) {
		c.restUntil.Store(0)
		c.rested <- struct{}{} // never blocks: there is one for each rest
	}
}
