// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	latencyRounds = 30
	// kinds are scraped, not scraped and, to tell what a difference is worth, not scraped again.
	kinds = 3
	// stolenAtMost is the share of the CPU time of a window that the hypervisor may have taken.
	stolenAtMost = 0.05
)

// measureLatency compares the 99th percentile at half load or less, in windows of a second in which
// the metrics of 1,000 routes, each with traffic, are scraped once, and in others in which they are not. The load
// never stops; three windows are a round, and in which of them it is scraped is drawn for each. What the
// two windows without are beside each other tells what a difference is worth.
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
	s, err := startScraper()
	if err != nil {
		return nil, err
	}
	defer s.stop()
	l, err := dialLoad(g.address)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	full, err := l.run(3, 0)
	if err != nil {
		return nil, err
	}
	// A request that comes by itself costs all of them twice what one of many at once does.
	rate := float64(full[2].count()) / 4
	pause := time.Duration(connections / rate * float64(time.Second))
	if err := s.scrape(g.metrics); err != nil { // series are made
		return nil, err
	}
	order := drawOrder()
	idle, all := idled()
	scraped := make(chan error, 1)
	var stolen []float64
	go func() {
		var err error
		stolen, err = s.follow(g.metrics, order, time.Now())
		scraped <- err
	}()
	windows, err := l.run(len(order), pause)
	if err = errors.Join(err, <-scraped); err != nil {
		return nil, err
	}
	idleThen, allThen := idled()
	busy := 100 * (1 - (idleThen-idle)/max(allThen-all, 1))
	return append([]figure{
		middle("rate: a quarter of what this client gets at most", "requests/s", 0, []float64{rate}),
		middle("time that the gateway's core is busy at it", "%", 0, []float64{busy}),
	}, compare(windows, order, stolen)...), nil
}

// drawOrder is what kind each window is of; each round has each.
func drawOrder() []int {
	random := rand.New(rand.NewPCG(1, 2))
	var order []int
	for range latencyRounds {
		order = append(order, random.Perm(kinds)...)
	}
	return order
}

// follow scrapes in the windows of kind 0, a tenth of a second after they began, and tells what
// share of the CPU time of each the hypervisor took.
func (s *scraper) follow(url string, order []int, began time.Time) (stolen []float64, err error) {
	before, beforeAll := taken()
	for i, kind := range order {
		time.Sleep(time.Until(began.Add(time.Duration(i)*time.Second + time.Second/10)))
		if kind == 0 {
			if err := s.scrape(url); err != nil {
				return nil, err
			}
		}
		time.Sleep(time.Until(began.Add(time.Duration(i+1) * time.Second)))
		now, all := taken()
		stolen = append(stolen, (now-before)/max(all-beforeAll, 1))
		before, beforeAll = now, all
	}
	return stolen, nil
}

// compare leaves out rounds of which the hypervisor took too much of a window.
func compare(windows []times, order []int, stolen []float64) []figure {
	var p99 [kinds][]float64
	var on, again []float64
	for i := 0; i < len(order); i += kinds {
		if slices.Max(stolen[i:i+kinds]) > stolenAtMost {
			continue
		}
		var now [kinds]float64
		for k := range kinds {
			now[order[i+k]] = windows[i+k].p99()
		}
		for k, v := range now {
			p99[k] = append(p99[k], v)
		}
		on = append(on, beside(now[0], (now[1]+now[2])/2))
		again = append(again, beside(now[2], now[1]))
	}
	counted := leftOver(len(on), latencyRounds)
	if len(on) == 0 {
		return []figure{counted}
	}
	return []figure{
		counted, middle("p99 at it, scraped each second", "ms", 0, p99[0]), middle("p99 at it, not scraped", "ms", 0, p99[1]),
		middle("p99 scraped, beside not", "%", 3, on), middle("p99 not scraped, beside itself: the noise", "%", 0, again),
	}
}

// leftOver is how many rounds count.
func leftOver(n, of int) figure {
	return middle(fmt.Sprintf("of %d rounds, those without the hypervisor", of), "", 0, []float64{float64(n)})
}

// beside is by how many per cent a is more than b.
func beside(a, b float64) float64 { return 100 * (a/b - 1) }

// taken is the CPU time that the hypervisor gave to others, and all of it.
func taken() (stolen, all float64) {
	times, all := cpuTimes("cpu")
	return times[7], all
}

// idled is the time that the gateway's core did nothing, and all of its time.
func idled() (idle, all float64) {
	for i := range 1024 {
		if firstCore.IsSet(i) {
			times, all := cpuTimes("cpu" + strconv.Itoa(i))
			return times[3] + times[4], all
		}
	}
	return 0, 0
}

// cpuTimes is a line of /proc/stat in ticks: user, nice, system, idle, iowait, irq, softirq and steal, and their sum.
func cpuTimes(name string) (times [8]float64, all float64) {
	text, _ := os.ReadFile("/proc/stat") // without it all are 0
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) <= len(times) || words[0] != name {
			continue
		}
		for i := range times {
			times[i], _ = strconv.ParseFloat(words[i+1], 64) // the kernel's
			all += times[i]
		}
	}
	return times, all
}

// times counts latencies, in steps of a hundredth from a microsecond to over a minute.
type times [1_800]uint32

const step = 1.01

func (t *times) note(d time.Duration) {
	at := math.Log(float64(d)/float64(time.Microsecond)) / math.Log(step)
	t[max(0, min(int(at), len(t)-1))]++
}

func (t *times) add(o *times) {
	for i := range t {
		t[i] += o[i]
	}
}

func (t *times) count() (n uint64) {
	for _, m := range t {
		n += uint64(m)
	}
	return n
}

// p99 in ms, between the bounds of its step.
func (t *times) p99() float64 {
	above := float64(t.count()) / 100
	for i := len(t) - 1; i >= 0; i-- {
		if n := float64(t[i]); n <= above {
			above -= n
			continue
		}
		return math.Pow(step, float64(i)+1-above/float64(t[i])) / 1000
	}
	return 0
}
