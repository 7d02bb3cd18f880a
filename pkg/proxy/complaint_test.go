// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// What operators search the error log for is there, once a second at most, with the upstream
// and its server, and each has its count.
func TestClassicWordsInTheErrorLog(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	came := make(chan struct{}, 100) // replies to a client
	answer := func(reply string, reset bool) func(int, net.Conn, *bufio.Reader) {
		return func(_ int, c net.Conn, r *bufio.Reader) {
			if _, _, err := readRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, reply)
			if reset {
				if reply != "" { // until it is read, for a reset would take it away
					select {
					case <-came:
					case <-time.After(20 * time.Second):
					}
				}
				_ = c.(*net.TCPConn).SetLinger(0)
			}
		}
	}
	for _, tt := range []struct {
		name, said, while string
		outcome           zone.UpstreamOutcome
		serve             func(int, net.Conn, *bufio.Reader)
	}{
		{"silent", "upstream timed out", "reading the head of its reply", zone.UpstreamTimeout, func(_ int, c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) }},
		{"reset", "connection reset by peer", "reading the head of its reply", zone.UpstreamReset, answer("", true)},
		{"reset within a reply", "connection reset by peer", "reading its reply", zone.UpstreamReset, answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", true)},
		{"end", "upstream prematurely closed connection", "reading the head of its reply", zone.UpstreamReset, answer("", false)},
		{"end within a reply", "upstream prematurely closed connection", "reading its reply", zone.UpstreamReset, answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", false)},
		{"no HTTP", "upstream sent an invalid reply", "reading the head of its reply", zone.UpstreamInvalid, answer("220 ready\r\n\r\n", false)},
		{"broken chunks", "upstream sent an invalid reply", "reading its reply", zone.UpstreamInvalid, answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", false)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := rawUpstream(t, tt.serve)
			g := newGateway(t, []string{up}, func(s *policy.Snapshot) {
				s.Upstreams[0].HeaderTimeout, s.Upstreams[0].Retries, s.Upstreams[0].MaxFails = 300*time.Millisecond, 0, 0
			})
			began := time.Now()
			const requests = 4
			for len(came) > 0 {
				<-came
			}
			for range requests {
				c := g.raw()
				c.send(get)
				if _, err := c.r.ReadByte(); err == nil {
					came <- struct{}{}
				}
				_, _ = io.Copy(io.Discard, c.r)
			}
			// A client that is cut sees that before the try is counted.
			counted := func() uint64 { return g.slab.LoadUpstream(g.snapshot.Upstreams[0].Slot, tt.outcome) }
			eventually(t, "all tries have ended", func() bool { return counted() >= requests })
			text := g.log.String()
			// The worker's clock stands still between its ticks.
			n, most := strings.Count(text, "msg=\""+tt.said+"\""), 1+int((time.Since(began)+100*time.Millisecond)/time.Second)
			if n < 1 || n > most || !strings.Contains(text, "level=ERROR") || !strings.Contains(text, `while="`+tt.while+`" upstream=up server=`+up) {
				t.Errorf("said %d times, %d may be:\n%s", n, most, text)
			}
			if got := counted(); got != requests {
				t.Errorf("%d tries were counted as %s", got, tt.outcome)
			}
		})
	}
}

// Clients that go away are for who asks for it.
func TestClientResetInTheErrorLog(t *testing.T) {
	came := make(chan struct{})
	up := rawUpstream(t, func(_ int, _ net.Conn, r *bufio.Reader) {
		_, _, _ = readRequest(r)
		close(came)
		_, _ = io.Copy(io.Discard, r)
	})
	g := newGateway(t, []string{up}, nil)
	c := g.raw()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-came
	_ = c.NetConn().(*net.TCPConn).SetLinger(0)
	c.NetConn().Close()
	eventually(t, "it is said and counted", func() bool {
		return g.slab.LoadRequest(zone.RequestClientReset) == 1 && strings.Contains(g.log.String(), `level=DEBUG msg="connection reset by peer" client=127.0.0.1:`)
	})
}
