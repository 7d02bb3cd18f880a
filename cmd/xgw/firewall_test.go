// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/firewall"
	"github.com/xgw-project/xgw/pkg/lab"
)

// guarded is the configuration of both: the port guard of the kernel plane and the firewall.
const guarded = `interfaces: [{name: edge0, mode: native}]
admin: [{source: 192.0.2.0/28, port: 22}, {source: "2001:db8:1::2", port: 22}]
port_guard: {mode: enforce, tcp: [25, 8000-8002], udp: [53, 60000-65535]}
workers: 1
`

// fence is a lab whose gateway's ports are closed to most.
type fence struct {
	*ward
	path string // of the configuration
}

func newFence(t *testing.T) *fence {
	t.Setenv("SSH_CONNECTION", "")
	f := &fence{ward: &ward{Lab: mustLab(t, "xgwfence"), t: t, instance: "fence"}}
	dir := t.TempDir()
	f.path = filepath.Join(dir, "gateway.yaml")
	f.text = gatewayYAML(dir, ":443", "203.0.113.2:8081", guarded)
	f.text = strings.Replace(f.text, `telemetry: {address: "127.0.0.1:0"}`, "  - {address: \"127.0.0.1:8443\"}\ntelemetry: {address: \"198.51.100.2:9090\"}", 1)
	// A refusal is an answer for each probe.
	f.setting("net.ipv4.icmp_ratelimit", "0")
	f.setting("net.ipv6.icmp.ratelimit", "0")
	if err := os.WriteFile(f.path, []byte(f.text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// probe is one new flow from a host of the lab.
type probe struct {
	host, network string
	source, port  uint16
	size          int // of a datagram; 0: it fits into a packet
}

func (p probe) String() string {
	return fmt.Sprintf("%s %s %d>%d %d", p.host, p.network, p.source, p.port, p.size)
}

func probes() (all []probe) {
	for _, host := range []string{lab.Client, lab.Attacker} {
		for _, v := range []string{"4", "6"} {
			for _, port := range []uint16{22, 23, 25, 443, 7999, 8000, 8002, 8003, 8443, 9090} {
				all = append(all, probe{host, "tcp" + v, 0, port, 0})
			}
			for _, port := range []uint16{22, 53, 54, 443, 59999, 60000, 65535} {
				all = append(all, probe{host, "udp" + v, 0, port, 0})
			}
		}
	}
	return append(all,
		probe{lab.Client, "udp4", 67, 68, 0}, probe{lab.Client, "udp4", 66, 68, 0}, probe{lab.Client, "udp6", 547, 546, 0},
		probe{lab.Client, "udp6", 67, 68, 0},
		probe{lab.Attacker, "udp4", 5353, 40000, 0}, probe{lab.Attacker, "udp4", 5354, 40000, 0}, // the gateway has asked the former
		probe{lab.Attacker, "udp6", 5353, 40000, 0}, probe{lab.Attacker, "udp6", 5354, 40000, 0},
		probe{lab.Attacker, "udp4", 0, 53, 3000}, probe{lab.Attacker, "udp4", 0, 54, 3000}, // in fragments
		probe{lab.Attacker, "udp6", 0, 53, 3000}, probe{lab.Attacker, "udp6", 0, 54, 3000})
}

// admitted is what is said of it in words.
func (p probe) admitted() bool {
	if p.network[:3] == "udp" {
		dhcp := p == probe{lab.Client, "udp4", 67, 68, 0} || p == probe{lab.Client, "udp6", 547, 546, 0}
		return p.port == 53 || p.port >= 60000 || dhcp || p.source == 5353
	}
	switch p.port {
	case 25, 443, 8000, 8002, 9090:
		return true
	case 22:
		return p.host == lab.Client
	}
	return false
}

// ask has the gateway send a datagram to the attacker from the port that the probes go to.
func (f *fence) ask() {
	f.t.Helper()
	for _, pair := range [][2]string{{"198.51.100.2:40000", "192.0.2.18:5353"}, {"[2001:db8:3::2]:40000", "[2001:db8:2::2]:5353"}} {
		err := f.In(lab.Gateway, func() error {
			c, err := (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(pair[0]))}).Dial("udp", pair[1])
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("who?"))
			return err
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
}

// send sends it from the namespace of this thread, and waits for an answer.
func (p probe) send(ctx context.Context) error {
	to := netip.AddrPortFrom(lab.GatewayAddr, p.port)
	if p.network[3] == '6' {
		to = netip.AddrPortFrom(lab.GatewayAddr6, p.port)
	}
	d := net.Dialer{}
	if p.source > 0 {
		d.LocalAddr = &net.UDPAddr{Port: int(p.source)}
	}
	c, err := d.DialContext(ctx, p.network, to.String())
	if err != nil || p.network[:3] == "tcp" {
		if c != nil {
			c.Close()
		}
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	defer stop()
	if _, err := c.Write(make([]byte, max(p.size, 5))); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 16))
	return err
}

// passes sends the probe: whatever gets through is answered, if only by a refusal, and what
// does not is counted.
func (f *fence) passes(p probe, drops func() uint64) bool {
	f.t.Helper()
	before, answer := drops(), make(chan error, 1)
	ctx, leave := context.WithCancel(context.Background())
	go func() { answer <- f.In(p.host, func() error { return p.send(ctx) }) }()
	defer func() { // SYNs are not to be sent again while another probe is counted
		leave()
		answer <- <-answer
	}()
	end := time.After(20 * time.Second)
	for {
		select {
		case err := <-answer:
			answer <- err
			if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				f.t.Fatalf("%s: %v", p, err)
			}
			return true
		case <-time.After(5 * time.Millisecond):
			if drops() > before {
				return false
			}
		case <-end:
			f.t.Fatalf("%s: neither answered nor counted as dropped", p)
		}
	}
}

// TestFirewallAgreesWithPortGuard: of one configuration, both let pass the same, which is what
// it says.
func TestFirewallAgreesWithPortGuard(t *testing.T) {
	needRoot(t, "makes a lab")
	f := newFence(t)
	all, want := probes(), map[string]bool{}
	for _, p := range all {
		want[p.String()] = p.admitted()
	}
	try := func(what string, drops func() uint64) {
		f.ask()
		got := map[string]bool{}
		for _, p := range all {
			got[p.String()] = f.passes(p, drops)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}

	g := startGateway(t, inHost(f.Lab, lab.Gateway), f.instance, filepath.Dir(f.path), f.text)
	var d *datapath.Datapath
	if err := f.In(lab.Gateway, func() (err error) {
		d, err = datapath.Open(datapath.Options{Interface: lab.EdgeInterface, Instance: f.instance})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	try("port guard", func() (n uint64) {
		var c datapath.Counters
		if err := d.Counters(&c); err != nil {
			t.Fatal(err)
		}
		for _, q := range c.Ingress {
			if q.Verdict == "drop" {
				n += q.Packets
			}
		}
		return n
	})
	d.Close()
	g.stop(t)

	f.must("firewall", "apply", "-c", f.path)
	k := f.kernel()
	defer k.Close()
	try("firewall", func() uint64 { return f.state(k).Packets })
}

func (f *fence) kernel() (k *firewall.Kernel) {
	f.t.Helper()
	if err := f.In(lab.Gateway, func() (err error) { k, err = firewall.Open(); return err }); err != nil {
		f.t.Fatal(err)
	}
	return k
}

func (f *fence) state(k *firewall.Kernel) firewall.State {
	f.t.Helper()
	s, err := k.State(firewall.TableName(f.instance))
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// Rules that are not confirmed end by themselves, whatever becomes of the command, and those
// before hold again; confirmed ones stay.
func TestFirewallConfirm(t *testing.T) {
	needRoot(t, "makes a lab")
	f := newFence(t)
	k := f.kernel()
	defer k.Close()
	drops := func() uint64 { return f.state(k).Packets }
	shut, open := probe{lab.Client, "tcp4", 0, 23, 0}, probe{lab.Client, "tcp4", 0, 25, 0}
	other := filepath.Join(filepath.Dir(f.path), "other.yaml")
	if err := os.WriteFile(other, []byte(strings.Replace(f.text, "tcp: [25,", "tcp: [23,", 1)), 0o600); err != nil {
		t.Fatal(err)
	}

	f.must("firewall", "apply", "-c", f.path, "--confirm", "1s")
	if s := f.state(k); s.Waits == "" || s.Holds != "" || s.Left > time.Second {
		t.Errorf("%+v", s)
	}
	if f.passes(shut, drops) && f.state(k).Left > 0 {
		t.Error("port 23 is open while the rules wait to be confirmed")
	}
	f.eventually("port 23 is open again", func() bool { return f.passes(shut, drops) })
	if s := f.state(k); s.Left != 0 {
		t.Errorf("it is open, with %s left", s.Left)
	}
	if status, _, errs := f.xgw("firewall", "confirm"); status != 1 || !strings.Contains(errs, "too late") {
		t.Errorf("status %d, %s", status, errs)
	}

	f.must("firewall", "apply", "-c", f.path, "--confirm", "1h")
	f.must("firewall", "confirm")
	if status, _, errs := f.xgw("firewall", "confirm"); status != 1 || !strings.Contains(errs, "nothing waits") {
		t.Errorf("status %d, %s", status, errs)
	}
	held := f.state(k)
	if held.Holds == "" || held.Waits != "" || f.passes(shut, drops) || !f.passes(open, drops) {
		t.Errorf("%+v", held)
	}
	if out := f.must("firewall", "apply", "-c", f.path, "--confirm", "1s"); !strings.Contains(out, "held already") {
		t.Errorf("%s", out)
	}

	// Others are tried; what was confirmed comes back.
	f.must("firewall", "apply", "-c", other, "--confirm", "1h")
	if !f.passes(shut, drops) || f.passes(open, drops) {
		t.Error("the rules that are tried do not hold")
	}
	f.must("firewall", "apply", "-c", other, "--confirm", "1s")
	f.eventually("port 25 is open again", func() bool { return f.passes(open, drops) })
	if f.passes(shut, drops) {
		t.Error("the confirmed rules are not in force again")
	}
	f.must("firewall", "apply", "-c", other)
	if s := f.state(k); s.Waits != "" || s.Holds == held.Holds || s.Packets < held.Packets {
		t.Errorf("%+v, before %+v", s, held)
	}
	f.must("firewall", "undo")
	if s := f.state(k); s.Exists {
		t.Errorf("%+v", s)
	}
	f.must("firewall", "undo")
}

// What show prints, the real nft takes, and makes the same of it as apply; nobody else's table
// is touched.
func TestFirewallText(t *testing.T) {
	needRoot(t, "makes a lab")
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, which `deploy/setup.sh test` installs")
	}
	f := newFence(t)
	nft := func(input string, words ...string) string {
		t.Helper()
		var out strings.Builder
		cmd := exec.Command("nft", words...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
		if err := f.Start(lab.Gateway, cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("nft %v: %v\n%s\n%s", words, err, &out, input)
		}
		return out.String()
	}
	nft("table inet xgw {\n chain mine {\n }\n}\ntable inet other {\n chain input {\n  type filter hook input priority 0\n }\n}\n", "-f", "-")
	others := nft("", "-s", "list", "ruleset")

	text := f.must("firewall", "show", "-c", f.path)
	nft(text, "-c", "-f", "-")
	if got := nft("", "-s", "list", "ruleset"); got != others {
		t.Errorf("show changed something: %s", got)
	}
	list := func() string { return nft("", "-s", "list", "table", "inet", "xgw-fence") }
	nft(text, "-f", "-")
	want := list()
	f.must("firewall", "undo")
	for range 2 {
		f.must("firewall", "apply", "-c", f.path)
		if diff := cmp.Diff(want, list()); diff != "" {
			t.Errorf("show prints - and apply makes +:\n%s", diff)
		}
	}
	// By way of other rules, and repaired.
	other := filepath.Join(filepath.Dir(f.path), "other.yaml")
	if err := os.WriteFile(other, []byte(strings.Replace(f.text, "tcp: [25,", "tcp: [1-24,", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	f.must("firewall", "apply", "-c", other)
	f.must("firewall", "apply", "-c", f.path, "--confirm", "1h")
	f.must("firewall", "confirm")
	nft("", "flush", "chain", "inet", "xgw-fence", "rules-"+text[strings.Index(text, "goto rules-")+len("goto rules-"):][:8])
	f.must("firewall", "apply", "-c", f.path)
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("show prints - and apply has come to +:\n%s", diff)
	}
	f.must("firewall", "undo")
	if got := nft("", "-s", "list", "ruleset"); got != others {
		t.Errorf("undo left or took something else: %s", got)
	}
	// A table of that name that somebody else has made.
	f.instance = ""
	for _, verb := range [][]string{{"apply", "-c", f.path}, {"undo"}} {
		if status, _, errs := f.xgw(append([]string{"firewall"}, verb...)...); status != 1 || !strings.Contains(errs, "--instance") {
			t.Errorf("%v: status %d, %s", verb, status, errs)
		}
	}
	if got := nft("", "-s", "list", "ruleset"); got != others {
		t.Errorf("somebody else's table: %s", got)
	}
}

// receives has somebody on the gateway receive datagrams.
func (f *fence) receives(at string) {
	f.t.Helper()
	if err := f.In(lab.Gateway, func() error {
		c, err := net.ListenPacket("udp", at)
		if err == nil {
			f.t.Cleanup(func() { c.Close() })
		}
		return err
	}); err != nil {
		f.t.Fatal(err)
	}
}

// Who is logged in is not shut out but on trial.
func TestFirewallWarns(t *testing.T) {
	needRoot(t, "makes a lab")
	f := newFence(t)
	apply := func(session string, words ...string) (int, string) {
		t.Setenv("SSH_CONNECTION", session)
		status, _, errs := f.xgw(append([]string{"firewall", "apply", "-c", f.path}, words...)...)
		return status, errs
	}
	if status, errs := apply("192.0.2.18 5 198.51.100.2 22"); status != 1 || !strings.Contains(errs, "192.0.2.18 to port 22") || !strings.Contains(errs, "--confirm") {
		t.Errorf("status %d, %s", status, errs)
	}
	k := f.kernel()
	defer k.Close()
	if s := f.state(k); s.Exists {
		t.Errorf("refused, but %+v", s)
	}
	// Tunnels end at sockets of UDP.
	for _, at := range []string{"198.51.100.2:53", "[2001:db8:3::2]:60001", "127.0.0.1:51821", "[::1]:51821", ":68", ":546"} {
		f.receives(at)
	}
	if err := f.In(lab.Gateway, func() error { // sends, and is connected
		c, err := net.Dial("udp", "192.0.2.18:5353")
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if status, errs := apply("192.0.2.2 5 198.51.100.2 22"); status != 0 || errs != "" {
		t.Errorf("status %d, %s", status, errs)
	}
	f.receives("198.51.100.2:51820")
	f.receives("[::]:51822")
	if status, errs := apply("192.0.2.2 5 198.51.100.2 22"); status != 0 || !strings.Contains(errs, "UDP on 51820, 51822,") || !strings.Contains(errs, "port_guard.udp") {
		t.Errorf("status %d, %s", status, errs)
	}
	f.must("firewall", "undo")
	if status, errs := apply("192.0.2.18 5 198.51.100.2 22", "--confirm", "1h"); status != 0 || !strings.Contains(errs, "WARNING") {
		t.Errorf("status %d, %s", status, errs)
	}
	if s := f.state(k); s.Waits == "" {
		t.Errorf("%+v", s)
	}
}
