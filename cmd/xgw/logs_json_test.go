// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// resettingUpstream is a server that reads a request and resets the connection.
func resettingUpstream(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	return l.Addr().String()
}

// JSON, sampling, redaction, and what workers say, from a gateway as users run it.
func TestLogsAsConfigured(t *testing.T) {
	needRoot(t, "room for as many datagrams")
	receiver := startSyslogReceiver(t)
	dir := t.TempDir()
	yaml := strings.Replace(gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"), "  - {name: all,",
		"  - {name: health, path: /health, reply: {status: 204}}\n  - {name: keyed, path: /keyed, upstream: back, keys: {}}\n  - {name: broken, path: /broken, upstream: broken}\n  - {name: all,", 1)
	yaml = strings.Replace(yaml, "  - {name: back,", fmt.Sprintf("  - {name: broken, servers: [%q]}\n  - {name: back,", resettingUpstream(t)), 1)
	yaml = strings.Replace(yaml, "log: {", fmt.Sprintf("log: {format: json, sampling: [{routes: [health], share: 0, slow: 1h}], error: %s/error.log, syslog: {address: %q}, ", dir, receiver.address()), 1)
	g := startGateway(t, startHere, "logsjson", dir, yaml)
	const healthy = 100
	for range healthy {
		g.mustGet(t, "/health", http.StatusNoContent)
	}
	const secret = "s3cr3t"
	for _, path := range []string{"/a?token=" + secret, "/a?b=c&api-key=" + secret + "&d=e", "/a?user%5Bpassword%5D=" + secret, "/keyed?key=xgw_nobody_" + secret, "/xgw_nobody_" + secret} {
		g.mustGet(t, path, 0)
	}
	g.mustGet(t, "/broken", http.StatusBadGateway)
	random := rand.New(rand.NewPCG(1, 2))
	texts := hostileTexts()
	const hostile = 400
	for range hostile {
		if err := sendAlone(g.address, hostileRequest(random, texts), true); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "each event that is logged is a datagram", func() bool {
		text := g.scrape(t)
		events := sumSeries(t, text, "xgw_request_outcomes_total{")
		out := sumSeries(t, text, "xgw_access_records_sampled_out_total ")
		return out == healthy && events == out+receiver.count("access") && events >= healthy+hostile+6
	})
	eventually(t, "the worker's line is a datagram", func() bool { return receiver.count("error") > 1 })
	g.stop(t)
	lines := linesOf(t, filepath.Join(dir, "access.log"))
	if len(lines) != receiver.count("access") {
		t.Errorf("%d lines, %d datagrams", len(lines), receiver.count("access"))
	}
	for _, line := range lines {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil || !utf8.ValidString(line) || len(fields) != 29 {
			t.Fatalf("%v, %d fields: %q", err, len(fields), line)
		}
		if fields["route"] == "health" || fields["client"] != "127.0.0.1" {
			t.Errorf("%q", line)
		}
	}
	said := false
	for _, m := range receiver.all() {
		said = said || strings.Contains(m, " error - connection reset by peer worker=0 while=\"reading the head of its reply\" upstream=broken server=127.0.0.1:")
		if !syslogMessage.MatchString(m) {
			t.Errorf("%q", m)
		}
	}
	if !said {
		t.Errorf("syslog has no line of the worker: %q", receiver.all())
	}
	for _, name := range []string{"access.log", "error.log"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || bytes.Contains(text, []byte(secret)) {
			t.Errorf("%s has a secret, or %v", name, err)
		}
	}
	if strings.Contains(strings.Join(receiver.all(), "\n")+g.log.String(), secret) {
		t.Error("a secret went to syslog or standard error")
	}
}

// mustGet makes a request as it is written; status 0 is any.
func (g *running) mustGet(t *testing.T, target string, status int) {
	t.Helper()
	c, err := tls.Dial("tcp", g.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: gateway.example\r\nConnection: close\r\nAuthorization: Bearer s3cr3t\r\nCookie: session=s3cr3t\r\nReferer: https://a:s3cr3t@b/?token=s3cr3t\r\n\r\n", target)
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || status != 0 && r.StatusCode != status {
		t.Fatalf("%s: %v, %v", target, r, err)
	}
	_, _ = io.Copy(io.Discard, r.Body)
}
