// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"
)

// timeNow is bound once: see budget.charge.
var timeNow = time.Now

// ClientStream is one exchange after the other on a place of its connection: request to write, reply to read, which two
// goroutines may do at once. Between Reserve and Finish it belongs to one exchange. Reset may be called by any goroutine.
type ClientStream struct {
	c *ClientConn
	sendHalf

	// The request's head until EndHeaders sends it; the exchange's own.
	request                         reply
	method, scheme, authority, path []byte
	bodiless                        bool // the method is HEAD

	// All that follows is guarded by the connection's lock.
	done       bool
	remoteEnd  bool
	headed     bool // the final head is here
	heads      []head
	whole      int // of heads: the last one may still be coming in
	taken      int // heads that ReadHead has returned
	fields     []Field
	arena      []byte // what fields point into
	bytes      int
	length     int64 // content-length of the final reply, -1 for none
	trailers   int   // where they begin in fields; -1: there are none
	got        int64
	body       body
	recvWindow int64
	unacked    int64
	readable   sync.Cond
}

// head is a reply's head, interim or final: fields[from:to].
type head struct{ status, from, to int }

// Head is what a reply says before its body. The slices are valid until Finish.
type Head struct {
	Status int
	Fields []Field // names in lower case; no connection-specific ones
	Length int64   // of the body, -1 when the server does not say
	End    bool    // there is no body, and there are no trailers
}

// interimMost bounds the interim replies of an exchange.
const interimMost = 16

var (
	errTooMuch    = errors.New("fields of the reply are more or larger than allowed")
	errStatus     = errors.New(":status is missing or not valid")
	errInterim    = errors.New("interim replies are too many, or end the stream")
	errUnexpected = errors.New("HEADERS after the final reply that do not end the stream")
)

// NewStream makes one, without a place yet.
func (c *ClientConn) NewStream() *ClientStream {
	s := &ClientStream{c: c}
	s.wire = &c.wire
	s.readable.L, s.writable.L = &c.mu, &c.mu
	return s
}

// Renew makes the stream ready for an exchange, on a place that was reserved. From then on Reset ends that one.
func (s *ClientStream) Renew() {
	const keep = 16 << 10 // what a rare large reply grew is not kept for small ones
	s.request.reset(keep)
	clear(s.fields)
	s.fields, s.heads, s.arena = s.fields[:0], s.heads[:0], s.arena[:0]
	if cap(s.arena) > keep {
		s.arena = nil
	}
	s.open, s.localEnd, s.err, s.writeSince = false, false, nil, 0
	s.done, s.remoteEnd, s.headed = false, false, false
	s.whole, s.taken, s.bytes, s.length, s.trailers, s.got, s.unacked = 0, 0, 0, -1, -1, 0, 0
}

// Begin starts the request. Its slices must stay as they are until EndHeaders returns.
func (s *ClientStream) Begin(method, scheme, authority, path []byte) {
	s.method, s.scheme, s.authority, s.path = method, scheme, authority, path
	s.bodiless = string(method) == "HEAD"
}

// AddHeader adds a field, as Stream.AddHeader does.
func (s *ClientStream) AddHeader(name, value []byte) { s.request.add(name, value) }

// EndHeaders opens the stream, with end as a whole request. Nothing was sent when it fails.
func (s *ClientStream) EndHeaders(end bool) error {
	if s.request.err != nil {
		return s.request.err
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.waiting() >= c.outputBytes && !c.ending && s.err == nil {
		c.blocked = append(c.blocked, &s.writable)
		s.writable.Wait()
		c.unblock(&s.writable)
	}
	switch {
	case s.err != nil:
		return s.err
	case c.ending || c.dismissed || c.lastID >= maxWindow-1:
		c.leaving = true
		return ErrRefused
	}
	s.id = 1
	if c.lastID != 0 {
		s.id = c.lastID + 2
	}
	c.lastID = s.id
	s.open = true
	c.streams[s.id] = s
	s.sendWindow, s.recvWindow = c.peerWindow, int64(c.cfg.StreamWindow)
	c.writeRequest(s, end)
	s.localEnd = end
	return nil
}

// writeRequest encodes the request's head.
func (c *ClientConn) writeRequest(s *ClientStream, end bool) {
	at := c.appendHeader(h2.FrameHeaders, 0, 0, 0)
	e := &c.encoder
	b := e.begin(c.out.b)
	switch string(s.method) {
	case "GET":
		b = append(b, 0x80|2)
	case "POST":
		b = append(b, 0x80|3)
	default:
		b = e.coded(b, 2, false, nameMethod, s.method)
	}
	if string(s.scheme) == "https" {
		b = append(b, 0x80|7)
	} else {
		b = append(b, 0x80|6)
	}
	if len(s.authority) > 0 {
		b = e.coded(b, 1, false, nameAuthority, s.authority)
	}
	b = e.coded(b, 4, false, namePath, s.path)
	c.out.b = s.request.encode(e, b)
	c.endBlock(at, s.id, end)
}

var nameMethod, nameAuthority, namePath = []byte(":method"), []byte(":authority"), []byte(":path")

// Write sends a piece of the request's body, and with end its end, as Stream.Write does. ErrEnded: the server wants no
// more of it.
func (s *ClientStream) Write(p []byte, end bool) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) == 0 && !end {
		return 0, s.stopped()
	}
	sent := 0
	for {
		if err := s.waitRoom(); err != nil {
			return sent, err
		}
		left := len(p) - sent
		n := int(min(int64(left), maxFrame, s.sendWindow, c.sendWindow))
		if left > 0 && n <= 0 {
			if err := s.waitWindow(); err != nil {
				return sent, err
			}
			continue
		}
		var flags h2.Flags
		if end && n == left {
			flags = h2.FlagDataEndStream
		}
		c.appendHeader(h2.FrameData, flags, s.id, n)
		c.out.b = append(c.out.b, p[sent:sent+n]...)
		s.sendWindow -= int64(n)
		c.sendWindow -= int64(n)
		c.misuse.sent(n)
		sent += n
		if sent == len(p) {
			if end {
				s.endLocal()
			}
			return sent, nil
		}
		if len(c.blocked) > 0 || len(c.streams) > 1 { // others have something to say, too
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
	}
}

// WriteTrailers ends the request with trailer fields.
func (s *ClientStream) WriteTrailers(fields []Field) error {
	s.request.reset(1 << 20)
	for _, f := range fields {
		s.request.add(f.Name, f.Value)
	}
	if s.request.err != nil {
		return s.request.err
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.waitRoom(); err != nil {
		return err
	}
	at := c.appendHeader(h2.FrameHeaders, 0, 0, 0)
	c.out.b = s.request.encode(&c.encoder, c.encoder.begin(c.out.b))
	c.endBlock(at, s.id, true)
	s.endLocal()
	return nil
}

func (s *ClientStream) endLocal() {
	s.localEnd = true
	if s.remoteEnd {
		s.ended()
	}
}

// endRemote notes the server's END_STREAM. The lock is held.
func (s *ClientStream) endRemote() {
	s.remoteEnd = true
	if s.localEnd {
		s.ended()
	}
	s.readable.Signal()
}

func (s *ClientStream) ended() {
	s.c.remove(s)
	s.c.misuse.useful(1)
}

// fail ends the stream for whoever uses it. The lock is held.
func (s *ClientStream) fail(err error) {
	if s.err != nil || s.done {
		return
	}
	s.err = err
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// ReadHead waits for the reply's next head: interim ones (status below 200), then the final one.
func (s *ClientStream) ReadHead() (Head, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.taken == s.whole {
		if s.err != nil {
			return Head{}, s.err
		}
		s.readable.Wait()
	}
	h := s.heads[s.taken]
	s.taken++
	out := Head{Status: h.status, Fields: s.fields[h.from:h.to:h.to], Length: -1}
	if h.status >= 200 {
		out.Length = s.length
		out.End = s.remoteEnd && s.body.n == 0 && s.trailers < 0
	}
	return out, nil
}

// Read reads the reply's body; io.EOF says that it is whole.
func (s *ClientStream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case s.body.n > 0:
			n := s.body.take(c.pool, p)
			s.giveBack(int64(n))
			return n, nil
		case s.remoteEnd:
			return 0, io.EOF
		case s.err != nil:
			return 0, s.err
		}
		s.readable.Wait()
	}
}

// Waits says that Read would wait.
func (s *ClientStream) Waits() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.body.n == 0 && !s.remoteEnd && s.err == nil
}

// Trailers are the reply's trailer fields, once Read has returned io.EOF.
func (s *ClientStream) Trailers() []Field {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.remoteEnd || s.trailers < 0 {
		return nil
	}
	return s.fields[s.trailers:]
}

// giveBack returns credit of the stream's window to the server, in batches. The lock is held.
func (s *ClientStream) giveBack(n int64) {
	s.unacked += n
	if s.remoteEnd || !s.open || s.unacked < int64(s.c.cfg.StreamWindow)/4 {
		return
	}
	s.c.writeWindowUpdate(s.id, s.unacked)
	s.recvWindow += s.unacked
	s.unacked = 0
}

// Reset ends the stream by RST_STREAM with CANCEL, unless it is over. Whoever reads or writes it sees ErrEnded.
func (s *ClientStream) Reset() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.cancel()
	s.fail(ErrEnded)
}

func (s *ClientStream) cancel() {
	if !s.open {
		return
	}
	c := s.c
	c.writeReset(s.id, h2.ErrCodeCancel)
	c.remove(s)
	if !s.remoteEnd {
		c.cancelled()
	}
}

// Finish ends the exchange, by RST_STREAM if it is not over, and gives the place back.
func (s *ClientStream) Finish() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.cancel()
	s.done = true
	s.body.drop(c.pool)
	c.places--
	if c.leaving && c.places == 0 {
		c.endLocked(nil)
	}
}

// beginHead: a header block for the stream begins. The lock is held, here and below.
func (s *ClientStream) beginHead() {
	s.heads = append(s.heads, head{from: len(s.fields)})
}

// addField takes one field of the block.
func (s *ClientStream) addField(b *clientBlock, name, value string) error {
	s.bytes += len(name) + len(value) + fieldOverhead
	if s.bytes > s.c.cfg.MaxHeaderBytes || len(s.fields) >= s.c.cfg.MaxFields {
		return errTooMuch
	}
	if len(name) > 0 && name[0] == ':' {
		status, ok := parseStatus(value)
		if name != ":status" || !ok || b.status || b.other || s.headed {
			return errStatus
		}
		b.status = true
		s.heads[len(s.heads)-1].status = status
		return nil
	}
	b.other = true
	switch {
	case !validName(name):
		return errName
	case !validValue(value):
		return errValue
	}
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return errConnection
	case "content-length":
		n, ok := parseLength(value)
		if s.headed || s.length >= 0 || !ok {
			return errLength
		}
		s.length = n
	case "host", "te":
		if s.headed {
			return errTrailer
		}
	}
	at := len(s.arena)
	s.arena = append(append(s.arena, name...), value...)
	saved := s.arena[at:len(s.arena):len(s.arena)]
	s.fields = append(s.fields, Field{Name: saved[:len(name):len(name)], Value: saved[len(name):]})
	return nil
}

func parseStatus(v string) (int, bool) {
	if len(v) != 3 || v[0] < '1' || v[0] > '9' || v[1] < '0' || v[1] > '9' || v[2] < '0' || v[2] > '9' {
		return 0, false
	}
	n := int(v[0]-'0')*100 + int(v[1]-'0')*10 + int(v[2]-'0')
	return n, n != 101 && n < 600
}

// endHead: the block is whole.
func (s *ClientStream) endHead(b *clientBlock) error {
	h := &s.heads[len(s.heads)-1]
	h.to = len(s.fields)
	switch {
	case s.headed: // trailers
		s.trailers = h.from
		s.heads = s.heads[:len(s.heads)-1]
		if !b.end || s.remoteEnd {
			return errUnexpected
		}
		if !s.fits(true) {
			return errLength
		}
		s.endRemote()
		return nil
	case !b.status:
		return errStatus
	case h.status < 200:
		if b.end || len(s.heads) > interimMost {
			return errInterim
		}
		s.length = -1
	default:
		s.headed = true
		if s.bodiless || h.status == 204 || h.status == 304 {
			s.bodiless = true
		}
		if b.end {
			if !s.fits(true) {
				return errLength
			}
			s.endRemote()
		}
	}
	s.whole = len(s.heads)
	s.readable.Signal()
	return nil
}

// fits says whether what has come of the body agrees with its length; end: it is all.
func (s *ClientStream) fits(end bool) bool {
	switch {
	case s.bodiless:
		return s.got == 0
	case s.length < 0:
		return true
	}
	return s.got < s.length && !end || s.got == s.length
}
