// SPDX-License-Identifier: Apache-2.0

// Command http measures the CPU time that a request costs xgw, nginx and HAProxy,
// side by side in one run. Run it as root from the root of the module; README.md
// beside this directory says what the figures mean and what they do not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command line's.
type options struct {
	rounds   int
	duration time.Duration
	only     string
	out      string
	skipXGW  bool
	peers    string
	unlogged bool
	merge    bool
	limits   bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == clientWord {
		os.Exit(clientMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == idleWord {
		os.Exit(idleMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == pacedWord {
		os.Exit(pacedMain(os.Args[2:]))
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "measured rounds; the median counts")
	flag.DurationVar(&o.duration, "duration", 4*time.Second, "of one measurement, whole seconds: CPU time is counted in ticks of 10 ms")
	flag.StringVar(&o.only, "only", "", "only cases whose name matches this regular expression")
	flag.StringVar(&o.out, "o", "bench/results/http.json", "file for the results")
	flag.BoolVar(&o.skipXGW, "skip-xgw", false, "the peers alone; writes no results")
	flag.StringVar(&o.peers, "peers", "", "root directory (of debootstrap) to take nginx and HAProxy from, instead of the installed ones")
	flag.BoolVar(&o.unlogged, "unlogged", false, "peers without an access log only")
	flag.BoolVar(&o.merge, "merge", false, "with -only: put the results into the file, where others stay")
	flag.BoolVar(&o.limits, "limits", false, "what request limits cost, by xgw beside itself; writes bench/results/limits.json")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the whole bench. What it makes is gone when it returns.
func run(ctx context.Context, o options, w io.Writer) (err error) {
	cores, err := check(o)
	if err != nil {
		return err
	}
	if !o.skipXGW {
		if err := build(ctx); err != nil {
			return err
		}
	}
	p, err := newPlace(o.peers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove()) }()
	l, err := newLab(cores)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.remove()) }()
	up, err := startUpstream(l, p)
	if err != nil {
		return err
	}
	defer up.stop()
	if o.limits {
		return runLimits(ctx, o, l, p, up, w)
	}
	gateways, stop, err := startGateways(ctx, l, p, o)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	b := &bench{options: o, lab: l, place: p, upstream: up, gateways: gateways, core: cores[0], progress: os.Stderr}
	heading(w, b, cores)
	results, err := b.run(ctx)
	if err != nil {
		return err
	}
	table(w, gateways, results)
	if err := remarks(w, b); err != nil {
		return err
	}
	if o.skipXGW || o.only != "" && !o.merge {
		return nil
	}
	return write(o.out, results, o.merge)
}

// check refuses what cannot give meaningful figures, and says which cores the
// gateway, and client and upstream, are to have.
func check(o options) ([2]int, error) {
	var cores [2]int
	if os.Geteuid() != 0 {
		return cores, errors.New("needs root: it makes network namespaces and attaches XDP programs to interfaces in them")
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return cores, errors.New("run it from the root of the module: `make bench`")
	}
	if o.rounds < 1 || o.duration < time.Second || o.duration%time.Second != 0 {
		return cores, errors.New("want at least one round, and whole seconds")
	}
	for _, tool := range []string{"wrk", "h2load", "curl", "nginx", "haproxy"} {
		if _, err := exec.LookPath(tool); err != nil {
			return cores, fmt.Errorf("%w: `apt-get install nginx-light haproxy wrk nghttp2-client curl`", err)
		}
	}
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return cores, fmt.Errorf("read affinity: %w", err)
	}
	if allowed.Count() < len(cores) {
		return cores, fmt.Errorf("this machine gives %d core: the gateway needs one to itself and the load another, so nothing is measured here", allowed.Count())
	}
	found := 0
	for core := 0; found < len(cores); core++ {
		if allowed.IsSet(core) {
			cores[found] = core
			found++
		}
	}
	return cores, nil
}

// build makes the binary that is measured, so that it is never an old one.
func build(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", xgwBinary, "./cmd/xgw")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build xgw: %w", err)
	}
	return nil
}
