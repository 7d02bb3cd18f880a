// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/doctor"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/lab"
	"github.com/xgw-project/xgw/pkg/mend"
	"github.com/xgw-project/xgw/pkg/zone"
)

// ward is a gateway in a lab, for the doctor to look at: its upstreams are one that can be
// stopped, and one that takes 600 ms, behind routes that wait 100 ms or allow one request.
type ward struct {
	*lab.Lab
	t        *testing.T
	g        *running
	text     string // of the configuration
	client   *http.Client
	server   *http.Server
	instance string
}

func newWard(t *testing.T, more string) *ward {
	w := &ward{Lab: mustLab(t, "xgwward"), t: t, instance: "ward"}
	w.start()
	slow := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(600 * time.Millisecond):
		case <-r.Context().Done():
		}
	})}
	ln, err := w.Listen(lab.Upstream, "tcp", "203.0.113.2:8082")
	if err != nil {
		t.Fatal(err)
	}
	go slow.Serve(ln)
	t.Cleanup(func() { slow.Close() })
	dir := t.TempDir()
	logs := filepath.Join(dir, "logs")
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", logs, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(logs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w.text = gatewayYAML(dir, ":443", "203.0.113.2:8081", "workers: 1\nworker_connections: 64\ninterfaces: [{name: edge0, mode: native}]\n"+more)
	w.text = strings.Replace(w.text, dir+"/access.log", logs+"/access.log", 1)
	w.text = strings.Replace(w.text, "routes:\n", "routes:\n  - {name: late, path: /late, upstream: late}\n  - {name: single, path: /single, upstream: single}\n", 1)
	w.text = strings.Replace(w.text, "upstreams:\n", `upstreams:
  - {name: late, servers: ["203.0.113.2:8082"], header_timeout: 100ms, retries: 0, max_fails: 0}
  - {name: single, servers: ["203.0.113.2:8082"], max_connections: 1, max_fails: 0}
`, 1)
	w.text = strings.Replace(w.text, "name: back,", "name: back, max_fails: 0,", 1)
	w.g = startGateway(t, inHost(w.Lab, lab.Gateway), w.instance, dir, w.text)
	w.client = client(false)
	w.client.Transport.(*http.Transport).DialContext = w.DialFrom(lab.Client)
	return w
}

// start starts the upstream.
func (w *ward) start() {
	w.t.Helper()
	ln, err := w.Listen(lab.Upstream, "tcp", "203.0.113.2:8081")
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = &http.Server{Handler: lab.NewUpstream()}
	go w.server.Serve(ln)
	w.t.Cleanup(func() { w.server.Close() })
}

// xgw runs a command in the gateway's namespace.
func (w *ward) xgw(words ...string) (status int, out, errs string) {
	w.t.Helper()
	var o, e bytes.Buffer
	cmd := exec.Command("/proc/self/exe", append([]string{"--instance", w.instance}, words...)...)
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := w.Start(lab.Gateway, cmd); err != nil {
		w.t.Fatal(err)
	}
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// must runs a command that must not fail.
func (w *ward) must(words ...string) string {
	w.t.Helper()
	status, out, errs := w.xgw(words...)
	if status != 0 {
		w.t.Fatalf("xgw %v: status %d\n%s%s", words, status, out, errs)
	}
	return out
}

// requests go to the path, several at once, until the end of what is returned.
func (w *ward) requests(path string) (stop func()) {
	done, all := make(chan struct{}), sync.WaitGroup{}
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
				}
				if r, err := w.client.Get("https://198.51.100.2" + path); err == nil {
					r.Body.Close()
				}
			}
		})
	}
	return func() { close(done); all.Wait() }
}

// look is what the doctor says of the interface.
func (w *ward) look(name string) *doctor.Report {
	w.t.Helper()
	status, out, errs := w.xgw("doctor", name, "--json", "--interval", "300ms")
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		w.t.Fatalf("%v\n%s%s", err, out, errs)
	}
	if bad := r.Worst() == doctor.Error; bad != (status == 1) {
		w.t.Errorf("status %d, worst finding %q", status, r.Worst())
	}
	return &r
}

// setting reads or, with a value, writes a sysctl of the gateway's namespace.
func (w *ward) setting(name string, value ...string) (was string) {
	w.t.Helper()
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	err := w.In(lab.Gateway, func() error {
		text, err := os.ReadFile(path)
		was = strings.Join(strings.Fields(string(text)), " ")
		if err == nil && len(value) > 0 {
			err = os.WriteFile(path, []byte(value[0]), 0)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return was
}

// ip runs the command of that name in a host.
func (w *ward) ip(host string, words ...string) {
	w.t.Helper()
	cmd := exec.Command("ip", words...)
	if err := w.Start(host, cmd); err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("ip %v: %v", words, err)
	}
}

// fault is one thing that is made wrong, and what the doctor must say first.
type fault struct {
	name, nic     string
	check, object string
	induce        func() (heal func())
}

// sysctlFault sets one of the namespace's own.
func (w *ward) sysctlFault(name, value string) fault {
	return fault{name + " " + value, lab.EdgeInterface, "sysctls", name, func() func() {
		was := w.setting(name, value)
		return func() { w.setting(name, was) }
	}}
}

// Faults that namespaces can have, each induced on a running gateway. What a veth has not
// (rings, interrupts, cables) is in the fixtures of pkg/doctor.
func (w *ward) faults() []fault {
	attach := func(words ...string) func() func() {
		return func() func() {
			w.must(append([]string{"attach", "back0"}, words...)...)
			return func() { w.must("detach", "back0") }
		}
	}
	path := filepath.Join(w.g.dir, "gateway.yaml")
	return []fault{
		w.sysctlFault("net.core.somaxconn", "16"),
		w.sysctlFault("net.ipv4.tcp_syncookies", "0"),
		w.sysctlFault("net.ipv4.ip_local_port_range", "40000 40999"),
		{"upstream stopped", lab.EdgeInterface, "upstreams", "upstream back", func() func() {
			w.server.Close()
			stop := w.requests("/")
			return func() { stop(); w.start() }
		}},
		{"upstream slow", lab.EdgeInterface, "upstreams", "upstream late", func() func() { return w.requests("/late") }},
		{"upstream saturated", lab.EdgeInterface, "upstreams", "upstream single", func() func() { return w.requests("/single") }},
		{"log disk full", lab.EdgeInterface, "log-disk", "access.log", func() func() {
			full := filepath.Join(w.g.dir, "logs", "full")
			_ = os.WriteFile(full, make([]byte, 8<<20), 0o600) // as far as it goes
			return func() { os.Remove(full) }
		}},
		{"certificate at its end", lab.EdgeInterface, "certificates", "made.crt", func() func() {
			was := writeCertificate(w.t, filepath.Join(w.g.dir, "made"), 12*time.Hour)
			return was
		}},
		{"configuration with a fault", lab.EdgeInterface, "configuration", path, func() func() {
			rewrite(w.t, path, w.text+"upstrem: 5\n")
			return func() {
				rewrite(w.t, path, w.text)
				w.must("ctl", "reload")
			}
		}},
		{"generic mode", "back0", "xdp-mode", "back0", attach("--mode", "generic")},
		{"attach not confirmed", "back0", "xdp-mode", "back0", func() func() {
			heal := attach("--confirm", "1s")()
			w.eventually("everything passes", func() bool { return strings.Contains(w.must("status", "back0", "--json"), `"expired":true`) })
			return heal
		}},
		{"no link", "back0", "link", "back0", func() func() {
			w.ip(lab.Upstream, "link", "set", "dev", "net0", "down")
			return func() { w.ip(lab.Upstream, "link", "set", "dev", "net0", "up") }
		}},
		{"supervisor killed", lab.EdgeInterface, "supervisor", "supervisor", func() func() {
			w.g.kill(w.t)
			return func() { // another one takes over what this one left, and leaves nothing
				w.g = startGateway(w.t, inHost(w.Lab, lab.Gateway), w.instance, w.t.TempDir(), w.text)
			}
		}},
	}
}

func (w *ward) eventually(what string, holds func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("not within 20 s: " + what)
		}
	}
}

// writeCertificate puts a self-signed pair in the place of another one, and returns what puts
// that back.
func writeCertificate(t *testing.T, base string, left time.Duration) (restore func()) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(left), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	was := map[string][]byte{}
	for path, block := range map[string]*pem.Block{base + ".crt": {Type: "CERTIFICATE", Bytes: der}, base + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if was[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, string(pem.EncodeToMemory(block)))
	}
	return func() {
		for path, text := range was {
			rewrite(t, path, string(text))
		}
	}
}

// Each fault is the doctor's first finding while it is there. What else is wrong with the
// machine that the test runs on must not hide it; a noisy moment may, so there are three tries.
func TestInducedFaults(t *testing.T) {
	needRoot(t, "makes a lab")
	w := newWard(t, "")
	for _, f := range w.faults() {
		t.Run(f.name, func(t *testing.T) {
			heal := f.induce()
			defer heal()
			var r *doctor.Report
			for range 3 {
				r = w.look(f.nic)
				if x := r.Findings; len(x) > 0 && x[0].Severity == doctor.Error && x[0].Check == f.check && strings.Contains(x[0].Object, f.object) {
					return
				}
			}
			t.Errorf("want %s of %s first; got\n%s", f.check, f.object, r.WriteText())
		})
	}
}

// The command fails while an error is left: one that nothing mends, or whose mend was not wanted.
func TestDoctorLeavesErrors(t *testing.T) {
	needRoot(t, "notes changes in /run/xgw")
	path := filepath.Join(t.TempDir(), "setting")
	rewrite(t, path, "1\n")
	mended := doctor.Finding{Severity: doctor.Error, Fix: &mend.Change{Kind: mend.File, Object: path, Value: "2"}}
	for _, row := range []struct {
		name, answer string
		fix, yes     bool
		more         []doctor.Finding
		left         bool
		setting      string
	}{
		{"not asked for", "", false, false, nil, true, "1"},
		{"no", "n\n", true, false, nil, true, "1"},
		{"nobody answers", "", true, false, nil, true, "1"},
		{"yes", "y\n", true, false, nil, false, "2"},
		{"--yes", "", true, true, nil, false, "2"},
		{"one that nothing mends", "y\n", true, false, []doctor.Finding{{Severity: doctor.Error}}, true, "2"},
		{"a warning", "y\n", true, false, []doctor.Finding{{Severity: doctor.Warning}}, false, "2"},
	} {
		var out strings.Builder
		e := &env{out: &out, err: &out, in: strings.NewReader(row.answer), instance: "leaves"}
		err := treat(e, &doctor.Report{Findings: append(row.more, mended)}, row.fix, row.yes)
		text, _ := os.ReadFile(path)
		if got := strings.TrimSpace(string(text)); (err != nil) != row.left || got != row.setting {
			t.Errorf("%s: %v, and the setting is %s, want %s\n%s", row.name, err, got, row.setting, out.String())
		}
		if _, err := mend.Here("leaves").Undo(byDoctor); err != nil {
			t.Error(err)
		}
	}
}

// What can be undone is fixed after a question, and undone: a sysctl of the namespace, and the
// open files of a worker.
func TestDoctorFixes(t *testing.T) {
	needRoot(t, "makes a lab")
	w := newWard(t, "worker_user: root\n") // whose limits may be changed without CAP_SYS_RESOURCE
	if r := w.look(lab.EdgeInterface); r.Worst() == doctor.Error && r.Findings[0].Check == "sysctls" {
		t.Fatalf("wrong from the start: %s", r.WriteText())
	}
	was := w.setting("net.core.somaxconn", "16")
	z, err := zone.Open(gateway.ZonePath(w.instance))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	pid := int(z.Worker(0).LoadGauge(zone.GaugePID))
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 12, Max: limit.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	status, out, _ := w.xgw("doctor", lab.EdgeInterface, "--interval", "100ms", "--fix") // nobody answers
	if now := w.setting("net.core.somaxconn"); status != 0 && status != 1 || now != "16" || !strings.Contains(out, "[y/N]") || !strings.Contains(out, "nothing is changed") {
		t.Errorf("without an answer: status %d, somaxconn %s\n%s", status, now, out)
	}
	_, out, errs := w.xgw("doctor", lab.EdgeInterface, "--interval", "100ms", "--fix", "--yes")
	var now unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &now); err != nil {
		t.Fatal(err)
	}
	if got := w.setting("net.core.somaxconn"); got != "4096" || now.Cur <= few.Cur {
		t.Errorf("somaxconn %s, %d open files\n%s%s", got, now.Cur, out, errs)
	}
	out = w.must("doctor", "--undo")
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &now); err != nil {
		t.Fatal(err)
	}
	if got := w.setting("net.core.somaxconn"); got != "16" || now.Cur != few.Cur {
		t.Errorf("undone: somaxconn %s, %d open files\n%s", got, now.Cur, out)
	}
	if out := w.must("doctor", "--undo"); !strings.Contains(out, "nothing is to be undone") {
		t.Error(out)
	}
	w.setting("net.core.somaxconn", was)
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	// The admin API says the same as the command; its interface is the attached one.
	w.setting("net.ipv4.tcp_syncookies", "0")
	defer w.setting("net.ipv4.tcp_syncookies", "1")
	dial := func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", admin.SocketPath(w.instance))
	}
	c := http.Client{Transport: &http.Transport{DialContext: dial}}
	answer, err := c.Get("http://gateway/v1/doctor")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var r doctor.Report
	if err := json.NewDecoder(answer.Body).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool {
		return f.Object == "net.ipv4.tcp_syncookies" && f.Severity == doctor.Error
	}) || r.Blind["link"] != "" {
		t.Errorf("%s", r.WriteText())
	}
}
