// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// http1State is what a connection needs to speak HTTP/1.1. Between requests, with
// nothing read ahead, it holds no buffer.
type http1State struct {
	in    *buffer // from r to n: read and not used up; nil while idle
	r, n  int
	first [1]byte // where an idle connection waits for its next request

	out []byte // reply bytes not sent yet, in buf
	buf *buffer
	err error // of an earlier send

	expects  bool // the client waits for 100 Continue
	unsure   bool // the client may speak HTTP/2: nothing was understood yet
	keep     bool // another request can follow
	chunked  bool // the reply's body is sent in chunks
	noPush   bool // only whole segments go out
	bodyDone atomic.Bool

	// The request's body, for the goroutine that reads it.
	incoming http1.Body
	left     int64 // of a body with a length
	decoder  http1.Chunked
	raw      *buffer // bytes of a chunked body not decoded yet, from rawR to rawN
	rawR     int
	rawN     int
	taken    int64 // bytes of a chunked body, for the limit
	most     int64
	bodyTime time.Duration
}

var _ client = (*conn)(nil)

// serveHTTP1 serves one request after the other.
func (c *conn) serveHTTP1() {
	h := &c.http1
	defer c.releaseInput()
	defer c.unqueue()
	if c.sock != nil {
		c.sock.waits = c.queue
	}
	// A client that was told nothing yet may send its next request at any moment.
	for !c.closing.Load() || c.worker.retiring.Load() {
		if h.in == nil && !c.waitIdle() {
			return
		}
		ex := c.newExchange(c, c.worker.current.Load())
		if c.queued.came != 0 {
			ex.start = c.queued.came
		}
		if !c.serveExchange(ex) {
			return
		}
		c.worker.freeExchange(ex)
		if h.r == h.n {
			c.releaseInput()
		}
	}
}

// waitIdle waits for the first byte of the next request; false ends the connection.
// The other bytes of the same record wait in the TLS connection, so that no buffer
// is needed until there is something to put into it.
func (c *conn) waitIdle() bool {
	h, w := &c.http1, c.worker
	c.readBy.Store(w.until(w.current.Load().policy.Timeouts.Keepalive))
	c.idle.Store(true)
	if c.closing.Load() && !w.retiring.Load() {
		return false // drain may have missed the idle flag
	}
	n, _ := c.stream.Read(h.first[:])
	c.idle.Store(false) // queue may have done so
	c.readBy.Store(0)
	if n == 0 {
		return false
	}
	h.in = w.inputs.get()
	h.in.b[0] = h.first[0]
	h.r, h.n = 0, 1
	return true
}

func (c *conn) releaseInput() {
	h := &c.http1
	c.worker.inputs.put(h.in)
	h.in, h.r, h.n = nil, 0, 0
}

// serveExchange serves the request that has begun to come; false ends the
// connection.
func (c *conn) serveExchange(ex *Exchange) bool {
	h, w := &c.http1, c.worker
	h.keep = false
	h.err = nil
	ex.major, ex.minor = 1, 1
	w.slab.Add(zone.RequestsHTTP1, 1)
	n, fault, err := c.readHead(ex)
	switch {
	case err != nil:
		c.failHead(ex, err)
		return false
	case fault != nil:
		c.refuseHead(ex, &refusal{status: fault.Status, outcome: outcomeOf(fault), text: fault.Reason})
		return false
	}
	h.unsure = false
	c.beginRequest(ex, n)
	retryAfter := c.claim(ex)
	if !c.runGuarded(ex, retryAfter) {
		return false
	}
	c.endRequest()
	if !h.keep && (!h.bodyDone.Load() || h.r < h.n) {
		c.linger() // the client may be sending still
	}
	if retryAfter > 0 && h.keep {
		c.rest(retryAfter)
	}
	return h.keep
}

// readHead reads the rest of the request's head and parses it.
func (c *conn) readHead(ex *Exchange) (n int, fault *http1.Fault, err error) {
	h, w := &c.http1, c.worker
	c.readBy.Store(w.until(ex.snap.policy.Timeouts.Header))
	defer c.readBy.Store(0)
	seen := 0
	for {
		if h.n-h.r > 1 { // more than waitIdle's byte
			n, fault = ex.head.Parse(h.in.b[h.r:h.n], seen, &ex.snap.limits)
			if n > 0 || fault != nil {
				return n, fault, nil
			}
			seen = h.n - h.r
		}
		if h.n == len(h.in.b) {
			c.growInput(ex.snap)
		}
		got, err := c.stream.Read(h.in.b[h.n:])
		if got == 0 {
			return 0, nil, err
		}
		h.n += got
	}
}

// growInput makes room behind n: Parse refuses before the limit is passed.
func (c *conn) growInput(snap *snapshot) {
	h := &c.http1
	if h.r > 0 {
		h.n = copy(h.in.b, h.in.b[h.r:h.n])
		h.r = 0
		return
	}
	most := max(snap.limits.HeaderBytes, snap.limits.LineBytes) + inputSize
	bigger := make([]byte, min(2*len(h.in.b), most))
	copy(bigger, h.in.b)
	h.in.b = bigger
}

// failHead ends an exchange whose head did not come.
func (c *conn) failHead(ex *Exchange, err error) {
	if c.clientOutcome(err) == zone.RequestClientTimeout {
		c.refuseHead(ex, &refusal{status: 408, outcome: zone.RequestClientTimeout, text: "the request came too slowly"})
		return
	}
	ex.bytesIn = uint64(c.http1.n - c.http1.r)
	ex.status, ex.outcome = 499, zone.RequestClientReset
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	_ = giveID(ex)
	ex.record()
}

// refuseHead answers a head that cannot be read. Where the next request would begin
// is unknown, so the connection ends.
func (c *conn) refuseHead(ex *Exchange, r *refusal) {
	h := &c.http1
	h.bodyDone.Store(false)
	ex.bytesIn = uint64(h.n - h.r)
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	_ = giveID(ex)
	if h.unsure { // a reply of HTTP/1.1 would be no frame for whoever got the preface wrong
		ex.status, ex.outcome = r.status, r.outcome
		ex.record()
		return
	}
	ex.refuse(r)
	ex.record()
	c.releaseOutput()
	c.linger()
}

// beginRequest sets the exchange up from the parsed head of n bytes.
func (c *conn) beginRequest(ex *Exchange, n int) {
	h := &c.http1
	r := &ex.head
	ex.minor = r.Minor
	ex.method, ex.target, ex.host = r.Method, r.Target, r.Host
	ex.userAgent, ex.referer, ex.body, ex.fields = r.UserAgent, r.Referer, r.Body, r.Fields
	ex.bytesIn = uint64(n)
	h.r += n
	h.keep = r.KeepAlive
	h.expects = r.Expects100
	h.incoming, h.left, h.taken = r.Body, r.Body.Length, 0
	h.decoder = http1.Chunked{}
	h.most, h.bodyTime = ex.snap.policy.Sizes.BodyBytes, ex.snap.policy.Timeouts.Body
	h.bodyDone.Store(r.Body.Empty())
	if c.closing.Load() {
		_ = c.tcp.SetReadDeadline(time.Time{}) // drain took it for idle; this request is still served
	}
}

// runGuarded runs the exchange; false: it panicked, which costs the connection and
// is the exchange's outcome. What a stray goroutine may still use is not used again.
func (c *conn) runGuarded(ex *Exchange, retryAfter int) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			c.worker.recovered(v)
		}
	}()
	if retryAfter == 0 {
		ex.run()
	} else {
		c.refuseOverload(ex, retryAfter)
	}
	return true
}

// endRequest gives buffers back; bytes behind a chunked body return to where the
// next head is read.
func (c *conn) endRequest() {
	h := &c.http1
	c.releaseOutput()
	if h.raw == nil {
		return
	}
	if rest := h.raw.b[h.rawR:h.rawN]; len(rest) > 0 && h.keep {
		behind := len(rest) + h.n - h.r
		in := make([]byte, max(inputSize, behind))
		copy(in[copy(in, rest):], h.in.b[h.r:h.n])
		h.in.b, h.r, h.n = in, 0, behind
	}
	c.worker.putBack(h.raw)
	h.raw, h.rawR, h.rawN = nil, 0, 0
}

func (c *conn) proceed() {
	h := &c.http1
	if !h.expects || h.n > h.r {
		return
	}
	h.expects = false
	c.send([]byte("HTTP/1.1 100 Continue\r\n\r\n"), nil)
}

// readRaw takes what came with the head first.
func (c *conn) readRaw(p []byte) (int, error) {
	h := &c.http1
	if h.r < h.n {
		n := copy(p, h.in.b[h.r:h.n])
		h.r += n
		return n, nil
	}
	c.readBy.Store(c.worker.until(h.bodyTime))
	c.receiving.Store(1)
	n, err := c.stream.Read(p)
	c.receiving.Store(0)
	c.readBy.Store(0)
	if n > 0 {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return 0, err
}

func (c *conn) awaitBody() bool { return false }

func (c *conn) readBody(p []byte) (int, error) {
	h := &c.http1
	if h.bodyDone.Load() {
		return 0, io.EOF
	}
	if h.incoming.Chunked {
		return c.readChunked(p)
	}
	if int64(len(p)) > h.left {
		p = p[:h.left]
	}
	n, err := c.readRaw(p)
	if h.left -= int64(n); h.left == 0 {
		h.bodyDone.Store(true)
		return n, io.EOF
	}
	return n, err
}

func (c *conn) readChunked(p []byte) (int, error) {
	h := &c.http1
	if h.raw == nil {
		h.raw = c.worker.inputs.get()
		h.rawR, h.rawN = 0, 0
	}
	got := 0
	for {
		for !h.decoder.Done() { // all pieces that are here, and that fit
			have := h.raw.b[h.rawR:h.rawN]
			// A piece is not longer than what holds it.
			data, n, fault := h.decoder.Next(have[:min(len(have), len(p)-got)])
			if n == 0 && got == 0 {
				data, n, fault = h.decoder.Next(have) // a trailer may be longer, and yields nothing
			}
			if fault != nil {
				return 0, fault
			}
			h.rawR += n
			got += copy(p[got:], data)
			if n == 0 {
				break
			}
		}
		if h.taken += int64(got); h.most > 0 && h.taken > h.most {
			return 0, errBodyTooLarge
		}
		if h.decoder.Done() {
			h.bodyDone.Store(true)
			return got, io.EOF
		}
		if got > 0 {
			return got, nil
		}
		c.compactRaw()
		read, err := c.readRaw(h.raw.b[h.rawN:])
		if err != nil {
			return 0, err
		}
		h.rawN += read
	}
}

// compactRaw makes room behind rawN. A client that fills the small buffer gets a large one.
func (c *conn) compactRaw() {
	h := &c.http1
	old := h.raw
	if h.rawN == len(old.b) && len(old.b) < bufferSize {
		h.raw = c.worker.buffers.get()
	}
	h.rawN = copy(h.raw.b, old.b[h.rawR:h.rawN])
	h.rawR = 0
	if h.raw != old {
		c.worker.putBack(old)
	}
}

func (c *conn) dropBody() {} // the end of the exchange decides

func (c *conn) hasLeft() bool { return false } // the sweeper looks

func (c *conn) bound(most int64, wait time.Duration) {
	c.http1.most, c.http1.bodyTime = most, wait
}

func (c *conn) stopBody() {
	c.http1.keep = false
	_ = c.tcp.SetReadDeadline(past)
}

func (c *conn) readError(err error) zone.RequestOutcome { return c.clientOutcome(err) }

func (c *conn) writeError(err error) zone.RequestOutcome { return c.clientOutcome(err) }
