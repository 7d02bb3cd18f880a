// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// attempt is one try of an exchange at one upstream connection.
type attempt struct {
	ex       *Exchange
	conn     *upConn
	in       *buffer
	r, n     int  // of in: what was read and is not used up
	streamed bool // the request's body is sent by the pump

	refused bool // HTTP/2: the server has not looked at the request
	passed  bool // HTTP/2: the server's reset is the client's to see
	lost    bool // HTTP/2: the connection is gone, with all its streams

	report   report
	reusable bool // the connection is at rest and can carry another request
}

// Faults of the upstream's side.
var (
	errInvalidReply = errors.New("upstream's reply is not HTTP")
	errCutReply     = errors.New("upstream's reply was cut")
)

// run sends the request and passes the reply on. true asks for a try on a new
// connection: the server closed an idle one before it said anything, and sending
// the request twice is harmless.
func (a *attempt) run() (again bool) {
	ex := a.ex
	a.conn.arm(ex.replyBy(ex.sentAt, a.streamed))
	err := a.sendRequest()
	if a.streamed && err == nil {
		if len(ex.request) > inputSize { // with the beginning of its body
			ex.request = nil
		}
		ex.pump.start(ex, a.conn)
	}
	if err == nil {
		err = a.readHead()
	}
	if err != nil {
		again := a.mayRepeat(err)
		if !again || a.report == reportFailed {
			a.complain(err, "reading the head of its reply")
		}
		if again {
			return true
		}
		a.failHead(err)
		ex.pump.stop(ex, a.conn)
		return false
	}
	a.report = reportWorked
	ex.upstreamFor = time.Duration(ex.worker.now() - ex.sentAt)
	if ex.reply.Status == 101 {
		a.serveTunnel()
		return false
	}
	ex.pump.headed.Store(true)
	a.conn.arm(0) // a client that takes its time is not the upstream's fault
	ex.worker.slab.Upstream(ex.route.upstream.policy.Slot, a.passReply(), ex.upstreamFor)
	if a.streamed && !ex.pump.stop(ex, a.conn) {
		a.reusable = false // the server answered without the whole body
	}
	return false
}

// sendRequest sends the request's head, and its body if that is small.
func (a *attempt) sendRequest() error {
	if a.conn.stream != nil {
		return a.openStream()
	}
	_, err := a.conn.Write(a.ex.request)
	return err
}

// fill reads more of the reply into the buffer.
func (a *attempt) fill() error {
	if a.r == a.n {
		a.r, a.n = 0, 0
	}
	if a.n == len(a.in.b) {
		old, w := a.in, a.ex.worker
		if len(old.b) < bufferSize { // the reply does not fit into the small one
			a.in = w.buffers.get()
		}
		a.n = copy(a.in.b, old.b[a.r:a.n])
		a.r = 0
		if a.in != old {
			w.putBack(old)
		}
	}
	n, err := a.conn.Read(a.in.b[a.n:])
	a.n += n
	if n > 0 {
		return nil
	}
	return err
}

// maxReplyFields bounds the fields of a reply; their bytes are bounded by the buffer.
const maxReplyFields = 256

// readHead reads until the head of the final reply is parsed.
func (a *attempt) readHead() error {
	if a.conn.stream != nil {
		return a.readStreamHead()
	}
	ex, interim := a.ex, 0
	limits := http1.Limits{HeaderBytes: bufferSize - 1, Fields: maxReplyFields}
	seen := 0
	for {
		n, fault := ex.reply.Parse(a.in.b[a.r:a.n], seen, &limits, ex.method)
		if fault != nil {
			return errInvalidReply
		}
		if n == 0 {
			seen = a.n - a.r
			if err := a.fill(); err != nil {
				return err
			}
			continue
		}
		a.r += n
		seen = 0
		if ex.reply.Status >= 200 {
			if ex.webSocket && ex.major == 2 && ex.reply.Status < 300 {
				return errInvalidReply // which would tell the client that its tunnel is open
			}
			return nil
		}
		if ex.reply.Status == 101 {
			if a.isTunnel() {
				return nil
			}
			return errInvalidReply // nothing of the kind was asked for
		}
		if interim++; interim > interimMost || a.passInterim() != nil {
			return errInvalidReply
		}
	}
}

// failHead answers for an upstream that gave no reply.
func (a *attempt) failHead(err error) {
	ex := a.ex
	slot, took := ex.route.upstream.policy.Slot, time.Duration(ex.worker.now()-ex.sentAt)
	count := func(o zone.UpstreamOutcome) { ex.worker.slab.Upstream(slot, o, took) }
	switch a.conn.killed() {
	case killCancelled:
		count(zone.UpstreamCancelled)
		if err := ex.pump.failure(); err != nil {
			ex.failRead(err)
			return
		}
		ex.give(ex.client.readError(io.ErrUnexpectedEOF)) // gone, or cut by the sweeper
		return
	case killTimeout:
		count(zone.UpstreamTimeout)
		ex.refuse(&refusal{status: 504, outcome: zone.RequestUpstreamTimeout, text: "the upstream gave no reply in time"})
		return
	}
	if errors.Is(err, errInvalidReply) {
		count(zone.UpstreamInvalid)
		ex.refuse(&refusal{status: 502, outcome: zone.RequestUpstreamInvalid, text: "the upstream's reply is malformed"})
		return
	}
	count(zone.UpstreamReset)
	if a.passed {
		ex.give(zone.RequestUpstreamReset)
		return
	}
	ex.refuse(&refusal{status: 502, outcome: zone.RequestUpstreamReset, text: "the upstream broke off"})
}

// passReply sends head and body to the client and tells how the upstream did.
func (a *attempt) passReply() zone.UpstreamOutcome {
	ex := a.ex
	ex.dress(&ex.reply)
	clientErr := ex.client.begin(ex, &ex.reply)
	if clientErr != nil {
		a.reusable = a.discard()
	}
	var upErr error
	if clientErr == nil {
		upErr, clientErr = a.passBody()
	}
	if upErr == nil && clientErr == nil {
		clientErr = ex.client.end(ex)
	}
	switch {
	case clientErr != nil:
		ex.give(ex.client.writeError(clientErr))
		return zone.UpstreamCancelled
	case upErr == nil:
		ex.outcome = zone.RequestOK
		// Bytes after the reply belong to nothing that was asked: never reuse.
		a.reusable = ex.reply.KeepAlive && a.r == a.n
		return zone.UpstreamOK
	}
	a.complain(upErr, "reading its reply")
	// A reply that was cut must not be taken for a complete one.
	switch a.conn.killed() {
	case killCancelled:
		if err := ex.pump.failure(); err != nil {
			ex.give(ex.client.readError(err))
		} else {
			ex.give(ex.client.readError(io.ErrUnexpectedEOF)) // gone, or cut by the sweeper
		}
		return zone.UpstreamCancelled
	case killTimeout:
		ex.give(zone.RequestUpstreamTimeout)
		return zone.UpstreamTimeout
	}
	var fault *http1.Fault
	if errors.As(upErr, &fault) || errors.Is(upErr, errInvalidReply) {
		ex.give(zone.RequestUpstreamInvalid)
		return zone.UpstreamInvalid
	}
	ex.give(zone.RequestUpstreamReset)
	return zone.UpstreamReset
}

// passBody copies the body in the buffer's pieces.
func (a *attempt) passBody() (upErr, clientErr error) {
	if a.conn.stream != nil {
		return a.passStream()
	}
	switch b := a.ex.reply.Body; {
	case b.Empty():
		return nil, nil
	case b.Chunked:
		return a.passChunked()
	case b.UntilClose():
		return a.passUntilClose()
	default:
		return a.passLength(b.Length)
	}
}

// more fills the buffer, with a deadline for the wait.
func (a *attempt) more() error {
	a.ex.client.flush()
	if a.r == a.n { // the client has taken all there was: it may have more at a time
		a.in = a.ex.worker.resize(a.in, true)
	}
	a.conn.arm(a.ex.worker.until(a.ex.bodyTimeout()))
	err := a.fill()
	a.conn.arm(0)
	if errors.Is(err, io.EOF) {
		return errCutReply
	}
	return err
}

func (a *attempt) passLength(left int64) (upErr, clientErr error) {
	for {
		piece := a.in.b[a.r:a.n]
		if int64(len(piece)) > left {
			piece = piece[:left]
		}
		if len(piece) > 0 {
			if err := a.ex.client.write(a.ex, piece); err != nil {
				return nil, err
			}
		}
		a.r += len(piece)
		if left -= int64(len(piece)); left == 0 {
			return nil, nil
		}
		if err := a.more(); err != nil {
			return err, nil
		}
	}
}

func (a *attempt) passChunked() (upErr, clientErr error) {
	var decoder http1.Chunked
	for {
		data, n, fault := decoder.Next(a.in.b[a.r:a.n])
		if fault != nil {
			return fault, nil
		}
		a.r += n
		if len(data) > 0 {
			if err := a.ex.client.write(a.ex, data); err != nil {
				return nil, err
			}
		}
		if decoder.Done() {
			a.ex.trailers = decoder.AppendTrailers(a.ex.trailers[:0])
			return nil, nil
		}
		if n == 0 || a.r == a.n {
			if err := a.more(); err != nil {
				return err, nil
			}
		}
	}
}

func (a *attempt) passUntilClose() (upErr, clientErr error) {
	for {
		if a.r < a.n {
			if err := a.ex.client.write(a.ex, a.in.b[a.r:a.n]); err != nil {
				return nil, err
			}
			a.r = a.n
		}
		err := a.more()
		if errors.Is(err, errCutReply) {
			return nil, nil // the end of the connection is the end of the body
		}
		if err != nil {
			return err, nil
		}
	}
}
