// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type handlerFunc func(*Stream)

func (f handlerFunc) ServeHTTP2(s *Stream) { f(s) }

// testServer serves each connection of a loopback listener and keeps what Serve returned.
type testServer struct {
	tb    testing.TB
	l     net.Listener
	cfg   Config
	h     Handler
	errs  chan error
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[*Conn]bool
}

// startServer listens on loopback, with TLS when tc is not nil, and stops when the test ends.
func startServer(tb testing.TB, addr string, cfg Config, h Handler, tc *tls.Config) *testServer {
	tb.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	if cfg.Pool == nil {
		cfg.Pool = NewPool()
		tb.Cleanup(cfg.Pool.Close)
	}
	s := &testServer{tb: tb, l: l, cfg: cfg, h: h, errs: make(chan error, 1024), conns: map[*Conn]bool{}}
	s.wg.Add(1)
	go s.accept(tc)
	tb.Cleanup(s.stop)
	return s
}

func (s *testServer) accept(tc *tls.Config) {
	defer s.wg.Done()
	for {
		nc, err := s.l.Accept()
		if err != nil {
			return
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			if tc != nil {
				t := tls.Server(nc, tc)
				if t.Handshake() != nil {
					nc.Close()
					return
				}
				nc = t
			}
			c := NewConn(nc, s.cfg, s.h)
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			err := c.Serve()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			select {
			case s.errs <- err:
			default:
			}
		}()
	}
}

func (s *testServer) each(f func(*Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		f(c)
	}
}

func (s *testServer) stop() {
	s.l.Close()
	s.each(func(c *Conn) { go c.Close() })
	s.wg.Wait()
}

func (s *testServer) addr() string { return s.l.Addr().String() }

// serveErr waits for a connection's end.
func (s *testServer) serveErr() error {
	s.tb.Helper()
	select {
	case err := <-s.errs:
		return err
	case <-time.After(20 * time.Second):
		s.tb.Fatal("Serve did not return")
		return nil
	}
}

// testTLS makes configurations of both sides with a fresh certificate.
func testTLS(tb testing.TB) (server, client *tls.Config) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			NextProtos:   []string{"h2"}, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true,
		}, &tls.Config{
			RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"},
		}
}

// testHandler serves by path:
//
//	/echo        the body, as it comes in, then the trailers
//	/bytes/N     N bytes of pattern
//	/count       reads the body and says how long it was
//	/hang        waits until the stream is cancelled
//	/panic       panics
//	/early       answers without reading the body
//	/interim     100 first, then as /count
//	/fields      the request as text
//	anything     reads the body, "hello"
func testHandler(s *Stream) {
	path := string(s.Path())
	kind, arg, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch kind {
	case "echo":
		echo(s)
	case "bytes":
		n, _ := strconv.Atoi(arg)
		sendPattern(s, n)
	case "hang":
		gone := make(chan struct{})
		s.SetCancel(func() { close(gone) })
		<-gone
	case "panic":
		panic("as asked")
	case "early":
		answer(s, 403, "early")
	case "interim":
		s.BeginHeaders(100)
		if s.EndHeaders(false) != nil {
			return
		}
		count(s)
	case "count":
		count(s)
	case "fields":
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s %s %s %s\n", s.Method(), s.Scheme(), s.Authority(), s.Path())
		for _, f := range s.Fields() {
			fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
		}
		answer(s, 200, b.String())
	default:
		if _, err := drainBody(s); err == nil {
			answer(s, 200, "hello")
		}
	}
}

func drainBody(s *Stream) (int, error) {
	var buf [4096]byte
	total := 0
	for {
		n, err := s.Read(buf[:])
		total += n
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func count(s *Stream) {
	n, err := drainBody(s)
	if err != nil {
		return
	}
	answer(s, 200, strconv.Itoa(n))
}

func answer(s *Stream, status int, text string) {
	s.BeginHeaders(status)
	s.AddHeader([]byte("Content-Type"), []byte("text/plain"))
	s.AddHeader([]byte("content-length"), strconv.AppendInt(nil, int64(len(text)), 10))
	if string(s.Method()) == "HEAD" {
		s.EndHeaders(true)
		return
	}
	if s.EndHeaders(len(text) == 0) == nil && len(text) > 0 {
		s.Write([]byte(text), true)
	}
}

func echo(s *Stream) {
	s.BeginHeaders(200)
	if s.EndHeaders(false) != nil {
		return
	}
	buf := make([]byte, 20000)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if _, err := s.Write(buf[:n], false); err != nil {
				return
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
	}
	if t := s.Trailers(); len(t) > 0 {
		s.WriteTrailers(t)
		return
	}
	s.Write(nil, true)
}

// pattern is what byte i of a test body is.
func pattern(i int) byte { return byte(i ^ i>>8 ^ i>>16) }

func sendPattern(s *Stream, n int) {
	s.BeginHeaders(200)
	if s.EndHeaders(n == 0) != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for at := 0; at < n; {
		m := min(len(buf), n-at)
		for i := range m {
			buf[i] = pattern(at + i)
		}
		if _, err := s.Write(buf[:m], at+m == n); err != nil {
			return
		}
		at += m
	}
}

// rawClient speaks frames.
type rawClient struct {
	tb  testing.TB
	nc  net.Conn
	fr  *h2.Framer
	enc *hpack.Encoder
	hb  bytes.Buffer
	dec *hpack.Decoder
}

// dialRaw sends the preface and empty SETTINGS and acknowledges ours.
func dialRaw(tb testing.TB, addr string, settings ...h2.Setting) *rawClient {
	tb.Helper()
	rc := dialBare(tb, addr)
	rc.send([]byte(h2.ClientPreface))
	rc.fr.WriteSettings(settings...)
	rc.fr.WriteSettingsAck()
	return rc
}

func dialBare(tb testing.TB, addr string) *rawClient {
	tb.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	rc := &rawClient{tb: tb, nc: nc, fr: h2.NewFramer(nc, nc)}
	rc.fr.AllowIllegalWrites = true
	rc.enc = hpack.NewEncoder(&rc.hb)
	rc.dec = hpack.NewDecoder(4096, nil)
	rc.dec.SetEmitFunc(func(hpack.HeaderField) {})
	return rc
}

func (rc *rawClient) send(b []byte) {
	rc.tb.Helper()
	if _, err := rc.nc.Write(b); err != nil {
		rc.tb.Logf("send: %v", err)
	}
}

// block encodes name, value, name, value …
func (rc *rawClient) block(fields ...string) []byte {
	rc.hb.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		rc.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(rc.hb.Bytes())
}

func (rc *rawClient) request(id uint32, end bool, fields ...string) {
	rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: rc.block(fields...), EndStream: end, EndHeaders: true})
}

// get is the fields of a good request.
func get(path string, more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", path}, more...)
}

func post(path string, more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", path}, more...)
}

// outcome is the end of a stream or connection as the client sees it.
type outcome struct {
	status string // of the final HEADERS
	body   int
	end    bool // END_STREAM
	reset  h2.ErrCode
	isRST  bool
	goaway h2.ErrCode
	isGone bool // GOAWAY with an error, or the end of the connection
}

func (o outcome) String() string {
	switch {
	case o.isGone:
		return "conn " + o.goaway.String()
	case o.isRST:
		return "stream " + o.reset.String()
	}
	return o.status
}

// await reads until the stream or the connection has ended.
func (rc *rawClient) await(id uint32) outcome {
	rc.tb.Helper()
	var o outcome
	for {
		f, err := rc.fr.ReadFrame()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				rc.tb.Fatalf("stream %d: no outcome in time", id)
			}
			o.isGone = true
			return o
		}
		switch f := f.(type) {
		case *h2.HeadersFrame:
			fields, err := rc.dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				rc.tb.Fatalf("decode header block: %v", err)
			}
			if f.StreamID != id {
				continue
			}
			for _, hf := range fields {
				if hf.Name == ":status" {
					o.status = hf.Value
				}
			}
			if f.StreamEnded() {
				o.end = true
				return o
			}
		case *h2.DataFrame:
			if f.StreamID == id {
				o.body += len(f.Data())
				if f.StreamEnded() {
					o.end = true
					return o
				}
			}
		case *h2.RSTStreamFrame:
			if f.StreamID == id {
				o.isRST, o.reset = true, f.ErrCode
				return o
			}
		case *h2.GoAwayFrame:
			o.isGone, o.goaway = true, f.ErrCode
			return o
		}
	}
}

// TestServeForTools is a server for h2spec, h2load and nghttp: it runs until interrupted when XGW_H2_LISTEN is set.
func TestServeForTools(t *testing.T) {
	addr := os.Getenv("XGW_H2_LISTEN")
	if addr == "" {
		t.Skip("a server for tools: set XGW_H2_LISTEN")
	}
	server, _ := testTLS(t)
	if os.Getenv("XGW_H2_CLEAR") != "" {
		server = nil
	}
	s := startServer(t, addr, Config{}, handlerFunc(testHandler), server)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	go func() {
		for err := range s.errs {
			if err != nil && os.Getenv("XGW_H2_VERBOSE") != "" {
				t.Log(err)
			}
		}
	}()
	<-stop
	signal.Stop(stop)
}
