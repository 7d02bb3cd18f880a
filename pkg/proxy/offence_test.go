// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// escalation is a rule of so many offences.
func escalation(id uint64, count int, on ...string) policy.Escalation {
	return policy.Escalation{Name: "rule", ID: id, On: on, Count: count, Within: time.Minute, Step: policy.ThinSYNs, Most: policy.DropAll, TTL: time.Minute}
}

// signals are those that the worker has put, waited for until there are n.
func (g *gateway) signals(n int) (out []zone.Signal) {
	g.Helper()
	for end := time.Now().Add(20 * time.Second); len(out) < n && time.Now().Before(end); time.Sleep(time.Millisecond) {
		g.slab.Signals.Drain(func(s zone.Signal) { out = append(out, s) })
	}
	if len(out) != n {
		g.Fatalf("%d signals: %+v; want %d", len(out), out, n)
	}
	return out
}

// What a client does wrong makes streaks, each kind by the rules that ask for it, and the
// supervisor is told; what it does well makes none.
func TestOffences(t *testing.T) {
	up := httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/401":
			w.WriteHeader(401)
		case "/429":
			w.WriteHeader(429)
		case "/404":
			w.WriteHeader(404)
		}
	})
	var roused atomic.Int64
	g := newStoppedGateway(t, []string{up})
	g.worker.rouse = func() { roused.Add(1) }
	for i, o := range zone.Offences() {
		g.snapshot.Escalations = append(g.snapshot.Escalations, escalation(uint64(i+1), 2, o.String()))
	}
	g.snapshot.RequestLimits = []policy.RequestLimit{hourly("each", 1, byToken)}
	g.start()
	get := func(path, token string) {
		t.Helper()
		g.try(g.client(len(path)%2 == 0), asking{path: path, token: token})
	}
	for name, tt := range map[string]struct {
		offence zone.Offence
		do      func()
	}{
		"429 of an upstream": {zone.OffenceLimited, func() { get("429", "") }},
		"over a limit":       {zone.OffenceLimited, func() { get("", "one") }},
		"401":                {zone.OffenceUnauthorized, func() { get("401", "") }},
		"malformed head":     {zone.OffenceMalformed, func() { c := g.raw(); c.send("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"); _, _ = io.Copy(io.Discard, c) }},
		"dot segments":       {zone.OffenceMalformed, func() { c := g.raw(); c.send("GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n"); c.reply("GET"); c.Close() }},
		"misuse of HTTP/2": {zone.OffenceHTTP2, func() {
			c, err := tls.Dial("tcp", g.address, g.tlsConfig("h2"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, preface+"\x00\x00\x01\x00\x00\x00\x00\x00\x00x") // DATA on stream 0
			_, _ = io.Copy(io.Discard, c)
		}},
		"failed handshake": {zone.OffenceHandshake, func() {
			c, err := net.Dial("tcp", g.address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "over a limit" {
				get("", "one") // passes
			}
			before := roused.Load()
			tt.do()
			get("404", "")
			tt.do()
			s := g.signals(1)[0]
			if s.Offence != tt.offence || s.Rule != uint64(tt.offence)+1 || s.Source != policy.AddressKey(netip.MustParseAddr("127.0.0.1")) || s.Who == 0 {
				t.Errorf("%+v", s)
			}
			for end := time.Now().Add(10 * time.Second); roused.Load() != before+1 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			if age := monotonicBoot(time.Now()) - s.At; age < 0 || age > int64(time.Minute) || roused.Load() != before+1 {
				t.Errorf("%d ns old, roused %d times", age, roused.Load()-before)
			}
		})
	}
	for range 10 {
		get("404", "")
		get("", "")
	}
	g.signals(0)
}

// Sessions say who did well, by connection or by proof, and those that have ended are
// forgotten.
func TestSessionsOfConnections(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/401" {
			w.WriteHeader(401)
		}
	})}, func(s *policy.Snapshot) { s.Escalations = []policy.Escalation{escalation(1, 1000, "401")} })
	key := policy.AddressKey(netip.MustParseAddr("127.0.0.1"))
	sessions := func() []zone.Session { return g.zone.Sessions(nil, key, monotonicBoot(time.Now())) }
	until := func(what string, is func([]zone.Session) bool) []zone.Session {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if list := sessions(); is(list) {
				return list
			} else if time.Now().After(end) {
				t.Fatalf("never %s: %+v", what, list)
			}
		}
	}
	one, two := g.client(false), g.client(true)
	for range 3 {
		g.try(one, asking{})
		g.try(two, asking{})
	}
	g.try(two, asking{path: "401"})
	list := until("two of them", func(l []zone.Session) bool { return len(l) == 2 && l[0].Good+l[1].Good == 6 && l[0].Bad+l[1].Bad == 1 })
	if list[0].Who == list[1].Who || list[0].Proved || list[0].Port == 0 || list[0].Own == 0 || list[0].Good != 3 {
		t.Errorf("%+v", list)
	}
	one.CloseIdleConnections()
	until("one of them", func(l []zone.Session) bool { return len(l) == 1 && l[0].Bad == 1 })
	two.CloseIdleConnections()
	until("none", func(l []zone.Session) bool { return len(l) == 0 })
}

// What comes through a trusted proxy is nobody's whom a verdict could be on: it is counted,
// and leads to nothing.
func TestOffencesThroughATrustedProxy(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })}, func(s *policy.Snapshot) {
		s.Escalations = []policy.Escalation{escalation(1, 1, "401")}
		s.Client = policy.ClientAddress{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Header: "X-Forwarded-For"}
	})
	c := g.client(false)
	for range 3 {
		req, _ := http.NewRequest("GET", g.url("/"), nil)
		req.Header.Set("X-Forwarded-For", "192.0.2.7")
		r, err := c.Do(req)
		if err != nil || r.StatusCode != 401 {
			t.Fatal(r, err)
		}
		r.Body.Close()
	}
	for end := time.Now().Add(10 * time.Second); g.slab.Load(zone.OffencesUnkeyed) < 3 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := g.slab.Load(zone.OffencesUnkeyed); n != 3 {
		t.Errorf("%d offences counted", n)
	}
	g.signals(0)
}

func TestStreaks(t *testing.T) {
	var s streaks
	r, other := &streakRule{id: 1, count: 3, within: 100}, &streakRule{id: 2, count: 1, within: 100}
	for i, tt := range []struct {
		source uint64
		rule   *streakRule
		at     int64
		want   bool
	}{
		{7, r, 1000, false}, {7, r, 1050, false}, {8, r, 1060, false}, {7, other, 1070, true}, {7, r, 1100, true}, // within
		{7, r, 1100, false}, {7, r, 1150, false}, {7, r, 1201, false}, {7, r, 1250, false}, {7, r, 1301, true}, // the first one is too old, and the next streak begins
	} {
		if got := s.add(tt.source, tt.rule, tt.at); got != tt.want {
			t.Errorf("offence %d: %v", i, got)
		}
	}
	// Far more sources than it holds: a streak that is under way goes on.
	for i := range uint64(100_000) {
		s.add(1000+i, r, 2000)
		if i%1000 == 0 {
			s.add(7, &streakRule{id: 1, count: 1 << 30, within: 1 << 40}, 2001)
		}
	}
	if testing.AllocsPerRun(100, func() { s.add(9, r, 3000) }) > 0 {
		t.Error("counting an offence allocates")
	}
}

// Who comes in by a key is one identity on all connections, and known for a while after them.
func TestSessionsOfKeys(t *testing.T) {
	g := newStoppedGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})})
	s := g.keyed()
	g.snapshot.Routes[0].Keys = &policy.RouteKeys{Headers: []string{"X-API-Key"}}
	g.start()
	key := s.add(t, keys.Record{Consumer: "a"})
	for i := range 2 {
		c := g.client(i == 0)
		req, _ := http.NewRequest("GET", g.url("/"), nil)
		req.Header.Set("X-API-Key", key)
		r, err := c.Do(req)
		if err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		}
		r.Body.Close()
		defer c.CloseIdleConnections()
	}
	source := policy.AddressKey(netip.MustParseAddr("127.0.0.1"))
	var list []zone.Session
	for end := time.Now().Add(10 * time.Second); len(list) != 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		list = g.zone.Sessions(nil, source, monotonicBoot(time.Now()))
	}
	if len(list) != 2 || list[0].Who != list[1].Who || !list[0].Proved || !list[1].Proved {
		t.Errorf("%+v", list)
	}
}
