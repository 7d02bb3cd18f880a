// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// handshake is a TLS handshake under way. It is the context of the handshake, too, since
// that is what leads from what crypto/tls asks to the connection.
type handshake struct {
	context.Context // without an end: the sweeper sees to that
	conn            *conn

	// Of the budget, under its lock.
	began          int64
	older, younger *handshake
	underWay       bool
	squeezed       bool // cut for another's sake

	charged bool
	watch   stopwatch
}

type handshakeKey struct{}

func (h *handshake) Value(key any) any {
	if key == (handshakeKey{}) {
		return h
	}
	return h.Context.Value(key)
}

// handshakeOf finds the handshake that crypto/tls asks about.
func handshakeOf(hello *tls.ClientHelloInfo) *handshake {
	h, _ := hello.Context().Value(handshakeKey{}).(*handshake)
	return h
}

// stopwatch is how long something was at work on the worker's one core, but for its waits.
type stopwatch struct {
	worker       *Worker
	since, spent int64
}

func (s *stopwatch) resume() { s.since = s.worker.now() }
func (s *stopwatch) pause()  { s.spent += s.worker.now() - s.since }

// handshake does TLS and counts how it ended.
func (c *conn) handshake(began int64) bool {
	w := c.worker
	h := &handshake{Context: context.Background(), conn: c}
	defer w.handshakes.done(h)
	c.tls = tls.Server(c.tcp, c.listener.tls)
	if err := c.work(h); err != nil {
		outcome := c.handshakeOutcome(err)
		if w.handshakes.wasSqueezed(h) {
			outcome = zone.HandshakeBudget
		}
		c.countHandshake(outcome, began)
		return false
	}
	c.stream = c.tls
	state := c.tls.ConnectionState()
	c.tlsVersion, c.resumed, c.isHTTP2 = state.Version, state.DidResume, state.NegotiatedProtocol == "h2"
	c.identity = newIdentity(&state)
	if c.identity != nil {
		print := sha256.Sum256(state.PeerCertificates[0].Raw)
		c.session.Who, c.session.Proved = binary.BigEndian.Uint64(print[:]), true
	}
	w.countAgreed(&state)
	outcome := zone.HandshakeFull
	if c.resumed {
		outcome = zone.HandshakeResumed
	}
	c.countHandshake(outcome, began)
	return true
}

// work makes the handshake, and counts the time that it takes of the core.
func (c *conn) work(h *handshake) error {
	if c.sock == nil {
		return c.tls.HandshakeContext(h)
	}
	watch := &h.watch
	watch.worker = c.worker
	c.sock.watch = watch
	watch.resume()
	err := c.tls.HandshakeContext(h)
	watch.pause()
	c.sock.watch = nil
	c.worker.slab.Add(zone.HandshakeTime, uint64(watch.spent))
	return err
}

// extensionPSK is what a client of TLS 1.3 offers that wants to resume: RFC 8446, 4.2.11.
const extensionPSK = 41

// hello is asked by crypto/tls when it has read what the client offers. Clients that will
// not resume are charged before anything is computed for them.
func (l *listener) hello(offer *tls.ClientHelloInfo) (*tls.Config, error) {
	h := handshakeOf(offer)
	l.countOffer(h.conn.worker.slab, offer)
	if slices.Contains(offer.Extensions, extensionPSK) {
		return nil, nil
	}
	return nil, h.charge()
}

// certificate is asked by crypto/tls for full handshakes, and in TLS 1.2 for all. Whoever
// said it would resume and cannot is charged here: no signature is made for it.
func (l *listener) certificate(offer *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if err := handshakeOf(offer).charge(); err != nil {
		return nil, err
	}
	return l.certificates.choose(offer), nil
}

var errHandshakeBudget = errors.New("the handshake budget is used up")

func (h *handshake) charge() error {
	w := h.conn.worker
	if h.charged {
		return nil
	}
	h.charged = true
	if !w.handshakes.take(h, &w.current.Load().policy.Handshakes, w.now()) {
		w.sayNoHandshakes()
		return errHandshakeBudget
	}
	return nil
}

// sayNoHandshakes tells the supervisor, which has strangers thinned before they come here.
func (w *Worker) sayNoHandshakes() {
	now := uint64(w.boot + w.now())
	was := w.slab.LoadGauge(zone.GaugeHandshakesGone)
	w.slab.Set(zone.GaugeHandshakesLeft, 0)
	w.slab.Set(zone.GaugeHandshakesGone, now)
	if now-was > uint64(sweepInterval/2) {
		w.rouse()
	}
}

// stallTime is how long a handshake has the worker's room to itself. One that waits longer
// for its client makes room for another: else few clients that begin and say no more
// would keep everybody out.
const stallTime = int64(time.Second)

// handshakeBudget bounds the full handshakes of a worker, so that floods of them leave
// time for connections that are established.
type handshakeBudget struct {
	mu       sync.Mutex
	oldest   *handshake // under way, linked in the order in which they began
	youngest *handshake
	underWay int
	full     int64 // ns, by the worker's clock: when a second's worth may begin again
}

// take lets a handshake begin; false: there is no room.
func (b *handshakeBudget) take(h *handshake, limits *policy.Handshakes, now int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := b.full
	if limits.PerSecond > 0 {
		cost := int64(time.Second) / int64(limits.PerSecond)
		full = max(b.full, now) + cost
		if full > now+int64(time.Second) {
			return false
		}
	}
	if limits.Concurrent > 0 && b.underWay >= limits.Concurrent {
		stalled := b.oldest
		if now-stalled.began < stallTime {
			return false
		}
		b.remove(stalled)
		stalled.squeezed = true
		stalled.conn.cut()
	}
	b.full = full
	h.began, h.underWay, h.older = now, true, b.youngest
	if h.older != nil {
		h.older.younger = h
	} else {
		b.oldest = h
	}
	b.youngest = h
	b.underWay++
	return true
}

func (b *handshakeBudget) remove(h *handshake) {
	if h.older != nil {
		h.older.younger = h.younger
	} else {
		b.oldest = h.younger
	}
	if h.younger != nil {
		h.younger.older = h.older
	} else {
		b.youngest = h.older
	}
	h.older, h.younger, h.underWay = nil, nil, false
	b.underWay--
}

// done ends a handshake, whether it was charged or not.
func (b *handshakeBudget) done(h *handshake) {
	b.mu.Lock()
	if h.underWay {
		b.remove(h)
	}
	b.mu.Unlock()
}

func (b *handshakeBudget) wasSqueezed(h *handshake) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return h.squeezed
}

// left is how many handshakes could begin now: the most that the gauge can say when there
// is no bound.
func (b *handshakeBudget) left(limits *policy.Handshakes, now int64) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	left := uint64(1<<32 - 1)
	if limits.Concurrent > 0 {
		left = uint64(max(0, limits.Concurrent-b.underWay))
	}
	if limits.PerSecond > 0 {
		cost := int64(time.Second) / int64(limits.PerSecond)
		left = min(left, uint64((now+int64(time.Second)-max(b.full, now))/cost))
	}
	return left
}

// countOffer counts what the client offers, each property once. Names are no labels.
func (l *listener) countOffer(slab *zone.Slab, offer *tls.ClientHelloInfo) {
	version := zone.OfferedOlder
	for _, v := range offer.SupportedVersions {
		switch v {
		case tls.VersionTLS13:
			version = zone.OfferedTLS13
		case tls.VersionTLS12:
			if version == zone.OfferedOlder {
				version = zone.OfferedTLS12
			}
		}
	}
	slab.Add(version, 1)
	protocol := zone.OfferedNoProtocol
	for _, p := range offer.SupportedProtos {
		switch {
		case p == "h2":
			protocol = zone.OfferedHTTP2
		case p == "http/1.1" && protocol != zone.OfferedHTTP2:
			protocol = zone.OfferedHTTP1
		case protocol == zone.OfferedNoProtocol:
			protocol = zone.OfferedOtherProtocol
		}
	}
	slab.Add(protocol, 1)
	name := zone.ServerNameAbsent
	if offer.ServerName != "" {
		name = zone.ServerNameUnknown
		if l.certificates.find(offer.ServerName) != nil {
			name = zone.ServerNameKnown
		}
	}
	slab.Add(name, 1)
}

func (w *Worker) countAgreed(state *tls.ConnectionState) {
	version, protocol, exchange := zone.AgreedTLS13, zone.AgreedHTTP1, zone.AgreedClassical
	if state.Version != tls.VersionTLS13 {
		version = zone.AgreedTLS12
	}
	if state.NegotiatedProtocol == "h2" {
		protocol = zone.AgreedHTTP2
	}
	switch state.CurveID {
	case tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024:
		exchange = zone.AgreedHybrid
	}
	w.slab.Add(version, 1)
	w.slab.Add(protocol, 1)
	w.slab.Add(exchange, 1)
}
