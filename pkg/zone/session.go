// SPDX-License-Identifier: Apache-2.0

package zone

import "sync"

// Sessions are what a worker knows of who speaks to it from which address: how its
// exchanges have ended lately, identity by identity. The supervisor asks them before it
// holds a verdict against an address that several may share. The table has a fixed size;
// when a set is full, the session heard of longest ago goes.
type Sessions struct {
	mem  words
	sets uint64

	mu sync.Mutex // among the goroutines of the writing process only
}

// A set is eight sessions of a cache line each: source, identity, epoch, place, the lower
// half of an IPv6 address, counts. Source 0 is a free place, and is written last.
const (
	sessionWays  = 8
	sessionWords = lineWords
	setOfWords   = sessionWays * sessionWords
	sessionBytes = sessionWords * 8

	sessionSource = 0
	sessionWho    = 1
	sessionEpoch  = 2
	sessionPlace  = 3
	sessionLow    = 4
	sessionCounts = 5 // good and bad of this epoch, then of the one before; 16 bits each
)

// epochShift: an epoch is 2^34 ns, 17 s. Counts of the present one and of the one before are
// recent.
const epochShift = 34

// Session is one identity on one connection, or what is left of it when that has ended.
type Session struct {
	Source    uint64 // as policy.AddressKey has it
	Low       uint64 // the other half of an IPv6 address
	Who       uint64 // the identity
	Port, Own uint16 // of the connection: the client's, the gateway's; Port 0: it has ended
	// Proved: the identity is more than the connection itself: a certificate or a key.
	Proved    bool
	Good, Bad uint64 // recent exchanges with a 2xx, recent offences; each up to 131,070
}

func newSessions(mem []byte) *Sessions {
	w := wordsOf(mem)
	return &Sessions{mem: w, sets: uint64(len(w) / setOfWords)}
}

func (t *Sessions) set(source uint64) int {
	h := source * 0x9e3779b97f4a7c15
	return int((h^h>>29)>>32%t.sets) * setOfWords
}

func (s *Session) place() uint64 {
	p := uint64(s.Port)<<16 | uint64(s.Own)
	if s.Proved {
		p |= 1 << 32
	}
	return p
}

// Note counts one exchange or offence of the session; its Good and Bad are not looked at.
// now is CLOCK_MONOTONIC, ns.
func (t *Sessions) Note(s *Session, good bool, now int64) {
	epoch := uint64(now) >> epochShift
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.find(s, epoch)
	counts, was := t.mem.load(at+sessionCounts), t.mem.load(at+sessionEpoch)
	switch was {
	case epoch:
	case epoch - 1:
		counts <<= 32
	default:
		counts = 0
	}
	// The present epoch's are the lower half: good, bad.
	unit, mask := uint64(1), uint64(0xffff)
	if !good {
		unit, mask = 1<<16, 0xffff<<16
	}
	if counts&mask != mask {
		counts += unit
	}
	t.mem.store(at+sessionCounts, counts)
	t.mem.store(at+sessionEpoch, epoch)
}

// find is the session's place, taken for it if it had none.
func (t *Sessions) find(s *Session, epoch uint64) int {
	set, victim, oldest := t.set(s.Source), -1, ^uint64(0)
	for at := set; at < set+setOfWords; at += sessionWords {
		source, age := t.mem.load(at+sessionSource), t.mem.load(at+sessionEpoch)+1
		mine := source == s.Source && t.mem.load(at+sessionWho) == s.Who
		if mine && t.mem.load(at+sessionPlace) == s.place() && t.mem.load(at+sessionLow) == s.Low {
			return at
		}
		if mine && t.mem.load(at+sessionPlace)&0xffff0000 == 0 {
			// What is left of this identity's last connection goes on with the new one.
			t.mem.store(at+sessionLow, s.Low)
			t.mem.store(at+sessionPlace, s.place())
			return at
		}
		if source == 0 {
			age = 0
		}
		if age < oldest {
			victim, oldest = at, age
		}
	}
	t.mem.store(victim+sessionSource, 0)
	t.mem.store(victim+sessionWho, s.Who)
	t.mem.store(victim+sessionPlace, s.place())
	t.mem.store(victim+sessionLow, s.Low)
	t.mem.store(victim+sessionCounts, 0)
	t.mem.store(victim+sessionEpoch, epoch)
	t.mem.store(victim+sessionSource, s.Source)
	return victim
}

// End notes that the session's connection is over, whoever spoke on it. Identities that
// were proved stay known for a while.
func (t *Sessions) End(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	set := t.set(s.Source)
	for at := set; at < set+setOfWords; at += sessionWords {
		place := t.mem.load(at + sessionPlace)
		if t.mem.load(at+sessionSource) != s.Source || t.mem.load(at+sessionLow) != s.Low || uint32(place) != uint32(s.place()) {
			continue
		}
		if place>>32 != 0 {
			t.mem.store(at+sessionPlace, place&^0xffff0000)
		} else {
			t.mem.store(at+sessionSource, 0)
		}
	}
}

// Sessions of the source that any worker has heard of lately are appended to dst. Other
// processes write meanwhile: each count is whole, all of them are not of one moment.
func (z *Zone) Sessions(dst []Session, source uint64, now int64) []Session {
	epoch := uint64(now) >> epochShift
	for _, slab := range z.slabs {
		t := slab.Sessions
		set := t.set(source)
		for at := set; at < set+setOfWords; at += sessionWords {
			if t.mem.load(at+sessionSource) != source {
				continue
			}
			place, counts := t.mem.load(at+sessionPlace), t.mem.load(at+sessionCounts)
			switch t.mem.load(at + sessionEpoch) {
			case epoch:
			case epoch - 1:
				counts &= 1<<32 - 1 // those of the epoch before have aged
			default:
				continue
			}
			dst = append(dst, Session{
				Source: source, Low: t.mem.load(at + sessionLow), Who: t.mem.load(at + sessionWho),
				Port: uint16(place >> 16), Own: uint16(place), Proved: place>>32&1 != 0,
				Good: counts&0xffff + counts>>32&0xffff, Bad: counts>>16&0xffff + counts>>48,
			})
		}
	}
	return dst
}
