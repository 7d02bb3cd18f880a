// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/xgw-project/xgw/pkg/policy"
)

func checkOnce(t *testing.T, u *policy.Upstream, s policy.Server) error {
	t.Helper()
	c, err := newChecker(u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), u.Health.Timeout)
	defer cancel()
	return c.check(ctx, &s)
}

// rawServer answers each connection with what says makes of it.
func rawServer(t *testing.T, says func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				says(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
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

func replies(t *testing.T, text string) string {
	return rawServer(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, text)
	})
}

func silent(t *testing.T) string {
	return rawServer(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
}

func TestHTTPCheck(t *testing.T) {
	var host atomic.Value
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host.Store(r.Host)
		if r.URL.RequestURI() != "/health?deep=1" || r.Method != http.MethodGet {
			w.WriteHeader(404)
		}
	}))
	defer good.Close()
	at := good.Listener.Addr().String()
	for _, row := range []struct {
		name, address, path, host string
		least, most               int
		want                      string // "": well
	}{
		{"good", at, "/health?deep=1", "", 200, 200, ""},
		{"by name", at, "/health?deep=1", "app.internal", 200, 200, ""},
		{"another path", at, "/", "", 200, 200, "status 404"},
		{"any answer", at, "/", "", 200, 599, ""},
		{"interim", replies(t, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No\r\n\r\n"), "/", "", 200, 299, ""},
		{"redirect", replies(t, "HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"), "/", "", 200, 299, "status 301"},
		{"an endless body", rawServer(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			_, _ = io.Copy(c, endless{})
		}), "/", "", 200, 200, ""},
		{"an endless head", rawServer(t, func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
			_, _ = io.Copy(c, endless{})
		}), "/", "", 200, 200, "read reply"},
		{"garbage", replies(t, "220 mail.test ESMTP\r\n\r\n"), "/", "", 200, 599, "read reply"},
		{"silence", silent(t), "/", "", 200, 599, "timeout"},
		{"refused", refusing(t), "/", "", 200, 599, "refused"},
	} {
		t.Run(row.name, func(t *testing.T) {
			u := &policy.Upstream{Health: &policy.HealthCheck{
				Protocol: "http", Path: row.path, Host: row.host, StatusMin: row.least, StatusMax: row.most, Timeout: 20 * time.Second,
			}}
			if row.name == "silence" {
				u.Health.Timeout = 500 * time.Millisecond
			}
			err := checkOnce(t, u, policy.Server{Address: row.address})
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v, want %q", err, row.want)
			}
			if want := row.host; want != "" && host.Load() != want {
				t.Errorf("Host %q", host.Load())
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte("x"), len(p))), nil }

func TestTCPCheck(t *testing.T) {
	u := &policy.Upstream{Health: &policy.HealthCheck{Protocol: "tcp", Timeout: 20 * time.Second}}
	if err := checkOnce(t, u, policy.Server{Address: silent(t)}); err != nil {
		t.Error(err)
	}
	if err := checkOnce(t, u, policy.Server{Address: refusing(t)}); err == nil {
		t.Error("nobody listens, and it is well")
	}
}

// By TLS a server has to prove who it is, for all kinds of checks, by the name that its
// address was resolved from.
func TestTLSChecks(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	defer s.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	health := grpchealth.NewServer()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(s.TLS.Clone())))
	grpc_health_v1.RegisterHealthServer(g, health)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	for protocol, address := range map[string]string{"tcp": s.Listener.Addr().String(), "http": s.Listener.Addr().String(), "grpc": l.Addr().String()} {
		for _, row := range []struct {
			name string
			tls  policy.UpstreamTLS
			host string
			well bool
		}{
			{"known authority", policy.UpstreamTLS{Verify: true, CA: ca}, "", true},
			{"the name it was resolved from", policy.UpstreamTLS{Verify: true, CA: ca}, "example.com", true},
			{"another name", policy.UpstreamTLS{Verify: true, CA: ca}, "example.org", false},
			{"its name by configuration", policy.UpstreamTLS{Verify: true, CA: ca, ServerName: "example.com"}, "example.org", true},
			{"unknown authority", policy.UpstreamTLS{Verify: true}, "", false},
			{"not verified", policy.UpstreamTLS{}, "example.org", true},
		} {
			u := &policy.Upstream{TLS: &row.tls, Health: &policy.HealthCheck{Protocol: protocol, Path: "/", StatusMin: 200, StatusMax: 200, Timeout: 20 * time.Second}}
			if err := checkOnce(t, u, policy.Server{Address: address, Host: row.host}); (err == nil) != row.well {
				t.Errorf("%s, %s: %v", protocol, row.name, err)
			}
		}
	}
	if _, err := newChecker(&policy.Upstream{Name: "up", TLS: &policy.UpstreamTLS{CA: []byte("x")}}); err == nil {
		t.Error("authorities that are none")
	}
}

// gRPC's own server, by its own health service.
func TestGRPCCheck(t *testing.T) {
	health := grpchealth.NewServer()
	health.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_SERVING)
	health.SetServingStatus("mail", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	start := func(register bool) string {
		s := grpc.NewServer()
		if register {
			grpc_health_v1.RegisterHealthServer(s, health)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-done })
		return l.Addr().String()
	}
	with, without := start(true), start(false)
	for _, row := range []struct{ name, address, service, want string }{
		{"the server", with, "", ""},
		{"a service", with, "shop", ""},
		{"one that does not serve", with, "mail", "NOT_SERVING"},
		{"unknown", with, strings.Repeat("x", 255), status.Convert(errorOf(codes.NotFound)).Message()},
		{"no health service", without, "", "gRPC status"},
		{"no gRPC", replies(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "", ""},
		{"silence", silent(t), "", ""},
	} {
		u := &policy.Upstream{Health: &policy.HealthCheck{Protocol: "grpc", Service: row.service, Timeout: 20 * time.Second}}
		if row.name == "silence" || row.name == "no gRPC" {
			u.Health.Timeout = time.Second
		}
		err := checkOnce(t, u, policy.Server{Address: row.address, Host: "orders.test"})
		if well := row.name == "the server" || row.name == "a service"; (err == nil) != well {
			t.Errorf("%s: %v", row.name, err)
		} else if !well && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.name, err, row.want)
		}
	}
}

func errorOf(c codes.Code) error { return status.Error(c, "unknown service") }

func FuzzServing(f *testing.F) {
	for _, seed := range []string{"\x00\x00\x00\x00\x02\x08\x01", "\x00\x00\x00\x00\x02\x08\x02", "\x00\x00\x00\x00\x00", "\x01\x00\x00\x00\x02\x08\x01",
		"\x00\x00\x00\x00\x04\x10\x05\x08\x01", "\x00\x00\x00\x00\x02\x0a\x01", "\x00\x00\x00\x00\x01\x08", "", "\x00\xff\xff\xff\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if serving(b) == nil && (len(b) < 7 || b[0] != 0) {
			t.Errorf("%x is SERVING", b)
		}
	})
}

func TestServing(t *testing.T) {
	if err := serving([]byte("\x00\x00\x00\x00\x04\x10\x05\x08\x01")); err != nil {
		t.Errorf("with a field of a later version: %v", err)
	}
	if err := serving([]byte("\x00\x00\x00\x00\x02\x08\x09")); err == nil || err.Error() != "serving status 9" {
		t.Error(err)
	}
}

// A server goes down by its first check or by as many in a row as the configuration says,
// and comes back likewise; what it was outlives a change of the configuration.
func TestRiseAndFall(t *testing.T) {
	var bad atomic.Bool
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if bad.Load() {
			w.WriteHeader(503)
		}
	}))
	defer s.Close()
	address, dead := s.Listener.Addr().String(), silent(t)
	u := policy.Upstream{Name: "up", Servers: policy.ServersAt(address, dead), Health: &policy.HealthCheck{
		Protocol: "http", Path: "/", StatusMin: 200, StatusMax: 200, Interval: 300 * time.Millisecond, Timeout: time.Second, Rise: 3, Fall: 3,
	}}
	w, l := watched(t, u, nil)
	become(t, w, address, dead+"*")
	eventually(t, "a good check", func() bool { return w.Status()[0].Good > 0 })
	if st := w.Status(); !st[0].Checked || !st[0].Up || !st[1].Checked || st[1].Up || st[1].Cause == "" || st[1].Since.IsZero() {
		t.Errorf("%+v", st)
	}
	turn := func(to bool, want ...string) {
		t.Helper()
		bad.Store(to)
		before := asked.Load()
		become(t, w, want...)
		if n := asked.Load() - before; n < 3 || n > 5 {
			t.Errorf("after %d checks, want 3", n)
		}
	}
	turn(true, address+"*", dead+"*")
	other := u
	other.Health = new(policy.HealthCheck)
	*other.Health = *u.Health
	other.Health.Path = "/other"
	list := []policy.Upstream{other}
	if err := w.Adopt(list); err != nil {
		t.Fatal(err)
	}
	w.Keep(list)
	if got := addresses(t, w); got[0] != address+"*" || got[1] != dead+"*" {
		t.Errorf("after a change of the configuration: %v", got)
	}
	turn(false, address, dead+"*")
	for _, want := range []string{"status 503", "is down", "up again"} {
		eventually(t, "the log says "+want, func() bool { return strings.Contains(l.String(), want) })
	}
	// One bad answer between good ones is none too many.
	x := w.watches[list[0].Watch]
	target := x.targets[0]
	for range 2 {
		x.report(target, errors.New("bad"))
		x.report(target, errors.New("bad"))
		x.report(target, nil)
	}
	if target.server.Down {
		t.Error("two bad checks in a row of three took it down")
	}
}

// An upstream that is spoken with by HTTP/2 is asked by it.
func TestHTTP2Check(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.RequestURI != "/health?deep=1" || r.Host != "app.internal" {
			w.WriteHeader(500)
		}
	})}
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	for _, row := range []struct {
		protocol, path string
		well           bool
	}{{"http2", "/health?deep=1", true}, {"http2", "/", false}, {"http1", "/health?deep=1", false}} {
		u := &policy.Upstream{Protocol: row.protocol, Health: &policy.HealthCheck{
			Protocol: "http", Path: row.path, Host: "app.internal", StatusMin: 200, StatusMax: 200, Timeout: 20 * time.Second,
		}}
		if row.protocol == "http1" { // the server waits for more
			u.Health.Timeout = time.Second
		}
		if err := checkOnce(t, u, policy.Server{Address: l.Addr().String()}); (err == nil) != row.well {
			t.Errorf("%s %s: %v", row.protocol, row.path, err)
		}
	}
}
