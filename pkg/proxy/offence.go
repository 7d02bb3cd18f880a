// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// streakRule is a compiled policy.Escalation, as far as workers see to it.
type streakRule struct {
	id     uint64
	count  uint32
	within int64
	on     [len(offenceWords)]bool // by zone.Offence
}

var offenceWords = [...]zone.Offence{
	zone.OffenceLimited, zone.OffenceUnauthorized, zone.OffenceHTTP2, zone.OffenceHandshake, zone.OffenceMalformed,
}

func newStreakRules(list []policy.Escalation) ([]streakRule, error) {
	var out []streakRule
	for i := range list {
		p := &list[i]
		if p.Count < 1 || p.Within <= 0 || p.ID == 0 {
			return nil, fmt.Errorf("escalation %s: %+v", p.Name, *p)
		}
		r := streakRule{id: p.ID, count: uint32(p.Count), within: int64(p.Within)}
		for _, word := range p.On {
			known := false
			for _, o := range offenceWords {
				if o.String() == word {
					r.on[o], known = true, true
				}
			}
			if !known {
				return nil, fmt.Errorf("escalation %s: no such offence: %q", p.Name, word)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// streaks counts offences by source and rule, in a table of fixed size: whoever offends from
// many addresses makes the gateway forget the streaks that began first, and no more. It is
// written only when somebody offends.
type streaks struct {
	mu   sync.Mutex
	seed uint64
	sets [streakSets][streakWays]streak
}

const (
	streakSets = 1024
	streakWays = 8
)

// streak is what a source did since the first offence of it.
type streak struct {
	source, rule uint64
	began        int64
	count        uint32
}

// add counts an offence at now, and tells whether it completes the rule's streak; then the
// next one begins.
func (s *streaks) add(source uint64, r *streakRule, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := (source ^ r.id ^ s.seed) * 0x9e3779b97f4a7c15
	set := &s.sets[(h^h>>32)%streakSets]
	place := &set[0]
	for i := range set {
		e := &set[i]
		if e.source == source && e.rule == r.id {
			place = e
			break
		}
		if e.began < place.began {
			place = e
		}
	}
	if place.source != source || place.rule != r.id || now-place.began > r.within {
		*place = streak{source: source, rule: r.id, began: now}
	}
	place.count++
	if place.count < r.count {
		return false
	}
	*place = streak{}
	return true
}

// offend notes what the client of a connection did; who is its identity. It costs nothing
// where no rule asks.
func (c *conn) offend(o zone.Offence, who uint64) {
	w := c.worker
	snap := w.current.Load()
	if snap == nil || len(snap.streakRules) == 0 {
		return
	}
	if c.session.Source == 0 {
		w.slab.Add(zone.OffencesUnkeyed, 1)
		return
	}
	now := w.monotonic()
	s := c.sessionOf(who)
	w.slab.Sessions.Note(&s, false, now)
	for i := range snap.streakRules {
		r := &snap.streakRules[i]
		if !r.on[o] || !w.streaks.add(s.Source, r, now) {
			continue
		}
		if !w.slab.Signals.Put(zone.Signal{Source: s.Source, Who: who, Rule: r.id, At: w.boot + w.now(), Offence: o}) {
			w.slab.Add(zone.SignalsDropped, 1)
		}
		w.rouse()
	}
}

// offence is what an exchange that ended says of its client; false: nothing.
func offence(status int, outcome zone.RequestOutcome) (zone.Offence, bool) {
	switch outcome {
	case zone.RequestLimited, zone.RequestConcurrencyLimited:
		return zone.OffenceLimited, true
	case zone.RequestBad, zone.RequestHeaderTooLarge, zone.RequestURITooLong, zone.RequestHTTP2Error:
		return zone.OffenceMalformed, true
	}
	switch status {
	case 429:
		return zone.OffenceLimited, true
	case 401:
		return zone.OffenceUnauthorized, true
	}
	return 0, false
}

// judged tells the tables of who speaks how what came of the exchange.
func (ex *Exchange) judged() {
	c := ex.conn
	if c == nil {
		return // a copy for a mirror: it has no client
	}
	if o, bad := offence(ex.status, ex.outcome); bad {
		c.offend(o, ex.who)
		return
	}
	if ex.status/100 == 2 && c.session.Source != 0 {
		s := c.sessionOf(ex.who)
		ex.worker.slab.Sessions.Note(&s, true, ex.worker.monotonic())
	}
}

// sessionOf is the connection's session under an identity. One that is not the connection's
// own was proved within it.
func (c *conn) sessionOf(who uint64) zone.Session {
	s := c.session
	if who != s.Who {
		s.Who, s.Proved = who, true
	}
	return s
}

// newSession is who speaks on the connection: at first nobody but the connection itself. Of a
// trusted proxy the source is 0, since no verdict can tell its clients apart.
func (c *conn) newSession(snap *snapshot) zone.Session {
	s := zone.Session{Who: rand.Uint64()}
	if snap == nil || !c.peer.IsValid() || trusts(&snap.policy.Client, c.peer.Addr()) {
		return s
	}
	a := c.peer.Addr()
	s.Source, s.Port = policy.AddressKey(a), c.peer.Port()
	if a.Is6() {
		s.Low = policy.AddressLow(a)
	}
	if own, ok := c.tcp.LocalAddr().(*net.TCPAddr); ok {
		s.Own = uint16(own.Port)
	}
	return s
}

// monotonic is CLOCK_MONOTONIC in ns, up to a sweep interval old.
func (w *Worker) monotonic() int64 { return w.boot + w.clock.Load() }

// clientFault tells which failed handshakes say something of the client.
func clientFault(o zone.HandshakeOutcome) bool {
	return o.Failed() && o != zone.HandshakeBudget && o != zone.HandshakeProxy
}
