// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/xgw-project/xgw/pkg/bpf"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Lane is a TCP connection that no verdict touches, within a budget of 1,000 packets a
// second: it was proved whose it is.
type Lane struct {
	Client netip.AddrPort
	Own    uint16 // the gateway's port
}

const laneRows = 1024

// OpenLane gives the connection its lane. In a row that is full, the one goes that has been
// quiet for the longest time.
func (d *Datapath) OpenLane(l Lane) error {
	return d.changeLane(l, func(row *bpf.GatewayLaneRow, hash uint64) {
		victim := 0
		for i := range row.Entry {
			if row.Entry[i].Flow == hash {
				return
			}
			if row.Entry[i].Tat < row.Entry[victim].Tat {
				victim = i
			}
		}
		row.Entry[victim].Flow, row.Entry[victim].Tat = hash, 0
	})
}

// CloseLane takes it away.
func (d *Datapath) CloseLane(l Lane) error {
	return d.changeLane(l, func(row *bpf.GatewayLaneRow, hash uint64) {
		for i := range row.Entry {
			if row.Entry[i].Flow == hash {
				row.Entry[i].Flow, row.Entry[i].Tat = 0, 0
			}
		}
	})
}

// changeLane rewrites the connection's row; what the kernel plane charges meanwhile is lost.
func (d *Datapath) changeLane(l Lane, change func(row *bpf.GatewayLaneRow, hash uint64)) error {
	hash := policy.FlowHash(l.Client, l.Own, d.seed)
	place := uint32(hash & (laneRows - 1))
	var row bpf.GatewayLaneRow
	if err := d.objects.Lanes.Lookup(place, &row); err != nil {
		return fmt.Errorf("read lanes of %s: %w", d.options.Interface, err)
	}
	change(&row, hash)
	if err := d.objects.Lanes.Put(place, &row); err != nil {
		return fmt.Errorf("write lanes of %s: %w", d.options.Interface, err)
	}
	return nil
}

// Press has three SYNs of four of strangers dropped that come to the CPU, for a time from now.
func (d *Datapath) Press(cpu int, wait time.Duration) error {
	if err := d.objects.Pressure.Put(uint32(cpu), monotonic()+uint64(wait)); err != nil {
		return fmt.Errorf("press CPU %d of %s: %w", cpu, d.options.Interface, err)
	}
	return nil
}
