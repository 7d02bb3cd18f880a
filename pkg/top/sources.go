// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/datapath"
)

// sourcesKept bounds how many sources of dropped frames are remembered: forged ones are
// without number.
const sourcesKept = 4096

// dropped is what the samples say of one source since the screen began.
type dropped struct {
	samples uint64
	outcome string // of the last one
	last    time.Time
}

// note counts samples by source. When there are too many, those seen least go.
func (s *Source) note(drops []datapath.Drop, now time.Time) {
	for i := range drops {
		source, ok := sourceOf(drops[i].Head)
		if !ok {
			continue
		}
		if source.Is6() { // as verdicts see it
			source = netip.PrefixFrom(source, 64).Masked().Addr()
		}
		d := s.sources[source]
		if d == nil {
			if len(s.sources) >= sourcesKept {
				s.forget()
			}
			d = &dropped{}
			s.sources[source] = d
		}
		d.samples++
		d.outcome, d.last = drops[i].Outcome, now
	}
}

// forget halves the memory.
func (s *Source) forget() {
	byRank := slices.SortedFunc(maps.Keys(s.sources), func(a, b netip.Addr) int {
		da, db := s.sources[a], s.sources[b]
		if way := cmp.Compare(da.samples, db.samples); way != 0 {
			return way
		}
		return da.last.Compare(db.last)
	})
	for _, a := range byRank[:len(byRank)/2] {
		delete(s.sources, a)
	}
}

// sourceOf reads the source address of a frame, behind at most two VLAN tags.
func sourceOf(frame []byte) (netip.Addr, bool) {
	const ipv4, ipv6 = 0x0800, 0x86DD
	at := 12
	for range 3 {
		if len(frame) < at+2 {
			break
		}
		kind := binary.BigEndian.Uint16(frame[at:])
		switch kind {
		case ipv4:
			if len(frame) < at+2+20 {
				return netip.Addr{}, false
			}
			return netip.AddrFrom4([4]byte(frame[at+2+12 : at+2+16])), true
		case ipv6:
			if len(frame) < at+2+40 {
				return netip.Addr{}, false
			}
			return netip.AddrFrom16([16]byte(frame[at+2+8 : at+2+24])), true
		case 0x8100, 0x88A8:
			at += 4
		default:
			return netip.Addr{}, false
		}
	}
	return netip.Addr{}, false
}
