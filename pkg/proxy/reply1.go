// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"net/http"
	"strconv"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// flushAt is a TLS record's worth: so much of a reply is sent on.
const flushAt = 16 << 10

// begin writes the head into the output buffer, for the company of the body.
func (c *conn) begin(ex *Exchange, r *http1.Response) error {
	h := &c.http1
	ex.replied, ex.status = true, r.Status
	if c.closing.Load() || !h.bodyDone.Load() {
		h.keep = false
	}
	if h.buf == nil {
		h.buf = c.worker.outputs.get()
	}
	b := append(h.buf.b[:0], "HTTP/1.1 "...)
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
		case http1.TransferEncoding, http1.Connection, http1.HopByHop, http1.Upgrade, http1.RequestID:
			continue
		case http1.Trailer:
			if !r.Body.Chunked || ex.minor == 0 {
				continue // there is no place for them
			}
		}
		b = appendField(b, f.Name, f.Value)
	}
	b = append(b, "X-Request-Id: "...)
	b = append(b, ex.id[:]...)
	b = c.appendFraming(append(b, "\r\n"...), ex, r, bodiless)
	h.out = append(b, "\r\n"...)
	ex.bytesOut += uint64(len(h.out))
	if ex.snap.policy.TCP.NoPush && (h.chunked || r.Body.Length > flushAt) {
		c.noPush(true)
	}
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
	ex.bytesOut += uint64(len(p))
	if len(p) >= flushAt && !h.chunked { // long enough to spare the copy
		c.send(h.out, p)
		h.out = h.out[:0]
		return h.err
	}
	if len(h.out) > 0 && len(h.out)+len(p)+chunkOverhead > cap(h.out) {
		c.flush()
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

// chunkOverhead is what a chunk is longer than its data, at most.
const chunkOverhead = 16

func (c *conn) flush() {
	h := &c.http1
	if len(h.out) == 0 {
		return
	}
	c.send(h.out, nil)
	h.out = h.out[:0]
}

// send writes a, then b, by one system call.
func (c *conn) send(a, b []byte) {
	h := &c.http1
	if h.err != nil {
		return
	}
	c.writeBy.Store(c.worker.until(c.worker.current.Load().policy.Timeouts.Write))
	hold := c.held == nil && len(a)+len(b) > recordBytes
	if hold {
		c.hold()
	}
	if len(a) > 0 {
		_, h.err = c.stream.Write(a)
	}
	if len(b) > 0 && h.err == nil {
		_, h.err = c.stream.Write(b)
	}
	if hold {
		h.err = cmp.Or(h.err, c.release())
	}
	c.writeBy.Store(0)
}

// recordBytes is what a TLS record holds at most.
const recordBytes = 16 << 10

func (c *conn) end(ex *Exchange) error {
	h := &c.http1
	if h.chunked {
		h.out = http1.AppendLastChunk(h.out, ex.trailers)
	}
	if !h.keep && h.bodyDone.Load() && c.held == nil {
		c.hold() // until the connection ends, which follows
	}
	c.flush()
	c.noPush(false)
	return h.err
}

// releaseOutput gives the output buffer back.
func (c *conn) releaseOutput() {
	h := &c.http1
	if h.buf != nil {
		h.buf.b = h.out // it may have grown
		c.worker.outputs.put(h.buf)
		h.buf, h.out = nil, nil
	}
}

// abort ends the connection by a TCP reset, so that what the client has cannot pass
// for complete, not even where a body ends with the connection: many clients do not
// mind the end of TLS missing.
func (c *conn) abort() {
	h := &c.http1
	h.keep = false
	h.bodyDone.Store(true) // nothing to linger for
	if len(h.out) > 0 {
		c.flush()
	}
	c.cut()
}
