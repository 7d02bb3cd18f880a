// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/lab"
)

// socketsOf borrows the TCP sockets of another process.
func socketsOf(t *testing.T, pid int) (fds []int) {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skip("needs pidfd_open: ", err)
	}
	defer unix.Close(process)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if what, _ := os.Readlink(link); !strings.HasPrefix(what, "socket:") {
			continue
		}
		n, _ := strconv.Atoi(filepath.Base(link))
		fd, err := unix.PidfdGetfd(process, n, 0)
		if err != nil {
			t.Skip("needs pidfd_getfd: ", err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && kind == unix.IPPROTO_TCP {
			fds = append(fds, fd)
		}
	}
	return fds
}

// Socket options are what the configuration says, on the listening socket and on a client's
// connection; and after a reload those of the new one.
func TestSocketOptions(t *testing.T) {
	needRoot(t, "borrows sockets of a worker")
	dir := t.TempDir()
	text := func(tcp string) string {
		return gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"+tcp)
	}
	g := startGateway(t, startHere, "options", dir, text(""))
	for _, row := range []struct {
		tcp  string
		want map[string]int // of the connection
		open int            // TCP_FASTOPEN of the listener
	}{
		{"", map[string]int{"nodelay": 1, "keepalive": 1, "idle": 15, "user_timeout": 0}, 0},
		{"tcp: {nodelay: false, keepalive: 33s, user_timeout: 44s, fastopen: 16}\n",
			map[string]int{"nodelay": 0, "keepalive": 1, "idle": 33, "user_timeout": 44000}, 16},
		{"tcp: {keepalive: off, fastopen: off}\n", map[string]int{"nodelay": 1, "keepalive": 0, "user_timeout": 0}, 0},
	} {
		rewrite(t, filepath.Join(dir, "gateway.yaml"), text(row.tcp))
		if status, out, errs := inProcess("--instance", "options", "ctl", "reload"); status != 0 {
			t.Fatal(out, errs)
		}
		c, err := tls.Dial("tcp", g.address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		local := c.LocalAddr().String()
		found := false
		for _, fd := range socketsOf(t, g.workers(t)["0"]) {
			option := func(level, name int) int {
				n, err := unix.GetsockoptInt(fd, level, name)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			if option(unix.SOL_SOCKET, unix.SO_ACCEPTCONN) == 1 {
				if n := option(unix.IPPROTO_TCP, unix.TCP_FASTOPEN); n != row.open {
					t.Errorf("%q: TCP_FASTOPEN is %d, want %d", row.tcp, n, row.open)
				}
				continue
			}
			peer, _ := unix.Getpeername(fd)
			if in, ok := peer.(*unix.SockaddrInet4); !ok || !strings.HasSuffix(local, fmt.Sprintf(":%d", in.Port)) {
				continue
			}
			found = true
			got := map[string]int{
				"nodelay": option(unix.IPPROTO_TCP, unix.TCP_NODELAY), "keepalive": option(unix.SOL_SOCKET, unix.SO_KEEPALIVE),
				"idle": option(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), "user_timeout": option(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT),
			}
			for name, want := range row.want {
				if got[name] != want {
					t.Errorf("%q: %s is %d, want %d", row.tcp, name, got[name], want)
				}
			}
		}
		if !found {
			t.Errorf("%q: the connection is not among the worker's sockets", row.tcp)
		}
		c.Close()
	}
	// Of descriptors a worker has what is configured, or what the hard limit allows.
	text2, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", g.workers(t)["0"]))
	if err != nil {
		t.Fatal(err)
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(strings.TrimPrefix(grep(string(text2), "Max open files"), "Max open files"))
	soft, _ := strconv.ParseUint(fields[0], 10, 64)
	if lacks := strings.Contains(g.log.String(), "worker_rlimit_nofile is 65535, and the hard limit is"); soft < 65535 && (soft != own.Max || !lacks) {
		t.Errorf("%d open files are allowed, %d to this process; said: %v", soft, own.Max, lacks)
	}
}

// With nopush a long reply is sent in whole segments, and its end at once.
func TestNoPush(t *testing.T) {
	dir := t.TempDir()
	g := startGateway(t, startHere, "nopush", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\ntcp: {nopush: true}\n"))
	c := client(false)
	fastest := time.Hour
	for i := range 20 {
		began := time.Now()
		r, err := c.Get(fmt.Sprintf("https://%s/%s/%d", g.address, []string{"bytes", "chunked"}[i%2], 100_001))
		if err != nil {
			t.Fatal(err)
		}
		if n := drained(t, r); n != 100_001 {
			t.Errorf("%d bytes", n)
		}
		fastest = min(fastest, time.Since(began))
	}
	if fastest > 150*time.Millisecond {
		t.Errorf("the fastest took %v: the kernel keeps for 200 ms what a cork forgets", fastest)
	}
}

func drained(t *testing.T, r *http.Response) (n int) {
	t.Helper()
	defer r.Body.Close()
	b := make([]byte, 4096)
	for {
		m, err := r.Body.Read(b)
		n += m
		if err != nil {
			return n
		}
	}
}

// Where the kernel says which queue a NAPI instance polls, the access record has the receive
// queue of its connection; and always when it was accepted.
func TestQueueInTheRecord(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwqueue")
	ln, err := l.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: lab.NewUpstream()}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	dir := t.TempDir()
	before := time.Now()
	g := startGateway(t, inHost(l, lab.Gateway), "queue", dir, gatewayYAML(dir, ":443", "203.0.113.2:8080", "workers: 1\ninterfaces: [{name: edge0, mode: native}]\n"))
	c := newClientIn(l)
	for range 3 {
		get(t, c, "https://"+lab.GatewayAddr.String()+"/")
		time.Sleep(300 * time.Millisecond)
	}
	g.stop(t)
	text, err := os.ReadFile(filepath.Join(dir, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m) edge=(\d+\.\d{3}) queue=(\S+) key=-$`).FindAllStringSubmatch(string(text), -1)
	if len(m) != 3 {
		t.Fatalf("%d lines with edge and queue:\n%s", len(m), text)
	}
	edge, _ := strconv.ParseFloat(m[0][1], 64)
	if at := time.UnixMilli(int64(edge * 1000)); at.Before(before.Add(-time.Millisecond)) || at.After(time.Now()) {
		t.Errorf("accepted at %v, begun at %v", at, before)
	}
	for _, other := range m[1:] {
		if other[1] != m[0][1] || other[2] != m[0][2] {
			t.Errorf("requests of one connection have edge %s and %s, queue %s and %s", m[0][1], other[1], m[0][2], other[2])
		}
	}
	t.Logf("queue %s", m[0][2])
	if m[0][2] == "-" {
		t.Skip("the kernel does not tell the queues of this driver")
	}
	if n, err := strconv.Atoi(m[0][2]); err != nil || n < 0 || n > 1024 {
		t.Errorf("queue %q", m[0][2])
	}
}
