// SPDX-License-Identifier: Apache-2.0

package http1

// Response is a parsed response head; its slices point into the parsed bytes.
type Response struct {
	Status int
	Reason []byte
	Minor  uint8
	Fields []Field
	Body   Body
	// KeepAlive says that the connection can carry another request once the body
	// has been read.
	KeepAlive bool
	// WebSocket says that the server goes on with that protocol, in a reply of status 101.
	WebSocket bool
}

// Parse reads the head of the response to a request with the method. n is 0 with a
// nil fault when b does not hold it all yet; seen as for Request.Parse.
func (r *Response) Parse(b []byte, seen int, l *Limits, method []byte) (n int, fault *Fault) {
	end := headEnd(b, seen)
	if end < 0 {
		if len(b) > l.HeaderBytes {
			return 0, FaultTooLarge
		}
		return 0, nil
	}
	first, rest, _, fault := line(b[:end])
	if fault != nil {
		return 0, fault
	}
	*r = Response{Fields: r.Fields[:0]}
	if !r.parseLine(first) {
		return 0, FaultStatusLine
	}
	var f framing
	if r.Fields, fault = parseFields(rest, r.Fields, l.Fields, &f); fault != nil {
		return 0, fault
	}
	r.KeepAlive = !f.close && (r.Minor == 1 || f.keepAlive)
	r.WebSocket = r.Status == 101 && r.Minor == 1 && f.isWebSocket()
	switch {
	case r.Status < 200, r.Status == 204, r.Status == 304, string(method) == "HEAD":
		r.Body = Body{} // whatever the fields say: RFC 9112, 6.3
	case f.chunked:
		if r.Minor == 0 {
			return 0, FaultCoding
		}
		r.Body = Body{Chunked: true, Length: -1}
	case f.hasLength:
		r.Body = Body{Length: f.length}
	default:
		r.Body = Body{Length: -1}
		r.KeepAlive = false
	}
	return end, nil
}

// parseLine reads HTTP/1.x SP 3DIGIT [SP reason].
func (r *Response) parseLine(b []byte) bool {
	if len(b) < 12 || string(b[:7]) != "HTTP/1." || b[8] != ' ' {
		return false
	}
	switch b[7] {
	case '0', '1':
		r.Minor = b[7] - '0'
	default:
		return false
	}
	status, ok := decimal(b[9:12])
	if !ok || status < 100 || status > 599 {
		return false
	}
	r.Status = int(status)
	if len(b) > 12 {
		if b[12] != ' ' || !all(b[13:], classValue) {
			return false
		}
		r.Reason = b[13:]
	}
	return true
}
