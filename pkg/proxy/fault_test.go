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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

const okReply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// reset makes the close of c send a TCP reset.
func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// blackHole is an address that answers no SYN: a listener whose queue is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for range 4 { // fill the queue
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return address
}

// refusing is an address that refuses connections. It is held, so that nothing else of
// the machine comes to listen there.
func refusing(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
}

// Each fault of an upstream has its status and its outcome.
func TestUpstreamFaults(t *testing.T) {
	answer := func(f func(c net.Conn)) func(*testing.T) string {
		return func(t *testing.T) string {
			return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
				if _, _, err := readRequest(r); err == nil {
					f(c)
				}
			})
		}
	}
	says := func(s string) func(*testing.T) string {
		return answer(func(c net.Conn) { _, _ = io.WriteString(c, s) })
	}
	for _, row := range []struct {
		name     string
		server   func(*testing.T) string
		status   int
		outcome  zone.RequestOutcome
		upstream zone.UpstreamOutcome
	}{
		{"refused", refusing, 502, zone.RequestUpstreamRefused, zone.UpstreamRefused},
		{"connect timeout", blackHole, 504, zone.RequestConnectTimeout, zone.UpstreamConnectTimeout},
		{"silence", answer(func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }), 504, zone.RequestUpstreamTimeout, zone.UpstreamTimeout},
		{"half a head", answer(func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX:")
			_, _ = c.Read(make([]byte, 1))
		}), 504, zone.RequestUpstreamTimeout, zone.UpstreamTimeout},
		{"close", answer(func(net.Conn) {}), 502, zone.RequestUpstreamReset, zone.UpstreamReset},
		{"reset", answer(reset), 502, zone.RequestUpstreamReset, zone.UpstreamReset},
		{"cut head", says("HTTP/1.1 200 OK\r\nX: y\r\n"), 502, zone.RequestUpstreamReset, zone.UpstreamReset},
		{"garbage", says("220 mail.test ESMTP\r\n\r\n"), 502, zone.RequestUpstreamInvalid, zone.UpstreamInvalid},
		{"both lengths", says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"), 502, zone.RequestUpstreamInvalid, zone.UpstreamInvalid},
		{"bare LF", says("HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n"), 502, zone.RequestUpstreamInvalid, zone.UpstreamInvalid},
		{"endless head", says("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 64<<10)), 502, zone.RequestUpstreamInvalid, zone.UpstreamInvalid},
		{"101", says("HTTP/1.1 101 Switching Protocols\r\n\r\n"), 502, zone.RequestUpstreamInvalid, zone.UpstreamInvalid},
		{"interim replies", says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + okReply), 200, zone.RequestOK, zone.UpstreamOK},
		{"until close", says("HTTP/1.1 200 OK\r\n\r\nok"), 200, zone.RequestOK, zone.UpstreamOK},
	} {
		t.Run(row.name, func(t *testing.T) {
			bothProtocols(t, func(t *testing.T, h2 bool) {
				g := newGateway(t, []string{row.server(t)}, func(s *policy.Snapshot) {
					if row.status == 504 { // the others must not meet it on a busy machine
						s.Upstreams[0].ConnectTimeout, s.Upstreams[0].HeaderTimeout = 300*time.Millisecond, 300*time.Millisecond
					}
				})
				resp, err := g.client(h2).Get(g.url("/"))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != row.status || row.status == 200 && string(body) != "ok" {
					t.Errorf("%d %q %v, want %d", resp.StatusCode, body, err, row.status)
				}
				rec := g.records(1)[0]
				if rec.Outcome != row.outcome || rec.Status != row.status {
					t.Errorf("record: %d %v, want %v", rec.Status, rec.Outcome, row.outcome)
				}
				if n := g.slab.LoadUpstream(g.snapshot.Upstreams[0].Slot, row.upstream); n != 1 {
					t.Errorf("upstream outcome %v counted %d times", row.upstream, n)
				}
			})
		})
	}
}

// A body that was cut never looks complete.
func TestCutReply(t *testing.T) {
	for name, reply := range map[string]string{
		"length":      "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 50000),
		"chunked":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"mid chunk":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello",
		"bad chunk":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
		"no trailer":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
		"just a head": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			bothProtocols(t, func(t *testing.T, h2 bool) {
				g := newGateway(t, []string{rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
					if _, _, err := readRequest(r); err == nil {
						_, _ = io.WriteString(c, reply)
					}
				})}, nil)
				resp, err := g.client(h2).Get(g.url("/"))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if err == nil {
					t.Error("the client took a cut body for complete")
				}
				want := zone.RequestUpstreamReset
				if name == "bad chunk" {
					want = zone.RequestUpstreamInvalid
				}
				if rec := g.records(1)[0]; rec.Outcome != want {
					t.Errorf("outcome %v, want %v", rec.Outcome, want)
				}
			})
		})
	}
	t.Run("until close, HTTP/1.0 client", func(t *testing.T) {
		g := newGateway(t, []string{rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, _, err := readRequest(r); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			}
		})}, nil)
		c := g.raw()
		c.send("GET / HTTP/1.0\r\n\r\n")
		if all, err := io.ReadAll(c.r); err == nil {
			t.Errorf("TLS was closed properly behind a cut body: %q", all)
		}
	})
}

// A stale idle connection costs a repeatable request nothing, and no other request
// is sent twice.
func TestStaleConnection(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		var posts atomic.Int64
		g := newGateway(t, []string{rawUpstream(t, func(n int, c net.Conn, r *bufio.Reader) {
			for i := 0; ; i++ {
				req, _, err := readRequest(r)
				if err != nil {
					return
				}
				if req.Method == "POST" {
					posts.Add(1)
				}
				if n == 0 && i == 1 {
					return // closes an idle connection as a request comes
				}
				_, _ = io.WriteString(c, okReply)
			}
		})}, nil)
		client := g.client(h2)
		for range 3 {
			resp, err := client.Get(g.url("/"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("status %d", resp.StatusCode)
			}
			// The client may have its reply before the connection is idle.
			eventually(t, "the exchange's end", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 0 })
		}
		if n := g.slab.Load(zone.UpstreamRetries); n != 1 {
			t.Errorf("%d retries", n)
		}
		retries := 0
		for _, r := range g.records(3) {
			retries += r.Retries
		}
		if retries != 1 {
			t.Errorf("%d retries in the records", retries)
		}

		g = newGateway(t, []string{rawUpstream(t, func(n int, c net.Conn, r *bufio.Reader) {
			for i := 0; ; i++ {
				req, _, err := readRequest(r)
				if err != nil || i == 1 {
					return
				}
				if req.Method == "POST" {
					posts.Add(1)
				}
				_, _ = io.WriteString(c, okReply)
			}
		})}, nil)
		client = g.client(h2)
		posts.Store(0)
		resp, err := client.Get(g.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		eventually(t, "the exchange's end", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) == 0 })
		resp, err = client.Post(g.url("/"), "text/plain", strings.NewReader("pay"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if n := g.slab.Load(zone.UpstreamRetries); resp.StatusCode != 502 || n != 0 {
			t.Errorf("POST: status %d, %d retries", resp.StatusCode, n)
		}
	})
}

// A connection that the server closed while it was idle is not used for a request
// that could not be repeated.
func TestDeadIdleConnection(t *testing.T) {
	closed := make(chan struct{}, 1)
	g := newGateway(t, []string{rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if _, _, err := readRequest(r); err == nil {
			defer func() { closed <- struct{}{} }()
			_, _ = io.WriteString(c, okReply)
			_ = c.(*net.TCPConn).CloseWrite()
			eventually(t, "the server's close arrives", func() bool { return !unheard(tcpInfo(t, c).State) })
		}
	})}, nil)
	client := g.client(false)
	for range 5 {
		resp, err := client.Post(g.url("/"), "text/plain", strings.NewReader("pay"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
		<-closed
	}
}

// unheard is the state of a connection whose end the other side has not heard of: of
// net/tcp_states.h, TCP_ESTABLISHED and TCP_FIN_WAIT1.
func unheard(state uint8) bool { return state == 1 || state == 4 }

func TestSaturation(t *testing.T) {
	hold := make(chan struct{})
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) { <-hold })}, func(s *policy.Snapshot) {
		s.Upstreams[0].MaxConnections = 2
	})
	client := g.client(true)
	results := make(chan *http.Response, 5)
	for range 5 {
		go func() {
			resp, err := client.Get(g.url("/"))
			if err != nil {
				t.Error(err)
				resp = &http.Response{}
			} else {
				resp.Body.Close()
			}
			results <- resp
		}()
	}
	for range 3 {
		if resp := <-results; resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%v", resp)
		}
	}
	close(hold)
	for range 2 {
		if resp := <-results; resp.StatusCode != 200 {
			t.Errorf("%v", resp)
		}
	}
	g.records(5) // every outcome is counted
	if n := g.slab.LoadRequest(zone.RequestUpstreamSaturated); n != 3 {
		t.Errorf("%d saturated", n)
	}
}

// A server that is down is passed over while another is up.
func TestServersInTurn(t *testing.T) {
	var hits [2]atomic.Int64
	serve := func(i int) string {
		return httpUpstream(t, func(http.ResponseWriter, *http.Request) { hits[i].Add(1) })
	}
	g := newGateway(t, []string{serve(0), refusing(t), serve(1)}, nil)
	client := g.client(true)
	for range 30 {
		resp, err := client.Get(g.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	if hits[0].Load() == 0 || hits[1].Load() < hits[0].Load() {
		t.Errorf("%d and %d requests", hits[0].Load(), hits[1].Load())
	}
}

// An upstream that answers before it has the body, and does not read it, ends the
// upload without a wait for a timeout.
func TestEarlyReply(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		g := newGateway(t, []string{rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
			time.Sleep(300 * time.Millisecond) // reads nothing of the body
		})}, nil)
		began := time.Now()
		resp, err := g.client(h2).Post(g.url("/"), "x/y", bytes.NewReader(make([]byte, 20<<20)))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 413 || string(body) != "no" || err != nil {
			t.Errorf("%d %q %v", resp.StatusCode, body, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		if rec := g.records(1)[0]; rec.Outcome != zone.RequestOK || rec.Status != 413 {
			t.Errorf("%+v", rec)
		}
	})
}
