// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

var balances = []string{"round_robin", "least_conn", "p2c", "hash"}

// chosen counts which servers n exchanges get, each with a key of its own, at a time. Each
// is over before the next, or they all stay.
func chosen(u *upstream, n int, now int64, stay bool) []int {
	got := make([]int, len(u.servers))
	ex := &Exchange{}
	for k := range n {
		ex.peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)}), 1000)
		s := u.pick(ex, now)
		got[s.place]++
		if stay {
			s.active++
		}
	}
	return got
}

func near(got int, want float64) bool { return math.Abs(float64(got)-want) <= 0.1*want+1 }

// Servers get requests in proportion to their weights, whether these are under way at once
// or one after another.
func TestWeights(t *testing.T) {
	for _, b := range balances {
		for _, stay := range []bool{false, true} {
			u := balanced(t, 3, b)
			list := slices.Clone(u.policy.Servers)
			list[0].Weight, list[1].Weight, list[2].Weight = 1, 3, 6
			u.update(0, list)
			got := chosen(u, 10_000, 0, stay)
			switch {
			case b == "p2c" && !stay:
				// Two by chance, of whom the first is as good as the other: its share.
			case near(got[0], 1000) && near(got[1], 3000) && near(got[2], 6000):
				continue
			}
			if b != "p2c" || got[0] >= got[1] || got[1] >= got[2] {
				t.Errorf("%s, under way at once %v: %v, want 1 to 3 to 6", b, stay, got)
			}
		}
	}
	u := balanced(t, 3, "round_robin")
	list := slices.Clone(u.policy.Servers)
	list[0].Weight = 2
	u.update(0, list)
	for range 4 { // turns are spread: never three in a row, nor one left out of four
		if got := chosen(u, 4, 0, false); got[0] != 2 || got[1] != 1 || got[2] != 1 {
			t.Errorf("a round by weights: %v", got)
		}
	}
	for _, b := range balances {
		u := balanced(t, 3, b)
		u.update(0, list)
		if n := testing.AllocsPerRun(100, func() { u.pick(&Exchange{}, 0) }); n > 0 {
			t.Errorf("%s by weights: %v allocations", b, n)
		}
	}
}

// When a server goes, by its checks or from the list, only its own keys move; and those of
// one that comes back return to it as it rises.
func TestHashIsConsistent(t *testing.T) {
	const keys = 5000
	places := func(u *upstream, now int64) []string {
		out := make([]string, keys)
		ex := &Exchange{}
		for k := range out {
			ex.peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(k >> 8), byte(k)}), 1000)
			out[k] = u.pick(ex, now).address
		}
		return out
	}
	for _, weights := range [][]int{{1, 1, 1, 1}, {1, 2, 3, 4}} {
		u := balanced(t, 4, "hash")
		u.policy.SlowStart = 10 * time.Second
		all := slices.Clone(u.policy.Servers)
		for i := range all {
			all[i].Weight = weights[i]
		}
		u.update(1, all)
		before := places(u, 1)
		gone := all[2].Address
		moves := func(what string, now int64) (n int) {
			for k, at := range places(u, now) {
				if at != before[k] {
					n++
					if before[k] != gone {
						t.Fatalf("weights %v, %s: key %d went from %s to %s", weights, what, k, before[k], at)
					}
				} else if at == gone && what != "rising" && what != "back" {
					t.Fatalf("%s: a key stays with the server that is gone", what)
				}
			}
			return n
		}
		down := slices.Clone(all)
		down[2].Down = true
		u.update(1, down)
		away := moves("down", 1)
		u.update(1, slices.Delete(slices.Clone(all), 2, 3))
		if n := moves("left out", 1); n != away {
			t.Errorf("%d keys moved, and %d when it was down", n, away)
		}
		u.update(1, all)
		early, late := moves("rising", 1), moves("rising", 1+int64(5*time.Second))
		if early < away*7/10 || late >= early || late == 0 {
			t.Errorf("of %d keys %d are away when it is back, %d a while later", away, early, late)
		}
		if n := moves("back", 1+int64(10*time.Second)); n != 0 {
			t.Errorf("%d keys did not come back", n)
		}
	}
}

// A server that comes back has a tenth of its share at first, and more as time goes by:
// after an ejection, after checks that failed, and when it is new among others.
func TestSlowStart(t *testing.T) {
	g := newStoppedGateway(t, []string{"127.0.0.1:1"})
	w := g.worker
	eventually(t, "the clock's first tick", func() bool { return w.clock.Load() > 10 })
	for _, b := range balances {
		for what, back := range map[string]func(u *upstream, all []policy.Server){
			"ejected": func(u *upstream, all []policy.Server) {
				s := u.servers[2]
				s.ejectedUntil, s.probing = 1, true
				u.hear(w, s, reportWorked, true)
			},
			"down": func(u *upstream, all []policy.Server) {
				down := slices.Clone(all)
				down[2].Down = true
				u.update(w.clock.Load(), down)
				u.update(w.clock.Load(), all)
			},
			"new": func(u *upstream, all []policy.Server) {
				u.update(w.clock.Load(), all[:2])
				u.update(w.clock.Load(), all)
			},
		} {
			u := balanced(t, 3, b)
			all := u.policy.Servers
			if got := chosen(u, 30_000, 1, false); !near(got[2], 10_000) {
				t.Fatalf("%s: %v before anything happened", b, got)
			}
			u.policy.SlowStart = 10 * time.Second
			back(u, all)
			at := u.servers[2].risen
			if at == 0 || u.rising != 1 {
				t.Fatalf("%s, %s: it does not rise", b, what)
			}
			third := func(after time.Duration) float64 {
				return float64(chosen(u, 30_000, at+int64(after), false)[2]) / 10_000
			}
			first, half, last := third(0), third(5*time.Second), third(10*time.Second)
			if first > 0.25 || first < 0.05 || half < first*1.5 || half > 0.8 || math.Abs(last-1) > 0.1 || u.rising != 0 {
				t.Errorf("%s, %s: shares of %.2f, %.2f and %.2f; %d rise", b, what, first, half, last, u.rising)
			}
		}
	}
}

// New lists of servers under load: no request is lost, connections of servers that stay
// are kept, those of servers that go are closed as they come to rest.
func TestServersChangeUnderLoad(t *testing.T) {
	var hits [3]atomic.Int64
	var all []policy.Server
	for i := range hits {
		all = append(all, policy.Server{Address: httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			hits[i].Add(1)
			time.Sleep(time.Millisecond)
			_, _ = io.WriteString(w, "whole")
		})})
	}
	g := newGateway(t, []string{"unused.test:1"}, func(s *policy.Snapshot) { s.Upstreams[0].Servers = all })
	u := g.worker.current.Load().upstreams[0]
	client := g.client(true)
	stop, done := make(chan struct{}), make(chan int)
	for range 8 {
		go func() {
			n := 0
			for {
				select {
				case <-stop:
					done <- n
					return
				default:
				}
				resp, err := client.Get(g.url("/"))
				if err != nil {
					t.Error(err)
					continue
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 || string(b) != "whole" || err != nil {
					t.Errorf("%d %q %v", resp.StatusCode, b, err)
				}
				n++
			}
		}()
	}
	down := slices.Clone(all)
	down[1].Down = true
	opened := uint64(0)
	for i := range 60 {
		list := [][]policy.Server{all, {all[0], all[2]}, down, {all[2], all[0]}}[i%4]
		sum := func() int64 { return hits[0].Load() + hits[1].Load() + hits[2].Load() }
		before := sum()
		u.update(g.worker.clock.Load(), list)
		time.Sleep(5 * time.Millisecond)
		eventually(t, "it is used", func() bool { return sum() > before })
		if i == 19 {
			opened = g.slab.Load(zone.UpstreamConnectionsOpened)
		}
	}
	u.update(g.worker.clock.Load(), []policy.Server{all[0], down[1]})
	eventually(t, "the others drain", func() bool { return g.slab.LoadGauge(zone.GaugeRequests) <= 8 && u.busy(all[2].Address) == 0 })
	before := hits[1].Load() + hits[2].Load()
	time.Sleep(100 * time.Millisecond)
	close(stop)
	n := 0
	for range 8 {
		n += <-done
	}
	if after := hits[1].Load() + hits[2].Load(); after > before+8 {
		t.Errorf("servers that are gone and down got %d requests", after-before)
	}
	if n == 0 || hits[0].Load() == 0 || hits[1].Load() == 0 {
		t.Errorf("%d requests, %d and %d of them at the first two", n, hits[0].Load(), hits[1].Load())
	}
	// The server that was in every list has kept its connections. A client may ask again before
	// the connection that brought its reply is idle.
	u.mu.Lock()
	kept, total := len(u.servers[0].idle)+u.servers[0].active, u.total
	u.mu.Unlock()
	if kept == 0 || total > 2*8 {
		t.Errorf("%d connections, %d at the server that stayed", total, kept)
	}
	t.Logf("%d requests over 61 lists; %d connections opened after the first 20", n, g.slab.Load(zone.UpstreamConnectionsOpened)-opened)
}

// busy is how many exchanges the worker has at an address that is in the list.
func (u *upstream) busy(address string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.servers {
		if s.address == address {
			return s.active
		}
	}
	return 0
}

// Without any address a request is refused, and answered as soon as there is one; when all
// servers are down, they are tried all the same.
func TestNoServer(t *testing.T) {
	address := httpUpstream(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	g := newGateway(t, []string{"unused.test:1"}, nil)
	u := g.worker.current.Load().upstreams[0]
	client := g.client(false)
	for _, row := range []struct {
		list   []policy.Server
		status int
	}{
		{nil, 502},
		{policy.ServersAt(address), 204},
		{[]policy.Server{{Address: address, Down: true}}, 204},
		{[]policy.Server{{Address: refusing(t)}, {Address: address, Down: true}}, 204},
		{nil, 502},
	} {
		u.update(g.worker.clock.Load(), row.list)
		resp, err := client.Get(g.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != row.status {
			t.Errorf("%v: status %d, want %d", row.list, resp.StatusCode, row.status)
		}
	}
}
