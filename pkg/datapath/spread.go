// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// spreadQueue is how many packets may wait for a CPU: as many as a usual receive ring has.
const spreadQueue = 2048

// spread makes the program hand flows to all CPUs where the interface has fewer receive
// queues than that; else, or when it is not wanted, each packet stays with its queue's
// CPU. It is no part of a generation: a flow may move, and no packet is judged otherwise.
func (d *Datapath) spread(wanted bool) error {
	var count uint32
	if cpus, err := onlineCPUs(); err != nil {
		return err
	} else if wanted && d.activeQueues() < len(cpus) {
		for i, cpu := range cpus {
			// The index is a CPU's number in a cpumap: the program's index goes to it.
			if i != cpu {
				return fmt.Errorf("spread flows: CPU %d is offline: a cpumap needs them all", i)
			}
			if err := d.objects.Cpus.Put(uint32(cpu), uint32(spreadQueue)); err != nil {
				return fmt.Errorf("spread flows to CPU %d: %w", cpu, err)
			}
		}
		count = uint32(len(cpus))
	}
	if err := d.objects.CPUCount.Put(uint32(0), count); err != nil {
		return fmt.Errorf("spread flows: %w", err)
	}
	return nil
}

func (d *Datapath) activeQueues() int {
	if d.link == nil {
		return d.queues
	}
	l, err := netlink.LinkByIndex(d.link.Attrs().Index)
	if err != nil {
		return d.queues
	}
	return max(l.Attrs().NumRxQueues, 1)
}
