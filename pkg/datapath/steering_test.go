// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reuseport opens n listening sockets on one loopback port.
func reuseport(t *testing.T, n int) (address string, sockets []*os.File) {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var option error
		err := c.Control(func(fd uintptr) {
			option = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return errors.Join(err, option)
	}}
	lc.SetMultipathTCP(false)
	address = "127.0.0.1:0"
	for range n {
		l, err := lc.Listen(context.Background(), "tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		address = l.Addr().String()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		t.Cleanup(func() { f.Close() })
		sockets = append(sockets, f)
	}
	return address, sockets
}

// accepted tells which of the sockets have a connection waiting, and takes it.
func accepted(t *testing.T, sockets []*os.File) (which []int) {
	t.Helper()
	for i, f := range sockets {
		fd := int(f.Fd())
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err != nil {
				break
			}
			unix.Close(c)
			which = append(which, i)
		}
	}
	return which
}

// awaited is accepted when there are n of them: what completes a connection may come a moment
// after its client knows.
func awaited(t *testing.T, sockets []*os.File, n int) (which []int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); len(which) < n && time.Now().Before(end); time.Sleep(time.Millisecond) {
		which = append(which, accepted(t, sockets)...)
	}
	return append(which, accepted(t, sockets)...)
}

// On loopback the SYN is received on the CPU that sent it, so the client's
// affinity decides which CPU "received" it.
func TestSteering(t *testing.T) {
	needRoot(t)
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	if allowed.Count() < 2 {
		t.Skip("needs two CPUs")
	}
	var cpus []int
	for cpu := 0; len(cpus) < 2; cpu++ {
		if allowed.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	s, err := NewSteering(cpus)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	address, sockets := reuseport(t, 2)
	if err := s.Attach(int(sockets[0].Fd())); err != nil {
		t.Fatal(err)
	}
	connect := func(cpu int) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.SchedSetaffinity(0, &allowed) }()
		// A raw connect stays on this thread; net.Dial would not.
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		a, err := net.ResolveTCPAddr("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte{127, 0, 0, 1}})
	}

	if err := connect(cpus[0]); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("with no worker: %v, want connection refused", err)
	}
	for slot, f := range sockets {
		if err := s.SetWorker(slot, int(f.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	const rounds = 20
	for slot, cpu := range cpus {
		for range rounds {
			if err := connect(cpu); err != nil {
				t.Fatal(err)
			}
			if got := awaited(t, sockets, 1); len(got) != 1 || got[0] != slot {
				t.Fatalf("a connection from CPU %d went to %v, want worker %d", cpu, got, slot)
			}
		}
	}
	if err := s.ClearWorker(0); err != nil {
		t.Fatal(err)
	}
	if err := s.ClearWorker(0); err != nil {
		t.Errorf("clear an empty slot: %v", err)
	}
	for range rounds {
		if err := connect(cpus[0]); err != nil {
			t.Fatal(err)
		}
	}
	got := awaited(t, sockets, rounds)
	if len(got) != rounds {
		t.Errorf("%d connections of %d", len(got), rounds)
	}
	for _, which := range got {
		if which != 1 {
			t.Error("a connection went to the worker that was taken out")
		}
	}
	counts, err := s.Counts()
	if err != nil {
		t.Fatal(err)
	}
	// A SYN that a slow machine sends again is placed, and counted, again.
	const again = 3
	if counts.Local < 2*rounds || counts.Local > 2*rounds+again || counts.Fallback < rounds || counts.Fallback > rounds+again || counts.Refused == 0 {
		t.Errorf("counts %+v, want %d local, %d fallback and some refused", counts, 2*rounds, rounds)
	}
}
