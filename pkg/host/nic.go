// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// Interfaces lists the names of those in this network namespace that are NICs or stand for
// one, and are up.
func Interfaces() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, l := range links {
		if kind := kindOf(l); (kind == "physical" || kind == "bond") && l.Attrs().OperState == netlink.OperUp {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// Statistics are what an interface has counted: its driver, as ethtool -S has it, and the
// kernel, by the names in /sys/class/net/NAME/statistics. What it does not tell is left out.
func Statistics(name string) map[string]uint64 {
	out := map[string]uint64{}
	if e, err := ethtool.NewEthtool(); err == nil {
		if driver, err := e.Stats(name); err == nil {
			out = driver
		}
		e.Close()
	}
	l, err := netlink.LinkByName(name)
	if err != nil || l.Attrs().Statistics == nil {
		return out
	}
	s := l.Attrs().Statistics
	for name, n := range map[string]uint64{
		"rx_packets": s.RxPackets, "tx_packets": s.TxPackets, "rx_errors": s.RxErrors, "tx_errors": s.TxErrors, "tx_dropped": s.TxDropped,
		"rx_length_errors": s.RxLengthErrors, "rx_over_errors": s.RxOverErrors, "rx_crc_errors": s.RxCrcErrors, "rx_frame_errors": s.RxFrameErrors,
		"rx_fifo_errors": s.RxFifoErrors, "rx_missed_errors": s.RxMissedErrors, "tx_aborted_errors": s.TxAbortedErrors,
		"tx_carrier_errors": s.TxCarrierErrors, "tx_fifo_errors": s.TxFifoErrors,
	} {
		out[name] = n
	}
	return out
}

// Interrupts lists the numbers of an interface's interrupts; none for a device without. The
// device of a virtio NIC is beneath the PCI device that has them. root is / on a real machine.
func Interrupts(root, name string) []int {
	device, err := filepath.EvalSymlinks(filepath.Join(root, "sys/class/net", name, "device"))
	if err != nil {
		return nil
	}
	var all []int
	for _, dir := range []string{device, filepath.Dir(device)} {
		entries, _ := os.ReadDir(filepath.Join(dir, "msi_irqs"))
		for _, e := range entries {
			if n, err := strconv.Atoi(e.Name()); err == nil {
				all = append(all, n)
			}
		}
		if len(all) > 0 {
			break
		}
	}
	slices.Sort(all)
	return all
}

// CheckSysfs tells whether the /sys below root is of this network namespace, by what it shows
// of the interface: one of the same name in another namespace would be changed otherwise.
func CheckSysfs(root, name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w: `ip link` lists them", name, ErrNoInterface)
	}
	dir := filepath.Join(root, "sys/class/net", name)
	index, err := readNumber(filepath.Join(dir, "ifindex"))
	address, _ := os.ReadFile(filepath.Join(dir, "address"))
	if err != nil || index != l.Attrs().Index || strings.TrimSpace(string(address)) != l.Attrs().HardwareAddr.String() {
		return fmt.Errorf("%s: /sys is of another network namespace: `ip netns exec NAMESPACE xgw …` has its own", name)
	}
	return nil
}
