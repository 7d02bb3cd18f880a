// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire is what both ends of a connection have in common: the input's buffer, and the output that is appended to by
// whoever has something to say and written by one flusher.
type wire struct {
	nc          net.Conn
	pool        *Pool
	outputBytes int // that may wait to be written

	in         input
	framer     *h2.Framer // reads frame headers and minds their order; payloads are read from in
	decoder    *hpack.Decoder
	base       time.Time // of the clock: see now
	began      int64
	lastActive atomic.Int64 // when the last byte was read
	wrote      atomic.Int64 // when the write in progress began, 0 when there is none

	mu sync.Mutex // guards all that follows, and the streams' fields that say so

	// Output. Frames are appended to out; the flusher takes it as a whole.
	out        *output      // nil when nothing waits
	flushing   bool         // a goroutine is the flusher; so it is while out is not nil
	flush      func()       // flushLoop, bound once
	flushed    sync.Cond    // signalled when flushing becomes false
	failed     func(error)  // is told, without the lock, of a write that failed
	blocked    []*sync.Cond // writers that wait for room in out or for sendWindow
	encoder    encoder
	sendWindow int64
	peerWindow int64 // the peer's SETTINGS_INITIAL_WINDOW_SIZE

	ending bool  // no frame is read or written by handlers any more
	err    error // why; nil for a clean end
}

// init makes the wire ready; onField is told of each field that is decoded, of strings up to maxString bytes, and failed
// of a write that failed, by the flusher, which ends then.
func (w *wire) init(nc net.Conn, pool *Pool, outputBytes, maxString int, onField func(hpack.HeaderField), failed func(error)) {
	w.nc, w.pool, w.outputBytes = nc, pool, outputBytes
	w.sendWindow, w.peerWindow = defaultWindow, defaultWindow
	w.in.w = w
	w.framer = h2.NewFramer(nil, &w.in)
	w.framer.SetMaxReadFrameSize(maxFrame)
	w.decoder = hpack.NewDecoder(tableBytes, onField)
	w.decoder.SetMaxStringLength(maxString)
	w.encoder.init()
	w.flush, w.flushed.L, w.failed = w.flushLoop, &w.mu, failed
	w.base = time.Now()
	w.began = w.base.UnixNano()
	w.lastActive.Store(w.began)
}

// now is unix nanoseconds by the monotonic clock: it does not jump.
func (w *wire) now() int64 { return w.began + int64(time.Since(w.base)) }

// sendHalf is the part of a stream that sends, of either end. It is guarded by the connection's lock.
type sendHalf struct {
	wire       *wire
	id         uint32
	open       bool // by RFC 9113, and no reset was sent
	localEnd   bool
	err        error // why the exchange is over for whoever has it
	sendWindow int64
	writable   sync.Cond
	writeSince int64 // since when the peer's window is waited for, 0 when it is not
}

// stopped says why nothing more can be sent, nil if it can. The lock is held.
func (s *sendHalf) stopped() error {
	switch {
	case s.err != nil:
		return s.err
	case s.localEnd || !s.open:
		return ErrEnded
	}
	return nil
}

// waitRoom waits while too much is waiting to be written. The flusher has a deadline of its own, so this needs none.
// The lock is held.
func (s *sendHalf) waitRoom() error {
	w := s.wire
	for {
		if err := s.stopped(); err != nil {
			return err
		}
		if w.waiting() < w.outputBytes {
			return nil
		}
		w.blocked = append(w.blocked, &s.writable)
		s.writable.Wait()
		w.unblock(&s.writable)
	}
}

// waitWindow waits once for a window to open, or for anything else to happen. The lock is held.
func (s *sendHalf) waitWindow() error {
	w := s.wire
	if s.writeSince == 0 {
		s.writeSince = w.now()
	}
	if w.sendWindow <= 0 {
		w.blocked = append(w.blocked, &s.writable)
	}
	s.writable.Wait()
	w.unblock(&s.writable)
	if s.sendWindow > 0 && w.sendWindow > 0 {
		s.writeSince = 0
	}
	return s.stopped()
}

// wakeBlocked lets all writers look again that wait for the connection.
func (w *wire) wakeBlocked() {
	for i, c := range w.blocked {
		c.Signal()
		w.blocked[i] = nil
	}
	w.blocked = w.blocked[:0]
}

// unblock takes a writer from the list of those that wait, if something else woke it.
func (w *wire) unblock(c *sync.Cond) {
	for i, b := range w.blocked {
		if b == c {
			w.blocked = append(w.blocked[:i], w.blocked[i+1:]...)
			return
		}
	}
}
