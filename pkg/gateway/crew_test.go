// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
)

// talk is a worker as the supervisor knows it, and the worker's end of their conversation.
func talk(t *testing.T) (*process, *control) {
	t.Helper()
	ours, file, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.close() })
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	theirs := &control{conn: conn.(*net.UnixConn)}
	t.Cleanup(func() { _ = theirs.close() })
	return &process{control: ours, answers: make(chan *message, 1), gone: make(chan struct{})}, theirs
}

// Nobody waits for a worker that hangs: what is said to all reaches the others, and the
// conversation with it ends, whereby it is replaced.
func TestWorkerThatHangs(t *testing.T) {
	tests := map[kind]func(*crew) error{
		kindLogLevel: func(c *crew) error { c.setLogLevel("debug"); return nil },
		kindTickets:  func(c *crew) error { c.setTicketKeys([][32]byte{{1}}); return nil },
		kindAdopt:    func(c *crew) error { c.lend(0); return nil },
		kindPrepare: func(c *crew) error {
			return c.prepare(&message{Snapshot: &policy.Snapshot{Generation: 7}})
		},
	}
	for said, say := range tests {
		t.Run(string(said), func(t *testing.T) {
			t.Parallel()
			hangs, _ := talk(t) // which reads nothing
			raw, err := hangs.control.conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var full error
			if err := raw.Write(func(fd uintptr) bool {
				for full == nil {
					_, full = unix.Write(int(fd), make([]byte, 4096))
				}
				return true
			}); err != nil || full != unix.EAGAIN {
				t.Fatal(err, full)
			}
			hangs.control.patience = 300 * time.Millisecond
			well, reads := talk(t)
			c := &crew{
				log: slog.New(slog.DiscardHandler), live: []*process{nil, hangs, well}, lent: make([]*process, 3),
				current: &message{}, servers: func() []policy.Servers { return nil },
			}
			returned := make(chan error, 1)
			go func() { returned <- say(c) }()
			_ = reads.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			m, err := reads.receive()
			if err != nil || m.Kind != said {
				t.Fatalf("the other worker hears %+v, %v", m, err)
			}
			well.answers <- &message{Kind: kindPrepared, Generation: m.generation()}
			select {
			case err := <-returned:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("it waits for the worker that hangs")
			}
			_ = hangs.control.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			if m, err := hangs.control.receive(); err == nil {
				t.Errorf("the one that hangs says %+v", m)
			} else if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Error("the conversation with the one that hangs goes on")
			}
			if said == kindAdopt && c.lent[0] != well {
				t.Error("nobody is known to serve the sockets")
			}
		})
	}
}

// A worker that comes up gets the sockets of the generation that held when it was asked, though a reload closes the
// supervisor's before they are sent, and others get their numbers.
func TestSocketsOutliveReload(t *testing.T) {
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	socket := open("socket")
	fd := int(socket.Fd())
	holds := &message{Snapshot: &policy.Snapshot{Generation: 7}, listeners: []*listener{{name: "a", fds: []int{fd}}}}
	c := &crew{current: holds}
	sent, out, err := c.currentFor(0)
	if err != nil || sent != holds {
		t.Fatal(sent, err)
	}
	want, err := socket.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup2(int(open("another").Fd()), fd); err != nil { // what closing one and opening another does
		t.Fatal(err)
	}
	ours, theirs := talk(t)
	if err := ours.control.send(out); err != nil {
		t.Fatal(err)
	}
	out.closeFiles()
	m, err := theirs.receive()
	if err != nil {
		t.Fatal(err)
	}
	defer m.closeFiles()
	if m.Kind != kindApply || len(m.files) != 1 || m.Sockets[0] != "a" {
		t.Fatalf("the worker gets %+v", m)
	}
	if got, err := m.files[0].Stat(); err != nil || !os.SameFile(got, want) {
		t.Errorf("the worker gets another socket: %v", err)
	}
}

// What changes while a worker that comes up is told how things are, it is told again: the news may have come before.
func TestChangesMeanwhile(t *testing.T) {
	ours, theirs := talk(t)
	c := &crew{ticketKeys: [][32]byte{{1}}, logLevel: "info"}
	ours.control.mu.Lock() // it cannot send yet
	done := make(chan error, 1)
	go func() { done <- c.sendChanges(ours) }()
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		b := make([]byte, 1<<20)
		for g := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
			waits = waits || strings.Contains(g, "sendChanges") && strings.Contains(g, "[sync.Mutex.Lock")
		}
	}
	c.mu.Lock()
	c.ticketKeys, c.logLevel = [][32]byte{{2}}, "debug"
	c.mu.Unlock()
	ours.control.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_ = ours.control.close()
	var keys [][32]byte
	level := ""
	for n := 0; ; n++ {
		m, err := theirs.receive()
		if err != nil {
			if n != 4 {
				t.Errorf("%d messages, want 4", n)
			}
			break
		}
		switch m.Kind {
		case kindTickets:
			keys = m.TicketKeys
		case kindLogLevel:
			level = m.LogLevel
		}
	}
	if len(keys) != 1 || keys[0] != [32]byte{2} || level != "debug" {
		t.Errorf("the worker believes in keys %v and level %q", keys, level)
	}
}
