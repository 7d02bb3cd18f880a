// SPDX-License-Identifier: Apache-2.0

// Package reference says what the kernel plane must make of a frame while no rules and
// limits are in force: the same decisions as bpf/parse.h, written a second time from the
// RFCs, for tests to compare with.
package reference

import (
	"encoding/binary"
	"net/netip"
)

// Packet is what is known of a frame.
type Packet struct {
	Outcome         string
	Source          netip.Addr // invalid when there is no IP header
	Protocol        int        // -1 when it is not known
	SourcePort      uint16
	DestinationPort uint16
	Flags           uint8 // TCP
	Type            uint8 // ICMP
}

// Classify is Parse, for who wants the outcome alone.
func Classify(frame []byte) string { return Parse(frame).Outcome }

const (
	tagCustomer, tagService           = 0x8100, 0x88a8
	typeIPv4, typeIPv6, typeARP       = 0x0800, 0x86dd, 0x0806
	mostTags, mostExtensions          = 2, 8
	icmp, tcp, udp, icmp6             = 1, 6, 17, 58
	hopByHop, routing, fragment       = 0, 43, 44
	destinationOptions                = 60
	fin, syn, rst, ack          uint8 = 1, 2, 4, 16
)

// Parse reads the frame from its Ethernet header.
func Parse(frame []byte) Packet {
	p := &Packet{Protocol: -1}
	p.Outcome = p.ethernet(frame)
	return *p
}

func (p *Packet) ethernet(frame []byte) string {
	if len(frame) < 14 {
		return "drop_truncated"
	}
	kind, rest := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for tags := 0; kind == tagCustomer || kind == tagService; tags++ {
		if tags == mostTags {
			return "pass_deep_vlan"
		}
		if len(rest) < 4 {
			return "drop_truncated"
		}
		kind, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	switch kind {
	case typeIPv4:
		return p.ipv4(rest)
	case typeIPv6:
		return p.ipv6(rest)
	case typeARP:
		return "pass_arp"
	}
	return "pass_not_ip"
}

// ipv4: RFC 791.
func (p *Packet) ipv4(b []byte) string {
	if len(b) < 20 {
		return "drop_truncated"
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 != 4 || header < 20 || total < header {
		return "drop_malformed"
	}
	if total > len(b) {
		return "drop_truncated"
	}
	p.Source, p.Protocol = netip.AddrFrom4([4]byte(b[12:16])), int(b[9])
	fragmentation := binary.BigEndian.Uint16(b[6:])
	if fragmentation&0x1fff != 0 {
		return "pass_fragment"
	}
	return p.transport(b[header:total], fragmentation&0x2000 != 0, 0)
}

// ipv6: RFC 8200.
func (p *Packet) ipv6(b []byte) string {
	if len(b) < 40 {
		return "drop_truncated"
	}
	if b[0]>>4 != 6 {
		return "drop_malformed"
	}
	payload, length := b[40:], int(binary.BigEndian.Uint16(b[4:]))
	if length > len(payload) {
		return "drop_truncated"
	}
	// A jumbogram has length 0 and says how long it is behind a hop-by-hop header.
	if length != 0 || b[6] != hopByHop {
		payload = payload[:length]
	}
	p.Source = netip.AddrFrom16([16]byte(b[8:24]))
	next, isFirst := b[6], false
	for n := 0; next == hopByHop || next == routing || next == fragment || next == destinationOptions; n++ {
		if n == mostExtensions {
			p.Protocol = int(next)
			return "pass_deep_ext"
		}
		size := 8
		if next != fragment {
			if len(payload) < 2 {
				return "drop_truncated"
			}
			size += int(payload[1]) * 8
		}
		if len(payload) < size {
			return "drop_truncated"
		}
		if next == fragment {
			where := binary.BigEndian.Uint16(payload[2:])
			if where>>3 != 0 {
				p.Protocol = int(payload[0])
				return "pass_fragment"
			}
			isFirst = where&1 != 0
		}
		next, payload = payload[0], payload[size:]
	}
	p.Protocol = int(next)
	return p.transport(payload, isFirst, b[7])
}

// transport: isFirst is of a fragment whose datagram goes on elsewhere.
func (p *Packet) transport(b []byte, isFirst bool, hopLimit uint8) string {
	six := p.Source.Is6()
	switch {
	case p.Protocol == tcp:
		return p.tcp(b)
	case p.Protocol == udp:
		return p.udp(b, isFirst, six)
	case p.Protocol == icmp && !six, p.Protocol == icmp6 && six:
		if len(b) < 8 {
			return "drop_truncated"
		}
		p.Type = b[0]
		return icmpOutcome(b[0], b[1], six, hopLimit)
	}
	return "pass_other_ip"
}

// icmpOutcome: RFC 792, 4443 and 4861.
func icmpOutcome(kind, code uint8, six bool, hopLimit uint8) string {
	switch {
	case !six && kind == 3 && code == 4, six && kind == 2:
		return "pass_ptb"
	case six && kind >= 133 && kind <= 137 && hopLimit == 255:
		return "pass_nd"
	}
	return "pass_icmp"
}

// tcp: RFC 9293.
func (p *Packet) tcp(b []byte) string {
	if len(b) < 20 {
		return "drop_truncated"
	}
	header := int(b[12]>>4) * 4
	switch {
	case header < 20:
		return "drop_malformed"
	case header > len(b):
		return "drop_truncated"
	}
	p.SourcePort, p.DestinationPort, p.Flags = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[13]
	has := func(bits uint8) bool { return p.Flags&bits == bits }
	switch {
	case p.Flags&(syn|ack|rst|fin) == 0, has(syn | fin), has(syn | rst), has(fin | rst), has(fin) && !has(ack):
		return "drop_tcp_flags"
	}
	return "pass_tcp"
}

// udp: RFC 768, 2675.
func (p *Packet) udp(b []byte, isFirst, six bool) string {
	if len(b) < 8 {
		return "drop_truncated"
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < 8 && (length != 0 || !six) {
		return "drop_malformed"
	}
	if length > len(b) && !isFirst {
		return "drop_truncated"
	}
	p.SourcePort, p.DestinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	from, to := p.SourcePort, p.DestinationPort
	if !six && from == 67 && to == 68 || six && from == 547 && to == 546 {
		return "pass_dhcp"
	}
	return "pass_udp"
}
