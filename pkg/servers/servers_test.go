// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/xgw-project/xgw/pkg/policy"
)

func TestMain(m *testing.M) {
	// A look-up that nobody waits for any longer lasts on in the resolver.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net.(*Resolver).tryOneName"),
		goleak.IgnoreAnyFunction("net.(*Resolver).goLookupIPCNAMEOrder.func4"), goleak.IgnoreAnyFunction("net.(*Resolver).lookupIPAddr.func2"))
}

// nameserver answers for names that a test gives addresses.
type nameserver struct {
	conn net.PacketConn
	mu   sync.Mutex
	has  map[string][]netip.Addr // by name; none: it does not answer
	asks int
}

func newNameserver(t *testing.T) *nameserver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameserver{conn: conn, has: map[string][]netip.Addr{}}
	done := make(chan struct{})
	go func() { defer close(done); n.serve() }()
	t.Cleanup(func() { conn.Close(); <-done })
	return n
}

func (n *nameserver) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", n.conn.LocalAddr().String())
	}}
}

func (n *nameserver) set(name string, addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.has, name)
	for _, a := range addresses {
		n.has[name] = append(n.has[name], netip.MustParseAddr(a))
	}
}

func (n *nameserver) serve() {
	b := make([]byte, 1500)
	for {
		size, from, err := n.conn.ReadFrom(b)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(b[:size]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		n.mu.Lock()
		n.asks++
		addresses, ok := n.has[strings.TrimSuffix(q.Name.String(), ".")]
		n.mu.Unlock()
		if !ok {
			m.RCode = dnsmessage.RCodeServerFailure
		}
		m.Response, m.Authoritative, m.Additionals = true, true, nil
		for _, a := range addresses {
			h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
			switch {
			case a.Is4() && q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
			case a.Is6() && q.Type == dnsmessage.TypeAAAA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
			}
		}
		if out, err := m.Pack(); err == nil {
			_, _ = n.conn.WriteTo(out, from)
		}
	}
}

// watched is a watcher of one upstream.
func watched(t *testing.T, u policy.Upstream, n *nameserver) (*Watcher, *log) {
	t.Helper()
	l := &log{}
	w := New(slog.New(slog.NewTextHandler(l, nil)))
	t.Cleanup(w.Close)
	if n != nil {
		w.resolver = n.resolver()
	}
	list := []policy.Upstream{u}
	if err := w.Adopt(list); err != nil {
		t.Fatal(err)
	}
	w.Keep(list)
	return w, l
}

type log struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// addresses are those of the only watch, each with a * if it is down.
func addresses(t *testing.T, w *Watcher) (out []string) {
	t.Helper()
	lists := w.Lists()
	if len(lists) != 1 {
		t.Fatalf("%d lists", len(lists))
	}
	for _, s := range lists[0].List {
		if s.Down {
			s.Address += "*"
		}
		out = append(out, s.Address)
	}
	return out
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func become(t *testing.T, w *Watcher, want ...string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := addresses(t, w)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("servers are %v, want %v", got, want)
		}
	}
}

// Names become all of their addresses, in an order that does not depend on the resolver's;
// they follow it, and stay as they are when it fails.
func TestNames(t *testing.T) {
	n := newNameserver(t)
	n.set("app.test", "192.0.2.2", "192.0.2.1", "192.0.2.2")
	u := policy.Upstream{Name: "up", Resolve: 20 * time.Millisecond, Servers: []policy.Server{
		{Address: "192.0.2.9:80", Weight: 1}, {Address: "app.test:8080", Weight: 3}, {Address: "app.test:8081", Weight: 2},
		{Address: "other.test:80", Weight: 1}, {Address: "[2001:db8::1]:80", Weight: 1},
	}}
	w, l := watched(t, u, n)
	<-w.Changed()
	// The first list is there at once; the name without an answer has none yet.
	if got := addresses(t, w); !slices.Equal(got, []string{"192.0.2.9:80", "192.0.2.1:8080", "192.0.2.2:8080", "192.0.2.1:8081", "192.0.2.2:8081", "[2001:db8::1]:80"}) {
		t.Errorf("%v", got)
	}
	first := w.Lists()[0]
	if s := first.List[1]; s.Host != "app.test" || s.Weight != 3 {
		t.Errorf("%+v", s)
	}
	eventually(t, "a word in the log", func() bool { return strings.Contains(l.String(), "other.test") })
	n.set("app.test", "192.0.2.1", "192.0.2.2")
	time.Sleep(100 * time.Millisecond)
	if now := w.Lists()[0]; now.Version != first.Version {
		t.Error("the same addresses in another order are a change")
	}
	n.set("other.test", "192.0.2.50")
	n.set("app.test", "192.0.2.2", "192.0.2.3")
	want := []string{"192.0.2.9:80", "192.0.2.2:8080", "192.0.2.3:8080", "192.0.2.2:8081", "192.0.2.3:8081", "192.0.2.50:80", "[2001:db8::1]:80"}
	become(t, w, want...)
	<-w.Changed()
	n.set("app.test")
	n.set("other.test")
	eventually(t, "a word of each failure", func() bool { return strings.Count(l.String(), "cannot be resolved") >= 3 })
	time.Sleep(100 * time.Millisecond)
	become(t, w, want...)
	if c := strings.Count(l.String(), "cannot be resolved"); c != 3 {
		t.Errorf("the log says %d times that a name cannot be resolved, want once a failure:\n%s", c, l)
	}
}

// An upstream has 64 servers at most, whatever its names stand for; a name may be another
// name for one that is there.
func TestManyAddresses(t *testing.T) {
	n := newNameserver(t)
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("192.0.2.%d", i+1))
	}
	n.set("a.test", many...)
	n.set("b.test", append(many[:10:10], "198.51.100.1")...)
	w, l := watched(t, policy.Upstream{Name: "up", Resolve: time.Minute, Servers: policy.ServersAt("a.test:80", "b.test:80", "a.test:81")}, n)
	got := addresses(t, w)
	if len(got) != maxServers || got[39] != "192.0.2.40:80" || got[40] != "198.51.100.1:80" || got[41] != "192.0.2.1:81" {
		t.Errorf("%d: %v", len(got), got)
	}
	eventually(t, "the log says so", func() bool { return strings.Contains(l.String(), "more than 64") })
}

// A resolver that says nothing holds a new configuration up for no longer than it may.
func TestSilentResolver(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	w, _ := watched(t, policy.Upstream{Name: "up", Resolve: time.Minute, Servers: policy.ServersAt("app.test:80", "192.0.2.1:80")}, &nameserver{conn: conn})
	if took := time.Since(began); took > 3*resolveFirst {
		t.Errorf("took %v", took)
	}
	become(t, w, "192.0.2.1:80")
}

// What does not change for its servers keeps an upstream's watch, what does begins another
// that knows what the old one knew; watches that nobody needs end.
func TestAdopt(t *testing.T) {
	n := newNameserver(t)
	n.set("app.test", "192.0.2.1")
	u := policy.Upstream{Name: "up", Resolve: time.Hour, Servers: policy.ServersAt("app.test:80")}
	w, _ := watched(t, u, n)
	first := w.Lists()[0].Watch
	same := u
	same.HeaderTimeout, same.Balance, same.Slot = time.Second, "hash", 7
	next := []policy.Upstream{same, {Name: "new", Servers: policy.ServersAt("192.0.2.7:80")}}
	if err := w.Adopt(next); err != nil {
		t.Fatal(err)
	}
	if next[0].Watch != first || next[1].Watch == first || next[1].Watch == 0 {
		t.Errorf("watches %d and %d, before it was %d", next[0].Watch, next[1].Watch, first)
	}
	if len(w.Lists()) != 2 || len(w.Status()) != 1 {
		t.Errorf("%d lists, %d servers in force", len(w.Lists()), len(w.Status()))
	}
	w.Keep(next)
	if len(w.Status()) != 2 {
		t.Errorf("%v", w.Status())
	}
	n.set("app.test") // from now on it is not resolved
	other := u
	other.Servers = policy.ServersAt("app.test:81")
	next = []policy.Upstream{other}
	if err := w.Adopt(next); err != nil {
		t.Fatal(err)
	}
	w.Keep(next)
	if next[0].Watch == first {
		t.Error("other servers, the same watch")
	}
	become(t, w, "192.0.2.1:81")
}
