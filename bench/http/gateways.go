// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	xgwBinary    = "bin/xgw"
	instance     = "bench"
	pinDirectory = "/sys/fs/bpf/xgw-" + instance
	zoneFile     = "/dev/shm/xgw-" + instance + ".zone"
	accessLog    = "access.log"
	startTime    = 15 * time.Second
	smallBody    = 100
	largeBody    = 64 << 10
	postedBody   = 16 << 10
	upstreamPort = "8080"
)

// gateway is one of those compared.
type gateway struct {
	name    string
	address string // host:port
	fresh   int    // KiB resident before any load
	idle    float64
	version string
	process *process
}

func (g *gateway) url(c *benchCase) string {
	address := g.address
	if c.behind {
		address = strings.Replace(address, addrPeers, addrXGW, 1)
	}
	return "https://" + address + c.path
}

// The configurations differ from the defaults of each where the default would
// spoil the comparison: connections that end after 1,000 requests, another cipher
// than xgw's, bodies in files, fewer idle upstream connections kept than the 256
// streams of the HTTP/2 case.
const nginxConfig = `user root;
worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr error;
events { worker_connections 10000; }
http {
	access_log off;
	client_body_temp_path %[1]s/nginx-body;
	proxy_temp_path %[1]s/nginx-proxy;
	fastcgi_temp_path %[1]s/nginx-fastcgi;
	uwsgi_temp_path %[1]s/nginx-uwsgi;
	scgi_temp_path %[1]s/nginx-scgi;
	keepalive_timeout 75s;
	keepalive_requests 100000000;
	upstream backend {
		server %[3]s;
		keepalive 256;
		keepalive_requests 100000000;
		keepalive_timeout 600s;
	}
	server {
		listen %[2]s ssl http2;
		ssl_certificate %[1]s/cert.pem;
		ssl_certificate_key %[1]s/key.pem;
		ssl_protocols TLSv1.3;
		ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
		client_body_buffer_size 64k;
		location / {
			proxy_pass http://backend;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_buffer_size 16k;
			proxy_buffers 8 16k;
			proxy_max_temp_file_size 0;
		}
	}
}
`

const haproxyConfig = `global
	nbthread 1
	maxconn 9000
	ssl-default-bind-options ssl-min-ver TLSv1.3
	ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
	mode http
	http-reuse always
	timeout connect 2s
	timeout client 75s
	timeout server 60s
	timeout http-keep-alive 75s
frontend bench
	bind %[2]s ssl crt %[1]s/both.pem alpn h2,http/1.1
	default_backend backend
backend backend
	server one %[3]s pool-purge-delay 600s
`

// Logging peers write what they write by default: nginx's combined format, by 64 KiB;
// HAProxy's HTTP format, to its standard output, which is a file.
var (
	nginxLogging   = strings.NewReplacer("access_log off;", "access_log %[1]s/nginx-access.log combined buffer=64k flush=1s;", "nginx.pid", "nginx-log.pid")
	haproxyLogging = strings.NewReplacer("global\n", "global\n\tlog stdout format raw local0\n", "defaults\n", "defaults\n\tlog global\n\toption httplog\n")
)

const xgwConfig = `interfaces:
  - name: ` + linkXGW + `
    mode: native
listeners:
  - address: %[2]s
    certificate: %[1]s/cert.pem
    key: %[1]s/key.pem
telemetry:
  address: 127.0.0.1:9090
admin_api:
  address: off # a peer has its port
workers: 1
pin: true
routes:
  - name: all
    path: /
    upstream: backend
upstreams:
  - name: backend
    servers: ["%[3]s"]
    max_idle: 256
log:
  access: %[1]s/` + accessLog + `
state: %[1]s
`

// startGateways starts all and waits until each answers. stop is never nil.
func startGateways(ctx context.Context, l *lab, p *place, o options) (all []*gateway, stop func() error, err error) {
	stop = func() error {
		for _, g := range all {
			g.process.stop()
		}
		if o.skipXGW {
			return nil
		}
		return removeLeft()
	}
	if err := writeCertificate(p, addrPeers, addrXGW); err != nil {
		return nil, stop, err
	}
	server := net.JoinHostPort(addrUpstream, upstreamPort)
	add := func(name, address, file, text, dir, root string, argv ...string) error {
		bind := strings.Replace(address, addrPeers, "*", 1) // peers are on both links
		if err := p.write(file, fmt.Sprintf(text, dir, bind, server)); err != nil {
			return err
		}
		proc, err := l.gateway.start(name, p.file(name+".log"), argv, root)
		if err != nil {
			return err
		}
		all = append(all, &gateway{name: name, address: address, process: proc})
		return nil
	}
	if !o.skipXGW {
		if err := removable(); err != nil {
			return nil, func() error { return nil }, err
		}
		err = add("xgw", addrXGW+":443", "gateway.yaml", xgwConfig, p.dir, "",
			xgwBinary, "run", "-c", p.file("gateway.yaml"), "--instance", instance)
		if err != nil {
			return all, stop, err
		}
	}
	dir := p.peer("")
	peers := []struct{ suffix, nginx, haproxy, nginxText, haproxyText string }{
		{"", ":8443", ":8444", nginxConfig, haproxyConfig},
		{logged, ":8445", ":8446", nginxLogging.Replace(nginxConfig), haproxyLogging.Replace(haproxyConfig)},
	}
	if o.unlogged {
		peers = peers[:1]
	}
	for _, peer := range peers {
		conf, cfg := "gateway-nginx"+peer.suffix+".conf", "haproxy"+peer.suffix+".cfg"
		err = add("nginx"+peer.suffix, addrPeers+peer.nginx, conf, peer.nginxText, dir, p.root, "/usr/sbin/nginx", "-p", dir, "-c", p.peer(conf))
		if err == nil {
			err = add("haproxy"+peer.suffix, addrPeers+peer.haproxy, cfg, peer.haproxyText, dir, p.root, "/usr/sbin/haproxy", "-db", "-f", p.peer(cfg))
		}
		if err != nil {
			return all, stop, err
		}
	}
	for _, g := range all {
		if err == nil {
			err = g.await(ctx, l, p)
		}
		g.version = versionOf(g.name, p.root)
	}
	if err == nil {
		err = rest(all)
	}
	if err == nil && !o.skipXGW {
		err = l.checkXDP()
	}
	return all, stop, err
}

// await returns when the gateway passes a request on.
func (g *gateway) await(ctx context.Context, l *lab, p *place) error {
	var last error
	for deadline := time.Now().Add(startTime); time.Now().Before(deadline); {
		if err := g.process.alive(); err != nil {
			return err
		}
		if last = probe(ctx, l, p, g, &cases[0]); last == nil || ctx.Err() != nil {
			return last
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("%s does not answer: %w\n%s", g.name, last, g.process.lastLines())
}

// removable fails when an instance of our name is there already: it is not ours to
// replace.
func removable() error {
	for _, path := range []string{pinDirectory, zoneFile} {
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s exists: another bench runs, or one was killed; then remove it", path)
		}
	}
	return nil
}

// removeLeft takes away what xgw should have taken away itself, and says so.
func removeLeft() error {
	var errs []error
	for _, path := range []string{pinDirectory, zoneFile} {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		errs = append(errs, fmt.Errorf("xgw left %s behind; removed", path), os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// versionOf asks a program for its version: the first line it prints.
func versionOf(name, root string) string {
	argv := map[string][]string{
		"xgw": {xgwBinary, "version"}, "nginx": {"/usr/sbin/nginx", "-v"}, "haproxy": {"/usr/sbin/haproxy", "-v"},
		"wrk": {"wrk", "-v"}, "h2load": {"h2load", "--version"},
	}[strings.TrimSuffix(name, logged)]
	cmd := exec.Command(argv[0], argv[1:]...)
	if root != "" && (argv[0] == "/usr/sbin/nginx" || argv[0] == "/usr/sbin/haproxy") {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
	}
	out, _ := cmd.CombinedOutput() // wrk -v prints it and fails
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
