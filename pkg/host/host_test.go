// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const machine = "testdata/machine"

// What sysfs shows under a name is taken only when it is the same interface.
func TestSysfs(t *testing.T) {
	eth0 := Interface{Name: "eth0", Index: 2, MTU: 1500, ReceiveQueues: 8, TransmitQueues: 8}
	for _, c := range []struct {
		what   string
		change func(*Interface)
		queues [2]int
		driver string
		vfs    int
	}{
		{"the same", func(i *Interface) {}, [2]int{4, 2}, "ixgbe", 7},
		{"the driver told its name", func(i *Interface) { i.Driver = "other" }, [2]int{4, 2}, "other", 7},
		{"of another namespace", func(i *Interface) { i.Index = 9 }, [2]int{8, 8}, "", 0},
		{"of another namespace, same index", func(i *Interface) { i.MTU = 9000 }, [2]int{8, 8}, "", 0},
		{"unknown to sysfs", func(i *Interface) { i.Name = "eth7" }, [2]int{8, 8}, "", 0},
		{"unreadable there", func(i *Interface) { i.Name = "broken" }, [2]int{8, 8}, "", 0},
		{"no name", func(i *Interface) { i.Name = "../net/eth0" }, [2]int{8, 8}, "", 0},
	} {
		i := eth0
		c.change(&i)
		addSysfs(&i, machine)
		if got := [2]int{i.ReceiveQueues, i.TransmitQueues}; got != c.queues || i.Driver != c.driver || i.Virtuals != c.vfs || (i.Speed == 10000) != (c.vfs > 0) {
			t.Errorf("%s: queues %v, driver %q, %d virtual functions; want %v, %q, %d", c.what, got, i.Driver, i.Virtuals, c.queues, c.driver, c.vfs)
		}
	}
}

func TestMachine(t *testing.T) {
	if m, err := ReadMachine(machine); err != nil || m.CPUs != 12 || m.Kernel == "" || m.PageSize < 4096 {
		t.Errorf("%+v, %v; want 12 CPUs", m, err)
	}
	if m, err := ReadMachine("testdata/nowhere"); err != nil || m.CPUs != 0 {
		t.Errorf("%+v, %v; want no CPUs", m, err)
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
