// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs the rest of the test in a network namespace of its own. The
// thread stays in it, and ends with the test.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func mustIP(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
}

func mustRead(t *testing.T, name string) Interface {
	t.Helper()
	i, err := ReadInterface(name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestReadInterface(t *testing.T) {
	inNamespace(t)
	mustIP(t,
		"link add a0 numrxqueues 4 numtxqueues 3 type veth peer name b0 numrxqueues 4 numtxqueues 2", "link set a0 up", "link set b0 up mtu 9000",
		"addr add 192.0.2.1/24 dev a0", "addr add 2001:db8::1/64 dev a0 nodad",
		"link add br0 type bridge", "link set b0 master br0")
	a := mustRead(t, "a0")
	if a.Kind != "veth" || a.Driver != "veth" || a.Link != "ether" || !a.Up || !a.Carrier || a.MTU != 1500 || a.Index == 0 {
		t.Errorf("a0: %+v", a)
	}
	if c := a.Channels; c != (Channels{}) && (c.Receive != 4 || c.Transmit != 3 || c.MostReceive != 4) || a.ReceiveQueues != 4 {
		t.Errorf("a0's channels: %+v", c)
	}
	if a.Peer == nil || *a.Peer != (Peer{Name: "b0", MTU: 9000, TransmitQueues: 2, made: 2}) {
		t.Errorf("a0's peer: %+v", a.Peer)
	}
	for _, want := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		if !slices.Contains(a.Addresses, netip.MustParsePrefix(want)) {
			t.Errorf("a0's addresses: %v, want %s", a.Addresses, want)
		}
	}
	if f, ok := a.Features[featureGRO]; !ok || f.Fixed {
		t.Errorf("a0's features: %+v", a.Features)
	}
	if a.XDP != nil {
		t.Errorf("a0 has an XDP program: %+v", a.XDP)
	}
	if b := mustRead(t, "b0"); b.Master == nil || b.Master.Name != "br0" || b.Master.Kind != "bridge" {
		t.Errorf("b0's master: %+v", b.Master)
	}
	if br := mustRead(t, "br0"); br.Kind != "bridge" || len(br.Members) != 1 || br.Members[0].Name != "b0" || br.Up {
		t.Errorf("br0: %+v", br)
	}
	if lo := mustRead(t, "lo"); lo.Kind != "loopback" || lo.Link != "loopback" || lo.Driver != "" || len(lo.Features) == 0 {
		t.Errorf("lo: %+v", lo)
	}
	for _, name := range []string{"eth7", "", ".", "../net/lo"} {
		if got, err := ReadInterface(name); !errors.Is(err, ErrNoInterface) || !strings.Contains(err.Error(), "ip link") {
			t.Errorf("%q: %+v, %v, want ErrNoInterface with what to do", name, got, err)
		}
	}
}

func TestReadTuntap(t *testing.T) {
	inNamespace(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs tun: ", err)
	}
	mustIP(t, "tuntap add tap0 mode tap", "tuntap add tun0 mode tun")
	if tap, tun := mustRead(t, "tap0"), mustRead(t, "tun0"); tap.Kind != "tap" || tap.Link != "ether" || tun.Kind != "tun" || tun.Link != "none" {
		t.Errorf("tap0: %+v\ntun0: %+v", tap, tun)
	}
}

// A peer in another namespace is read through the kernel's id of that namespace.
func TestReadPeerElsewhere(t *testing.T) {
	inNamespace(t)
	here := exec.Command("sleep", "60")
	here.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := here.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Process.Kill(); _ = here.Wait() })
	mustIP(t, "link add a0 type veth peer name b0", "link set b0 mtu 4000", "link set b0 netns "+strconv.Itoa(here.Process.Pid))
	a := mustRead(t, "a0")
	if p := a.Peer; p == nil || p.Name != "b0" || !p.Elsewhere || p.MTU != 4000 || p.TransmitQueues != 0 && a.Channels != (Channels{}) {
		t.Errorf("%+v", a.Peer)
	}
}

// What the kernel says of XDP: the features of a driver, and the program on the hook.
func TestReadXDP(t *testing.T) {
	inNamespace(t)
	mustIP(t, "link add a0 type veth peer name b0", "link add few0 numrxqueues 1 numtxqueues 1 type veth peer name many0 numrxqueues 4 numtxqueues 4")
	k, err := ReadKernel()
	if err != nil {
		t.Fatal(err)
	}
	features := mustRead(t, "a0").XDPFeatures
	if old := parseVersion(k.Release).before(version{6, 3}); old != (features == nil) {
		t.Fatalf("features %+v on Linux %s", features, k.Release)
	}
	if features == nil {
		t.Skip("needs Linux 6.3: asks for XDP features")
	}
	if !features.Native || !features.Frags {
		t.Errorf("a0: %+v", features)
	}
	for _, name := range []string{"lo", "few0"} { // few0: the peer has more queues
		if f := mustRead(t, name).XDPFeatures; f == nil || f.Native {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestDriverOfNothing(t *testing.T) {
	if got := Driver("no-such-device"); got != "" {
		t.Errorf("driver of nothing: %q", got)
	}
	if got := programName(1 << 31); got != "" {
		t.Errorf("name of no program: %q", got)
	}
}
