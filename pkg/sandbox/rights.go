// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Keep has this process keep its rights and its secrets to itself: no process that it starts
// inherits its capabilities, none gets more than its parent, nobody of its user may look in,
// and there are no core dumps. It holds for all threads.
func Keep() error {
	all := func(what string, option, arg uintptr) error {
		_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, option, arg, 0, 0, 0, 0)
		if errors.Is(errno, syscall.ENOTSUP) { // linked with C, as a test may be: this thread at least
			errno = 0
			if err := unix.Prctl(int(option), arg, 0, 0, 0); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		if errno != 0 {
			return fmt.Errorf("%s: %w", what, errno)
		}
		return nil
	}
	if err := all("set no_new_privs", unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return err
	}
	if err := all("clear ambient capabilities", unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("set not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core dumps off: %w", err)
	}
	return nil
}
