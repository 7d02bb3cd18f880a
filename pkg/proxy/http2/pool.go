// SPDX-License-Identifier: Apache-2.0

package http2

import "sync"

// Pool is what connections share so that a request needs no allocation and no new goroutine: parked goroutines,
// finished streams, buffers. Make one per worker. It may be used by any number of connections at once.
type Pool struct {
	streams sync.Pool // *Stream
	chunks  sync.Pool // *chunk
	outputs sync.Pool // *output
	inputs  sync.Pool // *[inputBytes]byte

	mu     sync.Mutex
	parked []chan func()
	closed bool
}

// parkedMost bounds the goroutines that wait for work; a burst above it starts goroutines that end afterwards.
const parkedMost = 128

const (
	inputBytes = 32 << 10   // holds a whole frame of the largest size and the beginning of the next
	chunkBytes = 4<<10 - 24 // a chunk is 4 KiB: what a hostile client can make us hold in part-filled ones is little
)

// chunk is a piece of a request body between the connection and the handler.
type chunk struct {
	next *chunk
	r, w int
	b    [chunkBytes]byte
}

// output is bytes on their way to the client.
type output struct{ b []byte }

// NewPool makes an empty pool.
func NewPool() *Pool {
	return &Pool{
		chunks:  sync.Pool{New: func() any { return new(chunk) }},
		outputs: sync.Pool{New: func() any { return &output{b: make([]byte, 0, 16<<10)} }},
		inputs:  sync.Pool{New: func() any { return new([inputBytes]byte) }},
	}
}

// Close ends the goroutines that are parked, and those that run when they are done. Connections may still use the pool,
// but each exchange then starts a goroutine.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, work := range p.parked {
		close(work)
	}
	p.parked = nil
}

// Run runs f on a parked goroutine, or on a new one when none is parked. It does not wait.
func (p *Pool) Run(f func()) {
	p.mu.Lock()
	n := len(p.parked)
	if n == 0 {
		p.mu.Unlock()
		go p.serve(make(chan func(), 1), f)
		return
	}
	work := p.parked[n-1] // the last one in: its stack is warm
	p.parked = p.parked[:n-1]
	p.mu.Unlock()
	work <- f // never blocks: a parked goroutine's channel is empty
}

func (p *Pool) serve(work chan func(), f func()) {
	for {
		f()
		p.mu.Lock()
		if p.closed || len(p.parked) >= parkedMost {
			p.mu.Unlock()
			return
		}
		p.parked = append(p.parked, work)
		p.mu.Unlock()
		var open bool
		if f, open = <-work; !open {
			return
		}
	}
}

func (p *Pool) stream() *Stream {
	if s, ok := p.streams.Get().(*Stream); ok {
		return s
	}
	s := new(Stream)
	s.start = s.run // bound once: a method value costs an allocation each time it is made
	return s
}

func (p *Pool) chunk() *chunk { return p.chunks.Get().(*chunk) }

func (p *Pool) putChunk(k *chunk) {
	k.next, k.r, k.w = nil, 0, 0
	p.chunks.Put(k)
}

func (p *Pool) output() *output { return p.outputs.Get().(*output) }

func (p *Pool) putOutput(o *output) {
	if cap(o.b) <= 512<<10 {
		o.b = o.b[:0]
		p.outputs.Put(o)
	}
}
