// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// gateway is a worker with a zone of its own, listening on loopback.
type gateway struct {
	testing.TB
	worker   *Worker
	zone     *zone.Zone
	slab     *zone.Slab
	address  string
	roots    *x509.CertPool
	certs    []tls.Certificate
	snapshot policy.Snapshot
	log      *syncBuffer
	served   chan error
	down     sync.Once
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newGateway starts a worker for the upstream servers; change may alter the
// snapshot before it is applied.
func newGateway(t testing.TB, servers []string, change func(*policy.Snapshot)) *gateway {
	t.Helper()
	g := newStoppedGateway(t, servers)
	if change != nil {
		change(&g.snapshot)
	}
	g.start()
	return g
}

// testWindow is the rateWindow of gateways made from now on; 0 is the usual one.
var testWindow time.Duration

func newStoppedGateway(t testing.TB, servers []string) *gateway {
	t.Helper()
	z, err := zone.Create(filepath.Join(t.TempDir(), "zone"), zone.Layout{Workers: 1, Size: 32 << 20, Routes: 16, Upstreams: 16})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{TB: t, zone: z, slab: z.Worker(0), log: &syncBuffer{}, served: make(chan error, 1)}
	chain, key, err := MakeCertificate([]string{"localhost", "a.test", "127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	g.certs = []tls.Certificate{pair}
	g.roots = x509.NewCertPool()
	g.roots.AppendCertsFromPEM(chain)
	g.worker = New(Options{
		Slab: g.slab, Limits: z.LimitBuckets(), Shares: z.Shares(), Holds: z.Holds(0), Core: -1, Log: slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		TicketKeys: [][32]byte{{1, 2, 3}}, window: testWindow,
	})
	g.snapshot = testSnapshot(z, servers)
	t.Cleanup(g.stop)
	return g
}

// testListener is the name of the first listener of test gateways.
const testListener = "test"

func testSnapshot(z *zone.Zone, servers []string) policy.Snapshot {
	s := policy.Snapshot{
		Generation: 1,
		Routes:     []policy.Route{{Name: "all", PathPrefix: "/", Slot: z.RouteSlot("all")}},
		Upstreams: []policy.Upstream{{
			Name: "up", Servers: policy.ServersAt(servers...), Retries: 1, MaxFails: 3, FailTime: 5 * time.Second, ConnectTimeout: time.Second, HeaderTimeout: 5 * time.Second,
			IdleTimeout: time.Minute, MaxConnections: 64, MaxIdle: 64, Slot: z.UpstreamSlot("up"),
		}},
		Connections: 1000,
		Listeners:   []policy.Listener{{Address: testListener, TLS: true, HTTP2: true}},
	}
	s.Timeouts.Keepalive, s.Timeouts.Header, s.Timeouts.Handshake = 75*time.Second, 10*time.Second, 10*time.Second
	s.Timeouts.Body, s.Timeouts.Write = 60*time.Second, 60*time.Second
	s.TCP.NoDelay, s.TCP.KeepAlive = true, 15*time.Second
	s.Sizes.LineBytes, s.Sizes.HeaderBytes, s.Sizes.HeaderFields = 8<<10, 32<<10, 100
	return s
}

func (g *gateway) start() {
	g.Helper()
	s := g.snapshot
	if err := g.worker.Apply(&s, g.certs); err != nil {
		g.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		g.Fatal(err)
	}
	g.address = l.Addr().String()
	go func() { g.served <- g.worker.Serve(l, testListener) }()
}

func (g *gateway) stop() {
	g.down.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := g.worker.Shutdown(ctx); err != nil {
			g.Errorf("shut down: %v", err)
		}
		if g.address != "" {
			if err := <-g.served; err != nil {
				g.Errorf("serve: %v", err)
			}
		}
		if n := g.slab.LoadGauge(zone.GaugeRequests); n != 0 {
			g.Errorf("%d exchanges are still counted as under way", int64(n))
		}
		if o := &g.worker.overload; o.under.Load() != 0 || o.running.Load() != 0 {
			g.Errorf("%d exchanges are still counted by the overload, %d as running", o.under.Load(), o.running.Load())
		}
		if n := g.worker.overload.turns.taken; n != 0 {
			g.Errorf("%d turns were not given back", n)
		}
		if n := g.slab.LoadGauge(zone.GaugeConnections); n != 0 {
			g.Errorf("%d connections are still counted as open", int64(n))
		}
		g.zone.Close()
	})
}

func (g *gateway) tlsConfig(protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: g.roots, ServerName: "localhost", NextProtos: protocols}
}

// client is net/http's, over HTTP/1.1 or HTTP/2.
func (g *gateway) client(h2 bool) *http.Client {
	tr := &http.Transport{TLSClientConfig: g.tlsConfig(), ForceAttemptHTTP2: h2, DisableCompression: true}
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	g.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (g *gateway) url(path string) string { return "https://" + g.address + path }

// raw is a TLS connection on which a test writes what it likes.
type raw struct {
	*tls.Conn
	r *bufio.Reader
	t testing.TB
}

func (g *gateway) raw() *raw {
	g.Helper()
	c, err := tls.Dial("tcp", g.address, g.tlsConfig("http/1.1"))
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { c.NetConn().Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &raw{Conn: c, r: bufio.NewReader(c), t: g.TB}
}

func (c *raw) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// reply reads one response and its body.
func (c *raw) reply(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read reply: %v", err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read reply's body: %v", err)
	}
	return resp, string(b)
}

// closed asserts that the gateway ends the connection without another byte.
func (c *raw) closed() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err == nil {
		c.t.Fatalf("connection is open: got %q", b)
	}
}

// rawUpstream is a server whose connections are handled by serve, numbered from 0.
func rawUpstream(t testing.TB, serve func(n int, c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	all.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				serve(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

// httpUpstream is net/http's server.
func httpUpstream(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

// readRequest reads a request's head, and its body if it has a length.
func readRequest(r *bufio.Reader) (*http.Request, string, error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(req.Body)
	return req, string(b), err
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// records waits for n access records and checks that there are no more outcomes.
func (g *gateway) records(n int) []zone.AccessRecord {
	g.Helper()
	var all []zone.AccessRecord
	eventually(g.TB, "access records", func() bool {
		g.slab.Access.Drain(func(r *zone.AccessRecord) {
			c := *r
			for _, b := range []*[]byte{&c.Method, &c.Host, &c.Target, &c.UserAgent, &c.Referer, &c.ID, &c.UpstreamAddr, &c.Trace, &c.Key} {
				*b = append([]byte(nil), *b...)
			}
			all = append(all, c)
		})
		return len(all) >= n
	})
	if len(all) != n {
		g.Fatalf("%d access records, want %d: %+v", len(all), n, all)
	}
	return all
}

// outcomes is how many exchanges were counted, over all outcomes and over all
// status classes: the two must agree.
func (g *gateway) outcomes() (n uint64) {
	g.Helper()
	var classes uint64
	for _, o := range zone.RequestOutcomes() {
		n += g.slab.LoadRequest(o)
	}
	for i := range g.zone.Routes() {
		for _, v := range g.slab.RouteRequests(i) {
			classes += v
		}
	}
	if n != classes {
		g.Errorf("%d outcomes, %d status classes", n, classes)
	}
	return n
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(helperVariable); spec != "" {
		if err := helperMain(spec); err != nil {
			fmt.Fprintln(os.Stderr, "helper:", err)
			os.Exit(1)
		}
		return
	}
	// Links of toxiproxy outlast it.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).read"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).write"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"))
}

// Apply makes the snapshot the current one; all of its listeners have the certificates.
func (w *Worker) Apply(s *policy.Snapshot, certs []tls.Certificate) error {
	secrets := make([]Secrets, len(s.Listeners))
	for i := range secrets {
		secrets[i].Certificates = certs
	}
	p, err := w.Prepare(s, secrets)
	if err == nil {
		w.Commit(p)
	}
	return err
}
