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
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
)

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
	const period = 4_000 // µs: a slow CPU more than one that stands still
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
	needRoot(t, "holds the worker to a quarter of a CPU")
	control(t, os.Getpid(), 0)
	const large = 16 << 10
	rows := []overloadRow{
		{"h1", false, true, 0.5, 0, large}, {"h2", true, true, 0.5, 0, large},
		{"h1 that does not wait", false, false, 0.25, 0, large}, {"h2 that does not wait", true, false, 0.35, 0, large},
	}
	settle := 3 * time.Second                  // whoever came before the overload was noticed learns as late that it is as others are served
	if os.Getenv("XGW_OVERLOAD_SIZES") != "" { // for the figures
		rows = append(rows,
			overloadRow{"h1 of 100 bytes", false, true, 0.5, 0, 100}, overloadRow{"h2 of 100 bytes", true, true, 0.5, 0, 100},
			overloadRow{"h1 with bodies", false, true, 0.5, large, 100}, overloadRow{"h2 with bodies", true, true, 0.5, large, 100})
		settle = 10 * time.Second
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			o := newOverloading(t, row, settle)
			bad := 0
			for range 5 { // the machine has other things to do, and some of the crowd's CPU is the hypervisor's
				wrong := o.round(t, row.least)
				if len(wrong) == 0 {
					return
				}
				t.Log(wrong)
				if wrong[0] != tooBusy {
					bad++
				}
				if bad == 3 {
					t.Fatalf("%v\n%s%s", wrong, grep(o.g.scrape(t), `outcome="overload"`), o.g.log)
				}
			}
			t.Skip(tooBusy)
		})
	}
}

const tooBusy = "this machine is too busy to offer twice what the worker can do"

type overloadRow struct {
	name        string
	h2, obey    bool
	least       float64 // goodput, in peaks; about half of what it is on a quiet machine, or less
	body, reply int     // bytes; of a GET the body has none
}

// overloading is a gateway whose only worker is offered too much.
type overloading struct {
	up, dir   string
	g         *running
	worker    int
	few, many *crowd
	settle    time.Duration
}

func newOverloading(t *testing.T, row overloadRow, settle time.Duration) *overloading {
	t.Helper()
	dir := t.TempDir()
	o := &overloading{up: upstream(t), dir: dir, settle: settle}
	o.g = startGateway(t, startHere, "overload", dir, o.text("off"))
	o.worker = o.g.workers(t)["0"]
	path := fmt.Sprintf("/bytes/%d", row.reply)
	var body []byte
	if row.body > 0 {
		body = make([]byte, row.body)
	}
	o.few = newCrowd(t, o.g.address, path, body, o.worker, 64, row.h2, true)
	o.many = newCrowd(t, o.g.address, path, body, o.worker, 4000, row.h2, row.obey)
	o.few.ask(0, 200*time.Millisecond)
	o.many.ask(4000, time.Second) // everybody has asked once by now
	control(t, o.worker, 25)
	return o
}

func (o *overloading) text(delay string) string {
	return gatewayYAML(o.dir, "127.0.0.1:0", o.up, "workers: 1\ntimeouts: {keepalive: 120s}\noverload_delay: "+delay+"\n")
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

// speed is what the worker did in a while.
type speed struct{ rate, cpu float64 }

func (p speed) String() string {
	return fmt.Sprintf("%.0f/s (%.0f us each, %.3f of a CPU)", p.rate, p.cpu/p.rate*1e6, p.cpu)
}

func (o *overloading) measure(c *crowd, rate float64, d time.Duration) (speed, *seen) {
	before, after := workOf(o.worker), make(chan time.Duration, 1)
	time.AfterFunc(d, func() { after <- workOf(o.worker) }) // some replies come later
	s := c.ask(rate, d)
	return speed{float64(s.good) / d.Seconds(), (<-after - before).Seconds() / d.Seconds()}, s
}

// peak is the most that the worker serves: of a few clients that never pause, and of the crowd
// that is to overload it, at whatever rate that is. What it does for half a second it may not do for long, so the figures take longer.
func (o *overloading) peak(t *testing.T) (ofFew, ofCrowd speed) {
	t.Helper()
	each := max(500*time.Millisecond, o.settle/5)
	o.use(t, "off")
	ofFew, _ = o.measure(o.few, 0, each)
	o.use(t, "5ms")
	for _, part := range []float64{0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1} {
		if p, _ := o.measure(o.many, part*ofFew.rate, each); p.rate > ofCrowd.rate {
			ofCrowd = p
		}
		o.forget(t)
	}
	return ofFew, ofCrowd
}

// forget lets the crowd forget that it was told to wait, and the gateway that it told anybody so: it would wait for those whom it told, and
// have places in the line for as many as it has served already.
func (o *overloading) forget(t *testing.T) {
	t.Helper()
	clear(o.many.waits)
	o.use(t, "off")
	o.use(t, "5ms")
}

// round compares the worker under twice its load to its peak, and says what is wrong. Bounds
// forgive a machine that does much else.
func (o *overloading) round(t *testing.T, least float64) (wrong []string) {
	t.Helper()
	ofFew, peak := o.peak(t)
	slowest := watchSides(t, o.g, "overload")
	noticed := false
	for range 10 {
		if s := o.many.ask(2*peak.rate, 500*time.Millisecond); len(s.refused)+s.early > 0 {
			noticed = true
			break
		}
	}
	o.many.ask(2*peak.rate, o.settle)
	now, s := o.measure(o.many, 2*peak.rate, 2*o.settle)
	began := time.Now()
	again := o.many.ask(peak.rate/2, 3*time.Second)
	recovered := max(0, again.lastBad.Sub(began))
	side := slowest()
	fewAfter, peakAfter := o.peak(t)
	goodput := now.rate / ((peak.rate + peakAfter.rate) / 2) // the machine may be another by now
	t.Logf("peak %v, later %v; of few clients %v, later %v; at twice that %v: %.2f of the peak; %d asked, %d refused, %d of them early, the others told to wait for %.1f s", peak, peakAfter, ofFew, fewAfter, now, goodput, s.sent, len(s.refused)+s.early, s.early, s.waits.Seconds()/float64(max(1, len(s.refused))))
	t.Logf("refused after work of median %v, p90 %v, p99 %v; served after median %v, p99 %v", part(s.refused, 50), part(s.refused, 90), part(s.refused, 99), part(s.served, 50), part(s.served, 99))
	t.Logf("metrics and admin at most %v; at half of the peak again: %d served, %d refused, the last after %v", side, again.good, len(again.refused)+again.early, recovered)
	if !noticed {
		if late := part(s.served, 50); late > 45*time.Millisecond { // twice the wait at which an overload begins
			return []string{fmt.Sprintf("nobody is refused, and half of all wait for %v of work", late)}
		}
		return []string{tooBusy}
	}
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if failed := append(s.failed, again.failed...); len(failed) > 0 {
		say("%d requests failed, such as: %s", len(failed), failed[0])
	}
	if goodput < least {
		say("goodput is %.2f of the peak", goodput)
	}
	// Five times what is promised; 60 and more it is without turns, and for the few who are refused before an overload is noticed again.
	if late := part(s.refused, 90); len(s.refused) >= 50 && late > 25*time.Millisecond {
		say("one of ten of those refused was told after %v of work", late)
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
			if _, err := ctl.Logging(); err != nil {
				t.Error(err)
			}
			longest = max(longest, time.Since(began))
		}
	}()
	return func() time.Duration { close(stop); return <-done }
}
