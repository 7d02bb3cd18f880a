// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/xgw-project/xgw/pkg/lab/redistest"
	"github.com/xgw-project/xgw/pkg/zone"
)

// server is a real Valkey or Redis, which keeps nothing.
type server struct {
	*redistest.Server
	t *testing.T
}

func startServer(t *testing.T) *server {
	t.Helper()
	return &server{redistest.Start(t), t}
}

func (s *server) client() *redis.Client {
	const step = 400 * time.Millisecond
	c := redis.NewClient(&redis.Options{Addr: s.Address, DialTimeout: step, ReadTimeout: step, WriteTimeout: step, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, DisableIdentity: true})
	s.t.Cleanup(func() { c.Close() })
	return c
}

// gateway is what a node has to do with: a zone and leases.
type gateway struct {
	*Node
	*Leases
	zone *zone.Zone
	rate zone.Rate
}

const limitID = 9

func clock() int64 { return int64(time.Since(start)) + int64(time.Hour) }

var start = time.Now()

func newGateway(t *testing.T, s *server, r zone.Rate) *gateway {
	t.Helper()
	z, err := zone.Create(filepath.Join(t.TempDir(), "zone"), zone.Layout{Size: 16 << 20, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { z.Close() })
	g := &gateway{zone: z, rate: r.Shared(), Node: New(s.client(), "test:", slog.New(slog.NewTextHandler(io.Discard, nil)))}
	g.Leases = NewLeases(g.Node, z, clock)
	g.SetLimits(map[uint64]zone.Rate{limitID: r})
	return g
}

// run has the gateways exchange charges until the test ends.
func run(t *testing.T, gateways ...*gateway) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, g := range gateways {
		all.Go(func() { g.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); all.Wait() })
}

// ask is a request, as a worker holds it to the limit.
func (g *gateway) ask(key string) (passed bool) {
	passed, _ = g.askAndTell(key)
	return passed
}

// askAndTell says whether others will hear of it, too: of many keys a few find no room.
func (g *gateway) askAndTell(key string) (passed, told bool) {
	k := g.zone.LimitBuckets().Key(limitID, []byte(key))
	passed = g.zone.LimitBuckets().Take(k, clock(), g.rate).OK
	return passed, passed && g.zone.Shares().Charge(k, limitID, []byte(key))
}

// settle has what was charged told, however long the server takes.
func (g *gateway) settle(t *testing.T) {
	t.Helper()
	now, before := time.Now(), g.Stats().Leases[OK]
	eventually(t, "charges are told", func() bool {
		more := g.round(context.Background(), now)
		return !more && len(g.batch) == 0 && g.Stats().Leases[OK] > before
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}

// Whatever comes to whichever gateway: together they pass no more than the limit and the bound
// allow, and none refuses what one gateway with all the requests would have passed.
func TestGatewaysHoldOneLimit(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	const rate, burst, n = 200, 20, 3
	r := zone.NewRate(rate, time.Second, burst)
	gateways := []*gateway{newGateway(t, s, r), newGateway(t, s, r), newGateway(t, s, r)}
	run(t, gateways...)
	eventually(t, "they know of each other", func() bool { return gateways[0].Stats().Gateways == n })
	type bucket struct {
		arrived       func(seconds float64) int // requests until then
		asked         int
		drained, most int64 // of all that passed
		refused       int
	}
	steady := func(perSecond float64) func(float64) int { return func(s float64) int { return int(s * perSecond) } }
	bursts := func(each int, every float64) func(float64) int {
		return func(s float64) int { return each * int(1+s/every) }
	}
	buckets := map[string]*bucket{
		"half": {arrived: steady(rate / 2)}, "most": {arrived: steady(rate * 0.9)}, "thrice": {arrived: steady(rate * 3)},
		"in bursts": {arrived: bursts(burst, 0.15)}, "in large bursts": {arrived: bursts(5*burst, 0.4)},
	}
	wrong := 0
	for began := time.Now(); time.Since(began) < 2*time.Second; time.Sleep(200 * time.Microsecond) {
		for key, b := range buckets {
			for ; b.asked < b.arrived(time.Since(began).Seconds()); b.asked++ {
				now := clock()
				ahead := max(b.drained-now, 0)
				if !gateways[rand.IntN(n)].ask(key) {
					b.refused++
					if ahead < r.Tolerance-int64(2*time.Millisecond) {
						wrong++
					}
					continue
				}
				b.drained = max(b.drained, now) + r.Interval
				b.most = max(b.most, ahead+r.Interval)
			}
		}
	}
	for key, b := range buckets {
		beyond := (b.most - r.Tolerance - r.Interval) / r.Interval
		t.Logf("%s: %d beyond the limit at the most, %d of %d refused", key, beyond, b.refused, b.asked)
		// On a busy machine exchanges take longer than what Bound is for: all of their patience.
		if most := int64(n-1) * (burst + rate*8/10); beyond > most {
			t.Errorf("%s: %d more than the limit passed: at most %d may", key, beyond, most)
		}
	}
	if thrice := buckets["thrice"]; thrice.refused < thrice.asked/3 {
		t.Errorf("at three times the rate %d of %d were refused", thrice.refused, thrice.asked)
	}
	if wrong > 0 {
		t.Errorf("%d were refused that a single gateway would have passed", wrong)
	}
	for _, g := range gateways {
		if st := g.Stats(); st.Leases[OK] == 0 || !st.Answers {
			t.Errorf("stats: %+v", st)
		}
	}
}

// What one gateway has passed is used up at the other; keys are apart.
func TestChargesTravel(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	r := zone.NewRate(1, time.Hour, 10)
	a, b := newGateway(t, s, r), newGateway(t, s, r)
	ctx := context.Background()
	for i := range 6 {
		if !a.ask("k") {
			t.Fatalf("request %d was refused", i)
		}
	}
	for i := range 2 {
		if !b.ask("k") {
			t.Fatalf("request %d at the other was refused", i)
		}
	}
	k := a.zone.LimitBuckets().Key(limitID, []byte("k"))
	a.zone.LimitBuckets().Return(k, clock(), a.rate) // another limit refused this one
	a.zone.Shares().Return(k)
	a.settle(t)
	b.settle(t)
	for i := range 4 {
		if got, want := b.ask("k"), i < 3; got != want {
			t.Errorf("request %d, after 5 there and 2 here of 10: %v", i, got)
		}
	}
	if !b.ask("other") {
		t.Error("another key is used up as well")
	}
	// Three more passed at b, of which a hears when b has told; what a passes meanwhile is owed.
	for range 5 {
		a.ask("k")
	}
	b.settle(t)
	a.settle(t)
	left, err := s.client().Keys(ctx, "test:limit:*").Result()
	if err != nil || len(left) != 2 {
		t.Errorf("the server has %v, %v", left, err)
	}
	c := newGateway(t, s, r) // a gateway that comes later passes a burst before it knows
	if !c.ask("k") {
		t.Error("refused before anything was known")
	}
	c.settle(t)
	if c.ask("k") {
		t.Error("passed what is used up")
	}
}

// An exchange without an answer is told again and counts once; when none is to be had, each goes
// on by itself, and what was charged meanwhile is held against nobody for long.
func TestServerComesAndGoes(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	r := zone.NewRate(100, time.Second, 10)
	a, b := newGateway(t, s, r), newGateway(t, s, r)
	run(t, a, b)
	ask := func(g *gateway, d time.Duration) (passed int) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			if g.ask("k") {
				passed++
			}
		}
		return passed
	}
	ask(a, 200*time.Millisecond)
	eventually(t, "a lease is good", func() bool { return a.Stats().Leases[OK] > 0 })
	for _, silence := range []struct {
		name        string
		begin, over func()
	}{
		{"stopped", func() { s.Signal(syscall.SIGSTOP) }, func() { s.Signal(syscall.SIGCONT) }},
		{"dead", func() { s.Kill() }, func() { s.Again() }},
	} {
		before := a.Stats()
		silence.begin()
		eventually(t, silence.name+": it shows in the counts", func() bool {
			a.ask("k")
			st := a.Stats()
			return !st.Answers && st.Leases[Failed] > before.Leases[Failed] && st.Leases[Stale] > before.Leases[Stale]
		})
		time.Sleep(150 * time.Millisecond) // its bucket has room again
		began := time.Now()
		passed := ask(a, 500*time.Millisecond)
		if took := time.Since(began).Seconds(); float64(passed) < 25 || float64(passed) > 100*took+11 {
			t.Errorf("%s: %d passed in %.1f s of 100/s: its own limit does not hold, or is not all it has", silence.name, passed, took)
		}
		silence.over()
		began = time.Now()
		eventually(t, silence.name+": leases are good again", func() bool {
			a.ask("k")
			b.ask("k")
			st := a.Stats()
			return st.Answers && st.Leases[OK] > before.Leases[OK] && b.Stats().Answers
		})
		t.Logf("%s: good again after %s", silence.name, time.Since(began).Round(time.Millisecond))
		before = a.Stats()
		ask(a, 100*time.Millisecond)
		eventually(t, silence.name+": more of them are", func() bool { a.ask("k"); return a.Stats().Leases[OK] > before.Leases[OK]+3 })
	}
}

// The same batch twice charges once; a clock that went back has nobody refused for long.
func TestExchangeCountsOnce(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	r := zone.NewRate(10, time.Second, 100)
	a := newGateway(t, s, r)
	ctx := context.Background()
	for range 50 {
		a.ask("k")
	}
	a.collect(time.Now())
	first, _, err := a.tell(ctx)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := a.tell(ctx)
	if err != nil || again[0] > first[0] || again[0] < first[0]-int64(3*time.Second/time.Microsecond) {
		t.Errorf("told again: %v ahead, %v before, %v", again, first, err)
	}
	c := s.client()
	names, err := c.Keys(ctx, "test:limit:*").Result()
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	if ttl := c.PTTL(ctx, names[0]).Val(); ttl <= 0 || ttl > 8*time.Second {
		t.Errorf("a bucket that is empty in 5 s is kept for %s", ttl)
	}
	hour := time.Now().Add(time.Hour).UnixMicro()
	if err := c.Set(ctx, names[0], strconv.FormatInt(hour, 10), time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	a.seq++
	if ahead, _, err := a.tell(ctx); err != nil || ahead[0] > int64(11*time.Second/time.Microsecond) {
		t.Errorf("after the clock went back: %v ahead, %v", ahead, err)
	}
}

// Many keys are told in several exchanges, one after another.
func TestManyKeys(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	a, b := newGateway(t, s, zone.NewRate(1, time.Hour, 1)), newGateway(t, s, zone.NewRate(1, time.Hour, 1))
	var told []string
	for i := range 5000 {
		key := fmt.Sprint(i)
		if _, ok := a.askAndTell(key); ok {
			told = append(told, key)
		}
	}
	if len(told) <= mostKeys {
		t.Fatalf("%d keys had room", len(told))
	}
	now := time.Now()
	eventually(t, "all keys are told", func() bool {
		a.round(context.Background(), now)
		return a.Stats().Leases[OK] >= uint64(len(told))
	})
	if n := a.Stats().Leases[OK]; n != uint64(len(told)) {
		t.Errorf("%d keys were told, want %d", n, len(told))
	}
	ends := []string{told[0], told[len(told)-1]}
	for _, key := range ends {
		if !b.ask(key) {
			t.Error("refused before anything was known")
		}
	}
	b.settle(t)
	for _, key := range ends {
		k := b.zone.LimitBuckets().Key(limitID, []byte(key))
		if w := b.zone.LimitBuckets().Take(k, clock(), b.rate).Wait; w < time.Hour {
			t.Errorf("a key that both passed once is free in %s, want more than an hour", w)
		}
	}
	// A limit that is no more is not told.
	a.SetLimits(nil)
	a.ask("gone")
	a.round(context.Background(), time.Now())
	if n := a.Stats().Leases[OK]; n != uint64(len(told)) {
		t.Errorf("a limit that is no more was told: %d", n)
	}
}
