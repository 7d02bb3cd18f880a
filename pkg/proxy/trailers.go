// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
)

// interimMost bounds the interim replies of an exchange.
const interimMost = 16

// appendTrailers appends those trailer fields that may go on.
func appendTrailers(dst []http1.Field, from []http2.Field) []http1.Field {
	for _, f := range from {
		if http1.PassesAsTrailer(f.Name) {
			dst = append(dst, http1.Field{Name: f.Name, Value: f.Value})
		}
	}
	return dst
}

func appendFields(dst []http2.Field, from []http1.Field) []http2.Field {
	for _, f := range from {
		dst = append(dst, http2.Field{Name: f.Name, Value: f.Value})
	}
	return dst
}

// trailers are those of a chunked body.
func (c *conn) trailers() []http1.Field {
	h := &c.http1
	if !h.incoming.Chunked {
		return nil
	}
	return slices.DeleteFunc(h.decoder.AppendTrailers(nil), ambiguousName)
}

func (st *stream) trailers() []http1.Field {
	st.trail = slices.DeleteFunc(appendTrailers(st.trail[:0], st.s.Trailers()), ambiguousName)
	return st.trail
}

// ambiguousName: see appendHead.
func ambiguousName(f http1.Field) bool { return hasUnderscore(f.Name) }

// announcesTrailers: an HTTP/2 request whose length is known may still have trailers. It
// says so, or they are lost on it.
func (ex *Exchange) announcesTrailers() bool {
	if ex.major != 2 || ex.body.Empty() {
		return false
	}
	for i := range ex.fields {
		if ex.fields[i].Kind == http1.Trailer {
			return true
		}
	}
	return false
}

// takesTrailers: the client says that it will not drop a reply's trailers.
func (ex *Exchange) takesTrailers() bool {
	for i := range ex.fields {
		if f := &ex.fields[i]; f.Kind == http1.HopByHop && len(f.Name) == 2 && equalFoldString(f.Name, "te") {
			return len(f.Value) == len("trailers") && equalFoldString(f.Value, "trailers")
		}
	}
	return false
}

// passInterim passes an interim reply on: 103 and what is not known. The gateway answers
// 100-continue by itself, before it asks a server.
func (a *attempt) passInterim() error {
	if a.ex.reply.Status == 100 {
		return nil
	}
	return a.ex.client.interim(a.ex, &a.ex.reply)
}

// isInterimField: what is of the connection, or frames a body, has no place in an interim
// reply.
func isInterimField(f *http1.Field) bool {
	return f.Kind == http1.Other
}

func (c *conn) interim(ex *Exchange, r *http1.Response) error {
	if ex.minor == 0 {
		return nil // HTTP/1.0 has none
	}
	out := c.worker.outputs.get()
	b := append(out.b[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(append(b, ' '), http.StatusText(r.Status)...)
	b = append(b, "\r\n"...)
	for i := range r.Fields {
		if f := &r.Fields[i]; isInterimField(f) {
			b = appendField(b, f.Name, f.Value)
		}
	}
	b = append(b, "\r\n"...)
	ex.bytesOut += uint64(len(b))
	c.send(b, nil)
	out.b = b
	c.worker.outputs.put(out)
	return nil // what failed shows when the reply is sent
}

func (st *stream) interim(ex *Exchange, r *http1.Response) error {
	st.s.BeginHeaders(r.Status)
	for i := range r.Fields {
		if f := &r.Fields[i]; isInterimField(f) {
			st.s.AddHeader(f.Name, f.Value)
			ex.bytesOut += uint64(len(f.Name) + len(f.Value))
		}
	}
	_ = st.s.EndHeaders(false) // what failed shows when the reply is sent
	return nil
}

// isGRPC tells gRPC requests by their content type.
func (ex *Exchange) isGRPC() bool {
	if ex.major != 2 || string(ex.method) != "POST" {
		return false
	}
	for i := range ex.fields {
		f := &ex.fields[i]
		if f.Kind != http1.Other || len(f.Name) != len(contentTypeName) || !bytes.EqualFold(f.Name, contentTypeName) {
			continue
		}
		rest, ok := bytes.CutPrefix(f.Value, typeGRPC)
		return ok && (len(rest) == 0 || rest[0] == '+' || rest[0] == ';')
	}
	return false
}

var contentTypeName, typeGRPC = []byte("content-type"), []byte("application/grpc")

// refuseGRPC answers a gRPC request as gRPC does, with a head and nothing else.
func (ex *Exchange) refuseGRPC(r *refusal) {
	reply := &http1.Response{Status: 200, Fields: []http1.Field{
		{Name: contentTypeName, Value: typeGRPC},
		{Name: []byte("grpc-status"), Value: strconv.AppendInt(nil, int64(grpcStatus(r.status)), 10)},
		{Name: []byte("grpc-message"), Value: []byte(r.text)},
	}}
	ex.dress(reply)
	if err := ex.client.begin(ex, reply); err != nil {
		ex.client.abort() // the outcome stays: it is why there was nothing better to send
	}
}

// grpcStatus maps statuses of HTTP as gRPC's clients and other gateways do.
func grpcStatus(status int) int {
	switch status {
	case 400, 408:
		return 13 // INTERNAL
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 404, 405, 501:
		return 12 // UNIMPLEMENTED
	case 413, 431:
		return 8 // RESOURCE_EXHAUSTED
	case 429, 502, 503:
		return 14 // UNAVAILABLE
	case 504:
		return 4 // DEADLINE_EXCEEDED
	}
	return 2 // UNKNOWN
}
