// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"math"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Historian writes the zone's history. It is not safe for concurrent use.
type Historian struct {
	ledger   *Ledger
	snapshot Snapshot
	before   zone.Histogram // of all routes, at the last row
	next     time.Time
}

// NewHistorian writes what the ledger reads, which is the historian's from now on.
func NewHistorian(l *Ledger) *Historian { return &Historian{ledger: l} }

// Record appends a row when its time has come. The rest is written when a part cannot be
// read, which is the error.
func (h *Historian) Record(now time.Time) error {
	if now.Before(h.next) {
		return nil
	}
	h.next = now.Add(zone.HistoryStep - 100*time.Millisecond) // ticks come a little early or late
	s := &h.snapshot
	err := h.ledger.Snapshot(s)
	p := zone.Past{
		Time: now.UnixNano(), Passed: s.Sums.PacketsPassed, Dropped: s.Sums.PacketsDropped,
		Connections: s.Sums.Open, UnderWay: s.Sums.UnderWay,
	}
	var all zone.Histogram
	for i := range s.Routes {
		for class, n := range s.Routes[i].Classes {
			p.Classes[class] += n
		}
		add(&all, &s.Routes[i].Duration)
	}
	for i := range s.Workers {
		w := &s.Workers[i]
		p.BytesReceived += w.Counter(zone.BytesReceived)
		p.BytesSent += w.Counter(zone.BytesSent)
		for o, n := range w.Handshakes {
			switch outcome := zone.HandshakeOutcome(o); {
			case outcome.Failed():
				p.HandshakesFailed += n
			case outcome == zone.HandshakeResumed:
				p.Resumed += n
				fallthrough
			default:
				p.Handshakes += n
			}
		}
	}
	p.Median, p.Percentile99 = duration(Quantile(&all, &h.before, 0.5)), duration(Quantile(&all, &h.before, 0.99))
	h.before = all
	h.ledger.sources.Zone.AppendHistory(p)
	return err
}

// duration is a quantile in whole ns; 0 for one that is not known.
func duration(seconds float64) time.Duration {
	if math.IsNaN(seconds) {
		return 0
	}
	return time.Duration(min(seconds, 1<<7) * float64(time.Second)) // the highest bound is 64 s
}

// Quantile is the upper bound in seconds of the bucket that holds the quantile, 0 to 1, of
// what was counted since before; NaN when nothing was.
func Quantile(now, before *zone.Histogram, quantile float64) float64 {
	var n uint64
	var since [zone.Buckets + 1]uint64
	for b := range since {
		since[b] = now.Buckets[b] - min(before.Buckets[b], now.Buckets[b])
		n += since[b]
	}
	var seen uint64
	for b, c := range since {
		seen += c
		if c > 0 && float64(seen) >= quantile*float64(n) {
			return zone.Bound(b)
		}
	}
	return math.NaN()
}
