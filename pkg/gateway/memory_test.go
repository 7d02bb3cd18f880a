// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"runtime/metrics"
	"testing"
)

func TestGCPercent(t *testing.T) {
	for _, row := range []struct {
		live uint64
		want int
	}{{0, 400}, {1 << 20, 400}, {16 << 20, 400}, {32 << 20, 200}, {64 << 20, 100}, {128 << 20, 50}, {4 << 30, 50}} {
		if got := gcPercent(row.live); got != row.want {
			t.Errorf("%d bytes in use: %d, want %d", row.live, got, row.want)
		}
	}
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	if metrics.Read(s); s[0].Value.Kind() != metrics.KindUint64 {
		t.Error("the runtime does not tell what is in use")
	}
}
