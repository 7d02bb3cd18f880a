// SPDX-License-Identifier: Apache-2.0

// Package http1 reads and writes HTTP/1.1 messages (RFC 9110, RFC 9112) in byte
// slices, without input, output or allocation. It is strict: a message can be read
// in one way or it is refused, so that no two parties along the way can read it
// differently. Where the RFC lets a recipient repair a message, it is refused too.
//
// Differences from what the RFC would allow a server to accept, all refusals:
// bare LF as line end, folded lines, more than one empty line before a request,
// absolute-form whose authority is not the Host, CONNECT, any method outside of
// the list in request.go, '#', bytes outside of printable ASCII, broken escapes and %00 in
// a target, transfer codings other than chunked, chunk lines over 256 bytes or 4 KiB
// of chunk extensions, repeated Content-Length even if equal, hosts that are no
// name, address or address with port, Trailer fields that name framing.
package http1

import "fmt"

// Fault is why a message is refused. Status is what a server answers.
type Fault struct {
	Status int
	Reason string
}

func (f *Fault) Error() string { return fmt.Sprintf("%d: %s", f.Status, f.Reason) }

// Faults of requests, and of responses (502), one value each so that none is made
// while serving.
var (
	FaultLine        = &Fault{400, "request line is malformed"}
	FaultLineEnd     = &Fault{400, "a line does not end with CR LF"}
	FaultMethod      = &Fault{501, "method is not supported"}
	FaultTarget      = &Fault{400, "request target is malformed"}
	FaultTargetLong  = &Fault{414, "request line is too long"}
	FaultVersion     = &Fault{505, "HTTP version is not supported"}
	FaultField       = &Fault{400, "header field is malformed"}
	FaultFolded      = &Fault{400, "header field is folded"}
	FaultTooLarge    = &Fault{431, "header is too large"}
	FaultTooMany     = &Fault{431, "too many header fields"}
	FaultHost        = &Fault{400, "Host is missing, repeated or malformed"}
	FaultLength      = &Fault{400, "Content-Length is malformed or repeated"}
	FaultCoding      = &Fault{400, "Transfer-Encoding is malformed, repeated or not allowed here"}
	FaultCodingOther = &Fault{501, "transfer coding is not supported"}
	FaultBoth        = &Fault{400, "both Content-Length and Transfer-Encoding"}
	FaultConnection  = &Fault{400, "Connection is malformed or names a field that must stay"}
	FaultExpect      = &Fault{417, "expectation is not supported"}
	FaultChunk       = &Fault{400, "chunked body is malformed"}
	FaultTrailer     = &Fault{400, "trailer is malformed or too large"}
	FaultStatusLine  = &Fault{502, "status line is malformed"}
)

// Limits bound a message's head.
type Limits struct {
	LineBytes   int // of the request line
	HeaderBytes int // of the whole head
	Fields      int
}

// Kind tells fields apart that mean something to a gateway.
type Kind uint8

// Kinds of fields.
const (
	Other Kind = iota
	Host
	ContentLength
	TransferEncoding
	Connection
	HopByHop  // Keep-Alive, TE, Proxy, Proxy-Connection, Proxy-Authorization, and what Connection names
	Expect    // answered here, not passed on
	Forwarded // what tells of the client: only a gateway may say it
	RequestID
	UserAgent
	Referer
	Trailer
	Upgrade
	TraceParent // W3C Trace Context
	TraceState
	Identity // Client-Cert, X-Client-Cert-*, X-Consumer: who a client has proved to be, which none may say of itself
)

// Field is one header field; Name as it was sent, Value without white space around.
type Field struct {
	Name, Value []byte
	Kind        Kind
}

// Body is how long a message's body is.
type Body struct {
	Chunked bool
	// Length is the number of bytes; -1 when chunked, or until the end of the
	// connection (responses only).
	Length int64
}

// UntilClose is true for a response body that ends with the connection.
func (b Body) UntilClose() bool { return !b.Chunked && b.Length < 0 }

// Empty is true where there is no body.
func (b Body) Empty() bool { return !b.Chunked && b.Length == 0 }
