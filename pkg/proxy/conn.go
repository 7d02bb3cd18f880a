// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// conn is a client connection: its TLS, and as an HTTP/1.1 connection the client
// of one exchange after the other.
type conn struct {
	worker *Worker
	tcp    net.Conn
	raw    syscall.RawConn
	tls    *tls.Conn

	peer       netip.AddrPort
	tlsVersion uint16
	resumed    bool

	// For the sweeper and Shutdown.
	deadline atomic.Int64 // ns since 1970 of the present phase, 0 for none
	expired  atomic.Bool  // the sweeper closed it
	waiting  atomic.Int64 // since when an upstream is waited for, 0 when not
	upstream atomic.Pointer[upConn]
	http2    atomic.Pointer[http2.Conn]
	idle     atomic.Bool // between requests
	closing  atomic.Bool // no more requests

	http1 http1State
}

func (w *Worker) newConn(nc net.Conn) *conn {
	c := &conn{worker: w, tcp: nc}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		c.peer = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	w.mu.Lock()
	w.conns[c] = struct{}{}
	w.mu.Unlock()
	return c
}

// serve is the whole life of a connection.
func (c *conn) serve() {
	defer c.close()
	defer func() {
		if v := recover(); v != nil {
			c.worker.recovered(v)
		}
	}()
	snap := c.worker.current.Load()
	if !c.handshake(snap) {
		return
	}
	if c.tls.ConnectionState().NegotiatedProtocol == "h2" {
		c.serveHTTP2(snap)
		return
	}
	c.serveHTTP1()
}

func (c *conn) close() {
	w := c.worker
	if c.tls != nil && !c.expired.Load() {
		_ = c.tls.Close()
	}
	_ = c.tcp.Close()
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
	w.open.Add(-1)
	w.slab.Move(zone.GaugeConnections, -1)
	w.slab.Add(zone.ConnectionsClosed, 1)
}

// handshake does TLS and counts how it ended.
func (c *conn) handshake(snap *snapshot) bool {
	w := c.worker
	began := time.Now()
	c.deadline.Store(w.until(snap.policy.Timeouts.Handshake))
	c.tls = tls.Server(c.tcp, snap.tls)
	err := c.tls.Handshake()
	c.deadline.Store(0)
	if err != nil {
		w.slab.Handshake(c.handshakeOutcome(err), time.Since(began))
		return false
	}
	state := c.tls.ConnectionState()
	c.tlsVersion, c.resumed = state.Version, state.DidResume
	outcome := zone.HandshakeFull
	if c.resumed {
		outcome = zone.HandshakeResumed
	}
	w.slab.Handshake(outcome, time.Since(began))
	return true
}

// drain ends the connection at the next good moment.
func (c *conn) drain() {
	c.closing.Store(true)
	if h := c.http2.Load(); h != nil {
		h.Shutdown()
		return
	}
	if c.idle.Load() {
		_ = c.tcp.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
	}
}

// watch is for both protocols' waiting on an upstream; only HTTP/1.1 needs it.
func (c *conn) watch(u *upConn) {
	c.upstream.Store(u)
	if u == nil {
		c.waiting.Store(0)
		return
	}
	c.waiting.Store(c.worker.clock.Load())
}

// clientOutcome is how an error of the client's connection ends an exchange.
func (c *conn) clientOutcome(err error) zone.RequestOutcome {
	var fault *http1.Fault
	switch {
	case errors.As(err, &fault):
		return zone.RequestBad
	case errors.Is(err, errBodyTooLarge):
		return zone.RequestBodyTooLarge
	case c.expired.Load():
		return zone.RequestClientTimeout
	}
	return zone.RequestClientReset
}

// lingerBytes and lingerTime bound what is read from a client that has been
// answered before it sent everything: a close with unread bytes would reset the
// connection, and the reply might be lost.
const (
	lingerBytes = 256 << 10
	lingerTime  = 500 * time.Millisecond
)

func (c *conn) linger() {
	_ = c.tls.CloseWrite()
	_ = c.tcp.SetReadDeadline(time.Now().Add(lingerTime))
	buffer := c.worker.buffers.get()
	defer c.worker.buffers.put(buffer)
	for left := lingerBytes; left > 0; {
		n, err := c.tls.Read(buffer[:])
		if err != nil {
			return
		}
		left -= n
	}
}

var errBodyTooLarge = errors.New("request body is larger than allowed")

// newExchange borrows an exchange and fills in what the connection knows.
func (c *conn) newExchange(cl client, snap *snapshot) *Exchange {
	ex := c.worker.exchanges.Get().(*Exchange)
	request, fields, replyFields, chunk := ex.request, ex.fields, ex.reply.Fields, ex.pump.chunk
	*ex = Exchange{
		worker: c.worker, snap: snap, client: cl, start: time.Now(), peer: c.peer,
		tlsVersion: c.tlsVersion, resumed: c.resumed, request: request[:0], fields: fields[:0],
	}
	ex.reply.Fields, ex.pump.chunk = replyFields[:0], chunk
	return ex
}

func (c *conn) freeExchange(ex *Exchange) {
	ex.client, ex.snap, ex.route = nil, nil, nil
	c.worker.exchanges.Put(ex)
}
