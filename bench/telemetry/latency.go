// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
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

// measureLatency compares the 99th percentile at half load, over all
// slices in which the metrics of 1,000 routes are scraped each second and over all in which they
// are not; who is first changes from pair to pair. What the slices without are beside each
// other, every other one, tells what a difference is worth.
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
	// A request that comes by itself costs client and upstream twice what one of many at once does.
	rate := float64(len(full)) / latencySlice.Seconds() / 4
	pause := time.Duration(connections / rate * float64(time.Second))
	slice := func(scraped bool) (*times, error) {
		stop := g.scrapeEach(scraped)
		took, err := l.run(latencySlice, pause)
		return count(took), errors.Join(err, stop())
	}
	if _, err := slice(true); err != nil { // caches
		return nil, err
	}
	var on, off []*times
	before, beforeAll := taken()
	for i := range latencyPairs {
		var pair [2]*times // without, with
		for k := range pair {
			which := (i + k) % 2
			if pair[which], err = slice(which == 1); err != nil {
				return nil, err
			}
		}
		off, on = append(off, pair[0]), append(on, pair[1])
	}
	stolen, all := taken()
	stolen, all = stolen-before, all-beforeAll
	var even, odd []*times
	for i := range off {
		if i%2 == 0 {
			even = append(even, off[i])
		} else {
			odd = append(odd, off[i])
		}
	}
	return []figure{
		median("rate: a quarter of what a client gets at most", "requests/s", 0, []float64{rate}),
		resampled("p99 at it, scraped each second", "ms", 0, on, on, func(a, _ *times) float64 { return a.p99() }),
		resampled("p99 at it, not scraped", "ms", 0, off, off, func(a, _ *times) float64 { return a.p99() }),
		resampled("p99 scraped, beside not", "%", 3, on, off, change),
		resampled("p99 not scraped, beside itself: the noise", "%", 0, odd, even, change),
		median("CPU that the hypervisor took meanwhile", "%", 0, []float64{100 * stolen / max(all, 1)}),
	}, nil
}

// taken is the CPU time that the hypervisor gave to others, and all of it.
func taken() (stolen, all float64) {
	text, _ := os.ReadFile("/proc/stat") // without it the figure is 0
	line, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(line) {
		n, _ := strconv.ParseFloat(f, 64) // the first is a word
		if all += n; i == 8 {
			stolen = n
		}
	}
	return stolen, all
}

// times counts latencies, in steps of a thousandth from a microsecond to half a minute.
type times [17_200]uint32

const step = 1.001

func count(all []time.Duration) *times {
	t := new(times)
	for _, d := range all {
		at := math.Log(float64(d)/float64(time.Microsecond)) / math.Log(step)
		t[max(0, min(int(at), len(t)-1))]++
	}
	return t
}

func (t *times) add(o *times) {
	for i := range t {
		t[i] += o[i]
	}
}

// p99 in ms.
func (t *times) p99() float64 {
	all := uint64(0)
	for _, n := range t {
		all += uint64(n)
	}
	above := all / 100
	for i := len(t) - 1; i >= 0; i-- {
		if n := uint64(t[i]); n <= above {
			above -= n
			continue
		}
		return math.Pow(step, float64(i)) / 1000
	}
	return 0
}

func change(a, b *times) float64 { return 100 * (a.p99()/b.p99() - 1) }

// resamples of the slices, which tell how far the figure would differ had others been drawn.
const resamples = 1000

// resampled is a figure of all slices together, with the middle 95 % of what it is of slices
// drawn from them again and again (bootstrap; a pair is drawn as one).
func resampled(name, unit string, aim float64, a, b []*times, of func(a, b *times) float64) figure {
	random := rand.New(rand.NewPCG(1, 2)) // the same slices give the same figure
	draw := func(at func(i int) int) float64 {
		var x, y times
		for i := range a {
			x.add(a[at(i)])
			y.add(b[at(i)])
		}
		return of(&x, &y)
	}
	values := make([]float64, resamples)
	for i := range values {
		values[i] = draw(func(int) int { return random.IntN(len(a)) })
	}
	f := median(name, unit, aim, values) // sorted, from here on
	h := func(v float64) float64 { return math.Round(v*100) / 100 }
	f.Value, f.Low, f.High = h(draw(func(i int) int { return i })), h(values[resamples*25/1000]), h(values[resamples*975/1000])
	return f
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
