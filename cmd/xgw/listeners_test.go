// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/proxy"
)

// listenersYAML is a configuration with these listeners and one route.
func listenersYAML(dir, upstream, listeners, more string) string {
	return fmt.Sprintf(`listeners:
%s
telemetry: {address: "127.0.0.1:0"}
admin_api: {address: off}
routes:
  - {name: all, path: /, upstream: back}
upstreams:
  - {name: back, servers: [%q]}
log: {access: off}
state: %s
workers: 2
pin: false
%s`, listeners, upstream, dir, more)
}

// makeFiles writes a certificate and its key for the name.
func makeFiles(t *testing.T, dir, file, name string) {
	t.Helper()
	chain, key, err := proxy.MakeCertificate([]string{name}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{file + ".pem": chain, file + ".key": key} {
		if err := os.WriteFile(filepath.Join(dir, path), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// stapleFor writes an OCSP reply for a certificate of makeFiles, which is its own authority.
func stapleFor(t *testing.T, dir, file string, until time.Time) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, file+".pem"), filepath.Join(dir, file+".key"))
	if err != nil {
		t.Fatal(err)
	}
	reply, err := ocsp.CreateResponse(pair.Leaf, pair.Leaf, ocsp.Response{
		Status: ocsp.Good, SerialNumber: pair.Leaf.SerialNumber, ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until,
	}, pair.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, filepath.Join(dir, file+".ocsp"), string(reply))
}

// Real clients with TLS and without, and HTTP/2 by prior knowledge where that is allowed.
func TestListeners(t *testing.T) {
	dir := t.TempDir()
	makeFiles(t, dir, "a", "a.example")
	makeFiles(t, dir, "b", "b.example")
	stapleFor(t, dir, "b", time.Now().Add(time.Hour))
	g := startGateway(t, startHere, "listeners", dir, listenersYAML(dir, upstream(t), `  - address: "127.0.0.1:0"
    min_version: "1.2"
    certificates: [{certificate: a.pem, key: a.key}, {certificate: b.pem, key: b.key, ocsp: b.ocsp}]
  - {address: "127.0.0.2:0", tls: off}
  - {address: "127.0.0.3:0", tls: off, http2: on}`, ""))
	secure, plain, h2c := g.listeners[0], g.listeners[1], g.listeners[2]
	format := "%{http_version} %{http_code} %{size_download}"
	host, port, err := net.SplitHostPort(h2c)
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range []struct {
		name string
		args []string
		want string // regular expression on the output
	}{
		{"curl", []string{"-s", "-o", "/dev/null", "-w", format, "http://" + plain + "/bytes/1000"}, `^1\.1 200 1000$`},
		{"curl", []string{"-s", "-o", "/dev/null", "-w", format, "--http2-prior-knowledge", "http://" + plain + "/bytes/1000"}, `^[01.]+ (000|400|505) `},
		{"curl", []string{"-s", "-o", "/dev/null", "-w", format, "--http2", "http://" + h2c + "/bytes/1000"}, `^1\.1 200 1000$`}, // Upgrade: h2c is not taken up
		{"curl", []string{"-s", "-o", "/dev/null", "-w", format, "http://" + h2c + "/bytes/1000"}, `^1\.1 200 1000$`},
		{"curl", []string{"-s", "-o", "/dev/null", "-w", format, "--http2-prior-knowledge", "http://" + h2c + "/bytes/1000000"}, `^2 200 1000000$`},
		{"curl", []string{"-sk", "-o", "/dev/null", "-w", format, "--tls-max", "1.2", "https://" + secure + "/bytes/1000"}, `^2 200 1000$`},
		{"h2load", []string{"-n", "2000", "-c", "4", "-m", "10", "http://" + h2c + "/bytes/1000"}, `2000 succeeded, 0 failed, 0 errored`},
		{"h2spec", []string{"-o", "10", "-S", "-h", host, "-p", port}, `146 tests, 146 passed, 0 skipped, 0 failed`},
		{"openssl", []string{"s_client", "-connect", secure, "-servername", "b.example", "-alpn", "h2"}, `(?s)CN ?= ?b.example.*ALPN protocol: h2`},
		{"openssl", []string{"s_client", "-connect", secure, "-servername", "b.example", "-status"}, `(?s)OCSP Response Status: successful.*Cert Status: good`},
		{"openssl", []string{"s_client", "-connect", secure, "-servername", "b.example", "-status", "-tls1_2"}, `(?s)OCSP Response Status: successful.*Cert Status: good`},
		{"openssl", []string{"s_client", "-connect", secure, "-servername", "a.example", "-status"}, `OCSP response: no response sent`},
		{"openssl", []string{"s_client", "-connect", secure, "-servername", "c.example", "-groups", "P-256"}, `(?s)CN ?= ?a.example.*(P-256|prime256v1)`},
		{"openssl", []string{"s_client", "-connect", secure, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"}, `Cipher is ECDHE-ECDSA-AES128-GCM-SHA256`},
		{"openssl", []string{"s_client", "-connect", secure, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"}, `alert handshake failure`},
		{"openssl", []string{"s_client", "-connect", secure, "-tls1_1"}, `(?i)alert|unsupported protocol|no protocols`},
	} {
		t.Run(fmt.Sprintf("%s %d", row.name, i), func(t *testing.T) {
			out, _ := exec.Command(tool(t, row.name), row.args...).CombinedOutput()
			if !regexp.MustCompile(row.want).Match(out) {
				t.Errorf("want %s in:\n%s", row.want, out)
			}
		})
	}
}

// Certificates, ticket keys and listeners change under load, and nobody is refused.
func TestSecretsChangeUnderLoad(t *testing.T) {
	const instance = "secrets"
	dir := t.TempDir()
	makeFiles(t, dir, "a", "a.example")
	keys := filepath.Join(dir, "tickets")
	rewrite(t, keys, strings.Repeat("01", 32)+"\n")
	up := upstream(t)
	first := `  - {address: "127.0.0.1:0", certificate: a.pem, key: a.key}`
	more := "session_tickets: {file: tickets}\n"
	g := startGateway(t, startHere, instance, dir, listenersYAML(dir, up, first, more))
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	var served, resumed atomic.Int64
	t.Cleanup(func() { cancel(); load.Wait() })
	for range 2 {
		load.Go(func() {
			sessions := tls.NewLRUClientSessionCache(1)
			for ctx.Err() == nil {
				tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "a.example", ClientSessionCache: sessions}}
				r, err := (&http.Client{Transport: tr}).Get("https://" + g.address + "/bytes/100")
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, r.Body)
				r.Body.Close()
				tr.CloseIdleConnections()
				if err != nil || r.StatusCode != 200 {
					t.Errorf("status %d, %v", r.StatusCode, err)
				}
				served.Add(1)
				if r.TLS.DidResume {
					resumed.Add(1)
				}
			}
		})
	}
	serial := func() string {
		c, err := tls.Dial("tcp", g.address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return hex.EncodeToString(c.ConnectionState().PeerCertificates[0].SerialNumber.Bytes())
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for range 200 {
			if is() {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("never: %s\n%s", what, g.log)
	}
	before := serial()
	makeFiles(t, dir, "a", "a.example")
	until("a new certificate is taken over", func() bool { return serial() != before })
	after := serial()
	rewrite(t, filepath.Join(dir, "a.pem"), "half of a certifi")
	until("a bad file is told", func() bool { return strings.Contains(g.log.String(), "the last good one stays in use") })
	if serial() != after {
		t.Error("the last good certificate did not stay")
	}
	rewrite(t, keys, strings.Repeat("02", 32)+"\n"+strings.Repeat("01", 32)+"\n")
	until("new ticket keys are read", func() bool { return strings.Contains(g.log.String(), "ticket keys read anew") })
	makeFiles(t, dir, "a", "a.example")
	until("a third certificate", func() bool { s := serial(); return s != before && s != after })

	path := filepath.Join(dir, "gateway.yaml")
	ctl := admin.NewClient(admin.SocketPath(instance))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second := free.Addr().String()
	free.Close()
	rewrite(t, path, listenersYAML(dir, up, first+"\n  - {address: "+second+", tls: off}", more))
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	for range 20 { // both workers
		tr := &http.Transport{DisableKeepAlives: true}
		r, err := (&http.Client{Transport: tr}).Get("http://" + second + "/bytes/10")
		if err != nil {
			t.Fatalf("new listener: %v\n%s", err, g.log)
		}
		got, _ := io.ReadAll(r.Body)
		if r.Body.Close(); len(got) != 10 {
			t.Errorf("the new listener gave %q", got)
		}
	}
	rewrite(t, path, listenersYAML(dir, up, first, more))
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	until("the listener is gone", func() bool {
		c, err := net.DialTimeout("tcp", second, time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	cancel()
	load.Wait()
	if n := served.Load(); n < 100 || resumed.Load() < n*9/10 {
		t.Errorf("%d served, %d of them resumed: want nine of ten", n, resumed.Load())
	}
	t.Logf("%d served, %d resumed", served.Load(), resumed.Load())
	text := g.scrape(t)
	for _, want := range []string{`xgw_tls_agreed_total{property="key_exchange",value="hybrid"}`, `xgw_tls_offered_total{property="server_name",value="known"}`, `xgw_tls_handshakes_left{worker="0"}`} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}
