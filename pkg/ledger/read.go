// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/zone"
)

// overflow is the name of the zone's last slots.
const overflow = "overflow"

// Snapshot fills dst, whose buffers it uses again: what dst held before is gone. An
// interface that cannot be read has no counters in dst and is in the error; the
// rest is filled all the same.
func (l *Ledger) Snapshot(dst *Snapshot) error {
	err := l.readInterfaces(dst)
	if l.sources.Stack != nil {
		var stackErr error
		dst.Stack, stackErr = l.sources.Stack()
		err = errors.Join(err, stackErr)
	}
	var listeners []Listener
	if l.sources.Listeners != nil {
		listeners = l.sources.Listeners()
	}
	dst.Listeners = resize(dst.Listeners, len(listeners))
	for i, in := range listeners {
		out := &dst.Listeners[i]
		out.Address = in.Address
		out.SteerCounts, out.Steered = in.Counts()
	}
	if l.sources.Zone != nil {
		l.readZone(dst)
	}
	dst.Servers = dst.Servers[:0]
	if l.sources.Servers != nil {
		dst.Servers = l.sources.Servers(dst.Servers)
	}
	dst.Verdicts, dst.Held = nil, [4]int{}
	if l.sources.Verdicts != nil {
		dst.Verdicts, dst.Held = l.sources.Verdicts()
	}
	if l.sources.Keys != nil {
		dst.Keys = l.sources.Keys()
	}
	dst.Capacity = Capacity{}
	if l.sources.Capacity != nil {
		dst.Capacity = l.sources.Capacity()
	}
	dst.Cluster = Cluster{}
	if l.sources.Cluster != nil {
		dst.Cluster = l.sources.Cluster()
	}
	dst.Pushed = Pushed{}
	if l.sources.Pushed != nil {
		dst.Pushed = l.sources.Pushed()
	}
	dst.LostFull, dst.LostOther = 0, 0
	if l.sources.LostLines != nil {
		dst.LostFull, dst.LostOther = l.sources.LostLines()
	}
	dst.SampledOut = 0
	if l.sources.SampledOut != nil {
		dst.SampledOut = l.sources.SampledOut()
	}
	dst.ErrorsFull, dst.ErrorsQueueFull, dst.ErrorsOther = 0, 0, 0
	if l.sources.LostErrors != nil {
		dst.ErrorsFull, dst.ErrorsQueueFull, dst.ErrorsOther = l.sources.LostErrors()
	}
	dst.SyslogSent, dst.SyslogFull, dst.SyslogUnreachable = 0, 0, 0
	if l.sources.Syslog != nil {
		dst.SyslogSent, dst.SyslogFull, dst.SyslogUnreachable = l.sources.Syslog()
	}
	dst.Sums = sum(dst)
	dst.Unexplained = Unexplained{
		Requests:    int64(dst.Sums.Began - dst.Sums.Outcomes - dst.Sums.UnderWay),
		Statuses:    int64(dst.Sums.Statuses - dst.Sums.Outcomes),
		Connections: int64(dst.Sums.Accepted - dst.Sums.Closed - dst.Sums.Open),
	}
	for i := range dst.Interfaces {
		dst.Unexplained.Packets += dst.Interfaces[i].Unexplained
	}
	return err
}

// resize gives a slice n elements and keeps those it had, for their buffers.
func resize[T any](s []T, n int) []T {
	for cap(s) < n {
		s = append(s[:cap(s)], *new(T))
	}
	return s[:n]
}

func (l *Ledger) readInterfaces(dst *Snapshot) error {
	var errs []error
	dst.Interfaces = resize(dst.Interfaces, len(l.sources.Interfaces))
	for i, in := range l.sources.Interfaces {
		out := &dst.Interfaces[i]
		out.Name, out.Driver, out.Status = in.Name, in.Driver, in.Status()
		out.Receive, out.Unexplained = host.Receive{}, 0
		if err := in.Counters(&out.Counters); err != nil {
			// Half of the rows would look like counters that went down.
			out.Counters.Ingress, out.Counters.Egress = out.Counters.Ingress[:0], out.Counters.Egress[:0]
			errs = append(errs, fmt.Errorf("read ledger: interface %s: %w", in.Name, err))
			continue
		}
		if in.Receive != nil {
			errs = append(errs, l.reconcile(in, out))
		}
	}
	return errors.Join(errs...)
}

// looks bounds how often two counts are read until nothing came in between.
const looks = 4

// reconcile compares the interface's own count with that of the kernel plane, at a moment at
// which neither moves; while packets keep coming it stays with what it said last. In other
// modes than native the stack makes one packet of several before it is counted.
func (l *Ledger) reconcile(in Interface, out *InterfaceCounts) (err error) {
	if out.Receive, err = in.Receive(); err != nil {
		return fmt.Errorf("read ledger: interface %s: %w", in.Name, err)
	}
	if out.Status.Mode != datapath.ModeNative || !out.Status.Attached {
		delete(l.before, in.Name)
		return nil
	}
	was := l.before[in.Name]
	if was.program != out.Status.Program { // attached anew: counts began anew
		was = base{program: out.Status.Program}
	}
	last := out.twice()
	for range looks {
		if out.Receive, err = in.Receive(); err == nil {
			err = in.Counters(&out.Counters)
		}
		if err != nil {
			return fmt.Errorf("read ledger: interface %s: %w", in.Name, err)
		}
		now := out.twice()
		if now == last {
			if !was.known {
				was.known, was.first = true, now.difference()
			}
			was.unexplained = now.difference() - was.first
			break
		}
		last = now
	}
	l.before[in.Name] = was
	out.Unexplained = was.unexplained
	return nil
}

// twice is one thing counted by two.
type twice struct{ received, counted uint64 }

func (t twice) difference() int64 { return int64(t.received - t.counted) }

func (c *InterfaceCounts) twice() twice {
	t := twice{received: c.Receive.Packets}
	for i := range c.Counters.Ingress {
		t.counted += c.Counters.Ingress[i].Packets
	}
	return t
}

func (l *Ledger) readZone(dst *Snapshot) {
	z := l.sources.Zone
	dst.ZoneBytes, dst.Generation, dst.Heartbeat = z.Size(), z.Generation(), z.Heartbeat()
	dst.Workers = resize(dst.Workers, z.Workers())
	dst.Requests = resize(dst.Requests, len(l.requestOutcomes))
	clear(dst.Requests)
	dst.Handshakes = zone.Histogram{}
	shift, other := z.Shift(), z.OtherShift()
	for i := range dst.Workers {
		l.readWorker(z.Worker(shift+i), z.Worker(other+i), &dst.Workers[i])
		add(&dst.Handshakes, &dst.Workers[i].HandshakeDuration)
		for _, o := range l.requestOutcomes {
			dst.Requests[o] += z.Worker(shift+i).LoadRequest(o) + z.Worker(other+i).LoadRequest(o)
		}
	}
	layout := z.Layout()
	l.routes = learn(l.routes, layout.Routes-1, z.RouteName)
	dst.Routes = resize(dst.Routes, len(l.routes)+1)
	for slot, name := range l.routes {
		l.readRoute(&dst.Routes[slot], slot, name)
	}
	l.readRoute(&dst.Routes[len(l.routes)], layout.Routes-1, overflow)
	l.upstreams = learn(l.upstreams, layout.Upstreams-1, z.UpstreamName)
	dst.Upstreams = resize(dst.Upstreams, len(l.upstreams)+1)
	for slot, name := range l.upstreams {
		l.readUpstream(&dst.Upstreams[slot], slot, name)
	}
	l.readUpstream(&dst.Upstreams[len(l.upstreams)], layout.Upstreams-1, overflow)
	l.limits = learn(l.limits, layout.Limits-1, z.LimitName)
	dst.Limits = resize(dst.Limits, len(l.limits)+1)
	for slot, name := range l.limits {
		l.readLimit(&dst.Limits[slot], slot, name)
	}
	l.readLimit(&dst.Limits[len(l.limits)], layout.Limits-1, overflow)
}

// learn appends the names of slots that were taken since the last time; slots are
// taken in order.
func learn(known []string, slots int, nameOf func(int) string) []string {
	for len(known) < slots {
		name := nameOf(len(known))
		if name == "" {
			break
		}
		known = append(known, name)
	}
	return known
}

// readWorker reads that of the slab. What the one before it, which may still finish what is
// under way, has counted is in it.
func (l *Ledger) readWorker(slab, before *zone.Slab, w *WorkerCounts) {
	w.PID = int(slab.LoadGauge(zone.GaugePID))
	w.Core = int(slab.LoadGauge(zone.GaugeCore)) - 1
	w.State = zone.State(slab.LoadGauge(zone.GaugeState))
	w.Restarts = slab.LoadGauge(zone.GaugeRestarts) + before.LoadGauge(zone.GaugeRestarts)
	w.Generation = slab.LoadGauge(zone.GaugeGeneration)
	w.Connections = slab.LoadGauge(zone.GaugeConnections) + before.LoadGauge(zone.GaugeConnections)
	w.InFlight = slab.LoadGauge(zone.GaugeRequests) + before.LoadGauge(zone.GaugeRequests)
	w.HandshakesLeft = slab.LoadGauge(zone.GaugeHandshakesLeft)
	w.Counters = resize(w.Counters, int(zone.PlainCounters))
	for c := range w.Counters {
		w.Counters[c] = slab.Load(zone.Counter(c)) + before.Load(zone.Counter(c))
	}
	w.Handshakes = resize(w.Handshakes, len(l.handshakeOutcomes))
	for _, o := range l.handshakeOutcomes {
		w.Handshakes[o] = slab.LoadHandshake(o) + before.LoadHandshake(o)
	}
	w.Misuses = resize(w.Misuses, len(l.misuses))
	for _, m := range l.misuses {
		w.Misuses[m] = slab.LoadMisuse(m) + before.LoadMisuse(m)
	}
	slab.HandshakeDuration(&w.HandshakeDuration)
	before.HandshakeDuration(&l.scratch)
	add(&w.HandshakeDuration, &l.scratch)
}

func (l *Ledger) readRoute(out *RouteCounts, slot int, name string) {
	z := l.sources.Zone
	*out = RouteCounts{Name: name}
	for i := range z.Slots() {
		slab := z.Worker(i)
		for c, n := range slab.RouteRequests(slot) {
			out.Classes[c] += n
		}
		slab.RouteDuration(slot, &l.scratch)
		add(&out.Duration, &l.scratch)
	}
}

func (l *Ledger) readUpstream(out *UpstreamCounts, slot int, name string) {
	z := l.sources.Zone
	out.Name, out.Duration = name, zone.Histogram{}
	out.Outcomes = resize(out.Outcomes, len(l.upstreamOutcomes))
	clear(out.Outcomes)
	for i := range z.Slots() {
		slab := z.Worker(i)
		for _, o := range l.upstreamOutcomes {
			out.Outcomes[o] += slab.LoadUpstream(slot, o)
		}
		slab.UpstreamDuration(slot, &l.scratch)
		add(&out.Duration, &l.scratch)
	}
}

func (l *Ledger) readLimit(out *LimitCounts, slot int, name string) {
	out.Name = name
	out.Outcomes = resize(out.Outcomes, len(l.limitOutcomes))
	clear(out.Outcomes)
	for i := range l.sources.Zone.Slots() {
		for _, o := range l.limitOutcomes {
			out.Outcomes[o] += l.sources.Zone.Worker(i).LoadLimit(slot, o)
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

func sum(s *Snapshot) Sums {
	var t Sums
	for i := range s.Interfaces {
		t.addPackets(s.Interfaces[i].Counters.Ingress)
	}
	for i := range s.Workers {
		w := &s.Workers[i]
		t.Accepted += w.Counter(zone.ConnectionsAccepted)
		t.Closed += w.Counter(zone.ConnectionsClosed)
		t.Rejected += w.Counter(zone.ConnectionsRejected)
		t.Open += w.Connections
		t.UnderWay += w.InFlight
		t.Began += w.Counter(zone.RequestsHTTP1) + w.Counter(zone.RequestsHTTP2)
	}
	for i := range s.Routes {
		for _, n := range s.Routes[i].Classes {
			t.Statuses += n
		}
	}
	for _, n := range s.Requests {
		t.Outcomes += n
	}
	return t
}

func (t *Sums) addPackets(rows []datapath.QueueCount) {
	for i := range rows {
		if rows[i].Verdict == "drop" {
			t.PacketsDropped += rows[i].Packets
			t.BytesDropped += rows[i].Bytes
		} else {
			t.PacketsPassed += rows[i].Packets
			t.BytesPassed += rows[i].Bytes
		}
	}
}
