// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	connections  = 16
	latencyPairs = 20
	latencySlice = 2 * time.Second
)

// load makes requests over connections that it keeps, each connection at an even pace, and
// returns how long each took: from when it was due, if the one before was late, else from when
// it was sent. A pause of 0 is as fast as it goes.
type load struct {
	url    string
	client *http.Client
}

func newLoad(address string) *load {
	return &load{"https://" + address + "/", &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections,
	}}}
}

func (l *load) run(d, pause time.Duration) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	for i := range connections {
		wg.Go(func() {
			var took []time.Duration
			var err error
			due := began.Add(pause * time.Duration(i) / connections)
			for err == nil && time.Since(began) < d {
				time.Sleep(time.Until(due))
				from := time.Now()
				if late := from.Sub(due); pause > 0 && late > pause {
					from = due
				}
				err = l.ask()
				took = append(took, time.Since(from))
				due = due.Add(pause)
			}
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	return all, failed
}

func (l *load) ask() error {
	r, err := l.client.Get(l.url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	n, err := io.Copy(io.Discard, r.Body)
	if err == nil && (r.StatusCode != http.StatusOK || n != 100) {
		err = fmt.Errorf("status %d, %d bytes", r.StatusCode, n)
	}
	return err
}

// measureLatency compares the 99th percentile at half of what this client can have, of slices
// in which the metrics of 1,000 routes are scraped each second and of those in which they are
// not; who is first changes from pair to pair.
func measureLatency(dir, upstream string) ([]figure, error) {
	var more strings.Builder
	for i := range routes {
		fmt.Fprintf(&more, "{name: r%d, path: /r%d/, upstream: back}, ", i, i)
	}
	g, err := start(dir, upstream, true, more.String())
	if err != nil {
		return nil, err
	}
	defer g.stop()
	l := newLoad(g.address)
	full, err := l.run(latencySlice, 0)
	if err != nil {
		return nil, err
	}
	rate := float64(len(full)) / latencySlice.Seconds() / 2
	pause := time.Duration(connections / rate * float64(time.Second))
	slice := func(scraped bool) (float64, error) {
		stop := g.scrapeEach(scraped)
		took, err := l.run(latencySlice, pause)
		if err := errors.Join(err, stop()); err != nil {
			return 0, err
		}
		slices.Sort(took)
		return float64(took[len(took)*99/100]) / float64(time.Millisecond), nil
	}
	if _, err := slice(true); err != nil { // caches
		return nil, err
	}
	var on, off, changes, noise []float64
	for i := range latencyPairs {
		var pair [2]float64 // without, with
		for k := range pair {
			which := (i + k) % 2
			if pair[which], err = slice(which == 1); err != nil {
				return nil, err
			}
		}
		if len(off) > 0 {
			noise = append(noise, 100*(pair[0]/off[len(off)-1]-1))
		}
		off, on = append(off, pair[0]), append(on, pair[1])
		changes = append(changes, 100*(pair[1]/pair[0]-1))
	}
	return []figure{
		median("rate: half of what one client can have", "requests/s", 0, []float64{rate}),
		middle("p99 at it, scraped each second", "ms", 0, on), middle("p99 at it, not scraped", "ms", 0, off),
		middle("p99 scraped, beside not", "%", 3, changes), middle("p99 not scraped, beside itself: the noise", "%", 0, noise),
	}, nil
}

// scrapeEach scrapes at once and then each second until stop, if it is wanted.
func (g *gateway) scrapeEach(wanted bool) (stop func() error) {
	if !wanted {
		return func() error { return nil }
	}
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			if _, err := scrape(g.metrics, ""); err != nil {
				ended <- err
				return
			}
			select {
			case <-end:
				ended <- nil
				return
			case <-tick.C:
			}
		}
	}()
	return func() error { close(end); return <-ended }
}
