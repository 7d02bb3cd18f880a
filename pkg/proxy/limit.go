// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// mostDelayed bounds the exchanges of a worker that wait for their turn under a limit:
// beyond, what would have to wait is refused.
const mostDelayed = 1024

// requestLimit is a compiled policy.RequestLimit. It does not change.
type requestLimit struct {
	policy *policy.RequestLimit
	limitMatch
	rate   zone.Rate // with all of the burst
	atOnce zone.Rate // with the part of it that does not wait
	text   string    // of a refusal
	quota  []byte    // RateLimit-Policy
	names  []byte    // RateLimit, up to the seconds
}

func newRequestLimit(p *policy.RequestLimit) (*requestLimit, error) {
	if p.Requests == 0 || p.Burst == 0 || p.Delay == 0 || p.Delay > p.Burst || p.Period <= 0 {
		return nil, fmt.Errorf("request limit %s: %+v", p.Name, *p)
	}
	match, err := newLimitMatch(p.Name, p.Routes, p.Methods, p.Tiers, p.Key)
	if err != nil {
		return nil, fmt.Errorf("request limit %s: %w", p.Name, err)
	}
	l := &requestLimit{
		policy: p, limitMatch: match, rate: zone.NewRate(p.Requests, p.Period, p.Burst), atOnce: zone.NewRate(p.Requests, p.Period, p.Delay),
		text:  "over the limit " + p.Name,
		quota: fmt.Appendf(nil, "%q;q=%d;w=%d", p.Name, p.Requests, int(p.Period/time.Second)),
		names: fmt.Appendf(nil, "%q;r=0;t=", p.Name),
	}
	if p.Cluster {
		l.rate, l.atOnce = l.rate.Shared(), l.atOnce.Shared()
	}
	return l, nil
}

// limitsOf are those for the route at the index, in the order of the configuration.
func (s *snapshot) limitsOf(route int) (out []*requestLimit) {
	for _, l := range s.requestLimits {
		if l.isForRoute(route) {
			out = append(out, l)
		}
	}
	return out
}

// limiting is what an exchange keeps for the sake of limits.
type limiting struct {
	key     []byte
	text    []byte
	fields  []http1.Field
	refusal refusal
	charges []charge
	counted []uint64 // keys that the exchange counts under: see zone.Holds
}

// charge is what a limit took for the exchange, to be returned if another refuses it.
type charge struct {
	limit *requestLimit
	key   uint64
}

// cleared keeps the room alone.
func (l *limiting) cleared() limiting {
	return limiting{key: l.key[:0], text: l.text[:0], fields: l.fields[:0], charges: l.charges[:0], counted: l.counted[:0]}
}

// limitRequests holds the exchange to the limits of its route. One that refuses it ends it,
// and those before take back their charge: a request that is refused is charged nowhere.
func limitRequests(ex *Exchange) *refusal {
	own := ex.ownLimit()
	if len(ex.route.limits) == 0 && own == nil {
		return nil
	}
	w := ex.worker
	now := w.boot + ex.start
	var wait time.Duration
	for i := -1; i < len(ex.route.limits); i++ {
		l := own // the narrowest first
		if i >= 0 {
			l = ex.route.limits[i]
		}
		if l == nil || !l.isFor(ex) {
			continue
		}
		key := w.limits.Key(l.policy.ID, ex.limiting.key)
		rate := l.rate
		if w.delayed.Load() >= mostDelayed {
			rate = l.atOnce
		}
		t := w.limits.Take(key, now, rate)
		if t.Evicted {
			w.slab.Add(zone.LimitBucketsEvicted, 1)
		}
		switch {
		case t.OK:
			ex.limiting.charges = append(ex.limiting.charges, charge{l, key})
			if l.policy.Cluster && !w.shares.Charge(key, l.policy.ID, ex.limiting.key) {
				w.slab.Add(zone.SharesUntold, 1)
			}
			if !l.policy.DryRun {
				wait = max(wait, t.Excess-time.Duration(l.atOnce.Tolerance))
			}
		case l.policy.DryRun:
			w.slab.Limit(l.policy.Slot, zone.LimitWouldReject)
		default:
			w.slab.Limit(l.policy.Slot, zone.LimitRejected)
			for _, c := range ex.limiting.charges {
				w.limits.Return(c.key, now, c.limit.rate)
				if c.limit.policy.Cluster {
					w.shares.Return(c.key)
				}
			}
			return ex.overLimit(l, t.Wait)
		}
	}
	outcome := zone.LimitPassed
	if wait > 0 {
		outcome = zone.LimitDelayed
	}
	for _, c := range ex.limiting.charges {
		w.slab.Limit(c.limit.policy.Slot, outcome)
	}
	if wait > 0 {
		ex.delay(wait)
	}
	return nil
}

// delay lets the exchange wait for its turn, unless the worker is told to stop.
func (ex *Exchange) delay(wait time.Duration) {
	w := ex.worker
	w.delayed.Add(1)
	defer w.delayed.Add(-1)
	turn := time.NewTimer(wait)
	defer turn.Stop()
	select {
	case <-turn.C:
	case <-w.leaving:
	}
}

// overLimit is the refusal: RFC 9110, 10.2.3 for Retry-After, in whole seconds from 1; RateLimit
// and RateLimit-Policy as draft-ietf-httpapi-ratelimit-headers has them.
func (ex *Exchange) overLimit(l *requestLimit, wait time.Duration) *refusal {
	m := &ex.limiting
	seconds := max(1, int64((wait+time.Second-1)/time.Second))
	m.text = strconv.AppendInt(m.text[:0], seconds, 10)
	digits := len(m.text)
	m.text = append(append(m.text, l.names...), m.text[:digits]...)
	m.fields = append(m.fields[:0],
		http1.Field{Name: nameRetryAfter, Value: m.text[:digits]},
		http1.Field{Name: nameRateLimit, Value: m.text[digits:]},
		http1.Field{Name: nameRateLimitPolicy, Value: l.quota})
	m.refusal = refusal{status: l.policy.Status, outcome: zone.RequestLimited, text: l.text, fields: m.fields}
	return &m.refusal
}

var (
	nameRetryAfter      = []byte("Retry-After")
	nameRateLimit       = []byte("RateLimit")
	nameRateLimitPolicy = []byte("RateLimit-Policy")
)

// monotonicBoot is CLOCK_MONOTONIC at base, in ns: buckets are kept by that clock, which
// all workers and those that come after them share.
func monotonicBoot(base time.Time) int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano() - int64(time.Since(base))
}
