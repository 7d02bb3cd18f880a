// SPDX-License-Identifier: Apache-2.0

package proxy

import "sync"

// bufferSize is that of the buffers that exchanges borrow: two full TLS records.
const bufferSize = 32 << 10

// bufferPool lends buffers of bufferSize. What they held is of one client: a
// borrower reads only what it wrote itself.
type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) get() *[bufferSize]byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b
	}
	return new([bufferSize]byte)
}

func (p *bufferPool) put(b *[bufferSize]byte) {
	if b != nil {
		p.pool.Put(b)
	}
}
