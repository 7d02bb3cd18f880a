// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// niceness of the threads of a process: of its first one, and how many have which.
func niceness(t *testing.T, pid int) (first int, all map[int]int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	all = map[int]int{}
	for _, task := range tasks {
		id, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := unix.Getpriority(unix.PRIO_PROCESS, id)
		if err != nil {
			continue // it has ended
		}
		all[20-raw]++
		if id == pid {
			first = 20 - raw
		}
	}
	return first, all
}

// The supervisor gives way to its workers, all of them: the first ones, one that was started
// again, and those of the supervisor after it. What cannot be taken back nobody inherits.
func TestSupervisorGivesWay(t *testing.T) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := 20 - raw
	if ours > 8 {
		t.Skipf("niceness %d leaves no room for a worse one", ours)
	}
	const instance = "priority"
	dir := t.TempDir()
	u := newUpgrader(t, startGateway(t, startHere, instance, dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\n")), instance)
	check := func(when string) (worker int) {
		t.Helper()
		eventually(t, when+": the supervisor gives way", func() bool {
			first, all := niceness(t, u.pid)
			// Three start others, and read what is urgent.
			return first == ours+10 && len(all) == 2 && all[ours] == 3 && all[ours+10] > 1
		})
		eventually(t, when+": a worker", func() bool { worker = u.workers(t)["0"]; return worker != 0 })
		if _, all := niceness(t, worker); len(all) != 1 || all[ours] == 0 {
			t.Errorf("%s: threads of the worker by niceness: %v; want all at %d", when, all, ours)
		}
		return worker
	}
	was := check("at the start")
	if err := syscall.Kill(was, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another worker", func() bool { now := u.workers(t)["0"]; return now != 0 && now != was })
	was = check("after a restart")
	u.upgrade(t)
	if now := check("after an upgrade"); now == was {
		t.Error("the same worker after an upgrade")
	}
}
