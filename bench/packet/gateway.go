// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xgw-project/xgw/pkg/datapath"
	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

const ours = "xgw"

// gateway is xgw's kernel plane with tables of its own.
type gateway struct {
	*lane
	datapath *datapath.Datapath
	counters datapath.Counters
}

func newGateway(tables *policy.Tables, pinholes []policy.Pinhole) (*gateway, error) {
	d, err := datapath.Unattached(1)
	if err != nil {
		return nil, err
	}
	g := &gateway{datapath: d}
	err = d.SetPinholes(pinholes)
	if err == nil {
		err = d.Apply(tables)
	}
	if err == nil {
		ingress, _ := d.Programs()
		g.lane, err = newLane(ours, ingress, g.read)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return g, nil
}

func (g *gateway) read() (map[string]uint64, error) {
	if err := g.datapath.Counters(&g.counters); err != nil {
		return nil, err
	}
	counts := map[string]uint64{}
	for _, c := range g.counters.Ingress {
		counts[c.Verdict+"_"+c.Reason] += c.Packets
	}
	return counts, nil
}

func (g *gateway) Close() error {
	err := g.lane.Close()
	if e := g.datapath.Close(); err == nil {
		err = e
	}
	return err
}

// hold gives a verdict on a source that sends nothing: verdicts are looked for while there are any.
func (g *gateway) hold() error {
	_, _, err := g.datapath.SetVerdict(datapath.Verdict{Source: netip.MustParseAddr("198.18.255.255"), Step: datapath.DropAll, TTL: time.Hour})
	return err
}

// shake lets each source complete a handshake, as it would: a SYN-ACK leaves, the ACK
// that answers it arrives.
func (g *gateway) shake(sources []netip.Addr) error {
	ingress, egress := g.datapath.Programs()
	for _, s := range sources {
		client, server := netip.AddrPortFrom(s, clientPort), serverOf(s)
		answer := Pad(TCPSegment(server, client, SYN|ACK), 6) // its sequence number is 0
		ack := Pad(TCPSegment(client, server, ACK), 6)
		header := EthernetLen + IPv4Len
		if s.Is6() {
			header = EthernetLen + IPv6Len
		}
		binary.BigEndian.PutUint32(ack[header+8:], 1)
		if _, err := egress.Run(&ebpf.RunOptions{Data: answer}); err != nil {
			return fmt.Errorf("send SYN-ACK to %s: %w", s, err)
		}
		if _, err := ingress.Run(&ebpf.RunOptions{Data: ack}); err != nil {
			return fmt.Errorf("receive ACK of %s: %w", s, err)
		}
	}
	n, err := g.datapath.VerifiedSources()
	// A set of the table holds eight: of so many sources a few find theirs full.
	if err == nil && n < uint64(len(sources))*99/100 {
		err = fmt.Errorf("%d of %d sources are in the table of those that completed a handshake", n, len(sources))
	}
	return err
}

// stopped returns the first flowCount sources whose SYNs the source limit drops, once
// they have used up what it gives them. Another one's may have been let by: it shares
// both of its buckets with louder ones, or with sources that the limit knew before.
func (g *gateway) stopped(candidates []netip.Addr) ([]netip.Addr, error) {
	ingress, _ := g.datapath.Programs()
	var out []netip.Addr
	for _, s := range candidates {
		syn := Pad(TCPSegment(netip.AddrPortFrom(s, clientPort), serverOf(s), SYN), 6)
		var action uint32
		for range 4 {
			var err error
			if action, err = ingress.Run(&ebpf.RunOptions{Data: syn}); err != nil {
				return nil, fmt.Errorf("receive SYN of %s: %w", s, err)
			}
		}
		if action == xdpDrop {
			out = append(out, s)
		}
		if len(out) == flowCount {
			return out, nil
		}
	}
	return nil, fmt.Errorf("the source limit stops %d of %d sources", len(out), len(candidates))
}
