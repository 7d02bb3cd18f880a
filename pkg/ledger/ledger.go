// SPDX-License-Identifier: Apache-2.0

// Package ledger is the read model: one snapshot of all that is counted, from the
// NIC queue to the HTTP status, for whoever shows it. It reads and never writes.
package ledger

import (
	"errors"
	"fmt"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Sources are where a snapshot comes from.
type Sources struct {
	Interfaces []Interface
	Listeners  []Listener
	Zone       *zone.Zone
	Kernel     host.Kernel
	Version    string
	// LostLines counts access log lines that the writer refused: disk full, other.
	LostLines func() (diskFull, other uint64)
}

// Interface is one interface of the kernel plane.
type Interface struct {
	Name     string
	Driver   string
	Status   func() datapath.Status
	Counters func(*datapath.Counters) error
}

// Listener is one address and how its connections were placed.
type Listener struct {
	Address string
	Counts  func() (datapath.SteerCounts, bool) // false: the kernel's hash places them
}

// Snapshot is everything at one moment. Its slices are used again by the next
// Ledger.Read into it.
type Snapshot struct {
	Interfaces []InterfaceCounts
	Listeners  []ListenerCounts
	Workers    []WorkerCounts
	Routes     []RouteCounts
	Upstreams  []UpstreamCounts
	Requests   []uint64 // by zone.RequestOutcome, all workers
	ZoneBytes  int64
	Generation uint64
	Heartbeat  int64 // CLOCK_MONOTONIC, ns
	LostFull   uint64
	LostOther  uint64
}

// InterfaceCounts are one interface's.
type InterfaceCounts struct {
	Name     string
	Driver   string
	Status   datapath.Status
	Counters datapath.Counters
}

// ListenerCounts are one listener's.
type ListenerCounts struct {
	Address string
	Steered bool
	datapath.SteerCounts
}

// WorkerCounts are one worker's.
type WorkerCounts struct {
	PID, Core            int // Core -1: not pinned
	State                zone.State
	Restarts, Generation uint64
	Connections          uint64 // open now
	InFlight             uint64 // exchanges under way
	Counters             []uint64
	Handshakes           []uint64 // by zone.HandshakeOutcome
	HandshakeDuration    zone.Histogram
}

// Counter reads one of the worker's plain counters.
func (w *WorkerCounts) Counter(c zone.Counter) uint64 { return w.Counters[c] }

// RouteCounts are one route's, over all workers.
type RouteCounts struct {
	Name     string
	Classes  [5]uint64 // 1xx to 5xx
	Duration zone.Histogram
}

// UpstreamCounts are one upstream's, over all workers.
type UpstreamCounts struct {
	Name     string
	Outcomes []uint64 // by zone.UpstreamOutcome
	Duration zone.Histogram
}

// Unexplained is how many exchanges were counted by route and not by outcome, or
// the other way round: 0 at rest.
func (s *Snapshot) Unexplained() int64 {
	n := int64(0)
	for _, r := range s.Routes {
		for _, c := range r.Classes {
			n += int64(c)
		}
	}
	for _, c := range s.Requests {
		n -= int64(c)
	}
	return n
}

// Ledger reads its sources. It is not safe for concurrent use.
type Ledger struct {
	sources Sources
	scratch zone.Histogram
}

// New makes a ledger over the sources, which stay the caller's.
func New(s Sources) *Ledger { return &Ledger{sources: s} }

// Sources are what the ledger was made of.
func (l *Ledger) Sources() *Sources { return &l.sources }

// resize gives a slice n elements and keeps those it had, for their buffers.
func resize[T any](s []T, n int) []T {
	for cap(s) < n {
		s = append(s[:cap(s)], *new(T))
	}
	return s[:n]
}

// Read fills the snapshot. An interface that cannot be read is in the error; the
// rest is filled all the same.
func (l *Ledger) Read(s *Snapshot) error {
	var errs []error
	s.Interfaces = resize(s.Interfaces, len(l.sources.Interfaces))
	for i, in := range l.sources.Interfaces {
		out := &s.Interfaces[i]
		out.Name, out.Driver, out.Status = in.Name, in.Driver, in.Status()
		if err := in.Counters(&out.Counters); err != nil {
			errs = append(errs, fmt.Errorf("read ledger: %w", err))
		}
	}
	s.Listeners = resize(s.Listeners, len(l.sources.Listeners))
	for i, in := range l.sources.Listeners {
		out := &s.Listeners[i]
		out.Address = in.Address
		out.SteerCounts, out.Steered = in.Counts()
	}
	l.readZone(s)
	if l.sources.LostLines != nil {
		s.LostFull, s.LostOther = l.sources.LostLines()
	}
	return errors.Join(errs...)
}

func (l *Ledger) readZone(s *Snapshot) {
	z := l.sources.Zone
	s.ZoneBytes, s.Generation, s.Heartbeat = z.Size(), z.Generation(), z.Heartbeat()
	s.Workers = resize(s.Workers, z.Workers())
	s.Requests = resize(s.Requests, len(zone.RequestOutcomes()))
	clear(s.Requests)
	for i := range s.Workers {
		slab := z.Worker(i)
		readWorker(slab, &s.Workers[i])
		for _, o := range zone.RequestOutcomes() {
			s.Requests[o] += slab.LoadRequest(o)
		}
	}
	l.readRoutes(s, z)
	l.readUpstreams(s, z)
}

func readWorker(slab *zone.Slab, w *WorkerCounts) {
	w.PID = int(slab.LoadGauge(zone.GaugePID))
	w.Core = int(slab.LoadGauge(zone.GaugeCore)) - 1
	w.State = zone.State(slab.LoadGauge(zone.GaugeState))
	w.Restarts = slab.LoadGauge(zone.GaugeRestarts)
	w.Generation = slab.LoadGauge(zone.GaugeGeneration)
	w.Connections = slab.LoadGauge(zone.GaugeConnections)
	w.InFlight = slab.LoadGauge(zone.GaugeRequests)
	w.Counters = resize(w.Counters, int(zone.PlainCounters))
	for c := range w.Counters {
		w.Counters[c] = slab.Load(zone.Counter(c))
	}
	w.Handshakes = resize(w.Handshakes, len(zone.HandshakeOutcomes()))
	for _, o := range zone.HandshakeOutcomes() {
		w.Handshakes[o] = slab.LoadHandshake(o)
	}
	slab.HandshakeDuration(&w.HandshakeDuration)
}

func (l *Ledger) readRoutes(s *Snapshot, z *zone.Zone) {
	s.Routes = s.Routes[:0]
	for slot, name := range z.Routes() {
		if name == "" {
			continue
		}
		s.Routes = resize(s.Routes, len(s.Routes)+1)
		out := &s.Routes[len(s.Routes)-1]
		*out = RouteCounts{Name: name}
		for i := range z.Workers() {
			slab := z.Worker(i)
			for c, n := range slab.RouteRequests(slot) {
				out.Classes[c] += n
			}
			slab.RouteDuration(slot, &l.scratch)
			add(&out.Duration, &l.scratch)
		}
	}
}

func (l *Ledger) readUpstreams(s *Snapshot, z *zone.Zone) {
	s.Upstreams = s.Upstreams[:0]
	for slot, name := range z.Upstreams() {
		if name == "" {
			continue
		}
		s.Upstreams = resize(s.Upstreams, len(s.Upstreams)+1)
		out := &s.Upstreams[len(s.Upstreams)-1]
		out.Name, out.Duration = name, zone.Histogram{}
		out.Outcomes = resize(out.Outcomes, len(zone.UpstreamOutcomes()))
		clear(out.Outcomes)
		for i := range z.Workers() {
			slab := z.Worker(i)
			for _, o := range zone.UpstreamOutcomes() {
				out.Outcomes[o] += slab.LoadUpstream(slot, o)
			}
			slab.UpstreamDuration(slot, &l.scratch)
			add(&out.Duration, &l.scratch)
		}
	}
}

func add(sum, h *zone.Histogram) {
	sum.Sum += h.Sum
	sum.Count += h.Count
	for i := range sum.Buckets {
		sum.Buckets[i] += h.Buckets[i]
	}
}
