// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// sharedConn is an HTTP/2 connection to a server. Many exchanges have a stream on it, each
// by an upConn of its own, so that for all that is decided about servers, deadlines and
// retries a stream is what a connection is with HTTP/1.1. The fields are guarded by the
// upstream's lock.
type sharedConn struct {
	*http2.ClientConn
	up     *upstream
	server *server
	all    []*upConn // for the sweeper
	free   []*upConn // of them, those that no exchange owns
	used   bool      // by an exchange, at least
	restBy int64     // when it is closed if no stream is opened, by the worker's clock; 0: some are open
	over   bool
}

// sharedDial is a connection that is being made, for the exchange that began it and for
// others that wait for a place on it.
type sharedDial struct {
	owner  *Exchange
	places int // that may still be waited for
	done   chan struct{}
	err    error // once done is closed
}

// streamsMost is how many streams a connection has at once, if the server takes as many,
// and how many exchanges wait for one that is being made before another is.
const streamsMost = 256

// errFull: a connection was made, and is full already.
var errFull = errors.New("connection is full")

// reserveStream finds a place on a connection to the server whose turn it is, or the right
// to dial it, or to wait for who does; when no more may be dialled, a place on any server's.
// The lock is held.
func (u *upstream) reserveStream(ex *Exchange, turn *server, fresh bool) (*upConn, *server, error) {
	if c := u.openStream(turn, fresh); c != nil {
		turn.active++
		return c, turn, nil
	}
	if d := turn.dialing; d != nil && d.places > 0 {
		d.places--
		turn.active++
		ex.dial = d
		return nil, turn, nil
	}
	if u.total >= u.policy.MaxConnections {
		for _, s := range u.servers {
			if c := u.openStream(s, fresh); c != nil {
				turn.probing = false
				s.active++
				return c, s, nil
			}
		}
		turn.probing = false
		return nil, turn, errSaturated
	}
	u.total++
	turn.active++
	ex.dial = &sharedDial{owner: ex, places: streamsMost - 1, done: make(chan struct{})}
	turn.dialing = ex.dial
	return nil, turn, nil
}

// openStream takes a place on one of the server's connections. The lock is held.
func (u *upstream) openStream(s *server, fresh bool) *upConn {
	for _, sc := range s.shared {
		if !sc.Reserve() {
			continue
		}
		var c *upConn
		if n := len(sc.free); n > 0 {
			c = sc.free[n-1]
			sc.free = sc.free[:n-1]
		} else {
			c = &upConn{up: u, server: s, shared: sc, stream: sc.NewStream()}
			sc.all = append(sc.all, c)
		}
		c.stream.Renew()
		c.reused, c.probe = sc.used && !fresh, s.probing
		sc.used, sc.restBy = true, 0
		return c
	}
	return nil
}

// dialShared makes the connection, or waits for who makes it, and takes a place on it.
func (u *upstream) dialShared(w *Worker, ex *Exchange, s *server, within time.Duration) (*upConn, error) {
	d := ex.dial
	if d.owner == ex {
		var sc *sharedConn
		sc, d.err = u.connect(w, s, within)
		u.mu.Lock()
		if s.dialing == d {
			s.dialing = nil
		}
		switch {
		case d.err != nil: // release gives the right back
		case sc.over:
			u.total--
			d.err = errFull
		default:
			s.shared = append(s.shared, sc)
		}
		u.mu.Unlock()
		close(d.done)
	}
	<-d.done // the owner's times end this
	if d.err != nil && !errors.Is(d.err, errFull) {
		return nil, d.err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if c := u.openStream(s, false); c != nil {
		c.reused = false
		return c, nil
	}
	s.active--
	return nil, errFull
}

// connect makes a connection that is ready for streams.
func (u *upstream) connect(w *Worker, s *server, within time.Duration) (*sharedConn, error) {
	by := time.Now().Add(within)
	dialer := net.Dialer{Timeout: within}
	nc, err := dialer.Dial("tcp", s.address)
	if err != nil {
		return nil, err
	}
	conn := nc
	if u.tls != nil {
		if conn, err = u.secure(nc, s, by); err == nil {
			err = checkProtocol(conn)
		}
		if err != nil {
			nc.Close()
			return nil, err
		}
	}
	sc := &sharedConn{up: u, server: s, ClientConn: http2.NewClientConn(conn, http2.ClientConfig{MaxStreams: streamsMost, Pool: w.http2, Panic: w.recovered})}
	w.mu.Lock()
	w.shared[sc] = struct{}{}
	w.mu.Unlock()
	go sc.serve(w)
	w.slab.Add(zone.UpstreamConnectionsOpened, 1)
	err = sc.Ready(by)
	if err == nil && sc.Most() == 0 {
		err = errors.New("server takes no streams: its SETTINGS_MAX_CONCURRENT_STREAMS is 0")
	}
	if err != nil {
		sc.Close()
		return nil, err
	}
	return sc, nil
}

// checkProtocol: without ALPN the server would take the preface for a malformed request.
func checkProtocol(c net.Conn) error {
	if tc, ok := c.(*tls.Conn); ok && tc.ConnectionState().NegotiatedProtocol != "h2" {
		return errors.New("server does not agree to h2 by ALPN: is `protocol: http2` right for it?")
	}
	return nil
}

// serve is the connection's life.
func (sc *sharedConn) serve(w *Worker) {
	err := sc.Serve()
	u, s := sc.up, sc.server
	u.mu.Lock()
	sc.over = true
	listed := false
	if i := slices.Index(s.shared, sc); i >= 0 {
		listed = true
		s.shared = slices.Delete(s.shared, i, i+1)
		u.total--
		u.wake()
	}
	u.mu.Unlock()
	w.mu.Lock()
	delete(w.shared, sc)
	w.mu.Unlock()
	if err != nil && listed && !errors.Is(err, http2.ErrClosed) {
		u.say(w, s, err)
	}
}

// giveStream is give for a stream.
func (c *upConn) giveStream(w *Worker, r report) {
	c.stream.Finish()
	c.most = 0
	u, sc, s := c.up, c.shared, c.server
	u.mu.Lock()
	defer u.mu.Unlock()
	s.active--
	u.hear(w, s, r, c.probe)
	u.wake()
	if c.arm(0) {
		sc.free = append(sc.free, c)
	} else if i := slices.Index(sc.all, c); i >= 0 {
		sc.all = slices.Delete(sc.all, i, i+1) // whoever killed it may not be done with it
	}
	if len(sc.free) == len(sc.all) {
		sc.restBy = w.until(u.policy.IdleTimeout)
	}
	if u.retired || s.down || s.place < 0 {
		sc.Shutdown()
	}
}

// dropShared lets the server's connections end with what is under way on them. The lock is
// held.
func (s *server) dropShared() {
	for _, sc := range s.shared {
		sc.Shutdown()
	}
}

// sweep ends what is overdue on the connection.
func (sc *sharedConn) sweep(now int64) {
	sc.Tick()
	sc.up.mu.Lock()
	defer sc.up.mu.Unlock()
	for _, c := range sc.all {
		c.expire(now)
	}
	if sc.restBy != 0 && now > sc.restBy {
		sc.Shutdown()
	}
}

// sweepShared is called without the worker's lock: an upstream's is taken.
func (w *Worker) sweepShared(now int64) {
	w.mu.Lock()
	list := w.sweeping[:0]
	for sc := range w.shared {
		list = append(list, sc)
	}
	w.mu.Unlock()
	for i, sc := range list {
		sc.sweep(now)
		list[i] = nil
	}
	w.sweeping = list[:0]
}

// endShared ends all streams, and with last the connections, too.
func (w *Worker) endShared(last bool) {
	w.mu.Lock()
	var list []*sharedConn
	for sc := range w.shared {
		list = append(list, sc)
	}
	w.mu.Unlock()
	for _, sc := range list {
		if last {
			sc.Close()
			continue
		}
		sc.up.mu.Lock()
		for _, c := range sc.all {
			c.kill(killCancelled)
		}
		sc.up.mu.Unlock()
	}
}
