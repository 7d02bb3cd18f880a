// SPDX-License-Identifier: Apache-2.0

package mend

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fake are devices that remember.
type fake map[string]string

func (f fake) Read(c Change) (string, error) {
	v, ok := f[c.Object+c.Name]
	if !ok {
		return "", fmt.Errorf("%s: %w", c.Object, os.ErrNotExist)
	}
	return v, nil
}

func (f fake) Write(c Change, value string) error {
	if value == "refused" {
		return errors.New("the driver says no")
	}
	f[c.Object+c.Name] = value
	return nil
}

// machine is a tree of files that can be written.
func machine(t *testing.T, files map[string]string) *Machine {
	t.Helper()
	m := &Machine{Root: t.TempDir(), Device: fake{"eth0": "512", "eth0lro": "on"}, Journal: filepath.Join(t.TempDir(), "run", "changes.json")}
	for path, text := range files {
		path = filepath.Join(m.Root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *Machine) is(t *testing.T, c Change, want string) {
	t.Helper()
	if got, err := m.Read(c); err != nil || got != want {
		t.Errorf("%s %s is %q, %v; want %q", c.Object, c.Name, got, err, want)
	}
}

var (
	backlog = Change{Kind: Sysctl, Object: "net.core.somaxconn", Value: "4096"}
	ports   = Change{Kind: Sysctl, Object: "net.ipv4.ip_local_port_range", Value: "32768 60999"}
	xps     = Change{Kind: File, Object: "/sys/class/net/eth0/queues/tx-0/xps_cpus", Value: "3"}
	ring    = Change{Kind: Ring, Object: "eth0", Value: "4096"}
	lro     = Change{Kind: Feature, Object: "eth0", Name: "lro", Value: "off"}
)

func tree() map[string]string {
	return map[string]string{
		"proc/sys/net/core/somaxconn": "16", "proc/sys/net/ipv4/ip_local_port_range": "60000\t60999", "sys/class/net/eth0/queues/tx-0/xps_cpus": "0000,00000000",
	}
}

func TestApplyAndUndo(t *testing.T) {
	m := machine(t, tree())
	all := []Change{backlog, ports, xps, ring, lro}
	done, err := m.Apply("doctor", all)
	if err != nil || len(done) != len(all) {
		t.Fatalf("%v, %v", done, err)
	}
	for _, c := range all {
		m.is(t, c, c.Value)
	}
	if again, err := m.Apply("doctor", all); err != nil || len(again) != 0 {
		t.Errorf("again: %v, %v", again, err)
	}
	undone, err := m.Undo("doctor")
	if err != nil || len(undone) != len(all) || undone[0].Object != lro.Object || undone[len(all)-1].Was != "16" {
		t.Errorf("%+v, %v", undone, err)
	}
	for c, want := range map[*Change]string{&backlog: "16", &ports: "60000 60999", &xps: "0000,00000000", &ring: "512", &lro: "on"} {
		m.is(t, *c, want)
	}
	if _, err := os.Stat(m.Journal); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is left: %v", err)
	}
	if undone, err := m.Undo("doctor"); err != nil || len(undone) != 0 {
		t.Errorf("undone twice: %v, %v", undone, err)
	}
}

// Two commands share the journal: each undoes its own, and a value that was raised twice goes
// back to what it was at first.
func TestChangesOfTwoCommands(t *testing.T) {
	m := machine(t, tree())
	mustApply(t, m, "doctor", Change{Kind: Sysctl, Object: backlog.Object, Value: "1024"}, ring)
	mustApply(t, m, "tune", backlog)
	if undone, err := m.Undo("doctor"); err != nil || len(undone) != 1 {
		t.Errorf("%v, %v", undone, err)
	}
	m.is(t, ring, "512")
	m.is(t, backlog, "4096")
	if _, err := m.Undo("tune"); err != nil {
		t.Error(err)
	}
	m.is(t, backlog, "16")
}

// What somebody else has set since is theirs.
func TestUndoLeavesWhatOthersSet(t *testing.T) {
	m := machine(t, tree())
	mustApply(t, m, "tune", backlog, xps)
	if err := os.WriteFile(m.path(backlog), []byte("8192\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(m.Root, "sys/class/net/eth0")); err != nil { // the interface is gone
		t.Fatal(err)
	}
	undone, err := m.Undo("")
	if err != nil || len(undone) != 2 || !strings.Contains(undone[0].Error, "no more") || !strings.Contains(undone[1].Error, "8192") {
		t.Errorf("%+v, %v", undone, err)
	}
	m.is(t, backlog, "8192")
}

// A change that fails leaves no trace, and the others are made.
func TestFailedChange(t *testing.T) {
	m := machine(t, tree())
	bad := Change{Kind: Ring, Object: "eth0", Value: "refused"}
	missing := Change{Kind: Sysctl, Object: "net.no.such", Value: "1"}
	done, err := m.Apply("doctor", []Change{bad, missing, backlog})
	if err == nil || !strings.Contains(err.Error(), "ethtool -G eth0 rx refused") || !strings.Contains(err.Error(), "net.no.such") || len(done) != 3 {
		t.Errorf("%v, %v", done, err)
	}
	m.is(t, backlog, "4096")
	if all, err := m.Changes(); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

// A journal that cannot be written stops everything before it is changed.
func TestNoChangeWithoutJournal(t *testing.T) {
	m := machine(t, tree())
	if err := os.WriteFile(filepath.Dir(m.Journal), nil, 0o644); err != nil { // no directory can be made there
		t.Fatal(err)
	}
	if _, err := m.Apply("doctor", []Change{backlog}); err == nil {
		t.Error("changed")
	}
	m.is(t, backlog, "16")
}

func mustApply(t *testing.T, m *Machine, by string, all ...Change) {
	t.Helper()
	if _, err := m.Apply(by, all); err != nil {
		t.Fatal(err)
	}
}

func TestEqual(t *testing.T) {
	if Equal("0,2", "2") || Equal("1,2", "12") || !Equal("00000000,00000003", "3") {
		t.Error("lists of CPUs are not masks of them")
	}
	for _, row := range []struct {
		a, b string
		want bool
	}{
		{"0000,00000003", "3", true}, {"00000000,00000000", "0", true}, {"4096", "4096", true}, {"10", "1", false},
		{"32768 60999", "32768 60999", true}, {"0 1", "00 1", false}, {"on", "off", false},
	} {
		if got := Equal(row.a, row.b); got != row.want {
			t.Errorf("%q and %q: %t", row.a, row.b, got)
		}
	}
}

func TestSettings(t *testing.T) {
	for _, row := range []struct {
		name, now string
		good, bad bool
	}{
		{"net.core.somaxconn", "4096", true, false}, {"net.core.somaxconn", "65535", true, false}, {"net.core.somaxconn", "1024", false, false},
		{"net.core.somaxconn", "16", false, true}, {"net.ipv4.tcp_syncookies", "2", true, false}, {"net.ipv4.tcp_syncookies", "0", false, true},
		{"net.ipv4.ip_local_port_range", "1024\t65535", true, false}, {"net.ipv4.ip_local_port_range", "60000 60999", false, true},
		{"net.ipv4.tcp_tw_reuse", "2", false, false}, {"net.core.bpf_jit_enable", "0", false, true}, {"net.core.somaxconn", "many", true, false},
	} {
		for i := range Settings {
			if s := &Settings[i]; s.Name == row.name {
				if good, bad := s.Satisfied(row.now); good != row.good || bad != row.bad {
					t.Errorf("%s %q: good %t, bad %t", row.name, row.now, good, bad)
				}
			}
		}
	}
}

func TestParseCommand(t *testing.T) {
	if c, ok := ParseCommand("ethtool -K eth0 lro off"); !ok || c != lro || c.Command() != "ethtool -K eth0 lro off" {
		t.Errorf("%+v, %t", c, ok)
	}
	for _, no := range []string{"", "ethtool -K eth0 lro maybe", "ethtool -G eth0 rx 5", "ip link set dev eth0 up", "ethtool -K eth0 lro off; reboot"} {
		if c, ok := ParseCommand(no); ok {
			t.Errorf("%q: %+v", no, c)
		}
	}
}

// The open files of a process of our own, and of one that is not the one that was meant.
func TestLimitOfAProcess(t *testing.T) {
	start, err := StartOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	c := Change{Kind: Limit, Object: fmt.Sprintf("%d/%s", os.Getpid(), start)}
	was, err := Devices{}.Read(c)
	if err != nil {
		t.Fatal(err)
	}
	_, hard, _ := strings.Cut(was, ":")
	if err := (Devices{}).Write(c, "200:"+hard); err != nil {
		t.Fatal(err)
	}
	if now, err := (Devices{}).Read(c); err != nil || now != "200:"+hard {
		t.Errorf("%s, %v", now, err)
	}
	if err := (Devices{}).Write(c, was); err != nil {
		t.Error(err)
	}
	c.Object = fmt.Sprintf("%d/1", os.Getpid())
	if _, err := (Devices{}).Read(c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another process: %v", err)
	}
}

func TestTables(t *testing.T) {
	if got := EqualTable(6, 4); got != "0 1 2 3 0 1" || queuesOf(got) != 4 {
		t.Errorf("%q, %d queues", got, queuesOf(got))
	}
	if c := (Change{Kind: RSS, Object: "eth0", Value: EqualTable(128, 12)}); c.Command() != "ethtool -X eth0 equal 12" {
		t.Error(c.Command())
	}
}
