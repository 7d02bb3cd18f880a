// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// Methods that are served; all others are answered 501.
var methods = [...]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// Request is a parsed request head. Its slices point into the bytes that were
// parsed, and are valid as long as those are.
type Request struct {
	Method []byte
	Target []byte // origin-form, or "*"
	Host   []byte // of the Host field; empty only in HTTP/1.0
	Minor  uint8  // 1 or 0
	Fields []Field
	Body   Body
	// KeepAlive says that the client can send another request on the connection.
	KeepAlive bool
	// Expects100 says that the client waits for "100 Continue" before the body.
	Expects100 bool
	// WebSocket says that the client asks to go on with that protocol: RFC 6455, 4.1. Other
	// upgrades are not known.
	WebSocket bool
	UserAgent []byte
	Referer   []byte
}

// Parse reads a head from the beginning of b. n is its length with the empty line;
// 0 with a nil fault means that b does not hold it all yet. seen is the length of b
// at the last call for the same head, 0 at the first.
func (r *Request) Parse(b []byte, seen int, l *Limits) (n int, fault *Fault) {
	skipped := 0
	if len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
		skipped, b = 2, b[2:] // one empty line before a request: RFC 9112, 2.2
	}
	end := headEnd(b, seen-skipped)
	if end < 0 {
		return 0, incomplete(b, l)
	}
	if end > l.HeaderBytes {
		return 0, FaultTooLarge
	}
	first, rest, _, fault := line(b[:end])
	if fault != nil {
		return 0, fault
	}
	if len(first) > l.LineBytes {
		return 0, FaultTargetLong
	}
	*r = Request{Fields: r.Fields[:0]}
	if fault := r.parseLine(first); fault != nil {
		return 0, fault
	}
	var f framing
	if r.Fields, fault = parseFields(rest, r.Fields, l.Fields, &f); fault != nil {
		return 0, fault
	}
	if fault := r.finish(&f); fault != nil {
		return 0, fault
	}
	return skipped + end, nil
}

// incomplete refuses early what more bytes cannot mend.
func incomplete(b []byte, l *Limits) *Fault {
	eol := bytes.IndexByte(b, '\n')
	if eol > l.LineBytes+len("\r") || eol < 0 && len(b) > l.LineBytes+len("\r") {
		return FaultTargetLong
	}
	if len(b) > l.HeaderBytes {
		return FaultTooLarge
	}
	for at := eol; at >= 0; {
		if at == 0 || b[at-1] != '\r' {
			return FaultLineEnd
		}
		next := bytes.IndexByte(b[at+1:], '\n')
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return nil
}

func (r *Request) parseLine(b []byte) *Fault {
	sp := bytes.IndexByte(b, ' ')
	if sp <= 0 {
		return FaultLine
	}
	r.Method, b = b[:sp], b[sp+1:]
	if !isToken(r.Method) {
		return FaultLine
	}
	sp = bytes.IndexByte(b, ' ')
	if sp <= 0 {
		return FaultLine
	}
	r.Target, b = b[:sp], b[sp+1:]
	switch {
	case bytes.Equal(b, []byte("HTTP/1.1")):
		r.Minor = 1
	case bytes.Equal(b, []byte("HTTP/1.0")):
		r.Minor = 0
	case len(b) == 8 && string(b[:5]) == "HTTP/" && isDigit(b[5]) && b[6] == '.' && isDigit(b[7]):
		return FaultVersion
	default:
		return FaultLine
	}
	if !known(r.Method) {
		return FaultMethod
	}
	return nil
}

func known(method []byte) bool {
	for _, m := range methods {
		if string(method) == m {
			return true
		}
	}
	return false
}

// finish checks what concerns several fields, and settles body and connection.
func (r *Request) finish(f *framing) *Fault {
	hosts, expects := 0, false
	for i := range r.Fields {
		switch field := &r.Fields[i]; field.Kind {
		case Host:
			hosts++
			r.Host = field.Value
		case Expect:
			expects, r.Expects100 = true, r.Minor == 1
		case UserAgent:
			r.UserAgent = field.Value
		case Referer:
			r.Referer = field.Value
		}
	}
	if expects && !ValidExpect(r.Fields) {
		return FaultExpect
	}
	if hosts > 1 || hosts == 0 && r.Minor == 1 || hosts == 1 && !ValidHost(r.Host) {
		return FaultHost
	}
	if fault := r.settleTarget(); fault != nil {
		return fault
	}
	if !ValidTarget(r.Target) {
		return FaultTarget
	}
	if f.chunked && r.Minor == 0 {
		return FaultCoding
	}
	r.Body = Body{Chunked: f.chunked, Length: f.length}
	if f.chunked {
		r.Body.Length = -1
	}
	r.KeepAlive = !f.close && (r.Minor == 1 || f.keepAlive)
	r.WebSocket = f.isWebSocket() && r.Minor == 1 && string(r.Method) == "GET" && r.Body.Empty() && !r.Expects100
	return nil
}

// ValidExpect: there is no other expectation than 100-continue, RFC 9110, 10.1.1.
func ValidExpect(fields []Field) bool {
	for i := range fields {
		if f := &fields[i]; f.Kind == Expect && !equalFold(f.Value, "100-continue") {
			return false
		}
	}
	return true
}

// settleTarget leaves origin-form or "*". Absolute-form is accepted where it says
// the same as Host, and cut down to its path.
func (r *Request) settleTarget() *Fault {
	t := r.Target
	if t[0] == '/' {
		return nil // origin-form
	}
	if len(t) == 1 && t[0] == '*' {
		if string(r.Method) != "OPTIONS" {
			return FaultTarget
		}
		return nil
	}
	for _, scheme := range [...]string{"https://", "http://"} {
		if len(t) <= len(scheme) || !equalFold(t[:len(scheme)], scheme) {
			continue
		}
		t = t[len(scheme):]
		slash := bytes.IndexByte(t, '/')
		if slash < 0 || !bytes.EqualFold(t[:slash], r.Host) {
			return FaultTarget
		}
		r.Target = t[slash:]
		return nil
	}
	return FaultTarget
}

// Idempotent is true for methods that may be sent twice: RFC 9110, 9.2.2.
func Idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "PUT", "DELETE", "OPTIONS":
		return true
	}
	return false
}
