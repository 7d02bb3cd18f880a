// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// Sizes of the prefix table, which bpf/config.h has too.
const (
	PrefixRows       = 65536 // rows of each family
	MaxPrefixLengths = 24    // different IPv6 prefix lengths of one generation
)

// PrefixTable is all prefixes of one generation as the kernel plane looks them up:
// bpf/prefix.h says how. It is a hash of all prefixes, and rows that say which prefix
// lengths occur where.
type PrefixTable struct {
	Heads   [2]PrefixHead // IPv4, IPv6
	Rows    []uint64      // 2 * PrefixRows: IPv4, then IPv6
	Buckets []PrefixBucket
}

// PrefixHead says where the prefixes of a family are.
type PrefixHead struct {
	Family  uint32 // 4 or 6
	Entries uint32
	First   uint32 // bucket
	Mask    uint32 // buckets - 1
	Always  uint64 // lengths, as bits, to look for whatever the row says
	Lengths []uint8
}

// PrefixBucket holds eight IPv4 prefixes or two IPv6 ones.
type PrefixBucket [8]uint64

// prefixEntry is a prefix in words: IPv4 addresses are in low.
type prefixEntry struct {
	high, low uint64
	length    uint8
	action    Action
}

// NewPrefixTable lays the rules out; seed is what the programs were loaded with. Only
// prefixes that are masked are found. More than MaxPrefixLengths different IPv6
// prefix lengths are an error.
func NewPrefixTable(rules []PrefixRule, seed uint64) (*PrefixTable, error) {
	t := &PrefixTable{Rows: make([]uint64, 2*PrefixRows)}
	var entries [2][]prefixEntry
	for _, r := range rules {
		family, e := newPrefixEntry(r)
		if family == 0 && e.length <= 16 {
			t.cover(e)
			t.Heads[0].Entries++
			continue
		}
		entries[family] = append(entries[family], e)
	}
	for family := range entries {
		h := &t.Heads[family]
		h.Family = [2]uint32{4, 6}[family]
		h.Entries += uint32(len(entries[family]))
		h.Lengths = lengthsOf(entries[family])
		if len(h.Lengths) > MaxPrefixLengths {
			return nil, fmt.Errorf("IPv6 prefixes have %d different lengths: %d are possible", len(h.Lengths), MaxPrefixLengths)
		}
		t.mark(h, entries[family], seed)
		h.First = uint32(len(t.Buckets))
		buckets, err := hashPrefixes(entries[family], family == 1, seed)
		if err != nil {
			return nil, err
		}
		h.Mask = uint32(len(buckets) - 1)
		t.Buckets = append(t.Buckets, buckets...)
	}
	return t, nil
}

func newPrefixEntry(r PrefixRule) (family int, e prefixEntry) {
	e = prefixEntry{length: uint8(r.Prefix.Bits()), action: r.Action}
	if r.Prefix.Addr().Is4() {
		a := r.Prefix.Addr().As4()
		e.low = uint64(binary.BigEndian.Uint32(a[:]))
		return 0, e
	}
	a := r.Prefix.Addr().As16()
	e.high, e.low = binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(a[8:])
	return 1, e
}

// cover writes an IPv4 prefix of at most 16 bits into all rows inside of it, but for
// those that a longer one has.
func (t *PrefixTable) cover(e prefixEntry) {
	first := int(e.low >> 16)
	for row := first; row < first+1<<(16-e.length); row++ {
		if t.Rows[row] == 0 || uint8(t.Rows[row]>>48) <= e.length {
			t.Rows[row] = t.Rows[row]&(1<<48-1) | uint64(e.action)<<56 | uint64(e.length)<<48
		}
	}
}

// lengthsOf returns the different prefix lengths, the longest first.
func lengthsOf(entries []prefixEntry) []uint8 {
	var seen [129]bool
	for _, e := range entries {
		seen[e.length] = true
	}
	var out []uint8
	for length := len(seen) - 1; length >= 0; length-- {
		if seen[length] {
			out = append(out, uint8(length))
		}
	}
	return out
}

// mark sets the bit of each prefix's length in its row, and those of the octets that
// follow the row's own bits, as far as they lie in the prefix.
func (t *PrefixTable) mark(h *PrefixHead, entries []prefixEntry, seed uint64) {
	var bit [129]uint64
	for i, length := range h.Lengths {
		bit[length] = 1 << i
	}
	for _, e := range entries {
		switch {
		case h.Family == 4:
			t.Rows[e.low>>16] |= bit[e.length] | octets(uint8(e.low>>8), int(e.length)-16)
		case e.length < 32:
			h.Always |= bit[e.length]
		default:
			t.Rows[PrefixRows+mix(seed, e.high>>32)>>48] |= bit[e.length] | octets(uint8(e.high>>24), int(e.length)-32)
		}
	}
}

// octets are the bits of a row's octets that a prefix covers, of which it has so many bits
// beyond the row's: ROW_OCTETS of bpf/prefix.h.
func octets(first uint8, length int) uint64 {
	last := int(first) + 1<<(8-min(length, 8)) - 1
	var bits uint64
	for bit := int(first) * 24 >> 8; bit <= last*24>>8; bit++ {
		bits |= 1 << (24 + bit)
	}
	return bits
}

// hashPrefixes puts each entry into its bucket or, when that is full, the next one. It
// takes as many buckets, a power of two, as make that enough.
func hashPrefixes(entries []prefixEntry, six bool, seed uint64) ([]PrefixBucket, error) {
	words, places := 1, 8
	if six {
		words, places = 3, 2
	}
	n := 1 << bits.Len(uint(len(entries)*2/places))
	for ; n <= 1<<26; n *= 2 {
		buckets := make([]PrefixBucket, n)
		if !slices.ContainsFunc(entries, func(e prefixEntry) bool { return !e.place(buckets, words, six, seed) }) {
			return buckets, nil
		}
	}
	return nil, errors.New("prefixes do not fit: some prefix is in the list very often")
}

func (e prefixEntry) place(buckets []PrefixBucket, words int, six bool, seed uint64) bool {
	hash := seed
	if six {
		hash = mix(hash, e.high)
	}
	hash = mix(mix(hash, e.low), uint64(e.length))
	tail := uint64(e.length)<<8 | uint64(e.action)
	for step := range uint32(2) {
		b := &buckets[(uint32(hash>>32)+step)&uint32(len(buckets)-1)]
		for i := 0; i+words <= 8; i += words {
			if b[i+words-1] != 0 {
				continue
			}
			if six {
				b[i], b[i+1], b[i+2] = e.high, e.low, tail
			} else {
				b[i] = e.low<<32 | tail
			}
			return true
		}
	}
	return false
}

// mix is bpf/keys.h's.
func mix(hash, word uint64) uint64 {
	hash = (hash ^ word) * 0x9e3779b97f4a7c15
	return hash ^ hash>>32
}

// AddressKey is how the kernel plane knows a source: an IPv4 address, or the first 64
// bits of an IPv6 one.
func AddressKey(a netip.Addr) uint64 {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return 0xffff00000000 | uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:])
}

// AddressLow is the other half of an IPv6 address; 0 of IPv4.
func AddressLow(a netip.Addr) uint64 {
	if a.Unmap().Is4() {
		return 0
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}

// KeyAddress is the address, or the first one of the /64, that has the key.
func KeyAddress(key uint64) netip.Addr {
	if key>>32 == 0xffff {
		return netip.AddrFrom4([4]byte{byte(key >> 24), byte(key >> 16), byte(key >> 8), byte(key)})
	}
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], key)
	return netip.AddrFrom16(a)
}

// AddressHash places a source in the kernel plane's tables.
func AddressHash(a netip.Addr, seed uint64) uint32 { return uint32(mix(seed, AddressKey(a)) >> 32) }

// FlowHash places a TCP connection of a client in the kernel plane's tables, on machines with
// the least significant byte first.
func FlowHash(client netip.AddrPort, own uint16, seed uint64) uint64 {
	a := client.Addr().Unmap()
	h := mix(seed, AddressKey(a))
	if a.Is6() {
		h = mix(h, AddressLow(a))
	}
	const tcp = 6
	return mix(h, tcp<<32|uint64(bits.ReverseBytes16(client.Port()))<<16|uint64(bits.ReverseBytes16(own)))
}

// LookUpPrefix finds the rule that decides for an address in a table that lies
// elsewhere, as the kernel plane does. Its Action is 0 when there is none.
func LookUpPrefix(a netip.Addr, heads [2]PrefixHead, seed uint64,
	row func(uint32) (uint64, error), bucket func(uint32) (PrefixBucket, error),
) (PrefixRule, error) {
	a = a.Unmap()
	family, e := newPrefixEntry(PrefixRule{Prefix: netip.PrefixFrom(a, a.BitLen())})
	h := heads[family]
	place := uint32(e.low >> 16)
	if family == 1 {
		place = PrefixRows + uint32(mix(seed, e.high>>32)>>48)
	}
	r, err := row(place)
	if err != nil {
		return PrefixRule{}, fmt.Errorf("look up row of prefixes: %w", err)
	}
	for i, length := range h.Lengths {
		if (r|h.Always)&(1<<i) == 0 || i >= MaxPrefixLengths {
			continue
		}
		p, err := a.Prefix(int(length))
		if err != nil {
			return PrefixRule{}, err
		}
		rule, err := h.probe(p, seed, bucket)
		if err != nil || rule.Action != 0 {
			return rule, err
		}
	}
	if action := Action(r >> 56); action != 0 {
		p, err := a.Prefix(int(r >> 48 & 0xff))
		return PrefixRule{p, action}, err
	}
	return PrefixRule{}, nil
}

// probe looks for one prefix.
func (h *PrefixHead) probe(p netip.Prefix, seed uint64, bucket func(uint32) (PrefixBucket, error)) (PrefixRule, error) {
	family, e := newPrefixEntry(PrefixRule{Prefix: p})
	hash := seed
	if family == 1 {
		hash = mix(hash, e.high)
	}
	hash = mix(mix(hash, e.low), uint64(e.length))
	for step := range uint32(2) {
		b, err := bucket(h.First + (uint32(hash>>32)+step)&h.Mask)
		if err != nil {
			return PrefixRule{}, fmt.Errorf("look up prefixes: %w", err)
		}
		for i, w := range b {
			switch {
			case family == 0 && w>>8 == e.low<<24|uint64(e.length):
				return PrefixRule{p, Action(w)}, nil
			case family == 1 && i%3 == 2 && b[i-2] == e.high && b[i-1] == e.low && w>>8 == uint64(e.length) && w != 0:
				return PrefixRule{p, Action(w)}, nil
			}
		}
	}
	return PrefixRule{}, nil
}

// String is the action in the words of the configuration.
func (a Action) String() string {
	switch a {
	case Deny:
		return "deny"
	case Allow:
		return "allow"
	}
	return fmt.Sprintf("action %d", uint8(a))
}
