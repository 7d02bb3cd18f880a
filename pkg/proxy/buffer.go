// SPDX-License-Identifier: Apache-2.0

package proxy

import "sync"

// Sizes of the buffers that exchanges borrow. An idle connection holds none.
const (
	inputSize   = 4 << 10            // of a client: request heads and what comes with them; it grows for longer ones
	bufferSize  = 32 << 10           // of an upstream: two full TLS records
	outputSize  = bufferSize + 4<<10 // to a client: a whole buffer of an upstream, and a head
	recordsSize = 64<<10 + 1<<10     // four full TLS records to a client
	keepSize    = 2 * outputSize     // one that grew beyond is not kept
)

// buffer is a borrowed slice; it may have grown.
type buffer struct{ b []byte }

// bufferPool lends buffers. What they held is of one client: a borrower reads only
// what it wrote itself.
type bufferPool struct {
	size int
	pool sync.Pool
}

// get returns a buffer whose b has at least the pool's size as length.
func (p *bufferPool) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, p.size)}
}

// resize gives b back and returns a large buffer, of bufferSize at least, or else a small one;
// or b itself, if it is one. What b held is gone.
func (w *Worker) resize(b *buffer, large bool) *buffer {
	if b != nil && large == (len(b.b) >= bufferSize) {
		return b
	}
	w.putBack(b)
	if large {
		return w.buffers.get()
	}
	return w.inputs.get()
}

// putBack returns a buffer that is large or small.
func (w *Worker) putBack(b *buffer) {
	if b == nil {
		return
	}
	if cap(b.b) >= bufferSize {
		w.buffers.put(b)
	} else {
		w.inputs.put(b)
	}
}

func (p *bufferPool) put(b *buffer) {
	if b == nil || cap(b.b) > keepSize {
		return
	}
	b.b = b.b[:cap(b.b)]
	p.pool.Put(b)
}
