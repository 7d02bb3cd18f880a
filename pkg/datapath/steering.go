// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// MaxWorkers is how many slots one listener can have.
const MaxWorkers = 256

// Steering places each new connection of one listener on the socket of the worker
// whose CPU received it. It lives as long as the listener's sockets do: the
// kernel holds the program through them.
type Steering struct {
	program *ebpf.Program
	workers *ebpf.Map
	counts  *ebpf.Map
	perCPU  []bpf.GatewaySteerCounts
}

// NewSteering makes the program for a listener whose worker in slot i runs on
// cpus[i]; -1 stands for no CPU of its own. It needs CAP_BPF and CAP_NET_ADMIN.
func NewSteering(cpus []int) (*Steering, error) { return makeSteering(cpus, nil) }

// InheritSteering is NewSteering for sockets that are in the arrays of a steering already:
// this version's program chooses among them once it is attached. The arrays are those of
// Files, which stay the caller's.
func InheritSteering(cpus []int, arrays [2]*os.File) (*Steering, error) {
	have := map[string]*ebpf.Map{}
	for i, name := range []string{bpf.GatewayMapWorkers, bpf.GatewayMapSteered} {
		// The map owns a descriptor of its own.
		fd, err := unix.FcntlInt(arrays[i].Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			have[name], err = ebpf.NewMapFromFD(fd)
		}
		if err != nil {
			return nil, fmt.Errorf("inherit steering: map %s: %w", name, err)
		}
		defer have[name].Close() // the program holds it, and so does the steering's copy
	}
	return makeSteering(cpus, have)
}

// Files are the arrays for InheritSteering, in another process; the caller closes them.
func (s *Steering) Files() (arrays [2]*os.File, err error) {
	for i, m := range []*ebpf.Map{s.workers, s.counts} {
		fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return arrays, fmt.Errorf("hand steering over: %w", err)
		}
		arrays[i] = os.NewFile(uintptr(fd), "steering")
	}
	return arrays, nil
}

func makeSteering(cpus []int, have map[string]*ebpf.Map) (*Steering, error) {
	if len(cpus) < 1 || len(cpus) > MaxWorkers {
		return nil, fmt.Errorf("make steering: %d workers: 1 to %d are possible", len(cpus), MaxWorkers)
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("make steering: raise memlock limit: %w", err)
	}
	possible, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("make steering: count possible CPUs: %w", err)
	}
	spec, err := bpf.LoadGateway()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpf.GatewayMapWorkers].MaxEntries = uint32(len(cpus))
	spec.Maps[bpf.GatewayMapCpuSlots].MaxEntries = uint32(possible)
	var o struct {
		Program *ebpf.Program `ebpf:"select_worker"`
		Workers *ebpf.Map     `ebpf:"workers"`
		Slots   *ebpf.Map     `ebpf:"cpu_slots"`
		Counts  *ebpf.Map     `ebpf:"steered"`
	}
	if err := spec.LoadAndAssign(&o, &ebpf.CollectionOptions{MapReplacements: have}); err != nil {
		return nil, fmt.Errorf("make steering: %w", loadError(err))
	}
	defer o.Slots.Close() // the program holds it
	s := &Steering{program: o.Program, workers: o.Workers, counts: o.Counts, perCPU: make([]bpf.GatewaySteerCounts, possible)}
	if err := fillSlots(o.Slots, possible, cpus); err != nil {
		s.Close()
		return nil, fmt.Errorf("make steering: %w", err)
	}
	return s, nil
}

func fillSlots(slots *ebpf.Map, possible int, cpus []int) error {
	for cpu := range possible {
		slot := uint32(MaxWorkers)
		for i, c := range cpus {
			if c == cpu {
				slot = uint32(i)
				break
			}
		}
		if err := slots.Put(uint32(cpu), slot); err != nil {
			return fmt.Errorf("set slot of CPU %d: %w", cpu, err)
		}
	}
	return nil
}

// Attach makes the program choose for the whole SO_REUSEPORT group of the socket.
func (s *Steering) Attach(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, s.program.FD()); err != nil {
		return fmt.Errorf("attach steering to socket: is it in a SO_REUSEPORT group? %w", err)
	}
	return nil
}

// SetWorker lets new connections reach the listening socket fd in this slot.
func (s *Steering) SetWorker(slot, fd int) error {
	err := s.workers.Put(uint32(slot), uint64(fd))
	if errors.Is(err, unix.EBUSY) && s.has(slot, fd) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set worker %d: the socket must listen, be plain TCP (not MPTCP) and be in no other steering: %w", slot, err)
	}
	return nil
}

// has tells whether the slot's socket is this one: arrays tell cookies, and refuse a socket
// that is in one, even in this place.
func (s *Steering) has(slot, fd int) bool {
	var there uint64
	if err := s.workers.Lookup(uint32(slot), &there); err != nil {
		return false
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return err == nil && cookie == there
}

// ClearWorker takes the slot's socket out; clearing an empty slot is no error.
func (s *Steering) ClearWorker(slot int) error {
	err := s.workers.Delete(uint32(slot))
	if err != nil && !isNotExist(err) {
		return fmt.Errorf("clear worker %d: %w", slot, err)
	}
	return nil
}

// SteerCounts are connections since the steering was made.
type SteerCounts struct {
	Local    uint64 // to the worker of the CPU that received it
	Fallback uint64 // to another, since that one was away
	Refused  uint64 // no worker was there
}

// Counts reads them.
func (s *Steering) Counts() (SteerCounts, error) {
	var sum SteerCounts
	if err := s.counts.Lookup(uint32(0), s.perCPU); err != nil {
		return sum, fmt.Errorf("read steering counts: %w", err)
	}
	for i := range s.perCPU {
		sum.Local += s.perCPU[i].Local
		sum.Fallback += s.perCPU[i].Fallback
		sum.Refused += s.perCPU[i].Refused
	}
	return sum, nil
}

// Close releases the descriptors; sockets that have the program keep it.
func (s *Steering) Close() {
	s.program.Close()
	s.workers.Close()
	s.counts.Close()
}

func isNotExist(err error) bool { return errors.Is(err, ebpf.ErrKeyNotExist) }
