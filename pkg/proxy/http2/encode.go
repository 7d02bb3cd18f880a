// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"strconv"
)

// encoder writes header blocks (RFC 7541) without allocating once it is warm.
//
// A pair of name and value enters the dynamic table when it is seen for the second time, so that request ids, dates
// of one second and the like do not push out what repeats. Strings are written without Huffman coding: what repeats
// is indexed, and for the rest the bytes saved are not worth the time.
//
// The decoder at the other end must see blocks in the order they were encoded in: it is guarded by the connection's lock.
type encoder struct {
	limit    uint32 // bytes the table may have: the smaller of ours and the client's
	smallest uint32 // the smallest limit since the last block
	resized  bool   // a size update is owed at the start of the next block
	size     uint32

	ring     []entry // power of two long; entry k is at k&(len-1)
	inserted uint32  // entries ever inserted
	live     uint32  // the newest so many are in the table

	seen [64]sighting
}

type entry struct {
	hash uint32
	name uint32 // length of the name in data
	data []byte // name, then value; owned, reused
}

// sighting remembers one pair by its hash. at is 1 + the entry's number, or 0 when the pair was seen but not inserted.
type sighting struct{ hash, at uint32 }

const entryOverhead = 32 // RFC 7541, 4.1

func (e *encoder) init() { e.limit, e.smallest = tableBytes, tableBytes }

// resize takes the client's SETTINGS_HEADER_TABLE_SIZE.
func (e *encoder) resize(size uint32) {
	size = min(size, tableBytes)
	if size == e.limit && !e.resized {
		return
	}
	if !e.resized {
		e.smallest = size
	}
	e.resized = true
	e.smallest = min(e.smallest, size)
	e.limit = size
	e.evict(0)
}

func (e *encoder) evict(room uint32) {
	for e.live > 0 && e.size+room > e.limit {
		oldest := &e.ring[(e.inserted-e.live)&uint32(len(e.ring)-1)]
		e.size -= uint32(len(oldest.data)) + entryOverhead
		e.live--
	}
}

// begin writes what must stand at the start of a block.
func (e *encoder) begin(dst []byte) []byte {
	if !e.resized {
		return dst
	}
	e.resized = false
	if e.smallest < e.limit {
		dst = appendInt(dst, 0x20, 5, e.smallest)
	}
	return appendInt(dst, 0x20, 5, e.limit)
}

// status writes :status.
func (e *encoder) status(dst []byte, status int) []byte {
	switch status {
	case 200:
		return append(dst, 0x80|8)
	case 204:
		return append(dst, 0x80|9)
	case 206:
		return append(dst, 0x80|10)
	case 304:
		return append(dst, 0x80|11)
	case 400:
		return append(dst, 0x80|12)
	case 404:
		return append(dst, 0x80|13)
	case 500:
		return append(dst, 0x80|14)
	}
	dst = append(dst, 8, 3) // literal without indexing, name of entry 8, three bytes
	return strconv.AppendInt(dst, int64(status), 10)
}

// field writes one field. The name must be in lower case.
func (e *encoder) field(dst, name, value []byte) []byte {
	index, secret := staticName(name)
	return e.coded(dst, index, secret, name, value)
}

// coded is field for a name whose index in the static table is known, 0 for none. A secret one is not indexed.
func (e *encoder) coded(dst []byte, index uint32, secret bool, name, value []byte) []byte {
	cost := uint32(len(name)+len(value)) + entryOverhead
	if secret || cost > e.limit/4 { // one field must not push out all others
		return appendLiteral(dst, 0x00, 4, index, name, value)
	}
	hash := hashPair(name, value)
	slot := &e.seen[hash%uint32(len(e.seen))]
	if slot.hash != hash {
		*slot = sighting{hash: hash}
		return appendLiteral(dst, 0x00, 4, index, name, value)
	}
	if age := e.inserted - slot.at; slot.at != 0 && age < e.live {
		if en := &e.ring[(slot.at-1)&uint32(len(e.ring)-1)]; en.matches(hash, name, value) {
			return appendInt(dst, 0x80, 7, 62+age)
		}
	}
	dst = appendLiteral(dst, 0x40, 6, index, name, value)
	e.insert(hash, name, value, cost)
	slot.at = e.inserted
	return dst
}

func (en *entry) matches(hash uint32, name, value []byte) bool {
	return en.hash == hash && int(en.name) == len(name) && len(en.data) == len(name)+len(value) &&
		bytes.Equal(en.data[:en.name], name) && bytes.Equal(en.data[en.name:], value)
}

func (e *encoder) insert(hash uint32, name, value []byte, cost uint32) {
	e.evict(cost)
	if e.live == uint32(len(e.ring)) {
		e.grow()
	}
	en := &e.ring[e.inserted&uint32(len(e.ring)-1)]
	en.hash, en.name = hash, uint32(len(name))
	en.data = append(append(en.data[:0], name...), value...)
	e.inserted++
	e.live++
	e.size += cost
}

// grow doubles the ring. A table of tableBytes has less than 128 entries, so this happens five times at most.
func (e *encoder) grow() {
	old := e.ring
	e.ring = make([]entry, max(8, 2*len(old)))
	for k := e.inserted - e.live; k != e.inserted; k++ {
		e.ring[k&uint32(len(e.ring)-1)] = old[k&uint32(len(old)-1)]
	}
}

// appendLiteral writes a literal field; the first byte's high bits are pattern, the name's index has bits bits.
func appendLiteral(dst []byte, pattern byte, bits, index uint32, name, value []byte) []byte {
	dst = appendInt(dst, pattern, bits, index)
	if index == 0 {
		dst = appendInt(dst, 0, 7, uint32(len(name)))
		dst = append(dst, name...)
	}
	dst = appendInt(dst, 0, 7, uint32(len(value)))
	return append(dst, value...)
}

// appendInt writes an integer by RFC 7541, 5.1.
func appendInt(dst []byte, pattern byte, bits, v uint32) []byte {
	most := uint32(1)<<bits - 1
	if v < most {
		return append(dst, pattern|byte(v))
	}
	dst = append(dst, pattern|byte(most))
	for v -= most; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

// hashPair is FNV-1a. A collision costs bytes, not correctness: entries are compared.
func hashPair(name, value []byte) uint32 {
	h := uint32(2166136261)
	for _, b := range name {
		h = (h ^ uint32(b)) * 16777619
	}
	h = (h ^ 0xff) * 16777619
	for _, b := range value {
		h = (h ^ uint32(b)) * 16777619
	}
	return h | 1 // a zero sighting is an empty one
}

// staticName finds a field's name in the static table (RFC 7541, appendix A), 0 when it is not there. secret
// fields stay out of the dynamic table, where their length could be probed.
func staticName(name []byte) (index uint32, secret bool) {
	switch string(name) {
	case "accept":
		return 19, false
	case "accept-encoding":
		return 16, false
	case "accept-language":
		return 17, false
	case "accept-ranges":
		return 18, false
	case "access-control-allow-origin":
		return 20, false
	case "age":
		return 21, false
	case "allow":
		return 22, false
	case "cache-control":
		return 24, false
	case "content-disposition":
		return 25, false
	case "content-encoding":
		return 26, false
	case "content-language":
		return 27, false
	case "content-length":
		return 28, false
	case "content-location":
		return 29, false
	case "content-range":
		return 30, false
	case "content-type":
		return 31, false
	case "date":
		return 33, false
	case "etag":
		return 34, false
	case "expires":
		return 36, false
	case "if-modified-since":
		return 40, false
	case "if-none-match":
		return 41, false
	case "last-modified":
		return 44, false
	case "link":
		return 45, false
	case "location":
		return 46, false
	case "proxy-authenticate":
		return 48, false
	case "range":
		return 50, false
	case "referer":
		return 51, false
	case "retry-after":
		return 53, false
	case "server":
		return 54, false
	case "set-cookie":
		return 55, true
	case "strict-transport-security":
		return 56, false
	case "user-agent":
		return 58, false
	case "vary":
		return 59, false
	case "via":
		return 60, false
	case "www-authenticate":
		return 61, false
	case "authorization":
		return 23, true
	case "cookie":
		return 32, true
	case "proxy-authorization":
		return 49, true
	}
	return 0, false
}
