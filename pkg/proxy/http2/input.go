// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"errors"
	"io"
	"runtime"

	h2 "golang.org/x/net/http2"
)

// input buffers what the client sends. When it has nothing it waits with a small buffer of its own, so that a waiting
// connection holds none of the pool; what does not fit is read into a pooled one. With TLS, which has the rest of the
// record at hand, that second read costs no system call.
type input struct {
	w     *wire
	buf   []byte // small, or pooled
	r, n  int    // unread bytes are buf[r:n]
	large *[inputBytes]byte
	small [1024]byte
}

// Read is for the Framer, which reads the nine bytes of a frame header with it.
func (in *input) Read(p []byte) (int, error) {
	if in.r == in.n {
		if err := in.fill(1); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.r:in.n])
	in.r += n
	return n, nil
}

// need waits until n bytes, at most a frame, can be had by next.
func (in *input) need(n int) error {
	for in.n-in.r < n {
		if err := in.fill(n); err != nil {
			return err
		}
	}
	return nil
}

// next takes n bytes that are there. They are valid until the next read.
func (in *input) next(n int) []byte {
	b := in.buf[in.r : in.r+n]
	in.r += n
	return b
}

// fill reads once. The buffer has room for n unread bytes afterwards.
func (in *input) fill(n int) error {
	in.room(n)
	got, err := in.w.nc.Read(in.buf[in.n:])
	if got > 0 {
		in.n += got
		in.w.lastActive.Store(in.w.now())
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (in *input) room(n int) {
	if in.r == in.n {
		in.release()
		in.r, in.n, in.buf = 0, 0, in.small[:]
	}
	if in.large == nil {
		if in.n < len(in.small) && in.r+n <= len(in.small) {
			return
		}
		in.large = in.w.pool.inputs.Get().(*[inputBytes]byte)
		in.n = copy(in.large[:], in.buf[in.r:in.n])
		in.r, in.buf = 0, in.large[:]
		return
	}
	if in.r+n > len(in.buf) || in.n == len(in.buf) {
		in.n = copy(in.buf, in.buf[in.r:in.n])
		in.r = 0
	}
}

// release gives the pooled buffer back.
func (in *input) release() {
	if in.large != nil {
		in.w.pool.inputs.Put(in.large)
		in.large, in.buf = nil, nil
	}
}

func (c *Conn) readPreface() error {
	for got := 0; got < len(h2.ClientPreface); {
		if err := c.in.need(1); err != nil {
			return err
		}
		n := min(c.in.n-c.in.r, len(h2.ClientPreface)-got)
		if string(c.in.next(n)) != h2.ClientPreface[got:got+n] {
			return connError(h2.ErrCodeProtocol, "not the preface of HTTP/2")
		}
		got += n
	}
	return nil
}

// readFrame reads one frame and does what it asks for.
func (c *Conn) readFrame() error {
	if c.in.r == c.in.n {
		if err := c.in.need(1); err != nil {
			return err
		}
	}
	whole := c.in.n-c.in.r >= frameHeader
	if !whole {
		c.markPartial()
	}
	fh, err := c.framer.ReadFrameHeader()
	if err != nil {
		return c.framerError(err)
	}
	if c.in.n-c.in.r < int(fh.Length) {
		if fh.Type != h2.FrameData { // a slow body is the business of Config.Body
			c.markPartial()
		}
		if err := c.in.need(int(fh.Length)); err != nil {
			return err
		}
	}
	if err = c.handle(fh, c.in.next(int(fh.Length))); err != nil {
		return err
	}
	if fh.Type != h2.FrameData {
		c.letOthers(int(fh.Length))
	}
	return nil
}

// turnBytes of header blocks and control frames are work for a tenth of a millisecond, at the worst.
const turnBytes = 8 << 10

// letOthers lets other connections have their turn, for one that sends without a pause.
func (c *Conn) letOthers(n int) {
	if c.turn += n; c.turn >= turnBytes {
		c.turn = 0
		runtime.Gosched()
	}
}

// markPartial starts the clock for a frame or header block that has begun and not ended.
func (c *Conn) markPartial() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.partial == 0 {
		c.partial = c.lastActive.Load()
	}
}

func (w *wire) framerError(err error) error {
	var ce h2.ConnectionError
	switch {
	case errors.Is(err, h2.ErrFrameTooLarge):
		return connError(h2.ErrCodeFrameSize, "frame is larger than SETTINGS_MAX_FRAME_SIZE")
	case errors.As(err, &ce):
		cause := "frame out of order"
		if d := w.framer.ErrorDetail(); d != nil {
			cause = d.Error()
		}
		return connError(h2.ErrCode(ce), cause)
	}
	return err
}

// handle does what the frame asks for, under the lock, and then what must be done without it.
func (c *Conn) handle(fh h2.FrameHeader, payload []byte) error {
	start, refused, hooks, err := c.handleLocked(fh, payload)
	if start != nil {
		c.run(start.start)
	}
	if refused != nil {
		if c.cfg.Refused != nil {
			c.cfg.Refused(refused, refused.refusedWith, refused.bad)
		}
		refused.recycle()
	}
	if hooks {
		c.runHooks()
	}
	return err
}

func (c *Conn) handleLocked(fh h2.FrameHeader, payload []byte) (start, refused *Stream, hooks bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return nil, nil, false, errDone
	}
	err = c.dispatch(fh, payload)
	start, refused, hooks = c.starting, c.refused, len(c.hooks) > 0
	c.starting, c.refused = nil, nil
	if c.block.id == 0 && c.settings.received {
		c.partial = 0
	}
	if err == nil && c.waiting() > c.cfg.OutputBytes+controlBytes {
		err = &Misuse{Kind: ControlQueue}
	}
	if err == nil && c.finished() {
		err = errDone
	}
	return start, refused, hooks, err
}

// finished says that a connection in shutdown has done its work.
func (c *Conn) finished() bool {
	return c.draining == drainLast && c.running == 0 && c.starting == nil
}
