// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// upstream is the connections of this worker to one upstream's servers.
type upstream struct {
	policy *policy.Upstream
	dialer net.Dialer

	mu      sync.Mutex // among this worker's goroutines
	servers []server
	next    int // round robin
	total   int // connections, idle ones included
	retired bool
}

type server struct {
	address string
	text    []byte    // the address, for the access record
	idle    []*upConn // the last one used is the first to be used again
}

// upConn is a connection to a server. One exchange at a time owns it.
type upConn struct {
	net.Conn
	up     *upstream
	server int
	reused bool

	deadline atomic.Int64  // ns since 1970, 0 for none; the sweeper heeds it
	killed   atomic.Uint32 // killReason
}

// errSaturated: every connection that the upstream may have is in use.
var errSaturated = errors.New("upstream is saturated")

func newUpstream(p *policy.Upstream) *upstream {
	u := &upstream{policy: p, dialer: net.Dialer{Timeout: p.ConnectTimeout}}
	for _, s := range p.Servers {
		u.servers = append(u.servers, server{address: s, text: []byte(s)})
	}
	return u
}

// kill closes the connection under its owner, who learns why from killed.
func (c *upConn) kill(why killReason) {
	if c.killed.CompareAndSwap(uint32(killNone), uint32(why)) {
		c.Conn.Close()
	}
}

// take gets an idle connection, or with fresh or without one dials. A server that
// refuses is followed by the next; tries counts those that were passed over.
func (u *upstream) take(w *Worker, fresh bool) (c *upConn, tries int, err error) {
	for tries = 0; tries < len(u.servers); tries++ {
		var i int
		c, i, err = u.reserve(fresh)
		if c != nil || err != nil {
			return c, tries, err
		}
		c, err = u.dial(w, i)
		if err == nil {
			return c, tries, nil
		}
		u.release()
		if isTimeout(err) {
			return nil, tries, err // a second wait as long would be too much
		}
	}
	return nil, tries - 1, err
}

// reserve finds an idle connection of the server whose turn it is, or the right to
// dial it.
func (u *upstream) reserve(fresh bool) (*upConn, int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := u.next
	u.next = (u.next + 1) % len(u.servers)
	s := &u.servers[i]
	for !fresh && len(s.idle) > 0 {
		c := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		c.deadline.Store(0)
		if c.killed.Load() != uint32(killNone) {
			u.total-- // idle for too long; the sweeper closed it and forgot it
			continue
		}
		c.reused = true
		return c, i, nil
	}
	if u.total >= u.policy.MaxConnections {
		return nil, i, errSaturated
	}
	u.total++
	return nil, i, nil
}

func (u *upstream) release() {
	u.mu.Lock()
	u.total--
	u.mu.Unlock()
}

func (u *upstream) dial(w *Worker, i int) (*upConn, error) {
	nc, err := u.dialer.Dial("tcp", u.servers[i].address)
	if err != nil {
		return nil, err
	}
	c := &upConn{Conn: nc, up: u, server: i}
	w.mu.Lock()
	w.upConns[c] = struct{}{}
	w.mu.Unlock()
	w.slab.Add(zone.UpstreamConnectionsOpened, 1)
	return c, nil
}

// give ends the exchange's ownership: keep says that the connection is at rest and
// can carry another request.
func (c *upConn) give(w *Worker, keep bool) {
	u := c.up
	u.mu.Lock()
	s := &u.servers[c.server]
	if keep && !u.retired && len(s.idle) < u.policy.MaxIdle && c.killed.Load() == uint32(killNone) {
		c.deadline.Store(w.clock.Load() + int64(u.policy.IdleTimeout))
		s.idle = append(s.idle, c)
		u.mu.Unlock()
		return
	}
	u.total--
	u.mu.Unlock()
	c.forget(w)
}

func (c *upConn) forget(w *Worker) {
	w.mu.Lock()
	delete(w.upConns, c)
	w.mu.Unlock()
	c.Conn.Close()
}

// retire closes idle connections; those in use are closed when they are given back.
func (u *upstream) retire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.retired = true
	for i := range u.servers {
		for _, c := range u.servers[i].idle {
			c.kill(killCancelled)
			u.total--
		}
		u.servers[i].idle = nil
	}
}

// alive tells whether an idle connection has been closed by the server, or holds
// bytes that nobody asked for: for requests that must not be sent twice.
func (c *upConn) alive() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	_ = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		alive = errors.Is(err, unix.EAGAIN)
	})
	return alive
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

// until is a deadline for the sweeper.
func (w *Worker) until(d time.Duration) int64 { return w.clock.Load() + int64(d) }
