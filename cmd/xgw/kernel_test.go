// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/lab"
)

// An attach that is not confirmed is undone by the kernel plane itself, and one that is stays.
func TestAttachIsUndoneUnlessConfirmed(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwconfirm")
	at := []string{"--instance", "confirm"}
	run := func(args ...string) string { return mustXGW(t, l, append(at, args...)...) }
	run("attach", "edge0", "--confirm", "8s")
	t.Cleanup(func() { _, _ = xgwIn(t, l, "--instance", "confirm", "detach", "edge0") })
	if out := run("status"); !strings.Contains(out, "`xgw --instance confirm confirm edge0`") {
		t.Errorf("status says nothing of the confirmation: %s", out)
	}
	time.Sleep(8100 * time.Millisecond)
	if out := run("status"); !strings.Contains(out, "not confirmed in time") {
		t.Errorf("status after the deadline: %s", out)
	}
	if out, err := xgwIn(t, l, "--instance", "confirm", "confirm", "edge0"); err == nil || !strings.Contains(out, "too late") {
		t.Errorf("confirmed after the deadline: %v, %s", err, out)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(path, []byte(gatewayYAML(dir, "127.0.0.1:0", "127.0.0.1:1", "interfaces: [{name: edge0}]\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := xgwIn(t, l, "--instance", "confirm", "run", "-c", path); err == nil || !strings.Contains(out, "confirm detach edge0") {
		t.Errorf("served after the deadline: %v, %s", err, out)
	}
	run("detach", "edge0")
	run("attach", "edge0", "--confirm", "60s")
	run("confirm", "edge0")
	if out := run("status"); strings.Contains(out, "confirm") && !strings.Contains(out, "xgw-confirm") {
		t.Errorf("status after the confirmation: %s", out)
	}
	run("upgrade", "edge0")
	if out := run("explain", "edge0", "--from", "192.0.2.7", "--to", "443"); !strings.Contains(out, "pass_tcp") || !strings.Contains(out, "none") {
		t.Errorf("explain without tables: %s", out)
	}
	if out := run("drops", "edge0"); !strings.Contains(out, "no samples") {
		t.Errorf("drops without any: %s", out)
	}
	var follows bytes.Buffer
	follow := exec.Command("/proc/self/exe", "--instance", "confirm", "drops", "edge0", "--follow")
	follow.Stderr = &follows
	if err := l.Start(lab.Gateway, follow); err != nil {
		t.Fatal(err)
	}
	waitForMaps(t, follow.Process.Pid)
	run("detach", "edge0")
	if err := follow.Wait(); err == nil || !strings.Contains(follows.String(), "taken off") {
		t.Errorf("drops --follow after detach: %v, %s", err, follows.String())
	}
}

// waitForMaps waits until the process has opened the kernel plane's maps, all that it will.
func waitForMaps(t *testing.T, pid int) {
	t.Helper()
	open := func() (n int) {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if what, err := os.Readlink(fd); err == nil && what == "anon_inode:bpf-map" {
				n++
			}
		}
		return n
	}
	for before, until := 0, time.Now().Add(20*time.Second); time.Now().Before(until); time.Sleep(300 * time.Millisecond) {
		now := open()
		if now > 0 && now == before {
			return
		}
		before = now
	}
	t.Fatalf("process %d opened no maps", pid)
}

func TestExplainReadsPackets(t *testing.T) {
	dir := t.TempDir()
	frame := "02000000000202000000000108004500002800000000400664cdc000020ac63364019c4001bb00000000000000005002ffff00000000"
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pcap := "\xd4\xc3\xb2\xa1\x02\x00\x04\x00" + strings.Repeat("\x00", 8) + "\xff\xff\x00\x00\x01\x00\x00\x00" +
		strings.Repeat("\x00", 8) + "\x0e\x00\x00\x00\x0e\x00\x00\x00" + "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x08\x06"
	for _, row := range []struct {
		asked asked
		bytes int
		says  string
	}{
		{asked{file: write("hex", frame[:60]+" \n"+frame[60:]), times: 1}, len(frame) / 2, ""},
		{asked{file: write("pcap", pcap), times: 1}, 14, ""},
		{asked{file: write("headers alone", strings.Replace(pcap, "\x0e\x00\x00\x00\x02", "\xdc\x05\x00\x00\x02", 1)), times: 1}, 1500, ""},
		{asked{file: write("cut", pcap[:len(pcap)-1]), times: 1}, 0, "cut off"},
		{asked{file: write("text", "hello"), times: 1}, 0, "hexadecimal"},
		{asked{file: filepath.Join(dir, "none"), times: 1}, 0, "no such file"},
		{asked{from: "192.0.2.7", to: "443", flags: "syn", protocol: "tcp", times: 1}, 54, ""},
		{asked{from: "[2001:db8::7]:53", to: "443", protocol: "udp", times: 1}, 62, ""},
		{asked{from: "192.0.2.7", to: "198.51.100.1:443", protocol: "echo", times: 1}, 42, ""},
		{asked{from: "192.0.2.7", to: "[2001:db8::1]:443", protocol: "tcp", times: 1}, 0, "families"},
		{asked{from: "192.0.2.7", to: "443", flags: "psh", protocol: "tcp", times: 1}, 0, "none of syn"},
		{asked{from: "192.0.2", to: "443", times: 1}, 0, "--from"},
		{asked{from: "192.0.2.7", to: "https", times: 1}, 0, "--to"},
		{asked{from: "192.0.2.7", times: 1}, 0, "--to"},
		{asked{from: "192.0.2.7", to: "443", protocol: "sctp", times: 1}, 0, "--protocol"},
		{asked{from: "192.0.2.7", to: "443", file: "x", times: 1}, 0, "leave"},
		{asked{}, 0, "--times"},
	} {
		got, err := row.asked.frame("lo")
		if row.says != "" && (err == nil || !strings.Contains(err.Error(), row.says)) || row.says == "" && (err != nil || len(got) != row.bytes) {
			t.Errorf("%+v: %d bytes, %v; want %d, %q", row.asked, len(got), err, row.bytes, row.says)
		}
	}
}

// A device that is made anew gets the kernel plane again, with the rules, while the gateway
// runs; and an administrator's session stays open behind rules that deny everybody.
func TestDeviceMadeAnewWhileRunning(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwnewdev")
	dir := t.TempDir()
	shell(t, l, "ip link add anew0 type veth peer name anew1; ip link set anew0 up; ip link set anew1 up")
	g := startGateway(t, func(cmd *exec.Cmd) error { return l.Start(lab.Gateway, cmd) }, "newdev", dir,
		gatewayYAML(dir, "127.0.0.1:8443", "127.0.0.1:1", `workers: 1
pin: false
interfaces: [{name: anew0, mode: native}]
deny: [192.0.2.0/24]
admin: [{source: 192.0.2.9, port: 22}]
`))
	explain := func(args ...string) string {
		out, err := xgwIn(t, l, append([]string{"--instance", "newdev", "explain", "anew0", "--json"}, args...)...)
		if err != nil {
			return err.Error() + out
		}
		var x datapath.Explanation
		if err := json.Unmarshal([]byte(out), &x); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		return x.Outcome
	}
	check := func(when string) {
		t.Helper()
		for range 100 {
			if explain("--from", "192.0.2.7", "--to", "443") == "drop_deny" {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := explain("--from", "192.0.2.7", "--to", "443"); got != "drop_deny" {
			t.Errorf("%s: a denied source: %s", when, got)
		}
		if got := explain("--from", "192.0.2.9", "--to", "22"); got != "pass_admin" {
			t.Errorf("%s: the administrator: %s", when, got)
		}
		if got := explain("--from", "192.0.2.9", "--to", "443"); got != "drop_deny" {
			t.Errorf("%s: the administrator at another port: %s", when, got)
		}
	}
	check("at first")
	shell(t, l, "ip link del anew0; ip link add anew0 type veth peer name anew1; ip link set anew0 up; ip link set anew1 up")
	check("made anew")
	g.stop(t)
	if out := mustXGW(t, l, "--instance", "newdev", "status"); !strings.Contains(out, "nothing is attached") {
		t.Errorf("after the gateway stopped: %s", out)
	}
}
