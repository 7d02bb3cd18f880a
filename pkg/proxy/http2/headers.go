// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"errors"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// headerBlock is the HEADERS and CONTINUATION frames that are being read.
type headerBlock struct {
	id     uint32 // 0: none
	kind   blockKind
	end    bool // END_STREAM
	stream *Stream
	open   bool       // stream is that of an earlier block; it may end before this block does
	code   h2.ErrCode // for blockReset
	cause  string
	frames int
	bytes  int
	// unpacked is the size of the fields, as far as they are looked at.
	unpacked int
}

const (
	blockPiece = 1 << 10
	// Beyond so many times the allowed size no answer is owed: few bytes unpack to more without end.
	blockGrowth = 4
)

type blockKind int

const (
	blockRequest  blockKind = iota
	blockTrailers           // of stream
	blockReset              // decoded for the sake of HPACK's state, then the stream is reset with code
	blockIgnored            // decoded for the sake of HPACK's state
)

func (c *Conn) onHeaders(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID&1 == 0 {
		return connError(h2.ErrCodeProtocol, "HEADERS on a stream that a client cannot open")
	}
	p, err := unpad(fh, p)
	if err != nil {
		return err
	}
	itself := false
	if fh.Flags&h2.FlagHeadersPriority != 0 {
		if len(p) < 5 {
			return connError(h2.ErrCodeFrameSize, "HEADERS is too short for its priority")
		}
		itself = binary.BigEndian.Uint32(p)&maxWindow == fh.StreamID
		p = p[5:]
	}
	c.block = headerBlock{id: fh.StreamID, end: fh.Flags&h2.FlagHeadersEndStream != 0}
	if err := c.aim(fh.StreamID); err != nil {
		return err
	}
	if itself && c.block.kind != blockIgnored {
		c.block.reset(c, h2.ErrCodeProtocol, "stream depends on itself")
	}
	c.decoder.SetEmitEnabled(c.block.kind == blockRequest || c.block.kind == blockTrailers)
	return c.fragment(fh, p)
}

// aim finds out what the header block that begins is.
func (c *Conn) aim(id uint32) error {
	b := &c.block
	if s := c.streams[id]; s != nil {
		b.kind, b.stream, b.open = blockTrailers, s, true
		switch {
		case s.remoteEnd:
			b.reset(c, h2.ErrCodeStreamClosed, "HEADERS after END_STREAM")
		case !b.end:
			b.reset(c, h2.ErrCodeProtocol, "trailers without END_STREAM")
		}
		return nil
	}
	if id <= c.lastID {
		switch c.closed.how(id) {
		case closedByEnd:
			return connError(h2.ErrCodeStreamClosed, "HEADERS on a stream that is closed")
		case closedUnknown:
			return connError(h2.ErrCodeProtocol, "HEADERS on a stream lower than the last")
		case closedByUs:
		}
		b.kind = blockIgnored
		return c.charge(ClosedStreams, 2)
	}
	c.lastID = id
	switch {
	case c.draining == drainLast:
		b.kind = blockIgnored
		return c.charge(RefusedStreams, 1)
	case len(c.streams) >= int(c.cfg.MaxStreams), c.running >= 2*int(c.cfg.MaxStreams):
		b.reset(c, h2.ErrCodeRefusedStream, "too many streams")
		if c.settings.acked {
			return c.charge(RefusedStreams, 2)
		}
		return nil
	}
	c.served = id
	b.stream = c.newStream(id)
	return nil
}

// reset makes the block one that is only decoded. A stream that was made for it is given back.
func (b *headerBlock) reset(c *Conn, code h2.ErrCode, cause string) {
	if b.kind == blockRequest && b.stream != nil {
		b.stream.recycle()
		b.stream = nil
	}
	b.kind, b.code, b.cause = blockReset, code, cause
}

func (c *Conn) onContinuation(fh h2.FrameHeader, p []byte) error {
	if c.block.id != fh.StreamID { // the Framer has seen to it
		return connError(h2.ErrCodeProtocol, "CONTINUATION without HEADERS")
	}
	cost := 1
	if len(p) < 64 {
		cost = 8 // nobody cuts a header block into such pieces
	}
	if err := c.charge(Continuations, cost); err != nil {
		return err
	}
	return c.fragment(fh, p)
}

// fragment decodes a piece of a header block. A block may be twice as large as the fields of a request may be, so that
// a request which is somewhat too large gets an answer.
func (c *Conn) fragment(fh h2.FrameHeader, p []byte) error {
	b := &c.block
	b.frames++
	b.bytes += len(p)
	if b.frames > 1+continuations || b.bytes > 2*c.cfg.MaxHeaderBytes {
		return &Misuse{Kind: Continuations}
	}
	if b.open && c.streams[b.id] == nil {
		// It came to its end while its trailers were coming in, and may serve another request by now.
		b.kind, b.stream = blockIgnored, nil
	}
	for len(p) > 0 { // in pieces, so that what is made to be large is noticed while it is unpacked
		n := min(len(p), blockPiece)
		_, err := c.decoder.Write(p[:n])
		switch {
		case err != nil && !errors.Is(err, hpack.ErrStringLength):
			return connError(h2.ErrCodeCompression, err.Error())
		case err != nil, b.unpacked > blockGrowth*c.cfg.MaxHeaderBytes:
			if b.frames > 1 {
				return &Misuse{Kind: Continuations}
			}
			return &Misuse{Kind: HeaderFloods}
		}
		p = p[n:]
	}
	if fh.Flags&h2.FlagHeadersEndHeaders == 0 {
		if c.partial == 0 {
			c.partial = c.lastActive.Load()
		}
		return nil
	}
	if err := c.decoder.Close(); err != nil {
		return connError(h2.ErrCodeCompression, err.Error())
	}
	block := *b
	*b = headerBlock{}
	return c.finishBlock(block)
}

// onField takes one decoded field of the block.
func (c *Conn) onField(f hpack.HeaderField) {
	s := c.block.stream
	if s == nil {
		return
	}
	switch c.block.kind {
	case blockRequest:
		s.addField(&c.cfg, f.Name, f.Value)
	case blockTrailers:
		s.addTrailer(&c.cfg, f.Name, f.Value)
	case blockReset, blockIgnored:
	}
	c.block.unpacked += len(f.Name) + len(f.Value) + fieldOverhead
	if c.block.unpacked > blockGrowth*c.cfg.MaxHeaderBytes {
		c.decoder.SetEmitEnabled(false) // the rest need not even be unpacked
	}
}

func (c *Conn) finishBlock(b headerBlock) error {
	s := b.stream
	switch b.kind {
	case blockIgnored:
		return nil
	case blockReset:
		if s != nil {
			return c.streamError(s, b.code, b.cause)
		}
		c.writeReset(b.id, b.code)
		c.closed.add(b.id, closedByUs)
		if b.code == h2.ErrCodeRefusedStream {
			return nil // charged already
		}
		return c.charge(CausedResets, costCaused)
	case blockTrailers:
		return c.finishTrailers(s)
	case blockRequest:
	}
	if s.bad == nil && !s.tooLarge {
		s.finishFields(b.end)
	}
	switch {
	case s.tooLarge:
		return c.refuse(s, b.end, 431, errTooLarge, HeaderFloods, costRefused+b.bytes>>11) // it had to be unpacked all the same
	case s.bad != nil:
		return c.refuse(s, b.end, 0, s.bad, CausedResets, costCaused)
	case !s.allowed(c.cfg.Methods):
		return c.refuse(s, b.end, 501, errMethod, CausedResets, costRefused)
	}
	if c.cfg.Admit != nil {
		if retryAfter := c.cfg.Admit(); retryAfter > 0 {
			c.answer(s, b.end, 503, retryAfter, errOverload)
			return nil // it is no fault of the client
		}
	}
	s.open = true
	c.streams[s.id] = s
	c.running++
	c.starting = s
	if b.end {
		s.noBody = true
		s.endRemote()
	}
	return nil
}

func (c *Conn) finishTrailers(s *Stream) error {
	switch {
	case s.tooLarge:
		return c.streamError(s, h2.ErrCodeEnhanceYourCalm, "trailers are too large")
	case s.bad != nil:
		return c.streamError(s, h2.ErrCodeProtocol, s.bad.Error())
	case s.length >= 0 && s.got != s.length:
		return c.streamError(s, h2.ErrCodeProtocol, "body is not as long as content-length says")
	}
	s.endRemote()
	s.readable.Signal()
	return nil
}

var (
	errTooLarge = errors.New("header fields are larger or more than allowed")
	errMethod   = errors.New("method is not allowed")
	errOverload = errors.New("no room for another exchange")
)

// refuse answers a request that does not reach the handler for a fault of its client.
func (c *Conn) refuse(s *Stream, end bool, status int, cause error, kind MisuseKind, cost int) error {
	c.answer(s, end, status, 0, cause)
	return c.charge(kind, cost)
}

// answer ends a request that does not reach the handler: with a status, or by RST_STREAM.
func (c *Conn) answer(s *Stream, end bool, status, retryAfter int, cause error) {
	s.bad, s.refusedWith = cause, status
	how := closedByUs
	if status == 0 {
		c.writeReset(s.id, h2.ErrCodeProtocol)
	} else {
		c.writeStatus(s.id, status, retryAfter)
		if end {
			how = closedByEnd
		} else {
			c.writeReset(s.id, h2.ErrCodeNo)
			c.misuse.early(c.initialWindow())
		}
	}
	c.closed.add(s.id, how)
	c.refused = s
}
