// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
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

	"github.com/xgw-project/xgw/pkg/admin"
)

// ailing is a server whose checks fail when it is told so, and that serves all the same.
type ailing struct {
	address string
	ill     atomic.Bool
	served  atomic.Int64
}

func newAiling(t *testing.T) *ailing {
	t.Helper()
	a := &ailing{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			if a.ill.Load() {
				w.WriteHeader(503)
			}
			return
		}
		a.served.Add(1)
		_, _ = io.WriteString(w, "whole")
	}))
	t.Cleanup(s.Close)
	a.address = s.Listener.Addr().String()
	return a
}

// A server whose checks fail leaves balance in all workers at once, also in one that comes
// up meanwhile and after a reload, and comes back when they are good; no request is lost,
// and metrics and gateway-ctl show it.
func TestHealthChecks(t *testing.T) {
	const instance = "health"
	dir := t.TempDir()
	one, two := newAiling(t), newAiling(t)
	text := func(more string) string {
		s := gatewayYAML(dir, "127.0.0.1:0", one.address, "workers: 2\npin: false\n")
		return strings.Replace(s, fmt.Sprintf("servers: [%q]", one.address), fmt.Sprintf(
			"servers: [%q, %q], slow_start: off%s, health: {path: /health, interval: 100ms, timeout: 10s, rise: 2, fall: 2}",
			one.address, two.address, more), 1)
	}
	g := startGateway(t, startHere, instance, dir, text(""))
	ctl := admin.NewClient(admin.SocketPath(instance))
	state := func(i int, want string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			s, err := ctl.Status()
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Servers) == 2 && s.Servers[i].State == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("server %d is not %s: %+v", i, want, s)
			}
		}
	}
	// Connections of their own, so that both workers get some.
	burst := func(n int) {
		t.Helper()
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				c := client(false)
				defer c.CloseIdleConnections()
				for range 4 {
					if got := bodyOf(t, c, "https://"+g.address+"/"); got != "whole" {
						t.Errorf("%q", got)
					}
				}
			})
		}
		all.Wait()
	}
	both := func(what string) { // messages to two workers are under way
		t.Helper()
		eventually(t, what+": both servers are asked", func() bool {
			a, b := one.served.Load(), two.served.Load()
			burst(10)
			return one.served.Load() > a && two.served.Load() > b
		})
	}
	only := func(what string) {
		t.Helper()
		eventually(t, what+": both workers know", func() bool {
			b := two.served.Load()
			burst(10)
			return two.served.Load() == b
		})
		b := two.served.Load()
		burst(10)
		if n := two.served.Load() - b; n != 0 {
			t.Errorf("%s: a server that is down got %d requests", what, n)
		}
	}
	state(0, "up")
	state(1, "up")
	both("well")
	two.ill.Store(true)
	state(1, "down")
	only("ill")
	metrics := g.scrape(t)
	for _, want := range []string{
		fmt.Sprintf("xgw_upstream_server_up{server=%q,upstream=\"back\"} 1", one.address),
		fmt.Sprintf("xgw_upstream_server_up{server=%q,upstream=\"back\"} 0", two.address),
		fmt.Sprintf("xgw_upstream_health_checks_total{result=\"bad\",server=%q,upstream=\"back\"}", two.address),
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics do not have %s", want)
		}
	}
	status, out, errs := inProcess("ctl", "status", "--instance", instance)
	if status != 0 || !strings.Contains(out, two.address) || !strings.Contains(out, "down") || !strings.Contains(out, "status 503") {
		t.Errorf("%d %s %s", status, out, errs)
	}
	status, out, _ = inProcess("ctl", "status", "--json", "--instance", instance)
	var s admin.Status
	if err := json.Unmarshal([]byte(out), &s); status != 0 || err != nil || len(s.Servers) != 2 || s.Servers[1].Cause != "status 503" {
		t.Errorf("%d %s %v", status, out, err)
	}
	rewrite(t, filepath.Join(dir, "gateway.yaml"), text(", header_timeout: 6s"))
	if _, err := ctl.Reload(0); err != nil {
		t.Fatal(err)
	}
	only("after a reload")
	victim := g.workers(t)["0"]
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if now := g.workers(t); len(now) == 2 && now["0"] != victim {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no new worker")
		}
	}
	only("in a new worker")
	two.ill.Store(false)
	state(1, "up")
	both("well again")
}
