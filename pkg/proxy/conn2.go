// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Codes of RST_STREAM: RFC 9113, section 7.
const (
	codeNoError       = 0x0
	codeInternalError = 0x2
	codeCancel        = 0x8
)

// stream is an HTTP/2 stream as the client of an exchange. Streams are used again.
type stream struct {
	conn    *conn
	s       *http2.Stream
	fields  []http2.Field // of the reply's trailers
	trail   []http1.Field // the request's trailers
	quiet   bool          // the client may send its body as slowly as it likes
	code    uint32        // of an abort
	left    int64         // bytes of the reply's body still to come, where its length is known
	ended   bool
	expects bool // the client waits for an interim 100
	taken   int64
	most    int64
	cancel  func() // onCancel, bound once

	upstream *upConn // in use; guarded by the lock of conn.watched
}

var _ client = (*stream)(nil)

// http2Handler runs the exchanges of one connection.
type http2Handler struct {
	conn    *conn
	streams sync.Pool
}

// serveHTTP2 serves the connection until it is over.
func (c *conn) serveHTTP2(snap *snapshot) {
	h := &http2Handler{conn: c}
	h.streams.New = func() any {
		st := &stream{conn: c}
		st.cancel = st.onCancel
		return st
	}
	h2 := http2.NewConn(&recordWriter{c.stream, c}, http2Config(snap.policy, h), h)
	c.http2.Store(h2)
	if c.closing.Load() {
		h2.Shutdown() // drain may have missed it
	}
	_ = h2.Serve() // tellMisuse had its error
}

// recordWriter writes all records of a Write by one system call. One goroutine writes.
type recordWriter struct {
	transport
	conn *conn
}

func (w *recordWriter) Write(p []byte) (int, error) {
	if len(p) <= recordBytes {
		return w.transport.Write(p)
	}
	w.conn.hold()
	n, err := w.transport.Write(p)
	if held := w.conn.release(); err == nil {
		err = held
	}
	return n, err
}

func http2Config(p *policy.Snapshot, h *http2Handler) http2.Config {
	return http2.Config{
		MaxHeaderBytes: p.Sizes.HeaderBytes, MaxFields: p.Sizes.HeaderFields,
		Idle: p.Timeouts.Keepalive, Header: p.Timeouts.Header, Body: p.Timeouts.Body, Write: p.Timeouts.Write,
		Pool: h.conn.worker.http2, Panic: h.conn.worker.recovered, Refused: h.refused, Admit: func() int { return h.conn.admit(true) },
		Ending: h.conn.tellMisuse, Protocols: opensWebSockets(p),
	}
}

// begin borrows an exchange for the stream.
func (h *http2Handler) begin(s *http2.Stream) (*Exchange, *stream) {
	st := h.streams.Get().(*stream)
	st.expects = false
	st.s, st.left, st.ended, st.taken, st.quiet, st.code = s, -1, false, 0, false, codeInternalError
	c := h.conn
	snap := c.worker.current.Load()
	st.most = snap.policy.Sizes.BodyBytes
	ex := c.newExchange(st, snap)
	ex.major, ex.minor = 2, 0
	ex.method, ex.target, ex.host = s.Method(), s.Path(), s.Authority()
	c.worker.slab.Add(zone.RequestsHTTP2, 1)
	return ex, st
}

func (h *http2Handler) end(ex *Exchange, st *stream) {
	h.conn.worker.freeExchange(ex)
	st.s = nil
	h.streams.Put(st)
}

// ServeHTTP2 runs one exchange.
func (h *http2Handler) ServeHTTP2(s *http2.Stream) {
	ex, st := h.begin(s)
	for _, f := range s.Fields() {
		field := http1.Field{Name: f.Name, Value: f.Value, Kind: http1.KindOf(f.Name)}
		ex.bytesIn += uint64(len(f.Name) + len(f.Value))
		switch field.Kind {
		case http1.UserAgent:
			ex.userAgent = f.Value
		case http1.Referer:
			ex.referer = f.Value
		case http1.Expect:
			st.expects = true
		}
		ex.room = append(ex.room, field)
	}
	ex.fields = ex.room
	switch {
	case s.EndStream():
	case s.Protocol() != nil:
		// From here on it is what it is in HTTP/1.1, a GET; what goes with that is not of the client.
		ex.method, ex.head.WebSocket = []byte("GET"), true
	case s.ContentLength() >= 0:
		ex.body = http1.Body{Length: s.ContentLength()}
		ex.late = s.ContentLength() == 0
	default:
		ex.body = http1.Body{Chunked: true, Length: -1}
	}
	s.SetCancel(st.cancel)
	ex.run()
	h.end(ex, st)
}

// refused records a request that the codec answered by itself.
func (h *http2Handler) refused(s *http2.Stream, status int, _ error) {
	ex, st := h.begin(s)
	ex.status = status
	switch status {
	case 431:
		ex.outcome = zone.RequestHeaderTooLarge
	case 501:
		ex.outcome = zone.RequestMethodRefused
	case 503:
		ex.outcome = zone.RequestOverload
	default:
		ex.status, ex.outcome = 400, zone.RequestHTTP2Error
	}
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	_ = giveID(ex)
	ex.record()
	h.end(ex, st)
}

// onCancel runs when the client reset the stream or the connection is gone.
func (st *stream) onCancel() {
	c := st.conn
	c.watched.Lock()
	defer c.watched.Unlock()
	if st.upstream != nil {
		st.cancelUpstream()
	}
}

func (st *stream) watch(u *upConn) {
	c := st.conn
	c.watched.Lock()
	st.upstream = u
	if u == nil {
		c.reclaim(st)
	}
	c.watched.Unlock()
	if u != nil && st.s.Cancelled() {
		st.onCancel() // the hook may have come before
	}
}

func (st *stream) dropBody() { st.s.Discard() }

func (st *stream) hasLeft() bool { return st.s.Cancelled() }

func (st *stream) proceed() {
	if !st.expects {
		return
	}
	st.expects = false
	st.s.BeginHeaders(100)
	_ = st.s.EndHeaders(false) // what failed shows when the reply is sent
}

func (st *stream) awaitBody() bool {
	st.conn.receiving.Add(1)
	st.s.Await()
	st.conn.receiving.Add(-1)
	return true
}

func (st *stream) readBody(p []byte) (int, error) {
	if !st.quiet {
		st.conn.receiving.Add(1)
		defer st.conn.receiving.Add(-1)
	}
	n, err := st.s.Read(p)
	if st.taken += int64(n); st.most > 0 && st.taken > st.most {
		return 0, errBodyTooLarge
	}
	return n, err
}

func (st *stream) bound(most int64, wait time.Duration) {
	st.most = most
	st.s.SetBodyTimeout(wait)
}

func (st *stream) begin(ex *Exchange, r *http1.Response) error {
	ex.replied, ex.status = true, r.Status
	s := st.s
	s.BeginHeaders(r.Status)
	bodiless := r.Body.Empty() && (string(ex.method) == "HEAD" || r.Status == 304)
	said, announced := false, false
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.Kind {
		case http1.ContentLength:
			said = true
			if !bodiless {
				continue
			}
		case http1.TransferEncoding, http1.Connection, http1.HopByHop, http1.Upgrade, http1.RequestID:
			continue
		case http1.Trailer:
			announced = true
		}
		s.AddHeader(f.Name, f.Value)
		ex.bytesOut += uint64(len(f.Name) + len(f.Value))
	}
	st.left = r.Body.Length
	// With nothing in it a reply ends here, and no length need say so: gRPC has such ones.
	if (r.Body.Length > 0 || r.Body.Length == 0 && said) && !bodiless && r.Status != 204 {
		var digits [20]byte
		s.AddHeader([]byte("content-length"), strconv.AppendInt(digits[:0], r.Body.Length, 10))
	}
	s.AddHeader([]byte("x-request-id"), ex.id[:])
	switch {
	case string(ex.method) == "HEAD":
		st.left = 0
	case announced && st.left > 0:
		st.left = -1 // the end comes with the trailers
	}
	st.ended = st.left == 0
	return s.EndHeaders(st.ended)
}

func (st *stream) write(ex *Exchange, p []byte) error {
	ex.bytesOut += uint64(len(p))
	if st.left > 0 {
		st.left -= int64(len(p))
		st.ended = st.left <= 0
	}
	if cap(ex.request) > inputSize && st.s.Starved(len(p)) {
		ex.request = nil // it was sent, or never will be, and the client may take its time
	}
	st.conn.sending.Add(1)
	_, err := st.s.Write(p, st.ended)
	st.conn.sending.Add(-1)
	return err
}

func (st *stream) flush() {} // the connection's flusher does

func (st *stream) end(ex *Exchange) error {
	if st.ended {
		return nil
	}
	st.ended = true
	if len(ex.trailers) > 0 {
		st.fields = appendFields(st.fields[:0], ex.trailers)
		return st.s.WriteTrailers(st.fields)
	}
	_, err := st.s.Write(nil, true)
	return err
}

func (st *stream) abort() { st.s.Reset(st.code) }

func (st *stream) stopBody() { st.s.Reset(codeNoError) }

func (st *stream) readError(err error) zone.RequestOutcome {
	switch {
	case errors.Is(err, errBodyTooLarge):
		return zone.RequestBodyTooLarge
	case errors.Is(err, errPanic):
		return zone.RequestPanic
	case st.s.Err() != nil:
		err = st.s.Err() // the upstream's end was only the consequence
	}
	return st.writeError(err)
}

func (st *stream) writeError(err error) zone.RequestOutcome {
	var reset *http2.ResetError
	switch {
	case errors.Is(err, http2.ErrTimeout), st.conn.expired.Load():
		return zone.RequestClientTimeout
	case errors.As(err, &reset) && !reset.Remote:
		return zone.RequestHTTP2Error
	}
	return zone.RequestClientReset
}
