// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// smallBody is what each reply has, in bytes.
const smallBody = 100

const upstreamConfig = `worker_processes 1;
daemon off;
pid %[1]s/upstream.pid;
error_log stderr error;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/upstream-body;
	proxy_temp_path %[1]s/upstream-proxy;
	fastcgi_temp_path %[1]s/upstream-fastcgi;
	uwsgi_temp_path %[1]s/upstream-uwsgi;
	scgi_temp_path %[1]s/upstream-scgi;
	keepalive_timeout 600s;
	keepalive_requests 100000000;
	server {
		listen %[2]s backlog=1024;
		location / { return 200 "%[3]s"; }
	}
}
`

// startUpstream is nginx on the last core, since it costs that core little. stop is never nil.
func startUpstream(dir string) (address string, stop func(), err error) {
	stop = func() {}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", stop, err
	}
	address = l.Addr().String()
	if err := l.Close(); err != nil { // nginx has it from here on
		return "", stop, err
	}
	path := filepath.Join(dir, "upstream.conf")
	if err := os.WriteFile(path, fmt.Appendf(nil, upstreamConfig, dir, address, strings.Repeat("x", smallBody)), 0o644); err != nil {
		return "", stop, err
	}
	log, err := os.Create(filepath.Join(dir, "upstream.log"))
	if err != nil {
		return "", stop, err
	}
	defer log.Close()
	cmd := exec.Command("/usr/sbin/nginx", "-p", dir, "-c", path)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return "", stop, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return address, stop, c.Close()
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name()) // without it, the error alone
			return "", stop, errors.Join(fmt.Errorf("the upstream does not answer: %s", text), err)
		}
	}
}
