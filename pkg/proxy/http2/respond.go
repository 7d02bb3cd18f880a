// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"fmt"
	"runtime"
	"strconv"

	h2 "golang.org/x/net/http2"
)

// reply collects a response's fields, so that the header block can be encoded as a whole under the lock.
type reply struct {
	status   int
	fields   []replyField
	bytes    []byte
	err      error
	returned bool // the handler has returned, rather than panicked
}

type replyField struct{ name, value int } // ends of name and value in bytes

func (r *reply) reset(keep int) {
	r.status, r.fields, r.bytes, r.err, r.returned = 0, r.fields[:0], r.bytes[:0], nil, false
	if cap(r.bytes) > keep {
		r.bytes = nil
	}
}

// add copies a field, its name in lower case. Upstreams are not trusted: what could be read as two fields or breaks the
// rules of RFC 9113, 8.2 makes the response fail.
func (r *reply) add(name, value []byte) {
	if r.err != nil || connectionSpecific(name) {
		return
	}
	at := len(r.bytes)
	for _, b := range name {
		if 'A' <= b && b <= 'Z' {
			b |= 0x20
		}
		r.bytes = append(r.bytes, b)
	}
	if connectionSpecific(r.bytes[at:]) {
		r.bytes = r.bytes[:at]
		return
	}
	if !validName(r.bytes[at:]) || !validValue(value) {
		r.err = fmt.Errorf("%w: %q", ErrField, string(name)) // a copy, or each name would be on the heap
		return
	}
	n := len(r.bytes)
	r.bytes = append(r.bytes, value...)
	r.fields = append(r.fields, replyField{name: n, value: len(r.bytes)})
}

// encode appends all fields to a header block.
func (r *reply) encode(e *encoder, b []byte) []byte {
	from := 0
	for _, f := range r.fields {
		b = e.field(b, r.bytes[from:f.name], r.bytes[f.name:f.value])
		from = f.value
	}
	return b
}

// BeginHeaders starts a response header: 100, 103 and other interim ones any number of times, then a final one. Fields
// are added by AddHeader; EndHeaders sends it.
func (s *Stream) BeginHeaders(status int) {
	s.reply.reset(1 << 20)
	s.reply.status = status
	if status < 100 || status > 999 || status == 101 {
		s.reply.err = fmt.Errorf("%w: status %d", ErrField, status)
	}
}

// AddHeader adds a field to the header or trailer begun. It copies name, in lower case, and value. Connection-specific
// fields are left out; other fields that must not be sent make EndHeaders fail.
func (s *Stream) AddHeader(name, value []byte) { s.reply.add(name, value) }

// EndHeaders sends the header that BeginHeaders started, with endStream as a whole response. It waits while too much is
// waiting to be written. Errors: ErrField, ErrOrder, ErrEnded, ErrReset, ErrGone, ErrTimeout.
func (s *Stream) EndHeaders(endStream bool) error {
	r := &s.reply
	if r.err != nil {
		return r.err
	}
	interim := r.status < 200
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.headed || r.status == 0 || interim && endStream {
		return ErrOrder
	}
	if err := s.waitRoom(); err != nil {
		return err
	}
	s.headed = !interim
	c.writeHeaders(s, endStream)
	if endStream {
		s.endLocal()
	}
	return nil
}

// WriteTrailers ends the response with trailer fields.
func (s *Stream) WriteTrailers(fields []Field) error {
	s.reply.reset(1 << 20)
	for _, f := range fields {
		s.reply.add(f.Name, f.Value)
	}
	if s.reply.err != nil {
		return s.reply.err
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.headed {
		return ErrOrder
	}
	if err := s.waitRoom(); err != nil {
		return err
	}
	c.writeHeaders(s, true)
	s.endLocal()
	return nil
}

// Write sends a piece of the response's body, and with end its end. It waits for the client's windows and while too
// much is waiting to be written. p may be used again when it returns. Errors: ErrOrder, ErrEnded, ErrReset, ErrGone,
// ErrTimeout.
func (s *Stream) Write(p []byte, end bool) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.headed {
		return 0, ErrOrder
	}
	if len(p) == 0 && !end {
		return 0, s.stopped()
	}
	sent := 0
	for {
		if err := s.waitRoom(); err != nil {
			return sent, err
		}
		left := len(p) - sent
		n := min(int64(left), maxFrame, s.sendWindow, c.sendWindow)
		if left > 0 && n <= 0 {
			if err := s.waitWindow(); err != nil {
				return sent, err
			}
			continue
		}
		last := end && int(n) == left
		c.writeData(s, p[sent:sent+int(n)], int(n) < left && n < maxFrame, last)
		sent += int(n)
		if last {
			s.endLocal()
		}
		if sent == len(p) {
			return sent, nil
		}
		if len(c.blocked) > 0 || len(c.streams) > 1 { // others have something to say, too
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
	}
}

// Reset ends the exchange by RST_STREAM, unless it is over.
func (s *Stream) Reset(code uint32) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.open {
		return
	}
	c.writeReset(s.id, h2.ErrCode(code))
	c.remove(s, closedByUs)
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// endLocal notes our END_STREAM.
func (s *Stream) endLocal() {
	s.localEnd = true
	if s.remoteEnd {
		s.ended()
	}
}

// writeHeaders encodes the reply as HEADERS and CONTINUATION frames, final or interim header or trailer.
func (c *Conn) writeHeaders(s *Stream, end bool) {
	r := &s.reply
	at := c.appendHeader(h2.FrameHeaders, 0, 0, 0)
	b := c.encoder.begin(c.out.b)
	if r.status != 0 {
		b = c.encoder.status(b, r.status)
	}
	c.out.b = r.encode(&c.encoder, b)
	c.endBlock(at, s.id, end)
}

// writeStatus answers a request that does not reach the handler.
func (c *Conn) writeStatus(id uint32, status, retryAfter int) {
	at := c.appendHeader(h2.FrameHeaders, 0, 0, 0)
	b := c.encoder.begin(c.out.b)
	b = c.encoder.status(b, status)
	b = c.encoder.field(b, []byte("content-length"), []byte("0"))
	if retryAfter > 0 {
		b = c.encoder.field(b, []byte("retry-after"), strconv.AppendInt(make([]byte, 0, 20), int64(retryAfter), 10))
	}
	c.out.b = b
	c.endBlock(at, id, true)
}

// writeData sends p. starved says that it is less than could be sent for want of window.
func (c *Conn) writeData(s *Stream, p []byte, starved, end bool) {
	var flags h2.Flags
	if end {
		flags = h2.FlagDataEndStream
	}
	c.appendHeader(h2.FrameData, flags, s.id, len(p))
	c.out.b = append(c.out.b, p...)
	s.sendWindow -= int64(len(p))
	c.sendWindow -= int64(len(p))
	if len(p) >= usefulFrame || !starved {
		c.misuse.sent(len(p))
	}
}
