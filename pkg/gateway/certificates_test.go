// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/xgw-project/xgw/pkg/config"
)

// pair is a certificate by an authority, in PEM, as files have it.
type pair struct {
	leaf, issuer *x509.Certificate
	by           crypto.Signer
	chain, key   []byte
}

func newPair(t testing.TB, serial int64, until time.Time) pair {
	t.Helper()
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k
	}
	sign := func(c, by *x509.Certificate, public any) *x509.Certificate {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), until
		der, err := x509.CreateCertificate(rand.Reader, c, by, public, keys[0])
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true}
	root = sign(root, root, keys[0].Public())
	leaf := sign(&x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"a.example"}}, root, keys[1].Public())
	der, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range []*x509.Certificate{leaf, root} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return pair{leaf, root, keys[0], chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}
}

func (p *pair) staple(t *testing.T, r ocsp.Response) []byte {
	t.Helper()
	if r.SerialNumber == nil {
		r.SerialNumber = p.leaf.SerialNumber
	}
	if r.ThisUpdate.IsZero() {
		r.ThisUpdate = time.Now().Add(-time.Hour)
	}
	b, err := ocsp.CreateResponse(p.issuer, p.issuer, r, p.by)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What cannot be used is refused at a start and at a reload; while the gateway runs, the last
// good one stays, and each fault is said once.
func TestCertificatesThatChange(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	var log bytes.Buffer
	v := newVault(dir, slog.New(slog.NewTextHandler(&log, nil)))
	f := config.Certificate{Chain: at("a.pem"), Key: at("a.key")}
	listeners := []config.Listener{{TLS: true, Certificates: []config.Certificate{f}, ClientCA: at("ca.pem")}}
	one, two := newPair(t, 7, time.Now().Add(time.Hour*24*100)), newPair(t, 8, time.Now().Add(time.Hour*24*5))
	put(t, f.Chain, one.chain)
	put(t, f.Key, one.key)
	if _, err := v.read(listeners, true); err == nil || !strings.Contains(err.Error(), "ca.pem") {
		t.Errorf("without authorities: %v", err)
	}
	put(t, listeners[0].ClientCA, one.chain)
	if got, err := v.read(listeners, true); err != nil || !bytes.Equal(got[0].Certificates[0].Chain, one.chain) {
		t.Fatalf("%v", err)
	}
	put(t, f.Chain, two.chain) // its key is not there yet
	put(t, listeners[0].ClientCA, []byte("rubbish"))
	if _, err := v.read(listeners, true); err == nil || !strings.Contains(err.Error(), "a.key") {
		t.Errorf("half of a pair: %v", err)
	}
	for range 3 {
		got, err := v.read(listeners, false)
		if err != nil || !bytes.Equal(got[0].Certificates[0].Chain, one.chain) || !bytes.Equal(got[0].ClientCA, one.chain) {
			t.Fatalf("the last good one is not kept: %v", err)
		}
	}
	if n := strings.Count(log.String(), "the last good one"); n != 2 {
		t.Errorf("%d complaints, want one of each file:\n%s", n, log.String())
	}
	put(t, f.Key, two.key)
	if got, err := v.read(listeners, false); err != nil || !bytes.Equal(got[0].Certificates[0].Chain, two.chain) {
		t.Fatalf("%v", err)
	}
	for range 2 {
		if _, err := v.read(listeners, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "certificate expires soon"); n != 1 {
		t.Errorf("%d warnings of expiry in a day:\n%s", n, log.String())
	}
}

// A certificate is made where a key was lost, but never through a link that somebody put there.
func TestMadeCertificate(t *testing.T) {
	dir, away := t.TempDir(), filepath.Join(t.TempDir(), "away")
	chain, key := filepath.Join(dir, madeChain), filepath.Join(dir, madeKey)
	put(t, chain, []byte("of a key that was lost"))
	if err := os.Symlink(away, key); err != nil {
		t.Fatal(err)
	}
	v := newVault(dir, slog.New(slog.DiscardHandler))
	if got, err := v.read([]config.Listener{{TLS: true}}, true); err != nil || len(got[0].Certificates) != 1 {
		t.Errorf("%v", err)
	}
	if info, err := os.Lstat(key); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is %v, %v", info, err)
	}
	if _, err := os.Stat(away); err == nil {
		t.Error("the key was written through a link")
	}
}

func TestStaples(t *testing.T) {
	dir := t.TempDir()
	p, other := newPair(t, 7, time.Now().Add(time.Hour*24*100)), newPair(t, 7, time.Now().Add(time.Hour*24*100))
	f := config.Certificate{Chain: filepath.Join(dir, "a.pem"), Key: filepath.Join(dir, "a.key"), OCSP: filepath.Join(dir, "a.ocsp")}
	put(t, f.Chain, p.chain)
	put(t, f.Key, p.key)
	soon := time.Now().Add(time.Hour)
	for _, row := range []struct {
		what  string
		file  []byte
		sent  bool
		error string
	}{
		{"good", p.staple(t, ocsp.Response{Status: ocsp.Good, NextUpdate: soon}), true, ""},
		{"expired", p.staple(t, ocsp.Response{Status: ocsp.Good, ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(-time.Hour)}), false, "expired at"},
		{"of tomorrow", p.staple(t, ocsp.Response{Status: ocsp.Good, ThisUpdate: soon, NextUpdate: soon.Add(time.Hour)}), false, "not valid before"},
		{"revoked", p.staple(t, ocsp.Response{Status: ocsp.Revoked, RevokedAt: time.Now(), NextUpdate: soon}), false, "does not call the certificate good"},
		{"of another certificate", p.staple(t, ocsp.Response{Status: ocsp.Good, SerialNumber: big.NewInt(9), NextUpdate: soon}), false, "not for this certificate"},
		{"of another authority", other.staple(t, ocsp.Response{Status: ocsp.Good, NextUpdate: soon}), false, "not by its issuer"},
		{"no OCSP", []byte("rubbish"), false, "not for this certificate"},
		{"none", nil, false, "no such file"},
	} {
		t.Run(row.what, func(t *testing.T) {
			var log bytes.Buffer
			v := newVault(dir, slog.New(slog.NewTextHandler(&log, nil)))
			os.Remove(f.OCSP)
			if row.file != nil {
				put(t, f.OCSP, row.file)
			}
			got, err := v.read([]config.Listener{{TLS: true, Certificates: []config.Certificate{f}}}, true)
			if err != nil {
				t.Fatal(err)
			}
			if sent := len(got[0].Certificates[0].OCSP) > 0; sent != row.sent {
				t.Errorf("sent %v, want %v", sent, row.sent)
			}
			if row.error != "" && !strings.Contains(log.String(), row.error) {
				t.Errorf("want %q in:\n%s", row.error, log.String())
			}
			if row.sent && !v.nextCheck.Equal(soon.UTC().Truncate(time.Second)) {
				t.Errorf("the next look is at %s, want the staple's end, %s", v.nextCheck, soon)
			}
			if !row.sent {
				return
			}
			v.now = func() time.Time { return soon.Add(time.Minute) } // it ends while the gateway runs
			if got, err = v.read([]config.Listener{{TLS: true, Certificates: []config.Certificate{f}}}, false); err != nil || got[0].Certificates[0].OCSP != nil {
				t.Errorf("a staple is sent after its end: %v", err)
			}
		})
	}
}

// Files are looked at when they have been still for a look.
func TestFileWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	w := &fileWatch{}
	look := func() bool { return w.changed(stamps([]string{path, ""})) }
	w.using(stamps([]string{path}))
	for range 2 {
		if look() {
			t.Error("nothing changed")
		}
	}
	put(t, path, []byte("1"))
	if look() {
		t.Error("it may still be written")
	}
	put(t, path, []byte("12"))
	if look() {
		t.Error("it is still being written")
	}
	if !look() {
		t.Error("a change is missed")
	}
	w.using(stamps([]string{path}))
	if look() {
		t.Error("it is in use")
	}
}

func TestTicketRing(t *testing.T) {
	ring, err := newTicketRing(config.SessionTickets{Rotate: time.Hour}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	first := ring.keys()
	now := time.Now()
	if ring.renew(now) {
		t.Error("keys change before their time")
	}
	now = now.Add(time.Hour + time.Second)
	if !ring.renew(now) {
		t.Fatal("keys do not change")
	}
	second := ring.keys()
	if second[0] != first[1] || second[2] != first[0] || len(second) != 3 {
		t.Error("want the key that was announced, then a new one, then the one before")
	}
	now = now.Add(time.Hour + time.Second)
	ring.renew(now)
	for _, k := range ring.keys() {
		if k == first[0] {
			t.Error("a key lives for more than two intervals")
		}
	}
	path := filepath.Join(t.TempDir(), "keys")
	if _, err := ring.configured(config.SessionTickets{Rotate: time.Hour, File: path}); err == nil {
		t.Error("a file that is missing")
	}
	line := func(b byte) string { return hex.EncodeToString(bytes.Repeat([]byte{b}, 32)) + "\n" }
	put(t, path, []byte("# keys\n"+line(1)))
	fromFile, err := ring.configured(config.SessionTickets{Rotate: time.Hour, File: path})
	if err != nil || len(fromFile.keys()) != 1 {
		t.Fatal(err)
	}
	put(t, path, []byte(line(2)+"half"))
	early, taken := fromFile.renew(now), fromFile.renew(now)
	if early || taken || fromFile.keys()[0][0] != 1 {
		t.Error("a file with a fault is taken")
	}
	put(t, path, []byte(line(2)+line(1)))
	if fromFile.renew(now) || !fromFile.renew(now) || len(fromFile.keys()) != 2 || fromFile.keys()[0][0] != 2 {
		t.Error("a file that changed is not taken")
	}
}

func FuzzTicketKeys(f *testing.F) {
	k := strings.Repeat("0a", 32)
	for _, s := range []string{k, k + "\n" + strings.Repeat("0b", 32) + " # second\n", k + "\n" + k, "", "#", "\r\n" + k + "\r\n", strings.Repeat("x", 64)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseTicketKeys(text)
		if (err == nil) != (len(keys) > 0) || len(keys) > maxTicketKeys {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		if err != nil && strings.Contains(err.Error(), "0a0a") {
			t.Error("the error shows a key")
		}
	})
}
