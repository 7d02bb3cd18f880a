// SPDX-License-Identifier: Apache-2.0

// Package redistest starts a real Valkey or Redis on loopback for tests, which may stop it,
// kill it and start it again.
package redistest

import (
	"context"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// patience bounds a start; it is long, for busy machines.
const patience = 20 * time.Second

// Server is one that keeps nothing in its directory but what its flags say. It ends with the test.
type Server struct {
	Address string // HOST:PORT, which it keeps

	t     testing.TB
	dir   string
	flags []string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Program is the path of valkey-server or redis-server; where neither is installed the test is
// skipped.
func Program(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"valkey-server", "redis-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("needs valkey-server or redis-server: `deploy/setup.sh test` installs it")
	return ""
}

// Start starts one, with flags of its own beside those of every test.
func Start(t testing.TB, flags ...string) *Server {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir(), flags: flags}
	t.Cleanup(s.Kill)
	for range 5 { // it cannot choose a port itself, and one that is free may be taken by then
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.Address = l.Addr().String()
		l.Close()
		if s.try() {
			return s
		}
	}
	t.Fatal("redis does not start on any port")
	return nil
}

// Again starts one that was killed.
func (s *Server) Again() {
	s.t.Helper()
	for end := time.Now().Add(patience); !s.try(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatal("redis does not start again")
		}
	}
}

// try waits until it answers, or has ended.
func (s *Server) try() bool {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.Address)
	flags := append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", s.dir}, s.flags...)
	s.cmd = exec.Command(Program(s.t), flags...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func(c *exec.Cmd, ended chan struct{}) { _ = c.Wait(); close(ended) }(s.cmd, s.ended)
	c := redis.NewClient(&redis.Options{Addr: s.Address})
	defer c.Close()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := c.Ping(context.Background()).Err()
		select {
		case <-s.ended: // whoever answered, it was another
			return false
		default:
		}
		if err == nil {
			return true
		}
		if time.Now().After(end) {
			s.t.Fatalf("redis at %s does not answer: %v", s.Address, err)
		}
	}
}

// Kill ends it without a warning.
func (s *Server) Kill() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
}

// Signal is for SIGSTOP and SIGCONT.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}
