// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// upstream is the server behind all gateways: the installed nginx.
type upstream struct {
	process *process
	client  *http.Client // to its status, over a unix socket
}

// seen is what the upstream counted since it started.
type seen struct{ connections, requests int64 }

const upstreamConfig = `user root;
worker_processes 1;
daemon off;
pid %[1]s/upstream.pid;
error_log stderr error;
events { worker_connections 8192; }
http {
	access_log off;
	client_body_temp_path %[1]s/upstream-body;
	proxy_temp_path %[1]s/upstream-proxy;
	fastcgi_temp_path %[1]s/upstream-fastcgi;
	uwsgi_temp_path %[1]s/upstream-uwsgi;
	scgi_temp_path %[1]s/upstream-scgi;
	keepalive_timeout 600s;
	keepalive_requests 100000000;
	sendfile on;
	tcp_nopush on;
	open_file_cache max=10 inactive=600s;
	server {
		listen %[2]s backlog=4096;
		location / { return 200 "%[3]s"; }
		location = /large { alias %[1]s/large; }
	}
	server {
		listen unix:%[1]s/status.sock;
		location / { stub_status; }
	}
}
`

func startUpstream(l *lab, p *place) (*upstream, error) {
	text := fmt.Sprintf(upstreamConfig, p.dir, net.JoinHostPort(addrUpstream, upstreamPort), strings.Repeat("x", smallBody))
	err := errors.Join(
		p.write("upstream.conf", text),
		p.write("large", strings.Repeat("y", largeBody)),
		p.write("posted", strings.Repeat("z", postedBody)),
		p.write("post.lua", fmt.Sprintf("wrk.method = \"POST\"\nwrk.body = string.rep(\"z\", %d)\n", postedBody)+wrkDone),
		p.write("get.lua", wrkDone),
	)
	if err != nil {
		return nil, err
	}
	proc, err := l.upstream.start("upstream", p.file("upstream.log"), []string{"/usr/sbin/nginx", "-p", p.dir, "-c", p.file("upstream.conf")}, "")
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.file("status.sock"))
	}
	return &upstream{process: proc, client: &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: 5 * time.Second}}, nil
}

func (u *upstream) stop() {
	u.client.CloseIdleConnections()
	u.process.stop()
}

func (u *upstream) seen() (seen, error) {
	r, err := u.client.Get("http://upstream/")
	if err != nil {
		return seen{}, fmt.Errorf("read upstream status: %w", err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return seen{}, fmt.Errorf("read upstream status: %w", err)
	}
	return parseStatus(string(text))
}

// parseStatus reads stub_status: its third line is accepts, handled, requests.
func parseStatus(text string) (seen, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 3 {
		return seen{}, fmt.Errorf("parse upstream status: %q", text)
	}
	var s seen
	var handled int64
	if _, err := fmt.Sscan(lines[2], &s.connections, &handled, &s.requests); err != nil {
		return seen{}, fmt.Errorf("parse upstream status: %q: %w", lines[2], err)
	}
	return s, nil
}

// writeCertificate makes the one certificate of all gateways: ECDSA P-256.
func writeCertificate(p *place, addresses ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	for _, a := range addresses {
		c.IPAddresses = append(c.IPAddresses, net.ParseIP(a))
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	chainPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return errors.Join(
		os.WriteFile(p.file("cert.pem"), chainPEM, 0o644),
		os.WriteFile(p.file("key.pem"), keyPEM, 0o600),
		os.WriteFile(p.file("both.pem"), bytes.Join([][]byte{chainPEM, keyPEM}, nil), 0o600),
	)
}
