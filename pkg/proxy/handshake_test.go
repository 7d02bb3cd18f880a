// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// authority signs certificates of tests.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	next int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, next: 2}
	a.cert = a.sign(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, key.Public()).Leaf
	return a
}

func (a *authority) sign(c *x509.Certificate, public crypto.PublicKey) tls.Certificate {
	a.t.Helper()
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, Leaf: leaf}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func ecdsaKey(t testing.TB) crypto.Signer {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var rsaKey = sync.OnceValue(func() crypto.Signer {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func (a *authority) server(key crypto.Signer, names ...string) tls.Certificate {
	c := a.sign(&x509.Certificate{SerialNumber: big.NewInt(a.next), DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, key.Public())
	a.next++
	c.PrivateKey = key
	return c
}

func (a *authority) client(name string, change func(*x509.Certificate)) tls.Certificate {
	key := ecdsaKey(a.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: name, Organization: []string{"Ümlaut, Inc"}},
		DNSNames: []string{name + ".example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(template)
	}
	c := a.sign(template, key.Public())
	a.next++
	c.PrivateKey = key
	return c
}

// secure makes the gateway's listener one with these secrets.
func (g *gateway) secure(s policy.Listener, secrets Secrets) {
	g.Helper()
	s.Address, s.TLS = testListener, true
	snap := g.snapshot
	snap.Listeners = []policy.Listener{s}
	p, err := g.worker.Prepare(&snap, []Secrets{secrets})
	if err != nil {
		g.Fatal(err)
	}
	g.worker.Commit(p)
	g.snapshot = snap
}

// say makes one exchange over a new connection, so that the handshake is over at both ends.
func (g *gateway) say(c *tls.Config, fields string) (reply string, state tls.ConnectionState, err error) {
	d := &net.Dialer{Timeout: 30 * time.Second}
	tc, err := tls.DialWithDialer(d, "tcp", g.address, c)
	if err != nil {
		return "", state, err
	}
	defer tc.Close()
	_ = tc.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err = io.WriteString(tc, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+fields+"\r\n"); err != nil {
		return "", state, err
	}
	b, err := io.ReadAll(tc)
	return string(b), tc.ConnectionState(), err
}

// tell is an upstream that answers with what it was told of the client's certificate.
func tell(w http.ResponseWriter, r *http.Request) {
	for _, n := range []string{"Subject", "Names", "Fingerprint"} {
		fmt.Fprintf(w, "%s=%s\n", n, strings.Join(r.Header.Values("X-Client-Cert-"+n), "|"))
	}
	fmt.Fprintf(w, "proto=%s other=%s%s", r.Header.Get("X-Forwarded-Proto"), r.Header.Get("Client-Cert"), r.Header.Get("X-Client-Cert-Verified"))
}

// Versions, curves, kinds of certificates and names, as real clients ask for them.
func TestHandshakes(t *testing.T) {
	a := newAuthority(t)
	g := newGateway(t, []string{httpUpstream(t, tell)}, nil)
	g.secure(policy.Listener{HTTP2: true, MinTLS: "1.2"}, Secrets{Certificates: []tls.Certificate{
		a.server(rsaKey(), "both.example"), a.server(ecdsaKey(t), "both.example"),
		a.server(ecdsaKey(t), "*.wild.example", "Upper.example"), a.server(ecdsaKey(t), "one.wild.example"),
	}})
	suite := func(s uint16) func(*tls.Config) {
		return func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{s} }
	}
	curve := func(id tls.CurveID) func(*tls.Config) {
		return func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{id} }
	}
	for _, row := range []struct {
		what, name string
		change     func(*tls.Config)
		names      string // of the certificate that is got; "": refused
		kind       string
		curve      tls.CurveID
		outcome    zone.HandshakeOutcome
		counted    zone.Counter
	}{
		{"usual", "both.example", nil, "both.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.AgreedHybrid},
		{"no name", "", nil, "both.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.ServerNameAbsent},
		{"unknown name", "nobody.example", nil, "both.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.ServerNameUnknown},
		{"wildcard", "two.wild.example", nil, "*.wild.example,Upper.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.ServerNameKnown},
		{"exact before wildcard", "one.wild.example", nil, "one.wild.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.ServerNameKnown},
		{"two labels", "a.two.wild.example", nil, "both.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.ServerNameUnknown},
		{"case", "uPPER.example", nil, "*.wild.example,Upper.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.ServerNameKnown},
		{"X25519", "both.example", curve(tls.X25519), "both.example", "ECDSA", tls.X25519, zone.HandshakeFull, zone.AgreedClassical},
		{"P-256", "both.example", curve(tls.CurveP256), "both.example", "ECDSA", tls.CurveP256, zone.HandshakeFull, zone.AgreedClassical},
		{"1.2 ECDSA", "both.example", suite(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), "both.example", "ECDSA", tls.X25519, zone.HandshakeFull, zone.AgreedTLS12},
		{"1.2 RSA", "both.example", suite(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256), "both.example", "RSA", tls.X25519, zone.HandshakeFull, zone.OfferedTLS12},
		{"1.2 RSA, no name", "", suite(tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256), "both.example", "RSA", tls.X25519, zone.HandshakeFull, zone.AgreedTLS12},
		{"CBC", "both.example", suite(tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA), "", "", 0, zone.HandshakeCipher, zone.OfferedTLS12},
		{"RSA key exchange", "both.example", suite(tls.TLS_RSA_WITH_AES_128_GCM_SHA256), "", "", 0, zone.HandshakeCipher, zone.OfferedTLS12},
		{"1.1", "both.example", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 }, "", "", 0, zone.HandshakeVersion, zone.OfferedOlder},
		{"h2", "both.example", func(c *tls.Config) { c.NextProtos = []string{"http/1.1", "h2"} }, "", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.OfferedHTTP2},
		{"no protocol", "both.example", func(c *tls.Config) { c.NextProtos = nil }, "both.example", "ECDSA", tls.X25519MLKEM768, zone.HandshakeFull, zone.OfferedNoProtocol},
	} {
		t.Run(row.what, func(t *testing.T) {
			c := &tls.Config{ServerName: row.name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
			if row.change != nil {
				row.change(c)
			}
			before, counted := g.slab.LoadHandshake(row.outcome), g.slab.Load(row.counted)
			_, state, err := g.say(c, "")
			eventually(t, "counted as "+row.outcome.String(), func() bool {
				return g.slab.LoadHandshake(row.outcome) > before && g.slab.Load(row.counted) > counted
			})
			if n, m := g.slab.LoadHandshake(row.outcome)-before, g.slab.Load(row.counted)-counted; n != 1 || m != 1 {
				t.Errorf("%s counted %d times, %s %d times", row.outcome, n, row.counted, m)
			}
			if row.names == "" {
				if err == nil && row.what != "h2" {
					t.Errorf("accepted: %+v", state)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			leaf := state.PeerCertificates[0]
			if got := strings.Join(leaf.DNSNames, ","); got != row.names || leaf.PublicKeyAlgorithm.String() != row.kind || state.CurveID != row.curve {
				t.Errorf("certificate %s, %s, curve %s; want %s, %s, %s", got, leaf.PublicKeyAlgorithm, state.CurveID, row.names, row.kind, row.curve)
			}
		})
	}
}

// Who a client has proved to be reaches routes and the upstream, through resumption, too; what
// it says of that does not.
func TestClientCertificates(t *testing.T) {
	servers, clients, others := newAuthority(t), newAuthority(t), newAuthority(t)
	g := newGateway(t, []string{httpUpstream(t, tell)}, nil)
	secrets := Secrets{Certificates: []tls.Certificate{servers.server(ecdsaKey(t), "localhost")}, ClientCAs: clients.pool()}
	good := clients.client("alice", nil)
	expired := clients.client("bob", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	forServers := clients.client("carol", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	foreign := others.client("alice", nil)
	forged := "X-Client-Cert-Subject: CN=root\r\nx-client-cert-names: DNS:root\r\nX-Client-Cert-Verified: yes\r\nClient-Cert: :Zm9v:\r\nX_Client_Cert_Subject: CN=root\r\n"
	for _, mode := range []string{"off", "request", "require"} {
		g.secure(policy.Listener{ClientCertificates: mode}, secrets)
		for _, row := range []struct {
			what  string
			cert  *tls.Certificate
			taken map[string]bool
			told  bool
		}{
			{"none", nil, map[string]bool{"off": true, "request": true}, false},
			{"good", &good, map[string]bool{"off": true, "request": true, "require": true}, true},
			{"expired", &expired, map[string]bool{"off": true}, false},
			{"for servers", &forServers, map[string]bool{"off": true}, false},
			{"of others", &foreign, map[string]bool{"off": true}, false},
		} {
			t.Run(mode+" "+row.what, func(t *testing.T) {
				c := &tls.Config{ServerName: "localhost", RootCAs: servers.pool(), ClientSessionCache: tls.NewLRUClientSessionCache(2)}
				if row.cert != nil {
					c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return row.cert, nil }
				}
				before := g.slab.LoadHandshake(zone.HandshakeClient)
				for i := range 2 { // the second one resumes
					reply, state, err := g.say(c, forged)
					if !row.taken[mode] {
						if err == nil {
							t.Errorf("served: %s", reply)
						}
						eventually(t, "counted", func() bool { return g.slab.LoadHandshake(zone.HandshakeClient) == before+1+uint64(i) })
						continue
					}
					if err != nil || state.DidResume != (i == 1) {
						t.Fatalf("%v, resumed %v", err, state.DidResume)
					}
					told := "Subject=\nNames=\nFingerprint=\n"
					if row.told && mode != "off" {
						told = `Subject=CN=alice,O=\C3\9Cmlaut\, Inc` + "\nNames=DNS:alice.example\nFingerprint="
					}
					if !strings.Contains(reply, told) || !strings.HasSuffix(reply, "proto=https other=") {
						t.Errorf("exchange %d: upstream was told\n%s", i, reply)
					}
				}
			})
		}
	}
	// An authority that is taken back vouches for no session that would be resumed.
	c := &tls.Config{ServerName: "localhost", RootCAs: servers.pool(), Certificates: []tls.Certificate{good}, ClientSessionCache: tls.NewLRUClientSessionCache(2)}
	if _, _, err := g.say(c, ""); err != nil {
		t.Fatal(err)
	}
	g.secure(policy.Listener{ClientCertificates: "require"}, Secrets{Certificates: secrets.Certificates, ClientCAs: others.pool()})
	if reply, _, err := g.say(c, ""); err == nil {
		t.Errorf("served under an authority that is gone: %s", reply)
	}
}

// Tickets of an older key are good while it is kept, and no longer.
func TestTicketKeys(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, tell)}, nil)
	c := g.tlsConfig("http/1.1")
	c.ClientSessionCache = tls.NewLRUClientSessionCache(2)
	say := func() bool {
		_, s, err := g.say(c, "")
		if err != nil {
			t.Fatal(err)
		}
		return s.DidResume
	}
	one, two, three := [32]byte{1}, [32]byte{2}, [32]byte{3}
	g.worker.SetTicketKeys([][32]byte{one})
	say()
	cache := c.ClientSessionCache
	session, _ := cache.Get("localhost")
	g.worker.SetTicketKeys([][32]byte{two, one})
	if !say() {
		t.Error("a ticket of the key before is refused")
	}
	s := g.snapshot
	if err := g.worker.Apply(&s, g.certs); err != nil { // has the newest keys
		t.Fatal(err)
	}
	if !say() {
		t.Error("a snapshot forgets ticket keys")
	}
	g.worker.SetTicketKeys([][32]byte{three, two})
	cache.Put("localhost", session)
	if say() {
		t.Error("a ticket of a key that is gone is accepted")
	}
	if full, resumed := g.slab.LoadHandshake(zone.HandshakeFull), g.slab.LoadHandshake(zone.HandshakeResumed); full != 2 || resumed != 2 {
		t.Errorf("%d full and %d resumed handshakes counted, want 2 and 2", full, resumed)
	}
}

// Over the budget full handshakes are refused, and only they.
func TestHandshakeBudget(t *testing.T) {
	const rate = 2
	began := time.Now()
	g := newGateway(t, []string{httpUpstream(t, tell)}, func(s *policy.Snapshot) { s.Handshakes.PerSecond = rate })
	open := g.raw() // an established connection
	c := g.tlsConfig("http/1.1")
	c.ClientSessionCache = tls.NewLRUClientSessionCache(2)
	if _, _, err := g.say(c, ""); err != nil {
		t.Fatal(err)
	}
	refused, passed := 0, 2
	for end := time.Now().Add(30 * time.Second); refused < 8 && time.Now().Before(end); {
		if _, _, err := g.say(g.tlsConfig("http/1.1"), ""); err != nil {
			refused++
		} else {
			passed++
		}
		if _, s, err := g.say(c, ""); err != nil || !s.DidResume {
			t.Errorf("resumption beside a flood: %v", err)
		}
		open.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if r, _ := open.reply("GET"); r.StatusCode != 200 {
			t.Errorf("established connection: %d", r.StatusCode)
		}
	}
	if took := time.Since(began); refused < 8 || float64(passed) > rate+rate*took.Seconds()+1 {
		t.Errorf("%d refused, %d passed in %v", refused, passed, took)
	}
	eventually(t, "the refused are counted", func() bool { return g.slab.LoadHandshake(zone.HandshakeBudget) == uint64(refused) })
	// A void ticket is no way around it: it is charged like a full handshake. One that passes
	// gets a ticket that is good, and void the next time.
	before, tries := g.slab.LoadHandshake(zone.HandshakeBudget), byte(0)
	eventually(t, "void tickets are charged", func() bool {
		tries++
		g.worker.SetTicketKeys([][32]byte{{99, tries}})
		_, _, _ = g.say(c, "")
		return g.slab.LoadHandshake(zone.HandshakeBudget) > before
	})
	eventually(t, "the budget fills", func() bool { return g.slab.LoadGauge(zone.GaugeHandshakesLeft) == rate })
	if _, _, err := g.say(g.tlsConfig("http/1.1"), ""); err != nil {
		t.Errorf("after a second: %v", err)
	}
}

// Clients that begin a handshake and say no more make way for others.
func TestStalledHandshakes(t *testing.T) {
	var g *gateway
	for round := 1; ; round++ {
		began := time.Now()
		g = newGateway(t, []string{httpUpstream(t, tell)}, func(s *policy.Snapshot) { s.Handshakes.Concurrent = 4 })
		for range 4 {
			c, err := net.Dial("tcp", g.address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			stalled := tls.Client(&oneFlight{Conn: c}, g.tlsConfig("http/1.1"))
			go stalled.Handshake()
		}
		eventually(t, "all of the room is taken", func() bool {
			return g.slab.LoadGauge(zone.GaugeHandshakesLeft) == 0 && g.slab.Load(zone.OfferedTLS13) == 4
		})
		_, _, err := g.say(g.tlsConfig("http/1.1"), "")
		if err != nil {
			break
		}
		// On a machine that is busy the others may be old enough by then.
		if took := time.Since(began); took < time.Duration(stallTime) || round == 5 {
			t.Fatalf("a handshake over the bound is accepted at once, %v after the first began", took)
		}
	}
	eventually(t, "a stalled handshake makes way", func() bool {
		time.Sleep(100 * time.Millisecond)
		_, _, err := g.say(g.tlsConfig("http/1.1"), "")
		return err == nil
	})
	if n := g.slab.LoadHandshake(zone.HandshakeBudget); n < 2 {
		t.Errorf("%d counted: want the refused and the one that made way", n)
	}
}

// oneFlight is a connection on which only the ClientHello gets through.
type oneFlight struct {
	net.Conn
	sent bool
}

func (o *oneFlight) Write(p []byte) (int, error) {
	if o.sent {
		return len(p), nil
	}
	o.sent = true
	return o.Conn.Write(p)
}

// In the clear: HTTP/1.1, and HTTP/2 for those who begin with it where that is allowed.
func TestCleartext(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2 %v", h2), func(t *testing.T) {
			g := newGateway(t, []string{httpUpstream(t, tell)}, func(s *policy.Snapshot) {
				s.Listeners = []policy.Listener{{Address: testListener, HTTP2: h2}}
			})
			tr := &http.Transport{Protocols: new(http.Protocols)}
			tr.Protocols.SetUnencryptedHTTP2(true)
			defer tr.CloseIdleConnections()
			r, err := (&http.Client{Transport: tr}).Get("http://" + g.address + "/")
			if h2 != (err == nil) {
				t.Fatalf("HTTP/2 by prior knowledge: %v", err)
			}
			if err == nil {
				b, _ := io.ReadAll(r.Body)
				r.Body.Close()
				if r.ProtoMajor != 2 || !strings.HasSuffix(string(b), "proto=http other=") {
					t.Errorf("HTTP/%d, %s", r.ProtoMajor, b)
				}
			}
			for _, request := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "PRI * HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"} {
				c, err := net.Dial("tcp", g.address)
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				for i := range request { // in pieces, as they may come
					if i < 30 {
						_, _ = io.WriteString(c, request[i:i+1])
						time.Sleep(time.Millisecond)
						continue
					}
					_, _ = io.WriteString(c, request[i:])
					break
				}
				b := make([]byte, 12)
				_, err = io.ReadFull(c, b)
				want := "HTTP/1.1 200"
				if strings.HasPrefix(request, "PRI") {
					want = "HTTP/1.1 " // refused
				}
				if strings.HasPrefix(request, "PRI") && h2 {
					want = "\x00" // closed without a word
				}
				if err != nil && want != "\x00" || !strings.HasPrefix(string(b), want) {
					t.Errorf("%q: %q, %v", request, b, err)
				}
				c.Close()
			}
			if n := g.slab.LoadHandshake(zone.HandshakeFull); n != 0 {
				t.Errorf("%d handshakes of TLS", n)
			}
		})
	}
}

// BenchmarkHandshake is a full handshake, client and gateway in one process.
func BenchmarkHandshake(b *testing.B) {
	g := newGateway(b, []string{"127.0.0.1:1"}, nil)
	bare, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: g.certs, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	go func() {
		for {
			c, err := bare.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = c.Read(make([]byte, 1)); c.Close() }()
		}
	}()
	for name, address := range map[string]string{"gateway": g.address, "crypto-tls": bare.Addr().String()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, err := tls.Dial("tcp", address, g.tlsConfig("http/1.1"))
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

// BenchmarkHello is what looking at a ClientHello costs.
func BenchmarkHello(b *testing.B) {
	z := newStoppedGateway(b, nil)
	l := &listener{certificates: newDirectory(z.certs)}
	w := New(Options{Slab: z.slab, Core: -1, Log: slog.New(slog.DiscardHandler)})
	defer close(w.stop)
	offer := &tls.ClientHelloInfo{ServerName: "localhost", SupportedProtos: []string{"h2", "http/1.1"}, SupportedVersions: []uint16{tls.VersionTLS13, tls.VersionTLS12}}
	b.ReportAllocs()
	for b.Loop() {
		l.countOffer(w.slab, offer)
	}
}
