// SPDX-License-Identifier: Apache-2.0

package reference

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/xgw-project/xgw/pkg/datapath/packettest"
)

// differences are where the two parsers may disagree, each with its reason. One that no
// frame needs any more fails the test.
var differences = []struct {
	name, why string
	holds     func(ours Packet, theirs seen) bool
}{
	{
		"first fragment", "gopacket leaves the first fragment of a datagram unread; it carries the ports (RFC 791, RFC 8200 4.5)",
		func(_ Packet, theirs seen) bool { return theirs.fragment },
	},
	{
		"contents of extension headers", "gopacket stops at options and repeated headers that a router steps over, and a host judges (RFC 8200 4)",
		func(ours Packet, theirs seen) bool { return theirs.failed && ours.Source.Is6() && theirs.extension },
	},
	{
		"options", "gopacket refuses TCP or IPv4 options whose own lengths lie; they are the stack's affair (RFC 9293 3.1)",
		func(_ Packet, theirs seen) bool { return theirs.failed && theirs.options },
	},
}

// seen is what gopacket makes of a frame.
type seen struct {
	source      netip.Addr
	transport   gopacket.LayerType
	from, to    uint16
	flags, kind uint8
	fragment    bool // some fragment header or offset
	extension   bool
	options     bool
	failed      bool
}

func look(frame []byte) (s seen) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true, Lazy: false, SkipDecodeRecovery: false})
	for _, l := range p.Layers() {
		if s.transport != 0 {
			break // what is inside of a datagram is no affair of ours
		}
		s.layer(l)
	}
	s.failed = p.ErrorLayer() != nil
	return s
}

func (s *seen) layer(l gopacket.Layer) {
	switch l := l.(type) {
	case *layers.IPv4:
		s.source, _ = netip.AddrFromSlice(l.SrcIP.To4())
		s.fragment = s.fragment || l.FragOffset != 0 || l.Flags&layers.IPv4MoreFragments != 0
		s.options = s.options || l.IHL > 5
	case *layers.IPv6:
		s.source, _ = netip.AddrFromSlice(l.SrcIP)
		s.extension = l.NextHeader == 0 || l.NextHeader == 43 || l.NextHeader == 44 || l.NextHeader == 60
	case *layers.IPv6Fragment:
		s.fragment, s.extension = true, true
	case *layers.IPv6HopByHop, *layers.IPv6Routing, *layers.IPv6Destination:
		s.extension = true
	case *layers.TCP:
		s.transport, s.from, s.to = layers.LayerTypeTCP, uint16(l.SrcPort), uint16(l.DstPort)
		for i, set := range []bool{l.FIN, l.SYN, l.RST, l.PSH, l.ACK, l.URG, l.ECE, l.CWR} {
			if set {
				s.flags |= 1 << i
			}
		}
		s.options = s.options || l.DataOffset > 5
	case *layers.UDP:
		s.transport, s.from, s.to = layers.LayerTypeUDP, uint16(l.SrcPort), uint16(l.DstPort)
	case *layers.ICMPv4:
		s.transport, s.kind = layers.LayerTypeICMPv4, l.TypeCode.Type()
	case *layers.ICMPv6:
		s.transport, s.kind = layers.LayerTypeICMPv6, l.TypeCode.Type()
	}
}

// disagree says how the two differ about a frame that ours classified; "" for not at all.
func disagree(ours Packet, theirs seen) string {
	wants := map[string]gopacket.LayerType{
		"pass_tcp": layers.LayerTypeTCP, "drop_tcp_flags": layers.LayerTypeTCP, "pass_udp": layers.LayerTypeUDP, "pass_dhcp": layers.LayerTypeUDP,
	}
	want, known := wants[ours.Outcome]
	if ours.Outcome == "pass_icmp" || ours.Outcome == "pass_nd" || ours.Outcome == "pass_ptb" {
		known, want = true, layers.LayerTypeICMPv4
		if ours.Source.Is6() {
			want = layers.LayerTypeICMPv6
		}
	}
	if !known {
		return ""
	}
	switch {
	case theirs.source != ours.Source:
		return fmt.Sprintf("source %s, gopacket %s", ours.Source, theirs.source)
	case theirs.transport != want:
		return fmt.Sprintf("%s, gopacket %s", want, theirs.transport)
	case theirs.from != ours.SourcePort || theirs.to != ours.DestinationPort:
		return fmt.Sprintf("ports %d to %d, gopacket %d to %d", ours.SourcePort, ours.DestinationPort, theirs.from, theirs.to)
	case theirs.flags != ours.Flags:
		return fmt.Sprintf("flags %x, gopacket %x", ours.Flags, theirs.flags)
	case theirs.kind != ours.Type:
		return fmt.Sprintf("ICMP type %d, gopacket %d", ours.Type, theirs.kind)
	}
	return ""
}

// A million frames, read by two parsers that know nothing of each other.
func TestAgreesWithGopacket(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	met := make([]int, len(differences))
	compared, failures := 0, 0
	packettest.Hostile(4, n, func(i int, frame []byte) {
		ours, theirs := Parse(frame), look(frame)
		what := disagree(ours, theirs)
		compared++
		if what == "" {
			return
		}
		for d := range differences {
			if differences[d].holds(ours, theirs) {
				met[d]++
				return
			}
		}
		if failures++; failures <= 10 {
			t.Errorf("frame %d: %s (%s): %+v\n%x", i, what, ours.Outcome, theirs, frame)
		}
	})
	for d, times := range met {
		t.Logf("%6d times: %s: %s", times, differences[d].name, differences[d].why)
		if times == 0 {
			t.Errorf("%s: never met: take it out of the table", differences[d].name)
		}
	}
	t.Logf("%d frames, %d disagreements outside of the table", compared, failures)
}
