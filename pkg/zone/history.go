// SPDX-License-Identifier: Apache-2.0

package zone

import "time"

// The history is what was counted in the last hour, one row each HistoryStep. The
// supervisor is its only writer; it outlives it.
const (
	HistoryStep = 5 * time.Second
	HistoryRows = 720

	historyHead  = 0 // rows ever written
	historyWords = 4 * lineWords
	historyBytes = pageSize + (HistoryRows*historyWords*8+pageSize-1)/pageSize*pageSize
)

// Past is one row of the history. Counts are since the zone was made, as counters are.
type Past struct {
	Time                     int64 // ns since 1970
	Passed, Dropped          uint64
	Classes                  [5]uint64 // requests by status class
	Handshakes, Resumed      uint64    // TLS handshakes that succeeded; the resumed among them
	HandshakesFailed         uint64
	Connections, UnderWay    uint64 // at that moment
	Median, Percentile99     time.Duration
	BytesReceived, BytesSent uint64
}

func (p *Past) words() [17]uint64 {
	return [17]uint64{
		uint64(p.Time), p.Passed, p.Dropped, p.Classes[0], p.Classes[1], p.Classes[2], p.Classes[3], p.Classes[4],
		p.Handshakes, p.Resumed, p.HandshakesFailed, p.Connections, p.UnderWay, uint64(p.Median), uint64(p.Percentile99),
		p.BytesReceived, p.BytesSent,
	}
}

func (p *Past) from(w [17]uint64) {
	*p = Past{
		Time: int64(w[0]), Passed: w[1], Dropped: w[2], Classes: [5]uint64(w[3:8]), Handshakes: w[8], Resumed: w[9],
		HandshakesFailed: w[10], Connections: w[11], UnderWay: w[12], Median: time.Duration(w[13]), Percentile99: time.Duration(w[14]),
		BytesReceived: w[15], BytesSent: w[16],
	}
}

func historyRow(n uint64) int { return pageSize/8 + int(n%HistoryRows)*historyWords }

// AppendHistory writes a row over the oldest. Supervisor only.
func (z *Zone) AppendHistory(p Past) {
	n := z.history.load(historyHead)
	for i, v := range p.words() {
		z.history.store(historyRow(n)+i, v)
	}
	z.history.store(historyHead, n+1)
}

// History appends the rows to dst, the oldest first.
func (z *Zone) History(dst []Past) []Past {
	end := z.history.load(historyHead)
	// The oldest row may be being written over: it counts as gone.
	first := end - min(end, HistoryRows-1)
	for n := first; n < end; n++ {
		var w [17]uint64
		for i := range w {
			w[i] = z.history.load(historyRow(n) + i)
		}
		if z.history.load(historyHead) >= n+HistoryRows {
			continue // so was this one, meanwhile
		}
		var p Past
		p.from(w)
		dst = append(dst, p)
	}
	return dst
}

// takeHistory goes on with that of the zone at the path, whose supervisor is dead. From one of
// another version, or a broken one, there is none to take.
func (z *Zone) takeHistory(path string) {
	old, err := Open(path)
	if err != nil {
		return
	}
	defer old.Close()
	_ = old.Guard(func() {
		for _, row := range old.History(nil) {
			z.AppendHistory(row)
		}
	})
}
