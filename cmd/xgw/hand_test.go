// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// handled is a server whose requests for /slow wait until they are let go.
type handled struct {
	address      string
	served, slow atomic.Int64
	hold         chan struct{}
}

func newHandled(t *testing.T) *handled {
	t.Helper()
	h := &handled{hold: make(chan struct{})}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			h.slow.Add(1)
			<-h.hold
		}
		h.served.Add(1)
		_, _ = io.WriteString(w, "whole")
	}))
	t.Cleanup(s.Close)
	h.address = s.Listener.Addr().String()
	return h
}

// A server is drained by hand under load: no request is lost, those under way end, none comes
// afterwards, not after a reload either, and not in a worker that comes up; then it is enabled, and weighted.
func TestServersByHand(t *testing.T) {
	const instance = "byhand"
	dir := t.TempDir()
	one, two := newHandled(t), newHandled(t)
	text := func(more string) string {
		s := gatewayYAML(dir, "127.0.0.1:0", one.address, "workers: 2\npin: false\n")
		return strings.Replace(s, fmt.Sprintf("servers: [%q]", one.address), fmt.Sprintf("servers: [%q, %q], slow_start: off%s", one.address, two.address, more), 1)
	}
	g := startGateway(t, startHere, instance, dir, text(""))
	ctl := func(want int, words ...string) string {
		t.Helper()
		status, out, errs := inProcess(append(append([]string{"ctl", "upstreams"}, words...), "--instance", instance)...)
		if status != want {
			t.Errorf("%v: status %d, %s%s", words, status, out, errs)
		}
		return out + errs
	}
	var load sync.WaitGroup
	over := make(chan struct{})
	var asked atomic.Int64
	get := func(c *http.Client, path string) bool {
		r, err := c.Get("https://" + g.address + path)
		if err != nil {
			t.Errorf("lost: %v", err)
			return false
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != 200 || string(b) != "whole" {
			t.Errorf("lost: %d %q %v", r.StatusCode, b, err)
		}
		return err == nil
	}
	for i := range 6 {
		load.Go(func() {
			for n := 0; ; n++ {
				c := client(i%2 == 0) // connections of its own, so that both workers get some
				for range 20 {
					select {
					case <-over:
						c.CloseIdleConnections()
						return
					default:
					}
					if !get(c, "/") {
						return
					}
					asked.Add(1)
				}
				c.CloseIdleConnections()
			}
		})
	}
	wait := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(15 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	some := func(h *handled, n int64, what string) {
		t.Helper()
		before := h.served.Load()
		wait(what, func() bool { return h.served.Load() >= before+n })
	}
	none := func(what string) { // while the other one has many
		t.Helper()
		before := two.served.Load()
		some(one, 200, what)
		if n := two.served.Load() - before; n != 0 {
			t.Errorf("%s: a drained server got %d requests", what, n)
		}
	}
	some(one, 20, "one serves")
	some(two, 20, "two serves")
	for range 8 { // of which some are at two
		load.Go(func() { c := client(true); defer c.CloseIdleConnections(); get(c, "/slow") })
	}
	wait("slow requests are under way", func() bool { return one.slow.Load()+two.slow.Load() == 8 && two.slow.Load() > 0 })
	close(one.hold)

	ctl(0, "drain", "back", two.address)
	quiet := func() { // until both workers have heard of it
		t.Helper()
		wait("it gets no more requests", func() bool {
			before := two.served.Load()
			some(one, 50, "one serves")
			return two.served.Load() == before
		})
	}
	quiet()
	none("drained")
	held := two.slow.Load()
	before := two.served.Load()
	close(two.hold)
	wait("what was under way ends", func() bool { return two.served.Load() == before+held })
	if out := ctl(1, "drain", "back", one.address); !strings.Contains(out, "no other server") {
		t.Errorf("the last one: %s", out)
	}
	if out := ctl(1, "drain", "back", "127.0.0.1:1"); !strings.Contains(out, two.address) {
		t.Errorf("an unknown one: %s", out)
	}
	ctl(1, "enable", "elsewhere", two.address)
	ctl(2, "weight", "back", two.address, "1001")
	if status, out, _ := inProcess("ctl", "status", "--instance", instance); status != 0 || strings.Count(out, "drained") != 1 {
		t.Errorf("status %d: %s", status, out)
	}
	for _, more := range []string{"", ", header_timeout: 6s", ", resolve: 20s"} { // not changed, changed, watched anew
		rewrite(t, filepath.Join(dir, "gateway.yaml"), text(more))
		if status, out, errs := inProcess("ctl", "reload", "--instance", instance); status != 0 {
			t.Fatal(out, errs)
		}
		none("after a reload" + more)
	}
	close(over)
	load.Wait()
	over = make(chan struct{})
	victim := g.workers(t)["0"] // with no client connected to it
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait("a new worker", func() bool { now := g.workers(t); return len(now) == 2 && now["0"] != victim })
	burst := func(n int) {
		t.Helper()
		var all sync.WaitGroup
		for range n {
			all.Go(func() { c := client(false); defer c.CloseIdleConnections(); get(c, "/"); get(c, "/") })
		}
		all.Wait()
	}
	before = two.served.Load()
	burst(40)
	if n := two.served.Load() - before; n != 0 {
		t.Errorf("in a new worker: %d requests", n)
	}
	ctl(0, "enable", "back", two.address)
	wait("it is back", func() bool { burst(4); return two.served.Load() > before })
	ctl(0, "weight", "back", two.address, "9")
	share := func() float64 {
		a, b := one.served.Load(), two.served.Load()
		burst(100)
		a, b = one.served.Load()-a, two.served.Load()-b
		return float64(b) / float64(a+b)
	}
	wait("nine of ten go there", func() bool { s := share(); return s > 0.8 && s < 0.97 })
	t.Logf("%d requests while it was drained, reloaded and enabled", asked.Load())
}
