// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/zone"
)

func mustZone(tb testing.TB, workers int) *zone.Zone {
	tb.Helper()
	z, err := zone.Create(filepath.Join(tb.TempDir(), "zone"), zone.Layout{
		Size: 8 << 20, Workers: workers, Routes: 128, Upstreams: 16, AccessRing: 64 << 10,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(z.Remove(), z.Close()); err != nil {
			tb.Error(err)
		}
	})
	return z
}

// fakeInterface counts what rows says, as a datapath would.
func fakeInterface(name string, rows *datapath.Counters, fail *error) Interface {
	return Interface{
		Name: name, Driver: "veth",
		Status: func() datapath.Status {
			return datapath.Status{Interface: name, Attached: true, Mode: datapath.ModeNative, Hook: "link", Program: 42, Queues: 2}
		},
		Counters: func(dst *datapath.Counters) error {
			dst.Ingress = append(dst.Ingress[:0], rows.Ingress...)
			if *fail != nil {
				return *fail // half of it is there, as after a failed look-up
			}
			dst.Egress = append(dst.Egress[:0], rows.Egress...)
			return nil
		},
	}
}

func twoQueues() *datapath.Counters {
	return &datapath.Counters{
		Ingress: []datapath.QueueCount{
			{Queue: 0, Verdict: "pass", Reason: "tcp", Packets: 10, Bytes: 1000},
			{Queue: 0, Verdict: "drop", Reason: "deny", Packets: 3, Bytes: 180},
			{Queue: 1, Verdict: "pass", Reason: "tcp", Packets: 5, Bytes: 500},
			{Queue: 1, Verdict: "drop", Reason: "deny", Packets: 0, Bytes: 0},
		},
		Egress: []datapath.QueueCount{{Queue: datapath.All, Verdict: "pass", Reason: "tcp", Packets: 7, Bytes: 700}},
	}
}

func TestSnapshotJoinsAllPlanes(t *testing.T) {
	z := mustZone(t, 2)
	api, app := z.RouteSlot("api"), z.UpstreamSlot("app")
	z.SetGeneration(5)
	z.Beat(99)
	first, second := z.Worker(0), z.Worker(1)
	first.Set(zone.GaugePID, 100)
	first.Set(zone.GaugeCore, 1)
	first.Set(zone.GaugeState, uint64(zone.StateReady))
	first.Add(zone.ConnectionsAccepted, 4)
	first.Add(zone.ConnectionsClosed, 1)
	first.Move(zone.GaugeConnections, 3)
	first.Handshake(zone.HandshakeFull, time.Millisecond)
	first.Request(api, 200, 10*time.Millisecond, zone.RequestOK)
	first.Request(zone.NoRoute, 404, time.Microsecond, zone.RequestNoRoute)
	second.Request(api, 502, time.Second, zone.RequestUpstreamRefused)
	second.Request(1<<20, 200, time.Second, zone.RequestOK) // no such slot: overflow
	second.Upstream(app, zone.UpstreamRefused, time.Second)
	first.Upstream(app, zone.UpstreamOK, time.Millisecond)
	second.Add(zone.ConnectionsRejected, 2)
	first.Add(zone.RequestsHTTP1, 2)
	second.Add(zone.RequestsHTTP2, 3)
	second.Move(zone.GaugeRequests, 1)

	var fail error
	l := New(Sources{
		Interfaces: []Interface{fakeInterface("eth0", twoQueues(), &fail)},
		Listeners: func() []Listener {
			return []Listener{{Address: ":443", Counts: func() (datapath.SteerCounts, bool) {
				return datapath.SteerCounts{Local: 3, Fallback: 1}, true
			}}}
		},
		Zone:      z,
		LostLines: func() (uint64, uint64) { return 8, 9 },
	})
	var s Snapshot
	if err := l.Snapshot(&s); err != nil {
		t.Fatal(err)
	}
	wantSums := Sums{
		PacketsPassed: 15, PacketsDropped: 3, BytesPassed: 1500, BytesDropped: 180,
		Accepted: 4, Closed: 1, Open: 3, Rejected: 2, Statuses: 4, Outcomes: 4, UnderWay: 1, Began: 5,
	}
	if diff := cmp.Diff(wantSums, s.Sums); diff != "" {
		t.Errorf("sums (-want +got):\n%s", diff)
	}
	if s.Unexplained != (Unexplained{}) {
		t.Errorf("unexplained at rest: %+v", s.Unexplained)
	}
	if s.Generation != 5 || s.Heartbeat != 99 || s.ZoneBytes != 8<<20 || s.LostFull != 8 || s.LostOther != 9 {
		t.Errorf("zone: %+v", s)
	}
	if l := s.Listeners[0]; !l.Steered || l.Local != 3 || l.Fallback != 1 || l.Address != ":443" {
		t.Errorf("listener: %+v", l)
	}
	var routes []string
	for _, r := range s.Routes {
		routes = append(routes, fmt.Sprint(r.Name, r.Classes, r.Duration.Count))
	}
	wantRoutes := []string{"none[0 0 0 1 0] 1", "api[0 1 0 0 1] 2", "overflow[0 1 0 0 0] 1"}
	if diff := cmp.Diff(wantRoutes, routes); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	up := s.Upstreams[0]
	if len(s.Upstreams) != 2 || up.Name != "app" || up.Outcomes[zone.UpstreamOK] != 1 || up.Outcomes[zone.UpstreamRefused] != 1 || up.Duration.Sum != time.Second+time.Millisecond {
		t.Errorf("upstreams: %+v", s.Upstreams)
	}
	if w := s.Workers[0]; w.PID != 100 || w.Core != 0 || w.State != zone.StateReady || w.Connections != 3 || w.Handshakes[zone.HandshakeFull] != 1 || w.HandshakeDuration.Count != 1 {
		t.Errorf("worker 0: %+v", w)
	}
	if w := s.Workers[1]; w.Core != -1 || w.State != zone.StateNone {
		t.Errorf("worker 1: %+v", w)
	}
}

// What is counted twice must agree; here a worker dies, and its connections' end is
// counted by nobody.
func TestUnexplained(t *testing.T) {
	z := mustZone(t, 1)
	l := New(Sources{Zone: z})
	slab := z.Worker(0)
	slab.Add(zone.ConnectionsAccepted, 10)
	slab.Add(zone.ConnectionsClosed, 4)
	slab.Move(zone.GaugeConnections, 6)
	var s Snapshot
	if err := l.Snapshot(&s); err != nil || s.Unexplained.Connections != 0 {
		t.Fatalf("while it lives: %+v, %v", s.Unexplained, err)
	}
	slab.Set(zone.GaugeState, uint64(zone.StateDead))
	if err := l.Snapshot(&s); err != nil || s.Unexplained.Connections != 6 || s.Sums.Accepted != 10 {
		t.Errorf("after its death: %+v, %+v, %v; want 6 connections, and counters as they were", s.Unexplained, s.Sums, err)
	}
}

func TestNamesThatComeLater(t *testing.T) {
	z := mustZone(t, 1)
	l := New(Sources{Zone: z})
	var s Snapshot
	names := func() (out []string) {
		t.Helper()
		if err := l.Snapshot(&s); err != nil {
			t.Fatal(err)
		}
		for _, r := range s.Routes {
			out = append(out, r.Name)
		}
		return out
	}
	if got := names(); !slices.Equal(got, []string{"none", "overflow"}) {
		t.Fatalf("%q", got)
	}
	b := z.RouteSlot("b")
	z.RouteSlot("a")
	z.Worker(0).Request(b, 301, time.Second, zone.RequestOK)
	if got := names(); !slices.Equal(got, []string{"none", "b", "a", "overflow"}) || s.Routes[1].Classes[2] != 1 {
		t.Fatalf("%q, %+v", got, s.Routes[1].Classes)
	}
	for i := range 200 {
		z.RouteSlot(fmt.Sprint("r", i))
	}
	got := names()
	if len(got) != z.Layout().Routes || got[len(got)-1] != "overflow" || slices.Contains(got[:len(got)-1], "overflow") || slices.Contains(got, "") {
		t.Errorf("full: %d names, last %q", len(got), got[len(got)-1])
	}
}

func TestInterfaceThatCannotBeRead(t *testing.T) {
	z := mustZone(t, 1)
	z.Worker(0).Add(zone.ConnectionsAccepted, 1)
	var failA, failB error
	l := New(Sources{Zone: z, Interfaces: []Interface{fakeInterface("a", twoQueues(), &failA), fakeInterface("b", twoQueues(), &failB)}})
	var s Snapshot
	if err := l.Snapshot(&s); err != nil || s.Sums.PacketsDropped != 6 {
		t.Fatalf("%+v, %v", s.Sums, err)
	}
	cause := errors.New("no such device")
	failA = cause
	err := l.Snapshot(&s)
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), "interface a") {
		t.Errorf("error %v", err)
	}
	if a := s.Interfaces[0].Counters; len(a.Ingress)+len(a.Egress) != 0 {
		t.Errorf("half-read counters are shown: %+v", a)
	}
	if len(s.Interfaces[1].Counters.Egress) != 1 || s.Sums.PacketsDropped != 3 || s.Sums.Accepted != 1 {
		t.Errorf("the rest is not filled: %+v", s.Sums)
	}
	failA = nil
	if err := l.Snapshot(&s); err != nil || s.Sums.PacketsDropped != 6 {
		t.Errorf("afterwards: %+v, %v", s.Sums, err)
	}
}

func TestSnapshotUsesItsBuffersAgain(t *testing.T) {
	z := mustZone(t, 4)
	for i := range 100 {
		z.Worker(i%4).Request(z.RouteSlot(fmt.Sprint("r", i)), 200, time.Millisecond, zone.RequestOK)
		z.UpstreamSlot(fmt.Sprint("u", i%10))
	}
	var fail error
	l := New(Sources{Zone: z, Interfaces: []Interface{fakeInterface("eth0", twoQueues(), &fail)}})
	var s Snapshot
	snapshot := func() {
		if err := l.Snapshot(&s); err != nil {
			t.Fatal(err)
		}
	}
	snapshot()
	if n := testing.AllocsPerRun(20, snapshot); n != 0 {
		t.Errorf("%v allocations for a second snapshot, want none", n)
	}
	if len(s.Routes) != 102 {
		t.Errorf("%d routes: the test did not read what it claims", len(s.Routes))
	}
}

// Readers run beside writers: no counter of a later snapshot is below an earlier one's.
func TestCountersNeverGoDown(t *testing.T) {
	z := mustZone(t, 2)
	api := z.RouteSlot("api")
	stop := make(chan struct{})
	var writers, begun sync.WaitGroup
	begun.Add(2)
	for i := range 2 {
		writers.Go(func() {
			for n := 0; ; n++ {
				if n == 1 {
					begun.Done()
				}
				select {
				case <-stop:
					return
				default:
				}
				z.Worker(i).Add(zone.RequestsHTTP1, 1)
				z.Worker(i).Request(api, 200+100*(n%4), time.Duration(n)*time.Microsecond, zone.RequestOK)
			}
		})
	}
	begun.Wait()
	l := New(Sources{Zone: z})
	var before, after Snapshot
	for range 200 {
		before, after = after, before
		if err := l.Snapshot(&after); err != nil {
			t.Fatal(err)
		}
		if before.Workers == nil {
			continue
		}
		if after.Sums.Statuses < before.Sums.Statuses || after.Sums.Outcomes < before.Sums.Outcomes {
			t.Fatalf("from %+v to %+v", before.Sums, after.Sums)
		}
		a, b := &after.Routes[1].Duration, &before.Routes[1].Duration
		for i := range a.Buckets {
			if a.Buckets[i] < b.Buckets[i] {
				t.Fatalf("bucket %d from %d to %d", i, b.Buckets[i], a.Buckets[i])
			}
		}
	}
	close(stop)
	writers.Wait()
	if err := l.Snapshot(&after); err != nil || after.Unexplained != (Unexplained{}) || after.Sums.Statuses == 0 {
		t.Errorf("at rest: %+v of %d, %v", after.Unexplained, after.Sums.Statuses, err)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	z := mustZone(b, 2)
	for i := range 100 {
		z.RouteSlot(fmt.Sprint("r", i))
	}
	l := New(Sources{Zone: z})
	var s Snapshot
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Snapshot(&s); err != nil {
			b.Fatal(err)
		}
	}
	if len(s.Routes) != 102 {
		b.Fatalf("%d routes", len(s.Routes))
	}
}

// An interface counts what it hands to the kernel plane: what is missing there shows, and what
// came before the first look, or before it was attached anew, does not.
func TestPacketsThatNobodyCounted(t *testing.T) {
	var fail error
	rows := twoQueues()
	in := fakeInterface("eth0", rows, &fail)
	var received uint64 = 100 // 18 of them while the kernel plane was there
	busy, program, mode := false, uint32(42), datapath.ModeNative
	in.Status = func() datapath.Status { return datapath.Status{Attached: true, Mode: mode, Program: program} }
	in.Receive = func() (host.Receive, error) {
		if busy {
			received++
		}
		return host.Receive{Packets: received}, nil
	}
	l := New(Sources{Interfaces: []Interface{in}})
	var s Snapshot
	look := func(want int64) {
		t.Helper()
		if err := l.Snapshot(&s); err != nil || s.Unexplained.Packets != want {
			t.Errorf("%d unexplained, want %d, %v", s.Unexplained.Packets, want, err)
		}
	}
	busy = true
	look(0) // it never stands still: nothing is known
	busy = false
	look(0)
	received += 5
	look(5)
	rows.Ingress[0].Packets += 5
	look(0)
	busy = true
	look(0) // of the last time that it stood still
	busy = false
	look(looks + 1)
	program++
	look(0)
	received += 7
	look(7)
	mode = datapath.ModeGeneric
	look(0)
}
