// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Limits that are tried refuse nobody and charge nothing that holds; what they would have
// refused, and whose good replies that had cost, is told by client.
func TestTrialOfLimits(t *testing.T) {
	g := newStoppedGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/missing") {
			w.WriteHeader(404)
		}
	})})
	s := g.keyed()
	g.snapshot.Routes = append(g.snapshot.Routes, keyRoute(g, "may", &policy.RouteKeys{Optional: true}))
	// Those that hold have just room for what is sent: a request charged twice would be refused.
	g.snapshot.RequestLimits = []policy.RequestLimit{hourly("holds", 23, byAddress)}
	of := func(name string, burst uint64, route ...int) policy.RequestLimit {
		l := hourly(name, burst, byToken)
		l.Routes = route
		return l
	}
	g.snapshot.Trial = &policy.Trial{
		RequestLimits: []policy.RequestLimit{of("tokens", 5), of("elsewhere", 1, 0), {
			Name: "keys", ID: 99, Key: []policy.KeyPart{{Kind: "api_key"}}, Requests: 1, Period: 3600e9, Burst: 2, Delay: 2, Status: 429,
		}},
		ConnectionLimits: []policy.ConnectionLimit{atOnce("conns", "connections", 1, byAddress), atOnce("under way", "requests", 100, byAddress)},
	}
	g.start()
	alice := s.add(t, keys.Record{ID: "a1", Consumer: "alice"})
	ask := func(c *http.Client, n int, path, token, key string) {
		t.Helper()
		for range n {
			r, _ := http.NewRequest("GET", g.url("/may"+path), nil)
			if token != "" {
				r.Header.Set("X-Token", token)
			}
			if key != "" {
				r.Header.Set("Authorization", "Bearer "+key)
			}
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == 429 {
				t.Fatalf("refused in truth: %q, %q", token, key)
			}
		}
	}
	first, second := g.client(false), g.client(true)
	ask(first, 8, "", "loud", "")          // 3 beyond 5
	ask(second, 7, "/missing", "loud", "") // all beyond; no good replies
	ask(second, 4, "", "", "")             // no token: not limited
	ask(second, 4, "", "", alice)          // 2 beyond 2
	eventually(t, "all are over", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 0 })
	got := g.worker.Tried()
	if got == nil || len(got.Clients) != 2 {
		t.Fatalf("tried: %+v", got)
	}
	for _, c := range got.Clients {
		want := Tally{Requests: 19, OK: 12, Refused: 10, Lost: 3, Connections: 1}
		if c.Key != "" {
			want = Tally{Requests: 4, OK: 4, Refused: 2, Lost: 2}
		}
		loopback := netip.MustParseAddr("127.0.0.1")
		if c.Tally != want || c.Address != loopback || c.Source != policy.AddressKey(loopback) || (c.Key == "") != (c.Consumer == "") || c.Key != "" && (c.Key != "a1" || c.Consumer != "alice") {
			t.Errorf("%+v, want %+v", c, want)
		}
	}
	if r := got.Refused; r["tokens"] != 10 || r["keys"] != 2 || r["conns"] != 1 || r["elsewhere"] != 0 || r["under way"] != 0 || got.Others != (Tally{}) {
		t.Errorf("by limit: %+v", got)
	}
	if n := g.slab.LoadRequest(zone.RequestLimited); n != 0 {
		t.Errorf("%d exchanges ended as limited", n)
	}
	// The one that holds was charged once for each request, and not for those that are tried.
	if got := g.try(first, asking{}).StatusCode; got != 429 {
		t.Errorf("one beyond what holds: %d", got)
	}
	done := g.snapshot
	done.Generation, done.Trial = 2, nil
	if err := g.worker.Apply(&done, g.certs); err != nil {
		t.Fatal(err)
	}
	if g.worker.Tried() != nil {
		t.Error("a trial that is over is still known")
	}
	bad := g.snapshot
	bad.Generation, bad.Trial = 3, &policy.Trial{RequestLimits: []policy.RequestLimit{hourly("f", 1, byFunction)}}
	if err := g.worker.Apply(&bad, g.certs); err == nil || !strings.Contains(err.Error(), "no key function") {
		t.Errorf("a trial without its key function: %v", err)
	}
	bad.Trial = &policy.Trial{RequestLimits: []policy.RequestLimit{hourly("f", 0, byAddress)}}
	if err := g.worker.Apply(&bad, g.certs); err == nil || !strings.Contains(err.Error(), "request limit f") {
		t.Errorf("a trial that cannot be: %v", err)
	}
}

// What is refused before any limit is asked counts as a request that no limit would refuse, and
// what a trial has counted outlives a new certificate.
func TestTrialOfRefusedHeads(t *testing.T) {
	g := newStoppedGateway(t, []string{plainUpstream(t)})
	g.snapshot.Trial = &policy.Trial{RequestLimits: []policy.RequestLimit{hourly("all", 100, byAddress)}}
	packetsOnly := g.snapshot
	packetsOnly.Generation, packetsOnly.Trial = 2, &policy.Trial{}
	g.start()
	for i := range 2 {
		if i == 1 {
			if err := g.worker.Apply(&packetsOnly, g.certs); err != nil {
				t.Fatal(err)
			}
		}
		raw := g.raw()
		raw.send("GET / HTTP/1.1\r\nbad head\r\n\r\n")
		if got, _ := raw.reply("GET"); got.StatusCode != 400 {
			t.Errorf("status %d, want 400", got.StatusCode)
		}
		g.records(1)
		if err := g.worker.Apply(g.worker.current.Load().policy, g.certs); err != nil { // as when a certificate was renewed
			t.Fatal(err)
		}
		got := g.worker.Tried()
		if len(got.Clients) != 1 || got.Clients[0].Tally != (Tally{Requests: 1}) || got.Refused["all"] != 0 {
			t.Errorf("round %d: %+v", i, got)
		}
	}
}

// Key functions of a trial are its own, whatever those that hold are called.
func TestTrialByFunction(t *testing.T) {
	g := newStoppedGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})})
	g.worker.functions = func(s *policy.KeyScript) (KeyFunctions, error) {
		text := string(s.Source)
		return keysOf{"f": func(KeyRequest) (string, error) {
			if text == "broken" {
				return "", errors.New("broken")
			}
			return text, nil
		}}, nil
	}
	g.snapshot.KeyScript = &policy.KeyScript{Source: []byte("holds")}
	g.snapshot.RequestLimits = []policy.RequestLimit{hourly("f", 3, byFunction)}
	g.snapshot.Trial = &policy.Trial{KeyScript: &policy.KeyScript{Source: []byte("broken")}, RequestLimits: []policy.RequestLimit{hourly("f", 1, byFunction)}}
	g.start()
	c := g.client(false)
	for i, want := range []int{200, 200, 200, 429} {
		if got := g.try(c, asking{}).StatusCode; got != want {
			t.Errorf("request %d: %d, want %d", i, got, want)
		}
	}
	eventually(t, "all are over", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 0 })
	if got := g.worker.Tried(); got.Refused["f"] != 2 || g.slab.Load(zone.KeyFaults) != 3 {
		t.Errorf("%+v, %d faults: want 2 that would be refused, and 3", got, g.slab.Load(zone.KeyFaults))
	}
}
