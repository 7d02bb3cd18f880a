// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// pump sends a request body that is too long to wait for, on a goroutine of its
// own, so that an early reply is seen.
type pump struct {
	done  chan struct{}
	err   atomic.Pointer[error] // why the client's body ended early
	whole bool                  // all of it was sent
	bytes uint64
	chunk []byte
}

func (p *pump) start(ex *Exchange, c *upConn) {
	p.done = make(chan struct{})
	p.err.Store(nil)
	p.whole, p.bytes = false, 0
	go p.run(ex, c)
}

// stop ends the pump if it still runs and tells whether it had sent everything.
func (p *pump) stop(ex *Exchange) bool {
	select {
	case <-p.done:
	default:
		ex.client.stopBody()
		<-p.done
	}
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
	defer close(p.done)
	defer func() {
		if v := recover(); v != nil {
			ex.worker.recovered(v)
			c.kill(killCancelled)
		}
	}()
	buffer := ex.worker.buffers.get()
	defer ex.worker.buffers.put(buffer)
	for {
		n, err := ex.client.readBody(buffer[:])
		p.bytes += uint64(n)
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			// The upstream must not take what it has for the whole request.
			p.err.Store(&err)
			c.kill(killCancelled)
			return
		}
		if !p.send(ex, c, buffer[:n], ended) {
			return // the reader of the reply finds out why
		}
		if ended {
			p.whole = true
			c.deadline.Store(ex.worker.until(ex.route.upstream.policy.HeaderTimeout))
			return
		}
	}
}

func (p *pump) send(ex *Exchange, c *upConn, piece []byte, last bool) bool {
	if ex.body.Chunked {
		p.chunk = http1.AppendChunk(p.chunk[:0], piece)
		if last {
			p.chunk = http1.AppendLastChunk(p.chunk)
		}
		piece = p.chunk
	}
	if len(piece) == 0 {
		return true
	}
	// While the body goes out, its progress is what the upstream is given time for.
	c.deadline.Store(ex.worker.until(ex.snap.policy.Timeouts.Body))
	_, err := c.Write(piece)
	return err == nil
}
