// SPDX-License-Identifier: Apache-2.0

// Package zone is the shared memory of the gateway: one file that the supervisor
// makes and maps, every worker maps to count into, and any reader maps read-only.
//
// The file is a header of one page, a table of names, and for each worker a slab
// (counters, gauges, histograms; the worker is its only writer) and a ring of
// access records. All offsets follow from the numbers in the header by one
// function, and a reader checks those numbers against the file's length, so it
// trusts no offset, length or index that it reads. Values are 64-bit and aligned;
// readers may see one counter ahead of another, never half a value.
//
// A full ring drops the record and its writer counts the drop; a name that finds
// no slot shares the last one, called overflow. Nobody waits for anybody, and
// nothing that a killed process left half done is ever seen.
package zone

import "fmt"

const (
	magic = 0x0031656e6f7a7778 // "xwzone1\0", little-endian
	// layoutVersion changes with anything that moves a byte. New counters go to the
	// end of their range, new sections behind the last: neither needs a new version.
	layoutVersion = 8

	pageSize  = 4096
	cacheLine = 64
	lineWords = cacheLine / 8
	nameSize  = 64 // a slot's name: length byte and up to 63 bytes
)

// Layout is the size and shape of a zone.
type Layout struct {
	Size       int64 // of the file, bytes; 0: DefaultSize
	Workers    int   // 1 to MaxWorkers
	Routes     int   // slots, overflow included; 0: what fits, at most DefaultRoutes
	Upstreams  int   // slots, overflow included; 0: what fits, at most DefaultUpstreams
	Limits     int   // slots of request limits, overflow included; 0: what fits, at most DefaultLimits
	AccessRing int   // bytes for each slot, cut to a power of two; 0 or DefaultAccessRing: that, or what fits
	Buckets    int   // of request limits, a power of two; 0: as many as fit
	Sessions   int   // of each worker, a power of two; 0: what fits, at most DefaultSessions
	Holds      int   // places of each worker, a power of two; 0: what fits, at most DefaultHolds
	Shares     int   // keys of limits over several gateways, a power of two; 0: what fits, at most DefaultShares
}

// Defaults and bounds of a layout.
const (
	DefaultSize       = 128 << 20
	DefaultRoutes     = 1024
	DefaultUpstreams  = 256
	DefaultLimits     = 64
	DefaultAccessRing = 1 << 20
	DefaultSessions   = 1 << 14
	DefaultHolds      = 1 << 16
	DefaultShares     = 1 << 16
	MaxWorkers        = 256
	minAccessRing     = 64 << 10
	maxAccessRing     = 1 << 30
	minSessions       = 1 << 7
	maxSessions       = 1 << 20
	minBuckets        = 1 << 12
	maxBuckets        = 1 << 26
	minHolds          = pageSize / bucketBytes
	maxHolds          = 1 << 24
	minShares         = 1 << 9
	maxShares         = 1 << 22
	leastFitted       = 16      // slots that are given up last
	maxSlots          = 1 << 15 // access records carry slots in 16 bits with sign
)

// offsets are where things lie, in bytes, all derived from a layout.
type offsets struct {
	names    int64 // routes, upstreams, then limits
	slabs    int64
	slabSize int64
	rings    int64
	ringSize int64 // with its header
	signals  int64
	sessions int64
	history  int64
	buckets  int64
	holds    int64
	shares   int64
	busy     int64
	end      int64

	// words within a slab
	routes    int
	upstreams int
	limits    int
}

// Words of a slab: gauges, counters, the handshake histogram, then routes, upstreams and
// limits. What different processes write lies on different cache lines.
const (
	slabGauges    = 0
	slabCounters  = slabGauges + 4*lineWords
	slabHandshake = slabCounters + counterWords
	slabFixed     = slabHandshake + histogramWords

	routeClasses   = 0 // five status classes
	routeHistogram = lineWords
	routeWords     = (routeHistogram + histogramWords + lineWords - 1) / lineWords * lineWords

	upstreamCounts    = 0 // by UpstreamOutcome
	upstreamHistogram = 2 * lineWords
	upstreamWords     = (upstreamHistogram + histogramWords + lineWords - 1) / lineWords * lineWords

	limitWords = lineWords // by LimitOutcome
)

var ( // the outcomes fit
	_ [upstreamHistogram - int(upstreamOutcomes)]struct{}
	_ [limitWords - int(limitOutcomes)]struct{}
)

func align[T int | int64](n, to T) T { return (n + to - 1) / to * to }

func (l Layout) offsets() offsets {
	var o offsets
	o.names = pageSize
	o.slabs = align(o.names+int64(l.Routes+l.Upstreams+l.Limits)*nameSize, pageSize)
	o.routes = align(slabFixed, lineWords)
	o.upstreams = o.routes + l.Routes*routeWords
	o.limits = o.upstreams + l.Upstreams*upstreamWords
	o.slabSize = align(int64(o.limits+l.Limits*limitWords)*8, pageSize)
	o.rings = o.slabs + int64(l.slots())*o.slabSize
	o.ringSize = ringHeader + int64(l.AccessRing)
	o.signals = o.rings + int64(l.slots())*o.ringSize
	o.sessions = o.signals + int64(l.slots())*signalBytes
	o.history = o.sessions + int64(l.slots())*l.sessionSize()
	o.buckets = o.history + historyBytes
	o.holds = o.buckets + int64(l.Buckets)*bucketBytes
	o.shares = o.holds + int64(l.slots())*int64(l.Holds)*bucketBytes
	o.busy = o.shares + int64(l.Shares)*shareBytes
	o.end = o.busy + 2*busyBytes
	return o
}

// slots is how many slabs, rings and tables there are: see Zone.Shift.
func (l Layout) slots() int { return 2 * l.Workers }

// sessionSize is of one worker's sessions, in bytes.
func (l Layout) sessionSize() int64 { return int64(l.Sessions) * sessionBytes }

// Need is the least size of a file with this layout, in bytes. Slots left to what
// fits count with the few that there are at least.
func (l Layout) Need() int64 {
	if l.AccessRing == 0 {
		l.AccessRing = minAccessRing
	}
	l.AccessRing = floorPowerOfTwo(l.AccessRing)
	if l.Routes == 0 {
		l.Routes = leastFitted
	}
	if l.Upstreams == 0 {
		l.Upstreams = leastFitted
	}
	if l.Limits == 0 {
		l.Limits = leastFitted
	}
	if l.Sessions == 0 {
		l.Sessions = minSessions
	}
	if l.Buckets == 0 {
		l.Buckets = minBuckets
	}
	if l.Holds == 0 {
		l.Holds = minHolds
	}
	if l.Shares == 0 {
		l.Shares = minShares
	}
	return l.offsets().end
}

// Complete fills in what is left to defaults: as many slots as fit. Its error says
// what the least size would be.
func (l Layout) Complete() (Layout, error) {
	if l.Size == 0 {
		l.Size = DefaultSize
	}
	fitRing := l.AccessRing == 0 || l.AccessRing == DefaultAccessRing
	if l.AccessRing == 0 {
		l.AccessRing = DefaultAccessRing
	}
	l.AccessRing = floorPowerOfTwo(l.AccessRing)
	for fitRing && l.AccessRing > minAccessRing && l.Need() > l.Size {
		l.AccessRing /= 2
	}
	least := l.Need()
	fitRoutes, fitUpstreams, fitLimits, fitSessions, fitHolds := l.Routes == 0, l.Upstreams == 0, l.Limits == 0, l.Sessions == 0, l.Holds == 0
	fitShares := l.Shares == 0
	if fitRoutes {
		l.Routes = DefaultRoutes
	}
	if fitUpstreams {
		l.Upstreams = DefaultUpstreams
	}
	if fitLimits {
		l.Limits = DefaultLimits
	}
	if fitSessions {
		l.Sessions = DefaultSessions
	}
	for fitSessions && l.Sessions > minSessions && l.Need() > l.Size {
		l.Sessions /= 2
	}
	if fitHolds {
		l.Holds = DefaultHolds
	}
	for fitHolds && l.Holds > minHolds && l.Need() > l.Size {
		l.Holds /= 2
	}
	if fitShares {
		l.Shares = DefaultShares
	}
	for fitShares && l.Shares > minShares && l.Need() > l.Size {
		l.Shares /= 2
	}
	for fitRoutes && l.Routes > leastFitted && l.Need() > l.Size {
		l.Routes /= 2
	}
	for fitUpstreams && l.Upstreams > leastFitted && l.Need() > l.Size {
		l.Upstreams /= 2
	}
	for fitLimits && l.Limits > leastFitted && l.Need() > l.Size {
		l.Limits /= 2
	}
	if l.Buckets == 0 {
		l.Buckets = minBuckets
		for l.Buckets < maxBuckets && l.offsets().end+int64(l.Buckets)*bucketBytes <= l.Size {
			l.Buckets *= 2
		}
	}
	if err := l.check(); err != nil {
		return l, err
	}
	if least > l.Size {
		return l, fmt.Errorf("%d bytes are too few for %d workers: set shared_memory_zone to at least %d, or access_ring below %d",
			l.Size, l.Workers, least, l.AccessRing)
	}
	return l, nil
}

func (l Layout) check() error {
	switch {
	case l.Workers < 1 || l.Workers > MaxWorkers:
		return fmt.Errorf("%d workers: 1 to %d are possible", l.Workers, MaxWorkers)
	case l.Routes < 2 || l.Routes > maxSlots || l.Upstreams < 2 || l.Upstreams > maxSlots || l.Limits < 2 || l.Limits > maxSlots:
		return fmt.Errorf("%d route, %d upstream and %d limit slots: 2 to %d are possible", l.Routes, l.Upstreams, l.Limits, maxSlots)
	case l.Buckets < minBuckets || l.Buckets > maxBuckets || l.Buckets != floorPowerOfTwo(l.Buckets):
		return fmt.Errorf("%d buckets: a power of two from %d to %d is possible", l.Buckets, minBuckets, maxBuckets)
	case l.Sessions < minSessions || l.Sessions > maxSessions || l.Sessions != floorPowerOfTwo(l.Sessions):
		return fmt.Errorf("%d sessions: a power of two from %d to %d is possible", l.Sessions, minSessions, maxSessions)
	case l.Holds < minHolds || l.Holds > maxHolds || l.Holds != floorPowerOfTwo(l.Holds):
		return fmt.Errorf("%d places for what is open: a power of two from %d to %d is possible", l.Holds, minHolds, maxHolds)
	case l.Shares < minShares || l.Shares > maxShares || l.Shares != floorPowerOfTwo(l.Shares):
		return fmt.Errorf("%d keys of limits over several gateways: a power of two from %d to %d is possible", l.Shares, minShares, maxShares)
	case l.AccessRing < minAccessRing || l.AccessRing > maxAccessRing || l.AccessRing != floorPowerOfTwo(l.AccessRing):
		return fmt.Errorf("access ring of %d bytes: %d to %d are possible", l.AccessRing, minAccessRing, maxAccessRing)
	}
	return nil
}

func floorPowerOfTwo(n int) int {
	p := 1
	for p <= n/2 {
		p *= 2
	}
	return p
}
