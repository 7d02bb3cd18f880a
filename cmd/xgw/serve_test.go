// SPDX-License-Identifier: Apache-2.0

package main

import (
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
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s: `make test` sees to it", name)
	}
	return path
}

// The clients that people use, through the gateway.
func TestRealClients(t *testing.T) {
	g := startGateway(t, startHere, "clients", t.TempDir(), gatewayYAML(t.TempDir(), "127.0.0.1:0", upstream(t), ""))
	url := "https://" + g.address + "/bytes/1000"
	host, port, err := net.SplitHostPort(g.address)
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range []struct {
		name string
		args []string
		want string // regular expression on the output
	}{
		{"curl", []string{"-sk", "--http1.1", "-o", "/dev/null", "-w", "%{http_version} %{http_code} %{size_download}", url}, `^1\.1 200 1000$`},
		{"curl", []string{"-sk", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code} %{size_download}", url}, `^2 200 1000$`},
		{"curl", []string{"-sk", "--http1.0", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", url}, `^200 1000$`},
		{"curl", []string{"-sk", "--head", url}, `(?i)content-length: 1000`},
		{"curl", []string{"-sk", "--tls-max", "1.2", url}, `^$`}, // refused
		{"nghttp", []string{"-nv", url}, `:status: 200`},
		{"h2load", []string{"-n", "2000", "-c", "4", "-m", "10", url}, `2000 succeeded, 0 failed, 0 errored`},
		{"h2spec", []string{"-o", "10", "-t", "-k", "-S", "-h", host, "-p", port}, `146 tests, 146 passed, 0 skipped, 0 failed`},
		{"wrk", []string{"-t", "1", "-c", "8", "-d", "1", url}, ""},
	} {
		t.Run(fmt.Sprintf("%s %d", row.name, i), func(t *testing.T) {
			out, _ := exec.Command(tool(t, row.name), row.args...).CombinedOutput()
			if row.name == "wrk" { // what must not be in it
				if strings.Contains(string(out), "Socket errors") || strings.Contains(string(out), "Non-2xx") || !strings.Contains(string(out), "requests in") {
					t.Errorf("%s", out)
				}
				return
			}
			if !regexp.MustCompile(row.want).Match(out) {
				t.Errorf("want %s in:\n%s", row.want, out)
			}
		})
	}
}

// Ten thousand requests of mixed sizes arrive byte for byte, both ways.
func TestBodies(t *testing.T) {
	g := startGateway(t, startHere, "bodies", t.TempDir(), gatewayYAML(t.TempDir(), "127.0.0.1:0", upstream(t), ""))
	requests := 10_000
	if testing.Short() {
		requests = 500
	}
	hashes := map[int64]string{}
	for _, n := range bodySizes {
		hashes[n] = lab.BodyHash(n)
	}
	work := make(chan int)
	var wg sync.WaitGroup
	for worker := range 8 {
		c := client(worker%2 == 0)
		wg.Go(func() {
			for i := range work {
				n := sizeOf(i)
				if err := exchange(c, "https://"+g.address, i, n, hashes[n]); err != nil {
					t.Errorf("request %d, %d bytes: %v", i, n, err)
				}
			}
		})
	}
	for i := range requests {
		work <- i
	}
	close(work)
	wg.Wait()
	// An exchange is counted right after its last byte, which may be after the client
	// has read it.
	want := fmt.Sprintf(`xgw_request_outcomes_total{outcome="ok"} %d`, requests)
	text := g.scrape(t)
	for range 2000 {
		if strings.Contains(text, want) {
			break
		}
		time.Sleep(10 * time.Millisecond)
		text = g.scrape(t)
	}
	if !strings.Contains(text, want) {
		t.Errorf("metrics lack %s; they have\n%s", want, grep(text, "outcomes_total"))
	}
	if !strings.Contains(text, `xgw_unexplained{kind="requests"} 0`) {
		t.Error("requests by status and by outcome differ")
	}
}

// Sizes around buffers and TLS records, and up to 10 MB for one in a thousand.
var bodySizes = []int64{0, 1, 99, 100, 4095, 4096, 4097, 16383, 16384, 16385, 32768, 65537, 1_000_000, 10_000_000}

func sizeOf(i int) int64 {
	switch {
	case i%1000 == 999:
		return bodySizes[13]
	case i%200 == 199:
		return bodySizes[12]
	}
	return bodySizes[i%12]
}

// exchange sends request i: a GET with or without length, or a POST likewise.
func exchange(c *http.Client, base string, i int, n int64, hash string) error {
	var r *http.Response
	var err error
	switch i % 4 {
	case 0:
		r, err = c.Get(fmt.Sprintf("%s/bytes/%d", base, n))
	case 1:
		r, err = c.Get(fmt.Sprintf("%s/chunked/%d", base, n))
	default:
		return post(c, base+"/hash", i%4 == 2, n, hash)
	}
	if err != nil {
		return err
	}
	defer r.Body.Close()
	h := newHash()
	got, err := io.Copy(h, r.Body)
	if err != nil {
		return err
	}
	if r.StatusCode != 200 || got != n || h.String() != hash {
		return fmt.Errorf("status %d, %d bytes, hash %s", r.StatusCode, got, h)
	}
	return nil
}

func post(c *http.Client, url string, withLength bool, n int64, hash string) error {
	body, w := io.Pipe()
	go func() { w.CloseWithError(lab.Body(w, n)) }()
	request, err := http.NewRequest("POST", url, body)
	if err != nil {
		return err
	}
	request.ContentLength = -1
	if withLength {
		request.ContentLength = n
	}
	r, err := c.Do(request)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if want := fmt.Sprintf("%s %d\n", hash, n); err != nil || string(text) != want {
		return fmt.Errorf("status %d, upstream received %q, want %q (%v)", r.StatusCode, text, want, err)
	}
	return nil
}

func grep(text, word string) string {
	var b strings.Builder
	for _, line := range strings.Split(text, "\n") {
		if strings.Contains(line, word) {
			fmt.Fprintln(&b, line)
		}
	}
	return b.String()
}

func TestMetricsPassPromtool(t *testing.T) {
	promtool := tool(t, "promtool")
	g := startGateway(t, startHere, "promtool", t.TempDir(), gatewayYAML(t.TempDir(), "127.0.0.1:0", upstream(t), ""))
	if err := exchange(client(true), "https://"+g.address, 0, 100, lab.BodyHash(100)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(g.scrape(t))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// What the first start makes is used again by the second, and so is the address.
func TestMadeCertificateIsKept(t *testing.T) {
	dir, up := t.TempDir(), upstream(t)
	var first []byte
	for i := range 2 {
		g := startGateway(t, startHere, "certificate", dir, gatewayYAML(dir, "127.0.0.1:0", up, ""))
		eventually(t, "the log says self-signed", func() bool { return strings.Contains(g.log.String(), "self-signed") })
		chain, err := os.ReadFile(filepath.Join(dir, "made.crt"))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = chain
		} else if string(chain) != string(first) {
			t.Error("the second start made another certificate")
		}
		info, err := os.Stat(filepath.Join(dir, "made.key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("key: %v, %v; want mode 0600", info.Mode(), err)
		}
		g.stop(t)
	}
	if _, err := os.Stat("/dev/shm/xgw-certificate.zone"); err == nil {
		t.Error("the zone is still there after a clean stop")
	}
}

func TestAccessLogHasALineForEachRequest(t *testing.T) {
	dir := t.TempDir()
	g := startGateway(t, startHere, "accesslog", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), ""))
	c := client(false)
	for i := range 50 {
		if err := exchange(c, "https://"+g.address, 4*i, 100, lab.BodyHash(100)); err != nil {
			t.Fatal(err)
		}
	}
	g.stop(t)
	time.Sleep(10 * time.Millisecond)
	text, err := os.ReadFile(filepath.Join(dir, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), `"GET /bytes/100 HTTP/1.1" 200`); n != 50 {
		t.Errorf("%d lines for 50 requests:\n%s", n, text)
	}
}
