// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

// What a supervisor can be.
const (
	Running = "running"
	Hanging = "hanging" // it is there, but gives no sign of life
	Gone    = "gone"    // it died, and its zone is what it left
	Absent  = "absent"  // there is no zone
)

// silence is how long a supervisor that is well may say nothing; it beats each second.
const silence = 3 * time.Second

// Supervisor tells how the zone's is, and how long ago it gave a sign of life. nil is no zone.
func Supervisor(z *zone.Zone) (state string, beat time.Duration) {
	if z == nil {
		return Absent, 0
	}
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // never fails
	beat = time.Duration(now.Nano() - z.Heartbeat())
	switch {
	case !z.Alive():
		return Gone, beat
	case beat > silence:
		return Hanging, beat
	}
	return Running, beat
}

// Runs tells whether a worker is there: when its supervisor is gone, nobody else notes its end.
func Runs(pid int) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(pid))
	return pid > 0 && err == nil
}
