// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

// System calls that fail under a worker: the kernel is short of something, or somebody went
// away. At most the exchange that was hit may fail, the worker lives on, and afterwards
// all is well.
func TestSystemCallFaults(t *testing.T) {
	needRoot(t, "traces a worker")
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	const requests = 300
	dir := t.TempDir()
	// An upstream that closes each connection, so that there is a connect for each request.
	up := httptest.NewUnstartedServer(lab.NewUpstream())
	up.Config.SetKeepAlivesEnabled(false)
	up.Start()
	t.Cleanup(up.Close)
	g := startGateway(t, startHere, "faults", dir, gatewayYAML(dir, "127.0.0.1:0", up.Listener.Addr().String(), "workers: 1\npin: false\n"))
	url := "https://" + g.address + "/bytes/1000"
	pid := g.workers(t)["0"]
	for _, row := range []struct {
		call, fault, when string
		lost              bool // each costs its own exchange
	}{
		{"accept4", "EMFILE", "3+7", false},
		{"accept4", "ENOMEM", "3+7", false},
		{"accept4", "ENOBUFS", "3+7", false},
		{"accept4", "ECONNABORTED", "3+7", false},
		{"accept4", "EPERM", "3+7", false},
		{"connect", "EADDRNOTAVAIL", "40", true},
		{"connect", "ECONNREFUSED", "40", true},
		{"epoll_ctl", "ENOSPC", "20", true},
		{"epoll_ctl", "ENOMEM", "20", true},
		{"read", "EINTR", "3+5", false},
		{"recvfrom", "EINTR", "3+5", false},
		{"sendto", "EINTR", "3+5", false},
		{"sendto", "ENOBUFS", "40", true}, // sendmsg is not called
		{"epoll_pwait", "EINTR", "3+5", false},
	} {
		t.Run(row.call+" "+row.fault, func(t *testing.T) {
			done := injectFaults(t, pid, row.call, row.fault, row.when)
			failed := 0
			for range requests {
				if err := fetchOnce(url); err != nil {
					failed++
					t.Log(err)
				}
			}
			injected := done()
			if injected == 0 {
				t.Fatal("nothing was injected: the worker makes no such call any more")
			}
			if failed > 0 && !row.lost || failed > injected {
				t.Errorf("%d of %d requests failed, %d calls were made to", failed, requests, injected)
			}
			for range 20 {
				if err := fetchOnce(url); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			}
			if now := g.workers(t)["0"]; now != pid {
				t.Fatalf("worker %d was replaced by %d: %s", pid, now, g.log)
			}
		})
	}
}

// fetchOnce makes one request over a connection of its own.
func fetchOnce(url string) error {
	c := client(false)
	c.Timeout = 5 * time.Second
	defer c.CloseIdleConnections()
	r, err := c.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if n, err := io.Copy(io.Discard, r.Body); err != nil || n != 1000 || r.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d, %d bytes, %v", r.StatusCode, n, err)
	}
	return nil
}

// injectFaults has strace fail the process's calls; what it returns ends that, and says how
// many were made to fail.
func injectFaults(t *testing.T, pid int, call, fault, when string) (done func() int) {
	t.Helper()
	log := t.TempDir() + "/strace"
	cmd := exec.Command("strace", "-f", "-p", strconv.Itoa(pid), "-o", log, "-e", "trace="+call,
		"-e", "inject="+call+":error="+fault+":when="+when)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	attached := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(said).ReadString('\n')
		attached <- line
		_, _ = io.Copy(io.Discard, said)
	}()
	select {
	case line := <-attached:
		if !strings.Contains(line, "attached") {
			t.Fatalf("strace: %s", line)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("strace did not attach")
	}
	time.Sleep(100 * time.Millisecond) // until it has all threads
	return func() int {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "(INJECTED)")
	}
}
