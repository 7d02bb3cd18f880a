// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
)

// administered is a gateway with an admin API, a limit, and a route that wants an API key.
type administered struct {
	*running
	url, token, key, id string
	client              *http.Client
}

func newAdministered(t *testing.T) *administered {
	t.Helper()
	dir := t.TempDir()
	text := gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 2\npin: false\n")
	text = strings.Replace(text, "upstream: back}", "upstream: back, keys: {}, request_headers: {set: [{name: X-Secret, value: UPSTREAMSECRET}]}}", 1)
	text = strings.Replace(text, "admin_api: {address: off}", `admin_api: {address: "127.0.0.1:0"}`, 1)
	const limits = `limit_req{name = "clients", rate = "1r/h", burst = 3, nodelay = true, match = {method = "PUT"}}`
	if err := os.WriteFile(filepath.Join(dir, "ratelimit.lua"), []byte(limits), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &administered{running: startGateway(t, startHere, "admin", dir, text)}
	a.url = "https://" + adminAddress(t, a.running)
	token, err := os.ReadFile(filepath.Join(dir, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	a.token = strings.TrimSpace(string(token))
	a.key = mustRun(t, "--instance", "admin", "keys", "add", "--consumer", "alice")
	a.id = strings.Split(a.key, "_")[1]
	a.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	t.Cleanup(a.client.CloseIdleConnections)
	return a
}

// ask reads what the admin API says.
func (a *administered) ask(t *testing.T, method, path, body string, into any) string {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, a.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+a.token)
	r, err := a.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("%s %s: %d, %v: %s", method, path, r.StatusCode, err, text)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatalf("%s: %v in %s", path, err, text)
		}
	}
	return string(text)
}

// send sends a request to the gateway itself, and returns the status.
func (a *administered) send(c *http.Client, method string) (int, error) {
	q, err := http.NewRequest(method, "https://"+a.address+"/", nil)
	if err != nil {
		return 0, err
	}
	q.Header.Set("Authorization", "Bearer "+a.key)
	r, err := c.Do(q)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	_, err = io.Copy(io.Discard, r.Body)
	return r.StatusCode, err
}

// What an operator asks at night is answered by a live gateway, and no answer has a secret.
func TestAdminAPI(t *testing.T) {
	a := newAdministered(t)
	c := client(true)
	for range 10 {
		if _, err := a.send(c, "PUT"); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("limits", a.limits)
	t.Run("top", a.top)
	t.Run("explain", a.explain)
	t.Run("certificates", a.certificates)
	t.Run("secrets", a.secrets)
	t.Run("drain", a.drain)
	t.Run("log level", a.logLevel)
	t.Run("events", a.events)
	t.Run("slow clients", a.slowClients)
}

func (a *administered) limits(t *testing.T) {
	var list []admin.Limit
	if err := json.Unmarshal([]byte(mustRun(t, "--instance", "admin", "ctl", "limits", "--json")), &list); err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	l := list[0]
	if l.Name != "clients" || l.Plane != "workers" || l.Rate != "1r/h" || l.Burst != 3 || l.Scope != "all workers together" || l.Counts["passed"] != 3 || l.Counts["rejected"] != 7 {
		t.Errorf("%+v", l)
	}
	if out := mustRun(t, "--instance", "admin", "ctl", "limits"); !strings.Contains(out, "rejected 7") || !strings.Contains(out, "PUT") {
		t.Errorf("%s", out)
	}
}

func (a *administered) top(t *testing.T) {
	for kind, name := range map[string]string{"keys": a.id, "sources": "127.0.0.1", "routes": "all"} {
		var list []admin.Busy
		eventually(t, "10 requests of "+name, func() bool {
			a.ask(t, "GET", "/v1/top/"+kind+"?k=1", "", &list)
			return len(list) == 1 && list[0].Requests == 10
		})
		if b := list[0]; b.Name != name || b.ClientFault != 7 || kind != "routes" && b.Limited != 7 || kind == "keys" && b.From != "127.0.0.1" {
			t.Errorf("%s: %+v", kind, b)
		}
	}
	var f shownFrame
	out := mustRun(t, "--instance", "admin", "top", "--once", "--json", "--interval", "200ms")
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		t.Fatal(err)
	}
	if row := f.row("keys", "key", a.id); row == nil || row["requests"] != 10.0 || row["source"] != "127.0.0.1" {
		t.Errorf("xgw top has of the key %v", row)
	}
	if row := f.row("sources", "source", "127.0.0.1"); row == nil || row["requests"] != 10.0 {
		t.Errorf("xgw top has of the source %v", row)
	}
}

func (a *administered) explain(t *testing.T) {
	var x admin.Explained
	a.ask(t, "POST", "/v1/explain", fmt.Sprintf(`{"method": "PUT", "path": "/x?y", "client": "192.0.2.7", "key": %q}`, a.id), &x)
	if x.Route != "all" || x.Ends != "it goes to an upstream" || !slices.Equal(x.Upstream, []string{"back"}) || len(x.Servers) != 1 ||
		!slices.Equal(x.Limits, []admin.ExplainedLimit{{Name: "clients", Value: "192.0.2.7"}}) || x.Key != "it is good, of alice" {
		t.Errorf("%+v", x)
	}
	a.ask(t, "POST", "/v1/explain", `{"path": "/x", "key": "nosuch"}`, &x)
	if !strings.HasPrefix(x.Ends, "401: ") {
		t.Errorf("%+v", x)
	}
	if out := mustRun(t, "--instance", "admin", "ctl", "explain", "/x", "--key", a.id); !strings.Contains(out, "route     all") || strings.Contains(out, "limit") {
		t.Errorf("%s", out)
	}
	if status, _, errs := inProcess("--instance", "admin", "ctl", "explain", "x"); status != 2 || !strings.Contains(errs, "begins with /") {
		t.Errorf("status %d, %s", status, errs)
	}
}

func (a *administered) certificates(t *testing.T) {
	var all admin.Certificates
	a.ask(t, "GET", "/v1/certificates", "", &all)
	if len(all.Certificates) != 2 || all.Handshakes["full"] == 0 || all.TicketKeys == 0 {
		t.Fatalf("%+v", all)
	}
	for i, listener := range []string{"127.0.0.1:0", "admin_api"} {
		c := all.Certificates[i]
		if c.Listener != listener || !slices.Contains(c.Names, "localhost") || c.Days < 1 || c.Key != "ECDSA P-256" || len(c.Fingerprint) != 64 {
			t.Errorf("%+v", c)
		}
	}
}

// secrets looks for all that must not be told in everything that can be asked.
func (a *administered) secrets(t *testing.T) {
	var c struct {
		Listeners []struct{ Address string }
		Routes    []struct {
			Request struct {
				Set []struct{ Name, Value string }
			} `json:"request_headers"`
		}
	}
	a.ask(t, "GET", "/v1/config", "", &c)
	if len(c.Listeners) != 1 || len(c.Routes) != 1 || c.Routes[0].Request.Set[0].Name != "X-Secret" || c.Routes[0].Request.Set[0].Value != "(hidden)" {
		t.Errorf("%+v", c)
	}
	secrets := []string{"UPSTREAMSECRET", "PRIVATE KEY", a.token, a.key, strings.Split(a.key, "_")[2], strings.Split(a.token, "_")[2]}
	for _, name := range []string{"admin-tokens.json"} {
		text, err := os.ReadFile(filepath.Join(a.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var stored []struct{ Salt, Hash string }
		if err := json.Unmarshal(text, &stored); err != nil || stored[0].Hash == "" {
			t.Fatalf("%v in %s", err, text)
		}
		secrets = append(secrets, stored[0].Salt, stored[0].Hash)
	}
	for _, path := range []string{"config", "status", "live", "limits", "datapath", "certificates", "tokens", "verdicts", "top/keys", "top/sources", "top/routes", "doctor", "history"} {
		text := a.ask(t, "GET", "/v1/"+path, "", nil)
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("/v1/%s tells %s", path, s)
			}
		}
	}
	if text := a.ask(t, "POST", "/v1/keys", `{"op": "list"}`, nil); strings.Contains(text, "hash") || !strings.Contains(text, a.id) {
		t.Errorf("the list of keys: %s", text)
	}
}

func (a *administered) drain(t *testing.T) {
	says := func(path string) int {
		t.Helper()
		r, err := http.Get(strings.TrimSuffix(a.metrics, "/metrics") + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	c := client(true)
	for _, row := range []struct {
		command string
		readyz  int
	}{{"drain", 503}, {"drain", 503}, {"undrain", 200}} {
		mustRun(t, "--instance", "admin", "ctl", row.command)
		if got := says("/readyz"); got != row.readyz {
			t.Errorf("%s: /readyz says %d", row.command, got)
		}
		if got := says("/healthz"); got != http.StatusOK {
			t.Errorf("%s: /healthz says %d of a gateway that serves", row.command, got)
		}
		if got, err := a.send(c, "GET"); err != nil || got != 200 {
			t.Errorf("%s: who comes all the same gets %d, %v", row.command, got, err)
		}
	}
	file := filepath.Join(a.dir, "admin.drain") // beside its gateway.yaml
	rewrite(t, file, "")
	eventually(t, "the file drains", func() bool { return says("/readyz") == http.StatusServiceUnavailable })
	if status, out, errs := inProcess("--instance", "admin", "ctl", "undrain"); status == 0 || !strings.Contains(errs, file) {
		t.Errorf("undrain does not say that the file drains on: %d %s %s", status, out, errs)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "without it the gateway is back", func() bool { return says("/readyz") == http.StatusOK })
}

func (a *administered) logLevel(t *testing.T) {
	level := func(args ...string) string {
		t.Helper()
		return mustRun(t, append([]string{"--instance", "admin", "ctl", "log", "level"}, args...)...)
	}
	if got := level(); got != "info" {
		t.Errorf("at first %q", got)
	}
	if got := level("debug", "--for", "1h"); !strings.HasPrefix(got, "debug until ") || !strings.HasSuffix(got, ", then info") {
		t.Errorf("for a time: %q", got)
	}
	level("warn", "--for", "200ms") // in its place, and what it goes back to is what stayed
	eventually(t, "the level goes back", func() bool { return level() == "info" })
	if got := level("error"); got != "error" {
		t.Errorf("to stay: %q", got)
	}
	level("info")
	for _, wrong := range [][]string{{"loud"}, {"debug", "--for", "25h"}, {"--for", "1m"}, {"debug", "info"}} {
		if status, _, _ := inProcess(append([]string{"--instance", "admin", "ctl", "log", "level"}, wrong...)...); status != 2 {
			t.Errorf("log level %v: status %d", wrong, status)
		}
	}
}

func (a *administered) events(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var seen []string
	done := make(chan error, 1)
	listening := admin.NewClient(admin.SocketPath("admin"))
	go func() {
		done <- listening.Events(ctx, func(v admin.Event) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, v.Kind+" "+v.What)
		})
	}()
	has := func(want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Contains(seen, want)
		}
	}
	eventually(t, "somebody listens", func() bool {
		var s admin.Status
		a.ask(t, "GET", "/v1/status", "", &s)
		return s.Listeners == 1
	})
	mustRun(t, "--instance", "admin", "ctl", "reload")
	eventually(t, "a reload is told", has("generation in force"))
	if err := syscall.Kill(a.workers(t)["0"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a worker's end is told", has("worker exited"))
	eventually(t, "a worker's start is told", has("worker serves"))
	mustRun(t, "--instance", "admin", "ctl", "drain")
	mustRun(t, "--instance", "admin", "ctl", "undrain")
	eventually(t, "a drain is told", has("drain left out"))
	cancel()
	<-done
}

// slowClients: a thousand of them, of many addresses, who say nothing or a byte at a time, cost
// the traffic nothing and keep nobody out.
func (a *administered) slowClients(t *testing.T) {
	address := strings.TrimPrefix(a.url, "https://")
	stop := make(chan struct{})
	var slow sync.WaitGroup
	besiege := func(i int) {
		d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 3, byte(i>>8), byte(1+i%250))}}
		for {
			c, err := d.Dial("tcp", address)
			if err == nil && i%2 == 0 {
				_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}) // a ClientHello that never ends
			}
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				if err == nil {
					_, _ = io.Copy(io.Discard, c) // until it is closed
				}
			}()
			select {
			case <-stop:
			case <-gone:
			}
			if err == nil {
				c.Close()
			}
			<-gone
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Second): // and comes again
			}
		}
	}
	quiet := a.measure(t)
	for i := range 1000 {
		slow.Go(func() { besiege(i) })
	}
	defer slow.Wait()
	defer close(stop)
	for round := 1; ; round++ {
		busy := a.measure(t)
		t.Logf("p99 %v, beside a thousand slow admin clients %v", quiet, busy)
		for range 3 {
			a.client.CloseIdleConnections()
			a.ask(t, "GET", "/v1/status", "", nil)
		}
		if busy <= 3*max(quiet, 5*time.Millisecond) { // below, it is the scheduler's
			return
		}
		if round == 5 { // in the first they all come at once
			t.Errorf("p99 %v, beside slow admin clients %v", quiet, busy)
			return
		}
	}
}

// measure is the 99th percentile of requests, none of which may fail.
func (a *administered) measure(t *testing.T) time.Duration {
	t.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			c := client(true)
			defer c.CloseIdleConnections()
			for range 300 {
				began := time.Now()
				status, err := a.send(c, "GET")
				if took := time.Since(began); err != nil || status != 200 {
					t.Errorf("a request is lost: %d, %v", status, err)
				} else {
					mu.Lock()
					all = append(all, took)
					mu.Unlock()
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	clients.Wait()
	slices.Sort(all)
	if len(all) == 0 {
		t.Fatal("no request succeeds")
	}
	return all[len(all)*99/100]
}
