// SPDX-License-Identifier: Apache-2.0

// Package http2 is the server side of an HTTP/2 connection (RFC 9113), made for a gateway: many small exchanges on few
// connections, for as little CPU as can be.
//
// What makes it cheap is batching. One goroutine reads the connection and hands requests to parked goroutines; these
// append their frames to one output buffer under the connection's lock; one flusher, borrowed for that, lets the run
// queue drain into that buffer and then writes it with a single call. Nothing is allocated per request in the steady state, other
// than strings of header fields that the client chose not to index.
//
// What makes it safe is that it refuses. A request that is malformed by RFC 9113, section 8, never reaches the
// handler, and each connection has a budget for frames that do no work: see [Misuse].
//
// Frame headers and their order are read by golang.org/x/net/http2's Framer, header blocks by its hpack Decoder. Header
// blocks are written by an encoder of our own, because the one of x/net keeps strings and so allocates for each new
// value.
package http2

import (
	"errors"
	"fmt"
	"time"

	h2 "golang.org/x/net/http2"
)

// Config holds the bounds of one connection. The zero value of each field means its default.
type Config struct {
	MaxStreams     uint32        // streams open at once; default 100; more are refused with REFUSED_STREAM
	MaxHeaderBytes int           // names, values and 32 bytes per field, cookie crumbs included; default 32 KiB; above: 431
	MaxFields      int           // fields of a request, cookie crumbs and pseudo fields included; default 100; above: 431
	StreamWindow   int           // bytes of body the client may send ahead on a stream; default 64 KiB
	ConnWindow     int           // the same for all streams together, once as much was read; default 1 MiB, at least 65535
	OutputBytes    int           // bytes that may wait to be written; default 256 KiB
	Idle           time.Duration // no stream open for so long: GOAWAY and end; default 75 s
	Header         time.Duration // for the preface, the first SETTINGS, a header block, the SETTINGS ack; default 10 s
	Body           time.Duration // without a byte of a body that is waited for: Read fails; default 60 s
	Write          time.Duration // without progress of a write, or without window: stream or connection ends; default 60 s
	Protocols      bool          // CONNECT with :protocol (RFC 8441) is passed to the handler, and clients are told so
	Methods        []string      // allowed methods, others get 501; default GET HEAD POST PUT PATCH DELETE OPTIONS

	// Pool holds what connections of one worker share: parked goroutines, streams, buffers. Nil: one for this connection.
	Pool *Pool
	// Run starts an exchange on some goroutine and must not block. Nil: a parked goroutine of Pool.
	Run func(func())
	// Panic is told what a handler panicked with, on that handler's goroutine. The stream is reset by then.
	Panic func(any)
	// Admit says whether there is room for one more exchange: 0, or the seconds of Retry-After of a 503 that is written
	// right from the reader, which is what makes a refusal cheap. It must not block. Nil: there is.
	Admit func() (retryAfter int)
	// Refused is told of each request that was answered here and not by the handler: status is 431, 501 or 503, or 0 when
	// the stream was reset. The stream's request side (ID, Method, Path …, as far as they were read) may be used until
	// it returns. It runs on the reading goroutine and must not block.
	Refused func(s *Stream, status int, cause error)
	// Ending is told what Serve will return, when the connection begins to end: its exchanges may go on for a while. It
	// must not block.
	Ending func(error)
}

// Handler serves exchanges. ServeHTTP2 runs on a pooled goroutine; the exchange is over when it returns. The stream must
// not be used after that, by any goroutine. Read and the response methods may be used by two goroutines at once.
type Handler interface {
	ServeHTTP2(*Stream)
}

// Field is a header or trailer field. Names are in lower case.
type Field struct{ Name, Value []byte }

// Errors that Read, Write and the other methods of Stream return, alone or wrapped.
var (
	ErrReset   = errors.New("stream was reset")               // by the client, or by us for an error of the client
	ErrGone    = errors.New("connection is gone")             // ended while the stream was open
	ErrTimeout = errors.New("client made no progress")        // see Config.Body, Config.Write
	ErrEnded   = errors.New("response has already ended")     // written to after its end, or after Reset
	ErrOrder   = errors.New("response methods out of order")  // DATA before HEADERS, HEADERS twice
	ErrField   = errors.New("response field is not sendable") // name or value has forbidden bytes
	ErrClosed  = errors.New("connection was closed by Close") // what Serve returns after Close
)

// ResetError is why a stream was reset. It matches ErrReset.
type ResetError struct {
	Code   uint32 // RFC 9113, section 7
	Remote bool   // the client sent it
	Cause  string // what was wrong, when we sent it
}

func (e *ResetError) Error() string {
	if e.Remote {
		return fmt.Sprintf("stream was reset by the client: %v", h2.ErrCode(e.Code))
	}
	return fmt.Sprintf("stream was reset: %v: %s", h2.ErrCode(e.Code), e.Cause)
}

// Is makes errors.Is(err, ErrReset) true.
func (e *ResetError) Is(target error) bool { return target == ErrReset }

// ConnError is a connection error of RFC 9113, section 5.4.1: the client broke the protocol and was told so by GOAWAY.
type ConnError struct {
	Code  uint32
	Cause string
}

func (e *ConnError) Error() string {
	return fmt.Sprintf("http2 connection error: %v: %s", h2.ErrCode(e.Code), e.Cause)
}

func connError(code h2.ErrCode, cause string) error {
	return &ConnError{Code: uint32(code), Cause: cause}
}

const (
	defaultWindow = 65535 // RFC 9113, 6.9.2
	// firstConnWindow is a connection's window before any body was read: 100 streams hold little in it.
	firstConnWindow = 256 << 10
	maxWindow       = 1<<31 - 1 // RFC 9113, 6.9.1
	frameHeader     = 9
	maxFrame        = 16384 // what we accept (the smallest limit there is) and the most we send
	tableBytes      = 4096  // HPACK table of either side
)

func (cfg Config) withDefaults() Config {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	defTime := func(p *time.Duration, v time.Duration) {
		if *p <= 0 {
			*p = v
		}
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 100
	}
	def(&cfg.MaxHeaderBytes, 32<<10)
	def(&cfg.MaxFields, 100)
	def(&cfg.StreamWindow, 64<<10)
	def(&cfg.ConnWindow, 1<<20)
	def(&cfg.OutputBytes, 256<<10)
	defTime(&cfg.Idle, 75*time.Second)
	defTime(&cfg.Header, 10*time.Second)
	defTime(&cfg.Body, 60*time.Second)
	defTime(&cfg.Write, 60*time.Second)
	cfg.StreamWindow = min(cfg.StreamWindow, maxWindow)
	cfg.ConnWindow = min(max(cfg.ConnWindow, defaultWindow), maxWindow)
	if len(cfg.Methods) == 0 {
		cfg.Methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
	}
	return cfg
}
