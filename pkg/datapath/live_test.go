// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Two generations whose mixture would show: one denies the source and serves its port, the
// other allows the source and guards the port. Either drops for its own reason; a packet
// that saw the rules of one and the ports of the other would pass.
func TestNoPacketSeesTwoGenerations(t *testing.T) {
	w := newWire(t, 2)
	d := w.mustAttach(t, ModeNative)
	guard := policy.PortGuard{Mode: policy.GuardEnforce}
	first := &policy.Tables{Prefixes: denied("192.0.2.0/24"), PortGuard: policy.PortGuard{Mode: policy.GuardEnforce, TCP: []uint16{443}}}
	second := &policy.Tables{PortGuard: guard}
	if err := d.Apply(first); err != nil {
		t.Fatal(err)
	}
	before := w.received(t)
	var stop atomic.Bool
	var sent atomic.Int64
	done := make(chan error, 1)
	index := w.far.Attrs().Index
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	go func() {
		runtime.LockOSThread()
		frame := TCPSegment(client4, server4, SYN)
		to := &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
		for !stop.Load() {
			if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
				done <- err
				return
			}
			sent.Add(1)
		}
		done <- nil
	}()
	flips := 0
	// An emulated or busy machine needs longer for some flips.
	for started := time.Now(); time.Since(started) < 2*time.Second || flips < 6 && time.Since(started) < time.Minute; flips++ {
		if err := d.Apply([]*policy.Tables{second, first}[flips%2]); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the last frames", func() bool { p, _ := packetSum(t, d, ingressRows); return p == w.received(t)-before })
	var c Counters
	if err := d.Counters(&c); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, r := range c.Ingress {
		if r.Packets > 0 {
			got[r.Verdict+"_"+r.Reason] += r.Packets
		}
	}
	t.Logf("%d flips, %d frames sent: %v", flips, sent.Load(), got)
	if len(got) != 2 || got["drop_deny"] == 0 || got["drop_port_guard"] == 0 {
		t.Errorf("outcomes %v: want drop_deny and drop_port_guard alone", got)
	}
	if flips < 6 {
		t.Errorf("only %d flips", flips)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

func TestUpgradeUnderTheLiveLink(t *testing.T) {
	for i, row := range []struct {
		name    string
		mode    Mode
		netlink bool
	}{{"native", ModeNative, false}, {"tc by netlink", ModeTC, true}, {"generic by netlink", ModeGeneric, true}, {"tc", ModeTC, false}} {
		if testing.Short() && i >= 1 {
			break
		}
		t.Run(row.name, func(t *testing.T) {
			w := newWire(t, 1)
			w.options.Netlink = row.netlink
			var failing string
			w.options.fault = func(step string) error {
				if step == failing {
					return errors.New("injected")
				}
				return nil
			}
			d := w.mustAttach(t, row.mode)
			if err := d.Apply(&policy.Tables{Prefixes: denied("192.0.2.0/24")}); err != nil {
				t.Fatal(err)
			}
			frame := TCPSegment(client4, server4, ACK)
			w.send(t, frame, 10)
			waitFor(t, "10 frames", func() bool { p, _ := packetSum(t, d, ingressRows); return p == 10 })
			before, state := d.Status(), w.state(t)
			steps := []string{"load new programs", "replace xdp_ingress", "replace tc_egress", "pin new xdp_ingress", "pin new tc_egress", "rename new pins"}
			if testing.Short() {
				steps = steps[2:4] // each loads all programs again
			}
			for _, step := range steps {
				failing = step
				if err := d.Upgrade(); err == nil || !strings.Contains(err.Error(), "injected") {
					t.Errorf("%s made to fail: %v", step, err)
				}
				if now := d.Status(); now != before {
					t.Errorf("after %s failed: %+v, before %+v", step, now, before)
				}
				if now := w.state(t); now != state {
					t.Errorf("after %s failed:\n%s\nbefore:\n%s", step, now, state)
				}
			}
			failing = ""
			if err := d.Upgrade(); err != nil {
				t.Fatal(err)
			}
			after := d.Status()
			if !after.Attached || after.Program == before.Program || after.Mode != before.Mode || after.Hook != before.Hook {
				t.Errorf("upgraded from %+v to %+v", before, after)
			}
			again, err := Open(w.options)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			w.send(t, frame, 10)
			waitFor(t, "20 frames", func() bool { p, _ := packetSum(t, again, ingressRows); return p == 20 })
			if over := outcomeSum(t, again, "drop", "deny"); over != 20 {
				t.Errorf("%d of 20 denied: the tables were lost", over)
			}
			if err := again.Detach(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A process that is killed in the midst of an upgrade leaves what the next one goes on with.
func TestKilledInAnUpgrade(t *testing.T) {
	for _, row := range []struct {
		mode    Mode
		netlink bool
	}{{ModeNative, false}, {ModeNative, true}, {ModeTC, true}} {
		for _, last := range []string{"replace xdp_ingress", "replace tc_egress", "rename new pins"} {
			if testing.Short() && last != "replace tc_egress" {
				continue
			}
			w := newWire(t, 1)
			w.options.Netlink = row.netlink
			d := w.mustAttach(t, row.mode)
			d.options.fault = func(step string) error {
				if step == last {
					panic("killed")
				}
				return nil
			}
			func() {
				defer func() { _ = recover() }()
				_ = d.Upgrade()
			}()
			again, err := Open(w.options)
			if err != nil {
				t.Fatalf("%s, killed before %q: %v", row.mode, last, err)
			}
			w.send(t, TCPSegment(client4, server4, ACK), 10)
			waitFor(t, "10 frames", func() bool { p, _ := packetSum(t, again, ingressRows); return p == 10 })
			if id, _ := again.runsTC(&tcEgress); id == 0 {
				t.Errorf("%s, killed before %q: egress is not known as ours", row.mode, last)
			}
			if err := errors.Join(again.Upgrade(), again.Detach(), again.Close()); err != nil {
				t.Errorf("%s, killed before %q: %v", row.mode, last, err)
			}
			if left := w.state(t); strings.Contains(left, w.options.Instance) || strings.Contains(left, "xdp program") || strings.Contains(left, "filter") {
				t.Errorf("%s, killed before %q: left are\n%s", row.mode, last, left)
			}
		}
	}
}

// A process that is killed while it attaches leaves nothing that passes for attached.
func TestKilledInAnAttach(t *testing.T) {
	w := newWire(t, 1)
	var steps []string
	w.options.fault = func(step string) error { steps = append(steps, step); return nil }
	if err := w.mustAttach(t, ModeNative).Detach(); err != nil {
		t.Fatal(err)
	}
	for _, last := range steps[max(len(steps)-5, 0):] {
		w.options.fault = func(step string) error {
			if step == last {
				panic("killed")
			}
			return nil
		}
		func() {
			defer func() { _ = recover() }()
			d, err := Create(w.options)
			if err == nil {
				defer d.Close()
				_ = d.Attach(ModeNative)
			}
		}()
		w.options.fault = nil
		if d, err := Open(w.options); err == nil {
			t.Errorf("killed before %q: it passes for attached: %+v", last, d.Status())
			d.Close()
		}
		if err := Detach(w.options); err != nil && !errors.Is(err, ErrNotAttached) {
			t.Errorf("killed before %q: %v", last, err)
		}
		if err := w.mustAttach(t, ModeNative).Detach(); err != nil {
			t.Errorf("after a death before %q: %v", last, err)
		}
	}
}

func outcomeSum(t *testing.T, d *Datapath, verdict, reason string) (n uint64) {
	t.Helper()
	var c Counters
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

// Every feature with what Linux 5.4 has: netlink, no batches, tables of fixed size, no
// coarse clock, frames of one buffer.
func TestOldKernelFallbacks(t *testing.T) {
	w := newWire(t, 1)
	w.options.Old = true
	d := w.mustAttach(t, ModeAuto)
	s := d.Status()
	if s.Hook != "netlink" || s.Mode != ModeNative {
		t.Errorf("status %+v", s)
	}
	if !d.encoding.fixed || d.encoding.tick != 0 {
		t.Errorf("encoding %+v", d.encoding)
	}
	tables := &policy.Tables{Prefixes: denied("192.0.2.0/24", "2001:db8:1::/48"), Limits: []policy.PacketLimit{limit(policy.BySource, policy.SYNs, 1, 5)}}
	for range 3 { // both slots
		if err := d.Apply(tables); err != nil {
			t.Fatal(err)
		}
	}
	w.send(t, TCPSegment(client4, server4, SYN), 4)
	w.send(t, synFrom("203.0.113.1"), 20)
	waitFor(t, "24 frames", func() bool { p, _ := packetSum(t, d, ingressRows); return p == 24 })
	if deny, limit := outcomeSum(t, d, "drop", "deny"), outcomeSum(t, d, "drop", "source_limit"); deny != 4 || limit < 14 || limit > 15 {
		t.Errorf("%d denied, %d over the limit; want 4 and 15", deny, limit)
	}
	samples, err := d.NewDrops()
	if err != nil {
		t.Fatal(err)
	}
	// The first of each outcome on each CPU that took part.
	if drops, err := samples.Read(); err != nil || len(drops) < 2 || len(drops) > 2*runtime.NumCPU() {
		t.Errorf("samples: %+v, %v", drops, err)
	}
	if err := d.Upgrade(); err != nil {
		t.Error(err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		return
	}
	// More than fits is refused, and nothing of it applied.
	p := newDrivenPlaneWith(t, 1, tables, Options{Old: true})
	many := &policy.Tables{}
	for i := range 600_000 {
		many.Prefixes = append(many.Prefixes, policy.PrefixRule{Prefix: hostPrefix(i), Action: policy.Deny})
	}
	if err := p.Apply(many); err == nil || !strings.Contains(err.Error(), "Linux 5.10") {
		t.Errorf("600,000 prefixes in tables of fixed size: %v", err)
	}
	p.expect(t, "the old tables hold", TCPSegment(client4, server4, ACK), "drop_deny")
}

func TestDropsAreSampled(t *testing.T) {
	p := newDrivenPlane(t, 2, &policy.Tables{Prefixes: denied("192.0.2.0/24")})
	samples, err := p.NewDrops()
	if err != nil {
		t.Fatal(err)
	}
	// One CPU, so that the counts are exact.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		t.Fatal(err)
	}
	for cpu := range 1024 {
		if old.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &old)
	denied := TCPSegment(client4, server4, SYN)
	short := Cut(denied, 39)
	for range 200 {
		p.sendQuietly(t, denied)
	}
	p.queue = 1
	p.sendQuietly(t, short)
	p.sendQuietly(t, synFrom("203.0.113.1")) // passes
	drops, err := samples.Read()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range drops {
		got = append(got, d.Outcome)
		want := denied
		if d.Outcome == "drop_truncated" {
			want = short
		}
		if d.Length != len(want) || string(d.Head) != string(want) {
			t.Errorf("%s: %d bytes, head %x; the frame is %x", d.Outcome, d.Length, d.Head, want)
		}
	}
	// The first, the 65th, 129th and 193rd.
	if len(drops) != 5 || strings.Count(strings.Join(got, " "), "drop_deny") != 4 || drops[0].Ordinal != 1 {
		t.Errorf("samples %v", got)
	}
	if drops, err := samples.Read(); err != nil || len(drops) != 0 {
		t.Errorf("read again: %v, %v", drops, err)
	}
	for range 64 * 300 {
		p.sendQuietly(t, short)
	}
	if drops, err := samples.Read(); err != nil || len(drops) != dropSamples {
		t.Errorf("after 300 samples: %d read, %v; want the last %d", len(drops), err, dropSamples)
	}
}

// Explaining moves nothing, and says what the wire would.
func TestExplain(t *testing.T) {
	w := newWire(t, 1)
	d := w.mustAttach(t, ModeNative)
	l := limit(policy.BySource, policy.SYNs, 1, 10)
	l.Name = "syns"
	if err := d.Apply(&policy.Tables{
		Prefixes: append(denied("192.0.2.0/24"), rules(policy.Allow, "192.0.2.128/25")...), Limits: []policy.PacketLimit{l}, StaleAfter: time.Hour,
	}); err != nil {
		t.Fatal(err)
	}
	if err := d.Beat(); err != nil {
		t.Fatal(err)
	}
	if err := d.SetPinholes([]policy.Pinhole{{Source: denied("192.0.2.9/32")[0].Prefix, Port: 443}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.SetVerdict(Verdict{Source: client6.Addr(), Step: DropSYNs, TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		frame []byte
		times int
		want  Explanation
	}{
		{"denied", synFrom("192.0.2.10"), 1, Explanation{Outcome: "drop_deny", Rule: "deny 192.0.2.0/24"}},
		{"allowed", synFrom("192.0.2.200"), 50, Explanation{Outcome: "pass_tcp", Rule: "allow 192.0.2.128/25"}},
		{"administrator", synFrom("192.0.2.9"), 1, Explanation{Outcome: "pass_admin", Stopped: "drop_deny", Rule: "deny 192.0.2.0/24"}},
		{"within its limit", synFrom("203.0.113.1"), 10, Explanation{Outcome: "pass_tcp"}},
		{"over it", synFrom("203.0.113.1"), 11, Explanation{Outcome: "drop_source_limit", Over: []string{"syns"}}},
		{"verdict", synFrom("2001:db8:1::10"), 1, Explanation{Outcome: "drop_verdict_syns", Verdict: "syns"}},
		{"VLAN, denied", VLAN(synFrom("192.0.2.10"), TypeVLAN), 1, Explanation{Outcome: "drop_deny", Rule: "deny 192.0.2.0/24"}},
		{"broken", Set(synFrom("192.0.2.10"), EthernetLen, 0x44), 1, Explanation{Outcome: "drop_malformed"}},
	} {
		if testing.Short() && row.name != "over it" && row.name != "administrator" {
			continue // each loads the program again
		}
		got, err := d.Explain(row.frame, row.times)
		if err != nil {
			t.Fatal(err)
		}
		row.want.Generation = 1
		if got.Outcome != row.want.Outcome || got.Stopped != row.want.Stopped || got.Rule != row.want.Rule || got.Verdict != row.want.Verdict ||
			strings.Join(got.Over, ",") != strings.Join(row.want.Over, ",") || got.Generation != row.want.Generation {
			t.Errorf("%s: %+v, want %+v", row.name, *got, row.want)
		}
	}
	if n, _ := packetSum(t, d, ingressRows); n != 0 {
		t.Errorf("explaining counted %d packets", n)
	}
	if over, err := d.LimitCounts(); err != nil || len(over) != 0 {
		t.Errorf("explaining counted limits: %v, %v", over, err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

// What an operator finds in the directory: every map under its name.
func TestPinsHaveNames(t *testing.T) {
	w := newWire(t, 1)
	d := w.mustAttach(t, ModeNative)
	for name := range d.objects.maps() {
		if _, err := os.Stat(filepath.Join(d.dir, name)); err != nil || len(name) > 15 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}
