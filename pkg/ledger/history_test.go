// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// A row each step, with what was counted, and quantiles of what came since the row before.
func TestHistorian(t *testing.T) {
	z, err := zone.Create(filepath.Join(t.TempDir(), "zone"), zone.Layout{Workers: 1, Size: 32 << 20, Routes: 16, Upstreams: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	slot := z.RouteSlot("api")
	w := z.Worker(0)
	h := NewHistorian(New(Sources{Zone: z}))
	now := time.Unix(1000, 0)
	record := func() {
		t.Helper()
		if err := h.Record(now); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		w.Request(slot, 200, time.Millisecond, zone.RequestOK)
	}
	w.Handshake(zone.HandshakeFull, 0)
	w.Handshake(zone.HandshakeResumed, 0)
	w.Handshake(zone.HandshakeTimeout, 0)
	record()
	now = now.Add(time.Second)
	record() // too early: no row
	for range 10 {
		w.Request(slot, 503, time.Second, zone.RequestOverload)
	}
	now = now.Add(zone.HistoryStep)
	record()
	now = now.Add(zone.HistoryStep)
	record()
	rows := z.History(nil)
	if len(rows) != 3 {
		t.Fatalf("%d rows", len(rows))
	}
	first, second, third := rows[0], rows[1], rows[2]
	if first.Classes != [5]uint64{1: 100} || first.Handshakes != 2 || first.Resumed != 1 || first.HandshakesFailed != 1 || first.Time != 1000e9 {
		t.Errorf("first: %+v", first)
	}
	if first.Median < time.Millisecond || first.Percentile99 > 1100*time.Microsecond {
		t.Errorf("first: median %s, 99th percentile %s", first.Median, first.Percentile99)
	}
	if second.Classes != [5]uint64{1: 100, 4: 10} || second.Median < time.Second || second.Median > 1100*time.Millisecond {
		t.Errorf("second: %+v", second)
	}
	if third.Median != 0 || third.Percentile99 != 0 || third.Classes != second.Classes {
		t.Errorf("third: %+v", third)
	}
}
