// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
)

// limited starts a gateway of two workers with a ratelimit.lua.
func limited(t *testing.T, instance, lua string) (*running, string) {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "ratelimit.lua")
	rewrite(t, script, lua)
	return startGateway(t, startHere, instance, dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 2\n")), script
}

// asks sends a request under a key and returns the status; 0 for none.
func asks(c *http.Client, address, key string) int {
	req, _ := http.NewRequest("GET", "https://"+address+"/", nil)
	req.Header.Set("X-Key", key)
	r, err := c.Do(req)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r.StatusCode
}

// What two workers together let pass of what is offered, at rates below, at and above the
// limit's: as much as the limit allows, and never more.
func TestRequestLimitOverWorkers(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	const rate, burst = 200, 20
	g, _ := limited(t, "limits", `limit_req{name = "each", key = "header:X-Key", rate = "200r/s", burst = 20, nodelay = true}`)
	var cases sync.WaitGroup
	for _, offered := range []float64{0.5, 1, 1.5, 3} {
		cases.Go(func() {
			key := strconv.FormatFloat(offered, 'g', -1, 64)
			var passed, refused, failed, next atomic.Int64
			const seconds = 4
			n := int64(offered * rate * seconds)
			began := time.Now()
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					c := client(i%4 < 2)
					c.Transport.(*http.Transport).DialContext = dialOn(i % 2) // half of them at each worker
					for {
						k := next.Add(1) - 1
						if k >= n {
							return
						}
						time.Sleep(time.Until(began.Add(time.Duration(float64(k) / (offered * rate) * 1e9))))
						switch asks(c, g.address, key) {
						case 200:
							passed.Add(1)
						case 429:
							refused.Add(1)
						default:
							failed.Add(1)
						}
					}
				})
			}
			all.Wait()
			took := time.Since(began).Seconds()
			p, most := passed.Load(), rate*took+burst
			t.Logf("%v times the rate: offered %.0f/s, passed %.0f/s of %d/s and a burst of %d", offered, float64(n)/took, float64(p)/took, rate, burst)
			if failed.Load() > 0 || p+refused.Load() != n {
				t.Errorf("%v times the rate: %d failed, %d passed and %d were refused of %d", offered, failed.Load(), p, refused.Load(), n)
			}
			if float64(p) > most {
				t.Errorf("%v times the rate: %d passed, the limit allows %.1f", offered, p, most)
			}
			// Below by no more than what comes late on a busy machine can forfeit.
			if least := min(float64(n), most); float64(p) < 0.9*least {
				t.Errorf("%v times the rate: %d passed of the %.0f that the limit allows", offered, p, least)
			}
		})
	}
	cases.Wait()
	text := g.scrape(t)
	counts := regexp.MustCompile(`xgw_request_limit_requests_total\{limit="each",outcome="(passed|rejected)"\} (\d+)`).FindAllStringSubmatch(text, -1)
	if len(counts) != 2 || counts[0][2] == "0" || counts[1][2] == "0" {
		t.Errorf("the metrics have %v", counts)
	}
	if !strings.Contains(text, `xgw_request_outcomes_total{outcome="limited"} `+counts[1][2]) {
		t.Errorf("outcomes differ from the limit's counts: %v\n%s", counts, grep(text, "request_outcomes"))
	}
}

// What a bucket holds outlives reloads and a killed worker; a script with a fault changes
// nothing, and a reload takes a new limit.
func TestRequestLimitOutlivesReloadAndWorker(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	const instance = "limitlives"
	g, path := limited(t, instance, `limit_req{name = "each", key = "header:X-Key", rate = "1r/h", burst = 3, nodelay = true}`)
	ctl := admin.NewClient(admin.SocketPath(instance))
	expect := func(when, key string, want ...int) {
		t.Helper()
		for i, w := range want {
			if got := asks(client(i%2 == 0), g.address, key); got != w {
				t.Errorf("%s, request %d of %s: %d, want %d", when, i, key, got, w)
			}
		}
	}
	expect("at first", "a", 200, 200, 200, 429)
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	expect("after a reload", "a", 429)
	for _, pid := range g.workers(t) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	back := func() bool {
		text := g.scrape(t)
		return strings.Contains(text, `restarts_total{worker="0"} 1`) && strings.Contains(text, `restarts_total{worker="1"} 1`) &&
			len(g.workers(t)) == 2 && asks(client(true), g.address, "") == 200
	}
	for end := time.Now().Add(20 * time.Second); !back(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the workers are not back")
		}
	}
	expect("after both workers died", "a", 429)
	rewrite(t, path, "limit_req{name = \"each\",\n  rate = \"1r/fortnight\"}")
	if _, err := ctl.Reload(0); err == nil || !strings.Contains(err.Error(), "ratelimit.lua:") || !strings.Contains(err.Error(), "1r/fortnight") {
		t.Errorf("a fault in the script: %v", err)
	}
	expect("after a reload that failed", "b", 200, 200, 200, 429)
	rewrite(t, path, `limit_req{name = "each", key = "header:X-Key", rate = "1r/h", burst = 5, nodelay = true}`)
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	expect("with a larger burst", "a", 200, 200, 429)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	expect("without the script", "a", 200, 200, 200, 200, 200)
}

func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	rewrite(t, path, gatewayYAML(dir, "127.0.0.1:0", "127.0.0.1:8080", ""))
	rewrite(t, filepath.Join(dir, "ratelimit.lua"), `limit_req{name = "clients", rate = "100r/s", burst = 20}
packet_limit{name = "syns", key = "source", count = "syns", rate = 50, dry_run = true}`)
	status, out, errs := inProcess("config", "check", "-c", path)
	if status != 0 || errs != "" {
		t.Fatalf("status %d: %s", status, errs)
	}
	for _, want := range []string{"no fault", "clients ", "100r/s", "20, 1 of it at once", "all workers together", "syns (dry run)", "50/s"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	rewrite(t, filepath.Join(dir, "ratelimit.lua"), `limit_req{name = "everywhere", rate = "100r/s", burst = 20, scope = "cluster"}`)
	status, out, errs = inProcess("config", "check", "-c", path)
	if status != exitUsage || out != "" || !strings.Contains(errs, "ratelimit.lua:1:1: limit_req.scope: gateways tell each other through a redis: give redis.address") {
		t.Errorf("a limit of the cluster without a redis: status %d: %s%s", status, out, errs)
	}
	rewrite(t, path, gatewayYAML(dir, "127.0.0.1:0", "127.0.0.1:8080", "redis: {address: \"127.0.0.1:6379\"}\n"))
	status, out, errs = inProcess("config", "check", "-c", path)
	for _, want := range []string{"everywhere ", "all gateways of redis 127.0.0.1:6379", "56 for each further gateway", "refuses nobody for it"} {
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q in\n%s%s", status, want, out, errs)
		}
	}
	rewrite(t, filepath.Join(dir, "ratelimit.lua"), "\nlimit_req{name = 'x', rat = 1}")
	status, out, errs = inProcess("config", "check", "-c", path)
	if status != exitUsage || out != "" || !strings.Contains(errs, "ratelimit.lua:2:1: limit_req.rat: unknown key") {
		t.Errorf("status %d: %s%s", status, out, errs)
	}
}

// Key functions of a script run in both workers and find the same buckets there. One that
// does not end is cut short at each request, counted, and the address is the key.
func TestKeyFunctions(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	const instance = "keyfn"
	g, path := limited(t, instance, `local tiers = {a = "shared", b = "shared"}
limit_req{name = "tenants", rate = "1r/h", burst = 3, nodelay = true, key = function(r)
  local k = r:header("X-Key")
  return tiers[k] or (k ~= "" and r.method .. k) or nil
end}`)
	ctl := admin.NewClient(admin.SocketPath(instance))
	clients := make([]*http.Client, 4)
	for i := range clients {
		clients[i] = client(i%4 < 2)
		clients[i].Transport.(*http.Transport).DialContext = dialOn(i % 2) // half of them at each worker
	}
	expect := func(key string, want ...int) {
		t.Helper()
		for i, w := range want {
			if got := asks(clients[i%4], g.address, key); got != w {
				t.Errorf("request %d of %q: %d, want %d", i, key, got, w)
			}
		}
	}
	expect("a", 200, 200)
	expect("b", 200, 429, 429)
	expect("c", 200, 200, 200, 429)
	expect("", 200, 200, 200, 200, 200)
	// It is found anew by each generation, with the buckets that there are.
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	expect("c", 429, 429, 429, 429)
	rewrite(t, path, `limit_req{name = "endless", rate = "1r/h", burst = 6, nodelay = true, key = function(r)
  while true do pcall(function() while true do end end) end
end}`)
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	expect("x", 200, 200, 200, 200, 200, 200, 429, 429)
	if text := g.scrape(t); strings.Contains(text, `limit_key_failures_total{cause="budget",worker="0"} 0`) || strings.Contains(text, `limit_key_failures_total{cause="budget",worker="1"} 0`) {
		t.Errorf("not counted:\n%s", grep(text, "key_failures"))
	}
	rewrite(t, path, "limit_req{name = 'x', rate = 1, key = function(r) return r.path:match('^/') end}\nlocal s = ('x'):match('x')")
	if _, err := ctl.Reload(0); err == nil || !strings.Contains(err.Error(), "ratelimit.lua:2: string.match") {
		t.Errorf("a pattern: %v", err)
	}
	expect("x", 429)
}
