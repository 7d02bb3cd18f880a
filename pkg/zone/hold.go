// SPDX-License-Identifier: Apache-2.0

package zone

import "sync"

// Holds are what is open under limits of how much may be at once: for each key how many
// connections or exchanges a worker has open now. Every worker has a table of its own,
// which it alone writes; what is open under a key is the sum over all tables. So a worker
// that is killed at any moment leaves nothing behind but its table, which the supervisor
// empties, and no process ever has to guess what another was about to do.
//
// A place is two words: a key, as LimitBuckets.Key makes it, and a count. Eight places are
// a set; where a set is full, further keys are not counted.
type Holds struct {
	mu     sync.Mutex // among the goroutines of the worker
	own    words
	others []words
	mask   uint64 // of sets
}

// Held is what came of Take.
type Held int

// Results of Take.
const (
	HeldOne  Held = iota // one more is open; Return ends that
	HeldMost             // as many are open as may be
	HeldNone             // there is no room to count it
)

// Holds are those of the worker in the slot. One process has them at a time.
func (z *Zone) Holds(slot int) *Holds {
	h := &Holds{mask: uint64(z.layout.Holds/setBuckets - 1)}
	for i := range z.layout.slots() {
		if t := z.holdTable(i); i == slot {
			h.own = t
		} else {
			h.others = append(h.others, t)
		}
	}
	return h
}

func (z *Zone) holdTable(slot int) words {
	size := int64(z.layout.Holds) * bucketBytes
	at := z.off.holds + int64(slot)*size
	return wordsOf(z.mem[at : at+size])
}

// Take opens one more under the key, if no more than most are open then, and tells how many
// are. Two workers that take the last one at once may both be refused; they never both
// get it. It allocates nothing.
func (h *Holds) Take(key, most uint64) (open uint64, r Held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.place(key)
	if at < 0 {
		return 0, HeldNone
	}
	mine := uint64(0)
	if h.own.load(at) == key {
		mine = h.own.load(at + 1)
	}
	if open = mine + h.elsewhere(key); open >= most {
		return open, HeldMost
	}
	h.own.store(at+1, mine+1)
	h.own.store(at, key)
	// Another worker looked before it saw this one, or sees it now: at least one of the two
	// finds both.
	if open = mine + 1 + h.elsewhere(key); open > most {
		h.drop(at, mine)
		return open - 1, HeldMost
	}
	return open, HeldOne
}

// Return ends what Take has opened.
func (h *Holds) Return(key uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.place(key)
	if at < 0 || h.own.load(at) != key {
		return
	}
	h.drop(at, h.own.load(at+1)-1)
}

// drop leaves so many in the place.
func (h *Holds) drop(at int, left uint64) {
	h.own.store(at+1, left)
	if left == 0 {
		h.own.store(at, 0)
	}
}

// place is that of the key in the worker's own table, else a free one; -1: there is none.
func (h *Holds) place(key uint64) int {
	free := -1
	set := int(key&h.mask) * setWords
	for i := set; i < set+setWords; i += 2 {
		switch h.own.load(i) {
		case key:
			return i
		case 0:
			if free < 0 {
				free = i
			}
		}
	}
	return free
}

// elsewhere is how many the other workers have open.
func (h *Holds) elsewhere(key uint64) (sum uint64) {
	set := int(key&h.mask) * setWords
	for _, t := range h.others {
		for i := set; i < set+setWords; i += 2 {
			if t.load(i) != key {
				continue
			}
			if n := t.load(i + 1); t.load(i) == key { // else the place has changed hands
				sum += n
			}
			break
		}
	}
	return sum
}

// giveBack empties the table of a worker that is no more.
func giveBack(t words) {
	for i := range t {
		t.store(i, 0)
	}
}
