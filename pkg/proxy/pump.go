// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"slices"
	"sync/atomic"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
)

// pump sends a request body that is too long to wait for, on a goroutine of its
// own, so that an early reply is seen and the two bodies may flow at once.
type pump struct {
	done    chan struct{}         // receives one when the goroutine is over
	running bool                  // known to the exchange's goroutine
	headed  atomic.Bool           // the reply's head is here: deadlines are not the pump's any more
	taken   atomic.Bool           // all of the body was read from the client
	err     atomic.Pointer[error] // why the client's body ended early
	whole   bool                  // all of it was sent
	bytes   uint64
	fields  []http2.Field // trailers for HTTP/2
}

func (p *pump) start(ex *Exchange, c *upConn) {
	if p.done == nil {
		p.done = make(chan struct{}, 1)
	}
	p.running = true
	go p.run(ex, c)
}

// stop ends the pump if it still runs and tells whether it had sent everything.
func (p *pump) stop(ex *Exchange, c *upConn) bool {
	if !p.running {
		return p.whole
	}
	select {
	case <-p.done:
	default:
		if p.taken.Load() {
			// It is in its last write, or just behind it. The reply is over: a server
			// that does not read what is left gets little time.
			c.arm(ex.worker.until(0))
		} else {
			c.kill(killCancelled) // it may be writing
			ex.client.stopBody()  // or reading
		}
		<-p.done
	}
	p.running = false
	ex.bytesIn += p.bytes
	p.bytes = 0
	return p.whole
}

// failure is why the client's body ended early; nil when it did not.
func (p *pump) failure() error {
	if err := p.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (p *pump) run(ex *Exchange, c *upConn) {
	defer func() { p.done <- struct{}{} }()
	defer func() {
		if v := recover(); v != nil {
			ex.worker.recovered(v)
			err := errPanic
			p.err.Store(&err)
			c.kill(killCancelled)
		}
	}()
	w := ex.worker
	var buffer *buffer // none while the client is waited for, where that can be told
	defer func() { w.putBack(buffer) }()
	for fast := false; ; {
		p.arm(c, 0) // the client has its own time
		// A client that is waited for in a read is given a small buffer, one that sends fast a large one.
		here := ex.client.awaitBody()
		buffer = w.resize(buffer, here || fast)
		room := buffer.b[http1.ChunkRoom : len(buffer.b)-http1.ChunkTail]
		n, err := ex.client.readBody(room)
		fast = n == len(room)
		p.bytes += uint64(n)
		ended := errors.Is(err, io.EOF)
		if ended {
			p.taken.Store(true)
		}
		if err != nil && !ended {
			// The upstream must not take what it has for the whole request.
			p.err.Store(&err)
			c.kill(killCancelled)
			return
		}
		// While the body goes out, the upstream is given time for each piece.
		p.arm(c, w.until(ex.bodyTimeout()))
		if !p.send(ex, c, buffer.b, n, ended) {
			return // the reader of the reply finds out why
		}
		if here {
			w.putBack(buffer)
			buffer, fast = nil, false
		}
		if ended {
			p.whole = true
			p.arm(c, w.until(ex.headerTimeout()))
			return
		}
	}
}

// arm sets the upstream's deadline as long as its reply has not begun; from then on
// it is the reply's reader who does.
func (p *pump) arm(c *upConn, by int64) {
	old := c.state.Load()
	if old >= 0 && !p.headed.Load() {
		c.state.CompareAndSwap(old, c.bounded(by)) // fails if the reader has come in between
	}
}

// send passes n bytes on that stand in b behind the room for a chunk's beginning.
func (p *pump) send(ex *Exchange, c *upConn, b []byte, n int, last bool) bool {
	piece := b[http1.ChunkRoom : http1.ChunkRoom+n]
	if c.stream != nil {
		return p.sendStream(ex, c.stream, piece, last)
	}
	if ex.body.Chunked {
		trailers := []http1.Field(nil)
		if last {
			trailers = ex.client.trailers()
		}
		piece = http1.FrameChunk(b, n, last && len(trailers) == 0)
		if len(trailers) > 0 { // they are rare: they may cost a copy
			piece = http1.AppendLastChunk(slices.Clone(piece), trailers)
		}
	}
	if len(piece) == 0 {
		return true
	}
	_, err := c.Write(piece)
	return err == nil
}
