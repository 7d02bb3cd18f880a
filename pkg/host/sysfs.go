// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"path/filepath"
	"strings"
)

// addSysfs adds what only sysfs tells. It shows the network namespace it was mounted
// in, so what it has under the name is taken only when it is the same interface.
// root is / on a real machine.
func addSysfs(i *Interface, root string) {
	if i.Name == "" || i.Name == "." || i.Name == ".." || strings.ContainsRune(i.Name, '/') {
		return
	}
	dir := filepath.Join(root, "sys/class/net", i.Name)
	if index, err := readNumber(filepath.Join(dir, "ifindex")); err != nil || index != i.Index {
		return
	}
	if mtu, err := readNumber(filepath.Join(dir, "mtu")); err != nil || mtu != i.MTU {
		return // an index is often the same in two namespaces
	}
	receive, transmit := 0, 0
	queues, _ := os.ReadDir(filepath.Join(dir, "queues"))
	for _, q := range queues {
		switch {
		case strings.HasPrefix(q.Name(), "rx-"):
			receive++
		case strings.HasPrefix(q.Name(), "tx-"):
			transmit++
		}
	}
	if receive+transmit > 0 { // netlink counts also those that are not in use
		i.ReceiveQueues, i.TransmitQueues = receive, transmit
	}
	if speed, err := readNumber(filepath.Join(dir, "speed")); err == nil { // -1, or an error, where there is none
		i.Speed = speed
	}
	if duplex, err := os.ReadFile(filepath.Join(dir, "duplex")); err == nil {
		i.Duplex = strings.TrimSpace(string(duplex))
	}
	driver, err := os.Readlink(filepath.Join(dir, "device/driver"))
	if err != nil {
		return
	}
	if i.Driver == "" {
		i.Driver = filepath.Base(driver)
	}
	if i.Driver == "virtio_net" {
		if bits, err := os.ReadFile(filepath.Join(dir, "device/features")); err == nil {
			i.Virtio = strings.TrimSpace(string(bits))
		}
	}
	if n, err := readNumber(filepath.Join(dir, "device/sriov_numvfs")); err == nil {
		i.Virtuals = n
	}
}
