// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
)

// crowd is many users, each with a connection (or a share of one, in HTTP/2) and a time at
// which it asks, whether the last reply took long or not.
type crowd struct {
	url     string
	clients []*http.Client
	users   int
	obey    bool // one that was told to wait does
}

// seen is what became of a crowd's requests.
type seen struct {
	mu      sync.Mutex
	good    int
	served  []time.Duration
	refused []time.Duration // of those sent when it was not too early
	early   int             // refusals of those that did not wait as they were told
	failed  []string
	lastBad time.Time
}

func newCrowd(url string, users int, h2, obey bool) *crowd {
	c := &crowd{url: url, users: users, obey: obey}
	n := users // connections
	if h2 {
		n = 16
	}
	for range n {
		one := client(h2)
		one.Transport.(*http.Transport).MaxIdleConnsPerHost = users
		c.clients = append(c.clients, one)
	}
	return c
}

func (c *crowd) close() {
	for _, one := range c.clients {
		one.CloseIdleConnections()
	}
}

// ask offers rate requests a second for a time; rate 0: as fast as replies come.
func (c *crowd) ask(rate float64, d time.Duration) *seen {
	s := &seen{}
	end := time.Now().Add(d)
	var all sync.WaitGroup
	for u := range c.users {
		all.Go(func() {
			var every time.Duration
			if rate > 0 {
				every = time.Duration(float64(c.users) / rate * float64(time.Second))
			}
			next := time.Now().Add(every * time.Duration(u) / time.Duration(c.users))
			var waits time.Time // until when it was told to
			for {
				time.Sleep(time.Until(next))
				sent := time.Now()
				if sent.After(end) {
					return
				}
				status, err := c.once(c.clients[u%len(c.clients)])
				now := time.Now()
				s.note(status, err, now, now.Sub(sent), sent.Before(waits))
				if status == http.StatusServiceUnavailable {
					waits = now.Add(time.Second)
				}
				next = next.Add(every)
				if next.Before(now) {
					next = now
				}
				if c.obey && next.Before(waits) {
					next = waits
				}
			}
		})
	}
	all.Wait()
	return s
}

func (s *seen) note(status int, err error, at time.Time, took time.Duration, early bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.failed = append(s.failed, err.Error())
	case status == http.StatusOK:
		s.good++
		s.served = append(s.served, took)
		return
	case early:
		s.early++
	default:
		s.refused = append(s.refused, took)
	}
	s.lastBad = at
}

func (c *crowd) once(one *http.Client) (int, error) {
	r, err := one.Get(c.url)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return 0, err
	}
	if r.StatusCode == http.StatusServiceUnavailable && r.Header.Get("Retry-After") != "1" {
		return 0, fmt.Errorf("503 with Retry-After %q", r.Header.Get("Retry-After"))
	}
	return r.StatusCode, nil
}

// quota holds the process to a share of one CPU, in periods so short that it does not stand
// still for long.
func quota(t *testing.T, pid int, percent int) {
	t.Helper()
	dir := fmt.Sprintf("/sys/fs/cgroup/cpu/xgw-test-%d", pid)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip("needs the cpu controller of cgroup v1: ", err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile("/sys/fs/cgroup/cpu/cgroup.procs", []byte(strconv.Itoa(pid)), 0) // or the group is in use
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	for _, w := range []struct{ file, value string }{
		{"cpu.cfs_period_us", "20000"}, {"cpu.cfs_quota_us", strconv.Itoa(200 * percent)}, {"cgroup.procs", strconv.Itoa(pid)},
	} {
		if err := os.WriteFile(filepath.Join(dir, w.file), []byte(w.value), 0); err != nil {
			t.Skip("needs the cpu controller of cgroup v1: ", err)
		}
	}
}

// hurry has this process, and those it starts, go before what else the machine does: here it
// is the test that must not be starved.
func hurry(t *testing.T) {
	t.Helper()
	renice := func(nice int) {
		tasks, _ := filepath.Glob("/proc/self/task/*")
		for _, task := range tasks {
			if tid, err := strconv.Atoi(filepath.Base(task)); err == nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
			}
		}
	}
	renice(-15)
	t.Cleanup(func() { renice(0) })
}

// Offered twice what the worker can do, it does nearly as much as ever, tells the rest at
// once, and the other ports know nothing of it.
func TestOverload(t *testing.T) {
	needRoot(t, "holds the worker to a tenth of a CPU")
	hurry(t)
	path := "/bytes/16384"
	if p := os.Getenv("XGW_OVERLOAD_PATH"); p != "" {
		path = p
	}
	for _, row := range []struct {
		name     string
		h2, obey bool
	}{{"h1", false, true}, {"h2", true, true}, {"h1 that does not wait", false, false}, {"h2 that does not wait", true, false}} {
		t.Run(row.name, func(t *testing.T) {
			if row.h2 && os.Getenv("XGW_OVERLOAD_H2") == "" {
				t.Skip("does not end on some runs, for a cause not found yet: set XGW_OVERLOAD_H2 to look for it")
			}
			dir := t.TempDir()
			up := upstream(t)
			text := func(delay string) string {
				return gatewayYAML(dir, "127.0.0.1:0", up, "workers: 1\noverload_delay: "+delay+"\n")
			}
			g := startGateway(t, startHere, "overload", dir, text("off"))
			ctl := admin.NewClient(admin.SocketPath("overload"))
			use := func(delay string) {
				rewrite(t, filepath.Join(dir, "gateway.yaml"), text(delay))
				if _, err := ctl.Reload(0); err != nil {
					t.Fatal(err)
				}
			}
			quota(t, g.workers(t)["0"], 10)
			url := "https://" + g.address + path
			few, many := newCrowd(url, 64, row.h2, true), newCrowd(url, 400, row.h2, row.obey)
			defer few.close()
			defer many.close()
			few.ask(0, 500*time.Millisecond)
			many.ask(200, 3*time.Second) // all are connected by now
			pid := g.workers(t)["0"]
			work := func(c *crowd, rate float64, d time.Duration) (*seen, time.Duration) {
				before := cpuOf(t, pid)
				s := c.ask(rate, d)
				return s, cpuOf(t, pid) - before
			}
			var all, quiet seen
			var peakGood, good float64
			var peakCPU, cpu time.Duration
			slowest := watchSides(t, g, "overload")
			const overloaded = 4 * time.Second
			for range 2 { // by turns, since the machine has other things to do
				use("off")
				s, used := work(few, 0, time.Second)
				use("2ms")
				peakGood, peakCPU = peakGood+float64(s.good), peakCPU+used
				rate := float64(s.good)
				quiet.add(many.ask(rate/4, time.Second))
				s, used = work(many, 2*rate, overloaded)
				good, cpu = good+float64(s.good), cpu+used
				all.add(s)
			}
			side := slowest()
			share := good / overloaded.Seconds() / peakGood
			perCPU := good / cpu.Seconds() / (peakGood / peakCPU.Seconds())
			t.Logf("peak %.0f/s in %v of CPU; offered twice that %.0f/s (%.2f) in %v of CPU (%.2f by CPU); %d refused, %d of them early; %d failed",
				peakGood/2, peakCPU, good/2/overloaded.Seconds(), share, cpu, perCPU, len(all.refused)+all.early, all.early, len(all.failed))
			t.Logf("refused: median %v, p99 %v; served at a quarter of the peak: median %v, p99 %v; metrics and admin at most %v",
				part(all.refused, 50), part(all.refused, 99), part(quiet.served, 50), part(quiet.served, 99), side)
			began := time.Now()
			after := many.ask(peakGood/2/2, 3*time.Second)
			recovered := after.lastBad.Sub(began)
			t.Logf("at half of the peak again: %d served, %d refused, the last after %v", len(after.served), len(after.refused)+after.early, max(0, recovered))
			judgeOverload(t, &all, &quiet, perCPU, side, recovered)
			if t.Failed() {
				t.Log(grep(g.scrape(t), `outcome="overload"`), g.log.String())
			}
		})
	}
}

// judgeOverload: times may be five times those that were measured with this tenth of a CPU,
// and three times a quiet request's where the machine is slower than that.
func judgeOverload(t *testing.T, all, quiet *seen, perCPU float64, side, recovered time.Duration) {
	t.Helper()
	if len(all.failed) > 0 {
		t.Errorf("%d requests failed, such as: %s", len(all.failed), all.failed[0])
	}
	if len(all.refused) < 20 {
		t.Skipf("%d were refused: this machine is too busy to offer twice what the worker can do", len(all.refused))
	}
	if perCPU < 0.25 { // what others do on the same cores spoils caches, and this figure
		t.Errorf("an exchange served costs %.2f of what it does at the peak", 1/perCPU)
	}
	if most := max(900*time.Millisecond, 3*part(quiet.served, 99)); part(all.refused, 50) > most {
		t.Errorf("half of those refused were told after %v, want %v at most", part(all.refused, 50), most)
	}
	if side > time.Second+3*part(quiet.served, 99) { // ten times what is promised: they share two CPUs with all of this
		t.Errorf("metrics and admin took %v", side)
	}
	if recovered > 5*time.Second {
		t.Errorf("still refused after %v", recovered)
	}
}

func part(d []time.Duration, percent int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)*percent/100, len(d)-1)]
}

func (s *seen) add(other *seen) {
	s.served, s.refused = append(s.served, other.served...), append(s.refused, other.refused...)
	s.failed, s.early, s.good = append(s.failed, other.failed...), s.early+other.early, s.good+other.good
}

// cpuOf is the time that a process has had.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// watchSides asks metrics and the control socket all the while; what it returns ends that and
// says how long the longest answer took.
func watchSides(t *testing.T, g *running, instance string) func() time.Duration {
	stop, done := make(chan struct{}), make(chan time.Duration)
	ctl := admin.NewClient(admin.SocketPath(instance))
	go func() {
		longest := time.Duration(0)
		defer func() { done <- longest }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			began := time.Now()
			r, err := http.Get(g.metrics)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			r.Body.Close()
			longest = max(longest, time.Since(began))
			began = time.Now()
			if err := ctl.Confirm(); err != nil && !strings.Contains(err.Error(), "nothing waits") {
				t.Error(err)
			}
			longest = max(longest, time.Since(began))
		}
	}()
	return func() time.Duration { close(stop); return <-done }
}
