// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bytes"
	"strconv"
)

const (
	maxChunkLine = 256 // size, extensions (read and left out) and CR LF
	maxTrailer   = 8 << 10
	// maxExtension bounds all extensions of a body together: nobody needs them, and
	// a body of nothing else would be work without an end.
	maxExtension = 4 << 10
)

// Chunked decodes a chunked body piece by piece: RFC 9112, 7.1. The zero value is
// at the beginning of one.
type Chunked struct {
	left    uint64 // bytes of the present chunk
	state   chunkState
	trailer int    // bytes of trailer read
	extra   int    // bytes of extensions read
	lines   []byte // of the trailer, each with LF
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkDataEnd // the CR LF after the data
	chunkTrailer
	chunkDone
)

// Done is true after the last byte of the body, trailer included.
func (c *Chunked) Done() bool { return c.state == chunkDone }

// Next decodes from b: data is a piece of the body inside b (it may be empty), n is
// how many bytes of b were used up. Nothing used and not done means that more bytes
// are needed. Trailer fields are read, checked and kept: see AppendTrailers.
func (c *Chunked) Next(b []byte) (data []byte, n int, fault *Fault) {
	for {
		rest := b[n:]
		switch c.state {
		case chunkData:
			if len(rest) == 0 {
				return nil, n, nil
			}
			size := int(min(c.left, uint64(len(rest))))
			c.left -= uint64(size)
			if c.left == 0 {
				c.state = chunkDataEnd
			}
			return rest[:size], n + size, nil
		case chunkDone:
			return nil, n, nil
		}
		used, fault := c.step(rest)
		if fault != nil || used == 0 {
			return nil, n, fault
		}
		n += used
	}
}

// step reads one line; 0 when it is not all there.
func (c *Chunked) step(b []byte) (int, *Fault) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if c.state != chunkTrailer && len(b) > maxChunkLine || c.trailer+len(b) > maxTrailer {
			return 0, FaultChunk
		}
		return 0, nil
	}
	if i == 0 || b[i-1] != '\r' {
		return 0, FaultChunk
	}
	text := b[:i-1]
	switch c.state {
	case chunkSize:
		digits, extension, _ := bytes.Cut(text, []byte(";"))
		size, ok := hexadecimal(digits)
		c.extra += len(extension)
		if !ok || len(text) > maxChunkLine || c.extra > maxExtension || !all(extension, classValue) {
			return 0, FaultChunk
		}
		c.left, c.state = size, chunkData
		if size == 0 {
			c.state = chunkTrailer
		}
	case chunkDataEnd:
		if len(text) != 0 {
			return 0, FaultChunk
		}
		c.state = chunkSize
	case chunkTrailer:
		c.trailer += i + 1
		if c.trailer > maxTrailer {
			return 0, FaultTrailer
		}
		if len(text) == 0 {
			c.state = chunkDone
		} else if !validTrailer(text) {
			return 0, FaultTrailer
		} else {
			c.lines = append(append(c.lines, text...), '\n')
		}
	}
	return i + 1, nil
}

func hexadecimal(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 15 {
		return 0, false
	}
	n := uint64(0)
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | uint64(c)
	}
	return n, true
}

// validTrailer refuses what would frame or route the message: RFC 9110, 6.5.1.
func validTrailer(text []byte) bool {
	colon := bytes.IndexByte(text, ':')
	if colon < 0 || !isToken(text[:colon]) || !all(trim(text[colon+1:]), classValue) {
		return false
	}
	return mayTrail(kindOf(text[:colon]))
}

// mayTrail: fields that frame, route or connect come before the body or not at all.
func mayTrail(k Kind) bool {
	switch k {
	case Host, ContentLength, TransferEncoding, Connection, Expect, Trailer:
		return false
	}
	return true
}

// AppendTrailers appends the trailer fields that may go on. They are valid until the decoder
// is used for another body.
func (c *Chunked) AppendTrailers(fields []Field) []Field {
	for rest := c.lines; len(rest) > 0; {
		var text []byte
		text, rest, _ = bytes.Cut(rest, []byte{'\n'})
		name, value, _ := bytes.Cut(text, []byte{':'})
		if PassesAsTrailer(name) {
			fields = append(fields, Field{Name: name, Value: trim(value)})
		}
	}
	return fields
}

// PassesAsTrailer tells whether a field may go on in a trailer section. What a recipient
// would have needed before the body, to frame, route, allow or read the message, is left
// out, and so is what only a gateway may say: RFC 9110, 6.5.1.
func PassesAsTrailer(name []byte) bool {
	if kindOf(name) != Other {
		return false
	}
	for _, known := range notTrailers {
		if equalFold(name, known) {
			return false
		}
	}
	return true
}

// notTrailers are fields beside those with a kind of their own.
var notTrailers = [...]string{
	"accept", "accept-charset", "accept-encoding", "accept-language", "age", "authorization", "cache-control",
	"content-encoding", "content-location", "content-range", "content-type", "cookie", "date", "expires", "from",
	"if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "location", "max-forwards",
	"pragma", "proxy-authenticate", "proxy-authorization", "range", "retry-after", "set-cookie", "vary", "warning",
	"www-authenticate",
}

// AppendChunk encodes data as one chunk; empty data is left out, since an empty
// chunk would end the body.
func AppendChunk(dst, data []byte) []byte {
	if len(data) == 0 {
		return dst
	}
	const hex = "0123456789abcdef"
	digits := 1
	for n := len(data); n > 15; n >>= 4 {
		digits++
	}
	for i := digits - 1; i >= 0; i-- {
		dst = append(dst, hex[len(data)>>(4*i)&15])
	}
	dst = append(dst, "\r\n"...)
	dst = append(dst, data...)
	return append(dst, "\r\n"...)
}

// ChunkRoom is how many bytes FrameChunk needs in front of the data, and ChunkTail behind it.
const (
	ChunkRoom = 10 // eight digits and CRLF
	ChunkTail = 7  // CRLF and the last chunk
)

// FrameChunk makes a chunk, and with last the end of the body, of the n bytes at b[ChunkRoom:], in
// place. It returns the part of b that is to be sent.
func FrameChunk(b []byte, n int, last bool) []byte {
	from, to := ChunkRoom, ChunkRoom+n
	if n > 0 {
		var digits [ChunkRoom]byte
		size := append(strconv.AppendInt(digits[:0], int64(n), 16), "\r\n"...)
		from -= copy(b[ChunkRoom-len(size):], size)
		to += copy(b[to:], "\r\n")
	}
	if last {
		to += copy(b[to:], "0\r\n\r\n")
	}
	return b[from:to]
}

// AppendLastChunk ends a chunked body with trailer fields.
func AppendLastChunk(dst []byte, trailers []Field) []byte {
	dst = append(dst, "0\r\n"...)
	for i := range trailers {
		dst = append(append(dst, trailers[i].Name...), ": "...)
		dst = append(append(dst, trailers[i].Value...), "\r\n"...)
	}
	return append(dst, "\r\n"...)
}
