// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// hourly is a limit that nothing is given back of while a test runs.
func hourly(name string, burst uint64, key ...policy.KeyPart) policy.RequestLimit {
	return policy.RequestLimit{Name: name, ID: uint64(len(name))*1000 + uint64(name[0]), Key: key, Requests: 1, Period: time.Hour, Burst: burst, Delay: burst, Status: 429}
}

var (
	byAddress = policy.KeyPart{Kind: "address"}
	byRoute   = policy.KeyPart{Kind: "route"}
	byHost    = policy.KeyPart{Kind: "host"}
	byToken   = policy.KeyPart{Kind: "header", Header: "X-Token"}
)

// asking is a request for a limited gateway.
type asking struct {
	path, host, token, method string
}

func (g *gateway) try(c *http.Client, a asking) *http.Response {
	g.Helper()
	if a.method == "" {
		a.method = "GET"
	}
	req, err := http.NewRequest(a.method, g.url("/"+a.path), nil)
	if err != nil {
		g.Fatal(err)
	}
	req.Host = a.host
	if a.token != "" {
		req.Header.Set("X-Token", a.token)
	}
	resp, err := c.Do(req)
	if err != nil {
		g.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

// Whom a limit tells apart, and whom it is for: of each request whether it passes.
func TestLimitKeys(t *testing.T) {
	type step struct {
		asking
		passes bool
	}
	limit := func(l policy.RequestLimit) []policy.RequestLimit { return []policy.RequestLimit{l} }
	forRoute := hourly("r", 1, byAddress)
	forRoute.Routes = []int{1}
	posts := hourly("p", 1, byAddress)
	posts.Methods = []string{"POST"}
	for name, tt := range map[string]struct {
		limits []policy.RequestLimit
		steps  []step
	}{
		"address": {limit(hourly("a", 2, byAddress)), []step{{asking{}, true}, {asking{path: "x", token: "t"}, true}, {asking{host: "a.test"}, false}}},
		"route":   {limit(hourly("a", 1, byRoute)), []step{{asking{}, true}, {asking{path: "other"}, true}, {asking{}, false}, {asking{path: "other"}, false}}},
		"host":    {limit(hourly("a", 1, byHost)), []step{{asking{host: "a.test"}, true}, {asking{host: "b.test"}, true}, {asking{host: "A.test:443"}, false}}},
		"header": {limit(hourly("a", 1, byToken)), []step{
			{asking{token: "one"}, true}, {asking{token: "two"}, true}, {asking{token: "one"}, false}, {asking{}, true}, {asking{}, true}, // without it: not limited
		}},
		"together": {limit(hourly("a", 1, byHost, byToken)), []step{
			{asking{host: "ab", token: "c"}, true}, {asking{host: "a", token: "bc"}, true}, {asking{host: "ab", token: "c"}, false}, {asking{host: "ab"}, true},
		}},
		"of one route":  {limit(forRoute), []step{{asking{path: "other"}, true}, {asking{path: "other"}, false}, {asking{}, true}, {asking{}, true}}},
		"of one method": {limit(posts), []step{{asking{method: "POST"}, true}, {asking{method: "POST"}, false}, {asking{}, true}}},
		"of two that hold": {[]policy.RequestLimit{hourly("wide", 3, byAddress), hourly("n", 1, byToken)}, []step{
			{asking{token: "one"}, true}, {asking{token: "one"}, false}, {asking{token: "one"}, false}, // refused: not charged to the other one
			{asking{token: "two"}, true}, {asking{token: "three"}, true}, {asking{token: "four"}, false},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})}, nil)
			s := g.snapshot
			s.Routes = append(s.Routes, policy.Route{Name: "other", PathPrefix: "/other", Slot: g.zone.RouteSlot("other")})
			s.RequestLimits = tt.limits
			if err := g.worker.Apply(&s, g.certs); err != nil {
				t.Fatal(err)
			}
			c := g.client(false)
			for i, st := range tt.steps {
				if got := g.try(c, st.asking).StatusCode; (got == 200) != st.passes || got != 200 && got != 429 {
					t.Errorf("request %d, %+v: %d, passes should be %v", i, st.asking, got, st.passes)
				}
			}
			// The other protocol meets the same buckets.
			last := tt.steps[len(tt.steps)-1]
			if got := g.try(g.client(true), last.asking).StatusCode; (got == 200) != last.passes {
				t.Errorf("over HTTP/2: %d", got)
			}
		})
	}
}

func TestLimitRefusal(t *testing.T) {
	up := new(atomic.Int64)
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) { up.Add(1) })}, func(s *policy.Snapshot) {
		l := policy.RequestLimit{Name: "slow", ID: 1, Key: []policy.KeyPart{byAddress}, Requests: 2, Period: time.Minute, Burst: 1, Delay: 1, Status: 429}
		s.RequestLimits = []policy.RequestLimit{l}
	})
	c := g.client(false)
	if resp := g.try(c, asking{}); resp.StatusCode != 200 || resp.Header.Get("RateLimit") != "" {
		t.Errorf("the first one: %d, %v", resp.StatusCode, resp.Header)
	}
	resp := g.try(c, asking{})
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	if resp.StatusCode != 429 || after < 25 || after > 30 {
		t.Errorf("%d, Retry-After %q: want 429 and about 30", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	if got, want := resp.Header.Get("RateLimit"), fmt.Sprintf(`"slow";r=0;t=%d`, after); got != want {
		t.Errorf("RateLimit %s, want %s", got, want)
	}
	if got := resp.Header.Get("RateLimit-Policy"); got != `"slow";q=2;w=60` {
		t.Errorf("RateLimit-Policy %s", got)
	}
	if n := up.Load(); n != 1 {
		t.Errorf("the upstream saw %d requests", n)
	}
	rec := g.records(2)[1]
	if rec.Outcome != zone.RequestLimited || rec.Status != 429 {
		t.Errorf("recorded as %v, %d", rec.Outcome, rec.Status)
	}
	slot := g.snapshot.RequestLimits[0].Slot
	if p, r := g.slab.LoadLimit(slot, zone.LimitPassed), g.slab.LoadLimit(slot, zone.LimitRejected); p != 1 || r != 1 {
		t.Errorf("counted %d as passed, %d as rejected", p, r)
	}
}

func TestLimitDryRun(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})}, func(s *policy.Snapshot) {
		l := hourly("dry", 2, byAddress)
		l.DryRun, l.Delay = true, 1
		s.RequestLimits = []policy.RequestLimit{l}
	})
	c := g.client(false)
	for i := range 5 {
		if got := g.try(c, asking{}).StatusCode; got != 200 {
			t.Errorf("request %d: %d", i, got)
		}
	}
	if p, d, r, w := g.slab.LoadLimit(0, zone.LimitPassed), g.slab.LoadLimit(0, zone.LimitDelayed), g.slab.LoadLimit(0, zone.LimitRejected), g.slab.LoadLimit(0, zone.LimitWouldReject); p != 2 || d != 0 || r != 0 || w != 3 {
		t.Errorf("passed %d, delayed %d, rejected %d, would reject %d: want 2, 0, 0, 3", p, d, r, w)
	}
}

// Requests beyond those that may pass at once wait for their turn, at the limit's rate; a
// worker that is told to stop lets them go.
func TestLimitDelay(t *testing.T) {
	for round := 1; ; round++ {
		d := delayedOfEight(t)
		if d >= 3 && d <= 6 {
			return
		}
		// Those that come late, on a machine that is busy, need not wait.
		if d > 6 || round == 3 {
			t.Fatalf("%d were delayed, of which 4 must be", d)
		}
	}
}

func delayedOfEight(t *testing.T) uint64 {
	var mu sync.Mutex
	var at []time.Time
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {
		mu.Lock()
		at = append(at, time.Now())
		mu.Unlock()
	})}, func(s *policy.Snapshot) {
		s.RequestLimits = []policy.RequestLimit{
			{Name: "d", ID: 1, Key: []policy.KeyPart{byAddress}, Requests: 10, Period: time.Second, Burst: 6, Delay: 2, Status: 429},
		}
	})
	var clients []*raw
	for range 8 { // connections beforehand, so that the requests come together
		clients = append(clients, g.raw())
	}
	began := time.Now()
	for _, c := range clients {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	var p, r int64
	for _, c := range clients {
		switch resp, _ := c.reply("GET"); resp.StatusCode {
		case 200:
			p++
		case 429:
			r++
		}
	}
	took := time.Since(began)
	// Eight at once, or nearly: what came later than the first interval may pass as well.
	if p+r != 8 || p < 6 || p > 6+int64(took/(100*time.Millisecond)) {
		t.Errorf("%d passed, %d refused", p, r)
	}
	for i, when := range at {
		if least := time.Duration(i-1) * 100 * time.Millisecond; when.Sub(began) < least-time.Millisecond {
			t.Errorf("request %d reached the upstream after %v: its turn is at %v", i, when.Sub(began), least)
		}
	}
	return g.slab.LoadLimit(0, zone.LimitDelayed)
}

func TestLimitDelayEndsWithTheWorker(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})}, func(s *policy.Snapshot) {
		l := hourly("d", 5, byAddress)
		l.Delay = 1
		s.RequestLimits = []policy.RequestLimit{l}
	})
	c := g.client(false)
	g.try(c, asking{})
	status := make(chan int, 1)
	go func() { status <- g.try(c, asking{}).StatusCode }()
	eventually(t, "a request that waits", func() bool { return g.worker.delayed.Load() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	g.down.Do(func() {})
	if err := g.worker.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if got := <-status; got != 200 {
		t.Errorf("%d", got)
	}
	g.zone.Close()
}

// An address is an IPv4 one, or the /64 of an IPv6 one.
func TestAppendAddress(t *testing.T) {
	key := func(a string) string {
		return string(appendAddress(nil, netip.MustParseAddr(a)))
	}
	if key("192.0.2.1") == key("192.0.2.2") {
		t.Error("two IPv4 addresses share a bucket")
	}
	if key("2001:db8::1") != key("2001:db8::ffff:2:3:4") || key("2001:db8::1") == key("2001:db8:0:1::1") {
		t.Error("an IPv6 address does not stand for its /64")
	}
}

// State lives on over a reload, also of the limit's rate; a limit of another name begins
// anew.
func TestLimitOutlivesItsGeneration(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})}, func(s *policy.Snapshot) {
		s.RequestLimits = []policy.RequestLimit{hourly("a", 2, byAddress)}
	})
	c := g.client(false)
	for i, want := range []int{200, 200, 429} {
		if got := g.try(c, asking{}).StatusCode; got != want {
			t.Fatalf("request %d: %d", i, got)
		}
	}
	for generation, tt := range []struct {
		limit policy.RequestLimit
		want  []int
	}{
		{hourly("a", 2, byAddress), []int{429}},
		{hourly("a", 3, byAddress), []int{200, 429}},
		{hourly("b", 2, byAddress), []int{200, 200, 429}},
		{hourly("a", 3, byAddress), []int{429}},
	} {
		s := g.snapshot
		s.Generation, s.RequestLimits = uint64(generation+2), []policy.RequestLimit{tt.limit}
		if err := g.worker.Apply(&s, g.certs); err != nil {
			t.Fatal(err)
		}
		for i, want := range tt.want {
			if got := g.try(c, asking{}).StatusCode; got != want {
				t.Errorf("generation %d, request %d: %d, want %d", generation, i, got, want)
			}
		}
	}
}

func TestLimitThatCannotBeApplied(t *testing.T) {
	for name, spoil := range map[string]func(*policy.RequestLimit){
		"no requests":  func(l *policy.RequestLimit) { l.Requests = 0 },
		"no burst":     func(l *policy.RequestLimit) { l.Burst = 0 },
		"no period":    func(l *policy.RequestLimit) { l.Period = 0 },
		"more at once": func(l *policy.RequestLimit) { l.Delay = l.Burst + 1 },
		"no key":       func(l *policy.RequestLimit) { l.Key = nil },
		"unknown key":  func(l *policy.RequestLimit) { l.Key = []policy.KeyPart{{Kind: "moon"}} },
	} {
		g := newStoppedGateway(t, []string{"127.0.0.1:1"})
		l := hourly("lim", 2, byAddress)
		spoil(&l)
		s := g.snapshot
		s.RequestLimits = []policy.RequestLimit{l}
		if err := g.worker.Apply(&s, g.certs); err == nil || !strings.Contains(err.Error(), "request limit lim") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
