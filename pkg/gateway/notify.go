// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells the service manager how the gateway is, where one started it (sd_notify(3)).
func (s *supervisor) notify(state string) {
	if s.predecessor.waits() {
		return // that one is the main process still
	}
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("the service manager is not told", "state", state, "error", err)
	}
}

// watchdog is what to say each time that the supervisor is well; "" where nobody asked.
func (s *supervisor) watchdog() string {
	every, err := daemon.SdWatchdogEnabled(false)
	switch {
	case err != nil:
		s.log.Warn("the service manager's watchdog is not fed", "error", err)
		return ""
	case every == 0:
		return ""
	case every < 2*beatInterval:
		s.log.Warn("the service manager's watchdog is too quick", "every", every, "mend", fmt.Sprintf("WatchdogSec=%s or more", 2*beatInterval))
	}
	return daemon.SdNotifyWatchdog
}

// reloading is what the service manager wants to hear when a reload begins.
func reloading() string {
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, monotonic()/int64(time.Microsecond))
}
