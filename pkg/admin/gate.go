// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Bounds of the listener for people and their tools.
const (
	maxConnections = 64 // open at once
	maxOfAddress   = 32 // of these, from one address or /64, of those that have shown no token yet
)

// gate accepts connections without making anybody wait: where there is no room, those that have
// shown no token yet make way, the oldest first, and of an address that has more of them than
// its share its own. So clients that say nothing keep nobody out, however many they are.
type gate struct {
	net.Listener

	mu   sync.Mutex
	open []*gated // the oldest first
}

// gated is a connection through the gate.
type gated struct {
	net.Conn
	gate   *gate
	from   netip.Addr
	proved atomic.Bool // a request on it showed a token
	once   sync.Once
}

func (g *gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	n := &gated{Conn: c, gate: g}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		n.from = network(a.Addr().Unmap())
	}
	for _, v := range g.admit(n) {
		v.Close()
	}
	return n, nil
}

// admit takes a connection in, and returns those that make way for it.
func (g *gate) admit(n *gated) (out []*gated) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var own, any *gated
	strangers := 0
	for _, v := range g.open {
		if v.proved.Load() {
			continue
		}
		if any == nil {
			any = v
		}
		if v.from == n.from {
			strangers++
			if own == nil {
				own = v
			}
		}
	}
	switch {
	case strangers >= maxOfAddress:
		out = append(out, own)
	case len(g.open) >= maxConnections && any != nil:
		out = append(out, any)
	case len(g.open) >= maxConnections: // all have shown one: who came first has had the most
		out = append(out, g.open[0])
	}
	for _, v := range out {
		g.forget(v)
	}
	g.open = append(g.open, n)
	return out
}

// forget is called with the lock.
func (g *gate) forget(c *gated) {
	for i, v := range g.open {
		if v == c {
			g.open = append(g.open[:i], g.open[i+1:]...)
			return
		}
	}
}

func (c *gated) Close() error {
	c.once.Do(func() {
		c.gate.mu.Lock()
		defer c.gate.mu.Unlock()
		c.gate.forget(c)
	})
	return c.Conn.Close()
}

type gatedKey struct{}

// withConnection lets requests find their connection, below its TLS.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	if below, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = below.NetConn()
	}
	return context.WithValue(ctx, gatedKey{}, c)
}

// prove notes that who asks has shown a token.
func prove(ctx context.Context) {
	if c, ok := ctx.Value(gatedKey{}).(*gated); ok {
		c.proved.Store(true)
	}
}
