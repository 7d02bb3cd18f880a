// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
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
	phase
	worker   *Worker
	listener *listener
	tcp      net.Conn
	sock     *sock // tcp, where that is TCP
	raw      syscall.RawConn
	tls      *tls.Conn // nil in the clear
	stream   transport // what is spoken over: tls, or tcp in the clear

	peer       netip.AddrPort // of the TCP connection, or whom a trusted proxy named
	edge       int64          // when it was accepted, by the worker's clock
	napi       uint32         // who received it, by the kernel's number; 0: it does not say
	tlsVersion uint16
	resumed    bool
	isHTTP2    bool
	identity   []http1.Field // see clientCertificate
	session    zone.Session  // whose it is, as the supervisor will have it; of the TCP peer

	held *buffer // for what is written, while it is held back

	counted []uint64 // keys that the connection counts under: see zone.Holds

	expired   atomic.Bool // a deadline passed
	closing   atomic.Bool // no more requests
	rested    chan struct{}
	queued    queued // its reader's
	slow      [2]slowness
	parked    atomic.Int64 // bytes of small bodies that are not whole yet
	asked     bool         // a request has come; its reader's
	makesRoom int64        // the sweeper's: when it was told to, by the worker's clock
	http2     atomic.Pointer[http2.Conn]

	// The upstream connection that an HTTP/1.1 exchange has in use, and since when; streams
	// have theirs. The lock is held while one is killed, so that it cannot hit the next owner.
	watched   sync.Mutex
	upstream  *upConn
	since     int64
	abandoned map[*stream]*upstream // whose clients went away: see cancelUpstream

	http1 http1State
}

// phase is what the sweeper and Shutdown look at first. It is one cache line, for most of many connections are idle, and
// theirs is all that is looked at. Deadlines are by the worker's clock, 0 for none.
type phase struct {
	readBy  atomic.Int64 // of the present wait for input
	writeBy atomic.Int64 // of the present output
	// A refused client that does not wait as it was told is not read until then: see rest.
	restUntil atomic.Int64
	// How many wait for the client now: for a body of it, and for it to take a reply (in
	// HTTP/1.1 writeBy tells that).
	receiving, sending atomic.Int32
	watches            atomic.Bool // upstream, or any that is abandoned; changed under the lock of watched
	idle               atomic.Bool // between requests
	_                  [22]byte
}

// quiet says that nothing of the connection is overdue, or can be.
func (p *phase) quiet(now int64) bool {
	by := p.readBy.Load()
	return (by == 0 || now <= by) && p.writeBy.Load() == 0 && p.restUntil.Load() == 0 && p.receiving.Load() == 0 && p.sending.Load() == 0 && !p.watches.Load()
}

func (w *Worker) newConn(nc net.Conn, l *listener) *conn {
	c := &conn{worker: w, listener: l, tcp: nc, edge: w.now()}
	if c.sock = newSock(nc); c.sock != nil {
		c.tcp = c.sock
	}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		c.peer = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	snap := w.current.Load()
	if snap != nil {
		c.openSocket(snap)
	}
	c.session = c.newSession(snap)
	w.mu.Lock()
	w.conns[c] = struct{}{}
	w.mu.Unlock()
	return c
}

// start does the handshake, on a goroutine that is used again for others: it needs a deep
// stack, which the connection's own would keep for as long as it lives.
func (c *conn) start() {
	serves := false
	defer func() {
		if v := recover(); v != nil {
			c.worker.recovered(v)
		}
		if !serves {
			c.close()
		}
	}()
	snap := c.worker.current.Load()
	if !c.greet(snap) {
		return
	}
	serves = true
	go c.serve(snap)
}

// serve is the life of a connection after its handshake.
func (c *conn) serve(snap *snapshot) {
	defer c.close()
	defer func() {
		if v := recover(); v != nil {
			c.worker.recovered(v)
		}
	}()
	if p, ok := c.stream.(*cleartext); ok && c.listener.policy.HTTP2 && !c.sniff(snap, p) {
		return
	}
	if c.isHTTP2 {
		c.serveHTTP2(snap)
		return
	}
	c.serveHTTP1()
}

func (c *conn) close() {
	w := c.worker
	if c.held != nil || c.tls != nil && !c.expired.Load() {
		c.sayGoodbye()
	}
	_ = c.tcp.Close()
	if c.session.Source != 0 {
		w.slab.Sessions.End(&c.session)
	}
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
	w.open.Add(-1)
	w.giveBack(c.counted)
	w.slab.Move(zone.GaugeConnections, -1)
	w.slab.Add(zone.ConnectionsClosed, 1)
	w.serving.Done()
}

// sayGoodbye ends TLS, where there is any. What was held back, the alert and the end of the connection fit
// into one packet, mostly.
func (c *conn) sayGoodbye() {
	w := c.worker
	if c.held == nil {
		c.hold()
	}
	c.writeBy.Store(w.until(w.current.Load().policy.Timeouts.Write))
	c.sock.ending()
	if c.tls != nil {
		_ = c.tls.CloseWrite()
	}
	_ = c.sock.uncork(c.held)
	c.writeBy.Store(0)
	w.records.put(c.held)
	c.held = nil
}

// hold keeps back what is written until release, to write it by one system call.
func (c *conn) hold() {
	c.held = c.worker.records.get()
	c.sock.cork(c.held)
}

func (c *conn) release() error {
	err := c.sock.uncork(c.held)
	c.worker.records.put(c.held)
	c.held = nil
	return err
}

// readProxyHeader learns from a trusted proxy whose connection this is; without its word
// the connection ends, which is counted.
func (c *conn) readProxyHeader(snap *snapshot, began int64) bool {
	trust := &snap.policy.Client
	if !trust.ProxyProtocol || !trusts(trust, c.peer.Addr()) {
		return true
	}
	client, err := readProxyHeader(c.tcp)
	if err != nil {
		c.countHandshake(c.handshakeOutcome(err), began)
		return false
	}
	if client.IsValid() {
		c.peer = client
		var ok bool
		c.counted, ok = c.worker.countConnection(snap, client.Addr())
		return ok
	}
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
		_ = c.tcp.SetReadDeadline(past) // wakes the reader
	}
}

// retire is drain, but for idle connections of HTTP/1.1: their next reply says that it is
// the last.
func (c *conn) retire() {
	c.closing.Store(true)
	if h := c.http2.Load(); h != nil {
		h.Shutdown()
	}
}

// watch lets the sweeper end the use of u when the client goes away; nil ends that.
func (c *conn) watch(u *upConn) {
	c.watched.Lock()
	c.upstream, c.since = u, c.worker.clock.Load()
	c.watches.Store(u != nil || len(c.abandoned) > 0)
	c.watched.Unlock()
}

// clientOutcome is how an error of the client's connection ends an exchange.
func (c *conn) clientOutcome(err error) zone.RequestOutcome {
	var fault *http1.Fault
	switch {
	case errors.As(err, &fault):
		return zone.RequestBad
	case errors.Is(err, errBodyTooLarge):
		return zone.RequestBodyTooLarge
	case errors.Is(err, errPanic):
		return zone.RequestPanic
	case c.expired.Load():
		return zone.RequestClientTimeout
	}
	return zone.RequestClientReset
}

// lingerBytes and lingerTime bound what is read from a client that has been
// answered before it sent everything: a close with unread bytes would reset the
// connection, and the reply might be lost. Of more bytes the client keeps the rest,
// and has the rest of the time to read the reply.
const (
	lingerBytes = 256 << 10
	lingerTime  = 500 * time.Millisecond
)

func (c *conn) linger() {
	end := time.Now().Add(lingerTime)
	if c.held != nil {
		_ = c.release() // the connection does not end yet
	}
	_ = c.stream.CloseWrite()
	_ = c.tcp.SetReadDeadline(end)
	scrap := c.worker.inputs.get()
	defer c.worker.inputs.put(scrap)
	for left := lingerBytes; left > 0; {
		n, err := c.stream.Read(scrap.b)
		if err != nil {
			return
		}
		left -= n
	}
	time.Sleep(time.Until(end))
}

// Errors of reading a request body that are not the connection's.
var (
	errBodyTooLarge = errors.New("request body is larger than allowed")
	errPanic        = errors.New("panic while the request body was passed on")
)

// newExchange borrows an exchange and fills in what the connection knows.
func (c *conn) newExchange(cl client, snap *snapshot) *Exchange {
	w := c.worker
	ex := w.exchanges.Get().(*Exchange)
	*ex = Exchange{
		worker: w, snap: snap, client: cl, conn: c, who: c.session.Who, start: w.now(), edge: c.edge, napi: c.napi, peer: c.peer,
		scheme: c.listener.scheme(), listener: c.listener.policy.Address, identity: c.identity, tlsVersion: c.tlsVersion, resumed: c.resumed,
		trailers: ex.trailers[:0], room: ex.room[:0], chain: ex.chain[:0], request: ex.request[:0],
		head:    http1.Request{Fields: ex.head.Fields[:0]},
		reply:   http1.Response{Fields: ex.reply.Fields[:0]},
		routing: ex.routing.cleared(), limiting: ex.limiting.cleared(),
		pump: pump{done: ex.pump.done, fields: ex.pump.fields}, place: place{turn: ex.place.turn}, refusedBy: -1,
	}
	return ex
}

func (w *Worker) freeExchange(ex *Exchange) {
	if cap(ex.request) > keepSize {
		return
	}
	ex.client, ex.conn, ex.snap, ex.route = nil, nil, nil, nil
	w.exchanges.Put(ex)
}
