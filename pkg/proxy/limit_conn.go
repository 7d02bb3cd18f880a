// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// connectionLimit is a compiled policy.ConnectionLimit. It does not change.
type connectionLimit struct {
	policy *policy.ConnectionLimit
	limitMatch
	refusal refusal // of a request
}

func newConnectionLimit(p *policy.ConnectionLimit) (*connectionLimit, error) {
	match, err := newLimitMatch(p.Name, p.Routes, p.Methods, p.Tiers, p.Key)
	if err != nil {
		return nil, fmt.Errorf("connection limit %s: %w", p.Name, err)
	}
	if p.Max == 0 || p.Count != "requests" && (p.Count != "connections" || len(p.Key) != 1 || p.Key[0].Kind != "address") {
		return nil, fmt.Errorf("connection limit %s: %+v", p.Name, *p)
	}
	return &connectionLimit{policy: p, limitMatch: match, refusal: refusal{
		status: p.Status, outcome: zone.RequestConcurrencyLimited, text: "over the limit " + p.Name, retryAfter: 1,
	}}, nil
}

// concurrencyOf are the limits of requests under way for the route at the index.
func (s *snapshot) concurrencyOf(route int) (out []*connectionLimit) {
	for _, l := range s.connectionLimits {
		if l.policy.Count == "requests" && l.isForRoute(route) {
			out = append(out, l)
		}
	}
	return out
}

// take counts one more under the key, until it is given back where it is counted. ok is
// false for one that is refused.
func (l *connectionLimit) take(w *Worker, key uint64) (counted, ok bool) {
	most := l.policy.Max
	if l.policy.DryRun {
		most = math.MaxUint64
	}
	open, r := w.holds.Take(key, most)
	outcome := zone.LimitPassed
	switch {
	case r == zone.HeldNone:
		outcome = zone.LimitUncounted
	case r == zone.HeldMost:
		outcome = zone.LimitRejected
	case open > l.policy.Max:
		outcome = zone.LimitWouldReject
	}
	w.slab.Limit(l.policy.Slot, outcome)
	return r == zone.HeldOne, r != zone.HeldMost
}

func (w *Worker) giveBack(counted []uint64) {
	for _, key := range counted {
		w.holds.Return(key)
	}
}

// limitConcurrency holds the exchange to how many of its kind may be under way.
func limitConcurrency(ex *Exchange) *refusal {
	for _, l := range ex.route.atOnce {
		if !l.isFor(ex) {
			continue
		}
		key := ex.worker.limits.Key(l.policy.ID, ex.limiting.key)
		counted, ok := l.take(ex.worker, key)
		if !ok {
			return &l.refusal
		}
		if counted {
			ex.limiting.counted = append(ex.limiting.counted, key)
		}
	}
	return nil
}

// countAccepted holds a connection that was just accepted to how many its client may have.
// One that is refused is reset: it costs no handshake, and the kernel keeps nothing for it.
// A trusted proxy speaks for many; whom it names by a PROXY header counts when that has come.
func (w *Worker) countAccepted(snap *snapshot, nc net.Conn) (counted []uint64, ok bool) {
	tcp, isTCP := nc.(*net.TCPConn)
	if len(snap.connectionLimits) == 0 && snap.trial == nil || !isTCP {
		return nil, true
	}
	a, isTCP := nc.RemoteAddr().(*net.TCPAddr)
	if !isTCP || trusts(&snap.policy.Client, a.AddrPort().Addr().Unmap()) {
		return nil, true
	}
	if counted, ok = w.countConnection(snap, a.AddrPort().Addr().Unmap()); !ok {
		_ = tcp.SetLinger(0)
		tcp.Close()
	}
	return counted, ok
}

// countConnection counts one more connection of the client; ok is false, and nothing is
// counted, when that is one too many.
func (w *Worker) countConnection(snap *snapshot, client netip.Addr) (counted []uint64, ok bool) {
	var room [16]byte
	for _, l := range snap.connectionLimits {
		if l.policy.Count != "connections" {
			continue
		}
		key := w.limits.Key(l.policy.ID, appendAddress(room[:0], client))
		one, ok := l.take(w, key)
		if !ok {
			w.giveBack(counted)
			w.slab.Add(zone.ConnectionsLimited, 1)
			return nil, false
		}
		if one {
			counted = append(counted, key)
		}
	}
	if snap.trial != nil {
		counted = snap.trial.connect(w, client, counted)
	}
	return counted, true
}
