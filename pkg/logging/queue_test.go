// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Each line is written once, in order, by the time the queue is flushed or closed.
func TestQueue(t *testing.T) {
	var out bytes.Buffer
	q := NewQueue(&out)
	var want strings.Builder
	for i := range 500 {
		fmt.Fprintln(&want, i)
		if n, err := fmt.Fprintln(q, i); n == 0 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	q.Flush()
	if out.String() != want.String() {
		t.Errorf("flushed: %q", out.String())
	}
	fmt.Fprintln(q, "last")
	if err := errors.Join(q.Close(), q.Close()); err != nil {
		t.Error(err)
	}
	fmt.Fprintln(q, "too late")
	if got := out.String(); got != want.String()+"last\n" {
		t.Errorf("closed: %q", got)
	}
	if full, queue, other := q.Lost(); full+queue != 0 || other != 1 {
		t.Errorf("lost %d, %d, %d", full, queue, other)
	}
}

// A writer that hangs holds nobody up: what there is no room for is dropped and counted, and
// when it goes on, so does the log.
func TestQueueHangingWriter(t *testing.T) {
	w := &hangingWriter{entered: make(chan struct{}, 1), release: make(chan struct{})}
	q := NewQueue(w)
	var told atomic.Uint64
	q.Dropped = func() { told.Add(1) }
	log := slog.New(NewHandler(q, nil))
	log.Error("first")
	<-w.entered
	const more = 3000
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range more / 3 {
				log.Error("x") // one that waited for the writer would hang here
			}
		})
	}
	wg.Wait()
	_, full, _ := q.Lost()
	if full != more-queuedLines || told.Load() != full {
		t.Errorf("%d lines dropped, %d told", full, told.Load())
	}
	close(w.release)
	q.Flush()
	log.Error("afterwards")
	q.Close()
	lines := strings.Split(strings.TrimSuffix(w.String(), "\n"), "\n")
	if len(lines) != 1+queuedLines+1 || !strings.HasSuffix(lines[len(lines)-1], "#0: afterwards") {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
}

// A full disk costs lines, which are counted, and spoils none that come afterwards.
func TestQueueFullDisk(t *testing.T) {
	for _, tt := range []struct {
		err         error
		full, other uint64
	}{{unix.ENOSPC, 2, 0}, {unix.EDQUOT, 2, 0}, {unix.EIO, 0, 2}} {
		w := &failingWriter{room: len("whole\n") + 3, err: tt.err}
		q := NewQueue(w)
		for _, line := range []string{"whole", "in part", "not at all"} {
			fmt.Fprintln(q, line)
		}
		q.Flush()
		w.err = nil
		fmt.Fprintln(q, "there is room again")
		q.Close()
		if got := w.String(); got != "whole\nin \nthere is room again\n" {
			t.Errorf("%q", got)
		}
		if full, queue, other := q.Lost(); full != tt.full || queue != 0 || other != tt.other {
			t.Errorf("lost %d, %d, %d", full, queue, other)
		}
	}
}

func TestQueueReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "error.log")
	q := NewQueue(mustOpen(t, path))
	fmt.Fprintln(q, "old")
	q.Flush()
	if err := errors.Join(os.Rename(path, path+".1"), q.Reopen()); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(q, "new")
	q.Close()
	if old, now := string(mustRead(t, path+".1")), string(mustRead(t, path)); old != "old\n" || now != "new\n" {
		t.Errorf("%q, %q", old, now)
	}
	plain := NewQueue(new(bytes.Buffer))
	if err := errors.Join(plain.Reopen(), plain.Close()); err != nil {
		t.Errorf("a writer without file: %v", err)
	}
}

// What workers say keeps its level and gets the supervisor's time and their real number;
// a worker that was taken over can forge nothing but words.
func TestRelay(t *testing.T) {
	var out bytes.Buffer
	h := NewHandler(&out, nil)
	var line bytes.Buffer
	worker := NewHandler(&line, slog.LevelDebug)
	slog.New(worker).With("worker", 1).Warn(`up "stream`, "server", "a b\n")
	for _, tt := range []struct{ line, want string }{
		{line.String(), `[warn] 4711#0: up \x22stream worker=1 server="a b\x0A"`},
		{"2026/01/02 03:04:05 [debug] 1#0: quiet\n", "[debug] 4711#0: quiet"},
		{"2026/01/02 03:04:05 [crit] 1#0: loud", "[crit] 4711#0: loud"},
		{"2026/01/02 03:04:05 [emerg] 1#0: no level", "[error] 4711#0: 2026/01/02 03:04:05 [emerg] 1#0: no level"},
		{"a\n2026/01/02 03:04:05 [crit] 1#0: forged\n", `[error] 4711#0: a\x0A2026/01/02 03:04:05 [crit] 1#0: forged`},
		{"\x00\x1b[2J\xff\xc3\xa9", `[error] 4711#0: \x00\x1B[2J\xFF\xC3\xA9`},
		{"", "[error] 4711#0: "},
	} {
		out.Reset()
		if err := h.Relay(4711, []byte(tt.line)); err != nil {
			t.Fatal(err)
		}
		got := out.String()
		if stamp := "2006/01/02 15:04:05 "; len(got) < len(stamp) || got[len(stamp):] != tt.want+"\n" {
			t.Errorf("%q: got %q, want %q", tt.line, got, tt.want)
		}
	}
	out.Reset()
	if err := h.Relay(1, bytes.Repeat([]byte{0xff}, 64<<10)); err != nil || out.Len() > maxErrorLine {
		t.Errorf("a line of %d bytes, %v", out.Len(), err)
	}
}
