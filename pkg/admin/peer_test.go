// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// askAs asks over the socket as another user; 0: it could not be opened.
func askAs(t *testing.T, path string, uid, gid int, request string) (status int) {
	t.Helper()
	done := make(chan int)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its rights
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				t.Errorf("become user %d: %v", uid, errno)
			}
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err == nil {
			fmt.Fprint(f, request)
			if r, err := http.ReadResponse(bufio.NewReader(f), nil); err == nil {
				done <- r.StatusCode
				return
			}
		}
		done <- 0
	}()
	select {
	case status = <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("no answer")
	}
	return status
}

// tried is a gateway that can try policies, too.
type tried struct{ *gateway }

func (tried) Try(context.Context, TryPolicy) (Tried, error) { return Tried{}, nil }
func (tried) EndTrial() error                               { return nil }

// The socket is for root and for the group; others cannot open it, and what is changed is in the
// log with who did it. Files are read for root alone.
func TestPeersOfControlSocket(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: becomes other users")
	}
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) { // others have to reach the socket
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for d := os.TempDir(); ; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm()&1 == 0 {
			t.Skipf("needs a directory for temporary files that other users can reach: %s is not", d)
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	path := filepath.Join(dir, "s")
	const group, member, stranger = 54321, 54322, 54323
	l, err := listen(path, group)
	if err != nil {
		t.Fatal(err)
	}
	g, log := &gateway{events: NewEvents()}, &lockedLog{}
	server := NewServer(tried{g}, slog.New(slog.DiscardHandler), slog.New(slog.NewTextHandler(log, nil)))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	ask := func(method, path, body string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	}
	const drain, try = `{"drained":true}`, `{"path":"/etc/shadow","for_ns":1000000000}`
	for _, row := range []struct {
		who      string
		uid, gid int
		request  string
		want     int
	}{
		{"a member looks", member, group, ask("GET", "/v1/status", ""), 200},
		{"a member drains", member, group, ask("POST", "/v1/drain", drain), 200},
		{"a member has a file read", member, group, ask("POST", "/v1/policy/try", try), 403},
		{"root has a file read", 0, 0, ask("POST", "/v1/policy/try", try), 200},
		{"a stranger looks", stranger, stranger, ask("GET", "/v1/status", ""), 0},
		{"a stranger drains", stranger, stranger, ask("POST", "/v1/drain", drain), 0},
	} {
		if got := askAs(t, path, row.uid, row.gid, row.request); got != row.want {
			t.Errorf("%s: %d, want %d", row.who, got, row.want)
		}
	}
	if g.drains != 1 {
		t.Errorf("%d drains", g.drains)
	}
	log.mu.Lock()
	text := log.b.String()
	log.mu.Unlock()
	if strings.Count(text, "control socket audit") != 3 || !strings.Contains(text, "path=/v1/drain status=200 uid=54322") {
		t.Errorf("log:\n%s", text)
	}
}
