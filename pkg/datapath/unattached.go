// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// Unattached loads the programs and maps as Create does, for no interface and without
// pins: to measure them. Tables can be applied and counters read; there is nothing to
// attach. Close ends all of it.
func Unattached(queues int) (*Datapath, error) {
	d := &Datapath{options: Options{Interface: "no interface"}, queues: queues}
	if err := d.load(); err != nil {
		return nil, fmt.Errorf("load unattached datapath: %w", err)
	}
	return d, nil
}

// Programs are xdp_ingress and tc_egress, to be run on frames that were never on a wire.
// They belong to the datapath.
func (d *Datapath) Programs() (ingress, egress *ebpf.Program) {
	return d.objects.XdpIngress, d.objects.TcEgress
}

// VerifiedSources is how many sources that completed a handshake have an exact entry now.
func (d *Datapath) VerifiedSources() (uint64, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, fmt.Errorf("count possible CPUs: %w", err)
	}
	perCPU := make([]bpf.GatewayTableEvents, cpus)
	if err := d.objects.TableCounts.Lookup(uint32(0), perCPU); err != nil {
		return 0, fmt.Errorf("read counts of tables: %w", err)
	}
	var n uint64
	for _, c := range perCPU {
		n += c.VerifiedAdded - c.VerifiedIdle - c.VerifiedLive // in modular arithmetic: CPUs may differ
	}
	return n, nil
}
