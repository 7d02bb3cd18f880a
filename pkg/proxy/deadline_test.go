// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// silent takes requests and says nothing, or only half a head.
func silent(t *testing.T, taken *atomic.Int64, says string) string {
	return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if _, _, err := readRequest(r); err == nil {
			taken.Add(1)
			_, _ = io.WriteString(c, says)
			_, _ = c.Read(make([]byte, 1))
		}
	})
}

// One server of two takes requests and does not answer: what may be repeated is answered
// by the other within the time for a reply, all else is 504 and was sent once.
func TestSilentServer(t *testing.T) {
	for _, says := range []string{"", "HTTP/1.1 200 OK\r\nContent-Le"} {
		for _, row := range []struct {
			method, body string
			repeated     bool
		}{
			{"GET", "", true},
			{"PUT", "small", true},
			{"POST", "small", false},
			{"PUT", strings.Repeat("x", smallBody+1), false},
		} {
			t.Run(fmt.Sprintf("%s %d after %d bytes", row.method, len(row.body), len(says)), func(t *testing.T) {
				t.Parallel()
				var bad, good atomic.Int64
				works := httpUpstream(t, func(_ http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					good.Add(1)
				})
				g := newGateway(t, []string{silent(t, &bad, says), works}, func(s *policy.Snapshot) {
					s.Upstreams[0].MaxFails, s.Upstreams[0].HeaderTimeout = 0, 2*time.Second
				})
				client, ok := g.client(false), 0
				const n = 4
				for range n {
					req, _ := http.NewRequest(row.method, g.url("/"), strings.NewReader(row.body))
					resp, err := client.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					switch resp.StatusCode {
					case 200:
						ok++
					case 504:
					default:
						t.Errorf("status %d", resp.StatusCode)
					}
				}
				want := n / 2
				if row.repeated {
					want = n
				}
				// A try that is repeated takes a turn more: it may be the silent one's again.
				if n := bad.Load(); ok != want || good.Load() != int64(want) || n < 2 || n > 4 || !row.repeated && n != 2 {
					t.Errorf("%d of %d answered; %d and %d taken", ok, n, bad.Load(), good.Load())
				}
			})
		}
	}
}

// However servers keep silent, the client is told within the time for a reply.
func TestTimeForAReply(t *testing.T) {
	const wait = 2 * time.Second
	var taken atomic.Int64
	for name, servers := range map[string][]string{
		"one silent":           {silent(t, &taken, "")},
		"two silent":           {silent(t, &taken, ""), silent(t, &taken, "")},
		"one connects to none": {blackHole(t)},
		"two connect to none":  {blackHole(t), blackHole(t)},
		"one of each":          {blackHole(t), silent(t, &taken, ""), blackHole(t), silent(t, &taken, "")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothProtocols(t, func(t *testing.T, h2 bool) {
				g := newGateway(t, servers, func(s *policy.Snapshot) {
					s.Upstreams[0].ConnectTimeout, s.Upstreams[0].HeaderTimeout, s.Upstreams[0].Retries = wait, wait, 2
				})
				for round := 1; ; round++ {
					began := time.Now()
					resp, err := g.client(h2).Get(g.url("/"))
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					took := time.Since(began)
					if resp.StatusCode != 504 || took < wait/2 || took > wait*7/4 && round == 3 {
						t.Errorf("status %d after %v", resp.StatusCode, took)
					}
					if took <= wait*7/4 || round == 3 { // a machine that stands still is late now and then
						break
					}
				}
			})
		})
	}
}

// The total time of an exchange holds wherever it is spent: before the reply, in the body,
// and, as long as they are open, not for WebSockets. A route's stands before the upstream's.
func TestTotalTimeout(t *testing.T) {
	const total = 500 * time.Millisecond
	var taken atomic.Int64
	drips := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if _, _, err := readRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
		for range 1000 {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	bothProtocols(t, func(t *testing.T, h2 bool) {
		for name, server := range map[string]string{"silent": silent(t, &taken, ""), "drips": drips} {
			for _, ofRoute := range []bool{false, true} {
				g := newGateway(t, []string{server}, func(s *policy.Snapshot) {
					s.Upstreams[0].TotalTimeout = total
					if ofRoute {
						s.Upstreams[0].TotalTimeout = time.Minute
						s.Routes[0].Timeouts = &policy.Timeouts{Total: total}
					}
				})
				began := time.Now()
				resp, err := g.client(h2).Get(g.url("/"))
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				took := time.Since(began)
				if name == "silent" && resp.StatusCode != 504 || name == "drips" && (resp.StatusCode != 200 || err == nil) {
					t.Errorf("%s: %d %v", name, resp.StatusCode, err)
				}
				if took < total*4/5 || took > 5*total {
					t.Errorf("%s: after %v, want %v", name, took, total)
				}
				if rec := g.records(1)[0]; rec.Outcome != zone.RequestUpstreamTimeout {
					t.Errorf("%s: outcome %v", name, rec.Outcome)
				}
			}
		}
	})
	// A connection that is used again has no deadline of the exchange before.
	g := newGateway(t, []string{httpUpstream(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})}, func(s *policy.Snapshot) { s.Upstreams[0].TotalTimeout = 2 * total })
	client := g.client(false)
	for range 3 {
		resp, err := client.Post(g.url("/"), "x/y", bytes.NewReader(make([]byte, smallBody+1)))
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
		resp.Body.Close()
		time.Sleep(2*total + 3*sweepInterval)
	}
	if n := g.slab.Load(zone.UpstreamConnectionsOpened); n != 1 {
		t.Errorf("%d connections for three requests", n)
	}
}

// More requests under way than there may be are told to come again, by an outcome of their
// own, whatever connections there are.
func TestMaxRequests(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		hold := make(chan struct{})
		g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) { <-hold })}, func(s *policy.Snapshot) {
			s.Upstreams[0].MaxRequests, s.Upstreams[0].MaxConnections, s.Upstreams[0].MaxPending = 3, 2, 100
			s.Upstreams[0].PendingTimeout = 10 * time.Second
		})
		client := g.client(h2)
		var held, refused atomic.Int64
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				resp, err := client.Get(g.url("/"))
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "" {
					refused.Add(1)
				} else if resp.StatusCode == 200 {
					held.Add(1)
				}
			})
		}
		eventually(t, "seven refusals", func() bool { return refused.Load() == 7 })
		eventually(t, "their outcomes", func() bool { return g.slab.LoadRequest(zone.RequestUpstreamSaturated) == 7 })
		close(hold)
		all.Wait()
		if held.Load() != 3 {
			t.Errorf("%d answered", held.Load())
		}
		eventually(t, "nothing under way", func() bool { return g.worker.current.Load().upstreams[0].requests.Load() == 0 })
	})
}
