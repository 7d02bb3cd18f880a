// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A service manager hears when the gateway serves, that it is well, that it reloads, and that
// it stops.
func TestServiceManagerIsTold(t *testing.T) {
	dir := t.TempDir()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_USEC", "30000000")
	var heard []string
	hear := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		for !slices.Contains(heard, want) {
			_ = socket.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, err := socket.Read(b)
			if err != nil {
				t.Fatalf("waiting for %s after %q: %v", want, heard, err)
			}
			line, _, _ := strings.Cut(string(b[:n]), "\n")
			heard = append(heard, line)
		}
		heard = heard[slices.Index(heard, want)+1:]
	}
	g := startGateway(t, startHere, "service", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"))
	hear("READY=1")
	hear("WATCHDOG=1")
	if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	hear("RELOADING=1")
	hear("READY=1")
	g.stop(t)
	hear("STOPPING=1")
}

// The unit is one that systemd takes, and confines what it starts.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("needs systemd-analyze: part of systemd")
	}
	out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "../../deploy/gateway-engine.service").CombinedOutput()
	if strings.Contains(string(out), "unrecognized option") {
		t.Skip("needs systemd 250 or newer")
	}
	m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(string(out))
	if m == nil {
		t.Fatalf("%v: %s", err, out)
	}
	if exposure, _ := strconv.ParseFloat(m[1], 64); exposure > 2.4 {
		t.Errorf("exposure %v", exposure)
	}
	unit, err := os.ReadFile("../../deploy/gateway-engine.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"CapabilityBoundingSet", "AmbientCapabilities"} {
		m := regexp.MustCompile(`(?m)^` + set + `=(.*)$`).FindSubmatch(unit)
		if m == nil {
			t.Fatalf("the unit has no %s", set)
		}
		want := slices.Sorted(maps.Keys(unitCapabilities))
		if got := slices.Sorted(slices.Values(strings.Fields(string(m[1])))); !slices.Equal(got, want) {
			t.Errorf("%s is %q; what is tested is %q", set, got, want)
		}
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "Unknown") || strings.Contains(line, "ignoring") {
			t.Error(line)
		}
	}
}
