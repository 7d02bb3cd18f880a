// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Points of an exchange at which the upstream breaks off, in order. Its requests have
// bodies of four pieces, so have its replies.
var upstreamPoints = []string{
	"accept", "half head", "head", "piece 1", "piece 2", "piece 3", "piece 4", "half reply head", "reply head",
	"reply piece 1", "reply piece 2", "reply piece 3", "never",
}

const pieceSize = 8 << 10 // four are more than a small body

// breaksOff is an upstream that breaks off at the point that the request's path names; by
// a close, or for /reset/ by a reset.
func breaksOff(t *testing.T, next func() (point string, byReset bool)) string {
	return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		point, byReset := next()
		if byReset {
			defer reset(c)
		}
		if point == "accept" {
			return
		}
		if _, err := r.Peek(20); err != nil || point == "half head" {
			return
		}
		req, err := http.ReadRequest(r)
		if err != nil || point == "head" {
			return
		}
		piece := make([]byte, pieceSize)
		for i := 1; ; i++ {
			_, err := io.ReadFull(req.Body, piece)
			if err != nil {
				break
			}
			if point == fmt.Sprint("piece ", i) {
				return
			}
		}
		say := func(s string) { _, _ = io.WriteString(c, s) }
		if point == "half reply head" {
			say("HTTP/1.1 200 OK\r\nTransfer-")
			return
		}
		say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for i := 1; i <= 4; i++ {
			if point == "reply head" {
				return
			}
			say(fmt.Sprintf("%x\r\n%s\r\n", pieceSize, strings.Repeat("x", pieceSize)))
			if point == fmt.Sprint("reply piece ", i) {
				return
			}
			time.Sleep(time.Millisecond) // so that clients can go away in between
		}
		say("0\r\n\r\n")
	})
}

// pieces is a request's body that runs a function before each of its four pieces, and ends
// the request when that says so.
type pieces struct {
	n      int
	before func(n int) error
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.n == 4 {
		return 0, io.EOF
	}
	if err := p.before(p.n); err != nil {
		return 0, err
	}
	p.n++
	return copy(b[:pieceSize], make([]byte, pieceSize)), nil
}

// Points at which the client goes away.
var clientPoints = []string{
	"connect", "half hello", "handshake", "half head", "head", "piece 1", "piece 2", "piece 3", "piece 4", "reply head", "reply piece 2",
}

// leave opens a connection and goes away at the point, by a reset or a close.
func leave(g *gateway, h2 bool, point string, byReset bool) {
	tcp, err := net.Dial("tcp", g.address)
	if err != nil {
		g.Error(err)
		return
	}
	end := func() { tcp.Close() }
	if byReset {
		end = func() { reset(tcp) }
	}
	defer end()
	protocol := "http/1.1"
	if h2 {
		protocol = "h2"
	}
	switch point {
	case "connect":
		return
	case "half hello":
		_, _ = tcp.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
		return
	}
	c := tls.Client(tcp, g.tlsConfig(protocol))
	if err := c.Handshake(); err != nil {
		g.Error(err)
		return
	}
	switch point {
	case "handshake":
		return
	case "half head":
		if h2 {
			_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x20\x01\x05\x00\x00\x00\x01\x82")
		} else {
			_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHo")
		}
		return
	}
	tr := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	if h2 {
		tr.TLSClientConfig = g.tlsConfig("h2")
	}
	defer tr.CloseIdleConnections()
	body := &pieces{before: func(n int) error {
		if n == 0 && point == "head" || point == fmt.Sprint("piece ", n) {
			end()
			return io.ErrUnexpectedEOF
		}
		return nil
	}}
	req, _ := http.NewRequest("POST", g.url("/"), struct{ io.Reader }{body})
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return
	}
	if point == "reply piece 2" {
		_, _ = io.ReadFull(resp.Body, make([]byte, 2*pieceSize))
	}
	end()
	resp.Body.Close()
}

// held is what must be as it was.
type held struct {
	goroutines, descriptors, connections int
	heap                                 uint64
}

func holds(g *gateway) (h held) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u := g.worker.current.Load().upstreams[0]
	u.mu.Lock()
	h.connections = u.total
	for _, s := range u.servers {
		h.connections += s.active + len(s.idle)
	}
	h.connections += len(u.waiting) + int(u.requests.Load())
	u.mu.Unlock()
	g.worker.mu.Lock()
	h.connections += len(g.worker.upConns)
	g.worker.mu.Unlock()
	h.connections += int(g.slab.LoadGauge(zone.GaugeConnections)) + int(g.slab.LoadGauge(zone.GaugeRequests))
	fds, _ := os.ReadDir("/proc/self/fd")
	h.goroutines, h.descriptors, h.heap = runtime.NumGoroutine(), len(fds), m.HeapAlloc
	return h
}

// Whoever breaks off, and whenever: goroutines, descriptors, memory and all that is counted
// as present return to where they were.
func TestResetsLeakNothing(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		var point string
		var byReset bool
		g := newGateway(t, []string{breaksOff(t, func() (string, bool) { return point, byReset })}, func(s *policy.Snapshot) {
			s.Upstreams[0].MaxIdle, s.Upstreams[0].MaxFails = 0, 0
		})
		round := func() {
			for _, byReset = range []bool{false, true} {
				for _, point = range upstreamPoints {
					tr := g.client(h2).Transport.(*http.Transport)
					req, _ := http.NewRequest("POST", g.url("/"), struct{ io.Reader }{&pieces{before: func(int) error { return nil }}})
					if resp, err := tr.RoundTrip(req); err == nil {
						_, err := io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
						if point == "never" && (err != nil || resp.StatusCode != 200) {
							t.Errorf("the whole exchange: %d %v", resp.StatusCode, err)
						}
					}
					tr.CloseIdleConnections()
				}
				point = "never"
				for _, at := range clientPoints {
					leave(g, h2, at, byReset)
				}
			}
			byReset = false
			eventually(t, "everything is over", func() bool { return holds(g).connections == 0 })
		}
		round() // pools fill
		round()
		before := holds(g)
		const rounds = 4
		for range rounds {
			round()
		}
		var after held
		// Pools of goroutines may grow by a few; what is left at one point is left by each
		// round, twice.
		const spare = rounds
		settled := func() bool {
			return after.goroutines < before.goroutines+spare && after.descriptors < before.descriptors+spare && after.heap <= before.heap+1<<20
		}
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if after = holds(g); settled() {
				break
			}
		}
		t.Logf("before %+v, after %d broken exchanges %+v", before, rounds*2*(len(upstreamPoints)+len(clientPoints)), after)
		if !settled() {
			t.Error("something is left")
		}
		if n := g.outcomes(); n == 0 {
			t.Error("no exchange was counted")
		}
	})
}
