// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// dribble is a body of n pieces, one each interval.
type dribble struct {
	n        int
	piece    string
	interval time.Duration
}

func (d *dribble) Read(p []byte) (int, error) {
	if d.n == 0 {
		return 0, io.EOF
	}
	d.n--
	time.Sleep(d.interval)
	return copy(p, d.piece), nil
}

// A client that is waited for and moves fewer bytes than the least rate is cut, in both
// directions and protocols; one that is faster is not, and neither is one that waits itself.
func TestLeastRate(t *testing.T) {
	testWindow = 900 * time.Millisecond
	defer func() { testWindow = 0 }()
	const rate = 5000
	long := strings.Repeat("x", 20<<20)
	up := func(t *testing.T) string {
		return httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/long":
				_, _ = io.WriteString(w, long)
			case "/late":
				time.Sleep(3 * time.Second)
			default:
				_, _ = io.Copy(io.Discard, r.Body)
			}
		})
	}
	start := func(t *testing.T, least int) *gateway {
		return newGateway(t, []string{up(t)}, func(s *policy.Snapshot) { s.Timeouts.MinRate = least })
	}
	bothProtocols(t, func(t *testing.T, h2 bool) {
		for _, row := range []struct {
			name  string
			least int
			piece string
			ok    bool
		}{
			{"slow body", rate, strings.Repeat("x", 50), false},               // 500 a second and what TLS adds
			{"body in time", rate, strings.Repeat("x", 2000), true},           // 20,000 a second
			{"slow body where any will do", 0, strings.Repeat("x", 50), true}, //
		} {
			t.Run(row.name, func(t *testing.T) {
				g := start(t, row.least)
				// Of unknown length, so that it is sent on as it comes.
				r, _ := http.NewRequest("POST", g.url("/"), &dribble{n: 30, piece: row.piece, interval: 100 * time.Millisecond})
				resp, err := g.client(h2).Do(r)
				if err == nil {
					resp.Body.Close()
				}
				if ok := err == nil && resp.StatusCode == 200; ok != row.ok {
					t.Errorf("%v, %v; want it to go through: %t", resp, err, row.ok)
				}
				if got := g.records(1)[0].Outcome; row.ok != (got == zone.RequestOK) || !row.ok && got != zone.RequestClientTimeout {
					t.Errorf("outcome %s", got)
				}
			})
		}
		t.Run("late reply", func(t *testing.T) {
			g := start(t, rate)
			resp, err := g.client(h2).Get(g.url("/late"))
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %v", resp, err)
			}
			resp.Body.Close()
		})
		t.Run("slow reader", func(t *testing.T) {
			g := start(t, rate)
			c := g.client(h2)
			tr := c.Transport.(*http.Transport)
			tr.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := (&net.Dialer{}).DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				protocol := "h2" // which has a window of its own
				if !h2 {
					_ = nc.(*net.TCPConn).SetReadBuffer(8 << 10)
					protocol = "http/1.1"
				}
				tc := tls.Client(nc, g.tlsConfig(protocol))
				return tc, tc.HandshakeContext(ctx)
			}
			resp, err := c.Get(g.url("/long"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if got := g.records(1)[0]; got.Outcome != zone.RequestClientTimeout { // while nobody reads
				t.Errorf("outcome %s", got.Outcome)
			}
			if n, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Errorf("%d bytes came, as if they were all", n)
			}
		})
	})
}
