// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/xgw-project/xgw/bench/packet/rotate"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Sizes of the whole bench; its own test takes smaller ones.
const (
	maxPrefixes  = 100_000 // IPv4; a tenth of it IPv6
	liveSources  = 100_000
	clientPort   = 40000
	servicePort  = 443
	strangersFor = 2 * flowCount
)

var (
	server4 = netip.MustParseAddr("198.51.100.1")
	server6 = netip.MustParseAddr("2001:db8:ffff::1")
)

func serverOf(client netip.Addr) netip.AddrPort {
	if client.Is6() {
		return netip.AddrPortFrom(server6, servicePort)
	}
	return netip.AddrPortFrom(server4, servicePort)
}

// traffic is who is denied and who sends, the same in each run. The prefixes lie all over
// the address space, which is the worst for xgw: real lists have neighbours.
type traffic struct {
	random   *rand.Rand
	denied   map[netip.Prefix]bool
	lengths  [2][]int // that occur
	rules    []policy.PrefixRule
	deniedOf []netip.Addr // flowCount sources, of prefixes of each length by its share
	live     []netip.Addr // of IPv4, then flowCount of IPv6; in no prefix
	stranger []netip.Addr // in no prefix
	single   []netip.Addr // as many addresses as there are prefixes, with deniedOf
}

func newTraffic(prefixes, live int) *traffic {
	t := &traffic{random: rand.New(rand.NewPCG(1, 2)), denied: map[netip.Prefix]bool{}}
	var all []netip.Prefix
	// Wide ones first, so that no prefix lies in another.
	for _, part := range []struct{ length, percent int }{{16, 1}, {20, 5}, {24, 24}, {32, 70}} {
		all = append(all, t.deny(t.address4, part.length, prefixes*part.percent/100)...)
	}
	ipv4 := slices.Clone(all)
	for _, part := range []struct{ length, percent int }{{32, 1}, {48, 5}, {64, 4}} {
		all = append(all, t.deny(t.address6, part.length, prefixes*part.percent/100)...)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range all {
		t.rules = append(t.rules, policy.PrefixRule{Prefix: p, Action: policy.Deny})
	}
	t.random.Shuffle(len(ipv4), func(i, j int) { ipv4[i], ipv4[j] = ipv4[j], ipv4[i] })
	for _, p := range ipv4[:flowCount] {
		t.deniedOf = append(t.deniedOf, t.within(p))
	}
	t.live = append(t.outside(t.address4, live), t.outside(t.address6, flowCount)...)
	t.stranger = t.outside(t.address4, strangersFor)
	t.single = slices.Clone(t.deniedOf)
	for _, p := range append(ipv4[flowCount:], all[len(ipv4):]...) {
		t.single = append(t.single, p.Addr())
	}
	return t
}

func (t *traffic) address4() netip.Addr {
	var b [4]byte
	for b[0] == 0 || b[0] == 10 || b[0] == 127 || b[0] >= 224 {
		binary.BigEndian.PutUint32(b[:], t.random.Uint32())
	}
	return netip.AddrFrom4(b)
}

// address6 is one of a sixteenth of the global unicast space.
func (t *traffic) address6() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], t.random.Uint64())
	binary.BigEndian.PutUint64(b[8:], t.random.Uint64())
	b[0] = 0x2a
	return netip.AddrFrom16(b)
}

func (t *traffic) isDenied(a netip.Addr) bool {
	family := 0
	if a.Is6() {
		family = 1
	}
	for _, n := range t.lengths[family] {
		if p, err := a.Prefix(n); err == nil && t.denied[p] {
			return true
		}
	}
	return false
}

func (t *traffic) outside(next func() netip.Addr, n int) []netip.Addr {
	out := make([]netip.Addr, 0, n)
	for len(out) < n {
		if a := next(); !t.isDenied(a) {
			out = append(out, a)
		}
	}
	return out
}

func (t *traffic) deny(next func() netip.Addr, length, n int) []netip.Prefix {
	var out []netip.Prefix
	for len(out) < n {
		a := t.outside(next, 1)[0]
		p := netip.PrefixFrom(a, length).Masked()
		if !t.denied[p] {
			t.denied[p] = true
			out = append(out, p)
		}
	}
	family := 0
	if len(out) > 0 && out[0].Addr().Is6() {
		family = 1
	}
	t.lengths[family] = append(t.lengths[family], length)
	return out
}

func (t *traffic) within(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	host := t.random.Uint32() & uint32(uint64(1)<<(32-p.Bits())-1)
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|host)
	return netip.AddrFrom4(b)
}

// flowsOf gives each of the first flowCount sources a port of its own, in wire order.
func flowsOf(sources []netip.Addr, destination uint16) []rotate.RotateFlow {
	flows := make([]rotate.RotateFlow, flowCount)
	for i := range flows {
		b := sources[i].AsSlice()
		for w := range len(b) / 4 {
			flows[i].Source[w] = binary.NativeEndian.Uint32(b[4*w:])
		}
		ports := binary.BigEndian.AppendUint16(nil, uint16(clientPort+i))
		flows[i].Ports = binary.NativeEndian.Uint32(binary.BigEndian.AppendUint16(ports, destination))
	}
	return flows
}

// echoFlows differ in their sources alone: type, code and checksum stand where ports do.
func echoFlows(sources []netip.Addr, frame []byte, header int) []rotate.RotateFlow {
	flows := flowsOf(sources, 0)
	for i := range flows {
		flows[i].Ports = binary.NativeEndian.Uint32(frame[header:])
	}
	return flows
}
