// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"
)

// bench measures every case on every gateway.
type bench struct {
	options  options
	lab      *lab
	place    *place
	upstream *upstream
	gateways []*gateway
	core     int // of the gateways
	progress io.Writer
	noisy    int // measurements beside which other work ran on the gateway's core
	measured int
	answered int64 // by xgw, for comparison with its access log
	rate     int   // requests a second of the paced case; 0: not known yet
}

// sample is one measurement.
type sample struct {
	cpu      time.Duration // of all processes of the gateway
	others   time.Duration // of anything else on its core
	requests int64
	p99      float64 // µs, of the paced case
}

// figure is what the case is about: µs of CPU for each request, or µs of latency.
func (s sample) figure() float64 {
	if s.p99 > 0 {
		return s.p99
	}
	return float64(s.cpu.Microseconds()) / float64(s.requests)
}

// warmUp comes before the first round of each pair, unmeasured.
const warmUp = time.Second

// result is a case's figures by gateway and round.
type result struct {
	name    string
	unit    string
	figures map[string][]float64
}

func (b *bench) run(ctx context.Context) ([]result, error) {
	only, err := regexp.Compile(b.options.only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	var results []result
	for i := range cases {
		if only.MatchString(cases[i].name) {
			results = append(results, result{name: cases[i].name, unit: cases[i].unit(), figures: map[string][]float64{}})
		}
	}
	for round := range b.options.rounds {
		next := 0
		for i := range cases {
			if !only.MatchString(cases[i].name) {
				continue
			}
			r := &results[next]
			next++
			// Each takes each turn, since the first after a pause is not like the others.
			for k := range b.gateways {
				g := b.gateways[(k+round)%len(b.gateways)]
				figure, err := b.turn(ctx, round, &cases[i], g)
				if err != nil {
					return nil, fmt.Errorf("%s, %s, round %d: %w", r.name, g.name, round+1, err)
				}
				r.figures[g.name] = append(r.figures[g.name], figure)
			}
		}
	}
	return results, nil
}

func (b *bench) turn(ctx context.Context, round int, c *benchCase, g *gateway) (float64, error) {
	if err := probe(ctx, b.lab, b.place, g, c); err != nil {
		return 0, err
	}
	if c.idle {
		return b.turnIdle(c, g, round)
	}
	if c.paced && b.rate == 0 {
		if err := b.findRate(ctx); err != nil {
			return 0, fmt.Errorf("find saturation: %w", err)
		}
	}
	if round == 0 {
		if _, err := b.measure(ctx, c, g, warmUp); err != nil {
			return 0, fmt.Errorf("warm up: %w", err)
		}
	}
	s, err := b.measure(ctx, c, g, b.options.duration)
	if err != nil {
		return 0, err
	}
	percent := func(d time.Duration) float64 { return 100 * d.Seconds() / b.options.duration.Seconds() }
	b.measured++
	if percent(s.others) > noise {
		b.noisy++
	}
	fmt.Fprintf(b.progress, "round %d  %-40s %-11s %8.1f %-10s %9d requests, core %3.0f %% busy with it and %2.0f %% with other work\n",
		round+1, c.name, g.name, s.figure(), c.unit(), s.requests, percent(s.cpu), percent(s.others))
	return s.figure(), nil
}

// findRate sets the pace to half of what the slowest gateway can do, so that it is one
// pace for all.
func (b *bench) findRate(ctx context.Context) error {
	for _, g := range b.gateways {
		s, err := b.measure(ctx, &cases[1], g, 2*warmUp)
		if err != nil {
			return err
		}
		if half := int(float64(s.requests) / (2 * warmUp).Seconds() / 2); b.rate == 0 || half < b.rate {
			b.rate = half
		}
	}
	fmt.Fprintf(b.progress, "half of saturation: %d requests a second\n", b.rate)
	return nil
}

// measure runs the load once, between two readings of all clocks and counters.
func (b *bench) measure(ctx context.Context, c *benchCase, g *gateway, d time.Duration) (sample, error) {
	if err := g.process.alive(); err != nil {
		return sample{}, err
	}
	before, err := b.read(g)
	if err != nil {
		return sample{}, err
	}
	if err := checkPinned(before.usage.pids, b.core); err != nil {
		return sample{}, err
	}
	text, err := b.lab.client.output(ctx, c.load(c, g.url(c), b.place, d, b.rate)...)
	if ctx.Err() != nil {
		return sample{}, errors.New("interrupted")
	}
	if err != nil {
		return sample{}, fmt.Errorf("load: %w\n%s", err, g.process.lastLines())
	}
	after, err := b.read(g)
	if err != nil {
		return sample{}, err
	}
	requests, err := c.parse(text, c)
	if err != nil {
		return sample{}, err
	}
	if !slices.Equal(before.usage.pids, after.usage.pids) {
		return sample{}, fmt.Errorf("processes changed from %v to %v: a worker died?\n%s", before.usage.pids, after.usage.pids, g.process.lastLines())
	}
	if g.name == ours {
		b.answered += requests
	}
	s := sample{cpu: after.usage.time - before.usage.time, requests: requests}
	if c.paced {
		if s.p99, err = p99(text); err != nil {
			return sample{}, err
		}
	}
	s.others = max(after.core-before.core-s.cpu, 0)
	return s, checkSeen(requests, c.flight, seen{after.seen.connections - before.seen.connections, after.seen.requests - before.seen.requests})
}

// reading is all that is read before and after a load.
type reading struct {
	usage usage
	core  time.Duration
	seen  seen
}

func (b *bench) read(g *gateway) (r reading, err error) {
	if r.seen, err = b.upstream.seen(); err != nil {
		return r, err
	}
	if r.core, err = readCoreTime(b.core); err != nil {
		return r, err
	}
	r.usage, err = readUsage("/proc", g.process.cmd.Process.Pid)
	return r, err
}

const (
	// noise is how much other work on the gateway's core, in percent, is worth a
	// word: it takes the caches away.
	noise = 10
	// perConnection is how many requests each new connection to the upstream must
	// have served on average, beyond one for each request under way.
	perConnection = 20
)

// checkSeen compares the load's count with what reached the upstream meanwhile.
// flight is how many requests the load keeps under way; as many may be unfinished
// when it ends, and may begin with a new connection.
func checkSeen(requests int64, flight int, s seen) error {
	if s.requests < requests || s.requests > requests+requests/100+2*int64(flight) {
		return fmt.Errorf("the load counted %d requests, the upstream %d", requests, s.requests)
	}
	if s.connections > int64(flight)+s.requests/perConnection {
		return fmt.Errorf("%d connections to the upstream for %d requests: its keep-alive was not used", s.connections, s.requests)
	}
	return nil
}
