// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// benchCase is one kind of request.
type benchCase struct {
	name   string
	path   string
	post   bool
	body   int // bytes of the response's body
	flight int // requests under way at once
	http2  bool
	load   func(c *benchCase, url string, p *place, d time.Duration, rate int) []string
	parse  func(text string, c *benchCase) (int64, error)
	resume bool
	paced  bool // measured is the latency at a given rate
	idle   bool // measured is the memory of connections that do nothing
	// behind: all gateways are reached by the link that has xgw's XDP program.
	behind bool
}

// cases in the order of the table.
var cases = []benchCase{
	{name: idleName, path: "/", body: smallBody, idle: true},
	{name: "h1 GET 100 B", path: "/", body: smallBody, flight: 64, load: wrk, parse: parseWrk},
	{name: "h2 GET 100 B", path: "/", body: smallBody, http2: true, flight: 256, load: h2load, parse: parseH2load},
	{name: "h1 GET 100 B, full handshake each", path: "/", body: smallBody, flight: 16, load: handshakes, parse: parseClient},
	{name: "h1 GET 100 B, resumed handshake each", path: "/", body: smallBody, flight: 16, load: handshakes, parse: parseClient, resume: true},
	{name: "h1 GET 64 KiB", path: "/large", body: largeBody, flight: 64, load: wrk, parse: parseWrk},
	{name: "h1 POST 16 KiB", path: "/", post: true, body: smallBody, flight: 64, load: wrk, parse: parseWrk},
	{name: "h1 POST 16 KiB, all behind the XDP program", path: "/", post: true, body: smallBody, flight: 64, load: wrk, parse: parseWrk, behind: true},
	{name: "h1 GET 100 B, p99 at half of saturation", path: "/", body: smallBody, flight: 64, load: pacedLoad, parse: parsePaced, paced: true},
}

// wrkDone makes wrk print its own counts on a line of their own.
const wrkDone = `
done = function(s, latency, requests)
	io.write(string.format("result %d %d %d %d %d %d %d\n", s.requests, s.bytes,
		s.errors.connect, s.errors.read, s.errors.write, s.errors.status, s.errors.timeout))
end
`

func wrk(c *benchCase, url string, p *place, d time.Duration, _ int) []string {
	script := "get.lua"
	if c.post {
		script = "post.lua"
	}
	return []string{"wrk", "-t1", "-c64", "-d", seconds(d) + "s", "-s", p.file(script), url}
}

func h2load(_ *benchCase, url string, _ *place, d time.Duration, _ int) []string {
	return []string{"h2load", "-t1", "-c16", "-m16", "-D", seconds(d), url}
}

func handshakes(c *benchCase, url string, p *place, d time.Duration, _ int) []string {
	return []string{self(), clientWord, hostPort(c, url), p.file("cert.pem"), seconds(d), strconv.FormatBool(c.resume)}
}

func pacedLoad(c *benchCase, url string, p *place, d time.Duration, rate int) []string {
	return []string{self(), pacedWord, hostPort(c, url), p.file("cert.pem"), seconds(d), strconv.Itoa(rate)}
}

// self is this program, which is some of the clients, too.
func self() string {
	path, err := os.Executable()
	if err != nil {
		return "/proc/self/exe"
	}
	return path
}

func hostPort(c *benchCase, url string) string {
	return strings.TrimSuffix(strings.TrimPrefix(url, "https://"), c.path)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// resultLine finds the numbers of the line that begins with "result".
func resultLine(text string, want int) ([]int64, error) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != want+1 || words[0] != "result" {
			continue
		}
		numbers := make([]int64, want)
		for i, w := range words[1:] {
			n, err := strconv.ParseInt(w, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("parse result: %w", err)
			}
			numbers[i] = n
		}
		return numbers, nil
	}
	return nil, fmt.Errorf("no result in:\n%s", text)
}

func parseWrk(text string, c *benchCase) (int64, error) {
	n, err := resultLine(text, 7)
	if err != nil {
		return 0, err
	}
	for i, what := range []string{"connect", "read", "write", "status", "timeout"} {
		if n[2+i] > 0 {
			return 0, fmt.Errorf("%d errors of %s", n[2+i], what)
		}
	}
	return n[0], checkBytes(n[0], n[1], c)
}

func checkBytes(requests, bytes int64, c *benchCase) error {
	if requests == 0 {
		return fmt.Errorf("no request was answered")
	}
	if bytes < requests*int64(c.body) {
		return fmt.Errorf("%d bytes in %d answers: want %d in each", bytes, requests, c.body)
	}
	return nil
}

var (
	h2Requests = regexp.MustCompile(`requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	h2Status   = regexp.MustCompile(`status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx`)
	h2Data     = regexp.MustCompile(`\((\d+)\) data`)
)

func parseH2load(text string, c *benchCase) (int64, error) {
	for _, want := range []string{"TLS Protocol: TLSv1.3\n", "Cipher: TLS_AES_128_GCM_SHA256\n", "Application protocol: h2\n"} {
		if !strings.Contains(text, want) {
			return 0, fmt.Errorf("want %q in:\n%s", want, text)
		}
	}
	requests, status, data := h2Requests.FindStringSubmatch(text), h2Status.FindStringSubmatch(text), h2Data.FindStringSubmatch(text)
	if requests == nil || status == nil || data == nil {
		return 0, fmt.Errorf("parse h2load: no counts in:\n%s", text)
	}
	done := requests[1]
	if requests[2] != done || status[1] != done || strings.Join(requests[3:], "") != "000" || strings.Join(status[2:], "") != "000" {
		return 0, fmt.Errorf("not all requests succeeded: %s; %s", requests[0], status[0])
	}
	n, err := strconv.ParseInt(done, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse h2load: %w", err)
	}
	bytes, err := strconv.ParseInt(data[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse h2load: %w", err)
	}
	return n, checkBytes(n, bytes, c)
}

// parsePaced: see p99.
func parsePaced(text string, c *benchCase) (int64, error) {
	n, err := resultLine(text, 3)
	if err != nil {
		return 0, err
	}
	return n[0], checkBytes(n[0], n[2], c)
}

// p99 is what the paced client measured, in µs.
func p99(text string) (float64, error) {
	n, err := resultLine(text, 3)
	if err != nil {
		return 0, err
	}
	return float64(n[1]), nil
}

// probe sends one request with a client that verifies the certificate.
func probe(ctx context.Context, l *lab, p *place, g *gateway, c *benchCase) error {
	argv := []string{"curl", "--silent", "--show-error", "--max-time", "5", "--noproxy", "*", "--cacert", p.file("cert.pem"),
		"--tlsv1.3", "--output", "/dev/null", "--write-out", "%{http_code} %{http_version} %{size_download}"}
	version := "1.1"
	if c.http2 {
		version = "2"
		argv = append(argv, "--http2")
	} else {
		argv = append(argv, "--http1.1")
	}
	if c.post {
		argv = append(argv, "--data-binary", "@"+p.file("posted"))
	}
	got, err := l.client.output(ctx, append(argv, g.url(c))...)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("200 %s %d", version, c.body); got != want {
		return fmt.Errorf("%s answers %q (status, version, bytes), want %q", g.name, got, want)
	}
	return nil
}
