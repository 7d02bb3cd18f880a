// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sweepInterval = 100 * time.Millisecond
	// A client is looked after (is it still there?) once its upstream has been
	// waited for this long; shorter waits end by themselves.
	lookAfter = 300 * time.Millisecond
)

// killReason says why the sweeper, or a client that went away, closed a connection.
type killReason uint32

const (
	killNone killReason = iota
	killTimeout
	killCancelled
)

// sweep renews the clock and closes what is overdue, until the worker stops.
func (w *Worker) sweep() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case now := <-tick.C:
			ns := now.UnixNano()
			w.clock.Store(ns)
			w.sweepOnce(ns)
		}
	}
}

func (w *Worker) sweepOnce(now int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for u := range w.upConns {
		if d := u.deadline.Load(); d != 0 && now > d {
			u.kill(killTimeout)
		}
		if u.killed.Load() != uint32(killNone) {
			delete(w.upConns, u)
		}
	}
	for c := range w.conns {
		if d := c.deadline.Load(); d != 0 && now > d && c.expired.CompareAndSwap(false, true) {
			c.tcp.Close()
			continue
		}
		if since := c.waiting.Load(); since != 0 && now-since > int64(lookAfter) && c.gone() {
			if u := c.upstream.Load(); u != nil {
				u.kill(killCancelled)
			}
		}
	}
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
