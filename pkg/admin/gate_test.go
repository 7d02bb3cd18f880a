// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Clients that say nothing, half a handshake or half a head, of one address or of many, keep
// nobody out, and no more of them are open than the gate lets in.
func TestSlowAdminClients(t *testing.T) {
	s := serveRemote(t)
	address := strings.TrimPrefix(s.url, "https://")
	for _, addresses := range []int{1, 200} {
		var open []net.Conn
		for i := range 200 {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 2, 0, byte(1+i%addresses))}}
			c, err := d.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			open = append(open, c)
			switch i % 3 {
			case 1:
				_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1}) // the beginning of a ClientHello
			case 2:
				go func() {
					c := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
					fmt.Fprintf(c, "GET /v1/status HTTP/1.1\r\nHost: ")
				}()
			}
		}
		for range 3 {
			s.client.CloseIdleConnections()
			if got, _ := s.ask(t, "GET", "/v1/status", s.viewer, ""); got != 200 {
				t.Errorf("beside %d slow clients: %d", len(open), got)
			}
		}
	}
}

// The gate lets go of strangers, the oldest first, and of an address that has many its own.
func TestGate(t *testing.T) {
	g := &gate{}
	add := func(from string, proved bool) (*gated, []*gated) {
		c := &gated{Conn: nopConn{}, gate: g, from: netip.MustParseAddr(from)}
		c.proved.Store(proved)
		return c, g.admit(c)
	}
	friend, _ := add("192.0.2.1", true)
	oldest, _ := add("192.0.2.2", false)
	var first *gated
	for i := range maxOfAddress {
		c, out := add("192.0.2.3", false)
		if i == 0 {
			first = c
		}
		if len(out) > 0 {
			t.Fatalf("connection %d pushes out %d", i, len(out))
		}
	}
	if _, out := add("192.0.2.3", false); len(out) != 1 || out[0] != first {
		t.Errorf("one too many of an address pushes out %v", out)
	}
	for i := len(g.open); i < maxConnections; i++ {
		add(fmt.Sprintf("198.51.100.%d", i), false)
	}
	if _, out := add("192.0.2.4", false); len(out) != 1 || out[0] != oldest || len(g.open) != maxConnections {
		t.Errorf("one too many pushes out %v, %d are open", out, len(g.open))
	}
	if err := friend.Close(); err != nil || len(g.open) != maxConnections-1 {
		t.Errorf("%d are open after one has gone, %v", len(g.open), err)
	}
	for _, c := range g.open {
		c.proved.Store(true)
	}
	add("192.0.2.5", true)
	if _, out := add("192.0.2.6", false); len(out) != 1 || len(g.open) != maxConnections {
		t.Errorf("among friends one too many pushes out %v, %d are open", out, len(g.open))
	}
}

type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }

// authority makes certificates of clients.
type authority struct {
	leaf *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.leaf, a.key = a.issue(t, "authority", time.Now().Add(time.Hour))
	return a
}

func (a *authority) issue(t *testing.T, name string, until time.Time) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: a.leaf == nil, BasicConstraintsValid: true,
	}
	parent, signer := a.leaf, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf, key
}

// A certificate that the authority has signed is as good as a token, for who has a role; others
// help nobody, and another site's page cannot use one.
func TestClientCertificates(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ours.leaf)
	g, log := &gateway{events: NewEvents()}, &lockedLog{}
	tokens, _, err := OpenTokens(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS()
	own := pair.TLS.Certificates[0]
	pair.Close()
	r := NewRemote(g, RemoteOptions{
		Tokens: tokens, Certificate: func() (*tls.Certificate, error) { return &own, nil }, Log: slog.New(slog.NewTextHandler(log, nil)),
		Clients: func() (*x509.CertPool, error) { return pool, nil }, Roles: map[string]Role{"alice": Operator, "bob": Viewer},
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = r.Serve(l) }()
	t.Cleanup(func() { r.Close() })
	ask := func(a *authority, name string, until time.Time, path, body string, fields ...string) int {
		t.Helper()
		c := &tls.Config{InsecureSkipVerify: true}
		if a != nil {
			leaf, key := a.issue(t, name, until)
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
		}
		client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}}
		defer client.CloseIdleConnections()
		method := http.MethodPost
		if body == "" {
			method = http.MethodGet
		}
		q, err := http.NewRequestWithContext(t.Context(), method, "https://"+l.Addr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			q.Header.Set(name, value)
		}
		reply, err := client.Do(q)
		if err != nil {
			return 0
		}
		reply.Body.Close()
		return reply.StatusCode
	}
	later := time.Now().Add(time.Hour)
	const drain = `{"drained":true}`
	for _, row := range []struct {
		what string
		got  int
		want int
	}{
		{"an operator looks", ask(ours, "alice", later, "/v1/status", ""), 200},
		{"an operator drains", ask(ours, "alice", later, "/v1/drain", drain), 200},
		{"an operator reloads", ask(ours, "alice", later, "/v1/reload", "{}"), 403},
		{"a viewer looks", ask(ours, "bob", later, "/v1/status", ""), 200},
		{"a viewer drains", ask(ours, "bob", later, "/v1/drain", drain), 403},
		{"who has no role", ask(ours, "carol", later, "/v1/status", ""), 401},
		{"nobody's certificate", ask(nil, "", later, "/v1/status", ""), 401},
		{"another authority's", ask(theirs, "alice", later, "/v1/status", ""), 0},
		{"an expired one", ask(ours, "alice", time.Now().Add(-time.Hour), "/v1/status", ""), 0},
		{"another site's page", ask(ours, "alice", later, "/v1/drain", drain, "Origin: https://evil.example"), 403},
	} {
		if row.got != row.want {
			t.Errorf("%s: %d, want %d", row.what, row.got, row.want)
		}
	}
	if g.drains != 1 || !strings.Contains(log.b.String(), "name=alice") {
		t.Errorf("%d drains, log:\n%s", g.drains, log.b.String())
	}
}
