// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/hex"
	"strconv"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// filter is one step of an exchange before the upstream: nil goes on, a refusal
// ends it.
type filter struct {
	name  string
	apply func(*Exchange) *refusal
}

// filterList is all of them, in the order in which they run.
func filterList() []filter {
	return []filter{
		{"request id", giveID},
		{"trace context", traceContext},
		{"client address", clientAddress},
		{"one reading", refuseAmbiguous},
		{"client certificate", clientCertificate},
		{"route", chooseRoute},
		{"tunnel", refuseTunnel},
		{"API key", apiKey},
		{"connection limit", limitConcurrency},
		{"request limit", limitRequests},
		{"trial", tryLimits},
		{"rewrite", rewriteTarget},
		{"body size", limitBody},
	}
}

// giveID makes the id that goes upstream and back. A client's own is not kept: it
// could be chosen to confuse logs.
func giveID(ex *Exchange) *refusal {
	var raw [16]byte
	n := ex.worker.idCounter.Add(1)
	for i := range 8 {
		raw[i] = byte(ex.worker.idPrefix >> (8 * i))
		raw[15-i] = byte(n >> (8 * i))
	}
	hex.Encode(ex.id[:], raw[:])
	return nil
}

// refuseAmbiguous refuses what an upstream might read in another way than the route
// table: dot segments, which it may resolve. It also holds HTTP/2 to the rules that
// the HTTP/1.1 parser has for targets, hosts and expectations, since both go on as HTTP/1.1.
func refuseAmbiguous(ex *Exchange) *refusal {
	if http1.DotSegments(ex.target) {
		return &refusal{status: 400, outcome: zone.RequestBad, text: "the path has a segment . or .."}
	}
	if ex.major == 2 && (!http1.ValidTarget(ex.target) || !http1.ValidHost(ex.host)) {
		return &refusal{status: 400, outcome: zone.RequestBad, text: "request target or authority is malformed"}
	}
	if ex.major == 2 && !http1.ValidExpect(ex.fields) {
		return &refusal{status: 417, outcome: zone.RequestBad, text: http1.FaultExpect.Reason}
	}
	return nil
}

// appendHead writes the request's head for the upstream: what the client sent, less
// what is hop by hop and what only a gateway may say, plus what this one says.
func (ex *Exchange) appendHead(b []byte) []byte {
	b = append(b, ex.method...)
	b = append(b, ' ')
	b = append(b, ex.upstreamTarget()...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, ex.upstreamHost()...)
	b = append(b, "\r\n"...)
	for i := range ex.fields {
		f := &ex.fields[i]
		switch f.Kind {
		case http1.Other, http1.UserAgent, http1.Referer:
			if ex.route.request.drops(f.Name) {
				continue
			}
			if hasUnderscore(f.Name) || ex.major == 2 && isWebSocketKey(f.Name) {
				continue // many servers read it as a dash: a way to forge other fields
			}
			b = appendField(b, f.Name, f.Value)
		case http1.Trailer:
			if ex.body.Chunked || ex.announcesTrailers() && ex.route.upstream.policy.Protocol == "http2" {
				b = appendField(b, f.Name, f.Value)
			}
		}
	}
	if !ex.webSocket && ex.takesTrailers() {
		b = append(b, "TE: trailers\r\nConnection: TE\r\n"...)
	}
	b = ex.route.request.append(b)
	if ex.webSocket {
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
		if ex.major == 2 {
			b = ex.appendWebSocketKey(b)
		}
	}
	switch {
	case ex.body.Chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case ex.body.Length > 0 || ex.expectsLength():
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, ex.body.Length, 10)
		b = append(b, "\r\n"...)
	}
	if ex.apiKey != nil {
		b = appendField(b, nameConsumer, ex.apiKey.Consumer)
	}
	b = ex.appendForwardedFor(b)
	b = append(b, "\r\nX-Forwarded-Proto: "...)
	b = append(b, ex.scheme...)
	b = append(b, "\r\nX-Forwarded-Host: "...)
	b = append(b, ex.host...)
	b = append(b, "\r\nX-Request-Id: "...)
	b = append(b, ex.id[:]...)
	b = ex.appendTrace(b)
	return append(b, "\r\n\r\n"...)
}

// expectsLength: a request of these methods without a body says so, RFC 9110, 8.6.
func (ex *Exchange) expectsLength() bool {
	switch string(ex.method) {
	case "POST", "PUT", "PATCH":
		return true
	}
	return false
}

var nameConsumer = []byte("X-Consumer")

func appendField(b, name, value []byte) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

func hasUnderscore(name []byte) bool {
	for _, c := range name {
		if c == '_' {
			return true
		}
	}
	return false
}
