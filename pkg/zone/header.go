// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"errors"
	"fmt"
)

// Errors of Create, Adopt and Open, for errors.Is.
var (
	ErrInUse   = errors.New("zone is in use")         // the supervisor that made it is alive
	ErrNotZone = errors.New("not a zone")             // a file of something else
	ErrVersion = errors.New("unknown layout version") // a zone of another release
	ErrLayout  = errors.New("another layout")         // of sizes that the configuration does not make
	ErrDamaged = errors.New("zone is damaged")        // the header and the file do not agree
)

// Words of the header page. Those up to headStart keep their places in every
// layout version: who finds a zone of another release can tell whose it is.
const (
	headMagic   = iota
	headVersion // layoutVersion
	headSize    // of the file, bytes
	headPID     // the supervisor's; 0 once it has closed the zone
	headStart   // when that process started, clock ticks since boot; 0 if not known

	headCreated // ns since 1970
	headWorkers
	headRoutes
	headUpstreams
	headAccessRing
	headSections // how many there are
	headLimits
	headBuckets
	headSecret // two random words, of LimitBuckets.Key
	_
	headSessions

	// Written while the gateway runs, on cache lines of their own.
	headBeat       = 2 * lineWords // CLOCK_MONOTONIC, ns
	headGeneration = headBeat + 1
	// More of the layout, where the first lines are full.
	headHolds  = headBeat + 2
	headShares = headBeat + 3
	// The first of the slots that the supervisor's own workers have, see Zone.Shift.
	headShift = headBeat + 4

	headFence = 3 * lineWords // see Fence

	// The section table: kind, offset and length in bytes, for each.
	headTable    = 8 * lineWords
	sectionWords = 3
	maxSections  = 64
)

// Kinds of sections. A reader passes over those that it does not know.
const (
	sectionNames = 1 + iota
	sectionSlabs
	sectionRings
	sectionBuckets
	sectionSignals
	sectionSessions
	sectionHistory
	sectionHolds
	sectionShares
	sectionBusy
)

type section struct{ kind, offset, length uint64 }

// sections are those of a layout, in the order of the file.
func (o offsets) sections() []section {
	return []section{
		{sectionNames, uint64(o.names), uint64(o.slabs - o.names)},
		{sectionSlabs, uint64(o.slabs), uint64(o.rings - o.slabs)},
		{sectionRings, uint64(o.rings), uint64(o.signals - o.rings)},
		{sectionSignals, uint64(o.signals), uint64(o.sessions - o.signals)},
		{sectionSessions, uint64(o.sessions), uint64(o.history - o.sessions)},
		{sectionHistory, uint64(o.history), uint64(o.buckets - o.history)},
		{sectionBuckets, uint64(o.buckets), uint64(o.holds - o.buckets)},
		{sectionHolds, uint64(o.holds), uint64(o.shares - o.holds)},
		{sectionShares, uint64(o.shares), uint64(o.busy - o.shares)},
		{sectionBusy, uint64(o.busy), uint64(o.end - o.busy)},
	}
}

// writeHeader describes the layout. The caller adds whose the zone is.
func writeHeader(h words, l Layout) {
	h.store(headMagic, magic)
	h.store(headVersion, layoutVersion)
	h.store(headSize, uint64(l.Size))
	h.store(headWorkers, uint64(l.Workers))
	h.store(headRoutes, uint64(l.Routes))
	h.store(headUpstreams, uint64(l.Upstreams))
	h.store(headAccessRing, uint64(l.AccessRing))
	h.store(headLimits, uint64(l.Limits))
	h.store(headBuckets, uint64(l.Buckets))
	h.store(headSessions, uint64(l.Sessions))
	h.store(headHolds, uint64(l.Holds))
	h.store(headShares, uint64(l.Shares))
	all := l.offsets().sections()
	h.store(headSections, uint64(len(all)))
	for i, s := range all {
		at := headTable + i*sectionWords
		h.store(at, s.kind)
		h.store(at+1, s.offset)
		h.store(at+2, s.length)
	}
}

// readLayout believes a header only as far as the file's length bears it out.
// h is a private copy: what was checked stays as it was checked.
func readLayout(h words, size int64) (Layout, error) {
	if h[headMagic] != magic {
		return Layout{}, fmt.Errorf("%w: name the file of a gateway", ErrNotZone)
	}
	if v := h[headVersion]; v != layoutVersion {
		return Layout{}, fmt.Errorf("%w %d, this program knows %d: use the program that made it", ErrVersion, v, layoutVersion)
	}
	bounded := func(i int) int { return int(min(h[i], 1<<40)) }
	l := Layout{
		Size: int64(bounded(headSize)), Workers: bounded(headWorkers), Routes: bounded(headRoutes),
		Upstreams: bounded(headUpstreams), Limits: bounded(headLimits), AccessRing: bounded(headAccessRing),
		Buckets: bounded(headBuckets), Sessions: bounded(headSessions), Holds: bounded(headHolds),
		Shares: bounded(headShares),
	}
	if err := l.check(); err != nil {
		return l, fmt.Errorf("%w: %w: restart the gateway", ErrDamaged, err)
	}
	if need := l.offsets().end; l.Size != size || need > size {
		return l, fmt.Errorf("%w: the header tells of %d bytes and needs %d, the file has %d: restart the gateway",
			ErrDamaged, l.Size, need, size)
	}
	if err := checkSections(h, l); err != nil {
		return l, fmt.Errorf("%w: %w: restart the gateway", ErrDamaged, err)
	}
	return l, nil
}

// checkSections wants those of the layout first and as computed; further ones, of
// a later release, only have to lie in the file behind them.
func checkSections(h words, l Layout) error {
	o := l.offsets()
	known := o.sections()
	n := h[headSections]
	if n < uint64(len(known)) || n > maxSections {
		return fmt.Errorf("%d sections", n)
	}
	for i := range int(n) {
		at := headTable + i*sectionWords
		s := section{h[at], h[at+1], h[at+2]}
		if i < len(known) {
			if s != known[i] {
				return fmt.Errorf("section %d is %v, want %v", i, s, known[i])
			}
			continue
		}
		size := uint64(l.Size)
		if s.offset < uint64(o.end) || s.offset > size || s.length > size-s.offset || s.offset%cacheLine != 0 {
			return fmt.Errorf("section %d of kind %d is outside of the file", i, s.kind)
		}
	}
	return nil
}
