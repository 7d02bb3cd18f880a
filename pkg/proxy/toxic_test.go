// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// newToxic puts Shopify's toxiproxy before a server.
func newToxic(t *testing.T, server string) *toxiproxy.Proxy {
	t.Helper()
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop()), "server", "127.0.0.1:0", server)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

func poison(t *testing.T, p *toxiproxy.Proxy, toxic string) {
	t.Helper()
	if toxic == "down" {
		p.Stop()
		return
	}
	if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		t.Fatal(err)
	}
}

// faultLoad sends requests and judges their replies.
type faultLoad struct {
	t      *testing.T
	g      *gateway
	client *http.Client
	ids    atomic.Int64
	asked  atomic.Int64
	failed atomic.Int64 // requests that must not be repeated, and were not answered
	cut    atomic.Int64
}

const faultBody = 100_000

// one sends a request with an id; whole says whether the reply is complete.
func (l *faultLoad) one(method, path string, body []byte) (status int, whole bool) {
	req, err := http.NewRequest(method, l.g.url(path), bytes.NewReader(body))
	if err != nil {
		l.t.Error(err)
		return 0, false
	}
	req.Header.Set("X-Id", fmt.Sprint(l.ids.Add(1)))
	l.asked.Add(1)
	resp, err := l.client.Do(req)
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode == 200 && err == nil && string(b) != faultReply(path) {
		l.t.Errorf("%s %s: a body of %d bytes passed for complete", method, path, len(b))
	}
	return resp.StatusCode, err == nil
}

func faultReply(path string) string {
	if path == "/small" {
		return "small"
	}
	return strings.Repeat(path, faultBody/len(path))
}

func (l *faultLoad) round() {
	l.idempotent()
	l.others()
}

func (l *faultLoad) idempotent() {
	if status, _ := l.one("GET", "/small", nil); status != 200 {
		l.t.Errorf("an idempotent request: status %d", status)
	}
	if status, _ := l.one("PUT", "/small", []byte("some")); status != 200 {
		l.t.Errorf("an idempotent request with a small body: status %d", status)
	}
	for _, path := range []string{"/length", "/chunked"} {
		status, whole := l.one("GET", path, nil)
		if status != 200 {
			l.t.Errorf("an idempotent request: status %d", status)
		}
		if !whole {
			l.cut.Add(1)
		}
	}
}

// others must not be sent twice.
func (l *faultLoad) others() {
	for _, size := range []int{4, 2 * smallBody} {
		if status, _ := l.one("POST", "/small", make([]byte, size)); status != 200 {
			l.failed.Add(1)
		}
	}
}

// One server of two is behind a proxy that makes faults, from the start or from some time
// on: idempotent requests never fail, a body that was cut is never complete, and nothing
// else is sent twice.
func TestToxicServer(t *testing.T) {
	for name, toxic := range map[string]string{
		"latency":      `{"type": "latency", "attributes": {"latency": 20000}}`,
		"some latency": `{"type": "latency", "attributes": {"latency": 30, "jitter": 20}}`,
		"reset":        `{"type": "reset_peer", "attributes": {"timeout": 0}}`,
		"late reset":   `{"type": "reset_peer", "attributes": {"timeout": 20}}`,
		"cut head":     `{"type": "limit_data", "attributes": {"bytes": 40}}`,
		"cut body":     `{"type": "limit_data", "attributes": {"bytes": 50000}}`,
		"cut request":  `{"type": "limit_data", "stream": "upstream", "attributes": {"bytes": 60}}`,
		"slow":         `{"type": "bandwidth", "attributes": {"rate": 2000}}`,
		"slices":       `{"type": "slicer", "attributes": {"average_size": 100, "size_variation": 50, "delay": 10}}`,
		"down":         "down",
		"black hole":   `{"type": "timeout", "attributes": {"timeout": 0}}`,
		"swallowed":    `{"type": "timeout", "stream": "upstream", "attributes": {"timeout": 0}}`,
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(t *testing.T, h2 bool) { testToxic(t, h2, toxic) })
		})
	}
}

func testToxic(t *testing.T, h2 bool, toxic string) {
	var taken sync.Map // X-Id of what must not be repeated
	var twice atomic.Int64
	serve := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			if _, again := taken.LoadOrStore(r.Header.Get("X-Id"), true); again {
				twice.Add(1)
			}
		}
		_, _ = io.Copy(io.Discard, r.Body)
		body := faultReply(r.URL.Path)
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		}
		_, _ = io.WriteString(w, body)
	}
	p := newToxic(t, httpUpstream(t, serve))
	g := newGateway(t, []string{p.Listen, httpUpstream(t, serve)}, func(s *policy.Snapshot) {
		s.Upstreams[0].HeaderTimeout, s.Timeouts.Body = 1500*time.Millisecond, 2*time.Second
	})
	l := &faultLoad{t: t, g: g, client: g.client(h2)}
	l.round() // both servers are well, and have connections at rest
	if n := l.failed.Load() + l.cut.Load(); n != 0 {
		t.Fatalf("%d requests failed before anything was wrong", n)
	}
	poison(t, p, toxic)
	var all sync.WaitGroup
	for k := range 4 {
		all.Go(func() {
			if k%2 == 0 {
				l.others()
			}
			for range 5 {
				l.round()
			}
		})
	}
	all.Wait()
	if n := twice.Load(); n != 0 {
		t.Errorf("%d requests that must not be were sent twice", n)
	}
	// The server was in the way, or it is a fault that all can live with.
	felt := uint64(l.failed.Load()+l.cut.Load()) + g.slab.Load(zone.UpstreamRetries) + g.slab.Load(zone.UpstreamEjections)
	if felt == 0 && !strings.Contains(toxic, "slicer") && !strings.Contains(toxic, "jitter") && !strings.Contains(toxic, "bandwidth") {
		t.Error("nothing came of the fault")
	}
	t.Logf("%d requests, %d not idempotent ones failed, %d replies cut and known to be", l.asked.Load(), l.failed.Load(), l.cut.Load())
}

// A server that takes connections and swallows what is sent, with all times as they are by
// default: the client is told within five seconds.
func TestBlackHoleByDefault(t *testing.T) {
	t.Parallel()
	p := newToxic(t, httpUpstream(t, func(http.ResponseWriter, *http.Request) {}))
	poison(t, p, `{"type": "timeout", "stream": "upstream", "attributes": {"timeout": 0}}`)
	for name, servers := range map[string][]string{"one": {p.Listen}, "two": {p.Listen, blackHole(t)}} {
		g := newGateway(t, servers, func(s *policy.Snapshot) {
			s.Upstreams[0].ConnectTimeout, s.Upstreams[0].HeaderTimeout = 2*time.Second, 5*time.Second // deploy/gateway.yaml
		})
		began := time.Now()
		resp, err := g.client(true).Get(g.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		took := time.Since(began)
		t.Logf("%s: status %d after %v", name, resp.StatusCode, took)
		if resp.StatusCode != 504 || took > 7*time.Second {
			t.Errorf("%s: status %d after %v", name, resp.StatusCode, took)
		}
	}
}
