// SPDX-License-Identifier: Apache-2.0

package mend

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// mostEntries is the longest flow table (RSS) that is read and written here: the ethtool
// package has no room for more, and the kernel writes as many as there are.
const mostEntries = 256

// tableSize is how many entries the table has that spreads flows over an interface's receive
// queues; 0 where there is none, or where that cannot be told.
func tableSize(name string) uint32 {
	const getTable = 0x38 // ETHTOOL_GRXFHINDIR
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}
	if copy(request.name[:unix.IFNAMSIZ-1], name) < len(name) {
		return 0
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	table := struct{ command, size uint32 }{getTable, 0} // without room for entries the kernel tells the size alone
	request.data = unsafe.Pointer(&table)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return 0
	}
	return table.size
}

// readTable reads the table: the queue of each entry.
func readTable(e *ethtool.Ethtool, name string) ([]uint32, error) {
	if n := tableSize(name); n == 0 || n > mostEntries {
		return nil, fmt.Errorf("the flow table of %s has %d entries, 1 to %d can be read: use ethtool -x", name, n, mostEntries)
	}
	t, err := e.GetIndir(name)
	if err != nil {
		return nil, err
	}
	return t.RingIndex[:min(t.Size, mostEntries)], nil
}

// FlowTable counts, by queue, the entries of the table that spreads flows over the receive
// queues (RSS); nil where there is none, or it is too long.
func FlowTable(name string) []int {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return nil
	}
	defer e.Close()
	table, err := readTable(e, name)
	if err != nil || len(table) == 0 {
		return nil
	}
	entries := make([]int, slices.Max(table)+1)
	for _, q := range table {
		entries[q]++
	}
	return entries
}
