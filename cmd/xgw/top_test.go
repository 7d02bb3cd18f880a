// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

// shownFrame is a frame as `xgw top --json` prints it.
type shownFrame struct {
	Gateway struct {
		Supervisor string
		Ready      int `json:"workers_ready"`
	}
	Panes []struct {
		Name string
		Rows []map[string]any
	}
	Trouble []string
}

func (f *shownFrame) row(pane, key, value string) map[string]any {
	for _, p := range f.Panes {
		for _, row := range p.Rows {
			if p.Name == pane && row[key] == value {
				return row
			}
		}
	}
	return nil
}

// terminal is a screen of tmux, in the gateway's namespace.
type terminal struct {
	t      *testing.T
	socket string
}

func newTerminal(t *testing.T, l *lab.Lab, width, height int, command ...string) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("needs tmux: deploy/setup.sh test installs it")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &terminal{t, filepath.Join(t.TempDir(), "tmux")}
	cmd := exec.Command("tmux", "-S", s.socket, "-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height),
		self+" "+strings.Join(command, " "))
	if err := l.Start(lab.Gateway, cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", s.socket, "kill-server").Run() })
	return s
}

func (s *terminal) press(keys ...string) {
	s.t.Helper()
	if out, err := exec.Command("tmux", append([]string{"-S", s.socket, "send-keys"}, keys...)...).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// wait returns the screen as soon as all the words are on it.
func (s *terminal) wait(words ...string) string {
	s.t.Helper()
	var screen string
	for range 200 {
		out, err := exec.Command("tmux", "-S", s.socket, "capture-pane", "-p").Output()
		if screen = string(out); err == nil {
			missing := false
			for _, w := range words {
				missing = missing || !strings.Contains(screen, w)
			}
			if !missing {
				return screen
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Fatalf("the screen never shows %q:\n%s", words, screen)
	return ""
}

// What top shows is what was counted; and it goes on when the supervisor hangs, and after it died.
func TestTop(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwtop")
	dir := t.TempDir()
	text := gatewayYAML(dir, lab.GatewayAddr.String()+":443", "127.0.0.1:1", "workers: 1\npin: false\ninterfaces: [{name: edge0}]\ndeny: ["+lab.AttackerAddr.String()+"]\n")
	g := startGateway(t, inHost(l, lab.Gateway), "top", dir, text)
	top := func() *shownFrame {
		t.Helper()
		var f shownFrame
		out := mustXGW(t, l, "--instance", "top", "top", "--once", "--json", "--interval", "200ms")
		if err := json.Unmarshal([]byte(out), &f); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		return &f
	}
	c := newClientIn(l)
	for range 10 { // no upstream is there: 502
		r, err := c.Get("https://" + g.address + "/")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if c, err := l.DialFrom(lab.Attacker)(ctx, "tcp", lab.GatewayAddr.String()+":443"); err == nil {
			c.Close()
			t.Error("who is denied got a connection")
		}
		cancel()
	}
	least := statusOf(t, l, "top").drops("deny") // a client may go on trying meanwhile
	f := top()
	most := statusOf(t, l, "top").drops("deny")
	if f.Gateway.Supervisor != "running" || f.Gateway.Ready != 1 || len(f.Trouble) > 0 {
		t.Errorf("gateway %+v, trouble %v", f.Gateway, f.Trouble)
	}
	if row := f.row("routes", "route", "all"); row == nil || row["requests"] != 10.0 {
		t.Errorf("route: %v", row)
	}
	if row := f.row("requests", "outcome", "upstream_refused"); row == nil || row["requests"] != 10.0 {
		t.Errorf("outcome: %v", row)
	}
	var shown float64 // over all queues
	for _, p := range f.Panes {
		for _, row := range p.Rows {
			if n, ok := row["packets"].(float64); ok && p.Name == "drops" && row["reason"] == "deny" {
				shown += n
			}
		}
	}
	if least < 1 || shown < float64(least) || shown > float64(most) {
		t.Errorf("%v packets dropped, %d to %d counted", shown, least, most)
	}
	if row := f.row("sources", "source", lab.AttackerAddr.String()); row == nil || row["outcome"] != "drop_deny" {
		t.Errorf("source: %v in %+v", row, f.Panes)
	}

	screen := newTerminal(t, l, 80, 24, "--instance", "top", "top", "--interval", "200ms")
	screen.wait("1 of 1 ready", "INTERFACE", "edge0", "q quit")
	screen.press("3")
	screen.wait("ROUTE", "all")
	screen.press("8")
	screen.wait("SOURCE", lab.AttackerAddr.String(), "drop_deny")
	wide := newTerminal(t, l, 200, 60, "--instance", "top", "top", "--interval", "200ms", "--pane", "cores")
	wide.wait("1 of 1 ready", "WORKER", "RESTARTS", "ready")

	if err := g.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	screen.wait("SUPERVISOR HANGS")
	wide.wait("SUPERVISOR HANGS", "1 of 1 ready")
	if err := g.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	screen.wait("xgw ", " up ")
	g.kill(t)
	screen.wait("SUPERVISOR GONE")
	if row := top().row("routes", "route", "all"); row == nil || row["requests"] != 10.0 {
		t.Errorf("route, without a supervisor: %v", row)
	}
	startGateway(t, inHost(l, lab.Gateway), "top", dir, text) // to take over, and to leave nothing
	screen.press("q")
	for range 100 {
		if exec.Command("tmux", "-S", screen.socket, "has-session").Run() != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("q does not end it")
}

func TestTopUsage(t *testing.T) {
	for _, args := range [][]string{{"top", "x"}, {"top", "--interval", "1ms"}, {"top", "--pane", "nosuch"}} {
		if status, _, errs := inProcess(args...); status != 2 || errs == "" {
			t.Errorf("xgw %v: status %d, %q", args, status, errs)
		}
	}
}
