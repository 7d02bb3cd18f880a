// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// mostTried bounds the clients that a worker tells apart in a trial; those beyond are one.
const mostTried = 8192

// trial is a compiled policy.Trial, and what it has seen. Limits are asked about exchanges that
// those which hold have let pass.
type trial struct {
	requests    []*requestLimit
	connections []*connectionLimit

	mu      sync.Mutex
	clients map[triedClient]*triedCounts
	others  triedCounts // of clients beyond mostTried
	refused []uint64    // by limit: requests, then connections
}

// triedClient is whom a trial tells apart.
type triedClient struct {
	address netip.Addr // as far as its proxies are trusted
	source  uint64     // of the TCP peer, as policy.AddressKey has it; 0: a trusted proxy
	key     string     // id of the API key that it came in by; "": none
}

type triedCounts struct {
	consumer string
	Tally
}

// Tally is what a client has done in a trial, and would have lost.
type Tally struct {
	Requests    uint64 `json:"requests"`
	OK          uint64 `json:"ok"`          // of these, with a 2xx
	Refused     uint64 `json:"refused"`     // of the requests, that a limit would have refused
	Lost        uint64 `json:"lost"`        // of those refused, with a 2xx
	Connections uint64 `json:"connections"` // that a limit would have refused
}

// Tried is a client's tally.
type Tried struct {
	Address  netip.Addr `json:"address"`
	Source   uint64     `json:"source"`
	Key      string     `json:"key,omitempty"`
	Consumer string     `json:"consumer,omitempty"`
	Tally
}

// TriedAll is what a worker knows of a trial.
type TriedAll struct {
	Clients []Tried           `json:"clients"`
	Others  Tally             `json:"others"`  // of clients that there was no room for
	Refused map[string]uint64 `json:"refused"` // by limit: requests, or connections
}

func newTrial(p *policy.Trial) (*trial, error) {
	if p == nil {
		return nil, nil
	}
	t := &trial{clients: map[triedClient]*triedCounts{}, refused: make([]uint64, len(p.RequestLimits)+len(p.ConnectionLimits))}
	for i := range p.RequestLimits {
		l, err := newRequestLimit(&p.RequestLimits[i])
		if err != nil {
			return nil, fmt.Errorf("try %w", err)
		}
		t.requests = append(t.requests, l)
	}
	for i := range p.ConnectionLimits {
		l, err := newConnectionLimit(&p.ConnectionLimits[i])
		if err != nil {
			return nil, fmt.Errorf("try %w", err)
		}
		t.connections = append(t.connections, l)
	}
	return t, nil
}

// tryLimits finds out whether limits that are tried would refuse the exchange. It goes on.
func tryLimits(ex *Exchange) *refusal {
	if t := ex.snap.trial; t != nil {
		ex.refusedBy = t.wouldRefuse(ex)
	}
	return nil
}

// wouldRefuse is the place of the first limit that would, or -1. As where limits hold, what is
// refused is charged to none.
func (t *trial) wouldRefuse(ex *Exchange) int {
	w := ex.worker
	for i, l := range t.connections {
		if l.policy.Count != "requests" || !l.isForRoute(ex.route.index) || !l.isFor(ex) {
			continue
		}
		key := w.limits.Key(l.policy.ID, ex.limiting.key)
		switch _, r := w.holds.Take(key, l.policy.Max); r {
		case zone.HeldOne:
			ex.limiting.counted = append(ex.limiting.counted, key)
		case zone.HeldMost:
			return len(t.requests) + i
		}
	}
	now, before := w.boot+ex.start, len(ex.limiting.charges)
	for i, l := range t.requests {
		if !l.isForRoute(ex.route.index) || !l.isFor(ex) {
			continue
		}
		key := w.limits.Key(l.policy.ID, ex.limiting.key)
		if w.limits.Take(key, now, l.rate).OK {
			ex.limiting.charges = append(ex.limiting.charges, charge{l, key})
			continue
		}
		for _, c := range ex.limiting.charges[before:] {
			w.limits.Return(c.key, now, c.limit.rate)
		}
		return i
	}
	return -1
}

// note counts an exchange that is over.
func (t *trial) note(ex *Exchange) {
	if ex.conn == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var c *triedCounts
	if k := ex.apiKey; k != nil {
		if c = t.clients[triedClient{ex.peer.Addr(), ex.conn.session.Source, string(k.ID)}]; c == nil {
			c = t.add(triedClient{ex.peer.Addr(), ex.conn.session.Source, string(k.ID)}, string(k.Consumer))
		}
	} else if c = t.clients[triedClient{ex.peer.Addr(), ex.conn.session.Source, ""}]; c == nil {
		c = t.add(triedClient{ex.peer.Addr(), ex.conn.session.Source, ""}, "")
	}
	ok := ex.status >= 200 && ex.status < 300
	c.Requests++
	if ok {
		c.OK++
	}
	if ex.refusedBy >= 0 {
		t.refused[ex.refusedBy]++
		c.Refused++
		if ok {
			c.Lost++
		}
	}
}

func (t *trial) add(who triedClient, consumer string) *triedCounts {
	if len(t.clients) >= mostTried {
		return &t.others
	}
	c := &triedCounts{consumer: consumer}
	t.clients[who] = c
	return c
}

// connect counts a connection under the limits that are tried, until the keys that are appended
// to counted are given back.
func (t *trial) connect(w *Worker, client netip.Addr, counted []uint64) []uint64 {
	var room [16]byte
	over := false
	for i, l := range t.connections {
		if l.policy.Count != "connections" {
			continue
		}
		key := w.limits.Key(l.policy.ID, appendAddress(room[:0], client))
		_, r := w.holds.Take(key, l.policy.Max)
		if r == zone.HeldOne {
			counted = append(counted, key)
		}
		if r == zone.HeldMost && !over {
			over = true
			t.mu.Lock()
			who := triedClient{address: client, source: policy.AddressKey(client)}
			c := t.clients[who]
			if c == nil {
				c = t.add(who, "")
			}
			c.Connections++
			t.refused[len(t.requests)+i]++
			t.mu.Unlock()
		}
	}
	return counted
}

// Tried is what is known of the trial under way; nil: there is none.
func (w *Worker) Tried() *TriedAll {
	snap := w.current.Load()
	if snap == nil || snap.trial == nil {
		return nil
	}
	t := snap.trial
	t.mu.Lock()
	defer t.mu.Unlock()
	all := &TriedAll{Others: t.others.Tally, Refused: map[string]uint64{}}
	for i, n := range t.refused {
		if i < len(t.requests) {
			all.Refused[t.requests[i].name] += n
		} else {
			all.Refused[t.connections[i-len(t.requests)].name] += n
		}
	}
	for who, c := range t.clients {
		all.Clients = append(all.Clients, Tried{Address: who.address, Source: who.source, Key: who.key, Consumer: c.consumer, Tally: c.Tally})
	}
	return all
}
