// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Secrets are what a listener's TLS is made of, beside its policy.
type Secrets struct {
	Certificates []tls.Certificate // the first is for clients that ask for none of their names
	ClientCAs    *x509.CertPool    // who vouches for clients; nil where no certificate is asked for
}

// listener is how connections of one address are served. It does not change.
type listener struct {
	policy       *policy.Listener
	tls          *tls.Config // nil: in the clear
	certificates directory
}

// newListeners compiles those of the snapshot, by name.
func (w *Worker) newListeners(s *policy.Snapshot, secrets []Secrets) (map[string]*listener, error) {
	if len(secrets) != len(s.Listeners) {
		return nil, fmt.Errorf("apply listeners: secrets of %d for %d listeners", len(secrets), len(s.Listeners))
	}
	out := make(map[string]*listener, len(s.Listeners))
	for i := range s.Listeners {
		l := &listener{policy: &s.Listeners[i]}
		if l.policy.TLS {
			if err := l.setTLS(&secrets[i]); err != nil {
				return nil, fmt.Errorf("apply listener %s: %w", l.policy.Address, err)
			}
		}
		out[l.policy.Address] = l
	}
	return out, nil
}

func (l *listener) scheme() string {
	if l.tls == nil {
		return "http"
	}
	return "https"
}

// SetTicketKeys gives all listeners new keys: the first encrypts session tickets, all of
// them decrypt. It must not run beside Commit.
func (w *Worker) SetTicketKeys(keys [][32]byte) {
	w.ticketKeys = keys
	if s := w.current.Load(); s != nil {
		s.setTicketKeys(keys)
	}
}

func (s *snapshot) setTicketKeys(keys [][32]byte) {
	for _, l := range s.listeners {
		if l.tls != nil && len(keys) > 0 {
			l.tls.SetSessionTicketKeys(keys)
		}
	}
}

// transport is what requests come over.
type transport interface {
	net.Conn
	CloseWrite() error
}

// cleartext is a connection in the clear.
type cleartext struct {
	net.Conn
	ahead []byte // read, and to be read again
}

func (p *cleartext) Read(b []byte) (int, error) {
	if len(p.ahead) > 0 {
		n := copy(b, p.ahead)
		p.ahead = p.ahead[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

func (p *cleartext) CloseWrite() error {
	if h, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// greet does what comes before the first request; false ends the connection.
func (c *conn) greet(snap *snapshot) bool {
	by := c.worker.until(snap.policy.Timeouts.Handshake)
	began := c.worker.now()
	c.readBy.Store(by)
	c.writeBy.Store(by)
	if !c.readProxyHeader(snap, began) {
		return false
	}
	if c.listener.tls != nil {
		return c.handshake(began)
	}
	c.readBy.Store(0)
	c.writeBy.Store(0)
	c.stream = &cleartext{Conn: c.tcp}
	return true
}

// preface is how a client begins that knows of HTTP/2: RFC 9113, 3.3 and 3.4.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniff tells HTTP/2 from HTTP/1.1 by its preface. What was read waits for the first
// request, or is read again.
func (c *conn) sniff(snap *snapshot, p *cleartext) bool {
	if !c.waitIdle() {
		return false
	}
	h := &c.http1
	h.unsure = true
	c.readBy.Store(c.worker.until(snap.policy.Timeouts.Header))
	defer c.readBy.Store(0)
	for {
		n := min(h.n, len(preface))
		if string(h.in.b[:n]) != preface[:n] {
			return true
		}
		if n == len(preface) {
			break
		}
		got, err := p.Read(h.in.b[h.n:])
		if h.n += got; err != nil {
			return true // whoever reads the request's head finds out
		}
	}
	p.ahead = append(p.ahead, h.in.b[:h.n]...)
	c.releaseInput()
	c.isHTTP2 = true
	return true
}

// countHandshake counts how a handshake ended, and ends its time.
func (c *conn) countHandshake(outcome zone.HandshakeOutcome, began int64) {
	w := c.worker
	c.readBy.Store(0)
	c.writeBy.Store(0)
	w.slab.Handshake(outcome, time.Duration(w.now()-began))
	if clientFault(outcome) {
		c.offend(zone.OffenceHandshake, c.session.Who)
	}
}
