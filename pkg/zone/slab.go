// SPDX-License-Identifier: Apache-2.0

package zone

import "time"

// Slab is the counters, gauges and histograms of one worker. That worker is the
// only one to write them (the supervisor writes its own gauges), from any of its
// goroutines; all may read. Nothing here waits or allocates.
type Slab struct {
	mem           words
	route         int // first word of the first route
	upstream      int
	limit         int
	routeSlots    int
	upstreamSlots int
	limitSlots    int
	holds         words

	// Access is the worker's ring of access records.
	Access *Ring
	// Signals are the streaks that it has noticed, and Sessions who speaks to it.
	Signals  *Signals
	Sessions *Sessions
}

func newSlab(mem []byte, l Layout, o offsets, ring *Ring) *Slab {
	return &Slab{
		mem: wordsOf(mem), route: o.routes, upstream: o.upstreams, limit: o.limits,
		routeSlots: l.Routes, upstreamSlots: l.Upstreams, limitSlots: l.Limits, Access: ring,
	}
}

// Add counts n.
func (s *Slab) Add(c Counter, n uint64) { s.mem.add(slabCounters+int(c), n) }

// Load reads a counter.
func (s *Slab) Load(c Counter) uint64 { return s.mem.load(slabCounters + int(c)) }

// Set writes a gauge. To set the state to StateDead also ends what the worker had
// under way: its connections went with it, and nobody else counts them down.
func (s *Slab) Set(g Gauge, v uint64) {
	s.mem.store(g.place(), v)
	if g == GaugeState && State(v) == StateDead {
		s.mem.store(GaugeConnections.place(), 0)
		s.mem.store(GaugeRequests.place(), 0)
		s.mem.store(GaugeHandshakesLeft.place(), 0)
		giveBack(s.holds)
	}
}

// Move adds to a gauge; a negative n subtracts.
func (s *Slab) Move(g Gauge, n int) { s.mem.add(g.place(), uint64(n)) }

// LoadGauge reads a gauge.
func (s *Slab) LoadGauge(g Gauge) uint64 { return s.mem.load(g.place()) }

// within is the slot, or the overflow slot for one that is none.
func within(slot, slots int) int {
	if uint(slot) >= uint(slots) {
		return slots - 1
	}
	return slot
}

func (s *Slab) routeWords(slot int) words {
	at := s.route + within(slot, s.routeSlots)*routeWords
	return s.mem[at : at+routeWords]
}

func (s *Slab) upstreamWords(slot int) words {
	at := s.upstream + within(slot, s.upstreamSlots)*upstreamWords
	return s.mem[at : at+upstreamWords]
}

// Request counts an ended exchange: its route's slot (out of range: overflow), the
// status sent (100 to 599; others count as 5xx), the time it took and its outcome.
func (s *Slab) Request(route, status int, d time.Duration, outcome RequestOutcome) {
	class := status/100 - 1
	if class < 0 || class > 4 {
		class = 4
	}
	r := s.routeWords(route)
	r.add(routeClasses+class, 1)
	observe(r[routeHistogram:], d)
	s.mem.add(slabCounters+counterRequests+int(outcome), 1)
	if class >= 3 {
		s.Add(Errors(class == 4, outcome.Source()), 1)
	}
}

// Upstream counts one try at an upstream and the time until its reply's head.
func (s *Slab) Upstream(upstream int, outcome UpstreamOutcome, d time.Duration) {
	u := s.upstreamWords(upstream)
	u.add(upstreamCounts+int(outcome), 1)
	observe(u[upstreamHistogram:], d)
}

// Limit counts what a request limit did with one request.
func (s *Slab) Limit(limit int, outcome LimitOutcome) {
	s.mem.add(s.limit+within(limit, s.limitSlots)*limitWords+int(outcome), 1)
}

// LoadLimit reads how many requests the limit did that with.
func (s *Slab) LoadLimit(limit int, o LimitOutcome) uint64 {
	return s.mem.load(s.limit + within(limit, s.limitSlots)*limitWords + int(o))
}

// Handshake counts one, and the time it took.
func (s *Slab) Handshake(outcome HandshakeOutcome, d time.Duration) {
	s.mem.add(slabCounters+counterHandshakes+int(outcome), 1)
	observe(s.mem[slabHandshake:], d)
}

// Misuse counts a connection that was ended for it.
func (s *Slab) Misuse(m Misuse) {
	s.mem.add(slabCounters+int(HTTP2Misuse), 1)
	s.mem.add(slabCounters+counterMisuse+int(m), 1)
}

// LoadMisuse reads how many connections were ended for it.
func (s *Slab) LoadMisuse(m Misuse) uint64 { return s.mem.load(slabCounters + counterMisuse + int(m)) }

// LoadRequest reads how many exchanges ended with the outcome.
func (s *Slab) LoadRequest(o RequestOutcome) uint64 {
	return s.mem.load(slabCounters + counterRequests + int(o))
}

// LoadHandshake reads how many handshakes ended with the outcome.
func (s *Slab) LoadHandshake(o HandshakeOutcome) uint64 {
	return s.mem.load(slabCounters + counterHandshakes + int(o))
}

// HandshakeDuration reads the histogram.
func (s *Slab) HandshakeDuration(dst *Histogram) { readHistogram(s.mem[slabHandshake:], dst) }

// RouteRequests reads a route's exchanges by status class, 1xx to 5xx.
func (s *Slab) RouteRequests(route int) (classes [5]uint64) {
	r := s.routeWords(route)
	for i := range classes {
		classes[i] = r.load(routeClasses + i)
	}
	return classes
}

// RouteDuration reads a route's histogram.
func (s *Slab) RouteDuration(route int, dst *Histogram) {
	readHistogram(s.routeWords(route)[routeHistogram:], dst)
}

// LoadUpstream reads how many tries at the upstream ended with the outcome.
func (s *Slab) LoadUpstream(upstream int, o UpstreamOutcome) uint64 {
	return s.upstreamWords(upstream).load(upstreamCounts + int(o))
}

// UpstreamDuration reads an upstream's histogram.
func (s *Slab) UpstreamDuration(upstream int, dst *Histogram) {
	readHistogram(s.upstreamWords(upstream)[upstreamHistogram:], dst)
}
