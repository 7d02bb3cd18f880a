// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/bench/packet/rotate"
)

// flowCount is how many different packets a case has: FLOWS of bpf/test/rotate.c.
const flowCount = 1000

// lane is a program under test behind a rotation of its own.
type lane struct {
	name    string
	objects rotate.RotateObjects
	keys    []uint32
	perCPU  []rotate.RotateProgress
	// counts says how many packets the program let end how; nil when it counts none.
	counts func() (map[string]uint64, error)
}

// newLane makes one; a nil program stands for the bare drop.
func newLane(name string, program *ebpf.Program, counts func() (map[string]uint64, error)) (*lane, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count possible CPUs: %w", err)
	}
	l := &lane{name: name, counts: counts, keys: make([]uint32, flowCount), perCPU: make([]rotate.RotateProgress, cpus)}
	for i := range l.keys {
		l.keys[i] = uint32(i)
	}
	// Programs for frames of several buffers and others never call one another.
	for _, flags := range []uint32{0, unix.BPF_F_XDP_HAS_FRAGS} {
		if err = l.load(program, flags); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("put %s behind the rotation: %w", name, err)
}

func (l *lane) load(program *ebpf.Program, flags uint32) error {
	spec, err := rotate.LoadRotate()
	if err != nil {
		return err
	}
	spec.Programs[rotate.RotateProgRotate].Flags |= flags
	spec.Programs[rotate.RotateProgBare].Flags |= flags
	if err := spec.LoadAndAssign(&l.objects, nil); err != nil {
		return err
	}
	if program == nil {
		program = l.objects.Bare
	}
	if err := l.objects.Target.Put(uint32(0), program); err != nil {
		l.objects.Close()
		return err
	}
	return nil
}

func (l *lane) Close() error { return l.objects.Close() }

// aim sets the sources that the packets are to have.
func (l *lane) aim(flows []rotate.RotateFlow) error {
	if len(flows) != flowCount {
		return fmt.Errorf("%d flows: want %d", len(flows), flowCount)
	}
	if _, err := l.objects.Flows.BatchUpdate(l.keys, flows, nil); err != nil {
		return fmt.Errorf("write flows: %w", err)
	}
	return nil
}

// errInterrupted: the kernel began the run anew, so it was not of n packets.
var errInterrupted = errors.New("interrupted by a signal")

// run sends n packets and returns the thread's CPU time and the last packet's action.
func (l *lane) run(frame []byte, n int) (time.Duration, uint32, error) {
	before, err := l.sent()
	if err != nil {
		return 0, 0, err
	}
	options := &ebpf.RunOptions{Data: frame, Repeat: uint32(n)}
	start := threadTime()
	action, err := l.objects.Rotate.Run(options)
	took := threadTime() - start
	if err != nil {
		return 0, 0, fmt.Errorf("run %s: %w", l.name, err)
	}
	after, err := l.sent()
	if err == nil && after-before != uint64(n) {
		err = errInterrupted
	}
	return took, action, err
}

func (l *lane) sent() (uint64, error) {
	if err := l.objects.Cursor.Lookup(uint32(0), l.perCPU); err != nil {
		return 0, fmt.Errorf("read progress of %s: %w", l.name, err)
	}
	var n uint64
	for _, p := range l.perCPU {
		n += p.Sent
	}
	return n, nil
}

func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // cannot fail for this clock
	return time.Duration(ts.Nano())
}

// XDP actions, as the kernel has them.
const (
	xdpDrop = 1
	xdpPass = 2
)

// measure returns nanoseconds a packet. It fails unless the program counted exactly the
// packets it was sent, all of them under the wanted name, and acted as the name says.
func (l *lane) measure(frame []byte, flows []rotate.RotateFlow, n int, want string, action uint32) (float64, error) {
	var err error
	for range 5 {
		var ns float64
		if ns, err = l.measureOnce(frame, flows, n, want, action); !errors.Is(err, errInterrupted) {
			return ns, err
		}
	}
	return 0, err
}

func (l *lane) measureOnce(frame []byte, flows []rotate.RotateFlow, n int, want string, action uint32) (float64, error) {
	if err := l.aim(flows); err != nil {
		return 0, err
	}
	if _, _, err := l.run(frame, 2*flowCount); err != nil { // brings the caches to where they will be
		return 0, err
	}
	before, err := l.read()
	if err != nil {
		return 0, err
	}
	took, got, err := l.run(frame, n)
	if err != nil {
		return 0, err
	}
	if got != action {
		return 0, fmt.Errorf("%s: the last packet's action is %d, want %d", l.name, got, action)
	}
	after, err := l.read()
	if err != nil {
		return 0, err
	}
	for name, count := range after {
		moved := count - before[name]
		if name == want && moved != uint64(n) || name != want && moved != 0 {
			return 0, fmt.Errorf("%s: %d of %d packets ended as %s: all should as %s", l.name, moved, n, name, want)
		}
	}
	if _, there := after[want]; l.counts != nil && !there {
		return 0, fmt.Errorf("%s: it counts nothing as %s", l.name, want)
	}
	return float64(took) / float64(n), nil
}

func (l *lane) read() (map[string]uint64, error) {
	if l.counts == nil {
		return nil, nil
	}
	return l.counts()
}
