// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"path/filepath"
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	z, err := Create(path, Layout{Workers: 1, Size: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	row := func(n uint64) Past {
		return Past{
			Time: int64(n) + 1, Passed: n, Dropped: n + 1, Classes: [5]uint64{n, n + 1, n + 2, n + 3, n + 4}, Handshakes: n + 5, Resumed: n + 6,
			HandshakesFailed: n + 7, Connections: n + 8, UnderWay: n + 9, Median: time.Duration(n + 10), Percentile99: time.Duration(n + 11),
			BytesReceived: n + 12, BytesSent: n + 13,
		}
	}
	if got := z.History(nil); len(got) != 0 {
		t.Errorf("a new zone has %d rows", len(got))
	}
	for n := range uint64(3) {
		z.AppendHistory(row(n))
	}
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := r.History(nil)
	if len(got) != 3 || got[0] != row(0) || got[2] != row(2) {
		t.Errorf("%+v", got)
	}
	for n := range uint64(2 * HistoryRows) {
		z.AppendHistory(row(n + 3))
	}
	got = r.History(got[:0])
	if len(got) != HistoryRows-1 || got[0] != row(uint64(2*HistoryRows+3-len(got))) || got[len(got)-1] != row(2*HistoryRows+2) {
		t.Errorf("%d rows from %+v to %+v", len(got), got[0], got[len(got)-1])
	}
	if used := z.LimitBuckets().Used(0, 8); used != 0 {
		t.Errorf("rows lie in %d buckets", used)
	}
}

// A reader beside the writer gets whole rows, in order.
func TestHistoryIsNeverTorn(t *testing.T) {
	z, err := Create(filepath.Join(t.TempDir(), "zone"), Layout{Workers: 1, Size: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range uint64(20 * HistoryRows) {
			z.AppendHistory(Past{Time: int64(n), Passed: n, BytesSent: n})
		}
	}()
	var rows []Past
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		rows = z.History(rows[:0])
		for i, p := range rows {
			if p.Passed != uint64(p.Time) || p.BytesSent != p.Passed || i > 0 && p.Time <= rows[i-1].Time {
				t.Fatalf("row %d: %+v", i, p)
			}
		}
	}
}
