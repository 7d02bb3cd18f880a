// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	firstBuffer = 4 << 10  // for request heads; grows to what the limits allow
	flushAt     = 16 << 10 // a TLS record's worth of reply is sent on
)

// http1State is what a connection needs to speak HTTP/1.1.
type http1State struct {
	in   []byte // from r to n: read and not used up
	r, n int
	out  []byte // reply bytes not sent yet
	err  error  // of an earlier flush

	request  http1.Request
	expects  bool // waits for 100 Continue
	keep     bool // another request can follow
	chunked  bool // the reply's body is sent in chunks
	bodyDone atomic.Bool
	left     int64 // of a body with a length
	decoder  http1.Chunked
	body     *[bufferSize]byte // raw bytes of a chunked body, from bodyR to bodyN
	bodyR    int
	bodyN    int
	taken    int64 // bytes of a chunked body, for the limit
	most     int64
}

var _ client = (*conn)(nil)

func (c *conn) serveHTTP1() {
	h := &c.http1
	h.in = make([]byte, firstBuffer)
	for !c.closing.Load() {
		snap := c.worker.current.Load()
		n, start, fault, err := c.readHead(snap)
		if err != nil {
			return
		}
		ex := c.newExchange(c, snap)
		ex.start = start
		if fault != nil {
			c.refuseHead(ex, fault)
			c.linger()
			return
		}
		c.beginRequest(ex, n)
		c.runGuarded(ex)
		c.endRequest()
		c.freeExchange(ex)
		if !h.keep {
			if !h.bodyDone.Load() {
				c.linger()
			}
			return
		}
	}
}

// readHead waits for the next request. The connection is idle until its first byte
// comes; from then on the head has its own time.
func (c *conn) readHead(snap *snapshot) (n int, start time.Time, fault *http1.Fault, err error) {
	h, w := &c.http1, c.worker
	begun := h.n > h.r
	if begun {
		start = time.Now()
		c.deadline.Store(w.until(snap.policy.Timeouts.Header))
	} else {
		h.r, h.n = 0, 0
		c.deadline.Store(w.until(snap.policy.Timeouts.Keepalive))
		c.idle.Store(true)
		defer c.idle.Store(false)
		if c.closing.Load() {
			return 0, start, nil, io.EOF // drain may have missed the idle flag
		}
	}
	seen := 0
	for {
		n, fault = h.request.Parse(h.in[h.r:h.n], seen, &snap.limits)
		if n > 0 || fault != nil {
			c.deadline.Store(0)
			return n, start, fault, nil
		}
		seen = h.n - h.r
		if h.n == len(h.in) {
			c.growInput(snap)
		}
		got, err := c.tls.Read(h.in[h.n:])
		if got == 0 {
			if begun && c.expired.Load() {
				c.countLateHead(snap, start)
			}
			return 0, start, nil, err
		}
		h.n += got
		if !begun {
			begun, start = true, time.Now()
			c.idle.Store(false)
			c.deadline.Store(w.until(snap.policy.Timeouts.Header))
		}
	}
}

// growInput makes room behind n: Parse refuses before the limit is passed.
func (c *conn) growInput(snap *snapshot) {
	h := &c.http1
	if h.r > 0 {
		h.n = copy(h.in, h.in[h.r:h.n])
		h.r = 0
		return
	}
	bigger := make([]byte, min(2*len(h.in), snap.limits.HeaderBytes+snap.limits.LineBytes+firstBuffer))
	copy(bigger, h.in)
	h.in = bigger
}

// countLateHead records a request whose head did not come in time.
func (c *conn) countLateHead(snap *snapshot, start time.Time) {
	ex := c.newExchange(c, snap)
	ex.start, ex.major, ex.outcome, ex.status = start, 1, zone.RequestClientTimeout, 408
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	ex.record()
	c.freeExchange(ex)
}

// refuseHead answers a head that cannot be read.
func (c *conn) refuseHead(ex *Exchange, fault *http1.Fault) {
	h := &c.http1
	h.keep = false
	h.bodyDone.Store(false)
	ex.major, ex.minor = 1, 1
	ex.bytesIn = uint64(h.n - h.r)
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	ex.worker.slab.Add(zone.RequestsHTTP1, 1)
	_ = giveID(ex)
	ex.refuse(&refusal{status: fault.Status, outcome: outcomeOf(fault), text: fault.Reason})
	ex.record()
	c.freeExchange(ex)
}

// beginRequest sets the exchange up from the parsed head of n bytes.
func (c *conn) beginRequest(ex *Exchange, n int) {
	h := &c.http1
	r := &h.request
	ex.major, ex.minor = 1, r.Minor
	ex.method, ex.target, ex.host = r.Method, r.Target, r.Host
	ex.userAgent, ex.referer, ex.body = r.UserAgent, r.Referer, r.Body
	ex.fields = append(ex.fields, r.Fields...)
	ex.bytesIn = uint64(n)
	h.r += n
	h.keep = r.KeepAlive
	h.expects = r.Expects100
	h.left, h.decoder, h.taken, h.most = r.Body.Length, http1.Chunked{}, 0, ex.snap.policy.Sizes.BodyBytes
	h.bodyDone.Store(r.Body.Empty())
	c.worker.slab.Add(zone.RequestsHTTP1, 1)
}

// runGuarded runs the exchange; a panic costs the connection and is its outcome.
func (c *conn) runGuarded(ex *Exchange) {
	defer func() {
		if v := recover(); v != nil {
			c.worker.recovered(v)
			c.http1.keep = false
		}
	}()
	ex.run()
}

// endRequest brings bytes behind a chunked body back to where the next head is read.
func (c *conn) endRequest() {
	h := &c.http1
	if h.body == nil {
		return
	}
	if rest := h.body[h.bodyR:h.bodyN]; len(rest) > 0 {
		h.in = append(append(make([]byte, 0, max(firstBuffer, 2*len(rest))), rest...), h.in[h.r:h.n]...)
		h.r, h.n = 0, len(h.in)
		h.in = h.in[:cap(h.in)]
	}
	c.worker.buffers.put(h.body)
	h.body, h.bodyR, h.bodyN = nil, 0, 0
}

func (c *conn) proceed() {
	h := &c.http1
	if !h.expects || h.n > h.r {
		return
	}
	h.expects = false
	_, _ = c.tls.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
}

// readRaw takes what came with the head first.
func (c *conn) readRaw(p []byte) (int, error) {
	h := &c.http1
	if h.r < h.n {
		n := copy(p, h.in[h.r:h.n])
		h.r += n
		return n, nil
	}
	c.deadline.Store(c.worker.until(c.worker.current.Load().policy.Timeouts.Body))
	n, err := c.tls.Read(p)
	c.deadline.Store(0)
	if n > 0 {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return 0, err
}

func (c *conn) readBody(p []byte) (int, error) {
	h := &c.http1
	if h.bodyDone.Load() {
		return 0, io.EOF
	}
	if h.request.Body.Chunked {
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
	if h.body == nil {
		h.body = c.worker.buffers.get()
		h.bodyR, h.bodyN = 0, 0
	}
	for {
		data, n, fault := h.decoder.Next(h.body[h.bodyR:h.bodyN])
		if fault != nil {
			return 0, fault
		}
		if len(data) > len(p) {
			return 0, io.ErrShortBuffer // cannot be: readers bring bufferSize
		}
		h.bodyR += n
		got := copy(p, data)
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
		if h.bodyR > 0 {
			h.bodyN = copy(h.body[:], h.body[h.bodyR:h.bodyN])
			h.bodyR = 0
		}
		read, err := c.readRaw(h.body[h.bodyN:])
		if err != nil {
			return 0, err
		}
		h.bodyN += read
	}
}

func (c *conn) stopBody() {
	c.http1.keep = false
	_ = c.tcp.SetReadDeadline(time.Unix(1, 0))
}

// begin writes the head into the output buffer, for the company of the body.
func (c *conn) begin(ex *Exchange, r *http1.Response) error {
	h := &c.http1
	ex.replied, ex.status = true, r.Status
	if c.closing.Load() || !h.bodyDone.Load() {
		h.keep = false
	}
	h.err = nil
	b := append(h.out[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, ' ')
	if len(r.Reason) > 0 {
		b = append(b, r.Reason...)
	} else {
		b = append(b, http.StatusText(r.Status)...)
	}
	b = append(b, "\r\n"...)
	bodiless := r.Body.Empty() && (string(ex.method) == "HEAD" || r.Status == 304)
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.Kind {
		case http1.ContentLength:
			if !bodiless {
				continue // framed below
			}
		case http1.TransferEncoding, http1.Connection, http1.HopByHop, http1.RequestID, http1.Trailer:
			continue
		}
		b = appendField(b, f.Name, f.Value)
	}
	b = append(b, "X-Request-Id: "...)
	b = append(b, ex.id[:]...)
	b = c.appendFraming(append(b, "\r\n"...), ex, r, bodiless)
	h.out = append(b, "\r\n"...)
	ex.bytesOut += uint64(len(h.out))
	return nil
}

// appendFraming says how the body ends and what becomes of the connection.
func (c *conn) appendFraming(b []byte, ex *Exchange, r *http1.Response, bodiless bool) []byte {
	h := &c.http1
	h.chunked = false
	switch {
	case bodiless || r.Status == 204:
	case r.Body.Length >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, r.Body.Length, 10)
		b = append(b, "\r\n"...)
	case ex.minor == 0:
		h.keep = false // the end of the connection ends the body
	default:
		h.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case !h.keep:
		b = append(b, "Connection: close\r\n"...)
	case ex.minor == 0:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	return b
}

func (c *conn) write(ex *Exchange, p []byte) error {
	h := &c.http1
	if h.err != nil {
		return h.err
	}
	ex.bytesOut += uint64(len(p))
	if len(h.out) == 0 && len(p) >= flushAt && !h.chunked {
		c.send(p) // nothing to join it with: spare the copy
		return h.err
	}
	if h.chunked {
		h.out = http1.AppendChunk(h.out, p)
	} else {
		h.out = append(h.out, p...)
	}
	if len(h.out) >= flushAt {
		c.flush()
	}
	return h.err
}

func (c *conn) flush() {
	h := &c.http1
	if len(h.out) == 0 || h.err != nil {
		return
	}
	c.send(h.out)
	h.out = h.out[:0]
}

func (c *conn) send(p []byte) {
	c.deadline.Store(c.worker.until(c.worker.current.Load().policy.Timeouts.Write))
	_, c.http1.err = c.tls.Write(p)
	c.deadline.Store(0)
}

func (c *conn) end(*Exchange) error {
	h := &c.http1
	if h.chunked {
		h.out = http1.AppendLastChunk(h.out)
	}
	c.flush()
	return h.err
}

// abort closes without the end of the body, so that it cannot pass for complete.
func (c *conn) abort() {
	c.http1.keep = false
	c.http1.bodyDone.Store(true) // nothing to linger for
	c.flush()
	_ = c.tcp.SetReadDeadline(time.Unix(1, 0))
	_ = c.tcp.Close()
}

func (c *conn) readError(err error) zone.RequestOutcome {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return zone.RequestClientReset
	}
	return c.clientOutcome(err)
}

func (c *conn) writeError(err error) zone.RequestOutcome { return c.clientOutcome(err) }
