// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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

	"github.com/coder/websocket"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/lab"
)

// upgrader follows a gateway from process to process.
type upgrader struct {
	*running
	ctl *admin.Client
	pid int // of the supervisor

	binary string // to start; empty: the same
	ended  bool
}

func newUpgrader(t *testing.T, g *running, instance string) *upgrader {
	t.Helper()
	u := &upgrader{running: g, ctl: admin.NewClient(admin.SocketPath(instance)), pid: g.cmd.Process.Pid}
	go func() { _, _ = g.cmd.Process.Wait() }() // else it stays a zombie
	g.killed = true                             // stop is ours
	t.Cleanup(func() {
		u.end(t)
		if t.Failed() {
			t.Log(g.log)
		}
	})
	return u
}

// end stops the gateway, whichever process leads.
func (u *upgrader) end(t *testing.T) {
	t.Helper()
	if u.ended {
		return
	}
	u.ended = true
	_ = syscall.Kill(u.pid, syscall.SIGTERM)
	eventually(t, "the gateway ends", func() bool { return syscall.Kill(u.pid, 0) != nil })
}

// upgrade waits until one is possible and does it.
func (u *upgrader) upgrade(t *testing.T) {
	t.Helper()
	before := u.pid
	eventually(t, "an upgrade", func() bool {
		done, err := u.ctl.Upgrade(admin.Upgrade{})
		if err != nil && !notYet(err) {
			t.Fatal(err)
		}
		u.pid = done.PID
		return err == nil
	})
	if u.pid == before {
		t.Fatal("the same process leads")
	}
}

// notYet says that what an upgrade before it, or a kill, left behind is not gone yet.
func notYet(err error) bool {
	return strings.Contains(err.Error(), "finish what is under way") || strings.Contains(err.Error(), "wait until it has finished")
}

// failing is an upgrade that fails, as the error says, once one is possible.
func (u *upgrader) failing(t *testing.T, watch time.Duration, says string) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // workers of one that was killed serve on for a while
		_, err = u.ctl.Upgrade(admin.Upgrade{Binary: u.binary, Watch: watch})
		if err == nil || !notYet(err) || time.Now().After(end) {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %v, want an error with %q", err, says)
	}
}

// faults is the file that names the step at which to fail.
type faults struct{ path string }

// at puts the text there, for whoever asks next.
func (f faults) at(t *testing.T, step string) {
	t.Helper()
	rewrite(t, f.path+".next", step)
	if err := os.Rename(f.path+".next", f.path); err != nil {
		t.Fatal(err)
	}
}

// hold has whoever asks next wait until what asked returns is closed.
func (f faults) hold(t *testing.T) (asked func() *os.File) {
	t.Helper()
	if err := errors.Join(syscall.Mkfifo(f.path+".next", 0o600), os.Rename(f.path+".next", f.path)); err != nil {
		t.Fatal(err)
	}
	return func() *os.File {
		t.Helper()
		var pipe *os.File
		eventually(t, "somebody asks whether to fail", func() bool {
			fd, err := syscall.Open(f.path, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0) // fails while nobody reads
			if err == nil {
				pipe = os.NewFile(uintptr(fd), f.path)
			}
			return err == nil
		})
		return pipe
	}
}

// setByHand has upgrades fail while an operator sets things at whoever leads: what was set last
// holds for whoever leads next, also when the new process cannot tell any more.
func (u *upgrader) setByHand(t *testing.T, f faults, server string) {
	var level admin.Logging // as it was set last
	set := func(drained bool, weight int, word string, lasts time.Duration) {
		t.Helper()
		_, err := u.ctl.SetLogging(admin.SetLogging{Level: word, For: lasts})
		err = errors.Join(err, u.ctl.SetDrained(drained), u.ctl.SetServer(admin.ServerSetting{Upstream: "back", Address: server, Weight: &weight}))
		if err == nil {
			level, err = u.ctl.Logging()
		}
		if err != nil || level.Level != word || (level.Back != "") != (lasts > 0) {
			t.Fatal(level, err)
		}
	}
	holds := func(what string, drained bool, weight int) {
		t.Helper()
		var s admin.Status
		eventually(t, what+": status", func() bool { // a process that ends may have taken the connection
			var err error
			s, err = u.ctl.Status()
			return err == nil
		})
		if s.Drained != drained || len(s.Servers) != 1 || s.Servers[0].Weight != weight {
			t.Errorf("%s: %+v; want drained %v and weight %d", what, s, drained, weight)
		}
		if l, err := u.ctl.Logging(); err != nil || l.Level != level.Level || l.Back != level.Back || !l.Until.Equal(level.Until) {
			t.Errorf("%s: log level %+v, %v; want %+v", what, l, err, level)
		}
	}
	leads := func(which string, is func(pid int) bool) (pid int) {
		t.Helper()
		eventually(t, which+" process leads", func() bool {
			s, err := u.ctl.Status()
			pid = s.PID
			return err == nil && is(pid)
		})
		return pid
	}
	old, fresh := func(pid int) bool { return pid == u.pid }, func(pid int) bool { return pid != u.pid }
	upgrade := func() <-chan error {
		ended := make(chan error, 1)
		go func() {
			for {
				_, err := u.ctl.Upgrade(admin.Upgrade{Watch: time.Minute})
				if err == nil || !strings.Contains(err.Error(), "wait until it has finished") {
					ended <- err
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
		return ended
	}
	fails := func(ended <-chan error, says string) {
		t.Helper()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), says) {
			t.Fatalf("got %v, want an error with %q", err, says)
		}
		leads("the old", old)
	}

	set(true, 2, "debug", 0)
	asked := f.hold(t)
	ended := upgrade()
	ready := asked() // the offer is made, and the lead not given
	set(false, 3, "warn", 0)
	f.at(t, "")
	ready.Close()
	leads("the new", fresh)
	holds("set after the offer", false, 3)
	set(true, 4, "info", time.Hour)
	f.at(t, "check")
	fails(ended, "made to fail at check")
	holds("set before the new one was unwell", true, 4)

	f.at(t, "")
	ended = upgrade()
	pid := leads("the new", fresh)
	holds("as it was offered", true, 4)
	set(false, 5, "error", time.Hour)
	asked = f.hold(t)
	first := asked()
	asked = f.hold(t)
	first.Close()
	second := asked() // the answer to the check before has come
	f.at(t, "")
	_ = syscall.Kill(pid, syscall.SIGKILL)
	second.Close()
	fails(ended, "ended")
	holds("set before the new one was killed", false, 5)
	set(false, 0, "info", 0)
}

// served is an upstream with this handler.
func served(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func echoes(ctx context.Context, t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if _, b, err := c.Read(ctx); err != nil || string(b) != text {
		t.Fatalf("a WebSocket echoes %q, %v; want %q", b, err, text)
	}
}

// load is clients of every kind that never stop, and what went wrong for them.
type load struct {
	served, failed atomic.Int64
	cancel         context.CancelFunc
	clients        sync.WaitGroup
}

func (l *load) end() {
	l.cancel()
	l.clients.Wait()
}

// startLoad has them come from the lab's client, or from here without a lab.
func startLoad(t *testing.T, from *lab.Lab, address string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	t.Cleanup(l.end)
	for _, kind := range []struct {
		name   string
		client *http.Client
		fresh  bool
	}{{"kept h1", client(false), false}, {"new h1", client(false), true}, {"kept h2", client(true), false}, {"new h2", client(true), true}} {
		if from != nil {
			kind.client.Transport.(*http.Transport).DialContext = from.DialFrom(lab.Client)
		}
		l.clients.Go(func() {
			for n := 0; ctx.Err() == nil && l.failed.Load() < 10; n++ {
				// A body and a method that no client sends twice by itself.
				body := strings.Repeat("x", n%3*20_000) + "end"
				r, err := kind.client.Post("https://"+address+"/", "text/plain", io.NopCloser(strings.NewReader(body)))
				if err == nil {
					_, err = io.Copy(io.Discard, r.Body)
					r.Body.Close()
					if err == nil && r.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %d", r.StatusCode)
					}
				}
				if err != nil && strings.Contains(err.Error(), "cannot rewind body after connection loss") {
					continue // net/http's race with a goodbye: nothing of the request was sent
				}
				if err != nil {
					t.Errorf("%s: request %d: %v", kind.name, n, err)
					l.failed.Add(1)
				}
				l.served.Add(1)
				if kind.fresh {
					kind.client.CloseIdleConnections()
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	return l
}

// count is a sum of a metric's series.
func (g *running) count(t *testing.T, name string) (sum float64) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(g.scrape(t), -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// Twenty upgrades under load lose no request, not even one that no client repeats; no counter
// goes down, and WebSockets live until the drain timeout.
func TestUpgradeUnderLoad(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	const instance = "upgrade"
	dir := t.TempDir()
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", echoWebSocket)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	text := gatewayYAML(dir, "127.0.0.1:0", served(t, mux), "workers: 2\npin: false\ntimeouts: {drain: 3s}\n")
	text = strings.Replace(text, "routes:\n", "routes:\n  - {name: ws, path: /ws, upstream: back, websocket: 1m}\n", 1)
	u := newUpgrader(t, startGateway(t, startHere, instance, dir, text), instance)
	l := startLoad(t, nil, u.address)
	began := time.Now()
	requests, accepted := 0.0, 0.0
	for round := range rounds {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		c, _, err := websocket.Dial(ctx, "wss://"+u.address+"/ws", &websocket.DialOptions{HTTPClient: client(false)})
		if err != nil {
			t.Fatal(err)
		}
		u.upgrade(t)
		echoes(ctx, t, c, "after the upgrade") // of a worker that drains
		now, nowAccepted := u.count(t, "xgw_requests_total"), u.count(t, "xgw_connections_total")
		if now <= requests || nowAccepted < accepted {
			t.Fatalf("round %d: %v requests and %v connections were counted, %v and %v before", round, now, nowAccepted, requests, accepted)
		}
		requests, accepted = now, nowAccepted
		if round > 0 {
			c.CloseNow()
		} else if _, _, err := c.Read(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a WebSocket outlives the drain timeout: %v", err)
		}
		cancel()
	}
	l.end()
	if l.failed.Load() > 0 || l.served.Load() < int64(100*rounds) {
		t.Errorf("%d of %d requests failed", l.failed.Load(), l.served.Load())
	}
	eventually(t, "every request is counted", func() bool { return u.count(t, "xgw_requests_total") >= float64(l.served.Load()) })
	lines, err := os.ReadFile(filepath.Join(dir, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "every request is logged", func() bool {
		lines, err = os.ReadFile(filepath.Join(dir, "access.log"))
		return err == nil && int64(strings.Count(string(lines), "POST / ")) == l.served.Load()
	})
	t.Logf("%d rounds in %v, %d requests", rounds, time.Since(began), l.served.Load())
}

// Limits, verdicts, keys of session tickets and the kernel plane's counts go over to the new
// process; the kernel plane gets its programs without a gap, and the last process takes off
// what the first one attached.
func TestUpgradeBothPlanes(t *testing.T) {
	const instance = "upg"
	v := newVerdictLab(t, instance, `limit_req{name = "each", key = "header:X-Key", rate = "1r/h", burst = 100, nodelay = true}`, "timeouts: {drain: 1s}\n")
	u := newUpgrader(t, v.running, instance)
	address := lab.GatewayAddr.String() + ":443"
	c := newClientIn(v.Lab)
	c.Transport.(*http.Transport).TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	pass := func(n int) (ok int) {
		for range n {
			if asks(c, address, "a") == http.StatusOK {
				ok++
			}
		}
		return ok
	}
	if n := pass(60); n != 60 {
		t.Fatalf("%d of 60 pass a fresh bucket of 101", n)
	}
	if _, err := v.ctl.AddVerdict(admin.AddVerdict{Source: "192.0.2.99", Step: "all", TTL: time.Hour, Note: "kept"}); err != nil {
		t.Fatal(err)
	}
	before, packets := statusOf(t, v.Lab, instance), ingress(t, v.Lab, instance)
	rewrite(t, filepath.Join(v.dir, "gateway.yaml"), strings.Replace(v.text, "interfaces: [{name: edge0, mode: native}]", "", 1))
	u.failing(t, 0, "edge0")
	rewrite(t, filepath.Join(v.dir, "gateway.yaml"), v.text)
	rounds, weight := 3, 7
	if testing.Short() {
		rounds = 1
	}
	if err := v.ctl.SetServer(admin.ServerSetting{Upstream: "back", Address: "203.0.113.2:8080", Weight: &weight}); err != nil {
		t.Fatal(err)
	}
	for round := range rounds {
		u.upgrade(t)
		if s, err := v.ctl.Status(); err != nil || len(s.Servers) != 1 || s.Servers[0].Weight != weight {
			t.Errorf("round %d: servers %+v, %v; want the weight that was set by hand, %d", round, s.Servers, err, weight)
		}
		now := statusOf(t, v.Lab, instance)
		if !now.Attached || now.Program == before.Program {
			t.Errorf("round %d: attached is %v with program %d; want another than %d", round, now.Attached, now.Program, before.Program)
		}
		before = now
		c.CloseIdleConnections() // a fresh connection, which resumes
		if n := pass(10); n != 10 {
			t.Errorf("round %d: %d of 10 pass", round, n)
		}
		if got := ingress(t, v.Lab, instance); got <= packets {
			t.Errorf("round %d: %d packets are counted, %d before", round, got, packets)
		} else {
			packets = got
		}
		v.await(t, "the verdict is held", held("192.0.2.99", "all", false))
	}
	// 101 were in the bucket, 60 and 10 a round are gone: within 1 %.
	left := 101 - 60 - 10*rounds
	if n := pass(50); n < left-1 || n > left+1 {
		t.Errorf("%d pass of a bucket that has %d left", n, left)
	}
	text := v.metrics(t)
	if m := regexp.MustCompile(`xgw_tls_handshakes_total\{[^}]*outcome="resumed"[^}]*\} (\d+)`).FindAllStringSubmatch(text, -1); len(m) == 0 {
		t.Error("no handshake was resumed after an upgrade")
	}
	pid := u.pid
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the gateway ends", func() bool { return syscall.Kill(pid, 0) != nil })
	if s := ingressStatus(v.Lab, instance); s != nil {
		t.Error("still attached after a clean stop")
	}
	eventually(t, "no zone is left", func() bool { _, err := os.Stat("/dev/shm/xgw-" + instance + ".zone"); return err != nil })
}

// What refuses, dies, hangs or is not well does not take over: the old process goes on, and no
// request is lost.
func TestUpgradeRollsBack(t *testing.T) {
	const instance = "rollback"
	dir := t.TempDir()
	fault, server := filepath.Join(dir, "fault"), upstream(t)
	t.Setenv("XGW_TEST_FAULT", fault)
	text := gatewayYAML(dir, "127.0.0.1:0", server, "workers: 2\npin: false\ntimeouts: {drain: 1s}\n")
	u := newUpgrader(t, startGateway(t, startHere, instance, dir, text), instance)
	path := filepath.Join(dir, "gateway.yaml")
	l := startLoad(t, nil, u.address)
	script := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct{ name, binary, fault, config, says string }{
		{"no file", dir + "/none", "", "", "no such file"},
		{"no program", path, "", "", "no program"},
		{"dies at once", script("false", "exit 1"), "", "", "ended"},
		{"hangs", script("hang", "exec sleep 60"), "", "", "did not say"},
		{"configuration with a fault", "", "", text + "nonsense: 1\n", "ended"},
		{"other number of workers", "", "", strings.Replace(text, "workers: 2", "workers: 1", 1), "restart"},
		{"fails before it leads", "", "ready", "", "made to fail at ready"},
		{"fails to lead", "", "lead", "", "made to fail at lead"},
		{"is not well", "", "check", "", "made to fail at check"},
		{"fails at the last moment", "", "settle", "", "made to fail at settle"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if testing.Short() && tt.name == "hangs" {
				t.Skip("takes 15 s")
			}
			if tt.config != "" {
				rewrite(t, path, tt.config)
				defer rewrite(t, path, text)
			}
			rewrite(t, fault, tt.fault)
			defer rewrite(t, fault, "")
			u.binary = tt.binary
			u.failing(t, 300*time.Millisecond, tt.says)
			u.binary = ""
			before := u.count(t, "xgw_requests_total")
			eventually(t, "requests are counted on", func() bool { return u.count(t, "xgw_requests_total") > before })
			if tt.config == "" {
				if _, err := u.ctl.Reload(0); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("set by hand, and killed while it is watched", func(t *testing.T) { u.setByHand(t, faults{fault}, server) })
	t.Run("not well, with a zone of its own", func(t *testing.T) {
		rewrite(t, filepath.Join(dir, "buffers.conf"), "shared_memory_zone 96m\n")
		rewrite(t, fault, "check")
		defer rewrite(t, fault, "")
		before := u.count(t, "xgw_requests_total")
		u.failing(t, 0, "made to fail at check")
		if now := u.count(t, "xgw_requests_total"); now < before {
			t.Errorf("%v requests are counted, %v before: not the zone before", now, before)
		}
	})
	if syscall.Kill(u.pid, 0) != nil {
		t.Error("the old process is gone")
	}
	// A good one is still possible, and one into another zone says so.
	before := u.count(t, "xgw_requests_total")
	u.upgrade(t)
	if now := u.count(t, "xgw_requests_total"); now >= before {
		t.Errorf("%v requests are counted, %v before: a zone of another size was not made anew", now, before)
	}
	if !strings.Contains(u.log.String(), "counters begin anew") {
		t.Error("nobody says that counters begin anew")
	}
	l.end()
	eventually(t, "what the old workers served is logged, too", func() bool {
		lines, err := os.ReadFile(filepath.Join(dir, "access.log"))
		return err == nil && int64(strings.Count(string(lines), "POST / ")) == l.served.Load()
	})
	if l.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", l.failed.Load(), l.served.Load())
	}
}

// A gateway that is told to stop in the midst of an upgrade stops, whichever of its processes
// hears of it, and leaves nothing; other signals end none of them.
func TestUpgradeIsStopped(t *testing.T) {
	start := func(t *testing.T, instance string) (u *upgrader, zone string) {
		dir := t.TempDir()
		text := gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\ntimeouts: {drain: 1s}\n")
		u = newUpgrader(t, startGateway(t, startHere, instance, dir, text), instance)
		return u, "/dev/shm/xgw-" + instance + ".zone"
	}
	over := func(t *testing.T, zone string, pids ...int) {
		t.Helper()
		for _, pid := range pids {
			eventually(t, fmt.Sprintf("process %d ends", pid), func() bool { return syscall.Kill(pid, 0) != nil })
		}
		for _, path := range []string{zone, zone + ".old"} {
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s is left", path)
			}
		}
	}
	t.Run("before the new one is ready", func(t *testing.T) {
		t.Parallel()
		u, zone := start(t, "stopsoon")
		hang := filepath.Join(u.dir, "hang")
		if err := os.WriteFile(hang, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := u.ctl.Upgrade(admin.Upgrade{Binary: hang})
			ended <- err
		}()
		eventually(t, "the new one starts", func() bool { return strings.Contains(u.log.String(), "another supervisor starts") })
		_ = syscall.Kill(u.pid, syscall.SIGTERM)
		if err := <-ended; err == nil {
			t.Error("the upgrade is said to be done")
		}
		over(t, zone, u.pid)
	})
	t.Run("while the new one is watched", func(t *testing.T) {
		t.Parallel()
		u, zone := start(t, "stoplate")
		ended := make(chan error, 1)
		go func() {
			_, err := u.ctl.Upgrade(admin.Upgrade{Watch: time.Minute})
			ended <- err
		}()
		fresh := 0
		eventually(t, "the new one leads", func() bool {
			s, err := u.ctl.Status()
			fresh = s.PID
			return err == nil && fresh != u.pid
		})
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1} {
			_ = syscall.Kill(u.pid, sig)
		}
		eventually(t, "it goes on", func() bool { s, err := u.ctl.Status(); return err == nil && s.PID == fresh })
		_ = syscall.Kill(fresh, syscall.SIGTERM)
		<-ended
		over(t, zone, fresh, u.pid)
	})
}
