// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a worker asks the kernel for while it serves: nothing that would need a right, and
// nothing that its filter refuses.
func TestWorkersCallNothingPrivileged(t *testing.T) {
	needRoot(t, "traces another user's process")
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	dir := t.TempDir()
	g := startGateway(t, startHere, "confined", dir, gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\n"))
	log := filepath.Join(dir, "strace")
	for _, pid := range g.workers(t) {
		stop := trace(t, pid, log)
		var clients sync.WaitGroup
		for _, http2 := range []bool{false, true} {
			for range 4 {
				clients.Go(func() {
					for range 20 {
						c := client(http2)
						for range 5 {
							get(t, c, "https://"+g.address+"/")
						}
						c.CloseIdleConnections()
					}
				})
			}
		}
		clients.Wait()
		stop()
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for line := range strings.Lines(string(text)) {
		calls++
		_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, _, _ := strings.Cut(strings.TrimSpace(call), "(")
		switch name {
		case "bpf", "execve", "execveat", "ptrace", "mount", "setuid", "setns", "unshare", "init_module", "finit_module", "keyctl":
			t.Errorf("a worker calls %s", call)
		}
		if strings.Contains(line, "EPERM") || strings.Contains(line, "EACCES") {
			t.Errorf("a worker is refused what it needs: %s", call)
		}
	}
	if calls < 1000 {
		t.Errorf("only %d calls were seen:\n%s", calls, text)
	}
}

// trace writes the calls of the process and its threads into a file until stop is called.
func trace(t *testing.T, pid int, file string) (stop func()) {
	t.Helper()
	cmd := exec.Command("strace", "-f", "-p", strconv.Itoa(pid), "-o", file)
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
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
}
