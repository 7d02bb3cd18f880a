// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
)

// Shares are what requests were charged under limits that hold over several gateways, key by
// key, since the supervisor has last told the others. Workers add to it without a lock; what
// they have read of a key is the key of its bucket, which is this zone's own. So beside it
// stands an id, a hash that is the same in all gateways.
//
// Eight keys are a set of five cache lines: keys, counts, ids of two words, limits. A worker
// that takes a free place writes the key first; ids are kept with the key in them, so that those
// of the place's last key are nobody's.
type Shares struct {
	mem  words
	mask uint64 // of sets

	// The supervisor's own.
	next int     // the set to begin with
	idle []uint8 // how often a place was found without charges
}

const (
	shareCounts = setBuckets
	shareIDs    = 2 * setBuckets
	shareLimits = 4 * setBuckets
	shareSet    = 5 * setBuckets
	shareBytes  = shareSet / setBuckets * 8

	// idleRounds is how often a key is looked at in vain before its place is free.
	idleRounds = 50
)

func newShares(mem []byte) *Shares {
	w := wordsOf(mem)
	return &Shares{mem: w, mask: uint64(len(w)/shareSet - 1)}
}

// Share is what one key was charged.
type Share struct {
	Place   int       // for Pending
	Key     uint64    // of its bucket
	ID      [2]uint64 // of limit and key, in all gateways
	Limit   uint64    // as Charge was given it
	Charges int64     // requests; below 0: more was given back than charged
}

// Charge notes one request under the key of a bucket; limit and text are what it was made of.
// false: there is no room for the key. It allocates nothing.
func (s *Shares) Charge(key, limit uint64, text []byte) bool {
	set := s.set(key)
	for at := set; at < set+setBuckets; at++ {
		if s.mem.load(at) == key {
			s.add(at, 1)
			return true
		}
	}
	for at := set; at < set+setBuckets; at++ {
		if s.mem.load(at) != 0 || !s.mem.swap(at, 0, key) {
			continue // two workers may give one key two places: both are told
		}
		id := shareID(limit, text)
		s.mem.store(s.idAt(at), id[0])
		s.mem.store(s.idAt(at)+1, id[1]^key)
		s.mem.store(at+shareLimits, limit)
		s.add(at, 1)
		return true
	}
	return false
}

// Return takes the charge of one request back.
func (s *Shares) Return(key uint64) {
	set := s.set(key)
	for at := set; at < set+setBuckets; at++ {
		if s.mem.load(at) == key {
			s.add(at, -1)
			return
		}
	}
}

func (s *Shares) set(key uint64) int { return int(key&s.mask) * shareSet }

func (s *Shares) add(at int, n int64) { s.mem.add(at+shareCounts, uint64(n)) }

// idAt is where the id begins that belongs to a place.
func (s *Shares) idAt(at int) int { return at/shareSet*shareSet + shareIDs + 2*(at%shareSet) }

// shareID is the same in all gateways, and nobody finds two that are alike.
func shareID(limit uint64, text []byte) [2]uint64 {
	var b [sha256.Size + 8]byte
	sum := sha256.Sum256(text)
	copy(b[:], sum[:])
	binary.LittleEndian.PutUint64(b[sha256.Size:], limit)
	sum = sha256.Sum256(b[:])
	return [2]uint64{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])}
}

// Collect takes what was charged, of most keys or a few more, and appends it to dst; the next
// call goes on where it ended. Keys that are not used any more lose their places. It is for the
// supervisor alone.
func (s *Shares) Collect(dst []Share, most int) []Share {
	sets := len(s.mem) / shareSet
	if s.idle == nil {
		s.idle = make([]uint8, sets*setBuckets)
	}
	for range sets {
		if len(dst) >= most {
			break
		}
		set := s.next * shareSet
		for at := set; at < set+setBuckets; at++ {
			if key := s.mem.load(at); key != 0 {
				dst = s.collect(dst, at, key, &s.idle[s.next*setBuckets+at-set])
			}
		}
		s.next = (s.next + 1) % sets
	}
	return dst
}

func (s *Shares) collect(dst []Share, at int, key uint64, idle *uint8) []Share {
	n := int64(atomic.SwapUint64(&s.mem[at+shareCounts], 0))
	if n == 0 {
		if *idle++; *idle < idleRounds {
			return dst
		}
		*idle = 0
		s.mem.store(at, 0)
		// A worker that saw the key a moment ago may have charged it since.
		if n = int64(atomic.SwapUint64(&s.mem[at+shareCounts], 0)); n == 0 {
			return dst
		}
	}
	*idle = 0
	id := s.idAt(at)
	return append(dst, Share{
		Place: at, Key: key, ID: [2]uint64{s.mem.load(id), s.mem.load(id+1) ^ key}, Limit: s.mem.load(at + shareLimits), Charges: n,
	})
}

// Pending is what was charged since Collect.
func (s *Shares) Pending(of *Share) int64 {
	if s.mem.load(of.Place) != of.Key {
		return 0
	}
	return int64(s.mem.load(of.Place + shareCounts))
}
