// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
func asks(c *http.Client, address, key string) int { return asksBy(c, address, "X-Key", key) }

func asksBy(c *http.Client, address, header, key string) int {
	req, _ := http.NewRequest("GET", "https://"+address+"/", nil)
	req.Header.Set(header, key)
	r, err := c.Do(req)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r.StatusCode
}

// What workers together let pass of what is offered, at rates below, at and above the
// limit's: as much as the limit allows, and never more, however many there are, and whether
// those beyond it wait or are refused.
func TestRequestLimitOverWorkers(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	const lua = `limit_req{name = "each", key = "header:X-Key", rate = "200r/s", burst = 20, nodelay = true}
limit_req{name = "queued", key = "header:X-Queue", rate = "200r/s", burst = 20, delay = 5}`
	two, _ := limited(t, "limits", lua)
	dir := t.TempDir()
	rewrite(t, filepath.Join(dir, "ratelimit.lua"), lua)
	one := startGateway(t, startHere, "limits1", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\n"))
	var mu sync.Mutex
	var rows []string
	var faults [3][]string // by round: a machine that stands still for a moment forfeits what would have passed
	for round := range faults {
		rows = nil
		var cases sync.WaitGroup
		for _, c := range []limitCase{
			{g: two, workers: 2, times: 0.5}, {g: two, workers: 2, times: 1}, {g: two, workers: 2, times: 1.5}, {g: two, workers: 2, times: 3},
			{g: two, workers: 2, times: 1.5, queued: true}, {g: one, workers: 1, times: 1}, {g: one, workers: 1, times: 3},
		} {
			cases.Go(func() {
				row, fault := c.measure(t, round)
				mu.Lock()
				defer mu.Unlock()
				rows, faults[round] = append(rows, row), append(faults[round], fault...)
			})
		}
		cases.Wait()
		slices.Sort(rows)
		t.Log("\n" + strings.Join(rows, "\n"))
		if len(faults[round]) == 0 {
			break
		}
		if round == len(faults)-1 {
			t.Error(strings.Join(faults[round], "\n"))
		}
	}
	text := two.scrape(t)
	counts := regexp.MustCompile(`xgw_request_limit_requests_total\{limit="each",outcome="(passed|rejected)"\} (\d+)`).FindAllStringSubmatch(text, -1)
	if len(counts) != 2 || counts[0][2] == "0" || counts[1][2] == "0" || sumSeries(t, text, `xgw_request_limit_requests_total{limit="queued",outcome="delayed"}`) == 0 {
		t.Errorf("the metrics have %v", grep(text, "xgw_request_limit_requests"))
	}
	eventually(t, "outcomes are the limits' counts", func() bool { // an outcome is counted after its client knows
		text := two.scrape(t)
		refused := sumSeries(t, text, `xgw_request_limit_requests_total{limit="each",outcome="rejected"}`) + sumSeries(t, text, `xgw_request_limit_requests_total{limit="queued",outcome="rejected"}`)
		return sumSeries(t, text, `xgw_request_outcomes_total{outcome="limited"}`) == refused
	})
}

// limitCase offers a limit of 200 a second and a burst of 20 so many times its rate.
type limitCase struct {
	g       *running
	workers int
	times   float64
	queued  bool // those beyond a quarter of the burst wait
}

// measure takes four seconds. It tells what passed that may not, and what did not that should;
// more than the limit allows is an error at once.
func (c limitCase) measure(t *testing.T, round int) (row string, faults []string) {
	const rate, burst, seconds = 200, 20, 4
	header, kind, parallel := "X-Key", "refused", 8
	if c.queued {
		header, kind, parallel = "X-Queue", "delayed", 32
	}
	name := fmt.Sprintf("%d workers, %3v x the rate, %s beyond", c.workers, c.times, kind)
	var passed, refused, failed, next atomic.Int64
	n := int64(c.times * rate * seconds)
	began := time.Now()
	var all sync.WaitGroup
	for i := range parallel {
		all.Go(func() {
			hc := client(i%4 < 2)
			hc.Transport.(*http.Transport).DialContext = dialOn(i % 2) // half of them at each worker
			for {
				k := next.Add(1) - 1
				if k >= n {
					return
				}
				time.Sleep(time.Until(began.Add(time.Duration(float64(k) / (c.times * rate) * 1e9))))
				switch asksBy(hc, c.g.address, header, fmt.Sprintf("%v-%d", c.times, round)) {
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
	p, most := float64(passed.Load()), rate*took+burst
	if failed.Load() > 0 || passed.Load()+refused.Load() != n {
		t.Errorf("%s: %d failed, %.0f passed and %d were refused of %d", name, failed.Load(), p, refused.Load(), n)
	}
	if p > most {
		t.Errorf("%s: %.0f passed, the limit allows %.1f", name, p, most)
	}
	// Below by no more than what comes late on a busy machine can forfeit.
	if least := min(float64(n), most); p < 0.9*least {
		faults = append(faults, fmt.Sprintf("%s: %.0f passed of the %.0f that the limit allows", name, p, least))
	}
	return fmt.Sprintf("%s: offered %.0f/s, passed %.0f/s of %d/s and a burst of %d", name, float64(n)/took, p/took, rate, burst), faults
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
