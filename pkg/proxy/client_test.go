// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// A client that goes away while the upstream thinks, ends the upstream's work.
func TestClientAbort(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		got, ended := make(chan struct{}), make(chan error, 1)
		g := newGateway(t, []string{rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, _, err := readRequest(r); err != nil {
				return
			}
			close(got)
			_, err := r.ReadByte()
			ended <- err
		})}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { <-got; cancel() }()
		req, _ := http.NewRequestWithContext(ctx, "GET", g.url("/"), nil)
		if _, err := g.client(h2).Do(req); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatal("the upstream's connection stayed open")
		}
		if rec := g.records(1)[0]; rec.Outcome != zone.RequestClientReset || rec.Status != 499 {
			t.Errorf("%d %v", rec.Status, rec.Outcome)
		}
		if n := g.slab.LoadUpstream(g.snapshot.Upstreams[0].Slot, zone.UpstreamCancelled); n != 1 {
			t.Errorf("cancelled %d times", n)
		}
	})
}

// Half a request body, then nothing or the end: the upstream must not take it for all.
func TestCutRequestBody(t *testing.T) {
	for _, row := range []struct{ name, request string }{
		{"length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 50000)},
		{"small", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nxxx"},
		{"chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"},
		{"head", "POST / HTTP/1.1\r\nHost: a\r\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			complete := atomic.Bool{}
			g := newGateway(t, []string{rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
				if _, _, err := readRequest(r); err == nil {
					complete.Store(true)
				}
			})}, nil)
			c := g.raw()
			c.send(row.request)
			c.Conn.NetConn().Close()
			if rec := g.records(1)[0]; rec.Outcome != zone.RequestClientReset {
				t.Errorf("closed: %v", rec.Outcome)
			}
			short := g.snapshot
			short.Timeouts.Body, short.Timeouts.Header = time.Second, time.Second
			if err := g.worker.Apply(&short, g.certs); err != nil {
				t.Fatal(err)
			}
			c = g.raw()
			c.send(row.request)
			if resp, _ := c.reply("POST"); resp.StatusCode != 408 {
				t.Errorf("stalled: status %d", resp.StatusCode)
			}
			c.closed()
			if rec := g.records(1)[0]; rec.Outcome != zone.RequestClientTimeout || rec.Status != 408 {
				t.Errorf("stalled: %d %v", rec.Status, rec.Outcome)
			}
			if complete.Load() {
				t.Error("the upstream took half a body for a whole one")
			}
		})
	}
}

// A client that does not read is cut, and does not count against the upstream.
func TestSlowReader(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 50<<20))
	})}, func(s *policy.Snapshot) {
		s.Timeouts.Write = 2 * time.Second
		s.Upstreams[0].HeaderTimeout = time.Second
	})
	c := g.raw()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if rec := g.records(1)[0]; rec.Outcome != zone.RequestClientTimeout || rec.Status != 200 || rec.Duration < 2*time.Second {
		t.Errorf("%d %v after %v", rec.Status, rec.Outcome, rec.Duration)
	}
}

func TestKeepAliveTimeout(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, func(s *policy.Snapshot) { s.Timeouts.Keepalive = time.Second })
	c := g.raw()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.reply("GET")
	c.closed()
	g.records(1)
	if n := g.outcomes(); n != 1 {
		t.Errorf("an idle connection's end was counted as an exchange: %d", n)
	}
}

func TestConnectionCap(t *testing.T) {
	came, hold := make(chan struct{}, 2), make(chan struct{})
	up := httpUpstream(t, func(w http.ResponseWriter, r *http.Request) { came <- struct{}{}; <-hold; echo(w, r) })
	began := time.Now()
	g := newGateway(t, []string{up}, func(s *policy.Snapshot) { s.Connections = 2 })
	a, b := g.raw(), g.raw()
	for _, c := range []*raw{a, b} { // idle ones would make room
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-came
	}
	for range 5 {
		c, err := net.Dial("tcp", g.address)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Error("a connection above the cap was not closed")
		}
		c.Close()
	}
	if n := g.slab.Load(zone.ConnectionsRejected); n != 5 {
		t.Errorf("%d rejected", n)
	}
	if n := strings.Count(g.log.String(), "worker_connections are not enough"); n < 1 || n > 1+int(time.Since(began)/time.Second) {
		t.Errorf("said %d times", n)
	}
	close(hold)
	for _, c := range []*raw{a, b} {
		c.reply("GET")
	}
	a.Close()
	eventually(t, "a connection's end makes room", func() bool {
		c, err := tls.Dial("tcp", g.address, g.tlsConfig())
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// When worker_connections are nearly used up, those that have been idle the longest make
// room; one with a request under way does not.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	hold := make(chan struct{})
	came := make(chan struct{}, 1)
	up := httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			came <- struct{}{}
			<-hold
		}
		echo(w, r)
	})
	g := newGateway(t, []string{up}, func(s *policy.Snapshot) { s.Connections = 6 })
	busy := g.raw()
	busy.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
	<-came
	h2 := g.client(true)
	r, err := h2.Get(g.url("/")) // the first to be idle
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	var idle []*raw
	for range 3 {
		eventually(t, "only one exchange is under way", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 1 })
		for range 2 { // they differ in age, by the worker's clock
			was := g.worker.clock.Load()
			eventually(t, "a tick", func() bool { return g.worker.clock.Load() != was })
		}
		c := g.raw()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.reply("GET")
		idle = append(idle, c)
	}
	for i := range 2 { // the sixth connection, and the seventh
		c := g.raw()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.reply("GET")
		if i == 0 {
			eventually(t, "the oldest is closed", func() bool { return g.slab.LoadGauge(zone.GaugeConnections) == 5 })
			continue
		}
		idle[0].closed()
	}
	if n := g.slab.Load(zone.ConnectionsRejected); n != 0 {
		t.Errorf("%d rejected", n)
	}
	if n := g.slab.Load(zone.ConnectionsDrained); n != 2 {
		t.Errorf("%d were closed to make room", n)
	}
	if n := strings.Count(g.log.String(), "worker_connections are not enough"); n < 1 {
		t.Errorf("the log does not say so: %s", g.log)
	}
	for _, c := range idle[1:] {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.reply("GET")
	}
	close(hold)
	busy.reply("GET")
}

// Shutdown lets an exchange under way finish, and ends idle connections.
func TestShutdown(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		got, hold := make(chan struct{}, 1), make(chan struct{})
		g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			got <- struct{}{}
			<-hold
			_, _ = io.WriteString(w, "finished")
		})}, nil)
		idle := g.raw()
		result := make(chan string, 1)
		client := g.client(h2)
		go func() {
			resp, err := client.Get(g.url("/"))
			if err != nil {
				result <- err.Error()
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			result <- string(b)
		}()
		<-got
		stopped := make(chan struct{})
		go func() { g.stop(); close(stopped) }()
		idle.closed()
		close(hold)
		if r := <-result; r != "finished" {
			t.Errorf("%q", r)
		}
		<-stopped
		if _, err := net.Dial("tcp", g.address); err == nil {
			t.Error("still listening")
		}
	})
}

// A panic costs one exchange.
func TestPanic(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		g := newStoppedGateway(t, []string{httpUpstream(t, echo)})
		g.worker.filters = append(g.worker.filters, filter{"panic", func(ex *Exchange) *refusal {
			if string(ex.target) == "/panic" {
				panic("on purpose")
			}
			return nil
		}})
		g.start()
		client := g.client(h2)
		if resp, err := client.Get(g.url("/panic")); err == nil {
			t.Errorf("%v", resp)
		}
		resp, err := client.Get(g.url("/"))
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("%v %v", resp, err)
		}
		resp.Body.Close()
		eventually(t, "it is counted", func() bool { return g.slab.LoadRequest(zone.RequestPanic) > 0 })
		eventually(t, "the panic in the log", func() bool { return strings.Contains(g.log.String(), "on purpose") })
		if n := g.slab.Load(zone.Panics); n != 1 {
			t.Errorf("%d panics were counted", n)
		}
	})
}

func TestHandshakeOutcomes(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, func(s *policy.Snapshot) { s.Timeouts.Handshake = 2 * time.Second })
	dial := func(c *tls.Config) { // the handshake is over when the first reply is here
		if tc, err := tls.Dial("tcp", g.address, c); err == nil {
			_ = tc.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.WriteString(tc, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			_, _ = tc.Read(make([]byte, 1000))
			tc.Close()
		}
	}
	plain := func(send string) {
		c, err := net.Dial("tcp", g.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if send != "" {
			_, _ = io.WriteString(c, send)
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.Copy(io.Discard, c)
		}
	}
	resuming := g.tlsConfig("http/1.1")
	resuming.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for _, row := range []struct {
		outcome zone.HandshakeOutcome
		do      func()
	}{
		{zone.HandshakeFull, func() { dial(resuming) }},
		{zone.HandshakeResumed, func() { dial(resuming) }},
		{zone.HandshakeVersion, func() { c := g.tlsConfig(); c.MaxVersion = tls.VersionTLS12; dial(c) }},
		{zone.HandshakeProtocol, func() { dial(g.tlsConfig("spdy/3")) }},
		{zone.HandshakeAlert, func() { dial(&tls.Config{ServerName: "localhost"}) }},
		{zone.HandshakeNotTLS, func() { plain("GET / HTTP/1.1\r\nHost: a\r\n\r\n") }},
		{zone.HandshakeEOF, func() { plain("") }},
		{zone.HandshakeTimeout, func() { plain("\x16\x03\x01") }},
	} {
		row.do()
		eventually(t, row.outcome.String(), func() bool { return g.slab.LoadHandshake(row.outcome) == 1 })
	}
	// A new snapshot has the same ticket keys.
	s := g.snapshot
	if err := g.worker.Apply(&s, g.certs); err != nil {
		t.Fatal(err)
	}
	dial(resuming)
	eventually(t, "resumption under a new snapshot", func() bool { return g.slab.LoadHandshake(zone.HandshakeResumed) == 2 })
}

// flakyListener fails a few times in ways that pass.
type flakyListener struct {
	net.Listener
	left atomic.Int64
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, syscall.ENOMEM
	}
	return l.Listener.Accept()
}

func TestAcceptErrors(t *testing.T) {
	g := newStoppedGateway(t, []string{httpUpstream(t, echo)})
	s := g.snapshot
	if err := g.worker.Apply(&s, g.certs); err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &flakyListener{Listener: inner}
	l.left.Store(3)
	g.address = inner.Addr().String()
	go func() { g.served <- g.worker.Serve(l, testListener) }()
	resp, err := g.client(false).Get(g.url("/"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// Refusals over HTTP/2 end the exchange, not the connection.
func TestRefusedStreams(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, func(s *policy.Snapshot) {
		s.Routes[0].PathPrefix = "/ok"
		s.Sizes.BodyBytes = 100
	})
	client := g.client(true)
	rows := []struct {
		method, path, body string
		status             int
		outcome            zone.RequestOutcome
	}{
		{"GET", "/ok", "", 200, zone.RequestOK},
		{"GET", "/no", "", 404, zone.RequestNoRoute},
		{"GET", "/ok/%2e%2e/no", "", 400, zone.RequestBad},
		{"GET", "/ok\\", "", 400, zone.RequestBad},
		{"BREW", "/ok", "", 501, zone.RequestMethodRefused},
		{"POST", "/ok", strings.Repeat("x", 101), 413, zone.RequestBodyTooLarge},
		{"POST", "/ok", strings.Repeat("x", 100), 200, zone.RequestOK},
	}
	for _, row := range rows {
		req, err := http.NewRequest(row.method, g.url("/"), strings.NewReader(row.body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = "//" + g.address + row.path
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", row.method, row.path, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if rec := g.records(1)[0]; resp.StatusCode != row.status || rec.Status != row.status || rec.Outcome != row.outcome {
			t.Errorf("%s %s: status %d, record %d %v", row.method, row.path, resp.StatusCode, rec.Status, rec.Outcome)
		}
	}
	if n := g.outcomes(); n != uint64(len(rows)) {
		t.Errorf("%d outcomes", n)
	}
	if n := g.slab.Load(zone.ConnectionsAccepted); n != 1 {
		t.Errorf("%d connections", n)
	}
}
