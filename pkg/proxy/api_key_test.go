// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// keyStore answers a worker for API keys.
type keyStore struct {
	mu      sync.Mutex
	records map[string]*keys.Record
	dead    bool
}

// keyed gives the worker a store, before it starts.
func (g *gateway) keyed() *keyStore {
	s := &keyStore{records: map[string]*keys.Record{}}
	g.worker.keys = keys.NewCache(g.zone.Fence(), g.slab)
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		g.worker.keys.Run(func(ids []string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, id := range ids {
				g.worker.AnswerKeys([]keys.Answer{{ID: id, Record: s.records[id], Failed: s.dead}})
			}
			return nil
		}, stop)
	})
	g.Cleanup(func() { close(stop); running.Wait() })
	g.snapshot.Keys = policy.KeyTimes{Known: time.Hour, Unknown: time.Hour, Stale: time.Hour}
	return s
}

// add makes a key.
func (s *keyStore) add(t testing.TB, r keys.Record) string {
	t.Helper()
	text, made, err := keys.New(r, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[made.ID] = &made
	return text
}

func keyRoute(g *gateway, name string, want *policy.RouteKeys) policy.Route {
	if want != nil && want.Headers == nil {
		want.Headers = []string{"Authorization", "X-API-Key"}
	}
	return policy.Route{Name: name, PathPrefix: "/" + name, Keys: want, Slot: g.zone.RouteSlot(name)}
}

func TestAPIKeys(t *testing.T) {
	seen := make(chan http.Header, 1)
	g := newStoppedGateway(t, []string{httpUpstream(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header })})
	s := g.keyed()
	cors := keyRoute(g, "cors", &policy.RouteKeys{})
	cors.CORS = &policy.CORS{AllowOrigins: []string{"https://a.example"}, AllowMethods: []string{"GET"}}
	g.snapshot.Routes = append(g.snapshot.Routes,
		keyRoute(g, "must", &policy.RouteKeys{}), keyRoute(g, "may", &policy.RouteKeys{Optional: true}),
		keyRoute(g, "scoped", &policy.RouteKeys{Scopes: []string{"read", "write"}}), keyRoute(g, "pass", &policy.RouteKeys{Pass: true}),
		keyRoute(g, "own", &policy.RouteKeys{Headers: []string{"X-Token"}}), cors)
	g.start()
	past := time.Now().Add(-time.Minute)
	good := s.add(t, keys.Record{ID: "good", Consumer: "alice", Scopes: []string{"read"}})
	both := s.add(t, keys.Record{ID: "both", Consumer: "bob", Scopes: []string{"write", "read", "more"}})
	expired := s.add(t, keys.Record{ID: "old", Consumer: "carol", Expires: past})
	revoked := s.add(t, keys.Record{ID: "ended", Consumer: "dave"})
	s.records["ended"].Revoke(past)
	const invalid, bearer = `, error="invalid_token"`, "Authorization: Bearer "
	wrong := "xgw_good_" + strings.Repeat("a", 52)
	for _, tt := range []struct {
		path, fields string
		status       int
		challenge    string // what follows the realm
		consumer     string // that the upstream is told
		passed       string // of the request's fields, what reaches the upstream
		id           string // in the access record
	}{
		{"must", "", 401, "", "", "", ""},
		{"must", bearer + good, 200, "", "alice", "", "good"},
		{"must", "authorization: bEARER  " + good, 200, "", "alice", "", "good"},
		{"must", "X-Api-Key: " + good, 200, "", "alice", "", "good"},
		{"must", "X-API-Key: " + good + "|" + bearer + good, 200, "", "alice", "", "good"},
		{"must", "X-API-Key: " + good + "|" + bearer + both, 401, invalid, "", "", ""},
		{"must", "X-API-Key: " + good + "|X-API-Key: " + both, 401, invalid, "", "", ""},
		{"must", "X-Token: " + good, 401, "", "", "", ""},
		{"must", "Authorization: Basic eGd3", 401, "", "", "", ""},
		{"must", "Authorization: " + good, 401, "", "", "", ""},
		{"must", bearer + "eyJhbGciOi.x.y|X-API-Key: " + good, 200, "", "alice", "eyJhbGciOi.x.y", "good"},
		{"must", bearer + wrong, 401, invalid, "", "", ""},
		{"must", bearer + good + "a", 401, invalid, "", "", ""},
		{"must", bearer + "xgw_nobody_" + strings.Repeat("a", 52), 401, invalid, "", "", ""},
		{"must", bearer + "xgw_good", 401, invalid, "", "", ""},
		{"must", bearer + expired, 401, invalid, "", "", "old"},
		{"must", bearer + revoked, 401, invalid, "", "", "ended"},
		{"must", bearer + good + "|X-Consumer: root", 200, "", "alice", "", "good"},
		{"may", "", 200, "", "", "", ""},
		{"may", "X-Consumer: root", 200, "", "", "", ""},
		{"may", "Authorization: Basic eGd3", 200, "", "", "Basic eGd3", ""},
		{"may", bearer + good, 200, "", "alice", "", "good"},
		{"may", bearer + wrong, 401, invalid, "", "", ""},
		{"scoped", bearer + good, 403, `, error="insufficient_scope", scope="read write"`, "", "", "good"},
		{"scoped", bearer + both, 200, "", "bob", "", "both"},
		{"pass", bearer + good, 200, "", "alice", "Bearer " + good, "good"},
		{"own", "X-Token: " + good, 200, "", "alice", "", "good"},
		{"own", bearer + good, 401, "", "", "", ""},
		{"cors", "Origin: https://a.example|Access-Control-Request-Method: GET", 204, "", "", "", ""},
		{"open", "X-Consumer: root|" + bearer + good, 200, "", "", "Bearer " + good, ""},
	} {
		for _, h2 := range []bool{false, true} {
			method := "GET"
			if tt.status == 204 {
				method = "OPTIONS"
			}
			req, err := http.NewRequest(method, g.url("/"+tt.path), nil)
			if err != nil {
				t.Fatal(err)
			}
			for f := range strings.SplitSeq(tt.fields, "|") {
				if name, value, ok := strings.Cut(f, ": "); ok {
					req.Header.Add(name, value)
				}
			}
			resp, err := g.client(h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			what := tt.path + " " + tt.fields
			want := ""
			if tt.status == 401 || tt.status == 403 {
				want = `Bearer realm="` + tt.path + `"` + tt.challenge
			}
			if resp.StatusCode != tt.status || resp.Header.Get("WWW-Authenticate") != want {
				t.Errorf("%s: %d, %s; want %d, %s", what, resp.StatusCode, resp.Header.Get("WWW-Authenticate"), tt.status, want)
			}
			if resp.StatusCode == 200 {
				h := <-seen
				passed := h.Get("Authorization") + h.Get("X-Api-Key") + h.Get("X-Token")
				if h.Get("X-Consumer") != tt.consumer || strings.TrimPrefix(passed, "Bearer ") != strings.TrimPrefix(tt.passed, "Bearer ") {
					t.Errorf("%s: the upstream got %v", what, h)
				}
			}
			if r := g.records(1)[0]; string(r.Key) != tt.id {
				t.Errorf("%s: the record has the key %q", what, r.Key)
			}
		}
	}
	for o, n := range map[zone.RequestOutcome]uint64{zone.RequestKeyMissing: 10, zone.RequestKeyRefused: 18, zone.RequestKeyScope: 2, zone.RequestKeyUnanswered: 0} {
		if got := g.slab.LoadRequest(o); got != n {
			t.Errorf("%s: %d, want %d", o, got, n)
		}
	}
	if asked := g.slab.Load(zone.KeysAsked); asked != 5 {
		t.Errorf("asked for %d ids", asked)
	}
}

// A store that does not answer: who is known goes on, who is not gets 503, never 401.
func TestAPIKeysOfDeadStore(t *testing.T) {
	g := newStoppedGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})})
	s := g.keyed()
	g.snapshot.Keys.Known = time.Nanosecond // asked for again each time
	g.snapshot.Routes[0].Keys = &policy.RouteKeys{Headers: []string{"X-API-Key"}}
	g.start()
	known, unknown := s.add(t, keys.Record{Consumer: "a"}), s.add(t, keys.Record{Consumer: "b"})
	c := g.client(false)
	try := func(key string) *http.Response {
		req, _ := http.NewRequest("GET", g.url("/"), nil)
		req.Header.Set("X-API-Key", key)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	if got := try(known).StatusCode; got != 200 {
		t.Fatalf("at first: %d", got)
	}
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	for range 3 {
		if got := try(known).StatusCode; got != 200 {
			t.Errorf("a known key: %d", got)
		}
		if r := try(unknown); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" || r.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("an unknown key: %d, %v", r.StatusCode, r.Header)
		}
	}
	s.mu.Lock()
	s.dead = false
	s.mu.Unlock()
	if got := try(unknown).StatusCode; got != 200 {
		t.Errorf("when it answers again: %d", got)
	}
	g.records(8)
	if n, stale := g.slab.LoadRequest(zone.RequestKeyUnanswered), g.slab.Load(zone.KeysStale); n != 3 || stale != 3 {
		t.Errorf("%d were not answered, %d stale", n, stale)
	}
}

// Limits by key, consumer, tier and claim, and those that keys have of their own: of each
// request whether it passes.
func TestLimitsOfAPIKeys(t *testing.T) {
	g := newStoppedGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})})
	s := g.keyed()
	by := func(kind string) policy.KeyPart { return policy.KeyPart{Kind: kind} }
	gold := hourly("gold", 1, by("consumer"))
	gold.Tiers = []string{"gold", "platinum"}
	sub := policy.KeyPart{Kind: "jwt", Header: "X-JWT", Claim: "sub"}
	for i, l := range []policy.RequestLimit{hourly("keys", 2, by("api_key")), hourly("consumers", 3, by("consumer")), gold, hourly("subjects", 1, sub), {}} {
		r := keyRoute(g, "r"+string(rune('0'+i)), &policy.RouteKeys{Optional: true})
		g.snapshot.Routes = append(g.snapshot.Routes, r)
		if l.Name != "" {
			l.Routes, l.Slot = []int{i + 1}, g.zone.LimitSlot(l.Name)
			g.snapshot.RequestLimits = append(g.snapshot.RequestLimits, l)
		}
	}
	g.snapshot.KeySlot = g.zone.LimitSlot("api_key")
	g.start()
	alice, alice2 := s.add(t, keys.Record{Consumer: "alice", Limit: "gold"}), s.add(t, keys.Record{Consumer: "alice"})
	bob := s.add(t, keys.Record{Consumer: "bob", Limit: "platinum"})
	slow, slow2 := s.add(t, keys.Record{Consumer: "slow", Limit: "2r/h"}), s.add(t, keys.Record{Consumer: "slow", Limit: "2r/h"})
	one, two := jwt(`{"sub":"one"}`), jwt(`{"sub":"two"}`)
	for i, tt := range []struct {
		path, key, jwt string
		passes         bool
	}{
		{"r0", alice, "", true}, {"r0", alice, "", true}, {"r0", alice, "", false}, {"r0", alice2, "", true}, {"r0", "", "", true}, {"r0", "", "", true}, {"r0", "", "", true},
		{"r1", alice, "", true}, {"r1", alice2, "", true}, {"r1", alice, "", true}, {"r1", alice2, "", false}, {"r1", bob, "", true},
		{"r2", alice, "", true}, {"r2", alice, "", false}, {"r2", bob, "", true}, {"r2", bob, "", false}, {"r2", alice2, "", true}, {"r2", alice2, "", true}, {"r2", "", "", true},
		{"r3", "", one, true}, {"r3", "", "Bearer " + one, false}, {"r3", "", two, true}, {"r3", "", "none", true}, {"r3", "", "none", true},
		{"r4", slow, "", true}, {"r4", slow, "", false}, {"r4", slow2, "", true}, {"r4", slow2, "", false}, {"r4", alice, "", true}, {"r4", alice, "", true},
	} {
		req, _ := http.NewRequest("GET", g.url("/"+tt.path), nil)
		if tt.key != "" {
			req.Header.Set("X-API-Key", tt.key)
		}
		if tt.jwt != "" {
			req.Header.Set("X-JWT", tt.jwt)
		}
		resp, err := g.client(i%2 == 0).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.StatusCode; (got == 200) != tt.passes || got != 200 && got != 429 {
			t.Errorf("request %d, %+v: %d, passes should be %v", i, tt, got, tt.passes)
		}
	}
	if n := g.slab.LoadLimit(g.snapshot.KeySlot, zone.LimitRejected); n != 2 {
		t.Errorf("%d were refused by limits of keys' own", n)
	}
}
