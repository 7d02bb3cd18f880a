// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
)

// A ring's header is a page: what the writer writes and what the reader writes lie
// apart, so that neither slows the other down. The words from ringSpare on are for
// a wake-up of the reader, which polls so far. The records' bytes follow.
const (
	ringHead   = 0             // bytes ever put, the writer's
	ringTail   = 2 * lineWords // bytes ever taken, the reader's
	ringSpare  = 4 * lineWords
	ringHeader = pageSize

	recordLength = 4 // bytes of the length in front of each record, itself included
)

var _ [ringHeader/8 - ringSpare]struct{}

// Ring carries records from one worker process to the supervisor. Head and tail
// count bytes since the zone was made. The writer publishes a record by moving
// head after its bytes are there: one that is killed halfway leaves nothing, and
// the next writer goes on at head.
type Ring struct {
	header words
	data   []byte // a power of two

	mu      sync.Mutex // among the goroutines of the writing process only
	scratch [recordLength + maxRecord]byte

	// The reader's.
	buffer  [recordLength + maxRecord]byte
	record  AccessRecord
	damaged atomic.Uint64
}

func newRing(mem []byte) *Ring {
	return &Ring{header: wordsOf(mem[:ringHeader]), data: mem[ringHeader:]}
}

// Put appends the record and tells whether it fitted; one that did not is lost,
// and the caller counts it (AccessRecordsDropped). It waits for no other process
// and allocates nothing.
func (r *Ring) Put(rec *AccessRecord) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := rec.appendTo(r.scratch[:recordLength])
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	head := r.header.load(ringHead)
	used := head - r.header.load(ringTail)
	if size := uint64(len(r.data)); used > size || uint64(len(b)) > size-used {
		return false
	}
	at := int(head & uint64(len(r.data)-1))
	n := copy(r.data[at:], b)
	copy(r.data, b[n:])
	r.header.store(ringHead, head+uint64(len(b))) // the record is there from here on
	return true
}

// Drain hands each waiting record to fn and returns how many there were: those
// that were there when it began, so it ends however fast the writer is. The record
// is valid during the call only. Only one goroutine of one process may drain.
//
// Everything that it reads was written by a process that faces the network. A
// record is copied before it is looked at; a length that cannot be empties the
// ring; what does not decode is skipped. Both count as Damaged.
func (r *Ring) Drain(fn func(*AccessRecord)) int { return r.DrainUpTo(math.MaxInt, fn) }

// DrainUpTo is Drain of at most so many records, for a reader that bounds its own
// memory or takes turns among rings.
func (r *Ring) DrainUpTo(limit int, fn func(*AccessRecord)) int {
	head, tail := r.header.load(ringHead), r.header.load(ringTail)
	if head-tail > uint64(len(r.data)) {
		r.damaged.Add(1)
		r.header.store(ringTail, head)
		return 0
	}
	drained := 0
	for tail != head && drained < limit {
		b := r.copyOut(tail, head)
		if b == nil {
			r.damaged.Add(1)
			r.header.store(ringTail, head)
			break
		}
		tail += uint64(len(b))
		r.header.store(ringTail, tail) // room for the writer: b is a copy
		if r.record.decode(b[recordLength:]) != nil {
			r.damaged.Add(1)
			continue
		}
		fn(&r.record)
		drained++
	}
	return drained
}

// Filled is how much of the ring waits for its reader, from 0 to 1.
func (r *Ring) Filled() float64 {
	waits := r.header.load(ringHead) - r.header.load(ringTail)
	return min(float64(waits)/float64(len(r.data)), 1)
}

// Damaged counts what Drain met that no worker of this program writes.
func (r *Ring) Damaged() uint64 { return r.damaged.Load() }

// copyOut copies the record at from; nil for one that cannot be.
func (r *Ring) copyOut(from, head uint64) []byte {
	if head-from < recordLength {
		return nil
	}
	r.copyBytes(r.buffer[:recordLength], from)
	n := uint64(binary.NativeEndian.Uint32(r.buffer[:]))
	if n < recordLength+recordFixed || n > uint64(len(r.buffer)) || n > head-from {
		return nil
	}
	b := r.buffer[:n]
	r.copyBytes(b[recordLength:], from+recordLength)
	return b
}

func (r *Ring) copyBytes(dst []byte, from uint64) {
	at := int(from & uint64(len(r.data)-1))
	n := copy(dst, r.data[at:])
	copy(dst[n:], r.data)
}
