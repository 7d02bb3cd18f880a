// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"log/slog"
	"net"
	"testing"
	"time"
)

// Whoever changes the log level does not wait for a worker that hangs, and the others hear of
// it.
func TestLogLevelBesideAWorkerThatHangs(t *testing.T) {
	worker := func() (*process, *control) {
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
		return &process{control: ours}, theirs
	}
	hangs, _ := worker() // which reads nothing
	_ = hangs.control.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for hangs.control.send(&message{Kind: kindLogLevel}) == nil { // until its socket is full
	}
	_ = hangs.control.conn.SetWriteDeadline(time.Time{})
	well, reads := worker()
	c := &crew{log: slog.New(slog.DiscardHandler), live: []*process{hangs, well}}
	returned := make(chan struct{})
	go func() { defer close(returned); c.setLogLevel("debug") }()
	if m, err := reads.receive(); err != nil || m.LogLevel != "debug" {
		t.Errorf("the other worker hears %+v, %v", m, err)
	}
	select {
	case <-returned:
	case <-time.After(20 * time.Second):
		t.Error("it waits for the worker that hangs")
	}
}
