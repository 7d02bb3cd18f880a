// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestStatusAndMessageOfFaults(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("routes:\n  - name: a\n    upstrem: b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// No single line is wrong, and yet it cannot be put in force.
	whole := filepath.Join(dir, "whole.yaml")
	text := "routes: [{name: a, upstream: b}]\nupstreams: [{name: b, servers: [\"127.0.0.1:1\"]}]\ndeny:\n"
	for bits := 48; bits < 73; bits++ {
		text += fmt.Sprintf("  - 2001:db8:%x::/%d\n", bits, bits)
	}
	if err := os.WriteFile(whole, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"run", "-c", whole}, 2, whole + ": IPv6 prefixes have"},
		{[]string{"nosuch"}, 2, `unknown command "nosuch"`},
		{[]string{"attach"}, 2, "xgw attach eth0"},
		{[]string{"attach", "a", "b"}, 2, "not 2 arguments"},
		{[]string{"attach", "--mod", "x"}, 2, "--help"},
		{[]string{"attach", "x", "--mode", "fast"}, 2, "native, generic, tc or auto"},
		{[]string{"run", "-c", bad}, 2, bad + `:3:`},
		{[]string{"run", "-c", bad}, 2, `did you mean "upstream"?`},
		{[]string{"run", "-c", filepath.Join(dir, "none.yaml")}, 2, "no such file"},
		{[]string{"attach", "x", "--confirm", "0s"}, 2, "from 1s to 24h"},
		{[]string{"attach", "x", "--plan", "--confirm", "25h"}, 2, "from 1s to 24h"},
		{[]string{"version", "x"}, 2, "takes flags alone, not 1 arguments"},
		{[]string{"--instance", "a.b", "status"}, 2, "letters, digits"},
		{[]string{"worker"}, 2, "xgw run"},
		{[]string{"demo", "--seconds", "0"}, 2, "1 to 600"},
	} {
		status, out, errs := inProcess(row.args...)
		if status != row.status || !strings.Contains(errs, row.says) || out != "" {
			t.Errorf("xgw %s: status %d, want %d; said %q, want %q in it; printed %q",
				strings.Join(row.args, " "), status, row.status, errs, row.says, out)
		}
	}
}

func TestPlainUserIsToldWhatToDo(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs a plain user: root is allowed to")
	}
	for _, args := range [][]string{{"attach", "lo"}, {"detach", "lo"}, {"demo"}} {
		status, _, errs := inProcess(args...)
		if status != 1 || !strings.Contains(errs, "sudo") {
			t.Errorf("xgw %v: status %d, %q; want 1 and the word sudo", args, status, errs)
		}
	}
}

func TestMissingInterface(t *testing.T) {
	needRoot(t, "asks for an attach")
	status, _, errs := inProcess("attach", "nosuch0")
	if status != 1 || !strings.Contains(errs, "nosuch0") || !strings.Contains(errs, "ip link") {
		t.Errorf("status %d, %q", status, errs)
	}
}

// Two gateways of one user could share a port by SO_REUSEPORT; the second would take
// the first one's connections.
func TestSecondGatewayOnTheSamePort(t *testing.T) {
	dir := t.TempDir()
	g := startGateway(t, startHere, "first", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), ""))
	for instance, says := range map[string]string{"second": "address already in use", "first": "in use by process"} {
		path := filepath.Join(t.TempDir(), "gateway.yaml")
		if err := os.WriteFile(path, []byte(gatewayYAML(dir, g.address, "127.0.0.1:1", "")), 0o600); err != nil {
			t.Fatal(err)
		}
		status, _, errs := inProcess("--instance", instance, "run", "-c", path)
		if status != 1 || !strings.Contains(errs, says) {
			t.Errorf("instance %s: status %d, %q; want %q", instance, status, errs, says)
		}
	}
	get(t, client(false), "https://"+g.address+"/") // the first one goes on
	if _, err := os.Stat("/dev/shm/xgw-first.zone"); err != nil {
		t.Error("the first one's zone is gone")
	}
}

// The configuration in the README is one that a person can copy.
func TestReadmeConfiguration(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for language, name := range map[string]string{"yaml": "gateway.yaml", "lua": "ratelimit.lua"} {
		_, block, found := strings.Cut(string(text), "```"+language+"\n")
		block, _, closed := strings.Cut(block, "```")
		if !found || !closed {
			t.Fatalf("no %s in the README", language)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, out, said := inProcess("config", "check", "-c", filepath.Join(dir, "gateway.yaml")); status != 0 || !strings.Contains(out, "https") {
		t.Errorf("status %d\n%s%s", status, out, said)
	}
}

func TestVersion(t *testing.T) {
	status, out, _ := inProcess("version", "--json")
	var v map[string]string
	if status != 0 || json.Unmarshal([]byte(out), &v) != nil || v["go"] == "" || v["version"] == "" {
		t.Errorf("status %d, %q", status, out)
	}
}

// Every command that a person may call has help with an example, and completion is there.
func TestHelp(t *testing.T) {
	e := &env{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || !c.Hidden && c.Example == "" {
			t.Errorf("%s: no help or no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(rootCommand(e))
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if status, out, _ := inProcess("completion", shell); status != 0 || !strings.Contains(out, "xgw") {
			t.Errorf("completion %s: status %d", shell, status)
		}
	}
}

func TestNamesOfTheBinary(t *testing.T) {
	for name, want := range map[string]string{"xgw": "", "gateway-engine": "run", "/usr/bin/gateway-ctl": "ctl", "gateway-top": "top"} {
		got := byName([]string{name, "x"})
		if want == "" && len(got) != 1 || want != "" && got[0] != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
