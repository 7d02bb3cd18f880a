// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

// The test binary is also the program: the supervisor starts its workers by
// executing itself, and so do these tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-test.") {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		status := run(ctx, os.Args, &env{out: os.Stdout, err: os.Stderr, fault: wantedFault})
		stop()
		os.Exit(status)
	}
	before := remains()
	status := m.Run()
	for _, path := range remains() {
		if !slices.Contains(before, path) {
			fmt.Printf("FAIL: the tests leave %s\n", path)
			status = 1
		}
	}
	os.Exit(status)
}

// remains lists what gateways keep beyond a process: pins and zones.
func remains() (all []string) {
	for _, pattern := range []string{"/sys/fs/bpf/xgw*", "/dev/shm/xgw*"} {
		found, _ := filepath.Glob(pattern) // the patterns are right
		all = append(all, found...)
	}
	return all
}

// wantedFault is the error of the step that the file named in the environment names.
func wantedFault(step string) error {
	if text, err := os.ReadFile(os.Getenv("XGW_TEST_FAULT")); err == nil && string(text) == step {
		return fmt.Errorf("made to fail at %s", step)
	}
	return nil
}

// running is a gateway in processes of its own.
type running struct {
	cmd       *exec.Cmd
	address   string // of the first listener
	listeners []string
	metrics   string
	dir       string
	log       *lockedBuffer
	killed    bool
}

// kill ends the supervisor alone, without a chance to wind up. It does not wait for
// the ends of its pipes, which the workers hold.
func (g *running) kill(t *testing.T) {
	t.Helper()
	g.killed = true
	if err := g.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// gatewayYAML is a configuration with one route to the upstream.
func gatewayYAML(dir, listen, upstream, more string) string {
	return fmt.Sprintf(`listeners:
  - address: %q
    server_names: [localhost, "127.0.0.1", gateway.example]
telemetry: {address: "127.0.0.1:0"}
admin_api: {address: off}
routes:
  - {name: all, path: /, upstream: back}
upstreams:
  - {name: back, servers: [%q]}
log: {access: %s/access.log}
state: %s
%s`, listen, upstream, dir, dir, more)
}

// starter starts a command, in a namespace or not.
type starter func(*exec.Cmd) error

func startHere(cmd *exec.Cmd) error { return cmd.Start() }

// startGateway runs the gateway and waits until it serves.
func startGateway(t *testing.T, start starter, instance, dir, text string, more ...string) *running {
	t.Helper()
	path := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &running{dir: dir, log: &lockedBuffer{}}
	g.cmd = exec.Command("/proc/self/exe", append([]string{"--instance", instance, "run", "-c", path}, more...)...)
	g.cmd.Stderr = g.log
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := start(g.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.stop(t) })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("gateway did not start: %v\n%s", err, g.log)
	}
	go io.Copy(io.Discard, out)
	said, metrics, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "xgw: serving on "), ", metrics on ")
	if !ok {
		t.Fatalf("%q", line)
	}
	g.listeners, g.metrics = strings.Split(said, ", "), metrics
	g.address = g.listeners[0]
	return g
}

// stop ends the gateway in order; it is an error when that takes force.
func (g *running) stop(t *testing.T) {
	t.Helper()
	if g.killed || g.cmd.ProcessState != nil {
		return
	}
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(time.Minute, func() { _ = g.cmd.Process.Kill() })
	defer late.Stop()
	if err := g.cmd.Wait(); err != nil {
		t.Errorf("gateway ended with %v\n%s", err, g.log)
	}
}

func client(h2 bool) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2, MaxIdleConnsPerHost: 16}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// upstream is a real one on loopback.
func upstream(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(lab.NewUpstream())
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func (g *running) scrape(t *testing.T) string {
	t.Helper()
	return bodyOf(t, http.DefaultClient, g.metrics)
}

func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: " + why)
	}
}

// inProcess runs a command line and returns its status and output.
func inProcess(args ...string) (status int, out, errs string) {
	var o, e bytes.Buffer
	status = run(context.Background(), append([]string{"xgw"}, args...), &env{out: &o, err: &e})
	return status, o.String(), e.String()
}
