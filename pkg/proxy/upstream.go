// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

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

	// state is the deadline of the present phase by the worker's clock, 0 for none;
	// or below 0 why the connection was closed under its owner, which is final. One
	// word, so that a deadline that passes while the phase ends cannot hit the next
	// owner.
	state atomic.Int64

	// For alive, made once.
	raw   syscall.RawConn
	peek  func(fd uintptr) // look
	poll  [1]unix.PollFd
	quiet bool
}

// killReason says why the sweeper, or a client that went away, closed a connection.
type killReason int64

const (
	killNone      killReason = 0
	killTimeout   killReason = -1
	killCancelled killReason = -2
)

// errSaturated: every connection that the upstream may have is in use.
var errSaturated = errors.New("upstream is saturated")

func newUpstream(p *policy.Upstream) *upstream {
	u := &upstream{policy: p, dialer: net.Dialer{Timeout: p.ConnectTimeout}}
	for _, s := range p.Servers {
		u.servers = append(u.servers, server{address: s, text: []byte(s)})
	}
	return u
}

// arm sets the deadline of the next phase, 0 for none; false: it was killed.
func (c *upConn) arm(by int64) bool {
	for {
		old := c.state.Load()
		if old < 0 {
			return false
		}
		if c.state.CompareAndSwap(old, by) {
			return true
		}
	}
}

// killed is why the connection was closed under its owner.
func (c *upConn) killed() killReason { return killReason(min(c.state.Load(), 0)) }

// kill closes the connection under its owner, who learns why from killed. Whoever
// calls it must know that the owner is still the one it means.
func (c *upConn) kill(why killReason) {
	for {
		old := c.state.Load()
		if old < 0 {
			return
		}
		if c.state.CompareAndSwap(old, int64(why)) {
			_ = c.Conn.Close()
			return
		}
	}
}

// expire closes a connection whose deadline has passed; false: it is closed.
func (c *upConn) expire(now int64) bool {
	by := c.state.Load()
	if by > 0 && now > by && c.state.CompareAndSwap(by, int64(killTimeout)) {
		_ = c.Conn.Close()
		return false
	}
	return by >= 0
}

// take gets an idle connection, or with fresh or without one dials. A server that
// refuses is followed by the next; passed counts those.
func (u *upstream) take(w *Worker, fresh bool) (c *upConn, passed int, err error) {
	for {
		var i int
		if c, i, err = u.reserve(fresh); c != nil || err != nil {
			return c, passed, err
		}
		if c, err = u.dial(w, i); err == nil {
			return c, passed, nil
		}
		u.release()
		if isTimeout(err) || passed+1 >= len(u.servers) {
			return nil, passed, err // a second wait as long would be too much
		}
		passed++
	}
}

// reserve finds an idle connection of the server whose turn it is, or the right to
// dial it; when no more may be dialled, an idle connection of any server.
func (u *upstream) reserve(fresh bool) (*upConn, int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	turn := u.next
	if u.next++; u.next == len(u.servers) {
		u.next = 0
	}
	if !fresh {
		if c := u.popIdle(turn); c != nil {
			return c, turn, nil
		}
	}
	if u.total >= u.policy.MaxConnections && !fresh {
		for i := range u.servers {
			if c := u.popIdle(i); c != nil {
				return c, i, nil
			}
		}
	}
	if u.total >= u.policy.MaxConnections {
		return nil, turn, errSaturated
	}
	u.total++
	return nil, turn, nil
}

// popIdle takes the idle connection of a server that was used last. The lock is held.
func (u *upstream) popIdle(i int) *upConn {
	s := &u.servers[i]
	for len(s.idle) > 0 {
		c := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if c.arm(0) {
			c.reused = true
			return c
		}
		u.total-- // idle for too long: the sweeper closed it
	}
	return nil
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
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
		c.peek = c.look
	}
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
	if keep && !u.retired && len(s.idle) < u.policy.MaxIdle && c.arm(w.until(u.policy.IdleTimeout)) {
		s.idle = append(s.idle, c)
		u.mu.Unlock()
		return
	}
	u.total--
	u.mu.Unlock()
	w.mu.Lock()
	delete(w.upConns, c)
	w.mu.Unlock()
	_ = c.Conn.Close()
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
	if c.raw == nil {
		return true
	}
	c.quiet = false
	_ = c.raw.Control(c.peek)
	return c.quiet
}

// look sets quiet if there is nothing to read, not even an end.
func (c *upConn) look(fd uintptr) {
	c.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}
	n, err := unix.Poll(c.poll[:], 0)
	c.quiet = err == nil && n == 0
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}
