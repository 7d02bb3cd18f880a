// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/tls"
	"net"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// plainUpstream answers each request with 100 bytes, without allocating.
func plainUpstream(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return servePlain(tb, l)
}

func servePlain(tb testing.TB, l net.Listener) string {
	tb.Helper()
	tb.Cleanup(func() { l.Close() })
	reply := append([]byte("HTTP/1.1 200 OK\r\nServer: test\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n"), bytes.Repeat([]byte("x"), 100)...)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 64<<10)
				n := 0
				for {
					m, err := c.Read(b[n:])
					if err != nil {
						return
					}
					if n += m; wholeRequest(b[:n]) {
						n = 0
						if _, err := c.Write(reply); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// wholeRequest knows the requests of this file: no body, or one that ends with '!'.
func wholeRequest(b []byte) bool {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	return end >= 0 && (bytes.HasPrefix(b, []byte("GET")) || b[len(b)-1] == '!')
}

// exchanger sends the request and reads the reply of 100 bytes, over one connection.
func exchanger(tb testing.TB, address string, config *tls.Config, request string) func() {
	tb.Helper()
	c, err := tls.Dial("tcp", address, config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.NetConn().Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	in, out := []byte(request), make([]byte, 4096)
	return func() {
		if _, err := c.Write(in); err != nil {
			tb.Fatal(err)
		}
		for n := 0; ; {
			m, err := c.Read(out[n:])
			if err != nil {
				tb.Fatal(err)
			}
			n += m
			if head := bytes.Index(out[:n], []byte("\r\n\r\n")); head >= 0 && n == head+4+100 {
				return
			}
		}
	}
}

// An exchange allocates nothing. crypto/tls does, at both ends (one small object for
// each read of its connection), so what is asserted is that client, gateway and
// upstream together allocate no more than a client and a TLS server alone.
func TestExchangeDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	// A collection empties the pools, which is not what is asked here.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	g := newGateway(t, []string{plainUpstream(t)}, func(s *policy.Snapshot) {
		s.RequestLimits = []policy.RequestLimit{hourly("wide", 1<<30, byAddress, byRoute)}
	})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	direct := servePlain(t, tls.NewListener(inner, &tls.Config{Certificates: g.certs, DynamicRecordSizingDisabled: true}))
	for name, request := range map[string]string{
		"GET":  "GET /path HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
		"POST": "POST /path HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 999) + "!",
	} {
		measure := func(address string) float64 {
			exchange := exchanger(t, address, g.tlsConfig("http/1.1"), request)
			for range 100 {
				exchange()
			}
			return testing.AllocsPerRun(500, exchange)
		}
		alone, through := measure(direct), measure(g.address)
		if through > alone {
			t.Errorf("%s: %v allocations through the gateway, %v without", name, through, alone)
		}
		t.Logf("%s: %v allocations through the gateway, %v without", name, through, alone)
	}
	if n := g.slab.LoadRequest(zone.RequestOK); n < 1200 {
		t.Errorf("%d exchanges", n)
	}
	if n := g.slab.Load(zone.UpstreamConnectionsOpened); n != 1 {
		t.Errorf("%d upstream connections", n)
	}
}

// BenchmarkHTTP1 is one connection's exchanges one after the other: client, gateway
// and upstream in one process.
func BenchmarkHTTP1(b *testing.B) {
	g := newGateway(b, []string{plainUpstream(b)}, nil)
	exchange := exchanger(b, g.address, g.tlsConfig("http/1.1"),
		"GET /path HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	b.ReportAllocs()
	for b.Loop() {
		exchange()
	}
	if n := g.slab.LoadRequest(zone.RequestOK); n < uint64(b.N) {
		b.Errorf("%d exchanges in %d rounds", n, b.N)
	}
}
