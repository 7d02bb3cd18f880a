// SPDX-License-Identifier: Apache-2.0

// Package ledger is the read model: one snapshot of all that is counted, from the
// NIC queue to the HTTP status, for whoever shows it. It reads and never writes.
package ledger

import (
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Sources are where a snapshot comes from.
type Sources struct {
	Interfaces []Interface
	Listeners  func() []Listener // nil for none
	Zone       *zone.Zone        // nil for none: nothing is known of the L7 plane
	Kernel     host.Kernel
	Version    string
	// LostLines counts access log lines that the writer refused; nil for none.
	LostLines func() (diskFull, other uint64)
	// SampledOut counts access records that are not to be logged; nil for none.
	SampledOut func() uint64
	// LostErrors counts error log lines that were not written; nil for none.
	LostErrors func() (diskFull, queueFull, other uint64)
	// Syslog counts messages sent, and those dropped by cause; nil for none.
	Syslog func() (sent, full, unreachable uint64)
	// Servers appends what is known of upstreams' servers; nil for nothing.
	Servers func([]Server) []Server
	// Verdicts are what became of those given, and how many of each step are held; nil for
	// none.
	Verdicts func() ([]VerdictCount, [4]int)
	// Keys tells of the store of API keys; nil: there is none.
	Keys func() KeyStore
	// Capacity is the machine's; nil: nobody measures it.
	Capacity func() Capacity
	// Cluster tells of the other gateways; nil: there are none.
	Cluster func() Cluster
	// Pushed tells of what goes to a Collector; nil: there is none.
	Pushed func() Pushed
	// Stack tells what the kernel dropped between XDP and the listening sockets; nil: nobody
	// asks.
	Stack func() (host.Stack, error)
}

// Pushed is what became of what was to go to a Collector by OTLP.
type Pushed struct {
	On                         bool
	MetricsSent, MetricsFailed uint64 // readings
	SpansSent, SpansFailed     uint64
	SpansDropped               uint64 // there was no room for them
}

// Cluster is what gateways that share a redis told each other.
type Cluster struct {
	Answers  bool // the redis did, the last time
	Gateways int  // that have limits over several of them, this one among them
	// Leases of keys under such limits and messages of verdicts, by what became of them.
	Leases, Verdicts map[string]uint64
}

// KeyStore is how the store of API keys does, and what workers were told to forget.
type KeyStore struct {
	Answers bool              // it did the last time it was asked
	Failed  uint64            // look-ups that it did not answer
	Purges  map[string]uint64 // by kind, see admin.Caches
}

// Interface is one interface of the kernel plane.
type Interface struct {
	Name     string
	Driver   string
	Status   func() datapath.Status
	Counters func(*datapath.Counters) error
	// Receive is the interface's own count; nil: nobody asks.
	Receive func() (host.Receive, error)
}

// Listener is one address and how its connections were placed.
type Listener struct {
	Address string
	Counts  func() (datapath.SteerCounts, bool) // false: the kernel's hash places them
}

// Snapshot is everything at one moment. Its slices are used again by the next
// Ledger.Snapshot into it.
type Snapshot struct {
	Interfaces []InterfaceCounts
	Listeners  []ListenerCounts
	Workers    []WorkerCounts
	Routes     []RouteCounts
	Upstreams  []UpstreamCounts
	Servers    []Server
	Limits     []LimitCounts
	Verdicts   []VerdictCount
	Held       [4]int // verdicts by policy.Step, from ThinSYNs
	Keys       KeyStore
	Capacity   Capacity
	Cluster    Cluster // nil maps: there is none
	Stack      host.Stack
	Pushed     Pushed
	Requests   []uint64       // by zone.RequestOutcome, all workers
	Handshakes zone.Histogram // durations, all workers
	ZoneBytes  int64
	Generation uint64
	Heartbeat  int64  // CLOCK_MONOTONIC, ns
	LostFull   uint64 // access log lines, disk full
	LostOther  uint64 // access log lines, any other cause
	SampledOut uint64 // access records that are not to be logged
	// Error log lines of the supervisor, and of workers that reached it, which were lost.
	ErrorsFull, ErrorsQueueFull, ErrorsOther uint64
	// Syslog messages sent, dropped since the queue was full, and since nobody took them.
	SyslogSent, SyslogFull, SyslogUnreachable uint64

	Sums        Sums
	Unexplained Unexplained
}

// Sums are totals of the snapshot that holds them.
type Sums struct {
	// Packets received on all interfaces, and their bytes, by verdict.
	PacketsPassed, PacketsDropped uint64
	BytesPassed, BytesDropped     uint64
	// Client connections of all workers. Rejected ones are not among the accepted.
	Accepted, Closed, Rejected, Open uint64
	// Exchanges that ended, once by the status sent and once by outcome, and those
	// under way; and those that began.
	Statuses, Outcomes, UnderWay, Began uint64
}

// Unexplained are the differences that should not be. Workers count on while they
// are read, so small ones come and go under load; at rest each is 0.
type Unexplained struct {
	// Packets that interfaces in native mode received since the ledger's first look, less
	// those counted by outcome; as of the last time that none came while they were read.
	Packets int64
	// Requests that began, less the exchanges that ended and those under way. Those of a
	// worker that died stay.
	Requests int64
	// Statuses: exchanges counted by status less those counted by outcome.
	Statuses int64
	// Connections accepted that are neither closed nor open: those of a worker that
	// died, whose end nobody counted.
	Connections int64
}

// InterfaceCounts are one interface's.
type InterfaceCounts struct {
	Name     string
	Driver   string
	Status   datapath.Status
	Counters datapath.Counters
	Receive  host.Receive
	// Unexplained packets, of an interface in native mode: see the sum.
	Unexplained int64
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
	HandshakesLeft       uint64 // full TLS handshakes that it would begin now
	Counters             []uint64
	Handshakes           []uint64 // by zone.HandshakeOutcome
	Misuses              []uint64 // by zone.Misuse
	HandshakeDuration    zone.Histogram
}

// Counter is one of the worker's plain counters.
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

// Server is what is known of one server of an upstream.
type Server struct {
	Upstream, Address string
	Checked           bool // else it is up as far as anybody knows
	Up                bool
	Good, Bad         uint64 // checks
}

// LimitCounts are one request limit's, over all workers.
type LimitCounts struct {
	Name     string
	Outcomes []uint64 // by zone.LimitOutcome
}

// VerdictCount is how often that became of verdicts of a step and reason.
type VerdictCount struct {
	Fate, Step, Reason string
	Count              uint64
}

// Ledger reads its sources. It is not safe for concurrent use.
type Ledger struct {
	sources Sources
	scratch zone.Histogram
	// Names of the zone's slots, which keep them for its life; the overflow slot, the
	// last one, is not in them.
	routes, upstreams, limits []string

	requestOutcomes   []zone.RequestOutcome
	handshakeOutcomes []zone.HandshakeOutcome
	misuses           []zone.Misuse
	upstreamOutcomes  []zone.UpstreamOutcome
	limitOutcomes     []zone.LimitOutcome
	before            map[string]base // by interface
}

// base is how an interface's two counts differed when they first stood still: packets came
// before the kernel plane was there.
type base struct {
	program            uint32 // that counted
	known              bool
	first, unexplained int64
}

// New makes a ledger over the sources, which stay the caller's and must stay open.
func New(s Sources) *Ledger {
	return &Ledger{
		sources: s, requestOutcomes: zone.RequestOutcomes(), handshakeOutcomes: zone.HandshakeOutcomes(),
		upstreamOutcomes: zone.UpstreamOutcomes(), limitOutcomes: zone.LimitOutcomes(),
		misuses: zone.Misuses(), before: map[string]base{},
	}
}

// Sources are what the ledger was made of.
func (l *Ledger) Sources() *Sources { return &l.sources }
