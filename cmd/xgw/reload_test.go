// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/lab"
)

// named is an upstream that answers with its name.
func named(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, name)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func bodyOf(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A thousand reloads under load: no request fails, each new configuration holds from the
// moment its reload is done, and a file with a fault changes nothing.
func TestReloadUnderLoad(t *testing.T) {
	reloads := 1000
	if testing.Short() {
		reloads = 100
	}
	const instance = "reload"
	dir := t.TempDir()
	one, two := named(t, "one"), named(t, "two")
	// Beside the upstream, something else changes each time.
	others := []string{
		"", "tcp: {user_timeout: 30s, keepalive: 20s}\n", "timeouts: {header: 9s, min_rate: 0, drain: 1s}\n",
		"limits: {header_fields: 90, body_bytes: 1m}\nworker_connections: 1000\n", "overload_delay: off\n",
		"client_address: {trusted: [192.0.2.1], header: X-Forwarded-For}\n",
	}
	text := func(upstream string, i int) string {
		return gatewayYAML(dir, "127.0.0.1:0", upstream, "workers: 2\npin: false\n"+others[i%len(others)])
	}
	g := startGateway(t, startHere, instance, dir, text(one, 0))
	// The listener has a port by now, which a reload does not change.
	path := filepath.Join(dir, "gateway.yaml")
	ctl := admin.NewClient(admin.SocketPath(instance))

	var served, failed atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	t.Cleanup(func() { cancel(); load.Wait() })
	for i := range 4 {
		load.Go(func() {
			c := client(i%2 == 0)
			for ctx.Err() == nil {
				r, err := c.Post("https://"+g.address+"/", "text/plain", strings.NewReader("hello"))
				if err != nil {
					t.Error(err)
					failed.Add(1)
					continue
				}
				body, err := io.ReadAll(r.Body)
				r.Body.Close()
				if err != nil || r.StatusCode != http.StatusOK || string(body) != "one" && string(body) != "two" {
					t.Errorf("status %d, %q, %v", r.StatusCode, body, err)
					failed.Add(1)
				}
				served.Add(1)
				if failed.Load() > 10 {
					return
				}
			}
		})
	}
	probe := client(true)
	before := time.Now()
	early := 0 // memory of the workers, bytes, after a tenth of it
	for i := range reloads {
		want, address := "one", one
		if i%2 == 0 {
			want, address = "two", two
		}
		rewrite(t, path, text(address, i))
		r, err := ctl.Reload(0)
		if err != nil {
			t.Fatal(err)
		}
		if r.Generation != uint64(i+2) {
			t.Fatalf("reload %d gave generation %d", i, r.Generation)
		}
		if got := bodyOf(t, probe, "https://"+g.address+"/"); got != want {
			t.Fatalf("after reload %d the answer is from %q, want %q", i, got, want)
		}
		if i == reloads/10 {
			early = g.memory(t)
		}
		if i%100 == 50 {
			rewrite(t, path, text(address, i)+"nonsense: 1\n")
			if _, err := ctl.Reload(0); err == nil || !strings.Contains(err.Error(), "gateway.yaml:") {
				t.Fatalf("a file with a fault: %v", err)
			}
			if got := bodyOf(t, probe, "https://"+g.address+"/"); got != want {
				t.Fatalf("after a refused reload the answer is from %q, want %q", got, want)
			}
		}
	}
	took := time.Since(before)
	late := g.memory(t)
	cancel()
	load.Wait()
	// Snapshots that nobody uses any more are given up.
	t.Logf("the workers' memory: %d KiB after a tenth of the reloads, %d KiB in the end", early>>10, late>>10)
	if late > early+32<<20 {
		t.Errorf("the workers grew from %d to %d KiB", early>>10, late>>10)
	}
	t.Logf("%d reloads in %s, %d requests meanwhile, %d failed", reloads, took.Round(time.Millisecond), served.Load(), failed.Load())
	if served.Load() < int64(reloads) {
		t.Errorf("%d requests during %d reloads: that was no load", served.Load(), reloads)
	}
}

// memory is what all workers have of their own, in bytes.
func (g *running) memory(t *testing.T) (sum int) {
	t.Helper()
	for _, pid := range g.workers(t) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		var kib int
		if _, err := fmt.Sscanf(grep(string(status), "RssAnon:"), "RssAnon: %d kB", &kib); err != nil {
			t.Fatal(err)
		}
		sum += kib << 10
	}
	return sum
}

// A gateway that stops lets what is under way come to its end, and WebSockets live for the
// time that is configured: not less, and not much longer.
func TestDrain(t *testing.T) {
	came, stopped := make(chan struct{}, 2), make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			came <- struct{}{}
			<-stopped
			time.Sleep(250 * time.Millisecond) // the worker hears of it
			fmt.Fprint(w, "late")
			return
		}
		c, b, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		_, _ = io.Copy(c, b)
	}))
	t.Cleanup(up.Close)
	dir := t.TempDir()
	const drain = 4 * time.Second
	g := startGateway(t, startHere, "drain", dir, strings.Replace(gatewayYAML(dir, "127.0.0.1:0", up.Listener.Addr().String(),
		"workers: 1\npin: false\ntimeouts: {drain: 4s}\n"), "upstream: back}", "upstream: back, websocket: 1m}", 1))
	c, err := tls.Dial("tcp", g.address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	r := bufio.NewReader(c)
	if reply, err := http.ReadResponse(r, nil); err != nil || reply.StatusCode != 101 {
		t.Fatal(reply, err)
	}
	say := func() error {
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		_, err := io.ReadFull(r, make([]byte, 5))
		return err
	}
	if err := say(); err != nil {
		t.Fatal(err)
	}
	late := make(chan error, 2)
	for _, h2 := range []bool{false, true} {
		go func() {
			r, err := client(h2).Get("https://" + g.address + "/")
			if err == nil {
				var b []byte
				b, err = io.ReadAll(r.Body)
				if string(b) != "late" || !h2 && !r.Close {
					err = fmt.Errorf("%q, close %v, %v", b, r.Close, err)
				}
			}
			late <- err
		}()
	}
	for range 2 {
		<-came
	}
	began := time.Now()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the signal is heard", func() bool { return strings.Contains(g.log.String(), "stopping: workers finish") })
	close(stopped)
	for range 2 {
		if err := <-late; err != nil {
			t.Errorf("under way when the gateway was stopped: %v", err)
		}
	}
	if err := say(); err != nil {
		t.Errorf("the WebSocket ended after %v: %v", time.Since(began), err)
	}
	for say() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	if lived := time.Since(began); lived < drain*9/10 || lived > 5*drain {
		t.Errorf("the WebSocket lived for %v, want %v", lived, drain)
	}
	g.stop(t)
}

// SIGHUP reloads, and what a start settles is refused by name.
func TestReloadByHand(t *testing.T) {
	const instance = "hup"
	dir := t.TempDir()
	one, two := named(t, "one"), named(t, "two")
	base := func(upstream string) string {
		return gatewayYAML(dir, "127.0.0.1:0", upstream, "workers: 1\npin: false\n")
	}
	g := startGateway(t, startHere, instance, dir, base(one))
	path := filepath.Join(dir, "gateway.yaml")
	c := client(false)
	url := "https://" + g.address + "/"
	ctl := func(args ...string) (int, string) {
		status, out, errs := inProcess(append([]string{"--instance", instance, "ctl"}, args...)...)
		return status, out + errs
	}
	rewrite(t, path, base(two))
	if got := bodyOf(t, c, url); got != "one" {
		t.Errorf("before the reload: %q", got)
	}
	if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "SIGHUP reloads", func() bool { return bodyOf(t, c, url) == "two" })
	if got := bodyOf(t, c, url); got != "two" {
		t.Errorf("after SIGHUP: %q", got)
	}
	for _, row := range []struct {
		name, text string
		status     int
		says       string
	}{
		{"fault", strings.Replace(base(one), "routes:", "rotues:", 1), 2, "gateway.yaml:6:1: rotues: unknown key"},
		{"workers", strings.Replace(base(one), "workers: 1", "workers: 2", 1), 2, "workers"},
		{"listener", strings.Replace(base(one), "listeners:\n", "listeners:\n  - {address: 192.0.2.1:1}\n", 1), 1, "192.0.2.1:1"},
		{"certificate", strings.Replace(base(one), "    server_names", "    certificate: /nowhere.pem\n    key: /nowhere.key\n    server_names", 1), 1, "/nowhere.pem"},
	} {
		rewrite(t, path, row.text)
		if status, said := ctl("reload"); status != row.status || !strings.Contains(said, row.says) {
			t.Errorf("%s: status %d, %q; want %d, %q", row.name, status, said, row.status, row.says)
		}
		if got := bodyOf(t, c, url); got != "two" {
			t.Errorf("%s: after a refused reload the answer is from %q", row.name, got)
		}
	}
	if status, said := ctl("confirm"); status != 1 || !strings.Contains(said, "nothing waits") {
		t.Errorf("confirm of nothing: %d, %q", status, said)
	}
	// Unconfirmed it goes back, and nothing else is taken meanwhile.
	rewrite(t, path, base(one))
	if status, said := ctl("reload", "--confirm", "5s"); status != 0 || !strings.Contains(said, "gateway-ctl confirm") {
		t.Errorf("reload --confirm: %d, %q", status, said)
	}
	if got := bodyOf(t, c, url); got != "one" {
		t.Errorf("while it waits: %q", got)
	}
	if status, said := ctl("reload"); status != 1 || !strings.Contains(said, "waits to be confirmed") {
		t.Errorf("reload while one waits: %d, %q", status, said)
	}
	eventually(t, "what was not confirmed goes back", func() bool { return bodyOf(t, c, url) == "two" })
	if status, said := ctl("reload", "--confirm", "4s"); status != 0 {
		t.Errorf("reload --confirm: %d, %q", status, said)
	}
	if status, said := ctl("confirm"); status != 0 {
		t.Errorf("confirm: %d, %q", status, said)
	}
	time.Sleep(5500 * time.Millisecond)
	if got := bodyOf(t, c, url); got != "one" {
		t.Errorf("it was confirmed, and the answer is from %q", got)
	}
	g.stop(t)
	if status, said := ctl("reload"); status != 1 || !strings.Contains(said, "no gateway runs there") {
		t.Errorf("reload of none: %d, %q", status, said)
	}
}

// Both planes change over together, go back together, and buckets and connections live on.
func TestReloadOfBothPlanes(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwreload")
	const instance = "reload2"
	dir := t.TempDir()
	text := func(rules string) string {
		return gatewayYAML(dir, ":443", "203.0.113.2:8080", "workers: 1\ninterfaces: [{name: edge0, mode: native}]\n"+rules)
	}
	startGateway(t, inHost(l, lab.Gateway), instance, dir, text(""))
	path := filepath.Join(dir, "gateway.yaml")
	ctl := func(args ...string) string {
		return mustXGW(t, l, append([]string{"--instance", instance, "ctl"}, args...)...)
	}
	denied := func() bool {
		out, err := xgwIn(t, l, "--instance", instance, "explain", "edge0", "--from", "192.0.2.7", "--to", "443")
		if err != nil {
			t.Fatal(err, out)
		}
		return strings.Contains(out, "drop_deny")
	}
	if denied() {
		t.Error("denied before there is a rule")
	}
	rewrite(t, path, text("deny: [192.0.2.0/24]\n"))
	ctl("reload", "--confirm", "5s")
	if !denied() {
		t.Error("not denied after the reload")
	}
	eventually(t, "what was not confirmed goes back", func() bool { return !denied() })
	eventually(t, "the supervisor has noticed", func() bool {
		_, err := xgwIn(t, l, "--instance", instance, "ctl", "reload", "--confirm", "5s")
		return err == nil
	})
	mustXGW(t, l, "--instance", instance, "confirm", "edge0") // the interface's own command will do
	time.Sleep(6500 * time.Millisecond)
	if !denied() {
		t.Error("not denied, though it was confirmed")
	}
	ctl("reload")
	// Broken rules leave both planes alone.
	rewrite(t, path, text("packet_limits: [{name: a, key: source, count: syns, rate: 0}]\n"))
	if out, err := xgwIn(t, l, "--instance", instance, "ctl", "reload"); err == nil || !strings.Contains(out, "gateway.yaml:") {
		t.Errorf("%v, %s", err, out)
	}
	if !denied() {
		t.Error("a refused reload took the rules away")
	}
}
