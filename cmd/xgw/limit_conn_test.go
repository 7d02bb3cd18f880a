// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// What may be open at once is one number over both workers. A worker that is killed under
// load gives back what it had, and no more: again and again as many requests are under way
// as the limit says.
func TestConnectionLimitsOverWorkers(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	const most = 6
	var under, peak atomic.Int64
	var slow atomic.Bool
	slow.Store(true)
	back := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n := under.Add(1)
		defer under.Add(-1)
		for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
		}
		for slow.Load() && r.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}))
	t.Cleanup(back.Close)
	dir := t.TempDir()
	rewrite(t, dir+"/ratelimit.lua", fmt.Sprintf(`limit_conn{name = "calls", count = "requests", key = "header:X-Key", max = %d}
limit_conn{name = "clients", max = 60}`, most))
	g := startGateway(t, startHere, "connlimit", dir, gatewayYAML(dir, "127.0.0.1:0", back.Listener.Addr().String(), "workers: 2\n"))
	clients := make([]*http.Client, 4)
	for i := range clients {
		clients[i] = client(i%4 < 2)
		clients[i].Transport.(*http.Transport).DialContext = dialOn(i % 2) // half of them at each worker
	}
	// fill has as many under way as may be: that many pass, and not one more.
	fill := func(when string) {
		t.Helper()
		slow.Store(true)
		var done sync.WaitGroup
		var passed atomic.Int64
		for i := range most {
			done.Go(func() {
				for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
					// A worker that is just back, and a kept connection of the one before, may fail a request.
					if asks(clients[i%4], g.address, "k") == 200 {
						passed.Add(1)
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		for end := time.Now().Add(20 * time.Second); under.Load() < most; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d requests are under way, %d may be", when, under.Load(), most)
			}
		}
		for i := range 8 {
			if got := asks(clients[i%4], g.address, "k"); got != 429 {
				t.Errorf("%s: one more at once: %d", when, got)
			}
		}
		slow.Store(false)
		done.Wait()
		if passed.Load() != most {
			t.Errorf("%s: %d passed in the end", when, passed.Load())
		}
	}
	fill("at first")
	if n := peak.Load(); n != most {
		t.Errorf("%d were under way at once, %d may be", n, most)
	}
	for round := range 3 {
		load, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range 12 {
			running.Go(func() {
				for load.Err() == nil {
					asks(clients[i%4], g.address, "k")
				}
			})
		}
		time.Sleep(150 * time.Millisecond)
		victim := strconv.Itoa(round % 2)
		if err := syscall.Kill(g.workers(t)[victim], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); !strings.Contains(g.scrape(t), fmt.Sprintf(`restarts_total{worker="%s"} %d`, victim, 1+round/2)) || len(g.workers(t)) < 2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the worker is not back")
			}
		}
		stop()
		running.Wait()
		fill(fmt.Sprintf("after %d workers died", round+1))
	}
	testConnectionsOfOneClient(t, g, 60)
}

// testConnectionsOfOneClient opens connections up to the limit, and measures what those
// beyond cost beside those that get their TLS.
func testConnectionsOfOneClient(t *testing.T, g *running, most int) {
	dial := func(i int) (*tls.Conn, error) {
		d := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{InsecureSkipVerify: true}}
		tcp, err := dialOn(i%2)(t.Context(), "tcp", g.address)
		if err != nil {
			return nil, err
		}
		c := tls.Client(tcp, d.Config)
		if err := c.Handshake(); err != nil {
			tcp.Close()
			return nil, err
		}
		return c, nil
	}
	pids := g.workers(t)
	busy := func() (ticks float64) {
		for _, pid := range pids {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				t.Fatal(err)
			}
			f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
			user, _ := strconv.ParseFloat(f[12], 64)
			system, _ := strconv.ParseFloat(f[11], 64)
			ticks += user + system
		}
		return ticks
	}
	var open []*tls.Conn
	var before, full float64
	const rounds = 400
	before = busy()
	for i := range rounds { // handshakes for their price, closed again
		c, err := dial(i)
		if err == nil {
			c.Close()
		}
	}
	full = (busy() - before) / rounds
	for end := time.Now().Add(20 * time.Second); len(open) < most && time.Now().Before(end); {
		c, err := dial(len(open))
		if err != nil { // those just closed, and kept ones of the other clients, may still count
			http.DefaultClient.CloseIdleConnections()
			time.Sleep(10 * time.Millisecond)
			if n := g.connections(t, "0") + g.connections(t, "1"); n >= most {
				break
			}
			continue
		}
		open = append(open, c)
	}
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	if n := g.connections(t, "0") + g.connections(t, "1"); n != most {
		t.Fatalf("%d connections are open, %d may be", n, most)
	}
	before = busy()
	for i := range 4 * rounds {
		if c, err := dial(i); err == nil {
			c.Close()
			t.Fatal("one more was let in")
		}
	}
	refused := (busy() - before) / (4 * rounds)
	text := g.scrape(t)
	if strings.Contains(text, `{limit="clients",outcome="rejected"} 0`) || strings.Contains(text, `xgw_unexplained{kind="connections"} -`) {
		t.Errorf("counted as\n%s\n%s", grep(text, "limit_requests"), grep(text, "unexplained"))
	}
	t.Logf("a refused connection costs %.2f of one that gets its TLS", refused/max(full, 1e-9))
	if refused > full/2 {
		t.Errorf("a refused connection costs %v ticks, a served one %v", refused, full)
	}
}
