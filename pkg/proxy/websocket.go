// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// webSocketClose is how long one side of a WebSocket may go on when the other has ended.
const webSocketClose = 5 * time.Second

// tunnel is an open WebSocket: bytes both ways, by two goroutines, until both sides have
// ended, one breaks off, or neither says anything for the time of its route. What is in it
// the gateway does not look at.
type tunnel struct {
	client *conn
	server *upConn
	idle   atomic.Int64 // ns that both may be silent
	in     uint64       // bytes from the client; settled when done is closed
	broken error        // of the client's side, likewise
	done   chan struct{}
}

// serveTunnel answers with the server's 101 and passes bytes until it is over.
func (a *attempt) serveTunnel() {
	ex := a.ex
	c, ok := ex.client.(*conn)
	if !ok {
		panic("a tunnel for a client that cannot have one")
	}
	ex.client.watch(nil) // from here on a side that ends is no reason to end the other
	ex.worker.slab.Upstream(ex.route.upstream.policy.Slot, zone.UpstreamOK, ex.upstreamFor)
	ex.replied, ex.status = true, 101
	c.http1.keep = false
	ex.dress(&ex.reply)
	c.sendUpgrade(ex)
	t := &tunnel{client: c, server: a.conn, done: make(chan struct{})}
	t.idle.Store(int64(ex.route.webSocket))
	a.conn.most = 0 // it lasts as long as it is used
	t.touch()
	go t.up(ex)
	serverErr, clientErr := t.down(ex, a)
	if serverErr != nil || clientErr != nil {
		t.stop()
	}
	<-t.done
	ex.bytesIn += t.in
	switch {
	case c.expired.Load(), t.server.killed() == killTimeout:
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

// sendUpgrade sends the head of the reply.
func (c *conn) sendUpgrade(ex *Exchange) {
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
}

// touch begins the time of silence anew.
func (t *tunnel) touch() {
	by := t.client.worker.until(time.Duration(t.idle.Load()))
	t.client.readBy.Store(by)
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
	_ = t.client.tcp.SetReadDeadline(past)
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
	c := t.client
	b := c.worker.buffers.get()
	defer c.worker.buffers.put(b)
	piece := c.http1.in.b[c.http1.r:c.http1.n] // what came with the request
	for {
		if len(piece) > 0 {
			t.in += uint64(len(piece))
			t.touch()
			if _, err := t.server.Write(piece); err != nil {
				return // whoever reads from the server finds out why
			}
		}
		n, err := c.stream.Read(b.b)
		if piece = b.b[:n]; n > 0 {
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
			c.send(a.in.b[a.r:a.n], nil)
			if c.http1.err != nil {
				return nil, c.http1.err
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
		_ = c.stream.CloseWrite()
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
		if bytes.EqualFold(a.ex.reply.Fields[i].Name, []byte("sec-websocket-accept")) {
			return true
		}
	}
	return false
}
