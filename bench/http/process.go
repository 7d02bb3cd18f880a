// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stopTime is how long a process may take to end by itself: xgw lets exchanges
// finish and takes its programs off.
const stopTime = 15 * time.Second

// process is a server that the bench started, with all that it forked.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it ended
}

// start runs a server in the node, on the node's core.
func (n *node) start(name, log string, argv []string, root string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own keeps ^C from it: this program stops it in order. If this
	// program is killed, the thread of the node ends and the server is told.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM, Chroot: root}
	if root != "" {
		cmd.Dir = "/"
	}
	if err := n.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // alive and failure read the log
		close(p.done)
	}()
	return p, nil
}

// stop ends the process, and those it forked if they outstay it.
func (p *process) stop() {
	tree, _ := processTree("/proc", p.cmd.Process.Pid)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTime):
		fmt.Fprintf(os.Stderr, "bench: %s did not end in %s: killed\n", p.name, stopTime)
		for _, pid := range tree {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-p.done
	}
}

// alive fails with the end of its log when the process ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s\n%s", p.name, p.cmd.ProcessState, p.lastLines())
	default:
		return nil
	}
}

func (p *process) lastLines() string {
	text, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// output runs a command of the load in the node and returns what it printed.
func (n *node) output(ctx context.Context, argv ...string) (string, error) {
	var out, fault bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &fault
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err := n.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", argv[0], err, out.String(), fault.String())
	}
	return out.String(), nil
}

// usage is the CPU time of a tree of processes.
type usage struct {
	pids []int
	time time.Duration
}

// tick is the unit of the times in /proc/PID/stat: USER_HZ, 100 on every
// architecture that Go and BPF share.
const tick = 10 * time.Millisecond

// stat is what the bench needs of /proc/PID/stat (proc(5)).
type stat struct {
	parent int
	ticks  uint64 // user and system, its own and of children it waited for
}

func parseStat(text string) (stat, error) {
	// The second field is a name in parentheses, which may hold anything.
	end := strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[end+1:])
	if end < 0 || len(fields) < 15 {
		return stat{}, fmt.Errorf("parse stat: %q", text)
	}
	var s stat
	var err error
	if s.parent, err = strconv.Atoi(fields[1]); err != nil {
		return stat{}, fmt.Errorf("parse stat: parent: %w", err)
	}
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return stat{}, fmt.Errorf("parse stat: time: %w", err)
		}
		s.ticks += n
	}
	return s, nil
}

func readStats(proc string) (map[int]stat, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := map[int]stat{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile; one of the tree would be missed by its pid
		}
		if all[pid], err = parseStat(string(text)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// processTree lists root and its descendants, in order.
func processTree(proc string, root int) ([]int, error) {
	all, err := readStats(proc)
	if err != nil {
		return nil, err
	}
	return descendants(all, root), nil
}

func descendants(all map[int]stat, root int) []int {
	var tree []int
	for next := []int{root}; len(next) > 0; next = next[1:] {
		if _, ok := all[next[0]]; !ok {
			continue
		}
		tree = append(tree, next[0])
		for pid, s := range all {
			if s.parent == next[0] {
				next = append(next, pid)
			}
		}
	}
	slices.Sort(tree)
	return tree
}

func readUsage(proc string, root int) (usage, error) {
	all, err := readStats(proc)
	if err != nil {
		return usage{}, err
	}
	u := usage{pids: descendants(all, root)}
	for _, pid := range u.pids {
		u.time += time.Duration(all[pid].ticks) * tick
	}
	return u, nil
}

// checkPinned fails unless every process of the tree may run on that core alone.
func checkPinned(pids []int, core int) error {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return fmt.Errorf("read affinity: %w", err)
		}
		_, rest, _ := strings.Cut(string(text), "Cpus_allowed_list:")
		list, _, _ := strings.Cut(rest, "\n")
		if strings.TrimSpace(list) != strconv.Itoa(core) {
			return fmt.Errorf("process %d may run on cores %s, want %d only", pid, strings.TrimSpace(list), core)
		}
	}
	return nil
}

// coreTime is the time that a core spent on anything but idling, from /proc/stat.
func coreTime(stat string, core int) (time.Duration, error) {
	label := "cpu" + strconv.Itoa(core)
	for line := range strings.Lines(stat) {
		words := strings.Fields(line)
		if len(words) < 9 || words[0] != label {
			continue
		}
		var ticks uint64
		for i, w := range words[1:9] { // user nice system idle iowait irq softirq steal
			n, err := strconv.ParseUint(w, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("parse /proc/stat: %w", err)
			}
			if i != 3 && i != 4 {
				ticks += n
			}
		}
		return time.Duration(ticks) * tick, nil
	}
	return 0, fmt.Errorf("parse /proc/stat: no line for core %d", core)
}

func readCoreTime(core int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read time of core: %w", err)
	}
	return coreTime(string(text), core)
}
