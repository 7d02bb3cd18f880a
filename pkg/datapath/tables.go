// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/xgw-project/xgw/pkg/bpf"
	"github.com/xgw-project/xgw/pkg/policy"
)

// generation is what one slot of the outer maps is filled with.
type generation struct {
	tables   *bpf.GatewayTables
	ports    []bpf.GatewayPortRow
	prefixes *policy.PrefixTable
}

// encoding is what of the machine the encoding of tables depends on.
type encoding struct {
	cpus  int
	tick  time.Duration // of the coarse clock; 0: there is none
	fixed bool          // inner maps have the size of their template: Linux before 5.10
}

// maxPortLimits is how many ports can have limits.
const maxPortLimits = 16

// reservedFrom is the burst, in packets, from which a shared bucket keeps a quarter of it
// for sources that completed a handshake.
const reservedFrom = 8

// largestFrame is what a byte limit's burst is measured in.
const largestFrame = 1514

// encode turns tables into the values of the maps. live are those that hold now: limits
// of ports keep their slots, and with them their buckets.
func encode(t *policy.Tables, live *bpf.GatewayTables, seed uint64, e encoding) (*generation, error) {
	prefixes, err := policy.NewPrefixTable(t.Prefixes, seed)
	if err != nil {
		return nil, err
	}
	g := &generation{
		tables: &bpf.GatewayTables{
			Generation: live.Generation + 1, StaleAfter: uint64(t.StaleAfter), Guard: bpf.GatewayGuardMode(t.PortGuard.Mode),
		},
		ports: make([]bpf.GatewayPortRow, 1024), prefixes: prefixes,
	}
	g.encodeHeads(prefixes)
	budgets := t.Budgets
	g.tables.Essential = encodeBudget(budgets.Essential)
	g.tables.Echo = encodeBudget(budgets.Echo)
	g.tables.Unclassified = encodeBudget(budgets.Unclassified)
	if budgets != (policy.Budgets{}) {
		g.tables.Features |= bpf.GatewayFeatureFEATURE_BUDGETS
	}
	g.encodeGuard(&t.PortGuard)
	if err := g.placePorts(t, live); err != nil {
		return nil, err
	}
	coarse := e.tick > 0
	for _, l := range t.Limits {
		if err := g.encodeLimit(l, e); err != nil {
			return nil, fmt.Errorf("packet limit %s: %w", l.Name, err)
		}
		// With less than some ticks of burst, the coarse clock would cost part of the rate.
		coarse = coarse && l.Tolerance>>6 >= 4*uint64(e.tick)
	}
	if coarse && len(t.Limits) > 0 {
		g.tables.Features |= bpf.GatewayFeatureFEATURE_COARSE
	}
	return g, nil
}

func (g *generation) encodeHeads(p *policy.PrefixTable) {
	for i, h := range p.Heads {
		out := &g.tables.Prefixes[i]
		*out = bpf.GatewayPrefixHead{Always: h.Always, Entries: h.Entries, First: h.First, Mask: h.Mask, Family: h.Family}
		copy(out.Lengths[:], h.Lengths)
		if h.Entries > 0 {
			g.tables.Features |= bpf.GatewayFeatureFEATURE_PREFIXES
		}
	}
}

func encodeBudget(b policy.Budget) bpf.GatewayBudget {
	return bpf.GatewayBudget{Cost: b.Cost, Tolerance: b.Tolerance}
}

func (g *generation) encodeGuard(p *policy.PortGuard) {
	if p.Mode != policy.GuardOff {
		g.tables.Features |= bpf.GatewayFeatureFEATURE_GUARD
	}
	for _, port := range p.TCP {
		g.ports[port/64].Tcp |= 1 << (port % 64)
	}
	for _, port := range p.UDP {
		g.ports[port/64].Udp |= 1 << (port % 64)
	}
}

// placePorts gives each port with limits a place: the one it has now, or a free one.
func (g *generation) placePorts(t *policy.Tables, live *bpf.GatewayTables) error {
	ports := sortedPorts(t)
	if len(ports) > maxPortLimits {
		return fmt.Errorf("%d ports have packet limits: %d can", len(ports), maxPortLimits)
	}
	var homeless []uint16
	for _, port := range ports {
		placed := false
		for i := range live.Port {
			if live.Port[i].Port == uint32(port) {
				g.tables.Port[i].Port, placed = uint32(port), true
			}
		}
		if !placed {
			homeless = append(homeless, port)
		}
	}
	// Places that were in use until now come last, so that their buckets rest a while.
	for _, fresh := range []bool{true, false} {
		for i := range g.tables.Port {
			if len(homeless) == 0 {
				break
			}
			if g.tables.Port[i].Port == 0 && (live.Port[i].Port == 0) == fresh {
				g.tables.Port[i].Port, homeless = uint32(homeless[0]), homeless[1:]
			}
		}
	}
	for i, p := range g.tables.Port {
		if p.Port != 0 {
			g.ports[p.Port/64].Limit[p.Port%64] = uint8(i + 1)
		}
	}
	return nil
}

func (g *generation) encodeLimit(l policy.PacketLimit, e encoding) error {
	if l.Count > policy.Bytes {
		return fmt.Errorf("count %d has no place in the kernel plane", l.Count)
	}
	t := g.tables
	count := int(l.Count)
	var place *bpf.GatewayLimit
	var slot int
	shared := true // by many sources
	switch l.Key {
	case policy.ByQueue:
		place, slot = &t.Queue[count], int(bpf.GatewayLimitSlotSLOT_QUEUE)
	case policy.BySource:
		place, slot, shared = &t.Source[count], int(bpf.GatewayLimitSlotSLOT_SOURCE), false
	case policy.ByPrefix:
		place, slot = &t.Prefix[count], int(bpf.GatewayLimitSlotSLOT_PREFIX)
	case policy.ByInterface:
		place, slot = &t.Interface[count], int(bpf.GatewayLimitSlotSLOT_INTERFACE)
	case policy.ByPort:
		i := int(g.ports[l.Port/64].Limit[l.Port%64]) - 1
		if i < 0 {
			return errors.New("its port has no place")
		}
		place, slot = &t.Port[i].Limit[count], int(bpf.GatewayLimitSlotSLOT_PORT)+3*i
	default:
		return fmt.Errorf("key %d has no place in the kernel plane", l.Key)
	}
	if place.Cost != 0 {
		return errors.New("another limit has the same key and count")
	}
	*place = bpf.GatewayLimit{Cost: l.Cost, Tolerance: l.Tolerance, Slot: bpf.GatewayLimitSlot(slot + count)}
	for i := range min(len(l.Name), len(place.Name)-1) {
		place.Name[i] = int8(l.Name[i])
	}
	if l.DryRun {
		place.DryRun = 1
	}
	if shared && l.Tolerance >= reservedFrom*frameCost(l) {
		place.Reserve = l.Tolerance / 4
	}
	if l.Key == policy.ByPort || l.Key == policy.ByInterface {
		place.Batch = e.batchOf(l)
	}
	t.Active |= 1 << (min(slot, int(bpf.GatewayLimitSlotSLOT_PORT)) + count)
	return nil
}

// batchOf is what a CPU takes at once from a bucket that all CPUs share, in 2^-6 ns. All of
// them together hold at most an eighth of the burst in advance, which is by how much such
// a limit may be exceeded.
func (e *encoding) batchOf(l policy.PacketLimit) uint64 {
	return min(l.Tolerance/8/uint64(max(e.cpus, 1)), 64*frameCost(l))
}

// frameCost is that of one packet, or of the largest usual frame, in 2^-6 ns.
func frameCost(l policy.PacketLimit) uint64 {
	if l.Count == policy.Bytes {
		return l.Cost * largestFrame >> 10
	}
	return l.Cost >> 10
}

const maxPinholes = 8

func encodePinholes(holes []policy.Pinhole) (*bpf.GatewayPinholeList, error) {
	if len(holes) > maxPinholes {
		return nil, fmt.Errorf("%d pinholes: %d are possible", len(holes), maxPinholes)
	}
	list := &bpf.GatewayPinholeList{Count: uint64(len(holes))}
	for i, h := range holes {
		if !h.Source.IsValid() || h.Port == 0 {
			return nil, fmt.Errorf("pinhole %d: it needs a source and a port", i+1)
		}
		p, bits := h.Source.Masked(), h.Source.Bits()
		a := p.Addr().As16()
		if p.Addr().Is4() {
			// As the program compares: IPv4 without the ffff of mapped addresses' upper half.
			key := policy.AddressKey(p.Addr())
			list.Entry[i] = bpf.GatewayPinhole{Low: key, LowMask: ^uint64(0) << (32 - bits), Port: uint32(h.Port)}
			list.Entry[i].HighMask = ^uint64(0)
			continue
		}
		list.Entry[i] = bpf.GatewayPinhole{
			High: binary.BigEndian.Uint64(a[:]), Low: binary.BigEndian.Uint64(a[8:]),
			HighMask: highMask(bits), LowMask: highMask(bits - 64), Port: uint32(h.Port),
		}
	}
	return list, nil
}

// highMask has the first bits set, 0 to 64 of them.
func highMask(bits int) uint64 {
	bits = min(max(bits, 0), 64)
	return ^(^uint64(0) >> bits)
}
