// SPDX-License-Identifier: Apache-2.0

// Command packet measures what a packet costs in xgw's xdp_ingress and in xdp-filter,
// above a bare XDP_DROP, side by side in one run. Run it as root from the root of the
// module; bench/README.md says what the figures mean and what they do not.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
)

// options are the command line's.
type options struct {
	rounds  int
	packets int
	only    string
	out     string
	steps   bool
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 21, "measured rounds; the median counts")
	flag.IntVar(&o.packets, "packets", 200_000, "of one measurement")
	flag.StringVar(&o.only, "only", "", "only cases whose name holds this; writes nothing")
	flag.StringVar(&o.out, "o", "bench/results/packet.json", "file for the results")
	flag.BoolVar(&o.steps, "steps", true, "also what each feature adds")
	flag.Parse()
	if err := run(o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options, w io.Writer) (err error) {
	core, err := check(o)
	if err != nil {
		return err
	}
	b, err := newBench(maxPrefixes, liveSources)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	heading(w, b, o, core)
	results, err := b.run(o)
	if err != nil {
		return err
	}
	table(w, results)
	if o.only != "" {
		return nil
	}
	if o.steps {
		steps, err := b.runSteps(o)
		if err != nil {
			return err
		}
		stepTable(w, steps)
	}
	return write(o.out, results)
}

// check refuses what gives no figures, and keeps this thread on one core: the last, since
// interrupts mostly go to the first.
func check(o options) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("needs root: it loads BPF programs")
	}
	if o.rounds < 1 || o.packets < flowCount {
		return 0, fmt.Errorf("want at least one round of %d packets", flowCount)
	}
	debug.SetGCPercent(400) // less of it beside what is measured
	runtime.LockOSThread()
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return 0, fmt.Errorf("read affinity: %w", err)
	}
	core := -1
	for i, left := 0, allowed.Count(); left > 0; i++ {
		if allowed.IsSet(i) {
			core, left = i, left-1
		}
	}
	one.Set(core)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return 0, fmt.Errorf("stay on core %d: %w", core, err)
	}
	return core, nil
}

// result is a case and its figures, one of each round: nanoseconds, those of the programs
// above the bare drop's of the same round.
type result struct {
	testCase
	bare, filter, ours []float64
}

// run measures all cases in each round, the three programs of a case one after the other;
// who is first changes from round to round.
func (b *bench) run(o options) ([]result, error) {
	var results []result
	for _, c := range b.cases {
		if strings.Contains(c.title(), o.only) {
			results = append(results, result{testCase: c})
		}
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("no case has %q in its name", o.only)
	}
	for round := range o.rounds {
		for i := range results {
			if err := b.round(&results[i], round, o.packets); err != nil {
				return nil, fmt.Errorf("%s: %w", results[i].title(), err)
			}
		}
	}
	return results, nil
}

func (b *bench) round(r *result, round, packets int) error {
	contestants := []struct {
		lane   *lane
		want   string
		action uint32
	}{
		{b.bare, "", xdpDrop},
		{b.filter.lane, r.testCase.filter, r.action},
		{b.gateways[r.setup].lane, r.want, r.action},
	}
	var ns [3]float64
	for i := range contestants {
		place := (i + round) % len(contestants)
		c := contestants[place]
		action := c.action
		if place == 1 { // xdp-filter has no limits
			action = map[string]uint32{"drop": xdpDrop, "pass": xdpPass}[c.want]
		}
		var err error
		if ns[place], err = c.lane.measure(r.frame, r.flows, packets, c.want, action); err != nil {
			return err
		}
	}
	r.bare = append(r.bare, ns[0])
	r.filter = append(r.filter, ns[1]-ns[0])
	r.ours = append(r.ours, ns[2]-ns[0])
	return nil
}

// step is what packets cost with all features up to this one.
type step struct {
	name             string
	established, syn []float64
}

// runSteps switches features on one by one, several times over.
func (b *bench) runSteps(o options) ([]step, error) {
	g, err := newGateway(emptyTables.tables(nil), pinholes)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	if err := g.shake(b.traffic.live); err != nil {
		return nil, err
	}
	var established, syn testCase
	for _, c := range b.cases {
		if c.setup == emptyTables && c.frame[EthernetLen+IPv4Len+13] == ACK {
			established = c
		} else if c.setup == emptyTables {
			syn = c
		}
	}
	steps := []step{{name: "counting alone"}}
	for _, f := range features {
		steps = append(steps, step{name: f.name})
	}
	for range max(o.rounds/3, 1) {
		t := emptyTables.tables(nil)
		for i := range steps {
			if i > 0 {
				features[i-1].add(t, b.traffic.rules)
			}
			if err := g.datapath.Apply(t); err != nil {
				return nil, err
			}
			for _, m := range []struct {
				c    *testCase
				into *[]float64
			}{{&established, &steps[i].established}, {&syn, &steps[i].syn}} {
				bare, err := b.bare.measure(m.c.frame, m.c.flows, o.packets, "", xdpDrop)
				if err != nil {
					return nil, err
				}
				ns, err := g.measure(m.c.frame, m.c.flows, o.packets, m.c.want, m.c.action)
				if err != nil {
					return nil, fmt.Errorf("%s with %s: %w", m.c.title(), steps[i].name, err)
				}
				*m.into = append(*m.into, ns-bare)
			}
		}
	}
	return steps, nil
}
