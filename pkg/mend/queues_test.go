// SPDX-License-Identifier: Apache-2.0

package mend

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// nicTree is a NIC of n queues with the interrupts' names as a driver has them; %d is the
// queue. Interrupt 39 is not a queue's.
func nicTree(n int, names ...string) map[string]string {
	files := map[string]string{}
	text := "           CPU0       CPU1\n 39:  1  0  PCI-MSIX-0000:01:00.0  0-edge  i40e-0000:01:00.0:misc\n"
	irq := 40
	for q := range n {
		files[fmt.Sprintf("sys/class/net/eth0/queues/rx-%d/rps_cpus", q)] = "0"
		files[fmt.Sprintf("sys/class/net/eth0/queues/tx-%d/xps_cpus", q)] = "0"
		for _, name := range names {
			text += fmt.Sprintf(" %d:  9  9  PCI-MSIX-0000:01:00.0  %d-edge  %s\n", irq, irq, fmt.Sprintf(name, q))
			files[fmt.Sprintf("proc/irq/%d/smp_affinity_list", irq)] = "0-3"
			files[fmt.Sprintf("proc/irq/%d/effective_affinity_list", irq)] = "0"
			irq++
		}
	}
	files["proc/interrupts"] = strings.TrimSuffix(text, "\n")
	return files
}

// commands are what would be typed, in order.
func commands(all []Change) (out []string) {
	for _, c := range all {
		out = append(out, c.Command())
	}
	return out
}

func TestSpread(t *testing.T) {
	for _, row := range []struct {
		name  string
		tree  map[string]string
		irqs  []int
		rss   string
		cores []int
		want  []string
	}{
		{"a queue for each worker", nicTree(2, "i40e-eth0-TxRx-%d"), []int{39, 40, 41}, "0 0 0 0", []int{0, 2}, []string{
			"echo 0 > /proc/irq/40/smp_affinity_list", "echo 1 > /sys/class/net/eth0/queues/tx-0/xps_cpus",
			"echo 2 > /proc/irq/41/smp_affinity_list", "echo 4 > /sys/class/net/eth0/queues/tx-1/xps_cpus", "ethtool -X eth0 equal 2",
		}},
		{"interrupts of each direction, more queues than workers", nicTree(3, "virtio2-input.%d", "virtio2-output.%d"), []int{39, 40, 41, 42, 43, 44, 45}, "", []int{1, 3}, []string{
			"echo 1 > /proc/irq/40/smp_affinity_list", "echo 1 > /proc/irq/41/smp_affinity_list", "echo 2 > /sys/class/net/eth0/queues/tx-0/xps_cpus",
			"echo 3 > /proc/irq/42/smp_affinity_list", "echo 3 > /proc/irq/43/smp_affinity_list", "echo 8 > /sys/class/net/eth0/queues/tx-1/xps_cpus",
			"echo 1 > /proc/irq/44/smp_affinity_list", "echo 1 > /proc/irq/45/smp_affinity_list",
		}},
		{"more workers than queues", nicTree(2, "mlx5_comp%d@pci:0000:01:00.0"), []int{40, 41}, "", []int{0, 1, 2, 33}, []string{
			"echo 0 > /proc/irq/40/smp_affinity_list", "echo 5 > /sys/class/net/eth0/queues/tx-0/xps_cpus",
			"echo 1 > /proc/irq/41/smp_affinity_list", "echo 2,00000002 > /sys/class/net/eth0/queues/tx-1/xps_cpus",
		}},
		{"no interrupts", nicTree(2), nil, "", []int{0, 1}, []string{
			"echo 1 > /sys/class/net/eth0/queues/rx-0/rps_cpus", "echo 1 > /sys/class/net/eth0/queues/tx-0/xps_cpus",
			"echo 2 > /sys/class/net/eth0/queues/rx-1/rps_cpus", "echo 2 > /sys/class/net/eth0/queues/tx-1/xps_cpus",
		}},
		{"one queue", nicTree(1, "virtio2-input.%d"), []int{40}, "", []int{1}, []string{"echo 1 > /proc/irq/40/smp_affinity_list"}},
		{"no workers", nicTree(1, "virtio2-input.%d"), []int{40}, "", nil, nil},
	} {
		m := machine(t, row.tree)
		m.Device = fake{}
		if row.rss != "" {
			m.Device = fake{"eth0": row.rss}
		}
		q, err := m.ReadQueues("eth0", row.irqs)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(row.want, commands(q.Spread(row.cores))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
}

// Spread, then somebody moves an interrupt: that is seen and repaired, and undo goes back to
// what was there at first.
func TestSpreadDriftUndo(t *testing.T) {
	tree := nicTree(2, "ens5-Tx-Rx-%d")
	tree["sys/class/net/eth0/queues/rx-1/rps_cpus"] = "f"
	m := machine(t, tree)
	m.Device = fake{"eth0": "0 0 0 0"}
	q, err := m.ReadQueues("eth0", []int{40, 41})
	if err != nil {
		t.Fatal(err)
	}
	if got := q.Queues[1]; got.RPS != "f" || !slices.Equal(got.IRQs, []int{41}) || !slices.Equal(got.Cores, []int{0, 1, 2, 3}) || !slices.Equal(got.Served, []int{0}) {
		t.Errorf("%+v", got)
	}
	changes := q.Spread([]int{1, 2})
	mustApply(t, m, ByQueues("eth0"), changes...)
	for _, c := range changes {
		m.is(t, c, c.Value)
	}
	if _, d, err := m.Drift("eth0"); err != nil || len(d) != 0 {
		t.Errorf("drift %v, %v", d, err)
	}
	moved := Change{Kind: File, Object: "/proc/irq/40/smp_affinity_list"}
	if err := os.WriteFile(m.path(moved), []byte("3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, d, err := m.Drift("eth0"); err != nil || len(d) != 1 || d[0].Object != moved.Object {
		t.Errorf("drift %v, %v", d, err)
	}
	mustApply(t, m, ByQueues("eth0"), changes...)
	m.is(t, moved, "1")
	if _, err := m.Undo(ByQueues("eth0")); err != nil {
		t.Fatal(err)
	}
	for path, want := range tree {
		got, err := os.ReadFile(filepath.Join(m.Root, path))
		if err != nil || string(got) != want+"\n" {
			t.Errorf("%s is %q, %v; it was %q", path, got, err, want)
		}
	}
	m.is(t, Change{Kind: RSS, Object: "eth0"}, "0 0 0 0")
}

func TestNamesOfInterrupts(t *testing.T) {
	for name, want := range map[string]int{
		"virtio2-input.0": 0, "virtio2-output.11": 11, "i40e-eth0-TxRx-3": 3, "ens5-Tx-Rx-2": 2, "mlx5_comp7@pci:0000:01:00.0": 7, "eth0-rx-1": 1, "iavf-eth1-TxRx-5": 5,
		"virtio2-config": -1, "i40e-0000:01:00.0:misc": -1, "mlx5_async0@pci:0000:01:00.0": -1, "ena-mgmnt@pci:0000:00:05.0": -1, "ice-0000:01:00.0:misc": -1, "eth0": -1, "": -1,
	} {
		got, ok := queueOf(name)
		if !ok {
			got = -1
		}
		// A name alone, eth0, cannot be told from the queue 0 of a driver that has one.
		if name != "eth0" && got != want {
			t.Errorf("%q is of queue %d, want %d", name, got, want)
		}
	}
}

func TestCores(t *testing.T) {
	for list, want := range map[string][]int{"0-3,8": {0, 1, 2, 3, 8}, "": nil, "5": {5}, "x,2": {2}, "3-1": nil, "0-99999999": nil} {
		if got := ParseCores(list); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", list, got, want)
		}
	}
	for want, cores := range map[string][]int{"1": {0}, "5": {0, 2}, "80000000": {31}, "1,00000000": {32}, "1,00000000,00000001": {0, 64}} {
		if got := CPUMask(cores...); got != want {
			t.Errorf("%v: %s, want %s", cores, got, want)
		}
	}
}

// irqbalance gets the list with the credentials that it asks for.
func TestBan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "irqbalance7.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type heard struct {
		text string
		who  *unix.Ucred
		err  error
	}
	got := make(chan heard, 1)
	listen := func() {
		c, err := l.AcceptUnix()
		if err != nil {
			got <- heard{err: err}
			return
		}
		defer c.Close()
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		}
		text, room := make([]byte, 256), make([]byte, 256)
		n, r, _, _, err2 := c.ReadMsgUnix(text, room)
		h := heard{text: string(text[:n]), err: errors.Join(err, err2)}
		if parts, err := unix.ParseSocketControlMessage(room[:r]); err == nil && len(parts) == 1 {
			h.who, _ = unix.ParseUnixCredentials(&parts[0])
		}
		got <- h
	}
	for want, irqs := range map[string][]int{"settings ban irqs 40 41": {40, 41}, "settings ban irqs NONE": nil} {
		go listen()
		if err := Ban(path, irqs); err != nil {
			t.Fatal(err)
		}
		select {
		case h := <-got:
			if h.err != nil || h.text != want || h.who == nil || int(h.who.Uid) != os.Getuid() {
				t.Errorf("%+v, want %q", h, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nothing came")
		}
	}
	if err := Ban(path+"x", nil); err == nil {
		t.Error("told nobody")
	}
	if got := Banned("/usr/sbin/irqbalance --foreground --banirq=40 -i 42 --banirq 43 --policyscript=x"); !slices.Equal(got, []int{40, 42, 43}) {
		t.Error(got)
	}
}

func TestBalancer(t *testing.T) {
	m := machine(t, map[string]string{"proc/12/comm": "sshd", "proc/77/comm": "irqbalance", "proc/77/cmdline": "/usr/sbin/irqbalance\x00--banirq=4\x00"})
	if pid, line := Balancer(os.DirFS(m.Root)); pid != "77" || line != "/usr/sbin/irqbalance --banirq=4" {
		t.Errorf("%q, %q", pid, line)
	}
	if pid, _ := Balancer(os.DirFS(t.TempDir())); pid != "" {
		t.Error(pid)
	}
}
