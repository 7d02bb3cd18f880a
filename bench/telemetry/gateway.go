// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/host"
)

// gateway is a running xgw of one worker.
type gateway struct {
	cmd              *exec.Cmd
	address, metrics string
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
	g := &gateway{cmd: exec.Command("bin/xgw", "--instance", "bench-telemetry-"+filepath.Base(dir), "run", "-c", path)}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := elsewhere(g.cmd.Start); err != nil {
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

// elsewhere starts a gateway, which has all cores, while client and upstream are on the last.
func elsewhere(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SchedSetaffinity(0, &allCores); err != nil {
		return err
	}
	return errors.Join(start(), unix.SchedSetaffinity(0, &lastCore))
}

// allCores are those that this program was started on; the worker is pinned to the first.
var allCores, lastCore unix.CPUSet

// standAside has this program, and wrk, run on the last core.
func standAside() error {
	if err := unix.SchedGetaffinity(0, &allCores); err != nil {
		return err
	}
	for i := range 1024 {
		if allCores.IsSet(i) {
			lastCore.Zero()
			lastCore.Set(i)
		}
	}
	tasks, err := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		id, _ := strconv.Atoi(t.Name()) // the kernel's
		err = errors.Join(err, unix.SchedSetaffinity(id, &lastCore))
	}
	return err
}

func (g *gateway) stop() {
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(20*time.Second, func() { _ = g.cmd.Process.Kill() })
	defer late.Stop()
	_ = g.cmd.Wait()
}

var wrkRequests = regexp.MustCompile(`(\d+) requests in `)

// load is the CPU time of all processes of the gateway for each request of a slice, in us.
func (g *gateway) load(name string, scraped bool) (float64, error) {
	stop := g.scrapeEach(scraped)
	before := g.used()
	out, err := exec.Command("wrk", "-t1", "-c16", "-d"+strconv.Itoa(int(slice.Seconds()))+"s", "https://"+g.address+"/").CombinedOutput()
	err = errors.Join(err, stop())
	after := g.used()
	m := wrkRequests.FindSubmatch(out)
	if err != nil || m == nil || strings.Contains(string(out), "Non-2xx") || strings.Contains(string(out), "Socket errors") {
		return 0, fmt.Errorf("%s: %v\n%s", name, err, out)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || n < 1000 {
		return 0, fmt.Errorf("%s: too few requests\n%s", name, out)
	}
	return (after - before) / n * 1e6, nil
}

// used is the CPU time of the supervisor and its workers in seconds.
func (g *gateway) used() float64 {
	pid := g.cmd.Process.Pid
	sum := host.ProcessTime("/", pid)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is well formed
	for _, t := range tasks {
		text, _ := os.ReadFile(t) // a thread that is gone has none
		for _, child := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(child); err == nil {
				sum += host.ProcessTime("/", n)
			}
		}
	}
	return sum
}
