// SPDX-License-Identifier: Apache-2.0

// Command synflood measures what a dropped SYN costs the machine: with xgw in front of the
// stack, and with the kernel's own SYN cookies alone. Both are what a flood at one rate
// takes of the machine's idle time beyond the same flood into a bare XDP_DROP, so that
// sending it is not counted; honest clients connect beside it, and all must succeed. Run it
// as root from the root of the module.
//
// Sender and receiver share the machine. Where a rate cannot be kept up, the bench goes on
// with lower ones, and says which it was for.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/lab"
	"github.com/xgw-project/xgw/pkg/policy"
)

const instance = "bench-syn"

var (
	target = netip.AddrPortFrom(lab.GatewayAddr, 443)
	forged = netip.MustParsePrefix("10.0.0.0/8")
)

// options of a run.
type options struct {
	rates    []int // SYNs per second
	clients  int   // exchanges of honest clients per second
	duration time.Duration
	rounds   int
	seed     uint64
}

func main() {
	var o options
	rates := flag.String("rates", "100000,200000", "SYNs per second, one after the other")
	flag.IntVar(&o.clients, "clients", 50, "connections of honest clients per second, beside the flood")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "of one measurement")
	flag.IntVar(&o.rounds, "rounds", 5, "measured rounds; the median counts")
	flag.Uint64Var(&o.seed, "seed", 1, "of the forged sources")
	out := flag.String("o", "bench/results/synflood.json", "file for the results")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := parseRates(*rates, &o)
	if err == nil {
		err = run(ctx, o, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseRates(text string, o *options) error {
	for _, field := range strings.Split(text, ",") {
		rate, err := strconv.Atoi(field)
		if err != nil || rate < 1000 {
			return fmt.Errorf("-rates %q: want numbers of 1000 and more, with commas", text)
		}
		o.rates = append(o.rates, rate)
	}
	return nil
}

// front is what stands before the listening socket.
type front struct {
	name string
	put  func() (func() error, error) // in the gateway's namespace
	// answers says that each SYN is to get a cookie.
	answers bool
}

var fronts = [...]front{
	{name: "bare XDP_DROP", put: bareDrop}, {name: "xgw", put: attachXGW},
	{name: "SYN cookies", put: func() (func() error, error) { return func() error { return nil }, nil }, answers: true},
}

// result is one rate's, as bench/results has it.
type result struct {
	Name  string             `json:"name"`
	Unit  string             `json:"unit"`
	Ours  float64            `json:"ours"`
	Peers map[string]float64 `json:"peers"`
	Ratio float64            `json:"ratio"`
}

func run(ctx context.Context, o options, out string) (err error) {
	l, err := lab.New(lab.Options{Name: "xgwbenchsyn"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	ln, err := l.Listen(lab.Gateway, "tcp4", target.String())
	if err != nil {
		return err
	}
	defer ln.Close()
	go serve(ln)
	if err := l.In(lab.Gateway, prepare); err != nil {
		return err
	}
	g, err := newGenerator(l, forged, target, o.seed)
	if err != nil {
		return fmt.Errorf("make generator: %w", err)
	}
	defer g.Close()
	var results []result
	for _, rate := range o.rates {
		r, err := compare(ctx, l, g, o, rate)
		if err != nil {
			return fmt.Errorf("%d SYNs a second: %w", rate, err)
		}
		results = append(results, r)
	}
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

// prepare makes the gateway's kernel one that meets floods: with SYN cookies, and with
// GRO, as a NIC has it, for a veth takes no XDP frames without it or a program.
func prepare() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("1"), 0); err != nil {
		return fmt.Errorf("turn SYN cookies on: %w", err)
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer e.Close()
	if err := e.Change(lab.EdgeInterface, map[string]bool{"rx-gro": true}); err != nil {
		return fmt.Errorf("turn GRO of %s on: %w", lab.EdgeInterface, err)
	}
	return nil
}

// compare measures all fronts at one rate.
func compare(ctx context.Context, l *lab.Lab, g *generator, o options, rate int) (r result, err error) {
	var perSYN [len(fronts)][]float64
	honest := &clients{l: l, rate: o.clients}
	for round := range o.rounds {
		var busy [len(fronts)]float64
		for i, f := range fronts {
			// What else runs here may be in the way of one measurement.
			for range 3 {
				busy[i], err = measure(ctx, g, honest, f, o.duration, rate)
				if !errors.Is(err, errRate) {
					break
				}
				fmt.Printf("%s: %v: once more\n", f.name, err)
			}
			if err != nil {
				return r, fmt.Errorf("%s: %w", f.name, err)
			}
			perSYN[i] = append(perSYN[i], (busy[i]-busy[0])*1e9)
		}
		fmt.Printf("%d SYNs/s, round %d: CPU beyond a bare XDP_DROP, for each SYN: xgw %.0f ns, SYN cookies %.0f ns; the machine was busy %.0f, %.0f, %.0f %% of the time\n",
			rate, round+1, perSYN[1][round], perSYN[2][round], load(busy[0], rate), load(busy[1], rate), load(busy[2], rate))
	}
	ours, peer := median(perSYN[1]), median(perSYN[2])
	fmt.Printf("%d SYNs/s, median: xgw %.0f ns, SYN cookies %.0f ns, ratio %.3f; %d exchanges of honest clients, none failed, the slowest %v\n",
		rate, ours, peer, ours/peer, honest.good, honest.slowest.Round(time.Millisecond))
	return result{
		Name: fmt.Sprintf("dropped SYN at %d/s", rate), Unit: "ns of CPU above bare XDP_DROP", Ours: ours,
		Peers: map[string]float64{"kernel with SYN cookies": peer}, Ratio: ours / peer,
	}, nil
}

// load is the share of the machine that was busy, in percent.
func load(perSYN float64, rate int) float64 {
	return 100 * perSYN * float64(rate) / float64(runtime.NumCPU())
}

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

// measure returns the seconds of CPU that the whole machine spends for each SYN of a flood.
func measure(ctx context.Context, g *generator, honest *clients, f front, duration time.Duration, rate int) (perSYN float64, err error) {
	l := g.l
	var remove func() error
	if err := l.In(lab.Gateway, func() (err error) { remove, err = f.put(); return err }); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.In(lab.Gateway, remove)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 2)
	go func() { honest.run(ctx); ended <- honest.result() }()
	time.Sleep(500 * time.Millisecond) // by then the clients are known
	go func() { ended <- g.run(ctx, rate) }()
	time.Sleep(500 * time.Millisecond)
	before, err := look(l, g)
	if err != nil {
		return 0, err
	}
	select {
	case err := <-ended:
		return 0, err
	case <-time.After(duration):
	}
	after, err := look(l, g)
	if err != nil {
		return 0, err
	}
	cancel()
	if err := errors.Join(<-ended, <-ended); err != nil {
		return 0, err
	}
	return after.since(before).judge(f, rate)
}

// moment is how far all counts were; and what lies between two of them.
type moment struct {
	at                      time.Duration
	idle                    time.Duration // of all CPUs together
	sent, arrived, answered uint64
}

var started = time.Now()

func look(l *lab.Lab, g *generator) (m moment, err error) {
	if m.sent, err = g.sent(); err != nil {
		return m, err
	}
	c, err := l.Counters(lab.Gateway, lab.EdgeInterface)
	if err != nil {
		return m, err
	}
	m.arrived = c.RxPackets
	if err := l.In(lab.Gateway, func() error { m.answered, err = cookiesSent(); return err }); err != nil {
		return m, err
	}
	m.idle, err = idleTime()
	m.at = time.Since(started)
	return m, err
}

func (m moment) since(b moment) moment {
	return moment{m.at - b.at, m.idle - b.idle, m.sent - b.sent, m.arrived - b.arrived, m.answered - b.answered}
}

// errRate: the flood was not the one that was asked for.
var errRate = errors.New("this machine is too slow or too busy: take a lower -rates")

// judge returns the busy seconds for each SYN, if it was the flood that was asked for.
func (m moment) judge(f front, rate int) (float64, error) {
	const enough = 0.97
	sent, want := float64(m.sent), float64(rate)*m.at.Seconds()
	if sent < enough*want {
		return 0, fmt.Errorf("only %.0f SYNs a second were sent: %w", sent/m.at.Seconds(), errRate)
	}
	if float64(m.arrived) < enough*sent {
		return 0, fmt.Errorf("%d of %d SYNs arrived: %w", m.arrived, m.sent, errRate)
	}
	if f.answers && float64(m.answered) < enough*sent {
		return 0, fmt.Errorf("%d of %d SYNs were answered with a cookie: %w", m.answered, m.sent, errRate)
	}
	busy := m.at*time.Duration(runtime.NumCPU()) - m.idle
	return busy.Seconds() / sent, nil
}

// idleTime is that of all CPUs since boot. The kernel counts it exactly, and the busy
// kinds by what a tick finds.
func idleTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Scan()
	fields := strings.Fields(s.Text())
	if len(fields) < 6 {
		return 0, fmt.Errorf("/proc/stat: unknown line %q", s.Text())
	}
	var ticks uint64
	for _, field := range fields[4:6] { // idle, iowait
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// cookiesSent is the count of this namespace.
func cookiesSent() (uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(text), "\n")
	for i := 1; i < len(lines); i++ {
		names, values := strings.Fields(lines[i-1]), strings.Fields(lines[i])
		if at := slices.Index(names, "SyncookiesSent"); at >= 0 && at < len(values) {
			return strconv.ParseUint(values[at], 10, 64)
		}
	}
	return 0, errors.New("/proc/net/netstat does not count SYN cookies")
}

// bareDrop drops what comes from forged sources, and looks no further: the honest clients
// are let by.
func bareDrop() (func() error, error) {
	const sourceAt = 14 + 12
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bare_drop", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
			asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
			asm.Mov.Imm(asm.R0, 2),                   // XDP_PASS
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, sourceAt+1),
			asm.JGT.Reg(asm.R4, asm.R3, "end"),
			asm.LoadMem(asm.R5, asm.R2, sourceAt, asm.Byte),
			asm.JNE.Imm(asm.R5, int32(forged.Addr().As4()[0]), "end"),
			asm.Mov.Imm(asm.R0, 1), // XDP_DROP
			asm.Return().WithSymbol("end"),
		},
	})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	nl, err := netlink.LinkByName(lab.EdgeInterface)
	if err != nil {
		return nil, err
	}
	x, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: nl.Attrs().Index, Flags: link.XDPDriverMode})
	if err != nil {
		return nil, err
	}
	return x.Close, nil
}

// attachXGW stands there with the rules of the example configuration and limits that this
// flood is over, all but a thousandth.
func attachXGW() (func() error, error) {
	c := config.Defaults()
	c.PacketLimits = []config.PacketLimit{
		{Name: "source", Key: "source", Count: "syns", Rate: 100, Burst: 200},
		{Name: "prefix", Key: "prefix", Count: "syns", Rate: 1000, Burst: 1000},
		{Name: "queue", Key: "queue", Count: "syns", Rate: 500, Burst: 500},
	}
	p, err := policy.Compile(c, 1)
	if err != nil {
		return nil, err
	}
	d, err := datapath.Create(datapath.Options{Interface: lab.EdgeInterface, Instance: instance})
	if err != nil {
		return nil, err
	}
	if err := d.Attach(datapath.ModeNative); err != nil {
		return nil, errors.Join(err, d.Detach(), d.Close())
	}
	if err := d.Apply(&p.Tables); err != nil {
		return nil, errors.Join(err, d.Detach(), d.Close())
	}
	return func() error { return errors.Join(d.Detach(), d.Close()) }, nil
}
