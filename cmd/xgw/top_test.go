// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
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
	text = strings.Replace(text, "upstream: back}", "upstream: back, keys: {}}", 1)
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
	key := mustRun(t, "--instance", "top", "keys", "add", "--consumer", "alice")
	id := strings.Split(key, "_")[1]
	for range 10 { // no upstream is there: 502
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+key)
		r, err := c.Do(q)
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
	screen.wait(lab.ClientAddr.String())
	screen.press("9")
	screen.wait("KEY", "LAST FROM", id, lab.ClientAddr.String())
	screen.press("Down", "v")
	screen.wait("new connections of " + lab.ClientAddr.String())
	screen.press("y")
	screen.wait("verdict on " + lab.ClientAddr.String())
	screen.press("8")
	if shown := screen.wait("thin"); os.Getenv("XGW_SCREENSHOTS") != "" {
		if err := os.WriteFile(filepath.Join(os.Getenv("XGW_SCREENSHOTS"), "top.txt"), []byte(shown), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testDatapath(t)
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

// testDatapath holds what the admin API says of the kernel plane to what is so.
func testDatapath(t *testing.T) {
	t.Helper()
	var planes []struct {
		Interface  string
		Attached   bool
		Mode       string
		Generation uint64
		Programs   []struct {
			Name string
			ID   uint32
		}
		Maps []struct {
			Name, Type    string
			Entries, Used uint64
		}
		Outcomes map[string]uint64
	}
	askControl(t, "top", "/v1/datapath", &planes)
	if len(planes) != 1 {
		t.Fatalf("%+v", planes)
	}
	p := planes[0]
	if p.Interface != "edge0" || !p.Attached || p.Mode != "native" || p.Generation != 1 || len(p.Programs) != 2 || p.Programs[1].Name != "xdp_ingress" || p.Programs[1].ID == 0 || p.Outcomes["drop_deny"] == 0 {
		t.Errorf("%+v", p)
	}
	found := 0
	for _, m := range p.Maps {
		if m.Name == "verdicts" && m.Used == 1 && m.Entries == 65536 || m.Name == "verified" && m.Used >= 1 && m.Entries == 262144 {
			found++
		}
	}
	if found != 2 {
		t.Errorf("maps %+v", p.Maps)
	}
	x, err := admin.NewClient(admin.SocketPath("top")).Explain(admin.ExplainRequest{Path: "/", Client: lab.AttackerAddr.String()})
	if err != nil || x.Packets["edge0"].Outcome != "drop_deny" || x.Packets["edge0"].Rule != "deny "+lab.AttackerAddr.String()+"/32" {
		t.Errorf("%+v, %v", x, err)
	}
	x, err = admin.NewClient(admin.SocketPath("top")).Explain(admin.ExplainRequest{Path: "/", Client: lab.ClientAddr.String()})
	if err != nil || x.Verdict == nil || x.Verdict.Step != "thin" || x.Verdict.Reason != "operator" {
		t.Errorf("%+v, %v", x, err)
	}
}

// askControl reads what a gateway says over its control socket.
func askControl(t *testing.T, instance, path string, into any) {
	t.Helper()
	var d net.Dialer
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", admin.SocketPath(instance))
	}}}
	defer c.CloseIdleConnections()
	if err := json.Unmarshal([]byte(bodyOf(t, c, "http://gateway"+path)), into); err != nil {
		t.Fatal(err)
	}
}

func TestTopUsage(t *testing.T) {
	for _, args := range [][]string{{"top", "x"}, {"top", "--interval", "1ms"}, {"top", "--pane", "nosuch"}} {
		if status, _, errs := inProcess(args...); status != 2 || errs == "" {
			t.Errorf("xgw %v: status %d, %q", args, status, errs)
		}
	}
}
