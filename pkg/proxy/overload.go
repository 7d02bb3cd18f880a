// SPDX-License-Identifier: Apache-2.0

package proxy

import (
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
// The wait is told in CPU time of the worker, which is what stands before the request; what
// else the machine does to the worker no refusal would mend.
//
// A queue that comes and goes is no overload, nor is one that many clients make who wait for
// each other; only one that is long and stands: when even the shortest wait of a window was
// overloadBegins times overload_delay, twice in a row. From then on requests that arrive while
// the wait is above half of overload_delay are refused, which holds the queue at about this length: the
// worker is never without work, and who is refused learns it soon.
//
// A worker that serves few requests is not measured, and nothing but one load of a word is
// asked of an exchange.
type overload struct {
	worker   *Worker
	wake     chan struct{} // by the sweeper: there is something to measure
	refusing atomic.Bool   // requests that arrive now are refused
	scarce   atomic.Bool   // so they are for want of memory
	heavy    atomic.Bool   // refusing itself costs a good part of the worker
	refused  atomic.Int64  // since the worker began

	far, near *os.File     // the pipe
	token     [1]byte      // what goes through it
	sent      atomic.Int64 // CPU time at which the byte in it was written; 0: there is none
	shortest  atomic.Int64 // wait of this window, ns
	measured  atomic.Int64 // waits of this window, and their sum, ns
	waited    atomic.Int64
	standing  atomic.Bool // a queue stands: there is an overload

	// The watcher's.
	strikes, calm        int // windows in a row
	lastRefused, lastAll int64

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
	// So many windows without a refusal end an overload. Until then the next queue is noticed
	// at once: clients that wait as they were told come back together.
	calmWindows = 40
	// What a refused client is told to wait. When there is more than one refusal to so many
	// exchanges served, its HTTP/1.1 connection is not read for as long: refusals cost a good
	// part of an exchange there, and clients that do not wait would have nobody served.
	retryAfter = time.Second
	heavyShare = 8
	restPiece  = retryAfter / 4 // a rest ends early with the overload, or the connection
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
	if !o.scarce.Load() && (first || !o.refusing.Load()) {
		return true
	}
	o.refused.Add(1)
	return false
}

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
	for end := o.worker.now() + int64(overloadWindow); o.worker.now() < end || !o.enough(); {
		o.probe(cpuTime())
		if o.standing.Load() {
			pause.Reset(busyProbe)
		} else {
			pause.Reset(quietProbe)
		}
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
// do soon has them.
func (o *overload) enough() bool {
	return o.measured.Load() >= windowMeasured || o.waited.Load() >= windowWaited*int64(o.limit())
}

// probe writes a byte, unless the last one is still under way: then it has waited for so
// long at least.
func (o *overload) probe(now int64) {
	if since := o.sent.Load(); since != 0 {
		o.hold(now - since)
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

// hold refuses, in an overload, as long as the wait is long.
func (o *overload) hold(wait int64) {
	if o.standing.Load() {
		o.refusing.Store(wait > int64(o.limit()/2))
	}
}

// judge ends a window.
func (o *overload) judge() {
	limit := int64(o.limit())
	shortest := o.shortest.Load()
	refused, all := o.refused.Load(), int64(o.worker.idCounter.Load())
	turned, served := refused-o.lastRefused, all-o.lastAll-(refused-o.lastRefused)
	o.lastRefused, o.lastAll = refused, all
	o.heavy.Store(turned > served/heavyShare)
	if !o.standing.Load() {
		o.strikes++
		if limit == 0 || shortest <= overloadBegins*limit {
			o.strikes = 0
		}
		if o.strikes == 2 {
			o.standing.Store(true)
			o.calm = 0
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
		o.refusing.Store(false)
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
func (c *conn) rest() {
	o := &c.worker.overload
	for range retryAfter / restPiece {
		if !o.standing.Load() || !o.heavy.Load() || c.closing.Load() {
			return
		}
		time.Sleep(restPiece)
	}
}
