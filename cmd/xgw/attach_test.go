// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xgw-project/xgw/pkg/lab"
)

// xgwIn runs a command line of this program in the gateway's namespace.
func xgwIn(t *testing.T, l *lab.Lab, args ...string) (out string, err error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	if err := l.Start(lab.Gateway, cmd); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	return both.String(), err
}

func mustXGW(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	out, err := xgwIn(t, l, args...)
	if err != nil {
		t.Fatalf("xgw %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// What an operator does first: attach, look with bpftool, run, stop, detach.
func TestAttachByHand(t *testing.T) {
	needRoot(t, "makes a lab")
	const instance = "byhand"
	l := mustLab(t, "xgwhand")
	t.Cleanup(func() { _, _ = xgwIn(t, l, "--instance", instance, "detach", "edge0") })

	if out := mustXGW(t, l, "--instance", instance, "status"); !strings.Contains(out, "nothing is attached") {
		t.Errorf("status of nothing: %s", out)
	}
	if out := mustXGW(t, l, "--instance", instance, "attach", "edge0"); !strings.Contains(out, "native mode") {
		t.Errorf("attach said: %s", out)
	}
	if out, err := xgwIn(t, l, "--instance", instance, "attach", "edge0"); err == nil || !strings.Contains(out, "already attached") {
		t.Errorf("second attach: %v, %s", err, out)
	}

	// As many packets as the interface itself received, and the SYNs among them as
	// were sent: IPv6 may add a multicast report of its own.
	look := func() (received, counted, tcp uint64) {
		for {
			before, err := l.Counters(lab.Gateway, lab.EdgeInterface)
			if err != nil {
				t.Fatal(err)
			}
			counted, tcp = ingress(t, l, instance), ingress(t, l, instance, "tcp")
			// Both readings are of one moment when nothing came in between.
			if again, err := l.Counters(lab.Gateway, lab.EdgeInterface); err == nil && again.RxPackets == before.RxPackets {
				return before.RxPackets, counted, tcp
			}
		}
	}
	wasReceived, wasCounted, wasTCP := look()
	sent, err := l.Flood(context.Background(), lab.Flood{
		Sources: netip.MustParsePrefix("10.66.0.0/24"), Target: netip.AddrPortFrom(lab.GatewayAddr, 443), Count: 3000, Rate: 20000,
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "all SYNs are counted", func() bool { return ingress(t, l, instance, "tcp")-wasTCP >= uint64(sent) })
	received, counted, tcp := look()
	received, counted, tcp = received-wasReceived, counted-wasCounted, tcp-wasTCP
	if counted != received || tcp != uint64(sent) {
		t.Errorf("sent %d SYNs, %d were counted; the interface received %d packets, %d were counted", sent, tcp, received, counted)
	}
	checkBpftool(t, instance, ingress(t, l, instance))

	// A gateway adopts what is attached, counts included, and leaves it at its end.
	ln, err := l.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: lab.NewUpstream()}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	dir := t.TempDir()
	g := startGateway(t, func(cmd *exec.Cmd) error { return l.Start(lab.Gateway, cmd) }, instance, dir,
		gatewayYAML(dir, ":443", "203.0.113.2:8080", "interfaces: [{name: edge0}]\n"))
	get(t, newClientIn(l), "https://"+lab.GatewayAddr.String()+"/")
	get(t, newClientIn(l), "https://["+lab.GatewayAddr6.String()+"]/")
	g.stop(t)
	if now := ingress(t, l, instance); now <= counted {
		t.Errorf("%d packets counted after the gateway's run, %d before: counts were lost, or nothing is attached", now, counted)
	}
	if out := mustXGW(t, l, "--instance", instance, "status"); !strings.Contains(out, "  egress  pass ") || strings.Contains(out, "  all ") {
		t.Errorf("status does not tell what was sent from what was received:\n%s", out)
	}
	if hooks := hooksOf(t, l); hooks != "" && !strings.Contains(hooks, lab.EdgeInterface) {
		t.Errorf("what the operator attached is gone after the gateway's stop: bpftool shows %s", hooks)
	}
	mustXGW(t, l, "--instance", instance, "detach", "edge0")
	if hooks := hooksOf(t, l); strings.Contains(hooks, lab.EdgeInterface) {
		t.Errorf("after detach bpftool shows %s", hooks)
	}
	if _, err := os.Stat("/sys/fs/bpf/xgw-" + instance); err == nil {
		t.Error("pins are left after detach")
	}
	if out, err := xgwIn(t, l, "--instance", instance, "detach", "edge0"); err == nil || !strings.Contains(out, "not attached") {
		t.Errorf("second detach: %v, %s", err, out)
	}
}

// A device that is made anew under its old name is attached without ado.
func TestAttachAfterTheDeviceWasMadeAnew(t *testing.T) {
	needRoot(t, "makes a lab")
	const instance = "anew"
	l := mustLab(t, "xgwanew")
	t.Cleanup(func() { _, _ = xgwIn(t, l, "--instance", instance, "detach", "extra0") })
	makeDevice := func() error {
		return l.In(lab.Gateway, func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "extra0"
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "extra1"})
		})
	}
	if err := makeDevice(); err != nil {
		t.Fatal(err)
	}
	mustXGW(t, l, "--instance", instance, "attach", "extra0")
	err := l.In(lab.Gateway, func() error {
		link, err := netlink.LinkByName("extra0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err := errors.Join(err, makeDevice()); err != nil {
		t.Fatal(err)
	}
	if out := mustXGW(t, l, "--instance", instance, "status"); !strings.Contains(out, "stale") {
		t.Errorf("status does not say that the pins are stale: %s", out)
	}
	mustXGW(t, l, "--instance", instance, "attach", "extra0")
	if out := mustXGW(t, l, "--instance", instance, "status", "extra0"); !strings.Contains(out, "native mode") {
		t.Errorf("status: %s", out)
	}
	mustXGW(t, l, "--instance", instance, "detach", "extra0")
}

// checkBpftool reads the pinned map as an operator would: named fields, whose sum is
// the number of packets.
func checkBpftool(t *testing.T, instance string, want uint64) {
	t.Helper()
	out, err := exec.Command(tool(t, "bpftool"), "-j", "map", "dump", "pinned", "/sys/fs/bpf/xgw-"+instance+"/edge0/ingress_counts").Output()
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Formatted struct {
			Values []struct {
				Value map[string]struct{ Packets uint64 }
			}
		}
	}
	if err := json.Unmarshal(out, &rows); err != nil {
		t.Fatal(err)
	}
	sum := uint64(0)
	for _, r := range rows {
		for _, cpu := range r.Formatted.Values {
			if _, ok := cpu.Value["pass_tcp"]; !ok {
				t.Fatalf("bpftool shows no field pass_tcp: %v", cpu.Value)
			}
			for _, c := range cpu.Value {
				sum += c.Packets
			}
		}
	}
	if sum != want {
		t.Errorf("bpftool's fields add up to %d packets, want %d", sum, want)
	}
}
