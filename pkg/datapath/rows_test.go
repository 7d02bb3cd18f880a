// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
)

// More rows like those of TestPackets: a valid packet, and at most one thing done to it.
func TestMorePackets(t *testing.T) {
	const (
		psh, urg, ece, cwr = 0x08, 0x20, 0x40, 0x80
		ip, l4, l46        = EthernetLen, EthernetLen + IPv4Len, EthernetLen + IPv6Len
	)
	udp4, udp6 := UDPDatagram(client4, server4, []byte("12345")), UDPDatagram(client6, server6, []byte("12345"))
	tcp4, tcp6 := TCPSegment(client4, server4, ACK), TCPSegment(client6, server6, ACK)
	echo4, echo6 := ICMPMessage(client4.Addr(), server4.Addr(), 8, 0), ICMPMessage(client6.Addr(), server6.Addr(), 128, 0)
	nd := func(kind uint8) []byte {
		return Set(ICMPMessage(client6.Addr(), server6.Addr(), kind, 0), ip+7, 255)
	}
	udp := func(from, to string) []byte {
		return UDPDatagram(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), nil)
	}
	arp := Ethernet(TypeARP, make([]byte, 28))
	type row struct {
		name  string
		frame []byte
		want  string
	}
	rows := []row{
		{"AH in IPv4", IP(client4.Addr(), server4.Addr(), 51, make([]byte, 24)), "pass_other_ip"},
		{"AH in IPv6 ends the chain", Extend(tcp6, 51), "pass_other_ip"},
		{"ESP in IPv6", Extend(tcp6, 50), "pass_other_ip"},
		{"mobility header", Extend(tcp6, 135), "pass_other_ip"},
		{"host identity protocol", Extend(tcp6, 139), "pass_other_ip"},
		{"SCTP", IP(client4.Addr(), server4.Addr(), 132, make([]byte, 12)), "pass_other_ip"},
		{"UDP-Lite", IP(client6.Addr(), server6.Addr(), 136, make([]byte, 8)), "pass_other_ip"},
		{"IPv6 in IPv4", IP(client4.Addr(), server4.Addr(), 41, make([]byte, 40)), "pass_other_ip"},
		{"IPv4 in IPv6", IP(client6.Addr(), server6.Addr(), 4, make([]byte, 20)), "pass_other_ip"},
		{"IGMP", IP(client4.Addr(), server4.Addr(), 2, make([]byte, 8)), "pass_other_ip"},
		{"VRRP", IP(client4.Addr(), server4.Addr(), 112, make([]byte, 8)), "pass_other_ip"},
		{"OSPF", IP(client4.Addr(), server4.Addr(), 89, make([]byte, 8)), "pass_other_ip"},
		{"protocol 255", IP(client4.Addr(), server4.Addr(), 255, nil), "pass_other_ip"},
		{"hop-by-hop number in IPv4", IP(client4.Addr(), server4.Addr(), HopByHop, make([]byte, 8)), "pass_other_ip"},
		{"fragment number in IPv4", IP(client4.Addr(), server4.Addr(), Fragment, make([]byte, 8)), "pass_other_ip"},
		{"ICMPv4 in IPv6", IP(client6.Addr(), server6.Addr(), ICMP, make([]byte, 8)), "pass_other_ip"},

		{"neighbour advertisement", nd(136), "pass_nd"},
		{"router advertisement", nd(134), "pass_nd"},
		{"first type above discovery", nd(138), "pass_icmp"},
		{"discovery in a VLAN", VLAN(nd(135), TypeVLAN), "pass_nd"},
		{"discovery with hop limit 1", Set(nd(135), ip+7, 1), "pass_icmp"},
		{"discovery cut", Set(Cut(nd(135), l46+7), ip+4, 0, 7), "drop_truncated"},
		{"echo reply", Set(echo4, l4, 0), "pass_icmp"},
		{"echo reply, IPv6", Set(echo6, l46, 129), "pass_icmp"},
		{"time exceeded", Set(echo4, l4, 11, 0), "pass_icmp"},
		{"time exceeded, IPv6", Set(echo6, l46, 3, 0), "pass_icmp"},
		{"unreachable, IPv6", Set(echo6, l46, 1, 4), "pass_icmp"},
		{"parameter problem", Set(echo6, l46, 4, 1), "pass_icmp"},
		{"fragmentation needed behind options", WithOptions(Set(echo4, l4, 3, 4), 12), "pass_ptb"},
		{"packet too big behind hop-by-hop", Extend(Set(echo6, l46, 2), HopByHop), "pass_ptb"},
		{"IPv6's packet too big number in IPv4", Set(echo4, l4, 2, 0), "pass_icmp"},
		{"redirect, IPv4", Set(echo4, l4, 5, 1), "pass_icmp"},

		{"DHCP reply from a relay's port", udp("192.0.2.1:67", "192.0.2.9:67"), "pass_udp"},
		{"DHCP ports in IPv6", udp("[2001:db8::1]:67", "[2001:db8::2]:68"), "pass_udp"},
		{"DHCPv6 ports in IPv4", udp("192.0.2.1:547", "192.0.2.9:546"), "pass_udp"},
		{"DHCPv6 solicitation", udp("[fe80::2]:546", "[ff02::1:2]:547"), "pass_udp"},
		{"DHCP reply in QinQ", VLAN(udp("192.0.2.1:67", "192.0.2.9:68"), TypeQinQ, TypeVLAN), "pass_dhcp"},
		{"DHCP reply behind options", WithOptions(udp("192.0.2.1:67", "192.0.2.9:68"), 4), "pass_dhcp"},
		{"DHCP ports over TCP", TCPSegment(netip.MustParseAddrPort("192.0.2.1:67"), netip.MustParseAddrPort("192.0.2.9:68"), ACK), "pass_tcp"},

		{"port 0", udp("192.0.2.1:0", "192.0.2.9:0"), "pass_udp"},
		{"empty datagram", udp("192.0.2.1:1", "192.0.2.9:1"), "pass_udp"},
		{"UDP length of the header", Set(udp4, l4+4, 0, 8), "pass_udp"},
		{"UDP length 1", Set(udp6, l46+4, 0, 1), "drop_malformed"},
		{"UDP length 65535", Set(udp4, l4+4, 255, 255), "drop_truncated"},
		{"UDP length one above, IPv6", Set(udp6, l46+4, 0, 14), "drop_truncated"},
		{"UDP length into the padding", Pad(Set(udp4, l4+4, 0, 20), 20), "drop_truncated"},
		{"UDP checksum wrong", Set(udp4, l4+6, 0xde, 0xad), "pass_udp"},
		{"IPv4 checksum wrong", Set(tcp4, ip+10, 0xde, 0xad), "pass_tcp"},
		{"TTL 0", Set(tcp4, ip+8, 0), "pass_tcp"},
		{"traffic class and flow label", Set(tcp6, ip, 0x6f, 0xff, 0xff, 0xff), "pass_tcp"},
		{"IPv4 reserved flag", Set(tcp4, ip+6, 0x80), "pass_tcp"},

		{"TCP with options", Set(Pad(Set(tcp4, ip+2, 0, 44), 4), l4+12, 0x60), "pass_tcp"},
		{"TCP with most options", Set(Pad(Set(tcp4, ip+2, 0, 80), 40), l4+12, 0xf0), "pass_tcp"},
		{"TCP with one option too many", Set(Pad(Set(tcp4, ip+2, 0, 76), 36), l4+12, 0xf0), "drop_truncated"},
		{"TCP with data", Pad(Set(tcp4, ip+2, 0, 140), 100), "pass_tcp"},
		{"TCP header of 0 words", Set(tcp6, l46+12, 0), "drop_malformed"},
		{"reserved TCP bits", Set(tcp4, l4+12, 0x5f), "pass_tcp"},

		{"IPv4 later fragment with more to come", Set(udp4, ip+6, 0x20, 0x10), "pass_fragment"},
		{"later fragment in a VLAN", VLAN(Set(udp4, ip+6, 0, 1), TypeVLAN), "pass_fragment"},
		{"later fragment behind options", WithOptions(Set(tcp4, ip+6, 0, 1), 8), "pass_fragment"},
		{"later fragment without content", Set(Cut(Set(udp4, ip+6, 0, 1), l4), ip+2, 0, 20), "pass_fragment"},
		{"IPv6 later fragment behind hop-by-hop", Set(Extend(udp6, HopByHop, Fragment), l46+8+2, 0, 8), "pass_fragment"},
		{"IPv6 first fragment of TCP", Set(Extend(tcp6, Fragment), l46+2, 0, 1), "pass_tcp"},
		{"IPv6 fragment header twice", Extend(udp6, Fragment, Fragment), "pass_udp"},
		{"tiny IPv6 first fragment of UDP, padded", Set(Set(Extend(udp6, Fragment), l46+2, 0, 1), ip+4, 0, 8+5), "drop_truncated"},
		{"tiny IPv6 first fragment", Set(Cut(Set(Extend(tcp6, Fragment), l46+2, 0, 1), l46+8+19), ip+4, 0, 27), "drop_truncated"},

		{"QinQ the other way round", VLAN(tcp4, TypeVLAN, TypeQinQ), "pass_tcp"},
		{"two service tags", VLAN(tcp6, TypeQinQ, TypeQinQ), "pass_tcp"},
		{"three tags, IPv6", VLAN(tcp6, TypeVLAN, TypeVLAN, TypeVLAN), "pass_deep_vlan"},
		{"an old QinQ type", VLAN(tcp4, 0x9100), "pass_not_ip"},
		{"ARP in QinQ", VLAN(arp, TypeQinQ, TypeVLAN), "pass_arp"},
		{"LLDP in a VLAN", VLAN(Ethernet(TypeLLDP, make([]byte, 46)), TypeVLAN), "pass_not_ip"},
		{"nothing behind a tag", Cut(VLAN(tcp4, TypeVLAN), 18), "drop_truncated"},
		{"nothing behind a tag of ARP", Cut(VLAN(arp, TypeVLAN), 18), "pass_arp"},
		{"MPLS", Ethernet(0x8847, make([]byte, 46)), "pass_not_ip"},
		{"PPPoE", Ethernet(0x8864, make([]byte, 46)), "pass_not_ip"},
		{"ethertype 0", Ethernet(0, make([]byte, 46)), "pass_not_ip"},
		{"ethertype 0xffff", Ethernet(0xffff, make([]byte, 46)), "pass_not_ip"},
		{"empty ARP", Ethernet(TypeARP, nil), "pass_arp"},
		{"IPv4 with IPv6's ethertype", Set(tcp4, 12, 0x86, 0xdd), "drop_malformed"},
		{"IPv6 with IPv4's ethertype", Set(tcp6, 12, 8, 0), "drop_malformed"},
	}
	for _, f := range []struct {
		name  string
		flags uint8
		want  string
	}{
		{"SYN", SYN, "pass_tcp"}, {"SYN with ECN", SYN | ece | cwr, "pass_tcp"}, {"SYN, ACK", SYN | ACK, "pass_tcp"}, {"ACK", ACK, "pass_tcp"},
		{"PSH, ACK", psh | ACK, "pass_tcp"}, {"URG, ACK", urg | ACK, "pass_tcp"}, {"FIN, ACK", FIN | ACK, "pass_tcp"}, {"RST", RST, "pass_tcp"},
		{"RST, ACK", RST | ACK, "pass_tcp"}, {"SYN, PSH", SYN | psh, "pass_tcp"}, {"all but SYN, FIN, RST", ACK | psh | urg | ece | cwr, "pass_tcp"},
		{"none", 0, "drop_tcp_flags"}, {"FIN", FIN, "drop_tcp_flags"}, {"Christmas tree", FIN | psh | urg, "drop_tcp_flags"},
		{"SYN, FIN", SYN | FIN, "drop_tcp_flags"}, {"SYN, FIN, ACK", SYN | FIN | ACK, "drop_tcp_flags"}, {"SYN, RST", SYN | RST, "drop_tcp_flags"},
		{"FIN, RST, ACK", FIN | RST | ACK, "drop_tcp_flags"}, {"PSH", psh, "drop_tcp_flags"}, {"URG", urg, "drop_tcp_flags"}, {"ECE", ece, "drop_tcp_flags"}, {"all", 0xff, "drop_tcp_flags"},
	} {
		rows = append(rows, row{"flags " + f.name, TCPSegment(client4, server4, f.flags), f.want}, row{"flags " + f.name + ", IPv6", TCPSegment(client6, server6, f.flags), f.want})
	}
	if len(rows) < 100 {
		t.Fatalf("only %d rows", len(rows))
	}
	p := newDrivenPlane(t, 2, nil)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { p.expect(t, r.name, r.frame, r.want) })
	}
}
