// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Held are the capabilities that this process may give to one that it starts: those that are
// permitted to it.
func Held() (list []int, err error) {
	data, err := ownCapabilities()
	for c := range 64 {
		if data[c/32].Permitted&(1<<(c%32)) != 0 {
			list = append(list, c)
		}
	}
	return list, err
}

// Has tells whether this process has the capability in effect; one that cannot be told is none.
func Has(capability int) bool {
	data, _ := ownCapabilities()
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// ownCapabilities are those of the calling thread, which are the process's.
func ownCapabilities() (data [2]unix.CapUserData, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return data, fmt.Errorf("read own capabilities: %w", err)
	}
	return data, nil
}
