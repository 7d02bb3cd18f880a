// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	h2 "golang.org/x/net/http2"
)

// Stream is one exchange: a request to read and a response to write. It belongs to its handler until ServeHTTP2 returns
// and is then used again for another request.
type Stream struct {
	c     *Conn
	start func() // run, bound
	sendHalf

	// The request. Written by the reader before the handler starts, read only afterwards.
	method, scheme, authority, path []byte
	protocol                        []byte
	fields                          []Field
	length                          int64 // content-length, -1 when there is none
	noBody                          bool
	began                           int64 // when the client was read that began it
	parse                           requestParse
	arena                           []byte // what the slices above point into
	bad                             error  // malformed; of the trailers while those are read
	tooLarge                        bool
	refusedWith                     int

	// All that follows is guarded by the connection's lock.
	done       bool // the handler has returned
	remoteEnd  bool
	headed     bool // final HEADERS were sent
	cancelled  atomic.Bool
	cancel     func()
	cancelling bool      // cancel is due or running
	calm       sync.Cond // cancelling became false

	got        int64 // bytes of body
	body       body
	recvWindow int64
	unacked    int64
	discards   bool // see Discard
	readable   sync.Cond
	readSince  int64         // since when Read waits, 0 when it does not
	readErr    error         // sticky, of Read only
	bodyTime   time.Duration // in place of Config.Body; 0: that
	trailers   []Field
	trailArena []byte
	trailBytes int

	// The response's fields between BeginHeaders and EndHeaders; the handler's own.
	reply reply
}

// newStream takes a stream from the pool. The lock is held.
func (c *Conn) newStream(id uint32) *Stream {
	s := c.pool.stream()
	s.c, s.wire, s.id, s.length, s.began = c, &c.wire, id, -1, c.lastActive.Load()
	s.readable.L, s.writable.L, s.calm.L = &c.mu, &c.mu, &c.mu
	s.sendWindow = c.peerWindow
	s.recvWindow = c.initialWindow()
	if !c.settings.acked {
		s.recvWindow = max(s.recvWindow, defaultWindow)
	}
	return s
}

// recycle makes the stream ready for another request. Nobody may hold it any more.
func (s *Stream) recycle() {
	const keep = 16 << 10 // what a rare large request grew is not kept for small ones
	pool := s.c.pool
	s.c, s.wire, s.id = nil, nil, 0
	s.method, s.scheme, s.authority, s.path, s.protocol = nil, nil, nil, nil, nil
	clear(s.fields) // they point into arenas that may have been left behind
	s.fields, s.arena, s.parse = s.fields[:0], s.arena[:0], requestParse{}
	clear(s.trailers)
	s.trailers, s.trailArena, s.trailBytes = s.trailers[:0], s.trailArena[:0], 0
	if cap(s.arena) > keep {
		s.arena = nil
	}
	if cap(s.trailArena) > keep {
		s.trailArena = nil
	}
	s.reply.reset(keep)
	s.noBody, s.bad, s.tooLarge, s.refusedWith, s.discards = false, nil, false, 0, false
	s.open, s.done, s.remoteEnd, s.localEnd, s.headed = false, false, false, false, false
	s.err, s.cancel, s.cancelling, s.readErr = nil, nil, false, nil
	s.cancelled.Store(false)
	s.got, s.unacked, s.readSince, s.writeSince, s.bodyTime = 0, 0, 0, 0, 0
	pool.streams.Put(s)
}

// run is the exchange, on the handler's goroutine.
func (s *Stream) run() {
	defer s.finish()
	s.c.handler.ServeHTTP2(s)
	s.reply.returned = true
}

// finish ends the exchange when the handler has returned or panicked.
func (s *Stream) finish() {
	c := s.c
	var thrown any
	if !s.reply.returned {
		thrown = recover() // nil for runtime.Goexit, which is as bad
	}
	s.settle()
	if thrown != nil && c.cfg.Panic != nil {
		c.cfg.Panic(thrown)
	}
	c.runHooks()
	s.recycle()
	c.exchangeOver()
}

// settle brings the stream to its end on the wire and waits until no cancel hook is under way.
func (s *Stream) settle() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.open {
		code := h2.ErrCodeNo
		if !s.reply.returned || !s.localEnd {
			code = h2.ErrCodeInternal
		}
		// With the response sent as a whole this asks the client to stop sending the rest of its request (RFC 9113, 8.1).
		c.writeReset(s.id, code)
		c.remove(s, closedByUs)
		if code == h2.ErrCodeNo {
			c.misuse.early(s.recvWindow)
		}
	}
	s.done = true
	c.giveBack(s.body.drop(c.pool))
	s.calmDown()
}

// calmDown waits until the cancel hook is neither due nor running. The lock is held.
func (s *Stream) calmDown() {
	for s.cancelling {
		s.calm.Wait()
	}
	s.cancel = nil
}

// exchangeOver counts a handler that has returned.
func (c *Conn) exchangeOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if c.running > 0 {
		return
	}
	c.idleAt = c.now()
	if c.finished() {
		c.endLocked(nil)
	}
	c.idle.Broadcast()
}

// ID is the stream's number.
func (s *Stream) ID() uint32 { return s.id }

// Protocol is what a CONNECT of RFC 8441 asks for; nil for any other request.
func (s *Stream) Protocol() []byte { return s.protocol }

// Method is one of Config.Methods, or CONNECT where there is a Protocol.
func (s *Stream) Method() []byte { return s.method }

// Scheme is http or https.
func (s *Stream) Scheme() []byte { return s.scheme }

// Authority is :authority or else the field host; with a port if it was given, never empty, never with userinfo.
func (s *Stream) Authority() []byte { return s.authority }

// Path begins with / and contains no space, control character, fragment or byte above 0x7e; or it is * (OPTIONS only).
func (s *Stream) Path() []byte { return s.path }

// Fields are the request's fields in order: names in lower case, values without forbidden characters, cookie crumbs
// put together. host is not among them: see Authority.
func (s *Stream) Fields() []Field { return s.fields }

// ContentLength is -1 when the client gave none. A body that differs from it resets the stream, so Read never returns
// io.EOF for it.
func (s *Stream) ContentLength() int64 { return s.length }

// EndStream says that the request has no body and no trailers.
func (s *Stream) EndStream() bool { return s.noBody }

// Whole says whether all of the request is here already, without trailers, and how many bytes of body it has.
func (s *Stream) Whole() (n int, whole bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.body.n, s.remoteEnd && len(s.trailers) == 0
}

// SetBodyTimeout sets a limit for this stream in place of Config.Body.
func (s *Stream) SetBodyTimeout(d time.Duration) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.bodyTime = d
	if d < c.shortest || c.shortest == 0 {
		c.shortest = d
		c.timer.Reset(c.period()) // else it might look too late
	}
}

// Cancelled says that the client has reset the stream or is gone.
func (s *Stream) Cancelled() bool { return s.cancelled.Load() }

// Err is why the stream ended before its exchange was over; nil while it has not.
func (s *Stream) Err() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.err
}

// SetCancel registers f, to be called once, at most, when the client resets the stream or is gone; at once when that
// has happened. f runs on another goroutine, must not block and must not use the stream. When SetCancel returns, and
// when the exchange is over, an f that was registered before neither runs nor will. Nil takes it back.
func (s *Stream) SetCancel(f func()) {
	c := s.c
	c.mu.Lock()
	s.calmDown()
	over := s.err != nil
	if !over {
		s.cancel = f
	}
	c.mu.Unlock()
	if over && f != nil {
		f()
	}
}

// Read reads the request's body. It waits for at least one byte; io.EOF says that the client has sent it as a whole.
// Other errors: ErrReset, ErrGone, ErrTimeout.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.await()
	switch {
	case s.err != nil:
		return 0, s.err
	case s.body.n > 0:
		n := s.body.take(c.pool, p)
		c.giveBack(int64(n) + c.widen(int64(n)))
		s.giveBack(int64(n))
		return n, nil
	case s.remoteEnd:
		return 0, io.EOF
	case s.readErr != nil:
		return 0, s.readErr
	}
	return 0, ErrEnded // reset by the handler itself
}

// Discard gives up the body, what is here and what is still to come: nobody reads any more.
func (s *Stream) Discard() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.discards = true
	c.giveBack(s.body.drop(c.pool))
}

// Starved says that Write would wait for the client's windows before it has sent n bytes.
func (s *Stream) Starved(n int) bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return int64(n) > min(s.sendWindow, s.c.sendWindow)
}

// Await waits until Read will not wait: for a reader that borrows its buffer only then.
func (s *Stream) Await() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.await()
}

func (s *Stream) await() {
	for s.err == nil && s.body.n == 0 && !s.remoteEnd && s.readErr == nil && !s.done && s.open {
		if s.readSince == 0 {
			s.readSince = s.c.now()
		}
		s.readable.Wait()
		if s.body.n > 0 || s.remoteEnd {
			s.readSince = 0
		}
	}
}

// Trailers are the request's trailer fields, once Read has returned io.EOF.
func (s *Stream) Trailers() []Field {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.remoteEnd {
		return nil
	}
	return s.trailers
}

// giveBack returns credit of the stream's window to the client, in batches. The lock is held.
func (s *Stream) giveBack(n int64) {
	s.unacked += n
	if s.remoteEnd || !s.open || s.unacked < max(1, s.c.initialWindow()/4) {
		return
	}
	s.c.writeWindowUpdate(s.id, s.unacked)
	s.recvWindow += s.unacked
	s.unacked = 0
}

// endRemote notes the client's END_STREAM. The lock is held.
func (s *Stream) endRemote() {
	s.remoteEnd = true
	if s.localEnd {
		s.ended()
	}
}

// ended takes a stream out of the open ones that both sides have ended. The lock is held.
func (s *Stream) ended() {
	s.c.remove(s, closedByEnd)
	s.c.misuse.useful(1)
}

// body is what the client has sent and the handler has not read.
type body struct {
	first, last *chunk
	n           int
}

func (b *body) put(pool *Pool, p []byte) {
	b.n += len(p)
	for len(p) > 0 {
		if b.last == nil || b.last.w == len(b.last.b) {
			k := pool.chunk()
			if b.last == nil {
				b.first = k
			} else {
				b.last.next = k
			}
			b.last = k
		}
		n := copy(b.last.b[b.last.w:], p)
		b.last.w += n
		p = p[n:]
	}
}

func (b *body) take(pool *Pool, p []byte) int {
	n := 0
	for n < len(p) && b.n > 0 {
		k := b.first
		m := copy(p[n:], k.b[k.r:k.w])
		k.r += m
		n += m
		b.n -= m
		if k.r == k.w {
			b.first = k.next
			if b.first == nil {
				b.last = nil
			}
			pool.putChunk(k)
		}
	}
	return n
}

// drop gives all up and returns how much it was.
func (b *body) drop(pool *Pool) int64 {
	n := b.n
	for k := b.first; k != nil; {
		next := k.next
		pool.putChunk(k)
		k = next
	}
	*b = body{}
	return int64(n)
}
