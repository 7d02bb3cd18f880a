// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// spreadQueue is how many packets may wait for a CPU: as many as a usual receive ring has.
const spreadQueue = 2048

// prepareSpread makes the queues of the CPUs that spread will use.
func (d *Datapath) prepareSpread(wanted bool) error {
	cpus, err := d.spreadCPUs(wanted)
	for i := 0; err == nil && i < cpus; i++ {
		if err = d.objects.Cpus.Put(uint32(i), uint32(spreadQueue)); err != nil {
			err = fmt.Errorf("spread flows to CPU %d: %w", i, err)
		}
	}
	return err
}

// spread makes the program hand flows to all CPUs where the interface has fewer receive
// queues than that; else, or when it is not wanted, each packet stays with its queue's
// CPU. It is no part of a generation: a flow may move, and no packet is judged otherwise.
func (d *Datapath) spread(wanted bool) error {
	cpus, err := d.spreadCPUs(wanted)
	if err == nil {
		err = d.objects.CPUCount.Put(uint32(0), uint32(cpus))
	}
	if err != nil {
		return fmt.Errorf("spread flows: %w", err)
	}
	return nil
}

// spreadCPUs is how many flows are to be spread to, 0 for none.
func (d *Datapath) spreadCPUs(wanted bool) (int, error) {
	if !wanted {
		return 0, nil
	}
	cpus, err := onlineCPUs()
	if err != nil || d.activeQueues() >= len(cpus) {
		return 0, err
	}
	for i, cpu := range cpus {
		// The index is a CPU's number in a cpumap: the program's index goes to it.
		if i != cpu {
			return 0, fmt.Errorf("spread flows: CPU %d is offline: a cpumap needs them all", i)
		}
	}
	return len(cpus), nil
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
