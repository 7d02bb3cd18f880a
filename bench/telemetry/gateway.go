// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gateway is a running xgw of one worker.
type gateway struct {
	cmd              *exec.Cmd
	address, metrics string
	log              string  // path of its access log, or off
	requests         float64 // that wrk has counted
}

// start runs one; more are routes, each with a comma behind it.
func start(dir, upstream string, logs bool, more string) (*gateway, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	access := "off"
	if logs {
		access = filepath.Join(dir, "access.log")
	}
	text := fmt.Sprintf(`listeners: [{address: "127.0.0.1:0"}]
telemetry: {address: "127.0.0.1:0"}
admin_api: {address: off}
workers: 1
routes: [%s{name: all, path: /, upstream: back}]
upstreams: [{name: back, servers: [%q]}]
log: {access: %s}
state: %s
`, more, upstream, access, dir)
	path := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	g := &gateway{log: access, cmd: exec.Command("bin/xgw", "--instance", "bench-telemetry-"+filepath.Base(dir), "run", "-c", path)}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := elsewhere(g.cmd.Start); err != nil {
		if g.cmd.Process != nil {
			g.stop()
		}
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	said, metrics, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "xgw: serving on "), ", metrics on ")
	if err != nil || !ok {
		g.stop()
		return nil, fmt.Errorf("the gateway did not start: %q, %v", line, err)
	}
	g.address, g.metrics = said, metrics
	return g, nil
}

var firstCore, lastCore unix.CPUSet

// Client and upstream come before everything else on their core, at once, as if each had a
// machine of its own: what they wait for is the gateway alone. It is scheduled as any program is, before those
// that happen to be on this machine, and its supervisor as usual is 10 nicer than its worker.
var (
	first = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	usual = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20}
)

// elsewhere starts a gateway: it has the first core, as if that were its machine.
func elsewhere(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := place(0, &firstCore, &usual); err != nil {
		return err
	}
	return errors.Join(start(), place(0, &lastCore, &first))
}

// place gives a thread, 0 is this one, its core and its turn.
func place(thread int, core *unix.CPUSet, turn *unix.SchedAttr) error {
	err := errors.Join(unix.SchedSetaffinity(thread, core), unix.SchedSetAttr(thread, turn, 0))
	if err != nil {
		return fmt.Errorf("give a thread its core and its turn, as root may: %w", err)
	}
	return nil
}

// standAside has this program, and what it starts, run on the last core.
func standAside() error {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for i := range 1024 {
		if all.IsSet(i) {
			lastCore.Zero()
			lastCore.Set(i)
			if firstCore.Count() == 0 {
				firstCore.Set(i)
			}
		}
	}
	runtime.GOMAXPROCS(1)
	tasks, err := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		id, _ := strconv.Atoi(t.Name()) // the kernel's
		err = errors.Join(err, place(id, &lastCore, &first))
	}
	return err
}

func (g *gateway) stop() {
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(20*time.Second, func() { _ = g.cmd.Process.Kill() })
	defer late.Stop()
	_ = g.cmd.Wait()
}

// used is the CPU time of the supervisor and its workers in seconds, by their clocks, since ticks
// would be too coarse: clock_getcpuclockid(3).
func (g *gateway) used() (sum float64, err error) {
	pids := []int{g.cmd.Process.Pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[0])) // the pattern is well formed
	for _, t := range tasks {
		text, _ := os.ReadFile(t) // a thread that is gone has none
		for _, child := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(child)
			if err != nil {
				return 0, err
			}
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
			return 0, fmt.Errorf("read CPU clock of process %d: %w", pid, err)
		}
		sum += float64(t.Nano()) / 1e9
	}
	return sum, nil
}
