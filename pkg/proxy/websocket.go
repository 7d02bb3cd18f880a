// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// webSocketClose is how long one side of a WebSocket may go on when the other has ended.
const webSocketClose = 5 * time.Second

// tunnel is an open WebSocket: bytes both ways, by two goroutines, until both sides have
// ended, one breaks off, or neither says anything for the time of its route. What is in it
// the gateway does not look at.
type tunnel struct {
	worker *Worker
	client tunnelEnd
	server *upConn
	idle   atomic.Int64 // ns that both may be silent
	in     uint64       // bytes from the client; settled when done is closed
	broken error        // of the client's side, likewise
	done   chan struct{}
}

// tunnelEnd is the client's side of a tunnel: a connection of HTTP/1.1 or a stream of HTTP/2.
type tunnelEnd interface {
	// sendUpgrade tells the client that the tunnel is open.
	sendUpgrade(ex *Exchange) error
	// readTunnel waits for bytes; io.EOF when the client has ended its side.
	readTunnel(p []byte) (int, error)
	writeTunnel(p []byte) error
	// endTunnel ends the gateway's side.
	endTunnel()
	// silentUntil bounds the wait of readTunnel, by the worker's clock, to d.
	silentUntil(by int64, d time.Duration)
	// wakeTunnel makes readTunnel return.
	wakeTunnel()
	abort()
	timedOut() bool
}

// serveTunnel answers with the server's 101 and passes bytes until it is over.
func (a *attempt) serveTunnel() {
	ex := a.ex
	c, ok := ex.client.(tunnelEnd)
	if !ok {
		panic("a tunnel for a client that cannot have one")
	}
	ex.client.watch(nil) // from here on a side that ends is no reason to end the other
	ex.worker.slab.Upstream(ex.route.upstream.policy.Slot, zone.UpstreamOK, ex.upstreamFor)
	ex.replied = true
	ex.dress(&ex.reply)
	clientErr := c.sendUpgrade(ex)
	t := &tunnel{worker: ex.worker, client: c, server: a.conn, done: make(chan struct{})}
	ex.worker.overload.leave(&ex.place)
	defer ex.worker.overload.back(&ex.place)
	t.idle.Store(int64(ex.route.webSocket))
	a.conn.most = 0 // it lasts as long as it is used
	t.touch()
	go t.up(ex)
	var serverErr error
	if clientErr == nil {
		serverErr, clientErr = t.down(ex, a)
	}
	if serverErr != nil || clientErr != nil {
		t.stop()
	}
	<-t.done
	ex.bytesIn += t.in
	switch {
	case c.timedOut(), t.server.killed() == killTimeout, errors.Is(t.broken, http2.ErrTimeout), errors.Is(clientErr, http2.ErrTimeout):
		ex.outcome = zone.RequestClientTimeout
	case serverErr != nil: // it comes first: its end is what wakes the client's reader
		ex.outcome = zone.RequestUpstreamReset
	case t.broken != nil, clientErr != nil:
		ex.outcome = zone.RequestClientReset
	default:
		ex.outcome = zone.RequestOK
		return
	}
	c.abort()
}

var _, _ tunnelEnd = (*conn)(nil), (*stream)(nil)

func (c *conn) readTunnel(p []byte) (int, error) {
	if h := &c.http1; h.r < h.n { // what came with the request
		n := copy(p, h.in.b[h.r:h.n])
		h.r += n
		return n, nil
	}
	return c.stream.Read(p)
}

func (c *conn) writeTunnel(p []byte) error {
	c.send(p, nil)
	return c.http1.err
}

func (c *conn) endTunnel()                            { _ = c.stream.CloseWrite() }
func (c *conn) silentUntil(by int64, _ time.Duration) { c.readBy.Store(by) }
func (c *conn) wakeTunnel()                           { _ = c.tcp.SetReadDeadline(past) }
func (c *conn) timedOut() bool                        { return c.expired.Load() }

func (c *conn) sendUpgrade(ex *Exchange) error {
	ex.status, c.http1.keep = 101, false
	b := append(c.worker.outputs.get().b[:0], "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"...)
	for i := range ex.reply.Fields {
		if f := &ex.reply.Fields[i]; f.Kind == http1.Other {
			b = appendField(b, f.Name, f.Value)
		}
	}
	b = append(b, "X-Request-Id: "...)
	b = append(b, ex.id[:]...)
	b = append(b, "\r\n\r\n"...)
	ex.bytesOut += uint64(len(b))
	c.send(b, nil)
	c.worker.outputs.put(&buffer{b: b})
	return c.http1.err
}

// touch begins the time of silence anew.
func (t *tunnel) touch() {
	idle := time.Duration(t.idle.Load())
	by := t.worker.until(idle)
	t.client.silentUntil(by, idle)
	t.server.arm(by)
}

// ended gives the side that is left little time.
func (t *tunnel) ended() {
	t.idle.Store(int64(webSocketClose))
	t.touch()
}

// stop wakes whoever waits for either side.
func (t *tunnel) stop() {
	t.server.kill(killCancelled)
	t.client.wakeTunnel()
}

// up passes on what the client says.
func (t *tunnel) up(ex *Exchange) {
	defer close(t.done)
	defer func() {
		if v := recover(); v != nil {
			ex.worker.recovered(v)
			t.broken = errPanic
			t.stop()
		}
	}()
	b := t.worker.buffers.get()
	defer t.worker.buffers.put(b)
	for {
		n, err := t.client.readTunnel(b.b)
		if n > 0 {
			t.in += uint64(n)
			t.touch()
			if _, err := t.server.Write(b.b[:n]); err != nil {
				return // whoever reads from the server finds out why
			}
			continue
		}
		if !errors.Is(err, io.EOF) {
			t.broken = err
			t.stop()
			return
		}
		if h, ok := t.server.Conn.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
		t.ended()
		return
	}
}

// down passes on what the server says.
func (t *tunnel) down(ex *Exchange, a *attempt) (serverErr, clientErr error) {
	c := t.client
	for {
		if a.r < a.n {
			t.touch()
			ex.bytesOut += uint64(a.n - a.r)
			if err := c.writeTunnel(a.in.b[a.r:a.n]); err != nil {
				return nil, err
			}
		}
		n, err := t.server.Read(a.in.b)
		if a.r, a.n = 0, n; n > 0 {
			continue
		}
		if !errors.Is(err, io.EOF) {
			if errors.Is(err, net.ErrClosed) && t.server.killed() == killCancelled {
				return nil, nil // the client's side ended it, and knows why
			}
			return err, nil
		}
		c.endTunnel()
		t.ended()
		return nil, nil
	}
}

// isTunnel tells whether the reply opens the WebSocket that was asked for.
func (a *attempt) isTunnel() bool {
	if !a.ex.webSocket || !a.ex.reply.WebSocket {
		return false
	}
	for i := range a.ex.reply.Fields {
		if f := &a.ex.reply.Fields[i]; isNamed(f.Name, "sec-websocket-accept") {
			return a.ex.major == 1 || string(f.Value) == acceptKey(a.ex.webSocketKey[:])
		}
	}
	return false
}
