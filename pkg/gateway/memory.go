// SPDX-License-Identifier: Apache-2.0

package gateway

import (
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

// tendMemory keeps GOGC right for as long as the process lives.
func tendMemory() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	percent := garbageSmall
	for range time.Tick(time.Second) {
		metrics.Read(sample)
		next := gcPercent(sample[0].Value.Uint64())
		if 10*max(next-percent, percent-next) > percent { // setting it stops the world for a moment
			percent = next
			debug.SetGCPercent(percent)
		}
	}
}
