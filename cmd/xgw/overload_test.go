// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
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
	body    []byte // of a POST; nil: it is a GET
	clients []*http.Client
	waits   []time.Time // each user, by when it was told to
	obey    bool        // and does so
	worker  int         // whose work is between a request and its reply
}

// seen is what became of a crowd's requests.
type seen struct {
	mu      sync.Mutex
	good    int
	served  []time.Duration
	refused []time.Duration // after so much work of the worker; of those sent when it was not too early
	early   int             // refusals of those that did not wait as they were told
	failed  []string
	lastBad time.Time
}

func newCrowd(url string, body []byte, worker, users int, h2, obey bool) *crowd {
	c := &crowd{url: url, body: body, worker: worker, waits: make([]time.Time, users), obey: obey}
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

// ask offers rate requests a second for a time; rate 0: as fast as replies come. Replies after
// that time are not counted: of those, nothing new comes any more.
func (c *crowd) ask(rate float64, d time.Duration) *seen {
	s := &seen{}
	end := time.Now().Add(d)
	var all sync.WaitGroup
	for u := range c.waits {
		all.Go(func() {
			var every time.Duration
			if rate > 0 {
				every = time.Duration(float64(len(c.waits)) / rate * float64(time.Second))
			}
			next := time.Now().Add(every * time.Duration(u) / time.Duration(len(c.waits)))
			for {
				for c.obey && next.Before(c.waits[u]) { // at the next of its own times
					next = next.Add(max(every, time.Millisecond))
				}
				if !next.Before(end) {
					return
				}
				time.Sleep(time.Until(next))
				sent, before := time.Now(), workOf(c.worker)
				status, wait, err := c.once(c.clients[u%len(c.clients)])
				now, work := time.Now(), workOf(c.worker)-before
				if err != nil || now.Before(end) {
					s.note(status, err, now, work, sent.Before(c.waits[u]))
				}
				if status == http.StatusServiceUnavailable {
					c.waits[u] = now.Add(wait)
				}
				next = next.Add(every)
				if next.Before(now) {
					next = now
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

// once asks, and says for how long it was told to wait.
func (c *crowd) once(one *http.Client) (status int, wait time.Duration, err error) {
	method, body := http.MethodGet, io.Reader(nil)
	if c.body != nil {
		method, body = http.MethodPost, bytes.NewReader(c.body)
	}
	req, err := http.NewRequest(method, c.url, body)
	if err != nil {
		return 0, 0, err
	}
	r, err := one.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return 0, 0, err
	}
	if r.StatusCode == http.StatusServiceUnavailable {
		after, err := strconv.Atoi(r.Header.Get("Retry-After"))
		if err != nil || after < 1 {
			return 0, 0, fmt.Errorf("503 with Retry-After %q", r.Header.Get("Retry-After"))
		}
		wait = time.Duration(after) * time.Second
	}
	return r.StatusCode, wait, nil
}

// control puts the process into a control group of its own that goes before what else the
// machine does: here it is the test that must not be starved. A share of one CPU, in percent, is
// all that it gets then; 0: no bound.
func control(t *testing.T, pid, percent int) {
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
	const period = 10_000 // µs
	quota := -1
	if percent > 0 {
		quota = period * percent / 100
	}
	for _, w := range []struct {
		file  string
		value int
	}{{"cpu.shares", 1 << 18}, {"cpu.cfs_period_us", period}, {"cpu.cfs_quota_us", quota}, {"cgroup.procs", pid}} {
		if err := os.WriteFile(filepath.Join(dir, w.file), []byte(strconv.Itoa(w.value)), 0); err != nil {
			t.Skip("needs the cpu controller of cgroup v1: ", err)
		}
	}
}

// Offered twice what the worker can do, it does nearly as much as ever, tells the rest at
// once, and the other ports know nothing of it. Times of a reply are in the worker's own, its
// work between request and reply: a quota lets it stand still for most of the clock's.
func TestOverload(t *testing.T) {
	needRoot(t, "holds the worker to a tenth of a CPU")
	control(t, os.Getpid(), 0)
	type row struct {
		name        string
		h2, obey    bool
		users       int
		least       float64 // goodput, in peaks; half of what it is on a quiet machine, or less
		body, reply int     // bytes; of a GET the body has none
	}
	rows := []row{
		{"h1", false, true, 600, 0.4, 0, 16 << 10}, {"h2", true, true, 1000, 0.4, 0, 16 << 10},
		{"h1 that does not wait", false, false, 600, 0.25, 0, 16 << 10}, {"h2 that does not wait", true, false, 1000, 0.4, 0, 16 << 10},
	}
	if os.Getenv("XGW_OVERLOAD_SIZES") != "" { // for the figures: nothing else differs
		rows = append(rows,
			row{"h1 of 100 bytes", false, true, 600, 0.25, 0, 100}, row{"h2 of 100 bytes", true, true, 1000, 0.25, 0, 100},
			row{"h1 with bodies", false, true, 600, 0.25, 16 << 10, 100}, row{"h2 with bodies", true, true, 1000, 0.25, 16 << 10, 100})
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			o := &overloading{up: upstream(t), dir: dir}
			o.g = startGateway(t, startHere, "overload", dir, o.text("off"))
			o.worker = o.g.workers(t)["0"]
			url := fmt.Sprintf("https://%s/bytes/%d", o.g.address, row.reply)
			var body []byte
			if row.body > 0 {
				body = make([]byte, row.body)
			}
			o.few, o.many = newCrowd(url, body, o.worker, 64, row.h2, true), newCrowd(url, body, o.worker, row.users, row.h2, row.obey)
			defer o.few.close()
			defer o.many.close()
			o.few.ask(0, 200*time.Millisecond)
			o.many.ask(2000, time.Second) // all are connected by now
			control(t, o.worker, 10)
			var wrong []string
			for range 3 { // the machine has other things to do
				if wrong = o.round(t, row.least); len(wrong) == 0 {
					return
				}
				t.Log(wrong)
			}
			if wrong[0] == tooBusy {
				t.Skip(tooBusy)
			}
			t.Errorf("%v\n%s%s", wrong, grep(o.g.scrape(t), `outcome="overload"`), o.g.log)
		})
	}
}

const tooBusy = "this machine is too busy to offer twice what the worker can do"

// overloading is a gateway whose only worker is offered too much.
type overloading struct {
	up, dir   string
	g         *running
	worker    int
	few, many *crowd
}

func (o *overloading) text(delay string) string {
	return gatewayYAML(o.dir, "127.0.0.1:0", o.up, "workers: 1\noverload_delay: "+delay+"\n")
}

func (o *overloading) use(t *testing.T, delay string) {
	t.Helper()
	rewrite(t, filepath.Join(o.dir, "gateway.yaml"), o.text(delay))
	if _, err := admin.NewClient(admin.SocketPath("overload")).Reload(0); err != nil {
		t.Fatalf("%v\n%s", err, o.g.log)
	}
	if pid := o.g.workers(t)["0"]; pid != o.worker {
		t.Fatalf("worker %d was replaced by %d\n%s", o.worker, pid, o.g.log)
	}
}

// peak is the most that the worker serves: of a few clients that never pause, and of the crowd
// that is to overload it, at whatever rate that is.
func (o *overloading) peak(t *testing.T) (ofFew, ofCrowd float64) {
	t.Helper()
	const each = 500 * time.Millisecond
	rate := func(s *seen) float64 { return float64(s.good) / each.Seconds() }
	o.use(t, "off")
	ofFew = rate(o.few.ask(0, each))
	o.use(t, "5ms")
	for _, part := range []float64{0.8, 0.9, 1} {
		ofCrowd = max(ofCrowd, rate(o.many.ask(part*ofFew, each)))
	}
	return ofFew, ofCrowd
}

// round compares the worker under twice its load to its peak, and says what is wrong. Bounds
// forgive a machine that does much else.
func (o *overloading) round(t *testing.T, least float64) (wrong []string) {
	t.Helper()
	ofFew, peak := o.peak(t)
	if peak < 50 {
		return []string{tooBusy}
	}
	slowest := watchSides(t, o.g, "overload")
	for range 20 { // until it is noticed: a tenth of a CPU is slow
		if s := o.many.ask(2*peak, 500*time.Millisecond); len(s.refused)+s.early > 0 {
			break
		}
	}
	o.many.ask(2*peak, time.Second)
	const long = 2 * time.Second
	work := workOf(o.worker)
	s := o.many.ask(2*peak, long)
	work = workOf(o.worker) - work
	began := time.Now()
	again := o.many.ask(peak/2, 3*time.Second)
	recovered := max(0, again.lastBad.Sub(began))
	side := slowest()
	rate := float64(s.good) / long.Seconds()
	goodput := rate / peak
	t.Logf("peak %.0f/s, %.0f/s of few clients; at twice that %.0f/s, %.2f and %.2f of them, in %.3f of a CPU; %d refused, %d of them early; after work of median %v, p90 %v, p99 %v; served after median %v, p99 %v",
		peak, ofFew, rate, goodput, rate/ofFew, work.Seconds()/long.Seconds(), len(s.refused)+s.early, s.early, part(s.refused, 50), part(s.refused, 90), part(s.refused, 99), part(s.served, 50), part(s.served, 99))
	t.Logf("metrics and admin at most %v; at half of the peak again: %d served, %d refused, the last after %v", side, again.good, len(again.refused)+again.early, recovered)
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	// Where hardly anybody is refused the load was at the edge of an overload, which comes and goes:
	// who is refused then waited for it to be noticed.
	if len(s.refused)+s.early < max(20, s.good/10) {
		if late := part(s.served, 50); late > 45*time.Millisecond { // twice the wait at which an overload begins; 60 and more where none does
			say("nearly nobody is refused, and half of the others wait for %v of work", late)
			return wrong
		}
		return []string{tooBusy}
	}
	if failed := append(s.failed, again.failed...); len(failed) > 0 {
		say("%d requests failed, such as: %s", len(failed), failed[0])
	}
	if goodput < least {
		say("goodput is %.2f of the peak", goodput)
	}
	if late := part(s.refused, 50); late > 10*time.Millisecond { // 5 are promised; 60 and more without turns
		say("half of those refused were told after %v of work", late)
	}
	if late := part(s.refused, 99); late > 25*time.Millisecond {
		say("one in a hundred of those refused was told after %v of work", late)
	}
	if side > 500*time.Millisecond { // five times what is promised: they share two CPUs with all of this
		say("metrics and admin took %v", side)
	}
	if recovered > 2500*time.Millisecond {
		say("still refused after %v", recovered)
	}
	return wrong
}

func part(d []time.Duration, percent int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)*percent/100, len(d)-1)]
}

// workOf is the time that a process has had of the CPUs, by its own clock; 0 when it is gone.
func workOf(pid int) time.Duration {
	const sched = 2 // CPUCLOCK_SCHED: see clock_getcpuclockid(3)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
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
