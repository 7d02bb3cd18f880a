// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
)

// An attempt at an HTTP/2 upstream: what differs from one at HTTP/1.1 is how the request
// goes out and how the reply comes in. The request's head is made as for HTTP/1.1, once,
// whatever server it goes to, and read from there.

// refusalsMost is how often an exchange is sent again because a server has not looked at it.
const refusalsMost = 3

// prepareStream looks at what a stream to a server needs not do, or has to put up with.
func (ex *Exchange) prepareStream() {
	st, ok := ex.client.(*stream)
	if !ok {
		return
	}
	st.quiet = ex.isGRPC() // a message may be long in coming
	if !ex.body.Chunked {
		return
	}
	// A call of one message is usually here as a whole: it need not be sent as it comes, and
	// can be sent again.
	if n, whole := st.s.Whole(); whole && n > 0 && n <= smallBody {
		ex.body, ex.unsized = http1.Body{Length: int64(n)}, true
	}
}

// openStream sends what ex.request holds.
func (a *attempt) openStream() error {
	ex, s := a.ex, a.conn.stream
	scheme := schemeHTTP
	if a.conn.up.tls != nil {
		scheme = schemeHTTPS
	}
	b := ex.request
	method, b := cutAt(b, ' ')
	target, b := cutAt(b, ' ')
	_, b = cutAt(b, '\n')
	var authority []byte
	for {
		var line []byte
		if line, b = cutAt(b, '\n'); len(line) <= 1 {
			break
		}
		colon := bytes.IndexByte(line, ':')
		name, value := line[:colon], line[colon+len(": "):len(line)-len("\r")]
		switch {
		case len(name) == len("host") && equalFoldString(name, "host"):
			authority = value
			continue
		case ex.unsized && len(name) == len("content-length") && equalFoldString(name, "content-length"):
			continue // the stream's end tells
		}
		s.AddHeader(name, value) // but those of a connection
	}
	s.Begin(method, scheme, authority, target)
	err := s.EndHeaders(len(b) == 0 && !a.streamed)
	if err == nil && len(b) > 0 {
		_, err = s.Write(b, !a.streamed)
		if errors.Is(err, http2.ErrEnded) {
			err = nil // the reply is here, and tells why
		}
	}
	return a.streamError(err)
}

var schemeHTTP, schemeHTTPS = []byte("http"), []byte("https")

// cutAt is what is before the first c, and what is behind it.
func cutAt(b []byte, c byte) (before, behind []byte) {
	i := bytes.IndexByte(b, c)
	return b[:i], b[i+1:]
}

// streamError notes what an error of the stream says of its server.
func (a *attempt) streamError(err error) error {
	if err == nil {
		return nil // what follows allocates
	}
	var reset *http2.ResetError
	var protocol *http2.ConnError
	var misuse *http2.Misuse
	switch {
	case errors.Is(err, http2.ErrRefused):
		a.refused = true
	case errors.As(err, &reset) && reset.Remote:
		if st, ok := a.ex.client.(*stream); ok && a.ex.isGRPC() {
			a.passed, st.code = true, reset.Code // codes mean something to gRPC
		}
	case errors.As(err, &reset), errors.As(err, &protocol), errors.As(err, &misuse):
		err = errInvalidReply
	}
	a.lost = errors.Is(err, http2.ErrGone)
	return err
}

// mayRepeatRefused: a request that no server has looked at may be sent again whatever it is,
// as long as all of it is still here.
func (a *attempt) mayRepeatRefused() bool {
	ex := a.ex
	if ex.pump.running || ex.refusals == refusalsMost {
		return false
	}
	ex.refusals++
	if !a.conn.shared.Leaving() { // it refused this one stream: another server may take it
		if !a.conn.up.allowRetry() {
			return false
		}
		a.conn.up.markTried(ex, a.conn.server)
	}
	return true
}

// readStreamHead reads the reply's head, and passes interim ones on.
func (a *attempt) readStreamHead() error {
	ex := a.ex
	for {
		h, err := a.conn.stream.ReadHead()
		if err != nil {
			return a.streamError(err)
		}
		r := &ex.reply
		*r = http1.Response{Status: h.Status, Minor: 1, KeepAlive: true, Fields: r.Fields[:0]}
		trailers := false
		for _, f := range h.Fields {
			field := http1.Field{Name: f.Name, Value: f.Value, Kind: http1.KindOf(f.Name)}
			trailers = trailers || field.Kind == http1.Trailer
			r.Fields = append(r.Fields, field)
		}
		switch {
		case h.Status < 200:
			if a.passInterim() != nil {
				return errInvalidReply
			}
			continue
		case h.End, string(ex.method) == "HEAD", h.Status == 204, h.Status == 304:
		case h.Length >= 0 && !trailers: // with a length, HTTP/1.1 has no place for trailers
			r.Body = http1.Body{Length: h.Length}
		default:
			r.Body = http1.Body{Chunked: true, Length: -1}
		}
		return nil
	}
}

// passStream copies the body.
func (a *attempt) passStream() (upErr, clientErr error) {
	ex, s := a.ex, a.conn.stream
	for {
		if s.Waits() {
			ex.client.flush()
			a.conn.arm(ex.worker.until(ex.bodyTimeout()))
		}
		n, err := s.Read(a.in.b)
		a.conn.arm(0)
		if n > 0 {
			if err := ex.client.write(ex, a.in.b[:n]); err != nil {
				return nil, err
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			ex.trailers = appendTrailers(ex.trailers[:0], s.Trailers())
			return nil, nil
		}
		return a.streamError(err), nil
	}
}

// sendStream is send for a stream.
func (p *pump) sendStream(ex *Exchange, s *http2.ClientStream, piece []byte, last bool) bool {
	if last {
		p.fields = appendFields(p.fields[:0], ex.client.trailers())
	}
	ends := last && len(p.fields) == 0
	if len(piece) > 0 || ends {
		if _, err := s.Write(piece, ends); err != nil {
			return false
		}
	}
	return !last || ends || s.WriteTrailers(p.fields) == nil
}
