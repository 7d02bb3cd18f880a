// SPDX-License-Identifier: Apache-2.0

package host

import (
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What a process has laid aside it may still give away, but not use.
func TestCapabilities(t *testing.T) {
	if !Has(unix.CAP_SETUID) {
		t.Skip("needs CAP_SETUID, to lay it aside")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // it ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			t.Error(err)
			return
		}
		data[0].Effective &^= 1 << unix.CAP_SETUID
		if err := unix.Capset(&header, &data[0]); err != nil {
			t.Error(err)
			return
		}
		held, err := Held()
		if err != nil || !slices.Contains(held, unix.CAP_SETUID) {
			t.Errorf("held are %v, %v", held, err)
		}
		if Has(unix.CAP_SETUID) || !Has(unix.CAP_SETGID) {
			t.Error("what was laid aside is in effect, or what was not is gone")
		}
	}()
	<-done
}
