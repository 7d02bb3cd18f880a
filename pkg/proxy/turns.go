// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math"
	"os"
	"sync"
)

// turns lets few exchanges run at the same time in an overload, in the order in which they
// came. Those that began before it have none, and need none.
//
// A turn that comes free is handed on by a goroutine that waits for a byte in a pipe, and so for the poller (or by hold, which the poller wakes, too). Did whoever leaves hand it on, a
// worker whose upstreams are quick would always have something to run, and for as long as it has, Go's scheduler asks the poller
// only every 10 ms: so long nobody would know who has come, and those who are refused would learn it as late. Now all that runs
// comes to a rest first, and those who came are looked at once in each round of turns.
type turns struct {
	mu        sync.Mutex
	most      int
	taken     int
	waiting   []chan struct{} // from next on
	next      int
	far, near *os.File // the pipe
	called    bool     // a byte is in it
}

func (t *turns) open() (err error) {
	t.most = math.MaxInt
	t.far, t.near, err = os.Pipe()
	return err
}

// close ends hand.
func (t *turns) close() {
	_ = t.far.Close()
	_ = t.near.Close()
}

// place is that of an exchange among those that were admitted.
type place struct {
	runs    bool          // it does not wait for its turn, any more
	hasTurn bool          // has one of those that there are
	turn    chan struct{} // where it waits
}

// enter waits for the turn of an exchange that was admitted, unless it runs. It comes soon: so few are let in that it cannot be long.
func (o *overload) enter(p *place) {
	if p.runs {
		return
	}
	p.runs = true
	defer o.running.Add(1)
	if !o.standing.Load() {
		return
	}
	t := &o.turns
	t.mu.Lock()
	p.hasTurn = true
	if t.taken < t.most && t.next == len(t.waiting) {
		t.taken++
		t.mu.Unlock()
		return
	}
	if p.turn == nil {
		p.turn = make(chan struct{}, 1)
	}
	t.waiting = append(t.waiting, p.turn)
	t.mu.Unlock()
	<-p.turn
}

// leave ends an exchange that ran.
func (o *overload) leave(p *place) {
	p.runs = false
	o.running.Add(-1)
	o.under.Add(-1)
	if !p.hasTurn {
		return
	}
	p.hasTurn = false
	if o.spare.Load() < o.room.Load() {
		o.spare.Add(1)
	}
	o.turns.giveBack()
}

// back makes up for a leave that is not the last.
func (o *overload) back(p *place) {
	p.runs = true
	o.under.Add(1)
	o.running.Add(1)
}

func (t *turns) giveBack() {
	t.mu.Lock()
	t.taken--
	call := !t.called && t.taken < t.most && t.next < len(t.waiting)
	if call {
		t.called = true
	}
	t.mu.Unlock()
	if call {
		_, _ = t.near.Write([]byte{0}) // fails only when the worker ends, who lets all go on
	}
}

// hand gives away what came free, once for each byte in the pipe.
func (t *turns) hand() {
	var b [1]byte
	for {
		if _, err := t.far.Read(b[:]); err != nil {
			return
		}
		t.mu.Lock()
		t.called = false
		t.pass()
		t.mu.Unlock()
	}
}

// pass gives turns to those who wait. The lock is held.
func (t *turns) pass() {
	for t.taken < t.most && t.next < len(t.waiting) {
		t.taken++
		t.waiting[t.next] <- struct{}{} // never blocks: one exchange waits for it
		t.waiting[t.next] = nil
		t.next++
	}
	if t.next == len(t.waiting) {
		t.waiting, t.next = t.waiting[:0], 0
	} else if t.next >= 1024 {
		t.waiting = t.waiting[:copy(t.waiting, t.waiting[t.next:])]
		t.next = 0
	}
}

// wanted says whether anybody waits for one.
func (t *turns) wanted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next < len(t.waiting)
}

// set changes how many there may be.
func (t *turns) set(most int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.most = most
	t.pass()
}

// queued is what was decided about an idle HTTP/1.1 client's next request before anything of it was read.
type queued struct {
	came  int64 // when it began to come, by the worker's clock; 0: nothing was decided
	place place // does not run: it is refused
}

// queue is called by the goroutine that reads the connection, when something has come that it waited for. In an overload an idle client waits
// for its turn then, before anything of its request is read: what waits needs no room but the kernel's, and is not looked at
// twice. A thousand requests that were read first are cold when their turns come, which makes each of them dearer by a tenth, and with bodies by half.
// What comes slowly keeps no turn from others: when the reader has to wait for more of a head, over is false.
func (c *conn) queue(over bool) {
	o := &c.worker.overload
	if !over {
		c.unqueue()
		return
	}
	if !c.idle.Load() || !o.standing.Load() {
		return
	}
	c.idle.Store(false) // nobody is to close it for being idle
	by := c.readBy.Swap(0)
	q := &c.queued
	q.came = c.worker.now()
	if c.mayWait(false) {
		o.enter(&q.place)
	}
	if by != 0 {
		c.readBy.Store(max(by, c.worker.until(c.worker.current.Load().policy.Timeouts.Header)))
	}
}

// claim gives the exchange the place that its client has, if it has one, or one that it may wait for.
func (c *conn) claim(ex *Exchange) (retryAfter int) {
	q := &c.queued
	came := q.came
	q.came = 0
	switch {
	case came == 0:
		return c.admit(false)
	case !q.place.runs:
		return c.worker.overload.turnAway(false)
	}
	ex.place.runs, ex.place.hasTurn = true, q.place.hasTurn
	q.place.runs, q.place.hasTurn = false, false
	return 0
}

// unqueue gives up the place of a client that makes no use of it.
func (c *conn) unqueue() {
	q := &c.queued
	if q.place.runs {
		c.worker.overload.leave(&q.place)
	}
	q.came = 0
}
