// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The collector of a worker lets garbage of up to garbageMost come together, or of half of
// what is in use where that is more: many idle connections must not cost several times
// what they hold, and a small heap is not to be looked through for every few handshakes.
const (
	garbageMost  = 64 << 20
	garbageLeast = 50  // per cent of what is in use
	garbageSmall = 400 // per cent while the heap is small; a worker starts with it
)

// gcPercent is GOGC for so many bytes in use.
func gcPercent(live uint64) int {
	if live == 0 {
		return garbageSmall
	}
	return int(min(max(100*garbageMost/live, garbageLeast), garbageSmall))
}

// tendMemory keeps GOGC right until ctx ends, and tells what collecting cost since it last
// did.
func tendMemory(ctx context.Context, spent func(time.Duration)) {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/cpu/classes/gc/total:cpu-seconds"}}
	told := 0.0
	percent := garbageSmall
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(sample)
		if all := sample[1].Value.Float64(); all > told {
			spent(time.Duration((all - told) * float64(time.Second)))
			told = all
		}
		next := gcPercent(sample[0].Value.Uint64())
		if 10*max(next-percent, percent-next) > percent { // setting it stops the world for a moment
			percent = next
			debug.SetGCPercent(percent)
		}
	}
}
