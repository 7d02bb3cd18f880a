// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// One queue, two CPUs: without spread all flows stay with the queue's CPU, with it both take
// part, and a flow keeps its own.
func TestSpreadUsesAllCPUs(t *testing.T) {
	cpus, err := onlineCPUs()
	if err != nil || len(cpus) < 2 {
		t.Skipf("needs two CPUs, there are %d (%v)", len(cpus), err)
	}
	w := newWire(t, 1)
	sockets := perCPUSockets(t, w.near.Attrs().Index, len(cpus))
	var old, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		t.Fatal(err)
	}
	one.Set(cpus[0])
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &old)
	d := w.mustAttach(t, ModeNative)
	// lands sends a datagram of the flow and tells which CPU brought it to the stack.
	lands := func(port uint16) int {
		t.Helper()
		w.send(t, UDPDatagram(netip.AddrPortFrom(client4.Addr(), port), server4, []byte("x")), 1)
		for range 2000 {
			for cpu, fd := range sockets {
				if _, _, err := unix.Recvfrom(fd, make([]byte, 64), unix.MSG_DONTWAIT); err == nil {
					return cpu
				}
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatalf("the flow of port %d did not arrive", port)
		return 0
	}
	seen := func() map[int]int {
		t.Helper()
		used := map[int]int{}
		for port := uint16(1000); port < 1064; port++ {
			cpu := lands(port)
			used[cpu]++
			if again := lands(port); again != cpu {
				t.Errorf("flow of port %d on CPU %d, then on %d", port, cpu, again)
			}
		}
		return used
	}
	if used := seen(); len(used) != 1 {
		t.Errorf("without spread: CPUs %v", used)
	}
	if err := d.Apply(&policy.Tables{Spread: true}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for the cpumap's threads
	if used := seen(); len(used) != len(cpus) || used[cpus[0]] < 64/len(cpus)/4 {
		t.Errorf("with spread: flows by CPU %v", used)
	}
	if err := d.Apply(&policy.Tables{}); err != nil {
		t.Fatal(err)
	}
	if used := seen(); len(used) != 1 {
		t.Errorf("without spread again: CPUs %v", used)
	}
	if n, _ := packetSum(t, d, ingressRows); n != 64*2*3 {
		t.Errorf("%d packets counted, %d sent", n, 64*2*3)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

// perCPUSockets receive what each CPU brings to the stack on the interface.
func perCPUSockets(t *testing.T, index, cpus int) (fds []int) {
	t.Helper()
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in wire order
	for range cpus {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: all}); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, unix.PACKET_FANOUT_CPU<<16|77); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// A frame in several buffers is counted whole, and judged by its headers.
func TestLongFrames(t *testing.T) {
	w := newWire(t, 1)
	for _, l := range []netlink.Link{w.near, w.far} {
		if err := netlink.LinkSetMTU(l, 9000); err != nil {
			t.Fatal(err)
		}
	}
	d := w.mustCreate(t)
	if err := d.Attach(ModeNative); err != nil {
		t.Skipf("this kernel has no frames of several buffers: %v", err)
	}
	if err := d.Apply(&policy.Tables{Prefixes: denied("203.0.113.0/24")}); err != nil {
		t.Fatal(err)
	}
	long := UDPDatagram(client4, server4, make([]byte, 8000))
	w.send(t, long, 5)
	w.send(t, UDPDatagram(netip.MustParseAddrPort("203.0.113.1:1"), server4, make([]byte, 8000)), 3)
	waitFor(t, "8 frames", func() bool { n, _ := packetSum(t, d, ingressRows); return n == 8 })
	if _, bytes := packetSum(t, d, ingressRows); bytes != uint64(8*len(long)) {
		t.Errorf("%d bytes counted, %d sent", bytes, 8*len(long))
	}
	if n := outcomeSum(t, d, "drop", "deny"); n != 3 {
		t.Errorf("%d of 3 long frames denied", n)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

// At tc, segments that GRO has merged to more than 64 KiB say they are 0 bytes long (BIG TCP).
// They are what they were before, and as many.
func TestMergedSegmentsLongerThanIPCanTell(t *testing.T) {
	w := newWire(t, 1)
	for _, l := range []netlink.Link{w.near, w.far} {
		if err := errors.Join(netlink.LinkSetGSOMaxSize(l, 185_000), netlink.LinkSetGSOIPv4MaxSize(l, 185_000)); err != nil {
			t.Skipf("this kernel has no BIG TCP for IPv4 (Linux 6.3): %v", err)
		}
	}
	d := w.mustAttach(t, ModeTC)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const segment, segments, packetVnetHeader = 1400, 50, 15
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, packetVnetHeader, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)); err != nil {
		t.Fatal(err)
	}
	merged := Set(append(TCPSegment(client4, server4, ACK), make([]byte, segments*segment)...), EthernetLen+2, 0, 0)
	// struct virtio_net_hdr: checksum to be made, TCP over IPv4, lengths, and where the checksum is.
	header := []byte{1, 1, EthernetLen + IPv4Len + TCPLen, 0, segment & 0xff, segment >> 8, EthernetLen + IPv4Len, 0, 16, 0}
	err = unix.Sendto(fd, append(header, merged...), 0, &unix.SockaddrLinklayer{Ifindex: w.far.Attrs().Index, Halen: 6})
	if errors.Is(err, unix.EMSGSIZE) {
		t.Skip("this kernel has no BIG TCP for IPv4 (Linux 6.3): it sends no such frame")
	}
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the frame", func() bool { n, _ := packetSum(t, d, ingressRows); return n > 0 })
	if n := outcomeSum(t, d, "pass", "tcp"); n != segments {
		var c Counters
		_ = d.Counters(&c)
		for _, r := range c.Ingress {
			if r.Packets > 0 {
				t.Logf("%+v", r)
			}
		}
		t.Errorf("%d of %d merged segments passed as TCP", n, segments)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}
