// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// wire is a network namespace with a veth pair: near is the interface under test,
// far the end that tests send from. The namespace ends with the test's thread.
type wire struct {
	options   Options
	near, far netlink.Link
}

func newWire(t *testing.T, queues int) *wire {
	t.Helper()
	needRoot(t)
	// Never unlocked: the runtime ends the thread, and the namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	w := &wire{options: Options{Interface: "near", Instance: fmt.Sprintf("test-%d-%s", os.Getpid(), strings.ToLower(t.Name()[4:8]))}}
	w.connect(t, queues)
	t.Cleanup(func() {
		if err := os.RemoveAll(pinRoot(&Options{BPFFS: defaultBPFFS, Instance: w.options.Instance})); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *wire) connect(t *testing.T, queues int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.NumRxQueues, attrs.NumTxQueues = "near", queues, queues
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "far", PeerNumRxQueues: uint32(queues), PeerNumTxQueues: uint32(queues)}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"near", "far"} {
		// An idle interface must stay silent, so that counts can be exact.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	w.near, w.far = mustLink(t, "near"), mustLink(t, "far")
	for _, l := range []netlink.Link{w.near, w.far} {
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
}

func mustLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *wire) mustCreate(t *testing.T) *Datapath {
	t.Helper()
	d, err := Create(w.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func (w *wire) mustAttach(t *testing.T, mode Mode) *Datapath {
	t.Helper()
	d := w.mustCreate(t)
	if err := d.Attach(mode); err != nil {
		t.Fatal(err)
	}
	return d
}

// send puts frames on the wire from the far end.
func (w *wire) send(t *testing.T, frame []byte, n int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: w.far.Attrs().Index, Halen: 6}
	for range n {
		if err := unix.Sendto(fd, frame, 0, to); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *wire) received(t *testing.T) uint64 {
	t.Helper()
	return mustLink(t, "near").Attrs().Statistics.RxPackets
}

// state is all that an attach may change: pins, the XDP hook, qdiscs, filters.
func (w *wire) state(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	_ = filepath.WalkDir(defaultBPFFS, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.Contains(path, w.options.Instance) {
			fmt.Fprintln(&b, path)
		}
		return nil
	})
	if x := mustLink(t, "near").Attrs().Xdp; x != nil && x.Attached {
		fmt.Fprintf(&b, "xdp program %d mode %d\n", x.ProgId, x.AttachMode)
	}
	qdiscs, err := netlink.QdiscList(w.near)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range qdiscs {
		fmt.Fprintf(&b, "qdisc %s %x\n", q.Type(), q.Attrs().Parent)
		if q.Type() == "clsact" {
			for _, parent := range []uint32{netlink.HANDLE_MIN_EGRESS, netlink.HANDLE_MIN_INGRESS} {
				filters, _ := netlink.FilterList(w.near, parent)
				for _, f := range filters {
					fmt.Fprintf(&b, "filter %x %s %d\n", parent, f.Type(), f.Attrs().Priority)
				}
			}
		}
	}
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXEgress, ebpf.AttachTCXIngress} {
		if r, err := link.QueryPrograms(link.QueryOptions{Target: w.near.Attrs().Index, Attach: at}); err == nil {
			fmt.Fprintf(&b, "tcx %v %d\n", at, len(r.Programs))
		}
	}
	return b.String()
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	// Most of what is waited for is there in a moment; a machine that is busy or emulated may take long.
	for started, pause := time.Now(), time.Millisecond; time.Since(started) < 20*time.Second; pause = min(2*pause, 50*time.Millisecond) {
		if cond() {
			return
		}
		time.Sleep(pause)
	}
	t.Fatalf("timed out waiting for %s", what)
}

func packetSum(t *testing.T, d *Datapath, rows func(*Counters) []QueueCount) (packets, bytes uint64) {
	t.Helper()
	var c Counters
	if err := d.Counters(&c); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows(&c) {
		packets += r.Packets
		bytes += r.Bytes
	}
	return packets, bytes
}

func ingressRows(c *Counters) []QueueCount { return c.Ingress }
func egressRows(c *Counters) []QueueCount  { return c.Egress }

func TestAttachCountsAndDetach(t *testing.T) {
	for _, row := range []struct {
		name    string
		mode    Mode
		netlink bool
		hook    string
	}{
		{"native", ModeNative, false, ""},
		{"native by netlink", ModeNative, true, "netlink"},
		{"generic", ModeGeneric, false, ""},
		{"generic by netlink", ModeGeneric, true, "netlink"},
		{"tc", ModeTC, false, ""},
		{"tc by netlink", ModeTC, true, "netlink"},
	} {
		if testing.Short() && row.name == "generic by netlink" {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			w := newWire(t, 2)
			w.options.Netlink = row.netlink
			before := w.state(t)
			d := w.mustAttach(t, row.mode)

			s := d.Status()
			if !s.Attached || s.Mode != row.mode || s.Program == 0 || s.Queues != 2 {
				t.Errorf("status after attach: %+v", s)
			}
			if row.hook != "" && s.Hook != row.hook {
				t.Errorf("attached by %s, want %s", s.Hook, row.hook)
			}
			start := w.received(t)
			frame := TCPSegment(client4, server4, ACK)
			w.send(t, frame, 100)
			waitFor(t, "100 frames", func() bool { p, _ := packetSum(t, d, ingressRows); return p >= 100 })
			packets, bytes := packetSum(t, d, ingressRows)
			if packets != 100 || bytes != uint64(100*len(frame)) {
				t.Errorf("counted %d packets, %d bytes; sent 100 of %d bytes", packets, bytes, len(frame))
			}
			if got := w.received(t) - start; got != packets {
				t.Errorf("the interface received %d packets, %d were counted", got, packets)
			}

			again, err := Open(w.options)
			if err != nil {
				t.Fatal(err)
			}
			if packets, _ := packetSum(t, again, ingressRows); packets != 100 {
				t.Errorf("opened anew: %d packets, want the same 100", packets)
			}
			if _, err := Create(w.options); !errors.Is(err, ErrExists) {
				t.Errorf("second create: %v, want ErrExists", err)
			}
			if err := again.Detach(); err != nil {
				t.Fatal(err)
			}
			again.Close()
			if after := w.state(t); after != before {
				t.Errorf("detach left something:\nbefore:\n%s\nafter:\n%s", before, after)
			}
			if _, err := Open(w.options); !errors.Is(err, ErrNotAttached) {
				t.Errorf("open after detach: %v, want ErrNotAttached", err)
			}
		})
	}
}

func TestEgressIsCounted(t *testing.T) {
	for _, byNetlink := range []bool{false, true} {
		w := newWire(t, 1)
		w.options.Netlink = byNetlink
		d := w.mustAttach(t, ModeNative)
		before, _ := packetSum(t, d, egressRows)
		w.far, w.near = w.near, w.far // send from the interface under test
		w.send(t, UDPDatagram(client4, server4, []byte("x")), 7)
		w.far, w.near = w.near, w.far
		if after, _ := packetSum(t, d, egressRows); after-before != 7 {
			t.Errorf("netlink %v: %d packets counted at egress, sent 7", byNetlink, after-before)
		}
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCountingGoesOnWithoutAProcess(t *testing.T) {
	w := newWire(t, 1)
	d := w.mustAttach(t, ModeNative)
	d.Close()
	w.send(t, TCPSegment(client4, server4, ACK), 10)
	d, err := Open(w.options)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	waitFor(t, "10 frames", func() bool { p, _ := packetSum(t, d, ingressRows); return p == 10 })
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

func TestTablesHoldOnTheWire(t *testing.T) {
	w := newWire(t, 1)
	d := w.mustAttach(t, ModeNative)
	if err := d.Apply(&policy.Tables{Prefixes: denied("192.0.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	w.send(t, TCPSegment(client4, server4, ACK), 5)
	w.send(t, TCPSegment(server4, client4, ACK), 3)
	var c Counters
	count := func(verdict, reason string) (n uint64) {
		if err := d.Counters(&c); err != nil {
			t.Fatal(err)
		}
		for _, r := range c.Ingress {
			if r.Verdict == verdict && r.Reason == reason {
				n += r.Packets
			}
		}
		return n
	}
	waitFor(t, "frames", func() bool { return count("drop", "deny")+count("pass", "tcp") == 8 })
	if dropped := count("drop", "deny"); dropped != 5 {
		t.Errorf("dropped %d, want 5", dropped)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

// passProgram is somebody else's XDP program.
func passProgram(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "someone_else", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestForeignProgramIsNeverReplaced(t *testing.T) {
	for _, byNetlink := range []bool{false, true} {
		for _, mode := range []Mode{ModeNative, ModeGeneric} {
			w := newWire(t, 1)
			w.options.Netlink = byNetlink
			foreign := passProgram(t)
			if err := netlink.LinkSetXdpFdWithFlags(w.near, foreign.FD(), nl.XDP_FLAGS_DRV_MODE); err != nil {
				t.Fatal(err)
			}
			before := w.state(t)
			d := w.mustCreate(t)
			err := d.Attach(mode)
			if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "someone_else") {
				t.Errorf("attach over a foreign program: %v", err)
			}
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
			if after := w.state(t); after != before {
				t.Errorf("state changed:\nbefore:\n%s\nafter:\n%s", before, after)
			}
		}
	}
}

func TestForeignFilterStays(t *testing.T) {
	w := newWire(t, 1)
	w.options.Netlink = true
	d := w.mustAttach(t, ModeNative)
	other := d.filter(&tcEgress, d.objects.TcEgress.FD())
	other.Name, other.Priority = "someone else", 1
	if err := netlink.FilterAdd(other); err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	left, err := netlink.FilterList(w.near, netlink.HANDLE_MIN_EGRESS)
	if err != nil || len(left) != 1 || left[0].Attrs().Priority != 1 {
		t.Errorf("filters left: %v, %v; want someone else's alone", left, err)
	}
}

// Each step of create and attach is made to fail once; the machine must be as it
// was before.
func TestAttachIsAllOrNothing(t *testing.T) {
	for _, byNetlink := range []bool{false, true} {
		w := newWire(t, 1)
		w.options.Netlink = byNetlink
		var steps []string
		o := w.options
		o.fault = func(step string) error { steps = append(steps, step); return nil }
		d, err := Create(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Attach(ModeNative); err != nil {
			t.Fatal(err)
		}
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
		if len(steps) < 14 {
			t.Fatalf("only these steps can fail: %q", steps)
		}
		before := w.state(t)
		injected := errors.New("injected")
		for _, failing := range steps {
			o.fault = func(step string) error {
				if step == failing {
					return injected
				}
				return nil
			}
			d, err := Create(o)
			if err == nil {
				created := w.state(t)
				err = d.Attach(ModeNative)
				if now := w.state(t); now != created {
					t.Errorf("step %q failed in attach:\nbefore:\n%s\nafter:\n%s", failing, created, now)
				}
				if err := d.Detach(); err != nil {
					t.Fatal(err)
				}
			}
			if !errors.Is(err, injected) {
				t.Errorf("step %q: error %v", failing, err)
			}
			if after := w.state(t); after != before {
				t.Errorf("step %q failed:\nbefore:\n%s\nafter:\n%s", failing, before, after)
			}
		}
	}
}

func TestDeviceMadeAnew(t *testing.T) {
	for _, byNetlink := range []bool{false, true} {
		if testing.Short() && byNetlink {
			break
		}
		w := newWire(t, 1)
		w.options.Netlink = byNetlink
		w.mustAttach(t, ModeNative).Close()
		if err := netlink.LinkDel(w.near); err != nil {
			t.Fatal(err)
		}
		w.connect(t, 1)
		if _, err := Open(w.options); !errors.Is(err, ErrStale) {
			t.Errorf("open after the device was made anew: %v, want ErrStale", err)
		}
		if err := Detach(w.options); err != nil {
			t.Fatal(err)
		}
		if err := w.mustAttach(t, ModeNative).Detach(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWire(t, 1)
	w.options.Interface = "lo" // has no native XDP
	d := w.mustCreate(t)
	err := d.Attach(ModeNative)
	if !errors.Is(err, ErrNoNative) || !strings.Contains(err.Error(), "--mode generic") {
		t.Errorf("native on lo: %v", err)
	}
	if err := d.Attach(ModeGeneric); err != nil {
		t.Errorf("generic on lo: %v", err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	w.options.Interface = "nosuch0"
	if _, err := Create(w.options); err == nil || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("create on a missing interface: %v", err)
	}
}

// What an operator sees with bpftool alone: named fields, whose sum is what came in.
func TestBpftoolShowsNames(t *testing.T) {
	bpftool, err := exec.LookPath("bpftool")
	if err != nil {
		t.Skip("needs bpftool, from the package bpftool")
	}
	w := newWire(t, 2)
	d := w.mustAttach(t, ModeNative)
	w.send(t, TCPSegment(client4, server4, ACK), 4)
	w.send(t, UDPDatagram(client6, server6, nil), 3)
	w.send(t, Cut(TCPSegment(client4, server4, ACK), 40), 2)
	waitFor(t, "9 frames", func() bool { p, _ := packetSum(t, d, ingressRows); return p == 9 })
	out, err := exec.Command(bpftool, "-j", "map", "dump", "pinned", filepath.Join(d.dir, "ingress_counts")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Formatted struct {
			Values []struct {
				Value map[string]struct{ Packets, Bytes uint64 }
			}
		}
	}
	if err := json.Unmarshal(out, &rows); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	sums := map[string]uint64{}
	for _, r := range rows {
		for _, cpu := range r.Formatted.Values {
			for name, c := range cpu.Value {
				if c.Packets > 0 {
					sums[name] += c.Packets
				}
			}
		}
	}
	want := map[string]uint64{"pass_tcp": 4, "pass_udp": 3, "drop_truncated": 2}
	if fmt.Sprint(sums) != fmt.Sprint(want) {
		t.Errorf("bpftool shows %v, want %v", sums, want)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

// Programs at the interface and all maps have names in bpftool, and what is in arrays has
// those of its fields.
func TestBpftoolShowsNamesOfAll(t *testing.T) {
	bpftool, err := exec.LookPath("bpftool")
	if err != nil {
		t.Skip("needs bpftool, from the package bpftool")
	}
	show := func(to any, args ...string) {
		t.Helper()
		out, err := exec.Command(bpftool, append([]string{"-j"}, args...)...).Output()
		if err == nil {
			err = json.Unmarshal(out, to)
		}
		if err != nil {
			t.Fatalf("bpftool %v: %v: %s", args, err, out)
		}
	}
	for _, mode := range []Mode{ModeNative, ModeTC} {
		w := newWire(t, 1)
		w.options.Netlink = true // bpftool knows links of tc (tcx) from version 7.3
		d := w.mustAttach(t, mode)
		var net []struct {
			XDP []struct{ ID int }
			TC  []struct{ Name string }
		}
		show(&net, "net", "show", "dev", "near")
		var got []string
		for _, n := range net {
			for _, x := range n.XDP {
				var program struct{ Name string }
				show(&program, "prog", "show", "id", fmt.Sprint(x.ID))
				got = append(got, program.Name)
			}
			for _, p := range n.TC {
				got = append(got, p.Name)
			}
		}
		want := map[Mode]string{ModeNative: "[xdp_ingress xgw tc_egress]", ModeTC: "[xgw tc_ingress xgw tc_egress]"}[mode]
		if fmt.Sprint(got) != want {
			t.Errorf("%s: bpftool net shows %v, want %s", mode, got, want)
		}
		for name, m := range d.objects.maps() {
			var shown struct {
				Name string
				BTF  int `json:"btf_id"`
			}
			show(&shown, "map", "show", "pinned", filepath.Join(d.dir, name))
			isArray := (*m).Type() == ebpf.Array || (*m).Type() == ebpf.PerCPUArray
			if shown.Name != name || isArray && shown.BTF == 0 {
				t.Errorf("map %s: bpftool shows %+v", name, shown)
			}
		}
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
	}
}
