// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// upstream is the connections of this worker to one upstream's servers.
type upstream struct {
	policy *policy.Upstream
	tls    *tls.Config // nil: in the clear

	complaints complaints
	requests   atomic.Int64 // under way

	mu          sync.Mutex // among this worker's goroutines
	servers     []*server  // those to choose from; see update
	version     uint64     // of that list; an exchange's set of places is of one
	told        uint64     // version of what Know told of them
	uneven      bool       // weights differ
	drained     int        // servers that get no requests, by hand
	rising      int        // servers in slow start
	next        int        // round robin
	total       int        // connections, idle ones included
	retryBudget int        // in thousandths
	waiting     []chan struct{}
	retired     bool

	cancelAt atomic.Int64 // by the worker's clock: see mayCancel
	held     atomic.Int64 // exchanges that are not cancelled yet
}

// upConn is a connection to a server. One exchange at a time owns it.
type upConn struct {
	net.Conn
	up     *upstream
	server *server
	shared *sharedConn         // HTTP/2: what the stream is on, and no Conn
	stream *http2.ClientStream // nil: HTTP/1.1
	reused bool
	probe  bool // its exchange finds out whether an ejected server works again

	// state is the deadline of the present phase by the worker's clock, 0 for none;
	// or below 0 why the connection was closed under its owner, which is final. One
	// word, so that a deadline that passes while the phase ends cannot hit the next
	// owner.
	state atomic.Int64
	most  int64 // what no deadline of the exchange may be behind; 0: none. The owner's

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

// errNoServer: no address of the upstream's servers is known, but of drained ones.
var errNoServer = errors.New("upstream has no server: its names were not resolved, or those that were are drained")

func newUpstream(p *policy.Upstream) (*upstream, error) {
	u := &upstream{policy: p, retryBudget: retrySaved}
	u.cancelAt.Store(-cancelSlack)
	if p.Watch == 0 {
		u.update(0, p.Servers)
	} // else they come by Know
	if p.TLS == nil {
		return u, nil
	}
	u.tls = &tls.Config{
		ServerName: p.TLS.ServerName, InsecureSkipVerify: !p.TLS.Verify, NextProtos: []string{"http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(maxServers), DynamicRecordSizingDisabled: true,
	}
	if p.Protocol == "http2" {
		u.tls.NextProtos = []string{"h2"}
	}
	if len(p.TLS.CA) > 0 {
		u.tls.RootCAs = x509.NewCertPool()
		if !u.tls.RootCAs.AppendCertsFromPEM(p.TLS.CA) {
			return nil, errors.New("no certificate in the file of its authorities")
		}
	}
	return u, nil
}

// arm sets the deadline of the next phase, 0 for none but that of the exchange; false: it
// was killed.
func (c *upConn) arm(by int64) bool {
	by = c.bounded(by)
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

func (c *upConn) bounded(by int64) int64 {
	if c.most != 0 && (by == 0 || by > c.most) {
		return c.most
	}
	return by
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
			c.cut()
			return
		}
	}
}

// expire closes a connection whose deadline has passed; false: it is closed.
func (c *upConn) expire(now int64) bool {
	by := c.state.Load()
	if by > 0 && now > by && c.state.CompareAndSwap(by, int64(killTimeout)) {
		c.cut()
		return false
	}
	return by >= 0
}

// cut closes the connection, or ends the stream.
func (c *upConn) cut() {
	if c.stream != nil {
		c.stream.Reset()
		return
	}
	_ = c.Conn.Close()
}

// take gets an idle connection, or with fresh or without one dials. A server that
// refuses is followed by another, and so is the first that does not answer: nothing was
// sent yet. passed counts those.
func (u *upstream) take(w *Worker, ex *Exchange, fresh bool) (c *upConn, passed int, err error) {
	late := 0
	var by time.Time // by when there must be a connection
	for {
		var s *server
		c, s, err = u.reserve(w, ex, fresh)
		if errors.Is(err, errSaturated) && u.policy.MaxPending > 0 {
			if by.IsZero() {
				by = time.Now().Add(min(u.policy.PendingTimeout, time.Duration(ex.headBy-w.now())))
			}
			if err = u.wait(by); err == nil {
				continue
			}
		}
		if c != nil || err != nil {
			return c, passed, err
		}
		if c, err = u.dial(w, ex, s, ex.connectTime(w.now())); err == nil {
			return c, passed, nil
		}
		if errors.Is(err, errFull) {
			continue
		}
		others := u.release(w, ex, s)
		u.say(w, s, err)
		if isTimeout(err) {
			late++
		}
		if late > 1 || !others || passed == maxServers || ex.overdue(w.now()) {
			return nil, passed, err // one more wait as long would be too much
		}
		passed++
	}
}

// dialTurn lets whoever has something else to do go before each connection that is to be opened. One costs
// more than the rest of an exchange, and a single client may ask for a hundred of them at once.
func (w *Worker) dialTurn() {
	w.dialling.Lock()
	defer w.dialling.Unlock()
	runtime.Gosched()
}

// reserve finds an idle connection of the server whose turn it is, or the right to
// dial it; when no more may be dialled, an idle connection of any server.
func (u *upstream) reserve(w *Worker, ex *Exchange, fresh bool) (*upConn, *server, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if ex.failures == 0 {
		u.retryBudget = min(u.retryBudget+retryShare, retrySaved)
	}
	turn := u.pick(ex, w.clock.Load())
	if turn == nil {
		return nil, nil, errNoServer
	}
	if u.policy.Protocol == "http2" {
		return u.reserveStream(ex, turn, fresh)
	}
	if !fresh {
		if c := u.popIdle(turn); c != nil {
			return c, turn, nil
		}
	}
	if u.total >= u.policy.MaxConnections && !fresh {
		for _, s := range u.servers {
			if c := u.popIdle(s); c != nil {
				if s != turn {
					turn.probing = false
				}
				return c, s, nil
			}
		}
	}
	if u.total >= u.policy.MaxConnections && !u.closeIdle() {
		turn.probing = false
		return nil, turn, errSaturated
	}
	u.total++
	turn.active++
	return nil, turn, nil
}

// popIdle takes the idle connection of a server that was used last. The lock is held.
func (u *upstream) popIdle(s *server) *upConn {
	for len(s.idle) > 0 {
		c := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if c.arm(0) {
			c.reused, c.probe = true, s.probing
			s.active++
			return c
		}
		u.total-- // idle for too long: the sweeper closed it
	}
	return nil
}

// closeIdle makes room for one connection by closing an idle one; false: there is none.
// The lock is held.
func (u *upstream) closeIdle() bool {
	for _, s := range u.servers {
		if c := u.popIdle(s); c != nil {
			s.active--
			u.total--
			c.kill(killCancelled)
			return true
		}
	}
	return false
}

// release gives the right to dial back, which came to nothing. It says whether there is a
// server that the exchange has not tried.
func (u *upstream) release(w *Worker, ex *Exchange, s *server) (others bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.active--
	if d := ex.dial; d != nil && d.owner != ex {
		return u.tried(ex, s) // whoever dialled tells
	}
	u.total--
	u.hear(w, s, reportFailed, s.probing)
	u.wake()
	return u.tried(ex, s)
}

func (u *upstream) dial(w *Worker, ex *Exchange, s *server, within time.Duration) (*upConn, error) {
	if u.policy.Protocol == "http2" {
		return u.dialShared(w, ex, s, within)
	}
	w.dialTurn()
	began := time.Now()
	dialer := net.Dialer{Timeout: within}
	nc, err := dialer.Dial("tcp", s.address)
	if err != nil {
		return nil, err
	}
	if k := newSock(nc); k != nil {
		nc = k
	}
	c := &upConn{Conn: nc, up: u, server: s}
	if u.tls != nil {
		if c.Conn, err = u.secure(nc, s, began.Add(within)); err != nil {
			nc.Close()
			return nil, err
		}
	}
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

// secure does TLS with the server, within what is left of the time to connect.
func (u *upstream) secure(nc net.Conn, s *server, by time.Time) (net.Conn, error) {
	config := u.tls
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName = s.host
	}
	tc := tls.Client(nc, config)
	_ = nc.SetDeadline(by)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	return tc, nc.SetDeadline(time.Time{})
}

// give ends the exchange's ownership: keep says that the connection is at rest and
// can carry another request.
func (c *upConn) give(w *Worker, keep bool, r report) {
	if c.stream != nil {
		c.giveStream(w, r)
		return
	}
	u := c.up
	c.most = 0
	u.mu.Lock()
	s := c.server
	s.active--
	u.hear(w, s, r, c.probe)
	u.wake()
	if keep && !u.retired && !s.down && s.place >= 0 && len(s.idle) < u.policy.MaxIdle && c.arm(w.until(u.policy.IdleTimeout)) {
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
	for _, s := range u.servers {
		u.dropIdle(s)
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
