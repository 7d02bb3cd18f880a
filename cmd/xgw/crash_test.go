// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/lab"
)

type hexHash struct{ hash.Hash }

func newHash() hexHash           { return hexHash{sha256.New()} }
func (h hexHash) String() string { return hex.EncodeToString(h.Sum(nil)) }

// workers reads the pids of those that serve out of the metrics.
func (g *running) workers(t *testing.T) map[string]int {
	t.Helper()
	text := g.scrape(t)
	pids := map[string]int{}
	for _, m := range regexp.MustCompile(`xgw_worker_info\{core="[^"]*",pid="(\d+)",worker="(\d+)"\} 1`).FindAllStringSubmatch(text, -1) {
		if strings.Contains(text, fmt.Sprintf(`xgw_worker_up{worker="%s"} 1`, m[2])) {
			pids[m[2]], _ = strconv.Atoi(m[1])
		}
	}
	return pids
}

// A worker that is killed costs its own connections; new ones go to the others,
// and it is back soon.
func TestKilledWorker(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	g := startGateway(t, startHere, "killed", t.TempDir(), gatewayYAML(t.TempDir(), "127.0.0.1:0", upstream(t), "workers: 2\n"))
	pids := g.workers(t)
	if len(pids) != 2 {
		t.Fatalf("workers %v, want 2", pids)
	}
	url := "https://" + g.address + "/"

	// Kept connections, on both workers.
	const kept = 40
	clients := make([]*http.Client, kept)
	for i := range clients {
		clients[i] = client(false)
		clients[i].Transport.(*http.Transport).DialContext = dialOn(i % 2)
		get(t, clients[i], url)
	}
	onZero, onOne := g.connections(t, "0"), g.connections(t, "1")
	if onZero+onOne != kept || onZero == 0 || onOne == 0 {
		t.Fatalf("%d connections on worker 0, %d on worker 1; want %d together and some on each", onZero, onOne, kept)
	}
	victim := pids["0"]
	killed := time.Now()
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}

	// New connections are served at once, also before the worker is back.
	for i := range 40 {
		began := time.Since(killed)
		if err := exchange(client(i%2 == 0), "https://"+g.address, 0, 100, lab.BodyHash(100)); err != nil {
			// The moment between death and its being noticed may cost a connection.
			if began > 5*killGrace {
				t.Errorf("new connection %v after the kill: %v", began, err)
			}
		}
	}
	eventually(t, "the worker is back", func() bool { now := g.workers(t); return len(now) == 2 && now["0"] != victim })
	t.Logf("worker was back in %v", time.Since(killed))
	again := g.workers(t)
	if again["1"] != pids["1"] {
		t.Error("the other worker was replaced too")
	}
	if again["0"] == victim {
		t.Error("the killed worker has the same process")
	}
	if !strings.Contains(g.scrape(t), `xgw_worker_restarts_total{worker="0"} 1`) {
		t.Error("the restart was not counted")
	}
	// Clients of the other worker go on over the connection they had; those of the
	// victim open a new one, and see no error.
	reused := 0
	for _, c := range clients {
		if get(t, c, url) {
			reused++
		}
	}
	if reused != onOne {
		t.Errorf("%d connections outlived the worker, want the %d of the other worker", reused, onOne)
	}
}

// A worker that fails again and again is away for seconds. The connections that wait in its
// socket are served by the other one meanwhile.
func TestFailingWorkersConnections(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	dir := t.TempDir()
	g := startGateway(t, startHere, "failing", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 2\n"))
	back := func(last int) int {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if pid := g.workers(t)["0"]; pid != 0 && pid != last {
				return pid
			}
			if time.Now().After(deadline) {
				t.Fatalf("worker is not back\n%s", g.log)
			}
		}
	}
	pid := back(0)
	for range 7 { // until it is left away for 5 s
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid = back(pid)
	}
	// The other one, which served them before, has to hear of it when the worker is back.
	own := func() {
		eventually(t, "all of 20 connections are on the worker that is back", func() bool {
			was := g.connections(t, "0")
			for range 20 {
				c := client(false)
				c.Transport.(*http.Transport).DialContext = dialOn(0)
				get(t, c, "https://"+g.address+"/")
			}
			return g.connections(t, "0") == was+20
		})
	}
	own()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// A thread that has yet to hear of it may take a connection, which would die with the worker.
	eventually(t, "the worker stands still", func() bool { return stopped(t, pid) })
	const waiting = 10
	served := make(chan error, waiting)
	for range waiting {
		c := client(false)
		c.Transport.(*http.Transport).DialContext = dialOn(0)
		go func() { served <- exchange(c, "https://"+g.address, 0, 100, lab.BodyHash(100)) }()
	}
	time.Sleep(500 * time.Millisecond) // they wait in its socket
	gone := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range waiting {
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	if up := g.workers(t)["0"]; up != 0 && time.Since(gone) < 4*time.Second {
		t.Errorf("worker 0 is up again, as %d: it was too slow to ask for a sibling, or they waited for it\n%s", up, g.log)
	}
	if !strings.Contains(g.log.String(), "its connections are served by another worker meanwhile") {
		t.Errorf("no sibling was asked:\n%s", g.log)
	}
	// When it is back its connections are its own.
	back(pid)
	own()
}

// stopped tells whether all threads of the process are.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// dialOn connects from the CPU: over loopback that one receives the SYN, too.
func dialOn(cpu int) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var before, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return nil, err
		}
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return nil, err
		}
		defer func() { _ = unix.SchedSetaffinity(0, &before) }()
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
}

// connections are those open on the worker.
func (g *running) connections(t *testing.T, worker string) int {
	t.Helper()
	m := regexp.MustCompile(`xgw_connections_active\{worker="` + worker + `"\} (\d+)`).FindStringSubmatch(g.scrape(t))
	if m == nil {
		t.Fatal("no metric of connections")
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// get makes a request and tells whether its reply came over a kept connection.
func get(t *testing.T, c *http.Client, url string) (reused bool) {
	t.Helper()
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Do(request)
	if err != nil {
		t.Error(err)
		return false
	}
	_, _ = io.Copy(io.Discard, r.Body) // or the connection is not kept
	r.Body.Close()
	if r.StatusCode != 200 {
		t.Errorf("status %d", r.StatusCode)
	}
	return reused
}

// Workers have no rights, and keys are not in their reach.
func TestWorkersHaveNoPrivileges(t *testing.T) {
	needRoot(t, "changes the workers' user")
	dir := t.TempDir()
	g := startGateway(t, startHere, "privileges", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), ""))
	for worker, pid := range g.workers(t) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("worker %s lacks %q:\n%s", worker, want, status)
			}
		}
		if strings.Contains(string(status), "Uid:\t0") {
			t.Errorf("worker %s runs as root", worker)
		}
		for _, link := range descriptors(t, pid) {
			if strings.Contains(link, "bpf") || strings.Contains(link, dir) {
				t.Errorf("worker %s holds %s", worker, link)
			}
		}
		affinity, err := exec.Command("taskset", "-p", strconv.Itoa(pid)).Output()
		if err == nil && !regexp.MustCompile(`mask: [1248]0*\n`).Match(affinity) {
			t.Errorf("worker %s: affinity %s", worker, affinity)
		}
	}
}

func descriptors(t *testing.T, pid int) (links []string) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("descriptors of %d: %v", pid, err)
	}
	for _, fd := range fds {
		link, _ := os.Readlink(fd)
		links = append(links, link)
	}
	return links
}

// The supervisor is killed: the kernel plane counts on, workers serve on, and a new
// supervisor takes over without anybody's help.
func TestKilledSupervisor(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwkill")
	dir := t.TempDir()
	ln, err := l.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: lab.NewUpstream()}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	inGateway := func(cmd *exec.Cmd) error { return l.Start(lab.Gateway, cmd) }
	text := gatewayYAML(dir, ":443", "203.0.113.2:8080", "interfaces: [{name: edge0}]\ndeny: [10.66.0.0/24]\n")
	first := startGateway(t, inGateway, "xgwkill", dir, text)
	before := ingress(t, l, "xgwkill", "deny")
	first.kill(t)

	sent, err := l.Flood(context.Background(), lab.Flood{
		Sources: netip.MustParsePrefix("10.66.0.0/24"), Target: netip.AddrPortFrom(lab.GatewayAddr, 9), Count: 500, Rate: 5000,
	})
	if err != nil || sent != 500 {
		t.Fatalf("sent %d: %v", sent, err)
	}
	eventually(t, "500 packets are dropped and counted without supervisor", func() bool { return ingress(t, l, "xgwkill", "deny") >= before+500 })

	first = startGateway(t, inGateway, "xgwkill", dir, text)

	c := client(false)
	c.Transport.(*http.Transport).DialContext = l.DialFrom(lab.Client)
	url := "https://" + lab.GatewayAddr.String() + "/"
	var failures, served atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // new connections and kept ones by turns, all the while
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond): // in an emulated machine the second one wants the CPU, too
			}
			if served.Load()%10 == 0 {
				c.CloseIdleConnections()
			}
			r, err := c.Get(url)
			if err != nil {
				t.Log(err)
				failures.Add(1)
				continue
			}
			_, _ = io.Copy(io.Discard, r.Body) // or the connection is not kept
			r.Body.Close()
			served.Add(1)
		}
	})
	eventually(t, "a client is served", func() bool { return served.Load() >= 20 })
	first.kill(t)

	second := startGateway(t, inGateway, "xgwkill", dir, text)
	was := served.Load()
	eventually(t, "a client is served by the second one", func() bool { return served.Load() >= was+30 })
	close(stop)
	wg.Wait()
	if failures.Load() > 0 {
		t.Errorf("a client: %d requests, %d failures\n%s\n%s", served.Load(), failures.Load(), first.log, second.log)
	}
	get(t, newClientIn(l), url)
	second.stop(t)
	if s := ingressStatus(l, "xgwkill"); s != nil {
		t.Error("still attached after a clean stop, though no operator attached it")
	}
	if hooks := hooksOf(t, l); strings.Contains(hooks, lab.EdgeInterface) {
		t.Errorf("after a clean stop bpftool shows %s", hooks)
	}
}

// hooksOf is what bpftool knows to be attached in the gateway's namespace; "" without a bpftool.
func hooksOf(t *testing.T, l *lab.Lab) string {
	t.Helper()
	bpftool, err := exec.LookPath("bpftool")
	if err != nil {
		t.Log("what is attached is not looked at: needs bpftool")
		return ""
	}
	out, err := (&inNamespace{l, exec.Command(bpftool, "-j", "net", "show")}).Output()
	if err != nil {
		t.Fatalf("bpftool net: %v\n%s", err, out)
	}
	return string(out)
}

func newClientIn(l *lab.Lab) *http.Client {
	c := client(true)
	c.Transport.(*http.Transport).DialContext = l.DialFrom(lab.Client)
	return c
}

func mustLab(t *testing.T, name string) *lab.Lab {
	t.Helper()
	l, err := lab.New(lab.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// ingressStatus runs `xgw status` in the gateway's namespace; nil when it fails.
func ingressStatus(l *lab.Lab, instance string) *interfaceStatus {
	cmd := exec.Command("/proc/self/exe", "--instance", instance, "status", "edge0", "--json")
	out, err := (&inNamespace{l, cmd}).Output()
	if err != nil {
		return nil
	}
	return parseStatus(out)
}

// ingress sums packets received, of the given reasons or of all.
func ingress(t *testing.T, l *lab.Lab, instance string, reasons ...string) (packets uint64) {
	t.Helper()
	s := ingressStatus(l, instance)
	if s == nil {
		t.Fatal("xgw status failed")
	}
	for _, c := range s.Counts {
		if c.Queue != datapath.All && (len(reasons) == 0 || slices.Contains(reasons, c.Reason)) {
			packets += c.Packets
		}
	}
	return packets
}
