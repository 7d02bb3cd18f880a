// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prometheus is a real one that scrapes a gateway.
type prometheus struct{ api string }

var saysAddress = regexp.MustCompile(`msg="Listening on" address=(\S+)`)

func startPrometheus(t *testing.T, target string, options ...string) *prometheus {
	t.Helper()
	program := tool(t, "prometheus")
	dir := t.TempDir()
	text := fmt.Sprintf("scrape_configs: [{job_name: xgw, scrape_interval: 500ms, scrape_timeout: 500ms, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{
		"--config.file=" + filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path=" + dir, "--web.listen-address=127.0.0.1:0",
	}, options...)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	said := ""
	for lines.Scan() {
		if m := saysAddress.FindStringSubmatch(lines.Text()); m != nil {
			go io.Copy(io.Discard, out)
			return &prometheus{"http://" + m[1] + "/api/v1/"}
		}
		said += lines.Text() + "\n"
	}
	t.Fatalf("prometheus did not start:\n%s", said)
	return nil
}

// ask puts a question again and again until what comes is enough, and returns it.
func (p *prometheus) ask(t *testing.T, path, query string, enough func(string) bool) string {
	t.Helper()
	var last string
	for begun := time.Now(); time.Since(begun) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
		r, err := http.Get(p.api + path + "?query=" + url.QueryEscape(query) + "&start=0&end=" + fmt.Sprint(time.Now().Unix()+60))
		if err != nil {
			last = err.Error() // it is not listening yet
			continue
		}
		text, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if last = string(text); r.StatusCode == http.StatusOK && enough(last) {
			return last
		}
	}
	t.Errorf("prometheus says of %s %s: %s", path, query, last)
	return last
}

// value waits until a query has the value.
func (p *prometheus) value(t *testing.T, query, want string) {
	t.Helper()
	p.ask(t, "query", query, func(text string) bool { return one(text) == want })
}

// one is the value of an answer with one series.
func one(text string) string {
	var a struct {
		Data struct{ Result []struct{ Value [2]any } }
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil || len(a.Data.Result) != 1 {
		return ""
	}
	return fmt.Sprint(a.Data.Result[0].Value[1])
}

// A real Prometheus scrapes a live gateway: one as text, with the classic histograms, and
// one as protobuf, with the native ones; both find the trace of a request by its exemplar.
func TestPrometheusScrapes(t *testing.T) {
	g := startGateway(t, startHere, "prometheus", t.TempDir(), gatewayYAML(t.TempDir(), "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"))
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	target := strings.TrimSuffix(strings.TrimPrefix(g.metrics, "http://"), "/metrics")
	c := client(true)
	for range 20 {
		q, _ := http.NewRequest("GET", "https://"+g.address+"/", nil)
		q.Header.Set("Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
		r, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
	}
	text := startPrometheus(t, target, "--enable-feature=exemplar-storage")
	native := startPrometheus(t, target, "--enable-feature=exemplar-storage,native-histograms")
	for _, p := range []*prometheus{text, native} {
		p.value(t, `up`, "1")
		p.value(t, `xgw_requests_total{route="all",code="2xx"}`, "20")
		p.value(t, `sum(xgw_request_outcomes_total)`, "20")
		p.ask(t, "query_exemplars", `{__name__=~"xgw_request_duration_seconds.*",route="all"}`, func(s string) bool { return strings.Contains(s, `"trace_id":"`+trace+`"`) })
	}
	text.value(t, `xgw_request_duration_seconds_bucket{route="all",le="+Inf"}`, "20")
	text.value(t, `xgw_request_duration_seconds_count{route="all"}`, "20")
	native.value(t, `histogram_count(xgw_request_duration_seconds{route="all"})`, "20")
	native.ask(t, "query", `histogram_quantile(0.5, xgw_request_duration_seconds{route="all"}) > 0`, func(s string) bool { return one(s) != "" })
	if s := text.ask(t, "query", `histogram_count(xgw_request_duration_seconds{route="all"})`, func(string) bool { return true }); one(s) != "" {
		t.Errorf("the one that reads text has native histograms: %s", s)
	}
}

// seriesOf are the names and labels of an exposition.
func seriesOf(text string) map[string]bool {
	all := map[string]bool{}
	for line := range strings.Lines(text) {
		if at := strings.LastIndexByte(line, ' '); at > 0 && line[0] != '#' {
			all[line[:at]] = true
		}
	}
	return all
}

// 100,000 requests, each for another path of another host, make no series.
func TestSeriesAreBounded(t *testing.T) {
	const requests, batch = 100_000, 200
	dir := t.TempDir()
	yaml := strings.Replace(gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"), "server_names: [localhost, \"127.0.0.1\", gateway.example]", "tls: off", 1)
	yaml = strings.Replace(yaml, "{name: all, path: /, upstream: back}", "{name: all, path: /a, reply: {status: 200}}", 1)
	g := startGateway(t, startHere, "series", dir, yaml)
	conn, err := net.Dial("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	in := bufio.NewReader(conn)
	random := rand.New(rand.NewPCG(1, 2))
	exchanges := func(n int) {
		t.Helper()
		var b strings.Builder
		for range n {
			fmt.Fprintf(&b, "GET /%c/%x HTTP/1.1\r\nHost: h%x.example\r\nUser-Agent: u%x\r\nX-Api-Key: k%x\r\n\r\n", 'a'+rune(random.IntN(2)), random.Uint64(), random.Uint64(), random.Uint32(), random.Uint32())
		}
		if _, err := io.WriteString(conn, b.String()); err != nil {
			t.Fatal(err)
		}
		for range n {
			r, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}
	exchanges(batch)
	before := seriesOf(g.scrape(t))
	for range requests/batch - 1 {
		exchanges(batch)
	}
	text := g.scrape(t)
	after := seriesOf(text)
	for s := range after {
		if !before[s] {
			t.Errorf("traffic made a series: %s", s)
		}
	}
	if len(before) < 300 {
		t.Errorf("%d series: the test did not read what it claims", len(before))
	}
	outcomes := func(name string) (n int) {
		_, rest, _ := strings.Cut(text, "\nxgw_request_outcomes_total{outcome=\""+name+"\"} ")
		fmt.Sscan(rest, &n)
		return n
	}
	if a, b := outcomes("route_reply"), outcomes("no_route"); a+b != requests || a == 0 || b == 0 {
		t.Errorf("%d and %d requests were counted, want %d", a, b, requests)
	}
}
