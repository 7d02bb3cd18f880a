// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	costBatches = 6 // of gateways, since one that was started just so is cheaper than another
	costRounds  = 5 // of each batch
	slice       = time.Second
	// settling is after the load, for the supervisor writes the log a twentieth of a second later.
	settling = 100 * time.Millisecond
)

// names of the gateways that are compared; only the first has telemetry.
var names = [kinds]string{"on", "off", "off, again"}

// measureCost takes turns: a gateway that writes its access log and is scraped each second, one
// that does neither, and another one without, which tells what a difference is worth. Slices are
// of a second and their order changes, so that a machine that gets slower or faster does so for all.
func measureCost(dir, upstream string) ([]figure, error) {
	s, err := startScraper()
	if err != nil {
		return nil, err
	}
	defer s.stop()
	var all costs
	for batch := range costBatches {
		if err := all.batch(s, fmt.Sprint(dir, batch, "-"), upstream, batch); err != nil {
			return nil, err
		}
	}
	counted := leftOver(len(all.on), costBatches*costRounds)
	if len(all.on) == 0 {
		return []figure{counted}, nil
	}
	return []figure{
		counted, middle("requests whose line was written", "%", 0, all.written),
		middle("CPU per request, telemetry on", "us", 0, all.each[0]), middle("CPU per request, telemetry off", "us", 0, all.each[1]),
		middle("telemetry on, beside off", "%", 3, all.on), middle("off beside itself: the noise", "%", 0, all.again),
	}, nil
}

// costs are us of CPU for each request, and what they are beside each other in per cent.
type costs struct {
	each      [kinds][]float64
	on, again []float64
	written   []float64 // per cent of the requests, those that the log has, by batch
}

func (c *costs) batch(s *scraper, dir, upstream string, batch int) error {
	var gateways [kinds]*gateway
	for k := range kinds {
		i := (batch + k) % kinds
		g, err := start(dir+strconv.Itoa(i), upstream, i == 0, "")
		if err != nil {
			return err
		}
		defer g.stop()
		gateways[i] = g
		if _, err := g.load(names[i], s, i == 0); err != nil { // connections, caches
			return err
		}
	}
	for round := range costRounds {
		var now [kinds]float64
		worst := 0.0
		for k := range kinds {
			i := (batch + round + k) % kinds
			if round%2 == 1 {
				i = kinds - 1 - i
			}
			before, beforeAll := taken()
			cost, err := gateways[i].load(names[i], s, i == 0)
			if err != nil {
				return err
			}
			after, all := taken()
			now[i], worst = cost, max(worst, (after-before)/max(all-beforeAll, 1))
		}
		if worst > stolenAtMost {
			continue
		}
		for i, v := range now {
			c.each[i] = append(c.each[i], v)
		}
		c.on = append(c.on, beside(now[0], (now[1]+now[2])/2))
		c.again = append(c.again, beside(now[2], now[1]))
	}
	text, err := os.ReadFile(gateways[0].log)
	c.written = append(c.written, min(100, 100*float64(bytes.Count(text, []byte{'\n'}))/gateways[0].requests))
	return err
}

var wrkRequests = regexp.MustCompile(`(\d+) requests in `)

// load is the CPU time of all processes of the gateway for each request of a slice, in us.
func (g *gateway) load(name string, s *scraper, scraped bool) (float64, error) {
	before, err := g.used()
	if err != nil {
		return 0, err
	}
	answer := make(chan error, 1)
	if scraped {
		go func() {
			time.Sleep(slice / 4)
			answer <- s.scrape(g.metrics)
		}()
	} else {
		answer <- nil
	}
	out, err := exec.Command("wrk", "-t1", "-c"+strconv.Itoa(connections), "-d"+strconv.Itoa(int(slice.Seconds()))+"s", "https://"+g.address+"/").CombinedOutput()
	err = errors.Join(err, <-answer)
	time.Sleep(settling)
	after, usedErr := g.used()
	err = errors.Join(err, usedErr)
	m := wrkRequests.FindSubmatch(out)
	if err != nil || m == nil || slices.ContainsFunc([]string{"Non-2xx", "Socket errors"}, func(bad string) bool { return strings.Contains(string(out), bad) }) {
		return 0, fmt.Errorf("%s: %v\n%s", name, err, out)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || n < 1000 {
		return 0, fmt.Errorf("%s: too few requests\n%s", name, out)
	}
	g.requests += n
	return (after - before) / n * 1e6, nil
}
