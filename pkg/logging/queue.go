// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	queuedLines = 1024
	// flushWait is how long somebody who is about to exit waits for his last lines.
	flushWait = time.Second
)

// Queue takes the lines of those who must not wait and writes them from a goroutine of its
// own, one call of Write for each. What there is no room for, or what cannot be written, is
// dropped and counted. It is safe for concurrent use.
type Queue struct {
	// Dropped, when not nil, is called for each line that there is no room for; it is set
	// before the first one.
	Dropped func()

	out   io.Writer
	lines chan []byte
	ended chan struct{} // the writing goroutine has ended

	mu     sync.RWMutex // of closed, and of lines' end
	closed bool

	torn     bool        // the writer's: the last line went out in part
	reopened atomic.Bool // a new file has no part of a line

	behind atomic.Int64 // lines that were taken and are not written yet

	diskFull, full, other atomic.Uint64
}

// NewQueue starts to write to out, which stays the caller's; Close ends it.
func NewQueue(out io.Writer) *Queue {
	q := &Queue{out: out, lines: make(chan []byte, queuedLines), ended: make(chan struct{})}
	go q.run()
	return q
}

// Write takes a line, newline included, or drops it. It never fails.
func (q *Queue) Write(line []byte) (int, error) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		q.other.Add(1)
		return len(line), nil
	}
	q.behind.Add(1)
	select {
	case q.lines <- slices.Clone(line):
	default:
		q.behind.Add(-1)
		q.full.Add(1)
		if q.Dropped != nil {
			q.Dropped()
		}
	}
	return len(line), nil
}

// Lost counts lines that were not written: the disk or the quota was full; there was no room
// since the writer is slow; anything else.
func (q *Queue) Lost() (diskFull, full, other uint64) {
	return q.diskFull.Load(), q.full.Load(), q.other.Load()
}

// Flush returns when what waits is written, after a second at most.
func (q *Queue) Flush() {
	for end := time.Now().Add(flushWait); q.behind.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// Reopen opens the writer's file anew, where it has one.
func (q *Queue) Reopen() error {
	r, ok := q.out.(interface{ Reopen() error })
	if !ok {
		return nil
	}
	if err := r.Reopen(); err != nil {
		return err
	}
	q.reopened.Store(true)
	return nil
}

// Close writes what waits, for a second at most. Unless the writer hangs, it is not touched
// afterwards.
func (q *Queue) Close() error {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.lines)
	}
	q.mu.Unlock()
	end := time.NewTimer(flushWait)
	defer end.Stop()
	select {
	case <-q.ended:
	case <-end.C:
	}
	return nil
}

func (q *Queue) run() {
	defer close(q.ended)
	for line := range q.lines {
		q.write(line)
		q.behind.Add(-1)
	}
}

// write ends a line that went out in part (the disk filled up) before the next, so that it
// spoils no other.
func (q *Queue) write(line []byte) {
	if q.reopened.Swap(false) {
		q.torn = false
	}
	if q.torn {
		if _, err := q.out.Write([]byte{'\n'}); err != nil {
			q.lose(err)
			return
		}
		q.torn = false
	}
	n, err := q.out.Write(line)
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	if err != nil {
		q.torn = n > 0
		q.lose(err)
	}
}

func (q *Queue) lose(cause error) {
	if isFull(cause) {
		q.diskFull.Add(1)
	} else {
		q.other.Add(1)
	}
}

// isFull: the disk or the quota is.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
