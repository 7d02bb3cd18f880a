// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// balanced is an upstream of n servers that nothing is sent to.
func balanced(t *testing.T, n int, balance string) *upstream {
	t.Helper()
	p := &policy.Upstream{Balance: balance, HashBy: "address"}
	for i := range n {
		p.Servers = append(p.Servers, policy.Server{Address: fmt.Sprintf("192.0.2.%d:80", i+1)})
	}
	u, err := newUpstream(p)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestBalance(t *testing.T) {
	ex := &Exchange{}
	t.Run("round robin", func(t *testing.T) {
		u := balanced(t, 3, "round_robin")
		got := make([]int, 3)
		for range 300 {
			got[u.pick(ex, 0).place]++
		}
		if got[0] != 100 || got[1] != 100 || got[2] != 100 {
			t.Errorf("%v", got)
		}
	})
	t.Run("least connections", func(t *testing.T) {
		u := balanced(t, 4, "least_conn")
		for i, n := range []int{3, 1, 5, 1} {
			u.servers[i].active = n
		}
		got := make([]int, 4)
		for range 100 {
			got[u.pick(ex, 0).place]++
		}
		if got[0] != 0 || got[2] != 0 || got[1] == 0 || got[3] == 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("two choices", func(t *testing.T) {
		u := balanced(t, 4, "p2c")
		u.servers[2].active = 100
		got := make([]int, 4)
		const n = 40_000
		for range n {
			got[u.pick(ex, 0).place]++
		}
		// The busy one is never the better of two. Of the six pairs each other one is in three.
		for i, c := range got {
			if i == 2 && c != 0 || i != 2 && math.Abs(float64(c)-n/3) > 0.05*n/3 {
				t.Errorf("%v", got)
			}
		}
	})
	t.Run("hash", func(t *testing.T) {
		const keys = 10_000
		five, four := balanced(t, 5, "hash"), balanced(t, 5, "hash")
		four.servers[4].ejectedUntil = math.MaxInt64
		got, moved := make([]int, 5), 0
		for k := range keys {
			ex.peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)}), 1000)
			a, b := five.pick(ex, 0).place, four.pick(ex, 0).place
			if a != five.pick(ex, 0).place {
				t.Fatal("one key, two servers")
			}
			got[a]++
			if a != b {
				moved++
				if a != 4 {
					t.Fatalf("key %d went from server %d to %d, and server 4 is gone", k, a, b)
				}
			}
		}
		for i, c := range got {
			if math.Abs(float64(c)-keys/5) > 0.1*keys/5 {
				t.Errorf("server %d has %d of %d keys", i, c, keys)
			}
		}
		if moved != got[4] {
			t.Errorf("%d keys moved, server 4 had %d", moved, got[4])
		}
	})
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range []string{"round_robin", "least_conn", "p2c", "hash"} {
			u := balancedOnce[b]
			u.pick(ex, 0)
		}
	}); n != 0 {
		t.Errorf("%v allocations to choose a server", n)
	}
}

var balancedOnce = func() map[string]*upstream {
	m := map[string]*upstream{}
	for _, b := range []string{"round_robin", "least_conn", "p2c", "hash"} {
		m[b], _ = newUpstream(&policy.Upstream{Balance: b, HashBy: "address", Servers: policy.ServersAt("a:1", "b:1", "c:1")})
	}
	return m
}()

// Reports eject a server, never more than half of them, for longer each time; and one
// exchange finds out whether it works again.
func TestEjection(t *testing.T) {
	g := newStoppedGateway(t, []string{"127.0.0.1:1"})
	w := g.worker
	eventually(t, "the clock's first tick", func() bool { return w.clock.Load() > 10 })
	u := balanced(t, 4, "round_robin")
	u.policy.MaxFails, u.policy.FailTime = 3, time.Minute
	ex := &Exchange{}
	seen := func(n int) (set serverSet) {
		for range n {
			s := u.pick(ex, w.clock.Load())
			set |= 1 << s.place
			u.hear(w, s, reportNone, s.probing)
		}
		return set
	}
	for range 2 {
		u.hear(w, u.servers[0], reportFailed, false)
	}
	u.hear(w, u.servers[0], reportWorked, false)
	u.hear(w, u.servers[0], reportFailed, false)
	if got := seen(8); got != 0b1111 {
		t.Errorf("failures that were not in a row: %04b", got)
	}
	for _, i := range []int{0, 1, 2} {
		for range 3 {
			u.hear(w, u.servers[i], reportFailed, false)
		}
	}
	if got := seen(8); got != 0b1100 {
		t.Errorf("three of four failed: %04b are chosen, want half", got)
	}
	if n := g.slab.Load(zone.UpstreamEjections); n != 2 {
		t.Errorf("%d ejections counted", n)
	}
	// The time is over: one exchange at a time tries it.
	u.servers[0].ejectedUntil = 1
	probe := -1
	for range 8 {
		if i := u.pick(ex, 2).place; i == 0 {
			if probe == 0 {
				t.Error("a second probe beside the first")
			}
			probe = 0
		}
	}
	if probe != 0 {
		t.Fatal("no probe")
	}
	u.hear(w, u.servers[0], reportWorked, false)
	if u.servers[0].ejectedUntil == 0 {
		t.Error("an exchange that began before the ejection ended it")
	}
	u.hear(w, u.servers[0], reportFailed, true)
	if left := u.servers[0].ejectedUntil - w.clock.Load(); left < int64(119*time.Second) {
		t.Errorf("the second ejection lasts %s, want twice the first", time.Duration(left))
	}
	u.servers[0].ejectedUntil = 1
	for u.pick(ex, 2).place != 0 {
	}
	u.hear(w, u.servers[0], reportWorked, true)
	if got := seen(12); !got.has(0) {
		t.Errorf("it works again, and %04b are chosen", got)
	}
	// An exchange that has tried a server goes to another, an ejected one if need be.
	two := balanced(t, 2, "round_robin")
	two.servers[1].ejectedUntil = math.MaxInt64
	if i := two.pick(&Exchange{tried: 0b01, triedOf: two.version}, 0).place; i != 1 {
		t.Errorf("chose %d again", i)
	}
}

// One server of two fails in one way or another: what may be repeated is answered by the
// other, and nothing else is sent twice.
func TestOneOfTwoFails(t *testing.T) {
	for _, fault := range []string{"refuses", "closes", "resets"} {
		for _, row := range []struct {
			method, body string
			header       http.Header
			repeated     bool
		}{
			{"GET", "", nil, true},
			{"PUT", "small", nil, true},
			{"DELETE", "", nil, true},
			{"POST", "small", nil, false},
			{"POST", "", nil, false},
			{"PATCH", "small", http.Header{"Idempotency-Key": {"7"}}, true},
			{"POST", "small", http.Header{"Idempotency-Key": {""}}, false},
			{"PUT", strings.Repeat("x", smallBody+1), nil, false},
		} {
			t.Run(fmt.Sprintf("%s %s %d", fault, row.method, len(row.body)), func(t *testing.T) {
				var bad, good atomic.Int64
				failing := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
					if _, _, err := readRequest(r); err == nil {
						bad.Add(1)
					}
					if fault == "resets" {
						_ = c.(*net.TCPConn).SetLinger(0)
					}
				})
				if fault == "refuses" {
					failing = refusing(t)
				}
				working := httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					if string(b) != row.body {
						t.Errorf("the other server got %d bytes", len(b))
					}
					good.Add(1)
				})
				g := newGateway(t, []string{failing, working}, func(s *policy.Snapshot) { s.Upstreams[0].MaxFails = 0 })
				client, ok := g.client(false), 0
				const n = 10
				for range n {
					req, _ := http.NewRequest(row.method, g.url("/"), strings.NewReader(row.body))
					if row.body == "" {
						req.Body = http.NoBody
					}
					for k, v := range row.header {
						req.Header[k] = v
					}
					resp, err := client.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					if resp.StatusCode == 200 {
						ok++
					}
				}
				// A refused connection has taken nothing: any request may go elsewhere.
				want := n
				if !row.repeated && fault != "refuses" {
					want = n / 2
				}
				if ok != want || good.Load() != int64(want) {
					t.Errorf("%d of %d answered, %d by the other server; want %d", ok, n, good.Load(), want)
				}
				if sum := bad.Load() + good.Load(); !row.repeated && sum != n {
					t.Errorf("%d requests were sent %d times", n, sum)
				}
			})
		}
	}
}

// Retries do not multiply the load on servers that all fail.
func TestRetryBudget(t *testing.T) {
	var tries atomic.Int64
	failing := func() string {
		return rawUpstream(t, func(_ int, _ net.Conn, r *bufio.Reader) {
			if _, _, err := readRequest(r); err == nil {
				tries.Add(1)
			}
		})
	}
	g := newGateway(t, []string{failing(), failing(), failing()}, func(s *policy.Snapshot) { s.Upstreams[0].Retries, s.Upstreams[0].MaxFails = 2, 0 })
	client := g.client(false)
	const n = 1000
	for range n {
		resp, err := client.Get(g.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 502 {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	// A hundred saved, and a fifth of all tries.
	if most := int64(n + 100 + n/4 + 5); tries.Load() > most || tries.Load() < n+n/5 {
		t.Errorf("%d tries for %d requests, want a fifth more", tries.Load(), n)
	}
}

// Requests that find all connections in use wait for one, so many and for so long.
func TestPending(t *testing.T) {
	for _, row := range []struct {
		name     string
		pending  int
		timeout  time.Duration
		answered int // of ten
	}{
		{"room for all", 10, time.Minute, 10},
		{"room for two", 2, time.Minute, 3},
		{"no time", 10, time.Millisecond, 1},
		{"no queue", 0, time.Minute, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			hold := make(chan struct{}) // no reply before all that are refused were
			g := newGateway(t, []string{httpUpstream(t, func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/held" {
					<-hold
				}
			})}, func(s *policy.Snapshot) {
				u := &s.Upstreams[0]
				u.MaxConnections, u.MaxPending, u.PendingTimeout = 1, row.pending, row.timeout
			})
			client := g.client(true)
			if resp, err := client.Get(g.url("/")); err != nil { // the client's connection is there
				t.Fatal(err)
			} else {
				resp.Body.Close()
			}
			eventually(t, "the exchange's end", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 0 })
			var ok, full atomic.Int64
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() {
					resp, err := client.Get(g.url("/held"))
					if err != nil {
						t.Error(err)
						return
					}
					resp.Body.Close()
					switch {
					case resp.StatusCode == 200:
						ok.Add(1)
					case resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "":
						full.Add(1)
					default:
						t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
					}
				})
			}
			release := sync.OnceFunc(func() { close(hold) })
			defer release()
			eventually(t, "the rest are told to come again", func() bool {
				return int(full.Load()) >= 10-row.answered && g.slab.LoadGauge(zone.GaugeRequests) <= uint64(row.answered)
			})
			eventually(t, "all have come", func() bool { return int(full.Load())+int(g.slab.LoadGauge(zone.GaugeRequests)) == 10 })
			release()
			all.Wait()
			if n := int(ok.Load()); n != row.answered || n+int(full.Load()) != 10 {
				t.Errorf("%d answered, %d told to come again; want %d answered", n, full.Load(), row.answered)
			}
		})
	}
}

// Upstreams by TLS are who they say they are, or get nothing.
func TestUpstreamTLS(t *testing.T) {
	var got atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Add(1)
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	defer s.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	other, _, err := MakeCertificate([]string{"example.com"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		tls    policy.UpstreamTLS
		status int
	}{
		{"known authority", policy.UpstreamTLS{Verify: true, CA: ca}, 200},
		{"known authority, by name", policy.UpstreamTLS{Verify: true, CA: ca, ServerName: "example.com"}, 200},
		{"another name", policy.UpstreamTLS{Verify: true, CA: ca, ServerName: "example.org"}, 502},
		{"another authority", policy.UpstreamTLS{Verify: true, CA: other}, 502},
		{"the system's authorities", policy.UpstreamTLS{Verify: true}, 502},
		{"not verified", policy.UpstreamTLS{ServerName: "whoever.test"}, 200},
	} {
		t.Run(row.name, func(t *testing.T) {
			bothProtocols(t, func(t *testing.T, h2 bool) {
				got.Store(0)
				g := newGateway(t, []string{s.Listener.Addr().String()}, func(p *policy.Snapshot) { p.Upstreams[0].TLS = &row.tls })
				client := g.client(h2)
				for _, n := range []int{0, 10, 100_000} {
					resp, err := client.Post(g.url("/"), "text/plain", strings.NewReader(strings.Repeat("x", n)))
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || resp.StatusCode != row.status || row.status == 200 && len(b) != n {
						t.Errorf("%d bytes: status %d, %d came back, %v", n, resp.StatusCode, len(b), err)
					}
				}
				if row.status != 200 {
					if got.Load() != 0 {
						t.Error("a server that is not who it should be got a request")
					}
					eventually(t, "the log's line", func() bool { return strings.Contains(g.log.String(), "certificate") })
				}
			})
		})
	}
	g := newStoppedGateway(t, []string{"127.0.0.1:1"})
	g.snapshot.Upstreams[0].TLS = &policy.UpstreamTLS{Verify: true, CA: []byte("nonsense")}
	if err := g.worker.Apply(&g.snapshot, g.certs); err == nil || !strings.Contains(err.Error(), "upstream up") {
		t.Errorf("authorities that are none: %v", err)
	}
}
