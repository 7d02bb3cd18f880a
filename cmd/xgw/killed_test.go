// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// killGrace is for how long after a worker's death a new connection may be lost.
const killGrace = 50 * time.Millisecond

// attempt is a request over a connection of its own.
type attempt struct {
	began, ended time.Time
	err          error
}

// kill is from before to after the call that makes a worker die.
type kill struct{ began, ended time.Time }

// excused tells whether a worker that died just before or meanwhile may have had it.
func (a *attempt) excused(kills []kill, grace time.Duration) bool {
	return slices.ContainsFunc(kills, func(k kill) bool { return k.ended.Add(grace).After(a.began) && k.began.Before(a.ended) })
}

// killLoad is a thousand requests a second: over kept connections, and over new ones, which
// it notes.
type killLoad struct {
	requests atomic.Int64
	mu       sync.Mutex
	attempts []attempt
	cancel   context.CancelFunc
	clients  sync.WaitGroup
}

func startKillLoad(t *testing.T, url string) *killLoad {
	ctx, cancel := context.WithCancel(context.Background())
	l := &killLoad{cancel: cancel}
	t.Cleanup(l.end)
	post := func(c *http.Client) error {
		r, err := c.Post(url, "text/plain", io.NopCloser(strings.NewReader("once"))) // no client sends it twice by itself
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if err == nil && r.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", r.StatusCode)
		}
		return err
	}
	for i := range 16 {
		fresh, c := i < 4, client(i%2 == 0)
		pause := 8 * time.Millisecond
		if fresh {
			c.Transport.(*http.Transport).DisableKeepAlives = true
			pause = 15 * time.Millisecond
		}
		l.clients.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				a := attempt{began: time.Now()}
				a.err, a.ended = post(c), time.Now()
				l.requests.Add(1)
				if fresh {
					l.mu.Lock()
					l.attempts = append(l.attempts, a)
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

func (l *killLoad) end() {
	l.cancel()
	l.clients.Wait()
}

// Twenty workers are killed under load, one after the other: each takes the connections that
// it had, and no new one is lost but in the moment of its death.
func TestWorkersAreKilledUnderLoad(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	rounds := 20
	if testing.Short() {
		rounds = 4
	}
	dir := t.TempDir()
	g := startGateway(t, startHere, "killload", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 4\npin: false\n"))
	began := time.Now()
	l := startKillLoad(t, "https://"+g.address+"/hash")
	var kills []kill
	victims := map[string]int{} // by worker, the last process that was killed
	for round := range rounds {
		slot := strconv.Itoa(round % 4) // in turn, for one that dies again and again is away for longer
		var pid int
		eventually(t, "worker "+slot+" is there, and another one", func() bool {
			up := g.workers(t)
			pid = up[slot]
			return len(up) >= 2 && pid != 0 && pid != victims[slot]
		})
		before := l.requests.Load()
		eventually(t, "requests go on", func() bool { return l.requests.Load() >= before+200 })
		k := kill{began: time.Now()}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		k.ended = time.Now()
		kills = append(kills, k)
		victims[slot] = pid
	}
	before := l.requests.Load()
	eventually(t, "requests go on after the last", func() bool { return l.requests.Load() >= before+200 })
	took := time.Since(began)
	l.end()
	judged, excused, late := 0, 0, 0
	var slowest time.Duration
	for _, a := range l.attempts {
		if a.excused(kills, killGrace) {
			if a.err != nil {
				excused++
			}
			continue
		}
		judged++
		slowest = max(slowest, a.ended.Sub(a.began))
		switch {
		case a.err != nil && a.excused(kills, 5*killGrace): // a machine that stands still is late to notice
			late++
		case a.err != nil:
			t.Errorf("a new connection, %v after the start: %v", a.began.Sub(began), a.err)
		}
	}
	if late > rounds/4 {
		t.Errorf("%d new connections were lost more than %v after %d kills", late, killGrace, rounds)
	}
	if judged < 5*rounds {
		t.Errorf("%d new connections were judged: too few", judged)
	}
	t.Logf("%d workers killed in %v, %.0f requests/s; %d new connections beside them, the slowest %v; %d were lost with a worker", rounds, took,
		float64(l.requests.Load())/took.Seconds(), judged, slowest, excused)
	if t.Failed() {
		t.Log(g.log)
	}
}
