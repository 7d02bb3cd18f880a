// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

func ptr[T any](v T) *T { return &v }

// compiled is the table of routes, each with its place in the list as its slot.
func compiled(tb testing.TB, routes []policy.Route) *snapshot {
	tb.Helper()
	p := &policy.Snapshot{
		Connections: 1, Routes: slices.Clone(routes),
		Upstreams: []policy.Upstream{{Name: "up", Servers: policy.ServersAt("127.0.0.1:1"), MaxConnections: 1}},
	}
	for i := range p.Routes {
		p.Routes[i].Slot = i
	}
	s, err := compile(p, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// request is an exchange as chooseRoute finds it; fields are names and values in turn.
func request(s *snapshot, method, host, target string, fields ...string) *Exchange {
	ex := &Exchange{snap: s, method: []byte(method), host: []byte(host), target: []byte(target)}
	for i := 0; i+1 < len(fields); i += 2 {
		ex.fields = append(ex.fields, http1.Field{Name: []byte(fields[i]), Value: []byte(fields[i+1])})
	}
	return ex
}

// found is the slot of the exchange's route; -1 for none.
func found(ex *Exchange) int {
	if chooseRoute(ex) != nil {
		return -1
	}
	return ex.route.slot
}

func TestRouteOrder(t *testing.T) {
	headers := func(h ...policy.HeaderMatch) []policy.HeaderMatch { return h }
	routes := []policy.Route{
		{Name: "rest", PathPrefix: "/"},
		{Name: "v1", PathPrefix: "/v1"},
		{Name: "v1/", PathPrefix: "/v1/deep/"},
		{Name: "regex", PathRegex: "/v[0-9]+/.*"},
		{Name: "regex-later", PathRegex: "/v9/[a-z]+"},
		{Name: "exact", PathExact: "/v1/exact"},
		{Name: "wild", Host: "*.example.com", PathPrefix: "/"},
		{Name: "wilder", Host: "*.b.example.com", PathPrefix: "/only"},
		{Name: "host", Host: "a.example.com", PathPrefix: "/v1"},
		{Name: "post", PathPrefix: "/v1", Methods: []string{"POST", "PUT"}},
		{Name: "post-json", PathPrefix: "/v1", Methods: []string{"POST"}, Headers: headers(policy.HeaderMatch{Name: "Content-Type", Prefix: ptr("application/json")})},
		{Name: "debug", PathPrefix: "/v1", Headers: headers(policy.HeaderMatch{Name: "X-Debug"})},
		{Name: "version", PathPrefix: "/v1", Headers: headers(policy.HeaderMatch{Name: "x-debug"}, policy.HeaderMatch{Name: "X-Version", Equal: ptr("2")})},
		{Name: "empty", PathExact: "/empty", Headers: headers(policy.HeaderMatch{Name: "X-None", Equal: ptr("")})},
		{Name: "admin", PathPrefix: "/admin"},
	}
	s := compiled(t, routes)
	for _, row := range []struct {
		method, host, target string
		fields               []string
		want                 string
	}{
		{"GET", "z.test", "/", nil, "rest"},
		{"GET", "z.test", "/v1", nil, "v1"},
		{"GET", "z.test", "/v1?x=/v1/exact", nil, "v1"},
		{"GET", "z.test", "/v10", nil, "rest"},
		{"GET", "z.test", "/v1/exact", nil, "exact"},
		{"GET", "z.test", "/v1/exact?q", nil, "exact"},
		{"GET", "z.test", "/v1/exact/", nil, "v1"},
		{"GET", "z.test", "/v1/deep/x", nil, "v1/"},
		{"GET", "z.test", "/v1/deep", nil, "v1"},
		{"GET", "z.test", "/v1/x", nil, "v1"}, // a prefix before an expression
		{"GET", "z.test", "/v2/x", nil, "regex"},
		{"GET", "z.test", "/v9/x", nil, "regex"}, // the first of the file, though the second says more
		{"GET", "z.test", "/x/v2/x", nil, "rest"},
		{"GET", "z.test", "/v2", nil, "rest"},
		{"GET", "a.example.com", "/v1/x", nil, "host"},
		{"GET", "A.Example.COM:8443", "/v1/x", nil, "host"},
		{"GET", "a.example.com.", "/v1/x", nil, "host"},
		{"GET", "a.example.com", "/other", nil, "wild"}, // no path there: on to the next host
		{"GET", "x.a.example.com", "/v1/x", nil, "wild"},
		{"GET", "example.com", "/v1/x", nil, "v1"},
		{"GET", "badexample.com", "/v1/x", nil, "v1"},
		{"GET", "c.b.example.com", "/only/x", nil, "wilder"},
		{"GET", "c.b.example.com", "/other", nil, "wild"},
		{"GET", "b.example.com", "/only", nil, "wild"},
		{"GET", "", "/v1", nil, "v1"},
		{"GET", "[::1]:443", "/v1", nil, "v1"},
		{"PUT", "z.test", "/v1", nil, "post"},
		{"POST", "z.test", "/v1", []string{"content-type", "application/json; charset=utf-8"}, "post-json"},
		{"POST", "z.test", "/v1", []string{"content-type", "text/json"}, "post"},
		{"PUT", "z.test", "/v1", []string{"content-type", "application/json"}, "post"},
		{"GET", "z.test", "/v1", []string{"X-DEBUG", ""}, "debug"},
		{"GET", "z.test", "/v1", []string{"X-Debug", "1", "X-Version", "2"}, "version"},
		{"GET", "z.test", "/v1", []string{"X-Debug", "1", "X-Version", "22"}, "debug"},
		{"GET", "z.test", "/v1", []string{"X-Debug", "1", "X-Version", "1", "x-version", "2"}, "version"},
		{"GET", "z.test", "/v1", []string{"X-Version", "2"}, "v1"},
		{"PUT", "z.test", "/v1", []string{"X-Debug", "1"}, "post"}, // one condition each: the order of the file
		{"GET", "z.test", "/empty", []string{"X-None", ""}, "empty"},
		{"GET", "z.test", "/empty", []string{"X-None", "x"}, "rest"},
		{"GET", "z.test", "/empty", nil, "rest"},
		{"OPTIONS", "z.test", "*", nil, "rest"},
		{"GET", "z.test", "/%61dmin/x", nil, "admin"},
		{"GET", "z.test", "/%61%64%6D%69n", nil, "admin"},
		{"GET", "z.test", "/admin%2Fx", nil, "rest"}, // an escaped slash ends no segment
		{"GET", "z.test", "/%2561dmin", nil, "rest"}, // decoded once, not twice
		{"GET", "z.test", "/v1/ex%61ct", nil, "exact"},
		{"GET", "z.test", "/v%32/x", nil, "regex"},
	} {
		got := "none"
		if i := found(request(s, row.method, row.host, row.target, row.fields...)); i >= 0 {
			got = routes[i].Name
		}
		if got != row.want {
			t.Errorf("%s %s%s %q: route %s, want %s", row.method, row.host, row.target, row.fields, got, row.want)
		}
	}
}

// naive is the rule as it is written down: of all routes that match the first by
// host, path and conditions.
func naive(routes []policy.Route, method, host, path string, fields []http1.Field) int {
	host, _, _ = strings.Cut(strings.ToLower(host), ":")
	expressions := map[string]int{} // the place of each among them
	best, bestRank := -1, []int(nil)
	for i, r := range routes {
		rank := make([]int, 5)
		domain, wild := strings.CutPrefix(r.Host, "*")
		switch {
		case r.Host == "":
		case wild && strings.HasSuffix(host, domain):
			rank[0] = len(domain)
		case r.Host == host:
			rank[0] = 1000
		default:
			continue
		}
		switch {
		case r.PathExact != "" && r.PathExact == path:
			rank[1] = 4
		case r.PathPrefix == "/":
			rank[1] = 1
		case r.PathPrefix != "" && (path == r.PathPrefix || strings.HasPrefix(path, strings.TrimSuffix(r.PathPrefix, "/")+"/")):
			rank[1], rank[2] = 3, len(r.PathPrefix)
		case r.PathRegex != "" && regexp.MustCompile("^(?:"+r.PathRegex+")$").MatchString(path):
			rank[1] = 2
			key := r.Host + " " + r.PathRegex
			if _, there := expressions[key]; !there {
				expressions[key] = i
			}
			rank[2] = -expressions[key]
		default:
			continue
		}
		holds := len(r.Methods) == 0 || slices.Contains(r.Methods, method)
		for _, h := range r.Headers {
			holds = holds && slices.ContainsFunc(fields, func(f http1.Field) bool {
				return strings.EqualFold(string(f.Name), h.Name) && (h.Equal == nil || string(f.Value) == *h.Equal) &&
					(h.Prefix == nil || strings.HasPrefix(string(f.Value), *h.Prefix))
			})
		}
		if !holds {
			continue
		}
		rank[3] = len(r.Headers)
		if len(r.Methods) > 0 {
			rank[3]++
		}
		rank[4] = -i
		if best < 0 || slices.Compare(rank, bestRank) > 0 {
			best, bestRank = i, rank
		}
	}
	return best
}

// words makes up routes and requests that often meet.
type words struct{ *rand.Rand }

func (w words) of(list ...string) string { return list[w.IntN(len(list))] }

func (w words) path() string {
	if w.IntN(8) == 0 {
		return "/"
	}
	var b strings.Builder
	for range 1 + w.IntN(3) {
		b.WriteString("/" + w.of("a", "b", "ab", "v1", "v10", ""))
	}
	return b.String()
}

func (w words) host() string {
	return w.of("", "com", "x.com", "a.x.com", "b.a.x.com", "y.test", "a.y.test")
}

func (w words) route() policy.Route {
	r := policy.Route{Host: w.host()}
	if r.Host != "" && w.IntN(2) == 0 {
		r.Host = "*." + r.Host
	}
	switch w.IntN(4) {
	case 0:
		r.PathExact = w.path()
	case 1:
		r.PathRegex = w.of("/a.*", "/(a|b)/?.*", "/v[0-9]+", ".*b", "/a/b|/b/a", "/[^/]*", "^/ab?$", "")
		if r.PathRegex == "" {
			r.PathRegex = regexp.QuoteMeta(w.path())
		}
	default:
		r.PathPrefix = w.path()
	}
	for _, m := range []string{"GET", "POST"} {
		if w.IntN(4) == 0 {
			r.Methods = append(r.Methods, m)
		}
	}
	for _, name := range []string{"X-A", "X-B"} {
		switch w.IntN(8) {
		case 0:
			r.Headers = append(r.Headers, policy.HeaderMatch{Name: name})
		case 1:
			r.Headers = append(r.Headers, policy.HeaderMatch{Name: name, Equal: ptr(w.of("1", "12", ""))})
		case 2:
			r.Headers = append(r.Headers, policy.HeaderMatch{Name: name, Prefix: ptr(w.of("1", "12"))})
		}
	}
	return r
}

func (w words) request(s *snapshot) *Exchange {
	var fields []string
	for _, name := range []string{"x-a", "X-B", "X-b"} {
		if w.IntN(3) == 0 {
			fields = append(fields, name, w.of("1", "12", "2", ""))
		}
	}
	host := w.host()
	if w.IntN(4) == 0 {
		host = strings.ToUpper(host)
	}
	if host != "" && w.IntN(4) == 0 {
		host += ":443"
	}
	target := w.path()
	if w.IntN(4) == 0 {
		target += "?q=/a"
	}
	return request(s, w.of("GET", "POST", "PUT"), host, target, fields...)
}

func TestLookupAgainstModel(t *testing.T) {
	w := words{rand.New(rand.NewPCG(3, 4))}
	matched := 0
	for range 300 {
		routes := make([]policy.Route, 1+w.IntN(40))
		for i := range routes {
			routes[i] = w.route()
			routes[i].Name = fmt.Sprint(i)
		}
		s := compiled(t, routes)
		for range 100 {
			ex := w.request(s)
			path, _, _ := strings.Cut(string(ex.target), "?")
			got, want := found(ex), naive(routes, string(ex.method), string(ex.host), path, ex.fields)
			if got != want {
				t.Fatalf("%s %s%s %+v: route %d, the model says %d\n%+v\n%+v", ex.method, ex.host, ex.target, ex.fields, got, want, at(routes, got), at(routes, want))
			}
			if got >= 0 {
				matched++
			}
		}
	}
	if matched < 3000 {
		t.Errorf("only %d requests met a route: the test shows little", matched)
	}
}

func at(routes []policy.Route, i int) any {
	if i < 0 {
		return "none"
	}
	return routes[i]
}

// FuzzLookup: whatever a client sends, the look-up ends as the model's does.
func FuzzLookup(f *testing.F) {
	w := words{rand.New(rand.NewPCG(5, 6))}
	routes := make([]policy.Route, 200)
	for i := range routes {
		routes[i] = w.route()
		routes[i].Name = fmt.Sprint(i)
	}
	s := compiled(f, routes)
	for range 50 {
		ex := w.request(s)
		f.Add(string(ex.method), string(ex.host), string(ex.target), "1")
	}
	f.Add("GET", "a.x.com.", "/%61//%2e%2F%zz?%", "")
	f.Add("OPTIONS", "", "*", "")
	f.Fuzz(func(t *testing.T, method, host, target, value string) {
		if host != "" && !http1.ValidHost([]byte(host)) || !http1.ValidTarget([]byte(target)) || target == "" || target[0] != '/' && target != "*" {
			return // refused before a route is looked for
		}
		ex := request(s, method, host, target, "X-A", value)
		got := found(ex)
		path := string(ex.routing.asked.path)
		if target == "*" {
			return
		}
		if want := naive(routes, method, strings.TrimSuffix(bareText(host), "."), path, ex.fields); got != want && host != "." {
			t.Fatalf("%s %s%s: route %d, the model says %d", method, host, target, got, want)
		}
	})
}

func bareText(host string) string { return string(bareHost([]byte(host))) }

func TestLookupDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	routes := []policy.Route{
		{Name: "regex", Host: "*.example.com", PathRegex: "/(a|b)+/[0-9]+x?"},
		{Name: "prefix", PathPrefix: "/v1/x", Headers: []policy.HeaderMatch{{Name: "X-A", Prefix: ptr("b")}}},
		{Name: "exact", Host: "a.test", PathExact: "/exact"},
		{Name: "split", PathPrefix: "/split", Upstream: policy.Local, Split: []policy.Share{{Upstream: 0, Weight: 1}}},
		{Name: "cors", PathPrefix: "/cors", Methods: []string{"PUT"}, CORS: &policy.CORS{AllowOrigins: []string{"*"}}},
	}
	s := compiled(t, routes)
	for i, ex := range []*Exchange{
		request(s, "GET", "X.Y.Example.com:443", "/abab/123x?q"),
		request(s, "GET", "A.test:443", "/v1/x/y/z?q", "x-a", "bcd"),
		request(s, "GET", "A.test", "/ex%61ct"),
		request(s, "GET", "b.test", "/split"),
		request(s, "OPTIONS", "b.test", "/cors", "origin", "https://x", "access-control-request-method", "PUT"),
	} {
		if got := found(ex); got != i {
			t.Fatalf("route %d, want %d", got, i)
		}
		if n := testing.AllocsPerRun(100, func() { chooseRoute(ex) }); n != 0 {
			t.Errorf("%s: a look-up allocates %v times", routes[i].Name, n)
		}
	}
}

// manyRoutes are those of a large API: each service has a few.
func manyRoutes(n int) []policy.Route {
	out := make([]policy.Route, n)
	for i := range out {
		r := &out[i]
		r.Name, r.Host = fmt.Sprint("r", i), fmt.Sprintf("s%d.example.com", i/8)
		switch i % 8 {
		case 0:
			r.PathRegex = fmt.Sprintf("/v[0-9]+/things/%d/.*", i)
		case 1:
			r.PathExact = fmt.Sprint("/health/", i)
		case 2:
			r.Host, r.PathPrefix = "", fmt.Sprint("/any/", i)
		case 3:
			r.PathPrefix = fmt.Sprint("/rewritten/", i)
			r.Rewrite = &policy.Rewrite{StripPrefix: "/rewritten"}
		default:
			r.PathPrefix, r.Methods = fmt.Sprint("/v1/", i), []string{"GET", "POST"}
		}
	}
	return out
}

// compileTime is CPU time, and the least of several, so that a busy machine does not count.
func compileTime(tb testing.TB, routes []policy.Route) time.Duration {
	used := func() time.Duration {
		var ru unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
			tb.Fatal(err)
		}
		return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	least := time.Hour
	for range 20 {
		began := used()
		compiled(tb, routes)
		least = min(least, used()-began)
	}
	return least
}

// Compiling costs in proportion to the number of routes, up to a factor for caches.
func TestThousandRoutesCompile(t *testing.T) {
	few, many := compileTime(t, manyRoutes(100)), compileTime(t, manyRoutes(1000))
	if many > 4*10*few {
		t.Errorf("1,000 routes take %v, 100 take %v: more than in proportion", many, few)
	}
	t.Logf("100 routes %v, 1,000 routes %v", few, many)
	s := compiled(t, manyRoutes(1000))
	if got := found(request(s, "GET", "s124.example.com", "/v1/999/x")); got != 999 {
		t.Errorf("the last route is not found: %d", got)
	}
}

func BenchmarkCompileThousandRoutes(b *testing.B) {
	routes := manyRoutes(1000)
	for b.Loop() {
		if s := compiled(b, routes); len(s.routes.exact) < 100 {
			b.Fatal("routes are missing")
		}
	}
}

// BenchmarkLookup is that of a route among a thousand.
func BenchmarkLookup(b *testing.B) {
	ex := request(compiled(b, manyRoutes(1000)), "GET", "s100.example.com", "/v1/804/x/y?z")
	b.ReportAllocs()
	for b.Loop() {
		if found(ex) != 804 {
			b.Fatal("another route")
		}
	}
}

// What a client sends may be long, but a look-up then costs in proportion to what is
// configured, not to the number of segments or labels squared.
func TestLookupOfLongTargets(t *testing.T) {
	s := compiled(t, []policy.Route{{Name: "a", PathPrefix: "/a/b"}, {Name: "b", Host: "*.example.com", PathPrefix: "/c"}, {Name: "rest", PathPrefix: "/"}})
	measure := func(ex *Exchange) time.Duration {
		least := time.Hour
		for range 50 {
			began := time.Now()
			for range 20 {
				chooseRoute(ex)
			}
			least = min(least, time.Since(began))
		}
		return least
	}
	short := measure(request(s, "GET", "a.test", "/"+strings.Repeat("a", 800)))
	long := measure(request(s, "GET", strings.Repeat("a.", 100)+"test", strings.Repeat("/a", 4000)))
	if long > 100*short {
		t.Errorf("a long target takes %v, a short one %v", long, short)
	}
}

func TestPlainPath(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/%41%7a%30%2D%2e%5F%7E": "/Az0-._~", "/%2F%3F%23%25%20%80": "/%2F%3F%23%25%20%80", "/%2541": "/%2541", "/a%": "/a%", "/a%4": "/a%4",
	} {
		if got, _ := plainPath(nil, []byte(in)); string(got) != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	all := make([]byte, 0, 3*256)
	for c := range 256 {
		all = fmt.Appendf(all, "%%%02x", c)
	}
	got, _ := plainPath(nil, all)
	for c := range 256 {
		if plain := bytes.IndexByte(got, byte(c)) >= 0 && c != '%'; plain != unreserved(byte(c)) && !strings.ContainsRune("0123456789abcdef", rune(c)) {
			t.Errorf("%#x: decoded %v", c, plain)
		}
	}
}

// Of what cannot be compiled the error names the route, and what served before goes on.
func TestRoutesThatCannotBeApplied(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
	for name, change := range map[string]func(*policy.Route){
		"no such upstream": func(r *policy.Route) { r.Upstream = 7 },
		"below":            func(r *policy.Route) { r.Upstream = policy.Local },
		"no path":          func(r *policy.Route) { r.PathPrefix = "" },
		"expression":       func(r *policy.Route) { r.PathPrefix, r.PathRegex = "", "(" },
		"no weight":        func(r *policy.Route) { r.Split = []policy.Share{{Upstream: 0}} },
		"share":            func(r *policy.Route) { r.Split = []policy.Share{{Upstream: 3, Weight: 1}} },
		"rewrite":          func(r *policy.Route) { r.Rewrite = &policy.Rewrite{Regex: "(", Replacement: "/"} },
		"group":            func(r *policy.Route) { r.Rewrite = &policy.Rewrite{Regex: "/", Replacement: "/$1"} },
		"mirror":           func(r *policy.Route) { r.Mirror = ptr(7) },
		"location":         func(r *policy.Route) { r.Redirect = &policy.Redirect{Status: 307, Location: "$x"} },
	} {
		s := g.snapshot
		s.Routes = slices.Clone(s.Routes)
		change(&s.Routes[0])
		if err := g.worker.Apply(&s, g.certs); err == nil || !strings.HasPrefix(err.Error(), "apply route all: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	resp, err := g.client(false).Get(g.url("/"))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", resp, err)
	}
}

// A route that is kept to listeners is not there for who comes by another one: so port 80 can
// redirect what 443 serves, and what is bound to loopback stays there.
func TestRoutesOfListeners(t *testing.T) {
	routes := []policy.Route{
		{Name: "to-tls", Host: "a.test", PathPrefix: "/", Listeners: []string{":80"}},
		{Name: "a", Host: "a.test", PathPrefix: "/"},
		{Name: "inside", PathRegex: "/admin.*", Listeners: []string{"127.0.0.1:8080", "[::1]:8080"}},
		{Name: "rest", PathPrefix: "/", Listeners: []string{":80", "127.0.0.1:8080"}},
		{Name: "get", PathExact: "/get", Methods: []string{"GET"}, Listeners: []string{":80"}},
		{Name: "any", PathExact: "/get", Methods: []string{"GET"}},
		{Name: "php-80", Host: "c.test", PathRegex: `.*\.php`, Listeners: []string{":80"}},
		{Name: "closed", Host: "c.test", PathRegex: "/closed/.*", Listeners: []string{":8080", ":8081"}},
		{Name: "php-8080", Host: "c.test", PathRegex: `.*\.php`, Listeners: []string{":8080"}},
		{Name: "php", Host: "c.test", PathRegex: `.*\.php`},
		{Name: "late", Host: "c.test", PathRegex: "/closed/.*"},
		{Name: "php-post", Host: "c.test", PathRegex: `.*\.php`, Methods: []string{"POST"}, Listeners: []string{":8082"}},
	}
	s := compiled(t, routes)
	for _, row := range [][4]string{
		{":80", "a.test", "/x", "to-tls"}, {":443", "a.test", "/x", "a"}, {":443", "b.test", "/x", ""}, {":80", "b.test", "/x", "rest"},
		{":80", "b.test", "/admin", "rest"}, {"127.0.0.1:8080", "b.test", "/admin/x", "inside"}, {"[::1]:8080", "b.test", "/admin", "inside"}, {":443", "b.test", "/admin", ""},
		{":80", "b.test", "/get", "get"}, {":443", "b.test", "/get", "any"},
		// The order of an expression's routes is each listener's own.
		{":80", "c.test", "/closed/x.php", "php-80"}, {":8080", "c.test", "/closed/x.php", "closed"}, {":8080", "c.test", "/x.php", "php-8080"},
		{":8081", "c.test", "/closed/x.php", "closed"}, {":8081", "c.test", "/x.php", "php"}, {":443", "c.test", "/closed/x.php", "php"}, {":443", "c.test", "/closed/x", "late"},
		{":8082", "c.test", "/x.php", "php"},
	} {
		ex := request(s, "GET", row[1], row[2])
		ex.listener = row[0]
		got := ""
		if i := found(ex); i >= 0 {
			got = routes[i].Name
		}
		if got != row[3] {
			t.Errorf("%s%s by %s: route %q, want %q", row[1], row[2], row[0], got, row[3])
		}
		p := &policy.Snapshot{Routes: routes, Listeners: []policy.Listener{{Address: ":443"}}}
		x, err := Explain(p, &Question{Method: "GET", Host: row[1], Path: row[2], Listener: row[0]})
		if err != nil || (x.Route < 0) != (row[3] == "") || x.Route >= 0 && routes[x.Route].Name != row[3] {
			t.Errorf("explained %v: route %d, %v", row, x.Route, err)
		}
	}
}
