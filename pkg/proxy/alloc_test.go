// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
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
	g := newStoppedGateway(t, []string{plainUpstream(t)})
	store := g.keyed()
	key := store.add(t, keys.Record{Consumer: "alice", Scopes: []string{"read"}})
	g.snapshot.Routes[0].Keys = &policy.RouteKeys{Optional: true, Scopes: []string{"read"}, Headers: []string{"Authorization", "X-API-Key"}}
	g.snapshot.RequestLimits = []policy.RequestLimit{hourly("wide", 1<<30, byAddress, byRoute)}
	g.start()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	direct := servePlain(t, tls.NewListener(inner, &tls.Config{Certificates: g.certs, DynamicRecordSizingDisabled: true}))
	for name, request := range map[string]string{
		"GET":  "GET /path HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
		"key":  "GET /path HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + "\r\n\r\n",
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
	if n := g.slab.LoadRequest(zone.RequestOK); n < 1800 {
		t.Errorf("%d exchanges", n)
	}
	if n := g.slab.Load(zone.UpstreamConnectionsOpened); n != 1 {
		t.Errorf("%d upstream connections", n)
	}
}

// servePlain2 answers likewise, over HTTP/2.
func servePlain2(l net.Listener) error {
	pool := http2.NewPool()
	defer pool.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() { _ = http2.NewConn(c, http2.Config{Pool: pool}, hundred{}).Serve() }()
	}
}

// plain2Main serves in the clear, in a process of its own: a server's decoder allocates for what
// differs from one request to the next, such as their ids.
func plain2Main() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		l.Close()
	}()
	if err := servePlain2(l); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

type hundred struct{}

var hundredBytes = bytes.Repeat([]byte("x"), 100)

func (hundred) ServeHTTP2(s *http2.Stream) {
	var scrap [2000]byte
	for !s.EndStream() {
		if _, err := s.Read(scrap[:]); err != nil {
			break
		}
	}
	s.BeginHeaders(200)
	s.AddHeader([]byte("content-type"), []byte("text/plain"))
	s.AddHeader([]byte("content-length"), []byte("100"))
	if s.EndHeaders(false) == nil {
		_, _ = s.Write(hundredBytes, true)
	}
}

// exchanger2 sends the request on one stream after the other of a connection, and reads until it
// has its end. Its fields are in the connection's table from the second one on, as clients have them.
func exchanger2(tb testing.TB, address string, body []byte, fields ...string) func() {
	tb.Helper()
	f, err := dialFrames(address, h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 30})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.nc.NetConn().Close() })
	_ = f.nc.SetDeadline(time.Now().Add(time.Minute))
	_ = f.WriteWindowUpdate(0, 1<<30)
	block, next := bytes.Clone(f.fields(fields...)), bytes.Clone(f.fields(fields...))
	var out, in []byte
	in = make([]byte, 0, 64<<10)
	id := uint32(1)
	add := func(t h2.FrameType, flags h2.Flags, payload []byte) {
		n := len(payload)
		out = append(out, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags))
		out = append(binary.BigEndian.AppendUint32(out, id), payload...)
	}
	return func() {
		out = out[:0]
		if body == nil {
			add(h2.FrameHeaders, h2.FlagHeadersEndHeaders|h2.FlagHeadersEndStream, block)
		} else {
			add(h2.FrameHeaders, h2.FlagHeadersEndHeaders, block)
			add(h2.FrameData, h2.FlagDataEndStream, body)
		}
		if _, err := f.nc.Write(out); err != nil {
			tb.Fatal(err)
		}
		for over := false; !over; {
			n, err := f.nc.Read(in[len(in):cap(in)])
			if err != nil {
				tb.Fatal(err)
			}
			in = in[:len(in)+n]
			at := 0
			for len(in)-at >= 9 {
				size := 9 + int(in[at])<<16 + int(in[at+1])<<8 + int(in[at+2])
				if len(in)-at < size {
					break
				}
				t, flags := h2.FrameType(in[at+3]), h2.Flags(in[at+4])
				if t == h2.FrameRSTStream || t == h2.FrameGoAway {
					tb.Fatalf("%v", t)
				}
				over = over || binary.BigEndian.Uint32(in[at+5:]) == id && t == h2.FrameData && flags&h2.FlagDataEndStream != 0
				at += size
			}
			in = in[:copy(in, in[at:])]
		}
		id += 2
		block = next
	}
}

// With HTTP/2 on either side, or on both, an exchange allocates once at most, beyond what a client
// and a TLS server do alone.
func TestExchangeOverHTTP2DoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	body := append(bytes.Repeat([]byte("x"), 999), '!')
	measure := func(exchange func()) float64 {
		for range 100 {
			exchange()
		}
		return testing.AllocsPerRun(500, exchange)
	}
	g := newGateway(t, []string{plainUpstream(t)}, nil)
	secure := func(protocol string) net.Listener {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: g.certs, NextProtos: []string{protocol}, DynamicRecordSizingDisabled: true})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	direct2 := secure("h2")
	defer direct2.Close()
	go func() { _ = servePlain2(direct2) }()
	direct := map[bool]string{false: servePlain(t, secure("http/1.1")), true: direct2.Addr().String()}
	server, end := helper(t, "plain2")
	defer end()
	for _, up := range []bool{false, true} {
		if up {
			s := g.snapshot
			s.Upstreams = slices.Clone(s.Upstreams)
			s.Upstreams[0].Servers, s.Upstreams[0].Protocol = policy.ServersAt(server), "http2"
			if err := g.worker.Apply(&s, g.certs); err != nil {
				t.Fatal(err)
			}
		}
		for _, row := range []struct {
			name string
			down bool
			do   func(address string) func()
		}{
			{"GET", false, func(address string) func() {
				return exchanger(t, address, g.tlsConfig("http/1.1"), "GET /path HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\n\r\n")
			}},
			{"GET", true, func(address string) func() {
				return exchanger2(t, address, nil, ":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/path", "user-agent", "test", "cookie", "a=b")
			}},
			{"POST", true, func(address string) func() {
				return exchanger2(t, address, body, ":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", "/path", "content-length", "1000")
			}},
		} {
			alone, through := measure(row.do(direct[row.down])), measure(row.do(g.address))
			t.Logf("%s, client h2 %t, upstream h2 %t: %v allocations through the gateway, %v without", row.name, row.down, up, through, alone)
			if through > alone+1 {
				t.Errorf("%s, client h2 %t, upstream h2 %t: %v allocations through the gateway, %v without", row.name, row.down, up, through, alone)
			}
		}
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
