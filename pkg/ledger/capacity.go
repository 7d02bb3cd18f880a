// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Times of the capacity: a mean over CapacityWindow, of one sample each capacityStep.
const (
	CapacityWindow = 5 * time.Minute
	capacityStep   = 5 * time.Second
	// BusyCPU is the mean use of the CPUs above which the machine is thought to be too small.
	BusyCPU = 0.6
)

// Shares of the window's time above which something else than load is to blame.
const (
	muchThrottled = 0.05
	muchIOWait    = 0.2
	muchSteal     = 0.1
)

// Cause is what CPU time went to.
type Cause int

const (
	CauseSoftIRQ    Cause = iota // XDP and the network stack below sockets: the kernel does not tell them apart
	CauseHandshakes              // TLS handshakes, their waits left out
	CauseProxying                // workers, less the other causes
	CauseLua                     // key functions
	CauseCollector               // garbage collection of workers, as the runtime estimates
	CauseSupervisor
	CauseOthers // other programs
	CauseSteal  // taken by the host of a virtual machine
	CauseIOWait // idle, and waiting for a disk
	CauseIdle
	causes
)

var causeNames = [causes]string{"softirq", "handshakes", "proxying", "lua", "garbage_collection", "supervisor", "others", "steal", "io_wait", "idle"}

func (c Cause) String() string { return causeNames[c] }

// Causes lists all.
func Causes() []Cause {
	all := make([]Cause, causes)
	for i := range all {
		all[i] = Cause(i)
	}
	return all
}

// Scale says whether another node would help.
type Scale int

const (
	ScaleUnknown   Scale = iota // the window is not full yet
	ScaleEnough                 // no: there is room
	ScaleHelps                  // yes
	ScaleAttack                 // no: most of it goes to what is dropped and refused
	ScaleThrottled              // no: the cores are too hot
	ScaleSteal                  // no: the host of the virtual machine takes the time
	ScaleOthers                 // no: other programs take most
	ScaleIOWait                 // no: it waits for a disk
	scales
)

var scaleNames = [scales]string{"unknown", "enough", "helps", "attack", "throttled", "steal", "others", "io_wait"}

func (s Scale) String() string { return scaleNames[s] }

// Why says the verdict in a sentence.
func (s Scale) Why() string {
	return [scales]string{
		"not yet known: it takes " + CapacityWindow.String() + " to tell",
		"there is room: the CPUs were in use for at most 60 % of the time",
		"another node would help: the CPUs serve most of the time",
		"another node would be attacked as well: most of the time goes to what is dropped and refused; tighten limits",
		"another node is not what is missing: cores are slowed down for their heat",
		"another node on the same host would not help: the host of the virtual machine takes the time",
		"other programs on this machine take most of the time: move them",
		"another node is not what is missing: CPUs wait for a disk",
	}[s]
}

// Scales lists all.
func Scales() []Scale {
	all := make([]Scale, scales)
	for i := range all {
		all[i] = Scale(i)
	}
	return all
}

// Capacity is how busy the machine is, and with what. It is this machine's alone: the mean
// over several is for who sees them all.
type Capacity struct {
	Seconds   [causes]float64 // CPU time by cause, of all CPUs, since the supervisor began
	Throttled float64         // seconds

	Known  bool            // the window is full
	Busy   float64         // mean share of the CPUs in use over the window, 0 to 1, waits for disks left out
	Shares [causes]float64 // of the window's CPU time
	Attack float64         // of the CPUs, as used for what was dropped and refused; at most, for a refusal costs less than a service
	Slowed float64         // share of the window in which a core was throttled
	Scale  Scale
}

// capacitySample is what was counted at one moment.
type capacitySample struct {
	at                              time.Time
	seconds                         [causes]float64
	throttled                       float64
	passed, dropped, ended, refused uint64
}

// Meter follows the capacity. One goroutine calls Sample, any may ask for the rest.
type Meter struct {
	ledger   *Ledger
	snapshot Snapshot
	root     string
	next     time.Time
	window   time.Duration
	first    host.CPU
	workers  []workerTime
	self     float64 // at the first sample

	mu      sync.Mutex
	samples []capacitySample // the oldest first
}

// workerTime is the CPU time of a worker's processes.
type workerTime struct {
	pid          int
	last, before float64 // of the present process; of those before it
}

// NewMeter measures what the ledger, which is the meter's from now on, and the machine below
// the root say.
func NewMeter(l *Ledger, root string) *Meter {
	return &Meter{ledger: l, root: root, window: CapacityWindow}
}

// Sample takes a sample when its time has come.
func (m *Meter) Sample(now time.Time) error {
	if now.Before(m.next) {
		return nil
	}
	m.next = now.Add(capacityStep - 100*time.Millisecond) // ticks come a little early or late
	cpu, err := host.ReadCPU(m.root)
	if err != nil {
		return err
	}
	if err := m.ledger.Snapshot(&m.snapshot); err != nil {
		return fmt.Errorf("measure capacity: %w", err)
	}
	self := host.ProcessTime(m.root, os.Getpid())
	if m.first.Total() == 0 {
		m.first, m.self = cpu, self
	}
	s := capacitySample{at: now, throttled: cpu.Throttled - m.first.Throttled}
	m.split(&s, &cpu, self-m.self)
	s.passed, s.dropped = m.snapshot.Sums.PacketsPassed, m.snapshot.Sums.PacketsDropped
	for o, n := range m.snapshot.Requests {
		s.ended += n
		if refusal(zone.RequestOutcome(o)) {
			s.refused += n
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.samples); n > 0 { // no cause goes down, as the kernel's waits and differences may
		for i := range s.seconds {
			s.seconds[i] = max(s.seconds[i], m.samples[n-1].seconds[i])
		}
	}
	m.samples = append(m.samples, s)
	for len(m.samples) > 2 && now.Sub(m.samples[1].at) >= m.window {
		m.samples = append(m.samples[:0], m.samples[1:]...)
	}
	return nil
}

// split divides the time since the first sample.
func (m *Meter) split(s *capacitySample, cpu *host.CPU, self float64) {
	t := &s.seconds
	t[CauseSoftIRQ], t[CauseSteal] = cpu.SoftIRQ-m.first.SoftIRQ, cpu.Steal-m.first.Steal
	t[CauseIOWait], t[CauseIdle] = cpu.IOWait-m.first.IOWait, cpu.Idle-m.first.Idle
	t[CauseSupervisor] = self
	workers := 0.0
	m.workers = resize(m.workers, len(m.snapshot.Workers))
	for i := range m.snapshot.Workers {
		w := &m.snapshot.Workers[i]
		workers += m.workers[i].add(w.PID, host.ProcessTime(m.root, w.PID))
		t[CauseHandshakes] += seconds(w.Counter(zone.HandshakeTime))
		t[CauseLua] += seconds(w.Counter(zone.LuaTime))
		t[CauseCollector] += seconds(w.Counter(zone.CollectorTime))
	}
	// What workers tell of themselves is by another clock than the kernel's ticks.
	t[CauseProxying] = max(workers-t[CauseHandshakes]-t[CauseLua]-t[CauseCollector], 0)
	t[CauseOthers] = max(cpu.Programs-m.first.Programs-workers-self, 0)
}

func seconds(ns uint64) float64 { return time.Duration(ns).Seconds() }

// add notes what the process has used by now, and returns the sum over all before it.
func (w *workerTime) add(pid int, used float64) float64 {
	if pid != w.pid || used < w.last {
		w.before += w.last
		w.pid, w.last = pid, 0
	}
	w.last = used
	return w.before + w.last
}

// refusal tells whether an exchange ended because its client should not have asked.
func refusal(o zone.RequestOutcome) bool {
	switch o {
	case zone.RequestBad, zone.RequestHeaderTooLarge, zone.RequestURITooLong, zone.RequestHTTP2Error, zone.RequestLimited,
		zone.RequestConcurrencyLimited, zone.RequestKeyMissing, zone.RequestKeyRefused:
		return true
	}
	return false
}

// Capacity is over the window that ends with the last sample.
func (m *Meter) Capacity() Capacity {
	m.mu.Lock()
	defer m.mu.Unlock()
	var c Capacity
	if len(m.samples) == 0 {
		return c
	}
	first, last := &m.samples[0], &m.samples[len(m.samples)-1]
	c.Seconds, c.Throttled = last.seconds, last.throttled
	total := 0.0
	for i := range c.Shares {
		c.Shares[i] = last.seconds[i] - first.seconds[i]
		total += c.Shares[i]
	}
	if total <= 0 {
		return c
	}
	for i := range c.Shares {
		c.Shares[i] /= total
	}
	c.Known = last.at.Sub(first.at) >= m.window-capacityStep
	c.Busy = 1 - c.Shares[CauseIdle] - c.Shares[CauseIOWait]
	c.Slowed = (last.throttled - first.throttled) / last.at.Sub(first.at).Seconds()
	workers := c.Shares[CauseProxying] + c.Shares[CauseHandshakes] + c.Shares[CauseLua] + c.Shares[CauseCollector]
	c.Attack = c.Shares[CauseSoftIRQ]*share(last.dropped-first.dropped, last.passed-first.passed) +
		workers*share(last.refused-first.refused, last.ended-first.ended-(last.refused-first.refused))
	c.Scale = c.scale()
	return c
}

// share is that of a part beside the rest.
func share(part, rest uint64) float64 {
	if part+rest == 0 {
		return 0
	}
	return float64(part) / float64(part+rest)
}

// scale finds the first thing that explains the load.
func (c *Capacity) scale() Scale {
	switch {
	case !c.Known:
		return ScaleUnknown
	case c.Slowed > muchThrottled:
		return ScaleThrottled
	case c.Shares[CauseIOWait] > muchIOWait:
		return ScaleIOWait
	case c.Busy <= BusyCPU:
		return ScaleEnough
	case c.Shares[CauseSteal] > muchSteal:
		return ScaleSteal
	case c.Attack > c.Busy/2:
		return ScaleAttack
	case c.Shares[CauseOthers] > c.Busy/2:
		return ScaleOthers
	}
	return ScaleHelps
}
