// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"sync"
	"sync/atomic"
)

// Offence is what a client did that streaks are made of.
type Offence int

// Offences.
const (
	OffenceLimited      Offence = iota // a reply of 429, or one over a request limit
	OffenceUnauthorized                // a reply of 401
	OffenceHTTP2                       // a connection that was ended for misuse of HTTP/2
	OffenceHandshake                   // a TLS handshake that failed by what the client did
	OffenceMalformed                   // a request that breaks HTTP
	offences
)

var offenceNames = [offences]string{"429", "401", "http2", "handshake", "malformed"}

func (o Offence) String() string { return word(offenceNames[:], int(o)) }

// Offences lists all.
func Offences() []Offence { return upTo(offences) }

// Signal tells the supervisor of a streak: so many offences of one source that a rule asks
// for something to be done about it.
type Signal struct {
	Source  uint64 // as policy.AddressKey has it
	Who     uint64 // the identity whose offence completed the streak
	Rule    uint64 // policy.Escalation.ID
	At      int64  // CLOCK_MONOTONIC, ns: when it was complete
	Offence Offence
}

// A ring of signals is a page, in which what the writer writes and what the reader writes
// lie apart, and the records.
const (
	signalHead    = 0             // signals ever put, the writer's
	signalTail    = 2 * lineWords // signals ever taken, the reader's
	signalRecords = 256           // a power of two
	signalWords   = lineWords
	signalBytes   = pageSize + signalRecords*signalWords*8
)

// Signals carry streaks from one worker to the supervisor. A full ring drops the signal:
// a streak that goes on makes another.
type Signals struct {
	header, records words
	mu              sync.Mutex // among the goroutines of the writing process only
	damaged         atomic.Uint64
}

func newSignals(mem []byte) *Signals {
	return &Signals{header: wordsOf(mem[:pageSize]), records: wordsOf(mem[pageSize:])}
}

// Put appends the signal and tells whether it fitted. It waits for no other process.
func (r *Signals) Put(s Signal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	head := r.header.load(signalHead)
	if head-r.header.load(signalTail) >= signalRecords {
		return false
	}
	at := int(head%signalRecords) * signalWords
	for i, v := range [...]uint64{s.Source, s.Who, s.Rule, uint64(s.At), uint64(s.Offence)} {
		r.records.store(at+i, v)
	}
	r.header.store(signalHead, head+1) // it is there from here on
	return true
}

// Drain hands fn the signals that were there when it began; one process may. What no worker
// of this program writes is passed over, and counted as Damaged.
func (r *Signals) Drain(fn func(Signal)) {
	head, tail := r.header.load(signalHead), r.header.load(signalTail)
	if head-tail > signalRecords {
		r.damaged.Add(1)
		r.header.store(signalTail, head)
		return
	}
	for ; tail != head; tail++ {
		at := int(tail%signalRecords) * signalWords
		s := Signal{
			Source: r.records.load(at), Who: r.records.load(at + 1), Rule: r.records.load(at + 2),
			At: int64(r.records.load(at + 3)), Offence: Offence(min(r.records.load(at+4), uint64(offences))),
		}
		r.header.store(signalTail, tail+1)
		if s.Source == 0 || s.Offence == offences {
			r.damaged.Add(1)
			continue
		}
		fn(s)
	}
}

// Damaged counts what Drain met that cannot be.
func (r *Signals) Damaged() uint64 { return r.damaged.Load() }
