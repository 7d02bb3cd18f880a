// SPDX-License-Identifier: Apache-2.0

package packettest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// LargestFrame is the length of the longest frame that Hostile makes.
const LargestFrame = 1514

// Hostile makes n frames that a parser may trip over: cut anywhere, tags up to eight
// deep, extension headers up to 64, fragments, lengths that lie, every protocol and all
// TCP flags, bytes changed at random, garbage. The same seed gives the same frames, of
// 14 to LargestFrame bytes, and any thousand of them have some of each kind. visit
// may keep the frame only until it returns.
func Hostile(seed uint64, n int, visit func(i int, frame []byte)) {
	h := &hostile{rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))}
	kinds := []func() []byte{
		h.plain, h.cut, h.tagged, h.extended, h.options, h.fragmented, h.lying, h.protocol, h.flags, h.mutated, h.mutated, h.garbage, h.spliced,
	}
	for i := range n {
		frame := kinds[i%len(kinds)]()
		if len(frame) < EthernetLen {
			frame = append(frame, make([]byte, EthernetLen-len(frame))...)
		}
		visit(i, frame[:min(len(frame), LargestFrame)])
	}
}

type hostile struct{ *rand.Rand }

func (h *hostile) oneIn(n int) bool { return h.IntN(n) == 0 }

func (h *hostile) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(h.Uint32())
	}
	return b
}

func (h *hostile) address(six bool) netip.Addr {
	if six {
		b := [16]byte{0x20, 1, 0x0d, 0xb8}
		copy(b[8:], h.bytes(8))
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(h.IntN(256))})
}

// port is often one that means something.
func (h *hostile) port() uint16 {
	return []uint16{67, 68, 546, 547, 53, 443, uint16(h.Uint32())}[h.IntN(7)]
}

func (h *hostile) endpoint(six bool) netip.AddrPort {
	return netip.AddrPortFrom(h.address(six), h.port())
}

// plain is a valid packet.
func (h *hostile) plain() []byte {
	six := h.oneIn(2)
	src, dst := h.endpoint(six), h.endpoint(six)
	switch h.IntN(6) {
	case 0, 1:
		return Pad(TCPSegment(src, dst, []uint8{SYN, ACK, SYN | ACK, RST, FIN | ACK}[h.IntN(5)]), h.IntN(3)*h.IntN(400))
	case 2, 3:
		return UDPDatagram(src, dst, h.bytes(h.IntN(64)))
	case 4:
		f := ICMPMessage(src.Addr(), dst.Addr(), []uint8{0, 2, 3, 8, 128, 132, 133, 134, 135, 136, 137, 138}[h.IntN(12)], uint8(h.IntN(6)))
		if six {
			f[EthernetLen+7] = []uint8{255, 254, 64, 0}[h.IntN(4)]
		}
		return f
	}
	return Ethernet([]uint16{TypeARP, TypeLLDP, 0x0026, 0x8847, 0x88cc, 0x9100, 0x0801, 0x86de}[h.IntN(8)], h.bytes(h.IntN(60)))
}

func (h *hostile) cut() []byte {
	f := h.plain()
	if h.oneIn(2) {
		f = h.anyOf(h.tagged, h.extended, h.options, h.fragmented)
	}
	return Cut(f, EthernetLen+h.IntN(len(f)-EthernetLen+1))
}

func (h *hostile) anyOf(kinds ...func() []byte) []byte { return kinds[h.IntN(len(kinds))]() }

func (h *hostile) tagged() []byte {
	var tags []uint16
	for range h.IntN(9) {
		tags = append(tags, []uint16{TypeVLAN, TypeQinQ}[h.IntN(2)])
	}
	return VLAN(h.plain(), tags...)
}

func (h *hostile) six() []byte {
	src, dst := h.endpoint(true), h.endpoint(true)
	return [][]byte{
		TCPSegment(src, dst, ACK), UDPDatagram(src, dst, h.bytes(h.IntN(20))), ICMPMessage(src.Addr(), dst.Addr(), 135, 0),
		IP(src.Addr(), dst.Addr(), 59, nil),
	}[h.IntN(4)]
}

func (h *hostile) extended() []byte {
	var headers []uint8
	n := h.IntN(11)
	if h.oneIn(8) {
		n = h.IntN(65)
	}
	for range n {
		headers = append(headers, []uint8{HopByHop, Routing, Fragment, Destination, Destination, 51, 50, 135, 59}[h.IntN(9)/(1+h.IntN(3))])
	}
	f := Extend(h.six(), headers...)
	// Fragments, and lengths that are not theirs.
	for i := range headers {
		at := EthernetLen + IPv6Len + 8*i
		switch {
		case h.oneIn(12):
			f[at+1] = uint8(h.IntN(256) / (1 + h.IntN(100)))
		case headers[i] == Fragment && h.oneIn(3):
			f[at+2], f[at+3] = byte(h.IntN(2)*h.IntN(256)), byte(h.IntN(256))
		}
	}
	return f
}

func (h *hostile) options() []byte {
	src, dst := h.endpoint(false), h.endpoint(false)
	return WithOptions(TCPSegment(src, dst, ACK), 4*h.IntN(11))
}

func (h *hostile) fragmented() []byte {
	src, dst := h.endpoint(false), h.endpoint(false)
	f := UDPDatagram(src, dst, h.bytes(h.IntN(40)))
	if h.oneIn(2) {
		f = TCPSegment(src, dst, SYN)
	}
	offset := uint16(h.IntN(3)) << 13 // none, more, do not
	if h.oneIn(2) {
		offset |= uint16(h.IntN(0x2000))
	}
	binary.BigEndian.PutUint16(f[EthernetLen+6:], offset)
	if h.oneIn(3) { // the datagram is longer than its first fragment
		binary.BigEndian.PutUint16(f[EthernetLen+IPv4Len+4:], uint16(h.IntN(65536)))
	}
	return f
}

func (h *hostile) lying() []byte {
	f := append([]byte(nil), h.anyOf(h.plain, h.tagged, h.extended, h.options, h.fragmented)...)
	for range 1 + h.IntN(2) {
		at := []int{EthernetLen, EthernetLen + 2, EthernetLen + 3, EthernetLen + 4, EthernetLen + 5, EthernetLen + IPv4Len + 4, EthernetLen + IPv4Len + 5,
			EthernetLen + IPv4Len + 12, EthernetLen + IPv6Len + 4, EthernetLen + IPv6Len + 5, EthernetLen + IPv6Len + 12}[h.IntN(11)]
		if at < len(f) {
			f[at] = byte(h.Uint32())
		}
	}
	return f
}

func (h *hostile) protocol() []byte {
	six := h.oneIn(2)
	return IP(h.address(six), h.address(six), uint8(h.IntN(256)), h.bytes(h.IntN(80)))
}

func (h *hostile) flags() []byte {
	six := h.oneIn(2)
	f := TCPSegment(h.endpoint(six), h.endpoint(six), uint8(h.IntN(256)))
	f[len(f)-TCPLen+12] |= byte(h.IntN(2)) // the ninth flag
	return f
}

func (h *hostile) mutated() []byte {
	f := append([]byte(nil), h.anyOf(h.plain, h.tagged, h.extended, h.options, h.fragmented, h.flags)...)
	for range 1 + h.IntN(4) {
		at := h.IntN(min(len(f), 12+h.IntN(80)))
		if h.oneIn(2) {
			f[at] ^= 1 << h.IntN(8)
		} else {
			f[at] = byte(h.Uint32())
		}
	}
	return f
}

func (h *hostile) garbage() []byte {
	f := h.bytes(EthernetLen + h.IntN(120))
	if h.oneIn(2) {
		binary.BigEndian.PutUint16(f[12:], []uint16{TypeIPv4, TypeIPv6, TypeVLAN, TypeQinQ}[h.IntN(4)])
	}
	if len(f) > EthernetLen && h.oneIn(2) {
		f[EthernetLen] = []byte{0x45, 0x46, 0x60, 0x4f}[h.IntN(4)]
	}
	return f
}

// spliced has the head of one frame and the tail of another.
func (h *hostile) spliced() []byte {
	a, b := h.anyOf(h.plain, h.tagged, h.extended), h.anyOf(h.plain, h.options, h.fragmented)
	return append(Cut(a, 12+h.IntN(len(a)-11)), b[h.IntN(len(b)):]...)
}
