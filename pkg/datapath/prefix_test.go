// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// The kernel plane must find what the plain walk over all rules finds, for sources in and
// near the prefixes, of all lengths, dense and sparse.
func TestPrefixesAgainstEveryRule(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	seen := map[netip.Prefix]bool{}
	tables := &policy.Tables{}
	near := func(six bool) netip.Addr {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], random.Uint64())
		binary.BigEndian.PutUint64(b[8:], random.Uint64())
		if !six {
			if random.IntN(2) == 0 {
				b[0], b[1] = 192, 0 // half of all in one row
			}
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		b[0], b[1], b[2], b[3] = 0x20, 0x01, 0x0d, b[3]&1 // two rows
		return netip.AddrFrom16(b)
	}
	lengths := map[bool][]int{false: {0, 7, 15, 16, 17, 18, 20, 21, 23, 24, 25, 28, 31, 32}, true: {0, 16, 31, 32, 33, 35, 39, 40, 41, 48, 56, 63, 64, 65, 96, 127, 128}}
	for _, six := range []bool{false, true} {
		for range 400 {
			p := netip.PrefixFrom(near(six), lengths[six][random.IntN(len(lengths[six]))]).Masked()
			if p.Bits() > 0 && !seen[p] || len(seen) < 2 {
				seen[p] = true
				tables.Prefixes = append(tables.Prefixes, policy.PrefixRule{Prefix: p, Action: policy.Action(1 + random.IntN(2))})
			}
		}
	}
	p := newDrivenPlane(t, 1, tables)
	if err := p.drive.Put(uint32(0), p.moment()); err != nil {
		t.Fatal(err)
	}
	denied, passed := 0, 0
	check := func(a netip.Addr) {
		server := server4
		if a.Is6() {
			server = server6
		}
		action, err := p.program.Run(&ebpf.RunOptions{Data: TCPSegment(netip.AddrPortFrom(a, 1), server, ACK)})
		if err != nil {
			t.Fatal(err)
		}
		rule, found := longest(tables, a)
		deny := found && rule.Action == policy.Deny
		if deny != (action == 1) {
			t.Errorf("%s: action %d, but the rule is %+v", a, action, rule)
		}
		if deny {
			denied++
		} else {
			passed++
		}
	}
	for _, r := range tables.Prefixes {
		first := r.Prefix.Addr()
		bytes := first.AsSlice()
		for i := r.Prefix.Bits(); i < first.BitLen(); i++ {
			bytes[i/8] |= 0x80 >> (i % 8)
		}
		last, _ := netip.AddrFromSlice(bytes)
		for _, a := range []netip.Addr{first, last, first.Prev(), last.Next()} {
			if a.IsValid() {
				check(a)
			}
		}
	}
	for i := range 4000 {
		check(near(i%2 == 0))
	}
	if denied < 500 || passed < 500 {
		t.Errorf("%d denied, %d passed: one of them is hardly tested", denied, passed)
	}
}

// longest is the rule that decides for the address: the plain walk over all of them.
func longest(t *policy.Tables, a netip.Addr) (best policy.PrefixRule, found bool) {
	for _, r := range t.Prefixes {
		if r.Prefix.Contains(a) && (!found || r.Prefix.Bits() > best.Prefix.Bits()) {
			best, found = r, true
		}
	}
	return best, found
}
