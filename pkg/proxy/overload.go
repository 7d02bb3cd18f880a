// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
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
// overloadBegins times overload_delay, twice in a row. From then on only so many exchanges may be
// under way, and each measurement changes that number: upwards when the wait is short, so that
// the worker is never without work, downwards when it is above overload_delay, so that
// who is refused learns it soon. It is by the number that the wait can be held: goroutines
// take turns, so all that have begun are served at the same time, each with an upstream
// connection of its own.
//
// A worker that serves few requests is not measured, and nothing but one load of a word is
// asked of an exchange, twice.
type overload struct {
	worker   *Worker
	wake     chan struct{} // by the sweeper: there is something to measure
	standing atomic.Bool   // a queue stands: there is an overload
	scarce   atomic.Bool   // memory is, and all requests are refused
	heavy    atomic.Bool   // refusing itself costs a good part of the worker
	refused  atomic.Int64  // since the worker began

	under, most atomic.Int64 // exchanges that are under way, tunnels apart, and that may be in an overload

	far, near *os.File     // the pipe
	token     [1]byte      // what goes through it
	sent      atomic.Int64 // CPU time at which the byte in it was written; 0: there is none
	shortest  atomic.Int64 // wait of this window, ns
	measured  atomic.Int64 // waits of this window, and their sum, ns
	waited    atomic.Int64

	// The watcher's.
	strikes, calm, light int // windows in a row
	lastRefused, lastAll int64
	lastWork             int64 // CPU time at the last window's end

	steering   sync.Mutex
	burst      int64 // at least so many may be under way; guarded by steering
	lastTurned int64 // refused at the last measurement; guarded by steering

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
	busyProbe      = time.Millisecond
	// A worker with fewer exchanges in a window is taken to be quiet.
	quietExchanges = 20
	// What fraction of the exchanges that may be under way a measurement adds or takes.
	steerShare = 6
	leastBurst = 8
	// So many windows without a refusal end an overload. Until then the next queue is noticed
	// at once: clients that wait as they were told come back together.
	calmWindows = 40
	// What a refused client is told to wait. When there is more than one refusal to so many
	// exchanges served, its HTTP/1.1 connection is not read for up to as long: refusals cost a good
	// part of an exchange there, and clients that do not wait would have nobody served.
	retryAfter   = time.Second
	heavyShare   = 8
	lightWindows = 20
	leastRest    = retryAfter / 4
	restPieces   = 4 // a rest ends early with the overload, or the connection
)

func (w *Worker) newOverload() error {
	far, near, err := os.Pipe()
	w.overload = overload{worker: w, live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}, wake: make(chan struct{}, 1), far: far, near: near}
	return err
}

// limit is the wait that is too long; 0: none is.
func (o *overload) limit() time.Duration {
	if s := o.worker.current.Load(); s != nil {
		return s.policy.OverloadDelay
	}
	return 0
}

// admit says whether a request of the connection may be served. Its first is: the handshake
// has cost more than that.
func (c *conn) admit() bool {
	first := !c.asked
	c.asked = true
	o := &c.worker.overload
	n := o.under.Add(1)
	if !o.scarce.Load() && (first || !o.standing.Load() || n <= o.most.Load()) {
		return true
	}
	o.under.Add(-1)
	o.refused.Add(1)
	return false
}

// leave ends an exchange that was admitted.
func (o *overload) leave() { o.under.Add(-1) }

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
	defer o.far.Close() // which ends listen
	defer o.near.Close()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		if !o.standing.Load() && o.strikes == 0 {
			select {
			case <-o.worker.stop:
				return
			case <-o.wake:
			}
		}
		if !o.window(pause) {
			return
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

// hold changes, in an overload, how many exchanges may be under way.
func (o *overload) hold(wait int64) {
	if !o.standing.Load() {
		return
	}
	o.steering.Lock()
	defer o.steering.Unlock()
	target := int64(o.limit())
	turned := o.refused.Load()
	refused := turned != o.lastTurned
	o.lastTurned = turned
	most := o.most.Load()
	switch {
	case wait > target: // more at once would send away all who come, and leave nothing to do next
		most = min(most, o.under.Load())
		most -= most / steerShare
	case wait < target/2 && refused:
		most += most/steerShare + 1
	}
	o.most.Store(max(most, o.burst))
}

// begin begins an overload; each exchange of the window before cost so much CPU time.
func (o *overload) begin(cost int64) {
	o.steering.Lock()
	o.burst = max(int64(o.limit())/max(cost, 1), leastBurst)
	o.most.Store(max(o.under.Load(), o.burst))
	o.steering.Unlock()
	o.calm = 0
	o.standing.Store(true)
}

// judge ends a window.
func (o *overload) judge() {
	limit := int64(o.limit())
	shortest := o.shortest.Load()
	refused, all, work := o.refused.Load(), int64(o.worker.idCounter.Load()), cpuTime()
	turned, served, worked := refused-o.lastRefused, all-o.lastAll-(refused-o.lastRefused), work-o.lastWork
	o.lastRefused, o.lastAll, o.lastWork = refused, all, work
	if o.light++; turned > served/heavyShare {
		o.light = 0
	}
	o.heavy.Store(o.light < lightWindows)
	if !o.standing.Load() {
		o.strikes++
		if limit == 0 || shortest <= overloadBegins*limit {
			o.strikes = 0
		}
		if o.strikes == 2 {
			o.begin(worked / max(served, 1))
			o.worker.log.Warn("overloaded: some requests are refused with 503", "wait", time.Duration(shortest), "overload_delay", time.Duration(limit))
		}
		return
	}
	o.calm++
	if turned > 0 {
		o.calm = 0
	}
	if limit == 0 || o.calm >= calmWindows {
		o.strikes = 0
		o.standing.Store(false)
		o.worker.log.Info("no longer overloaded", "refused", refused)
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

var overloadRefusal = refusal{status: 503, outcome: zone.RequestOverload, text: "the gateway is overloaded", retryAfter: true}

// refuseOverload answers a request that there is no room for. What little body came with it
// is read, so that the connection lives: another would cost a handshake.
func (c *conn) refuseOverload(ex *Exchange) {
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	_ = giveID(ex)
	defer ex.record()
	if ex.leavesSmallBody() {
		if err := ex.readSmallBody(); err != nil {
			ex.failRead(err)
			return
		}
	}
	ex.refuse(&overloadRefusal)
}

// rest keeps a refused client that does not wait as it was told from costing another refusal.
// Rests differ, else those who were refused together would be back together.
func (c *conn) rest() {
	o := &c.worker.overload
	if !o.heavy.Load() {
		return
	}
	piece := (leastRest + rand.N(retryAfter-leastRest)) / restPieces
	for range restPieces {
		if !o.standing.Load() || c.closing.Load() {
			return
		}
		time.Sleep(piece)
	}
}
