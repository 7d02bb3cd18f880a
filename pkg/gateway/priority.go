// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// givesWay is by how much the supervisor is nicer than its workers: where they want the CPU
// it has a tenth of it, so that no scrape and no log is before a request, and none waits for ever.
const givesWay = 10

// steady is a thread that keeps the priority which the process was started with. What is
// started from another has the supervisor's for good: to raise it is CAP_SYS_NICE, which the
// gateway does not have. The runtime makes no thread of its own from one of these. It ends with
// the process.
type steady struct {
	id    int
	calls chan func()
}

func newSteady() *steady {
	t := &steady{calls: make(chan func())}
	known := make(chan int)
	go t.run(known)
	t.id = <-known
	return t
}

// run is the thread. It is not the first one, which stands for the process in ps and top.
func (t *steady) run(known chan<- int) {
	runtime.LockOSThread() // never unlocked: the runtime ends the thread
	id := unix.Gettid()
	if id == os.Getpid() {
		ended := make(chan struct{})
		go func() { defer close(ended); t.run(known) }()
		<-ended
		runtime.UnlockOSThread() // it has changed nothing, and must not end
		return
	}
	known <- id
	for call := range t.calls {
		call()
	}
}

// do runs fn there and returns when it has; others wait meanwhile.
func (t *steady) do(fn func() error) error {
	result := make(chan error, 1)
	t.calls <- func() { result <- fn() }
	return <-result
}

// threads are those whose priority must not fall with the supervisor's.
type threads struct {
	workers    *steady // start from here, with what else a worker inherits
	successors *steady // start from here
	signals    *steady // reads the workers': a verdict is as urgent as a request
	nice       int     // of the process at its start
}

func newThreads() (*threads, error) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return nil, fmt.Errorf("read priority: %w", err)
	}
	return &threads{newSteady(), newSteady(), newSteady(), 20 - raw}, nil // as the kernel tells it, never negative
}

// giveWay makes all other threads nicer. Those to come are made by these; the one that one
// makes just now is found the next time.
func (t *threads) giveWay() error {
	nice := min(t.nice+givesWay, 19)
	keep := []int{t.workers.id, t.successors.id, t.signals.id}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("lower priority: %w", err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil || slices.Contains(keep, id) {
			continue
		}
		raw, err := unix.Getpriority(unix.PRIO_PROCESS, id)
		if err != nil || 20-raw >= nice {
			continue // it has ended, or is
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil {
			return fmt.Errorf("lower priority: %w", err)
		}
	}
	return nil
}
