// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Times of the exchange of charges.
const (
	// Window is by how much of its rate, beside a burst, each further gateway may exceed a limit
	// while exchanges take no longer than a quarter of period: a charge is told a period and an
	// exchange after it was made at the latest, another gateway learns of it as late again, and
	// it counts as if it had been made a period before.
	Window = 350 * time.Millisecond
	// period is from one exchange to the next.
	period = 100 * time.Millisecond
	// patience is with one exchange; it is tried again until its charges are voidTime old.
	patience = 250 * time.Millisecond
	voidTime = 500 * time.Millisecond
	// retryTime is between two exchanges while the server does not answer.
	retryTime = 500 * time.Millisecond
	// beat is between two exchanges of a gateway that has nothing to tell.
	beat = time.Second
	// mostKeys are told in one exchange, which keeps the server busy for some 10 ms; the others
	// wait for the next one, at once.
	mostKeys = 4096
)

// Bound is by how many requests each further gateway may exceed a limit at most, of so many in
// each period, beyond rate x t + burst.
func Bound(requests uint64, period time.Duration, burst uint64) uint64 {
	return burst + uint64(float64(requests)*float64(Window)/float64(period)) + 1
}

// exchange charges buckets in the server, each the time when it will have drained by the
// server's clock, and returns how far ahead they are.
//
//go:embed exchange.lua
var exchangeText string

var exchange = redis.NewScript(exchangeText)

// Leases keep limits that hold over several gateways. A key's bucket in the zone decides by
// itself; ten times a second what it was charged is added to the bucket that all share in the
// server, and what that one holds beyond is charged here. So a gateway may pass for a moment what
// others have passed already, and makes up for it afterwards.
type Leases struct {
	node    *Node
	shares  *zone.Shares
	buckets *zone.LimitBuckets
	now     func() int64 // CLOCK_MONOTONIC, ns
	limits  atomic.Pointer[map[uint64]zone.Rate]

	// Of Run.
	batch []zone.Share         // that is being told
	rates map[uint64]zone.Rate // for it
	taken time.Time            // when it was collected
	from  int64                // the same of the one before, by now: no charge is older
	until int64                // the same of this one
	ahead int64                // of the server's clock before now, ns; what the way back took is missing, so it is never too much
	known bool                 // ahead is
	more  bool                 // it was cut short: others may have older charges
	seq   uint64               // of the batch: told twice, it counts once
	quiet bool                 // the server is asked from time to time only
	next  time.Time            // when it is, or when others are to hear that this gateway is there
	names []string
	args  []any
}

// NewLeases makes leases of no limit. now is the clock of the zone's buckets.
func NewLeases(n *Node, z *zone.Zone, now func() int64) *Leases {
	l := &Leases{node: n, shares: z.Shares(), buckets: z.LimitBuckets(), now: now}
	l.limits.Store(&map[uint64]zone.Rate{})
	return l
}

// SetLimits says which limits hold over several gateways, by policy.RequestLimit.ID.
func (l *Leases) SetLimits(limits map[uint64]zone.Rate) { l.limits.Store(&limits) }

// Run exchanges charges until ctx ends.
func (l *Leases) Run(ctx context.Context) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for l.round(ctx, time.Now()) && ctx.Err() == nil {
		}
	}
}

// round is one exchange, or none where there is nothing to tell. It tells whether there was more.
func (l *Leases) round(ctx context.Context, now time.Time) (more bool) {
	if len(l.batch) == 0 {
		more = l.collect(now)
	}
	due := !now.Before(l.next)
	switch {
	case l.quiet && !due:
		l.drop(Stale)
		return false
	case len(l.batch) == 0 && (!due || len(l.rates) == 0):
		return more
	}
	sent := l.now()
	ahead, gateways, err := l.tell(ctx)
	if ctx.Err() != nil {
		return false
	}
	l.node.note(err)
	if err != nil {
		if l.quiet || now.Sub(l.taken) >= voidTime {
			l.drop(Failed)
			l.quiet = true
		}
		l.next = now.Add(retryTime)
		return false
	}
	l.quiet, l.next = false, now.Add(beat)
	l.learn(sent, ahead)
	l.node.mu.Lock()
	l.node.stats.Gateways = gateways
	l.node.mu.Unlock()
	l.drop(OK)
	return more
}

// collect makes the next batch, of limits that there are.
func (l *Leases) collect(now time.Time) (more bool) {
	if !l.more { // else some keys were last seen before the batch that was cut short
		l.from = l.until
	}
	l.until = l.now()
	l.batch = l.shares.Collect(l.batch[:0], mostKeys)
	more = len(l.batch) >= mostKeys
	l.more = more
	l.rates = *l.limits.Load()
	l.batch = slices.DeleteFunc(l.batch, func(s zone.Share) bool { _, ok := l.rates[s.Limit]; return !ok })
	l.taken = now
	l.seq++
	return more
}

func (l *Leases) drop(o Outcome) {
	l.node.count(o, len(l.batch))
	l.batch = l.batch[:0]
}

// tell charges the batch and returns how far ahead each bucket is, in µs.
func (l *Leases) tell(ctx context.Context) (ahead []int64, gateways int, err error) {
	p := l.node.prefix
	l.names = append(l.names[:0], p+"gateway:"+l.node.name, p+"gateways")
	l.args = append(l.args[:0], strconv.FormatUint(l.seq, 10), l.node.name, Window.Microseconds(), l.oldest())
	for i := range l.batch {
		s := &l.batch[i]
		r := l.rates[s.Limit]
		var id [16]byte
		binary.BigEndian.PutUint64(id[:], s.ID[0])
		binary.BigEndian.PutUint64(id[8:], s.ID[1])
		l.names = append(l.names, p+"limit:"+hex.EncodeToString(id[:]))
		l.args = append(l.args, micro(s.Charges*r.Interval), micro(r.Tolerance+r.Interval))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply, err := exchange.Run(ctx, l.node.client, l.names, l.args...).Int64Slice()
	if err != nil {
		return nil, 0, err
	}
	if len(reply) != 2+len(l.batch) {
		return nil, 0, fmt.Errorf("exchange of %d keys: %d values came back", len(l.batch), len(reply))
	}
	l.ahead, l.known = reply[1]*1000-l.now(), true
	return reply[2:], int(reply[0]), nil
}

// oldest is when the first charge of the batch may have been made, by the server's clock in µs.
func (l *Leases) oldest() int64 {
	if !l.known {
		return 0
	}
	return max((l.from+l.ahead)/1000, 0)
}

// micro rounds up: a limit errs on the side of less.
func micro(ns int64) int64 {
	if ns <= 0 {
		return ns / 1000
	}
	return (ns + 999) / 1000
}

// learn has the zone's buckets hold what the server's do, and what was charged here since.
func (l *Leases) learn(sent int64, ahead []int64) {
	for i := range l.batch {
		s := &l.batch[i]
		if ahead[i] <= 0 || ahead[i] > int64(365*24*time.Hour/time.Microsecond) {
			continue
		}
		l.buckets.Raise(s.Key, l.now(), sent+ahead[i]*1000+max(l.shares.Pending(s), 0)*l.rates[s.Limit].Interval)
	}
}
