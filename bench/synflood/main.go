// SPDX-License-Identifier: Apache-2.0

// Command synflood measures what a dropped SYN costs the machine: with xgw in front of the
// stack, and with the kernel's own SYN cookies alone. Both are what a flood at one rate
// takes beyond the same flood into a bare XDP_DROP, so that sending it is not counted. Run
// it as root from the root of the module.
//
// Sender and receiver share the machine. Where the stack with SYN cookies cannot keep the
// rate up, its cost is that of the SYNs that it was sent in fact, and the bench says how
// many these were; xgw and the bare drop must keep it up.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/lab"
	"github.com/xgw-project/xgw/pkg/policy"
)

const instance = "bench-syn"

func main() {
	rate := flag.Int("rate", 200_000, "SYNs per second")
	duration := flag.Duration("duration", 4*time.Second, "of one measurement: CPU time is counted in ticks of 10 ms")
	rounds := flag.Int("rounds", 3, "measured rounds; the median counts")
	out := flag.String("o", "bench/results/synflood.json", "file for the results")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rate, *duration, *rounds, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// front is what stands before the listening socket.
type front struct {
	name string
	put  func() (func() error, error) // in the gateway's namespace
	lags bool                         // it may take fewer SYNs than the rate
}

func run(ctx context.Context, rate int, duration time.Duration, rounds int, out string) (err error) {
	l, err := lab.New(lab.Options{Name: "xgwbenchsyn"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	ln, err := l.Listen(lab.Gateway, "tcp4", lab.GatewayAddr.String()+":443")
	if err != nil {
		return err
	}
	defer ln.Close()
	go accept(ln)
	if err := l.In(lab.Gateway, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("1"), 0)
	}); err != nil {
		return fmt.Errorf("turn SYN cookies on: %w", err)
	}
	fronts := []front{
		{"bare XDP_DROP", bareDrop, false}, {"xgw", attachXGW, false},
		{"SYN cookies", func() (func() error, error) { return func() error { return nil }, nil }, true},
	}
	perSYN := map[string][]float64{}
	for round := range rounds {
		var busy, real [3]float64
		for i, f := range fronts {
			if busy[i], real[i], err = measure(ctx, l, f, rate, duration); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
		for i, f := range fronts[1:] {
			perSYN[f.name] = append(perSYN[f.name], (busy[i+1]-busy[0])*1e9)
		}
		fmt.Printf("round %d: CPU beyond a bare XDP_DROP, for each SYN: xgw %.0f ns at %.0f/s, SYN cookies %.0f ns at %.0f/s\n", round+1,
			perSYN["xgw"][round], real[1], perSYN["SYN cookies"][round], real[2])
	}
	ours, peer := median(perSYN["xgw"]), median(perSYN["SYN cookies"])
	fmt.Printf("median: xgw %.0f ns, SYN cookies %.0f ns, ratio %.3f\n", ours, peer, ours/peer)
	text, err := json.MarshalIndent([]map[string]any{{
		"name": fmt.Sprintf("dropped SYN at %d/s", rate), "unit": "ns of CPU above bare XDP_DROP", "ours": ours,
		"peers": map[string]float64{"kernel with SYN cookies": peer}, "ratio": ours / peer,
	}}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

func accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

// measure returns the seconds of CPU that the whole machine spends for each SYN of a flood.
func measure(ctx context.Context, l *lab.Lab, f front, rate int, duration time.Duration) (perSYN, real float64, err error) {
	var remove func() error
	if err := l.In(lab.Gateway, func() (err error) { remove, err = f.put(); return err }); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, l.In(lab.Gateway, remove)) }()
	time.Sleep(500 * time.Millisecond)
	before, err := l.Counters(lab.Gateway, lab.EdgeInterface)
	if err != nil {
		return 0, 0, err
	}
	busy, err := busyTime()
	if err != nil {
		return 0, 0, err
	}
	started := time.Now()
	sent, err := l.Flood(ctx, lab.Flood{
		Sources: netip.MustParsePrefix("10.0.0.0/8"), Target: netip.AddrPortFrom(lab.GatewayAddr, 443), Rate: rate, Count: int(float64(rate) * duration.Seconds()),
	})
	if err != nil {
		return 0, 0, err
	}
	if real = float64(sent) / time.Since(started).Seconds(); real < 0.9*float64(rate) && !f.lags {
		return 0, 0, fmt.Errorf("only %.0f SYNs a second were sent, of %d: this machine is too slow or too busy: take a lower -rate", real, rate)
	}
	end, err := busyTime()
	if err != nil {
		return 0, 0, err
	}
	after, err := l.Counters(lab.Gateway, lab.EdgeInterface)
	if err != nil {
		return 0, 0, err
	}
	if got := after.RxPackets - before.RxPackets; got < uint64(sent)*99/100 {
		return 0, 0, fmt.Errorf("%d of %d SYNs arrived", got, sent)
	}
	return (end - busy).Seconds() / float64(sent), real, nil
}

// busyTime is the CPU time of the machine that was not idle, all CPUs together.
func busyTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Scan()
	var ticks uint64
	for i, field := range strings.Fields(s.Text())[1:] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 && i < 8 { // idle, iowait; guest time is in user time
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// bareDrop is the least that can stand there.
func bareDrop() (func() error, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bare_drop", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
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
		{Name: "queue", Key: "queue", Count: "syns", Rate: 100, Burst: 100},
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
