// SPDX-License-Identifier: Apache-2.0

// Package packettest builds Ethernet frames byte by byte, so that a test can say
// "a valid packet, and this one thing wrong with it". Lengths and checksums of
// what it returns are right; a mutation is what makes them wrong.
package packettest

import (
	"encoding/binary"
	"net/netip"
)

// Offsets of a frame without VLAN tags.
const (
	EthernetLen = 14
	IPv4Len     = 20
	IPv6Len     = 40
	TCPLen      = 20
	UDPLen      = 8
)

// TCP flag bits.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

// IP protocol numbers used by the rows.
const (
	HopByHop    = 0
	ICMP        = 1
	TCP         = 6
	UDP         = 17
	Routing     = 43
	Fragment    = 44
	GRE         = 47
	ICMPv6      = 58
	Destination = 60
)

// Ethertypes.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
	TypeQinQ = 0x88a8
	TypeLLDP = 0x88cc
)

// Ethernet puts a header in front of the payload.
func Ethernet(ethertype uint16, payload []byte) []byte {
	f := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0, 0}
	binary.BigEndian.PutUint16(f[12:], ethertype)
	return append(f, payload...)
}

// IP wraps the payload in IPv4 or IPv6, by the family of src, and Ethernet.
func IP(src, dst netip.Addr, protocol uint8, payload []byte) []byte {
	if src.Is4() {
		h := make([]byte, IPv4Len, IPv4Len+len(payload))
		h[0], h[8], h[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(h[2:], uint16(IPv4Len+len(payload)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], ^fold(sum(h)))
		return Ethernet(TypeIPv4, append(h, payload...))
	}
	h := make([]byte, IPv6Len, IPv6Len+len(payload))
	h[0], h[6], h[7] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return Ethernet(TypeIPv6, append(h, payload...))
}

// TCPSegment is a TCP packet without payload.
func TCPSegment(src, dst netip.AddrPort, flags uint8) []byte {
	h := make([]byte, TCPLen)
	binary.BigEndian.PutUint16(h, src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	h[12], h[13] = TCPLen/4<<4, flags
	binary.BigEndian.PutUint16(h[14:], 0xffff)
	binary.BigEndian.PutUint16(h[16:], checksum(src.Addr(), dst.Addr(), TCP, h))
	return IP(src.Addr(), dst.Addr(), TCP, h)
}

// UDPDatagram is a UDP packet.
func UDPDatagram(src, dst netip.AddrPort, payload []byte) []byte {
	h := make([]byte, UDPLen, UDPLen+len(payload))
	binary.BigEndian.PutUint16(h, src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(UDPLen+len(payload)))
	h = append(h, payload...)
	binary.BigEndian.PutUint16(h[6:], checksum(src.Addr(), dst.Addr(), UDP, h))
	return IP(src.Addr(), dst.Addr(), UDP, h)
}

// ICMPMessage is an 8-byte ICMP or ICMPv6 message, by the family of src.
func ICMPMessage(src, dst netip.Addr, typ, code uint8) []byte {
	h := []byte{typ, code, 0, 0, 0, 0, 0, 0}
	if src.Is4() {
		binary.BigEndian.PutUint16(h[2:], ^fold(sum(h)))
		return IP(src, dst, ICMP, h)
	}
	binary.BigEndian.PutUint16(h[2:], checksum(src, dst, ICMPv6, h))
	return IP(src, dst, ICMPv6, h)
}

// VLAN puts tags, the outermost first, between the addresses and the ethertype.
func VLAN(frame []byte, ethertypes ...uint16) []byte {
	var tags []byte
	for i, t := range ethertypes {
		tags = binary.BigEndian.AppendUint16(tags, t)
		tags = binary.BigEndian.AppendUint16(tags, uint16(100+i))
	}
	out := append([]byte(nil), frame[:12]...)
	return append(append(out, tags...), frame[12:]...)
}

// Extend puts IPv6 extension headers of 8 bytes each between the IPv6 header and
// what follows it. Fragment headers are those of a whole datagram.
func Extend(frame []byte, protocols ...uint8) []byte {
	next := frame[EthernetLen+6]
	var headers []byte
	for i := range protocols {
		h := make([]byte, 8)
		h[0] = next
		if i+1 < len(protocols) {
			h[0] = protocols[i+1]
		}
		headers = append(headers, h...)
	}
	out := append([]byte(nil), frame[:EthernetLen+IPv6Len]...)
	out = append(append(out, headers...), frame[EthernetLen+IPv6Len:]...)
	if len(protocols) > 0 {
		out[EthernetLen+6] = protocols[0]
	}
	binary.BigEndian.PutUint16(out[EthernetLen+4:], uint16(len(out)-EthernetLen-IPv6Len))
	return out
}

// WithOptions puts n bytes (a multiple of 4, at most 40) of no-operation options into
// an IPv4 header.
func WithOptions(frame []byte, n int) []byte {
	out := append([]byte(nil), frame[:EthernetLen+IPv4Len]...)
	for range n {
		out = append(out, 1)
	}
	out = append(out, frame[EthernetLen+IPv4Len:]...)
	h := out[EthernetLen : EthernetLen+IPv4Len+n]
	h[0] = 0x40 | uint8((IPv4Len+n)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(out)-EthernetLen))
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^fold(sum(h)))
	return out
}

// Set returns the frame with bytes written at the offset.
func Set(frame []byte, offset int, bytes ...byte) []byte {
	out := append([]byte(nil), frame...)
	copy(out[offset:], bytes)
	return out
}

// Cut returns the first n bytes of the frame.
func Cut(frame []byte, n int) []byte { return append([]byte(nil), frame[:n]...) }

// Pad returns the frame with n bytes of Ethernet padding.
func Pad(frame []byte, n int) []byte {
	return append(append([]byte(nil), frame...), make([]byte, n)...)
}

func sum(b []byte) uint32 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// checksum covers the pseudo header of RFC 793 and RFC 8200.
func checksum(src, dst netip.Addr, protocol uint8, segment []byte) uint16 {
	s := sum(src.AsSlice()) + sum(dst.AsSlice()) + uint32(protocol) + uint32(len(segment)) + sum(segment)
	return ^fold(s)
}
