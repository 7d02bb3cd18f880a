// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// A client that goes away ends what its upstream does for it, by the end of the connection to
// the server. A stream of HTTP/2 is reset for next to nothing, which the server must not pay
// for with connections (rapid reset, passed on): they are closed for that at a bounded rate
// for each upstream of a worker. Above it the end waits, for at most so many that the upstream
// has connections left for others: a reply that comes meanwhile is dropped, and its
// connection is used again.
const (
	cancelRate  = 100 // a second
	cancelBurst = 200
	heldShare   = 4 // an upstream's max_connections by this may be held
)

const (
	cancelEach  = int64(time.Second) / cancelRate
	cancelSlack = cancelBurst * cancelEach
)

// mayCancel takes one closing from the rate, if there is one.
func (u *upstream) mayCancel(now int64) bool {
	for {
		at := u.cancelAt.Load()
		next := max(at, now-cancelSlack) + cancelEach
		if next > now {
			return false
		}
		if u.cancelAt.CompareAndSwap(at, next) {
			return true
		}
	}
}

// cancelUpstream ends what the stream's upstream does for a client that went away, or holds that back.
// The lock of watched is held.
func (st *stream) cancelUpstream() {
	u, c := st.upstream.up, st.conn
	if _, ok := c.abandoned[st]; ok {
		return
	}
	if u.mayCancel(c.worker.now()) || u.held.Load() >= int64(u.policy.MaxConnections/heldShare) {
		st.upstream.kill(killCancelled)
		return
	}
	u.held.Add(1)
	if c.abandoned == nil {
		c.abandoned = map[*stream]*upstream{}
	}
	c.abandoned[st] = u
	c.watches.Store(true)
	c.worker.slab.Add(zone.CancelsHeld, 1)
}

// reclaim takes a stream from those held. The lock of watched is held.
func (c *conn) reclaim(st *stream) {
	if u, ok := c.abandoned[st]; ok {
		delete(c.abandoned, st)
		c.watches.Store(c.upstream != nil || len(c.abandoned) > 0)
		u.held.Add(-1)
	}
}

// cancelHeld is the sweeper's. The lock of watched is held.
func (c *conn) cancelHeld() {
	for st, u := range c.abandoned {
		if !u.mayCancel(c.worker.now()) {
			return
		}
		st.upstream.kill(killCancelled)
		c.reclaim(st)
	}
}

// discard takes a reply whose client is gone off the connection, if it is here as a whole:
// another request can follow then.
func (a *attempt) discard() bool {
	r := &a.ex.reply
	if !r.KeepAlive || a.conn.killed() != killNone {
		return false
	}
	switch b := r.Body; {
	case b.Empty():
	case b.Chunked:
		var decoder http1.Chunked
		for !decoder.Done() {
			_, n, fault := decoder.Next(a.in.b[a.r:a.n])
			if fault != nil || n == 0 {
				return false
			}
			a.r += n
		}
	case b.UntilClose(), b.Length > int64(a.n-a.r):
		return false
	default:
		a.r += int(b.Length)
	}
	return a.r == a.n
}
