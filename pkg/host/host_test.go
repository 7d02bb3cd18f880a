// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const machine = "testdata/machine"

func TestReadInterface(t *testing.T) {
	veth := Ethtool{Driver: "veth", Channels: Channels{Receive: 2, Transmit: 2, MostReceive: 4, MostTransmit: 4}}
	tells := func(e Ethtool) func(string) (Ethtool, error) {
		return func(string) (Ethtool, error) { return e, nil }
	}
	silent := func(string) (Ethtool, error) { return Ethtool{}, errors.New("operation not supported") }
	for _, c := range []struct {
		name string
		ask  func(string) (Ethtool, error)
		want Interface
	}{
		{"eth0", tells(veth), Interface{"eth0", "veth", 1500, 4, 2, veth.Channels}},
		{"eth0", silent, Interface{"eth0", "ixgbe", 1500, 4, 2, Channels{}}},
		{"bare", silent, Interface{"bare", "", 65536, 1, 0, Channels{}}},
	} {
		got, err := ReadInterface(machine, c.name, c.ask)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
	for _, name := range []string{"eth7", "", ".", "..", "../net/eth0", "eth0/"} {
		if got, err := ReadInterface(machine, name, silent); !errors.Is(err, ErrNoInterface) || !strings.Contains(err.Error(), "ip link") {
			t.Errorf("%q: %+v, %v, want ErrNoInterface with what to do", name, got, err)
		}
	}
	for _, name := range []string{"broken", "unreadable"} {
		if _, err := ReadInterface(machine, name, silent); err == nil || errors.Is(err, ErrNoInterface) {
			t.Errorf("%s: %v, want an error that says what is wrong with it", name, err)
		}
	}
}

func TestReadInterfaceHere(t *testing.T) {
	lo, err := ReadInterface("/", "lo", AskEthtool)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNoInterface) {
		t.Skip("no sysfs with a loopback interface here")
	}
	if err != nil || lo.MTU < 1280 || lo.ReceiveQueues < 1 || lo.TransmitQueues < 1 {
		t.Errorf("%+v, %v", lo, err)
	}
	if got := Driver("no-such-device"); got != "" {
		t.Errorf("driver of nothing: %q", got)
	}
}

func TestBacklog(t *testing.T) {
	if n, err := Backlog(machine); err != nil || n != 4096 {
		t.Errorf("%d, %v", n, err)
	}
	for _, root := range []string{machine + "/proc/broken", "testdata/nowhere"} {
		if n, err := Backlog(root); err == nil {
			t.Errorf("%s: %d", root, n)
		}
	}
	if n, err := Backlog("/"); err != nil || n < 1 {
		t.Errorf("here: %d, %v", n, err)
	}
}

func TestKernel(t *testing.T) {
	k, err := ReadKernel()
	if err != nil {
		t.Fatal(err)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != strings.TrimSpace(string(release)) || k.Machine == "" {
		t.Errorf("%+v, /proc says %s", k, release)
	}
}

func TestAllowedCores(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Fatal(err)
		}
	}()
	all, err := AllowedCores()
	if err != nil || len(all) != before.Count() || !slices.IsSorted(all) {
		t.Fatalf("%v, %v: the kernel allows %d", all, err, before.Count())
	}
	last := all[len(all)-1]
	var one unix.CPUSet
	one.Set(last)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	if got, err := AllowedCores(); err != nil || !slices.Equal(got, []int{last}) {
		t.Errorf("pinned to %d: %v, %v", last, got, err)
	}
}

func TestOpenFiles(t *testing.T) {
	if o, err := ReadOpenFiles(); err != nil || o.Soft == 0 || o.Soft > o.Hard {
		t.Errorf("%+v, %v", o, err)
	}
	for _, c := range []struct {
		limit OpenFiles
		need  uint64
		says  string
	}{
		{OpenFiles{1024, 1024}, 1024 - reservedFiles, ""},
		{OpenFiles{1024, 1024}, 1025 - reservedFiles, "LimitNOFILE=1025"},
		{OpenFiles{1024, 20000}, 16384, "ulimit -n 16448"},
		{OpenFiles{20000, 20000}, 65535, "worker_connections"},
		{OpenFiles{1 << 63, 1 << 63}, 1 << 20, ""},
	} {
		got := c.limit.Lack(c.need)
		if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%+v for %d: %q, want it to say %q", c.limit, c.need, got, c.says)
		}
	}
}
