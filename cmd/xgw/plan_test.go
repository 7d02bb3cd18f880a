// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/lab"
)

// planOf runs the command in process, in the lab's gateway.
func planOf(t *testing.T, l *lab.Lab, args ...string) (host.Plan, int) {
	t.Helper()
	var status int
	var out, errs string
	err := l.In(lab.Gateway, func() error {
		status, out, errs = inProcess(append(append([]string{"--instance", "plan", "attach"}, args...), "--plan", "--json")...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var p host.Plan
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	if refused := p.Mode == ""; refused != (status == exitFailure) || refused != strings.Contains(errs, "would be refused") {
		t.Errorf("plan of %v: status %d, mode %q, said %q", args, status, p.Mode, errs)
	}
	return p, status
}

func shell(t *testing.T, l *lab.Lab, command string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", command)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.Start(lab.Gateway, cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out.String())
	}
	return out.String()
}

// A plan changes nothing: neither the links, nor their queues and features, nor
// their hooks, nor what is pinned or mounted.
func TestPlanChangesNothing(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwplan")
	state := func() string {
		return shell(t, l, "ip -d link; ip addr; tc qdisc; ethtool -k edge0; ethtool -l edge0; ls -lR /sys/fs/bpf/xgw-plan 2>&1; grep bpf /proc/mounts; true")
	}
	before := state()
	for _, mode := range []string{"native", "generic", "tc", "auto"} {
		if p, _ := planOf(t, l, "edge0", "--mode", mode); p.Mode != mode && (mode != "auto" || p.Mode != "native") {
			t.Errorf("edge0, %s: would attach in %q mode: %+v", mode, p.Mode, p.Findings)
		}
	}
	if after := state(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	mustXGW(t, l, "--instance", "plan", "attach", "edge0")
	t.Cleanup(func() { _, _ = xgwIn(t, l, "--instance", "plan", "detach", "edge0") })
	before = state()
	if p, _ := planOf(t, l, "edge0"); p.Mode != "" || !blockedBy(p, "attached already", "status edge0") {
		t.Errorf("edge0, attached: %+v", p)
	}
	if after := state(); after != before {
		t.Errorf("attached, before:\n%s\nafter:\n%s", before, after)
	}
	if p, _ := planOf(t, l, "edge0"); !blockedBy(p, "attached already", "xgw --instance plan status edge0") {
		t.Errorf("the command does not name the instance: %+v", p)
	}
	if out, err := xgwIn(t, l, "--instance", "other", "attach", "edge0", "--plan"); err == nil || !strings.Contains(out, "not of this instance") {
		t.Errorf("another instance's plan: %v, %s", err, out)
	}
}

// What is attached at tc is attached, too.
func TestPlanOfWhatIsAtTC(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwplantc")
	mustXGW(t, l, "--instance", "plan", "attach", "edge0", "--mode", "tc")
	t.Cleanup(func() { _, _ = xgwIn(t, l, "--instance", "plan", "detach", "edge0") })
	for _, mode := range []string{"native", "tc", "auto"} {
		if p, _ := planOf(t, l, "edge0", "--mode", mode); p.Mode != "" || !blockedBy(p, "attached already", "status edge0") {
			t.Errorf("%s mode: %+v", mode, p)
		}
	}
}

// In a mount namespace that ends with the command nothing can be attached for good.
func TestMountThatWouldNotLast(t *testing.T) {
	needRoot(t, "makes a mount namespace")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"attach lo", "attach lo --plan", "status", "explain lo --from 192.0.2.7 --to 1", "detach lo"} {
		cmd := exec.Command("unshare", "--mount", "--net", "sh", "-c", "mount -t tmpfs none /sys/fs/bpf && exec "+self+" --instance mount "+args)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "nsenter --net=") {
			t.Errorf("xgw %s: %v, %s", args, err, out)
		}
	}
}

func blockedBy(p host.Plan, title, mend string) bool {
	for _, f := range p.Findings {
		if f.Severity == host.Blocks && strings.Contains(f.Title, title) && strings.Contains(f.Mend, mend) {
			return true
		}
	}
	return false
}

func TestPlanOfLoopback(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwplanlo")
	if p, status := planOf(t, l, "lo", "--mode", "auto"); p.Mode != "tc" || status != 0 {
		t.Errorf("auto: status %d, %+v", status, p)
	}
	if p, status := planOf(t, l, "lo", "--mode", "native"); !blockedBy(p, "no native XDP", "xgw --instance plan attach lo --mode tc") || status != 1 {
		t.Errorf("native: status %d, %+v", status, p)
	}
	if out, err := xgwIn(t, l, "--instance", "plan", "attach", "lo", "--mode", "native"); err == nil {
		t.Errorf("the plan was wrong, it was attached: %s", out)
	}
	if out := mustXGW(t, l, "--instance", "plan", "attach", "lo"); !strings.Contains(out, "tc mode") || !strings.Contains(out, "no native XDP here") {
		t.Errorf("auto did not say that it took tc: %s", out)
	}
	mustXGW(t, l, "--instance", "plan", "detach", "lo")
}

// What a plan says blocks, blocks; and its commands mend it.
func TestPlanIsRight(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwplanveth")
	for n, row := range []struct {
		what, near, far, more string // near is attached
		title, mend           string // "" for nothing that blocks
		resized               bool   // a veth's queues are, which Linux can from 5.15 on
	}{
		{"plain", "", "", "", "", "", false},
		{"long packets at this end alone", "", "", "ip link set n1 mtu 9000", "", "", false},
		{"long packets, in several buffers", "", "", "ip link set n2 mtu 9000; ip link set f2 mtu 9000", "", "", false},
		{"the longest that fit", "", "", "ip link set n3 mtu 3506; ip link set f3 mtu 3506", "", "", false},
		{"more queues at the peer", "numrxqueues 4 numtxqueues 4", "numrxqueues 4 numtxqueues 4", "ethtool -L n4 rx 2", "more transmit queues", "ethtool -L n4 rx 4", true},
		{"fewer can be than at the peer", "numrxqueues 1 numtxqueues 1", "numrxqueues 4 numtxqueues 4", "", "more transmit queues", "ethtool -L f5 tx 1", true},
	} {
		if row.resized && shell(t, l, "ip link add x0 type veth peer name x1; ethtool -L x0 rx 1 >/dev/null 2>&1 || echo cannot; ip link del x0") != "" {
			t.Logf("%s: left out: this kernel cannot change a veth's queues", row.what)
			continue
		}
		name := fmt.Sprintf("n%d", n)
		shell(t, l, fmt.Sprintf("ip link add %s %s type veth peer name f%d %s; ip link set %s up; ip link set f%d up; %s", name, row.near, n, row.far, name, n, row.more))
		p, _ := planOf(t, l, name, "--mode", "native")
		if row.title == "" {
			if p.Mode != "native" {
				t.Errorf("%s: %+v", row.what, p)
			}
		} else {
			if !blockedBy(p, row.title, row.mend) {
				t.Errorf("%s: %+v, want %q and %q", row.what, p, row.title, row.mend)
			}
			if out, err := xgwIn(t, l, "--instance", "plan", "attach", name, "--mode", "native"); err == nil {
				t.Errorf("%s: attached all the same: %s", row.what, out)
			}
			for _, f := range p.Findings {
				if f.Severity == host.Blocks {
					shell(t, l, f.Mend)
				}
			}
			if p, _ := planOf(t, l, name, "--mode", "native"); p.Mode != "native" {
				t.Errorf("%s, mended: %+v", row.what, p)
			}
		}
		mustXGW(t, l, "--instance", "plan", "attach", name, "--mode", "native")
		mustXGW(t, l, "--instance", "plan", "detach", name)
	}
}

func TestPlanOfNothing(t *testing.T) {
	for _, row := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"nosuch0"}, 1, "ip link"},
		{[]string{"lo", "--mode", "fast"}, 2, "native, generic, tc or auto"},
		{nil, 2, "xgw attach eth0"},
	} {
		status, out, errs := inProcess(append([]string{"attach", "--plan"}, row.args...)...)
		if status != row.status || !strings.Contains(errs, row.says) || out != "" {
			t.Errorf("%v: status %d, %q, printed %q", row.args, status, errs, out)
		}
	}
}

// A plain user may ask too, and gets text.
func TestPlanText(t *testing.T) {
	status, out, errs := inProcess("attach", "lo", "--plan", "--mode", "tc")
	if status != 0 || errs != "" || !strings.HasPrefix(out, "lo: would attach in tc mode\n  loopback, MTU ") {
		t.Errorf("status %d, %q\n%s", status, errs, out)
	}
}
