// SPDX-License-Identifier: Apache-2.0

package zone

import "testing"

func TestLayoutComplete(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   Layout
		want Layout
		says string // of the error
	}{
		{"defaults", Layout{Workers: 2},
			Layout{Size: DefaultSize, Workers: 2, Routes: DefaultRoutes, Upstreams: DefaultUpstreams, Limits: DefaultLimits, AccessRing: DefaultAccessRing, Buckets: 1 << 22, Sessions: DefaultSessions, Holds: DefaultHolds, Shares: DefaultShares}, ""},
		{"ring is cut to a power of two", Layout{Workers: 1, AccessRing: 100_000},
			Layout{Size: DefaultSize, Workers: 1, Routes: DefaultRoutes, Upstreams: DefaultUpstreams, Limits: DefaultLimits, AccessRing: 65536, Buckets: 1 << 22, Sessions: DefaultSessions, Holds: DefaultHolds, Shares: DefaultShares}, ""},
		{"many workers get fewer slots", Layout{Workers: 100},
			Layout{Size: DefaultSize, Workers: 100, Routes: 64, Upstreams: 64}, ""},
		{"a ring asked for stays", Layout{Workers: 100, AccessRing: 2 << 20}, Layout{}, "at least"},
		{"what is asked for stays", Layout{Workers: 1, Routes: 2, Upstreams: 2},
			Layout{Size: DefaultSize, Workers: 1, Routes: 2, Upstreams: 2, Limits: DefaultLimits, AccessRing: DefaultAccessRing, Buckets: 1 << 22, Sessions: DefaultSessions, Holds: DefaultHolds, Shares: DefaultShares}, ""},
		{"no workers", Layout{}, Layout{}, "0 workers: 1 to 256"},
		{"too many workers", Layout{Workers: 257}, Layout{}, "257 workers"},
		{"one slot", Layout{Workers: 1, Routes: 1}, Layout{}, "2 to 32768"},
		{"too many slots", Layout{Workers: 1, Upstreams: maxSlots + 1}, Layout{}, "2 to 32768"},
		{"buckets that are no power of two", Layout{Workers: 1, Buckets: 5000}, Layout{}, "power of two"},
		{"sessions that are no power of two", Layout{Workers: 1, Sessions: 1000}, Layout{}, "power of two"},
		{"places that are no power of two", Layout{Workers: 1, Holds: 300}, Layout{}, "power of two"},
		{"ring too small", Layout{Workers: 1, AccessRing: 65535}, Layout{}, "access ring"},
		{"ring negative", Layout{Workers: 1, AccessRing: -1}, Layout{}, "access ring"},
		{"ring too large", Layout{Workers: 1, AccessRing: 2 << 30}, Layout{}, "access ring"},
		{"size negative", Layout{Workers: 1, Size: -1}, Layout{}, "at least"},
		{"slots asked for do not fit", Layout{Workers: 1, Size: 4 << 20, Routes: 10_000}, Layout{}, "at least"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.in.Complete()
			if tt.says != "" {
				wantContains(t, err, tt.says)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.name == "many workers get fewer slots" {
				// How many depends on the size of a slot; that they fit does not.
				if got.Routes < leastFitted || got.Routes >= DefaultRoutes || got.AccessRing >= DefaultAccessRing || got.Need() > got.Size {
					t.Errorf("got %+v, which needs %d", got, got.Need())
				}
				return
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// The least size in the error is enough, and one byte less is not.
func TestLayoutLeastSize(t *testing.T) {
	for _, l := range []Layout{
		{Workers: 1}, {Workers: 7, AccessRing: 1 << 16}, {Workers: 256}, {Workers: 3, Routes: 500}, {Workers: 2, Routes: 9, Upstreams: 5},
	} {
		l.Size = l.Need()
		if _, err := l.Complete(); err != nil {
			t.Errorf("%+v: %v", l, err)
		}
		need := l.Size
		l.Size--
		_, err := l.Complete()
		wantContains(t, err, "at least "+text(need), "shared_memory_zone")
	}
}

func TestLayoutOffsets(t *testing.T) {
	for _, l := range []Layout{small(), {Workers: 256, Routes: maxSlots, Upstreams: maxSlots, Limits: maxSlots, AccessRing: maxAccessRing, Buckets: maxBuckets, Sessions: maxSessions, Holds: maxHolds, Shares: maxShares}} {
		o := l.offsets()
		end := int64(pageSize)
		for _, s := range o.sections() {
			if int64(s.offset) != end || s.offset%pageSize != 0 || s.length == 0 {
				t.Errorf("section %v starts elsewhere than at %d, or not at a page", s, end)
			}
			end = int64(s.offset + s.length)
		}
		if end != o.end || end != l.Need() {
			t.Errorf("sections end at %d, the layout at %d, need is %d", end, o.end, l.Need())
		}
		if o.slabSize%pageSize != 0 || o.ringSize%pageSize != 0 {
			t.Errorf("slabs of %d and rings of %d bytes share pages", o.slabSize, o.ringSize)
		}
		if last := int64(o.limits+l.Limits*limitWords) * 8; last > o.slabSize {
			t.Errorf("limits end at %d in a slab of %d bytes", last, o.slabSize)
		}
		for _, at := range []int{slabGauges, slabCounters, slabHandshake, o.routes, routeWords, o.upstreams, upstreamWords, o.limits, limitWords} {
			if at%lineWords != 0 {
				t.Errorf("word %d is within a cache line", at)
			}
		}
	}
}

// Gauges of the supervisor and of the worker are on different cache lines.
func TestGaugePlaces(t *testing.T) {
	seen := map[int]Gauge{}
	for g := range gaugeCount {
		at := g.place()
		if other, taken := seen[at]; taken || at >= slabCounters {
			t.Errorf("gauge %v is at word %d, as is %v", g, at, other)
		}
		seen[at] = g
		if line := at / lineWords; (g < GaugeGeneration) != (line < 2) {
			t.Errorf("gauge %v is on line %d", g, line)
		}
	}
}

func TestWords(t *testing.T) {
	seen := map[string]bool{}
	check := func(kind, word string) {
		if word == "" || word == "unknown" || seen[kind+word] {
			t.Errorf("%s has the word %q", kind, word)
		}
		seen[kind+word] = true
	}
	for _, c := range Counters() {
		check("counter", c.String())
	}
	for _, o := range RequestOutcomes() {
		check("request", o.String())
	}
	for _, o := range HandshakeOutcomes() {
		check("handshake", o.String())
		if want := o != HandshakeFull && o != HandshakeResumed; o.Failed() != want {
			t.Errorf("%v: failed is %v", o, o.Failed())
		}
	}
	for _, o := range UpstreamOutcomes() {
		check("upstream", o.String())
	}
	for _, m := range Misuses() {
		check("misuse", m.String())
	}
	for _, o := range Offences() {
		check("offence", o.String())
	}
	for _, o := range LimitOutcomes() {
		check("limit", o.String())
	}
	for g := range gaugeCount {
		check("gauge", g.String())
	}
	for s := range stateCount {
		check("state", s.String())
	}
	for _, unknown := range []interface{ String() string }{
		Counter(-1), PlainCounters, RequestOutcome(-1), requestOutcomes, HandshakeOutcome(99), UpstreamOutcome(99), gaugeCount, stateCount, State(1 << 63),
	} {
		if got := unknown.String(); got != "unknown" {
			t.Errorf("%T out of range is %q", unknown, got)
		}
	}
}
