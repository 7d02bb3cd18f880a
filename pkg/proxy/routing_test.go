// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// witness is an upstream that keeps what it received and answers with its name.
type witness struct {
	address string
	mu      sync.Mutex
	got     []*http.Request
}

func newWitness(t *testing.T, name string) *witness {
	w := &witness{}
	w.address = httpUpstream(t, func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.got = append(w.got, r)
		w.mu.Unlock()
		h := rw.Header()
		h.Set("Server", "witness")
		h.Add("X-Twice", "1")
		h.Add("X-Twice", "2")
		h.Set("Access-Control-Allow-Origin", "https://upstream.example")
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(rw, name)
	})
	return w
}

// taken returns what was received since the last call.
func (w *witness) taken() []*http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.got
	w.got = nil
	return got
}

// routed starts a gateway with the routes, in front of the upstreams.
func routed(t *testing.T, upstreams []*witness, routes ...policy.Route) *gateway {
	t.Helper()
	return newGateway(t, nil, func(s *policy.Snapshot) {
		one := s.Upstreams[0]
		s.Upstreams, s.Routes = nil, slices.Clone(routes)
		for i, w := range upstreams {
			up := one
			up.Name, up.Servers = fmt.Sprint("up", i), policy.ServersAt(w.address)
			s.Upstreams = append(s.Upstreams, up)
		}
		for i := range s.Routes {
			r := &s.Routes[i]
			if r.Slot = i + 1; r.Name == "" {
				r.Name = fmt.Sprint("route", i)
			}
			if r.PathPrefix+r.PathExact+r.PathRegex == "" {
				r.PathPrefix = "/"
			}
			if r.Redirect != nil || r.Reply != nil || r.Split != nil {
				r.Upstream = policy.Local
			}
		}
	})
}

// ask sends a request; fields are names and values in turn.
func (g *gateway) ask(client *http.Client, method, host, target string, fields ...string) (*http.Response, string) {
	g.Helper()
	return g.askWith(client, method, host, target, nil, fields...)
}

func (g *gateway) askWith(client *http.Client, method, host, target string, body io.Reader, fields ...string) (*http.Response, string) {
	g.Helper()
	req, err := http.NewRequest(method, g.url(target), body)
	if err != nil {
		g.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	for i := 0; i+1 < len(fields); i += 2 {
		req.Header.Add(fields[i], fields[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		g.Fatalf("%s %s: %v", method, target, err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		g.Fatalf("%s %s: %v", method, target, err)
	}
	return resp, string(b)
}

// Both protocols find the same routes, and the upstream of each is what answers.
func TestRoutesToUpstreams(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		ups := []*witness{newWitness(t, "zero"), newWitness(t, "one"), newWitness(t, "two"), newWitness(t, "three")}
		g := routed(t, ups,
			policy.Route{Upstream: 0},
			policy.Route{Host: "*.example.com", PathRegex: "/users/[0-9]+", Upstream: 1},
			policy.Route{PathExact: "/exact", Methods: []string{"POST"}, Upstream: 2},
			policy.Route{PathPrefix: "/v", Headers: []policy.HeaderMatch{{Name: "X-Version", Equal: ptr("2")}}, Upstream: 3},
		)
		client := g.client(h2)
		for _, row := range []struct {
			method, host, target, fields, want string
		}{
			{"GET", "", "/", "", "zero"},
			{"GET", "a.b.example.com", "/users/12", "", "one"},
			{"GET", "example.com", "/users/12", "", "zero"},
			{"GET", "a.example.com", "/users/x", "", "zero"},
			{"POST", "", "/exact", "", "two"},
			{"PUT", "", "/exact", "", "zero"},
			{"GET", "", "/v/1", "X-Version 2", "three"},
			{"GET", "", "/v/1", "X-Version 3", "zero"},
		} {
			if _, body := g.ask(client, row.method, row.host, row.target, strings.Fields(row.fields)...); body != row.want {
				t.Errorf("%+v: %s", row, body)
			}
		}
	})
}

func TestRewrites(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		up := newWitness(t, "up")
		g := routed(t, []*witness{up},
			policy.Route{PathPrefix: "/strip", Rewrite: &policy.Rewrite{StripPrefix: "/strip", Host: "inner.test:81"}},
			policy.Route{PathPrefix: "/add", Rewrite: &policy.Rewrite{AddPrefix: "/more/"}},
			policy.Route{PathPrefix: "/both", Rewrite: &policy.Rewrite{StripPrefix: "/both", AddPrefix: "/other"}},
			policy.Route{PathPrefix: "/regex", Rewrite: &policy.Rewrite{Regex: "/regex/([a-z]+)/(.*)", Replacement: "/${2}/x$1$$"}},
			policy.Route{PathPrefix: "/dots", Rewrite: &policy.Rewrite{Regex: "/dots/(.*)/(.*)", Replacement: "/$1$2"}},
			policy.Route{PathPrefix: "/", Rewrite: &policy.Rewrite{StripPrefix: "/nothing"}},
		)
		client := g.client(h2)
		for _, row := range []struct{ target, want string }{
			{"/strip/a?q=/strip", "/a?q=/strip"}, {"/strip", "/"}, {"/strip?q", "/?q"}, {"/strip/", "/"}, {"/strip//evil.test/x", "/evil.test/x"},
			{"/%73trip/%61%2Fb", "/a%2Fb"}, {"/strip/strip", "/strip"},
			{"/add/x?y", "/more/add/x?y"}, {"/add", "/more/add"},
			{"/both", "/other"}, {"/both/", "/other/"}, {"/both/x", "/other/x"},
			{"/regex/ab/c/d?e", "/c/d/xab$?e"}, {"/regex/1/c", "/regex/1/c"}, {"/regex/ab//host/x", "/host/x/xab$"},
			{"/other/%61?%61", "/other/%61?%61"}, // not rewritten: as the client wrote it
		} {
			resp, body := g.ask(client, "GET", "outer.test", row.target)
			got := up.taken()
			if resp.StatusCode != 200 || len(got) != 1 || got[0].RequestURI != row.want {
				t.Errorf("%s: %d %q, the upstream got %v, want %s", row.target, resp.StatusCode, body, uris(got), row.want)
				continue
			}
			want := "outer.test"
			if strings.HasPrefix(row.target, "/strip") || strings.HasPrefix(row.target, "/%73") {
				want = "inner.test:81"
			}
			if got[0].Host != want || got[0].Header.Get("X-Forwarded-Host") != "outer.test" {
				t.Errorf("%s: host %s, forwarded host %s", row.target, got[0].Host, got[0].Header.Get("X-Forwarded-Host"))
			}
		}
		// What would be read in another way further on is refused, as if it had been sent.
		if resp, _ := g.ask(client, "GET", "", "/dots/./."); resp.StatusCode != 400 {
			t.Errorf("dots as sent: %d", resp.StatusCode)
		}
		if resp, body := g.ask(client, "GET", "", "/dots/x/y"); resp.StatusCode != 200 {
			t.Errorf("no dots: %d %s", resp.StatusCode, body)
		}
		up.taken()
	})
}

func uris(list []*http.Request) (out []string) {
	for _, r := range list {
		out = append(out, r.RequestURI)
	}
	return out
}

// A rewrite cannot make what a client could not have sent.
func TestRewriteCannotMakeDots(t *testing.T) {
	up := newWitness(t, "up")
	g := routed(t, []*witness{up}, policy.Route{Rewrite: &policy.Rewrite{Regex: "/a(.)/b(.)/(.*)", Replacement: "/$1$2/$3"}})
	client := g.client(false)
	if resp, _ := g.ask(client, "GET", "", "/a./b./secret"); resp.StatusCode != 400 || len(up.taken()) != 0 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if resp, _ := g.ask(client, "GET", "", "/ax/by/open"); resp.StatusCode != 200 || up.taken()[0].RequestURI != "/xy/open" {
		t.Errorf("status %d", resp.StatusCode)
	}
	if r := g.records(2); r[0].Outcome != zone.RequestBad || string(r[1].Target) != "/ax/by/open" {
		t.Errorf("%+v", r)
	}
}

// The upstream and the client get what the route says, once, whatever the client or
// the upstream sent of that name.
func TestHeaderEdits(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		up := newWitness(t, "up")
		edit := func(set, add, remove string) *policy.HeaderEdits {
			e := &policy.HeaderEdits{Remove: strings.Fields(remove)}
			for i, list := range []string{set, add} {
				for _, f := range strings.Fields(list) {
					name, value, _ := strings.Cut(f, "=")
					v := policy.HeaderValue{Name: name, Value: value}
					if i == 0 {
						e.Set = append(e.Set, v)
					} else {
						e.Add = append(e.Add, v)
					}
				}
			}
			return e
		}
		requests := edit("X-Tier=gold User-Agent=gateway", "X-More=2", "Cookie x-SECRET")
		replies := edit("X-Own=1", "X-Twice=3", "server")
		g := routed(t, []*witness{up},
			policy.Route{RequestHeaders: requests, ReplyHeaders: replies},
			policy.Route{PathPrefix: "/plain"},
			policy.Route{PathPrefix: "/away", Redirect: &policy.Redirect{Status: 301, Location: "/x"}, ReplyHeaders: replies},
			policy.Route{PathPrefix: "/limited", BodyBytes: ptr(int64(1)), ReplyHeaders: replies},
		)
		client := g.client(h2)
		for range 3 { // again on the same connection: nothing is left over
			resp, _ := g.ask(client, "GET", "", "/", "x-tier", "forged", "X-TIER", "twice", "Cookie", "a=b", "X-Secret", "s", "X-More", "1", "X-Kept", "k", "User-Agent", "client")
			h := up.taken()[0].Header
			for name, want := range map[string]string{
				"X-Tier": "[gold]", "Cookie": "[]", "X-Secret": "[]", "X-More": "[1 2]", "X-Kept": "[k]", "User-Agent": "[gateway]",
			} {
				if got := fmt.Sprint(h.Values(name)); got != want {
					t.Errorf("the upstream got %s %s, want %s", name, got, want)
				}
			}
			for name, want := range map[string]string{"Server": "[]", "X-Own": "[1]", "X-Twice": "[1 2 3]"} {
				if got := fmt.Sprint(resp.Header.Values(name)); got != want {
					t.Errorf("the client got %s %s, want %s", name, got, want)
				}
			}
			resp, _ = g.ask(client, "GET", "", "/plain", "X-Tier", "mine", "Cookie", "a=b")
			if h := up.taken()[0].Header; h.Get("X-Tier") != "mine" || h.Get("Cookie") != "a=b" || h.Get("X-More") != "" {
				t.Errorf("another route's request has edits: %v", h)
			}
			if resp.Header.Get("Server") != "witness" || resp.Header.Get("X-Own") != "" {
				t.Errorf("another route's reply has edits: %v", resp.Header)
			}
		}
		// Replies of the gateway's own are the route's, too.
		for target, status := range map[string]int{"/away": 301, "/limited": 413} {
			resp, _ := g.askWith(client, "POST", "", target, strings.NewReader("ab"))
			if resp.StatusCode != status || resp.Header.Get("X-Own") != "1" {
				t.Errorf("%s: %d %v", target, resp.StatusCode, resp.Header)
			}
		}
	})
}

func TestRedirects(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		up := newWitness(t, "up")
		g := routed(t, []*witness{up},
			policy.Route{PathPrefix: "/whole", Redirect: &policy.Redirect{Status: 308, Location: "https://$host:444$path$query"}},
			policy.Route{PathPrefix: "/fixed", Redirect: &policy.Redirect{Status: 301, Location: "/price$$"}},
			policy.Route{PathPrefix: "/moved", Redirect: &policy.Redirect{Status: 302, Location: "$path$query"}, Rewrite: &policy.Rewrite{StripPrefix: "/moved"}},
			policy.Route{PathPrefix: "/bare", Redirect: &policy.Redirect{Status: 307, Location: "$path"}},
		)
		client := g.client(h2)
		for _, row := range []struct {
			target, location string
			status           int
		}{
			{"/whole/a%20b?q=1&r", "https://a.test:444/whole/a%20b?q=1&r", 308},
			{"/whole", "https://a.test:444/whole", 308},
			{"/fixed/x?y", "/price$", 301},
			{"/moved/x?y", "/x?y", 302},
			{"/moved//evil.test/x", "/evil.test/x", 302}, // no other host
			{"/bare/x?y", "/bare/x", 307},
		} {
			resp, body := g.ask(client, "GET", "a.test:8443", row.target)
			if resp.StatusCode != row.status || resp.Header.Get("Location") != row.location || body != "" || resp.Header.Get("Date") == "" {
				t.Errorf("%s: %d %v %q, want %d %s", row.target, resp.StatusCode, resp.Header, body, row.status, row.location)
			}
		}
		recs := g.records(6)
		for _, r := range recs {
			if r.Outcome != zone.RequestRouteReply || r.Upstream != -1 || r.Route < 1 {
				t.Errorf("record %+v", r)
			}
		}
		if n := len(up.taken()); n != 0 {
			t.Errorf("the upstream got %d requests", n)
		}
		if n := g.slab.Load(zone.ConnectionsAccepted); n != 1 {
			t.Errorf("%d connections: a redirect ended one", n)
		}
	})
	g := routed(t, []*witness{newWitness(t, "up")}, policy.Route{Redirect: &policy.Redirect{Status: 307, Location: "https://$host/"}})
	c := g.raw()
	c.send("GET / HTTP/1.0\r\n\r\n") // names no host
	if resp, _ := c.reply("GET"); resp.StatusCode != 400 || resp.Header.Get("Location") != "" {
		t.Errorf("%v", resp)
	}
}

func TestStaticReplies(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		long := string(content(300_000))
		g := routed(t, []*witness{newWitness(t, "up")},
			policy.Route{PathPrefix: "/", Reply: &policy.Reply{Status: 403, ContentType: "application/json", Body: []byte(`{"no":1}`)}},
			policy.Route{PathPrefix: "/204", Reply: &policy.Reply{Status: 204}},
			policy.Route{PathPrefix: "/empty", Reply: &policy.Reply{Status: 200, ContentType: "text/plain"}},
			policy.Route{PathPrefix: "/long", Reply: &policy.Reply{Status: 200, ContentType: "application/octet-stream", Body: []byte(long)}},
		)
		client := g.client(h2)
		n := 0
		for _, row := range []struct {
			method, target string
			status         int
			length         int64
			kind, body     string
		}{
			{"GET", "/", 403, 8, "application/json", `{"no":1}`},
			{"HEAD", "/", 403, 8, "application/json", ""},
			{"GET", "/204", 204, 0, "", ""},
			{"GET", "/empty", 200, 0, "text/plain", ""},
			{"GET", "/long", 200, 300_000, "application/octet-stream", long},
			{"HEAD", "/long", 200, 300_000, "application/octet-stream", ""},
			{"DELETE", "/", 403, 8, "application/json", `{"no":1}`},
		} {
			resp, body := g.ask(client, row.method, "", row.target)
			if resp.StatusCode != row.status || body != row.body || resp.Header.Get("Content-Type") != row.kind || resp.ContentLength != row.length {
				t.Errorf("%s %s: %d, length %d, %v, %d bytes", row.method, row.target, resp.StatusCode, resp.ContentLength, resp.Header, len(body))
			}
			n++
		}
		// A body that no upstream reads is no part of the next request, and a short one
		// ends no connection.
		for range 3 {
			if resp, body := g.askWith(client, "POST", "", "/", strings.NewReader(strings.Repeat("GET / HTTP/1.1\r\n", 100))); resp.StatusCode != 403 || body != `{"no":1}` {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
			n++
		}
		if got := g.slab.Load(zone.ConnectionsAccepted); got != 1 {
			t.Errorf("%d connections: a reply ended one", got)
		}
		if !h2 {
			c := g.raw()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
			if resp, _ := c.reply("POST"); resp.StatusCode != 403 || !resp.Close { // no 100 before it: the body is not wanted
				t.Errorf("%v", resp)
			}
			n++
		}
		for _, r := range g.records(n) {
			if r.Outcome != zone.RequestRouteReply {
				t.Errorf("record %+v", r)
			}
		}
	})
}

// Maintenance is switched by a new configuration: 503 while it is enabled, and the
// upstream again after it.
func TestMaintenance(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		up := newWitness(t, "up")
		g := routed(t, []*witness{up}, policy.Route{})
		client := g.client(h2)
		for i := range 4 {
			s := g.worker.current.Load().policy
			next := *s
			next.Routes = slices.Clone(s.Routes)
			next.Routes[0].Maintenance = nil
			if i%2 == 1 {
				next.Routes[0].Maintenance = &policy.Maintenance{Enabled: true, RetryAfter: 90 * time.Second, ContentType: "text/html", Body: "<p>soon"}
			}
			if err := g.worker.Apply(&next, g.certs); err != nil {
				t.Fatal(err)
			}
			resp, body := g.ask(client, "GET", "", "/")
			if i%2 == 0 && (resp.StatusCode != 200 || body != "up") {
				t.Errorf("open: %d %q", resp.StatusCode, body)
			}
			if i%2 == 1 && (resp.StatusCode != 503 || body != "<p>soon" || resp.Header.Get("Retry-After") != "90" || resp.Header.Get("Content-Type") != "text/html") {
				t.Errorf("under maintenance: %d %v %q", resp.StatusCode, resp.Header, body)
			}
		}
		if n := len(up.taken()); n != 2 {
			t.Errorf("the upstream got %d requests, want 2", n)
		}
		eventually(t, "two counted", func() bool { return g.slab.LoadRequest(zone.RequestMaintenance) == 2 })
	})
}

// Each share gets its part, to within a few requests, from the first ones on.
func TestSplit(t *testing.T) {
	ups := []*witness{newWitness(t, "most"), newWitness(t, "canary"), newWitness(t, "none")}
	g := routed(t, ups, policy.Route{Split: []policy.Share{{Upstream: 0, Weight: 9}, {Upstream: 1, Weight: 1}, {Upstream: 2, Weight: 0}}})
	client := g.client(true)
	for round := range 3 {
		got := map[string]int{}
		for range 200 {
			_, body := g.ask(client, "GET", "", "/")
			got[body]++
		}
		if got["canary"] < 16 || got["canary"] > 24 || got["most"] != 200-got["canary"] {
			t.Errorf("round %d: %v, want 180 and 20", round, got)
		}
	}
	byUpstream := map[int]int{}
	for _, r := range g.records(600) {
		byUpstream[r.Upstream]++
	}
	if len(byUpstream) != 1 { // the test's upstreams share a slot
		t.Errorf("%v", byUpstream)
	}
}

// Answers of a route, and what it changes, cost no allocation.
func TestRoutesDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties the pools
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := plainUpstream(t)
	up := &witness{address: plain}
	body := []byte(strings.Repeat("x", 100))
	edits := func(n string) *policy.HeaderEdits {
		return &policy.HeaderEdits{Set: []policy.HeaderValue{{Name: "X-" + n, Value: n}}, Remove: []string{"Server"}}
	}
	g := routed(t, []*witness{up},
		policy.Route{PathPrefix: "/edit", RequestHeaders: edits("a"), ReplyHeaders: edits("b"), Rewrite: &policy.Rewrite{StripPrefix: "/edit"},
			CORS: &policy.CORS{AllowOrigins: []string{"https://app.test"}, Credentials: true}},
		policy.Route{PathPrefix: "/split", Split: []policy.Share{{Upstream: 0, Weight: 1}}, BodyBytes: ptr(int64(9))},
		policy.Route{PathPrefix: "/reply", Reply: &policy.Reply{Status: 200, ContentType: "text/plain", Body: body}},
		policy.Route{PathPrefix: "/closed", Maintenance: &policy.Maintenance{Body: string(body)}},
	)
	direct := servePlain(t, tls.NewListener(inner, &tls.Config{Certificates: g.certs, DynamicRecordSizingDisabled: true}))
	for _, target := range []string{"/edit/%61?q", "/split", "/reply", "/closed"} {
		request := "GET " + target + " HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.test\r\n\r\n"
		measure := func(address string) float64 {
			exchange := exchanger(t, address, g.tlsConfig("http/1.1"), request)
			for range 100 {
				exchange()
			}
			return testing.AllocsPerRun(300, exchange)
		}
		if through, alone := measure(g.address), measure(direct); through > alone {
			t.Errorf("%s: %v allocations through the gateway, %v without", target, through, alone)
		}
	}
}
