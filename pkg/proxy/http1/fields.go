// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// kindOf recognises a field by its name.
func kindOf(name []byte) Kind {
	switch len(name) {
	case 2:
		if equalFold(name, "te") {
			return HopByHop
		}
	case 4:
		if equalFold(name, "host") {
			return Host
		}
	case 5:
		if equalFold(name, "proxy") { // CGI makes HTTP_PROXY of it
			return HopByHop
		}
	case 6:
		if equalFold(name, "expect") {
			return Expect
		}
	case 7:
		switch {
		case equalFold(name, "upgrade"):
			return Upgrade
		case equalFold(name, "referer"):
			return Referer
		case equalFold(name, "trailer"):
			return Trailer
		}
	case 9:
		if equalFold(name, "forwarded") || equalFold(name, "x-real-ip") {
			return Forwarded
		}
	case 10:
		switch {
		case equalFold(name, "connection"):
			return Connection
		case equalFold(name, "user-agent"):
			return UserAgent
		case equalFold(name, "keep-alive"):
			return HopByHop
		case equalFold(name, "tracestate"):
			return TraceState
		case equalFold(name, "x-consumer"):
			return Identity
		}
	case 11:
		switch {
		case equalFold(name, "traceparent"):
			return TraceParent
		case equalFold(name, "client-cert"):
			return Identity
		}
	case 12:
		if equalFold(name, "x-request-id") {
			return RequestID
		}
	case 14:
		if equalFold(name, "content-length") {
			return ContentLength
		}
	case 16, 19:
		if equalFold(name, "proxy-connection") || equalFold(name, "proxy-authorization") {
			return HopByHop
		}
	case 17:
		switch {
		case equalFold(name, "transfer-encoding"):
			return TransferEncoding
		case equalFold(name, "client-cert-chain"):
			return Identity
		}
	}
	if len(name) > 12 && equalFold(name[:12], "x-forwarded-") {
		return Forwarded
	}
	if len(name) > 14 && equalFold(name[:14], "x-client-cert-") {
		return Identity
	}
	return Other
}

// KindOf is kindOf for callers that have fields from elsewhere, such as HTTP/2.
func KindOf(name []byte) Kind { return kindOf(name) }

// framing collects, over all fields of a head, what decides where the body ends
// and what becomes of the connection.
type framing struct {
	length     int64
	hasLength  bool
	chunked    bool
	hasCoding  bool
	close      bool
	keepAlive  bool
	connection bool
	upgrades   int  // Upgrade fields
	webSocket  bool // the last of them is websocket
	upgrade    bool // Connection names it
}

// parseFields reads the lines of a head that follow its first one, the empty line
// included, appending to fields.
func parseFields(b []byte, fields []Field, most int, f *framing) ([]Field, *Fault) {
	for {
		text, rest, _, fault := line(b)
		if fault != nil {
			return fields, fault
		}
		if len(text) == 0 {
			return fields, markNamed(fields, f)
		}
		b = rest
		if len(fields) >= most {
			return fields, FaultTooMany
		}
		if text[0] == ' ' || text[0] == '\t' {
			return fields, FaultFolded
		}
		colon := bytes.IndexByte(text, ':')
		if colon < 0 || !isToken(text[:colon]) {
			return fields, FaultField
		}
		field := Field{Name: text[:colon], Value: trim(text[colon+1:])}
		if !all(field.Value, classValue) {
			return fields, FaultField
		}
		field.Kind = kindOf(field.Name)
		if fault := f.note(&field); fault != nil {
			return fields, fault
		}
		fields = append(fields, field)
	}
}

func (f *framing) note(field *Field) *Fault {
	switch field.Kind {
	case ContentLength:
		n, ok := decimal(field.Value)
		if !ok || f.hasLength {
			return FaultLength
		}
		f.length, f.hasLength = n, true
	case TransferEncoding:
		if f.hasCoding || len(field.Value) == 0 {
			return FaultCoding
		}
		f.hasCoding = true
		if !equalFold(field.Value, "chunked") {
			return FaultCodingOther
		}
		f.chunked = true
	case Connection:
		f.connection = true
	case Trailer:
		if !list(field.Value, func(name []byte) bool { return isToken(name) && mayTrail(kindOf(name)) }) {
			return FaultTrailer
		}
	case Upgrade:
		f.upgrades++
		f.webSocket = equalFold(field.Value, "websocket")
	}
	return nil
}

// isWebSocket: one Upgrade field, websocket and nothing else, which Connection names.
func (f *framing) isWebSocket() bool { return f.upgrade && f.upgrades == 1 && f.webSocket }

// markNamed applies the Connection fields: what they name is hop by hop. Naming a
// field that frames or routes the message is an attempt to have it removed.
func markNamed(fields []Field, f *framing) *Fault {
	if f.hasLength && f.hasCoding {
		return FaultBoth
	}
	if !f.connection {
		return nil
	}
	for i := range fields {
		if fields[i].Kind != Connection {
			continue
		}
		ok := list(fields[i].Value, func(name []byte) bool {
			switch {
			case equalFold(name, "close"):
				f.close = true
			case equalFold(name, "keep-alive"):
				f.keepAlive = true
			case equalFold(name, "upgrade"):
				f.upgrade = true
			default:
				return isToken(name) && markHop(fields, name)
			}
			return true
		})
		if !ok {
			return FaultConnection
		}
	}
	return nil
}

func markHop(fields []Field, name []byte) bool {
	switch kindOf(name) {
	case Host, ContentLength, TransferEncoding, Expect:
		return false
	}
	for i := range fields {
		if fields[i].Kind != Connection && bytes.EqualFold(fields[i].Name, name) {
			fields[i].Kind = HopByHop
		}
	}
	return true
}
