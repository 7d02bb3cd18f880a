// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// heapSlab is a slab without a file.
func heapSlab(l Layout) *Slab {
	o := l.offsets()
	return newSlab(bytesOf(make(words, o.slabSize/8)), l, o, nil)
}

// Each write moves the words that it should and no other.
func TestSlabWrites(t *testing.T) {
	l := small()
	for _, tt := range []struct {
		name  string
		write func(*Slab)
		want  string
	}{
		{"add", func(s *Slab) { s.Add(BytesSent, 7) }, "bytes_sent=7"},
		{"add the last", func(s *Slab) { s.Add(PlainCounters-1, 1) }, (PlainCounters - 1).String() + "=1"},
		{"set", func(s *Slab) { s.Set(GaugePID, 42) }, "pid=42"},
		{"move", func(s *Slab) { s.Move(GaugeConnections, 3); s.Move(GaugeConnections, -1) }, "connections_active=2"},
		{"dead clears what was under way", func(s *Slab) {
			s.Move(GaugeConnections, 3)
			s.Move(GaugeRequests, 2)
			s.Add(ConnectionsAccepted, 3)
			s.Set(GaugeState, uint64(StateDead))
		}, "state=4 connections_accepted=3"},
		{"draining does not", func(s *Slab) { s.Move(GaugeConnections, 3); s.Set(GaugeState, uint64(StateDraining)) }, "state=3 connections_active=3"},
		{"request", func(s *Slab) { s.Request(1, 204, time.Second, RequestOK) }, "request ok=1 route 1=[0 1 0 0 0] 1s"},
		{"request without route", func(s *Slab) { s.Request(NoRoute, 404, 0, RequestNoRoute) }, "errors_4xx_gateway=1 request no_route=1 route 0=[0 0 0 1 0] 0s"},
		{"informational", func(s *Slab) { s.Request(1, 101, 0, RequestOK) }, "request ok=1 route 1=[1 0 0 0 0] 0s"},
		{"status 99", func(s *Slab) { s.Request(1, 99, 0, RequestOK) }, "errors_5xx_upstream=1 request ok=1 route 1=[0 0 0 0 1] 0s"},
		{"status 600", func(s *Slab) { s.Request(1, 600, 0, RequestOK) }, "errors_5xx_upstream=1 request ok=1 route 1=[0 0 0 0 1] 0s"},
		{"last status", func(s *Slab) { s.Request(1, 599, 0, RequestPanic) }, "errors_5xx_gateway=1 request panic=1 route 1=[0 0 0 0 1] 0s"},
		{"slot too high", func(s *Slab) { s.Request(4, 302, 0, RequestOK) }, "request ok=1 route 3=[0 0 1 0 0] 0s"},
		{"slot below", func(s *Slab) { s.Request(-1, 302, 0, RequestOK) }, "request ok=1 route 3=[0 0 1 0 0] 0s"},
		{"negative time", func(s *Slab) { s.Request(1, 200, -time.Second, RequestOK) }, "request ok=1 route 1=[0 1 0 0 0] 0s"},
		{"upstream", func(s *Slab) { s.Upstream(0, UpstreamTimeout, 2*time.Second) }, "upstream 0 timeout=1 2s"},
		{"upstream slot too high", func(s *Slab) { s.Upstream(1<<40, UpstreamCancelled, 1) }, "upstream 2 cancelled=1 1ns"},
		{"handshake", func(s *Slab) { s.Handshake(HandshakeOther, time.Minute) }, "handshake other=1 1m0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := heapSlab(l)
			tt.write(s)
			if got := describe(s, l); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if got, want := nonZero(s.mem), readable(s, l); got != want {
				t.Errorf("%d words are not 0, %d of them can be read", got, want)
			}
		})
	}
}

func nonZero(w words) (n int) {
	for _, v := range w {
		if v != 0 {
			n++
		}
	}
	return n
}

// describe lists all that is not 0, by what readers have.
func describe(s *Slab, l Layout) string {
	var out []string
	for g := range gaugeCount {
		if v := s.LoadGauge(g); v != 0 {
			out = append(out, fmt.Sprintf("%v=%d", g, v))
		}
	}
	for _, c := range Counters() {
		if v := s.Load(c); v != 0 {
			out = append(out, fmt.Sprintf("%v=%d", c, v))
		}
	}
	for _, o := range RequestOutcomes() {
		if v := s.LoadRequest(o); v != 0 {
			out = append(out, fmt.Sprintf("request %v=%d", o, v))
		}
	}
	var h Histogram
	for _, o := range HandshakeOutcomes() {
		if v := s.LoadHandshake(o); v != 0 {
			s.HandshakeDuration(&h)
			out = append(out, fmt.Sprintf("handshake %v=%d %v", o, v, h.Sum))
		}
	}
	for i := range l.Routes {
		if s.RouteDuration(i, &h); h.Count != 0 {
			out = append(out, fmt.Sprintf("route %d=%v %v", i, s.RouteRequests(i), h.Sum))
		}
	}
	for i := range l.Upstreams {
		for _, o := range UpstreamOutcomes() {
			if v := s.LoadUpstream(i, o); v != 0 {
				s.UpstreamDuration(i, &h)
				out = append(out, fmt.Sprintf("upstream %d %v=%d %v", i, o, v, h.Sum))
			}
		}
	}
	return strings.Join(out, " ")
}

// readable counts the values other than 0 that readers get.
func readable(s *Slab, l Layout) (n int) {
	one := func(v uint64) {
		if v != 0 {
			n++
		}
	}
	histogram := func(h *Histogram) {
		one(uint64(h.Sum))
		for _, v := range h.Buckets {
			one(v)
		}
	}
	for g := range gaugeCount {
		one(s.LoadGauge(g))
	}
	for _, c := range Counters() {
		one(s.Load(c))
	}
	for _, o := range RequestOutcomes() {
		one(s.LoadRequest(o))
	}
	for _, o := range HandshakeOutcomes() {
		one(s.LoadHandshake(o))
	}
	for _, m := range Misuses() {
		one(s.LoadMisuse(m))
	}
	var h Histogram
	s.HandshakeDuration(&h)
	histogram(&h)
	for i := range l.Routes {
		for _, v := range s.RouteRequests(i) {
			one(v)
		}
		s.RouteDuration(i, &h)
		histogram(&h)
	}
	for i := range l.Upstreams {
		for _, o := range UpstreamOutcomes() {
			one(s.LoadUpstream(i, o))
		}
		s.UpstreamDuration(i, &h)
		histogram(&h)
	}
	return n
}

// Every counter of a slab has a word of its own.
func TestSlabWordsAreDistinct(t *testing.T) {
	l := small()
	s := heapSlab(l)
	n := 0
	write := func(f func()) {
		before := slices.Clone(s.mem)
		f()
		for i := range s.mem {
			if before[i] != s.mem[i] && before[i] != 0 && i != s.route+routeHistogram+histogramBuckets && i != slabHandshake+histogramBuckets {
				t.Errorf("word %d is written twice, the second time by step %d", i, n)
			}
		}
		n++
	}
	for _, c := range Counters() {
		write(func() { s.Add(c, 1) })
	}
	for g := range gaugeCount {
		write(func() { s.Set(g, 1) })
	}
	for _, o := range HandshakeOutcomes() {
		write(func() { s.Handshake(o, 0) })
	}
	for _, m := range Misuses() {
		write(func() { s.mem.add(slabCounters+counterMisuse+int(m), 1) })
	}
	clear(s.mem[slabCounters+int(Errors4xxClient) : slabCounters+int(PlainCounters)]) // a request counts there, too
	for i, o := range RequestOutcomes() {
		if i < 5 {
			write(func() { s.Request(0, 100*(i+1), 0, o) })
		} else {
			write(func() { s.mem.add(slabCounters+counterRequests+int(o), 1) })
		}
	}
}

func TestSlabConcurrentWriters(t *testing.T) {
	s := heapSlab(small())
	const goroutines, each = 4, 5000
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range each {
				s.Request(1, 200, time.Millisecond, RequestOK)
				s.Move(GaugeRequests, 1)
				s.Move(GaugeRequests, -1)
			}
		})
	}
	wg.Wait()
	var h Histogram
	s.RouteDuration(1, &h)
	if h.Count != goroutines*each || s.RouteRequests(1)[1] != goroutines*each || h.Sum != goroutines*each*time.Millisecond || s.LoadGauge(GaugeRequests) != 0 {
		t.Errorf("counts %d, %v, %v, gauge %d", h.Count, s.RouteRequests(1), h.Sum, s.LoadGauge(GaugeRequests))
	}
}

func TestSlabAllocatesNothing(t *testing.T) {
	s := heapSlab(small())
	var h Histogram
	for name, f := range map[string]func(){
		"Add":           func() { s.Add(BytesSent, 1) },
		"Move":          func() { s.Move(GaugeRequests, 1) },
		"Request":       func() { s.Request(1, 200, time.Millisecond, RequestOK) },
		"Upstream":      func() { s.Upstream(1, UpstreamOK, time.Millisecond) },
		"Handshake":     func() { s.Handshake(HandshakeFull, time.Millisecond) },
		"RouteDuration": func() { s.RouteDuration(1, &h) },
		"RouteRequests": func() { _ = s.RouteRequests(1) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkSlabRequest(b *testing.B) {
	s := heapSlab(small())
	b.ReportAllocs()
	for i := range b.N {
		s.Request(1, 200, time.Duration(i), RequestOK)
	}
	if got := s.LoadRequest(RequestOK); got != uint64(b.N) {
		b.Fatalf("counted %d of %d", got, b.N)
	}
}

func BenchmarkSlabHandshake(b *testing.B) {
	s := heapSlab(small())
	b.ReportAllocs()
	for i := range b.N {
		s.Handshake(HandshakeResumed, time.Duration(i))
	}
	if got := s.LoadHandshake(HandshakeResumed); got != uint64(b.N) {
		b.Fatalf("counted %d of %d", got, b.N)
	}
}
