// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"log/slog"
	"net"
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
