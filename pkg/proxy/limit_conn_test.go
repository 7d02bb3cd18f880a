// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// atOnce is a limit of connections, or of requests under way.
func atOnce(name, count string, most uint64, key ...policy.KeyPart) policy.ConnectionLimit {
	return policy.ConnectionLimit{Name: name, ID: uint64(name[0]), Count: count, Key: key, Max: most, Status: 429}
}

func TestConnectionLimit(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})}, func(s *policy.Snapshot) {
		tried := atOnce("tried", "connections", 1, byAddress)
		tried.DryRun, tried.Slot = true, 1
		s.ConnectionLimits = []policy.ConnectionLimit{atOnce("held", "connections", 2, byAddress), tried}
	})
	serve := func(c *raw) {
		t.Helper()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.reply("GET"); resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	first, second := g.raw(), g.raw()
	serve(first)
	serve(second)
	c, err := tls.Dial("tcp", g.address, g.tlsConfig())
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a third connection: %v", err)
	}
	serve(first) // those that are open live on
	count := func(slot int, o zone.LimitOutcome) uint64 { return g.slab.LoadLimit(slot, o) }
	if n, a := g.slab.Load(zone.ConnectionsLimited), g.slab.Load(zone.ConnectionsAccepted); n != 1 || a != 2 {
		t.Errorf("%d counted as limited, %d as accepted: want 1 and 2", n, a)
	}
	if p, r, w := count(0, zone.LimitPassed), count(0, zone.LimitRejected), count(1, zone.LimitWouldReject); p != 2 || r != 1 || w != 1 {
		t.Errorf("passed %d, rejected %d, of the other one would reject %d: want 2, 1, 1", p, r, w)
	}
	second.NetConn().Close()
	eventually(t, "room for another connection", func() bool { return g.slab.LoadGauge(zone.GaugeConnections) == 1 })
	serve(g.raw())
	// A limit that is taken away holds nobody any more, and what it counted does no harm.
	s := g.snapshot
	s.Generation, s.ConnectionLimits = 2, nil
	if err := g.worker.Apply(&s, g.certs); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		serve(g.raw())
	}
}

// Behind a trusted proxy that names clients, each of them has its own connections; what the
// proxy opens for itself counts for nobody.
func TestConnectionLimitBehindProxy(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})}, func(s *policy.Snapshot) {
		s.Client = policy.ClientAddress{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, ProxyProtocol: true}
		s.ConnectionLimits = []policy.ConnectionLimit{atOnce("held", "connections", 1, byAddress)}
	})
	open := func(header string) error {
		c, err := net.Dial("tcp", g.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, header); err != nil {
			return err
		}
		return tls.Client(c, g.tlsConfig("http/1.1")).Handshake()
	}
	for _, step := range []struct {
		header string
		ok     bool
	}{
		{"PROXY TCP4 192.0.2.1 192.0.2.9 1000 443\r\n", true},
		{"PROXY TCP4 192.0.2.1 192.0.2.9 1001 443\r\n", false},
		{"PROXY TCP4 192.0.2.2 192.0.2.9 1000 443\r\n", true},
		{"PROXY UNKNOWN\r\n", true},
		{"PROXY UNKNOWN\r\n", true},
	} {
		if err := open(step.header); (err == nil) != step.ok {
			t.Errorf("%q: %v, want success %v", strings.TrimSpace(step.header), err, step.ok)
		}
	}
	if n := g.slab.Load(zone.ConnectionsLimited); n != 1 {
		t.Errorf("%d counted as limited", n)
	}
}

// As many requests are under way as the limit says, over both protocols together, and their
// places are free again whatever became of them.
func TestConcurrencyLimit(t *testing.T) {
	var under, most atomic.Int64
	var release atomic.Pointer[chan struct{}]
	hold := func() { c := make(chan struct{}); release.Store(&c) }
	hold()
	g := newGateway(t, []string{httpUpstream(t, func(_ http.ResponseWriter, r *http.Request) {
		if n := under.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer under.Add(-1)
		select {
		case <-*release.Load():
		case <-r.Context().Done():
		}
		if r.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
	})}, func(s *policy.Snapshot) {
		tried := atOnce("tried", "requests", 1, byAddress)
		tried.DryRun, tried.Slot = true, 1
		s.ConnectionLimits = []policy.ConnectionLimit{tried, atOnce("held", "requests", 3, byToken)}
	})
	clients := []*http.Client{g.client(false), g.client(true)}
	ask := func(i int, a asking) int {
		a.method = "GET"
		return g.try(clients[i%2], a).StatusCode
	}
	for round := range 2 {
		var wg sync.WaitGroup
		for i := range 3 {
			path := ""
			if i == 2 {
				path = "broken"
			}
			wg.Go(func() { ask(i, asking{token: "one", path: path}) })
		}
		eventually(t, "three requests under way", func() bool { return under.Load() == 3 })
		for i := range 4 {
			if got := ask(i, asking{token: "one"}); got != 429 {
				t.Errorf("round %d: a fourth request at once: %d", round, got)
			}
		}
		wg.Go(func() { ask(1, asking{token: "two"}) }) // another key
		eventually(t, "one of another key", func() bool { return under.Load() == 4 })
		close(*release.Load())
		wg.Wait()
		eventually(t, "all are over", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 0 })
		if got := ask(0, asking{token: "one"}); got != 200 {
			t.Errorf("round %d, when all are over: %d", round, got)
		}
		hold()
	}
	close(*release.Load())
	eventually(t, "all are over", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 0 })
	if n := g.slab.LoadRequest(zone.RequestConcurrencyLimited); n != 8 {
		t.Errorf("%d exchanges ended as limited", n)
	}
	if r, w := g.slab.LoadLimit(0, zone.LimitRejected), g.slab.LoadLimit(1, zone.LimitWouldReject); r != 8 || w < 8 {
		t.Errorf("rejected %d, would reject %d", r, w)
	}
}

func TestConnectionLimitThatCannotBeApplied(t *testing.T) {
	for name, l := range map[string]policy.ConnectionLimit{
		"no max":                      atOnce("lim", "requests", 0, byAddress),
		"no key":                      atOnce("lim", "requests", 1),
		"unknown key":                 atOnce("lim", "requests", 1, policy.KeyPart{Kind: "moon"}),
		"unknown count":               atOnce("lim", "moons", 1, byAddress),
		"connections by their route":  atOnce("lim", "connections", 1, byRoute),
		"connections by two of these": atOnce("lim", "connections", 1, byAddress, byHost),
	} {
		g := newStoppedGateway(t, []string{"127.0.0.1:1"})
		s := g.snapshot
		s.ConnectionLimits = []policy.ConnectionLimit{l}
		if err := g.worker.Apply(&s, g.certs); err == nil || !strings.Contains(err.Error(), "connection limit lim") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
