// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	sweepInterval = 100 * time.Millisecond
	// A client is looked after (is it still there?) once its upstream has been
	// waited for this long; shorter waits end by themselves.
	lookAfter = 300 * time.Millisecond
)

// past is a deadline that wakes whoever waits on a socket.
var past = time.Unix(1, 0)

// now is the worker's clock: ns since it was made, monotonic. It costs one read of
// the kernel's clock; w.clock is the same, up to a sweep interval old, for free.
func (w *Worker) now() int64 { return int64(time.Since(w.base)) }

// until is a deadline for the sweeper. It may pass up to two intervals late, never
// early: the coarse clock is up to one behind.
func (w *Worker) until(d time.Duration) int64 {
	return w.clock.Load() + int64(sweepInterval) + int64(d)
}

// sweep renews the clock and ends what is overdue, until the worker stops.
func (w *Worker) sweep() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
			w.sweepGuarded()
		}
	}
}

// sweepGuarded survives a panic: without its sweeper a worker would never time out.
func (w *Worker) sweepGuarded() {
	defer func() {
		if v := recover(); v != nil {
			w.recovered(v)
		}
	}()
	now := w.now()
	w.clock.Store(now)
	w.overload.stir()
	w.sweepOnce(now)
	w.sweepShared(now)
	if s := w.current.Load(); s != nil {
		w.slab.Set(zone.GaugeHandshakesLeft, w.handshakes.left(&s.policy.Handshakes, now))
	}
}

func (w *Worker) sweepOnce(now int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for u := range w.upConns {
		if !u.expire(now) {
			delete(w.upConns, u)
		}
	}
	passed := time.Duration(now - w.swept)
	w.swept = now
	w.makeRoom()
	for c := range w.conns {
		if c.quiet(now) {
			continue
		}
		c.wake(now)
		c.expire(now)
		c.tooSlow(passed)
	}
}

// expire ends the phase of a client that took too long. A wait for input is only
// woken, so that the client can still be told; an output that stands still is cut.
func (c *conn) expire(now int64) {
	if by := c.readBy.Load(); by != 0 && now > by && c.readBy.CompareAndSwap(by, 0) {
		c.expired.Store(true)
		_ = c.tcp.SetReadDeadline(past)
	}
	if by := c.writeBy.Load(); by != 0 && now > by && c.writeBy.CompareAndSwap(by, 0) {
		c.expired.Store(true)
		c.cut()
	}
	c.watched.Lock()
	defer c.watched.Unlock()
	if c.upstream != nil && now-c.since > int64(lookAfter) && c.gone() {
		c.upstream.kill(killCancelled) // it cost the client a connection, too
	}
	c.cancelHeld()
}

// gone asks the kernel whether the client has closed its side.
func (c *conn) gone() bool {
	if c.raw == nil {
		return false
	}
	gone := false
	_ = c.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone
}

func stack() string { return string(debug.Stack()) }
