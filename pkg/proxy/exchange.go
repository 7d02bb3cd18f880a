// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// smallBody is the longest request body that is read whole before an upstream
// connection is taken: a slow client then holds none, and the try can be repeated.
const smallBody = 16 << 10

// bodyStep is the room for a small body that is made at a time.
const bodyStep = 1 << 10

// Exchange is one request and its reply, from the first byte to the last. It is
// used again for another when it is over. Slices belong to the connection and are
// valid until then.
type Exchange struct {
	worker *Worker
	snap   *snapshot
	client client
	conn   *conn // the client's; nil for a copy of a request
	// who is the client's identity: a hash, of what it proved or of its connection. A filter
	// that learns of a better proof puts that here, and the guard of verdicts goes by it.
	who uint64

	// The request.
	start        int64          // by the worker's clock
	peer         netip.AddrPort // the client, as far as its proxies are trusted
	chain        []netip.Addr   // those proxies, the nearest to the gateway first
	scheme       string         // https or http
	listener     string         // the address by which it came, as it is configured
	identity     []http1.Field  // who it has proved to be, as fields for the upstream
	edge         int64          // when the connection was accepted, by the worker's clock
	napi         uint32
	tlsVersion   uint16
	resumed      bool
	major, minor uint8
	method       []byte
	target       []byte
	host         []byte
	userAgent    []byte
	referer      []byte
	fields       []http1.Field
	room         []http1.Field // for fields that are not parsed by http1
	head         http1.Request // for those that are
	body         http1.Body
	late         bool // the body's end is still to come, though its length is 0
	unsized      bool // the client did not say how long the body is
	id           [32]byte
	trace        trace

	// How it went.
	route       *route
	routing     routing
	limiting    limiting
	refusedBy   int       // place of the limit in the trial that would refuse it; below 0: none
	keyID       []byte    // of the API key that the client holds, good or not
	apiKey      *keys.Key // that it came in by; nil: none
	reply       http1.Response
	trailers    []http1.Field // of the reply
	status      int
	outcome     zone.RequestOutcome
	server      []byte
	sentAt      int64
	upstreamFor time.Duration
	connectFor  time.Duration
	retries     int
	dial        *sharedDial // that the exchange began or joined last
	refusals    int         // tries that a server would not look at
	failures    int         // tries that a server failed
	tried       serverSet   // servers that failed under this exchange, by their place
	triedOf     uint64      // the version of the list that the places are of
	others      bool        // servers are in balance besides the one that is tried
	headBy      int64       // when there must be a reply, by the worker's clock; 0: no try has begun
	totalBy     int64       // when the exchange must be over; 0: any time
	bytesIn     uint64
	bytesOut    uint64
	webSocket   bool // the client asks for one, and the route has them
	// webSocketKey is the gateway's own, for a client of HTTP/2.
	webSocketKey [24]byte
	replied      bool // the reply's head is on its way: the status is settled

	place place

	request []byte // to the upstream: head, and the body if it is small
	pump    pump
}

// client is the side of an exchange that asked: an HTTP/1.1 connection or an
// HTTP/2 stream. Its methods are used by one goroutine, but readBody may be by
// another. Their errors mean that the client can take no more.
type client interface {
	// proceed tells a client that waits for it that the body is wanted.
	proceed()
	// awaitBody waits until readBody will not wait; false: it cannot tell.
	awaitBody() bool
	// readBody reads the request's body, decoded; io.EOF at its end.
	readBody(p []byte) (int, error)
	// trailers are the request's trailer fields that may go on, when readBody has returned
	// io.EOF.
	trailers() []http1.Field
	// interim sends an interim reply's head, if the client can take one.
	interim(ex *Exchange, r *http1.Response) error
	// begin sends the reply's head. Body says how the body will come.
	begin(ex *Exchange, r *http1.Response) error
	// write sends a piece of the reply's body.
	write(ex *Exchange, p []byte) error
	// flush sends what write may have kept for company; an error shows later.
	flush()
	// end completes the reply, with ex.trailers.
	end(ex *Exchange) error
	// abort breaks the reply off so that the client cannot take it for complete.
	abort()
	// bound holds the request's body to most bytes, 0 for any number, and each wait for
	// a part of it to a time.
	bound(most int64, wait time.Duration)
	// stopBody makes a readBody of another goroutine return, now and from now on.
	stopBody()
	// dropBody gives up what nobody has read of the request's body.
	dropBody()
	// hasLeft says that the client is known to have gone away; false: it is not known.
	hasLeft() bool
	// watch lets the client's going away end the wait for u; nil ends the watch.
	watch(u *upConn)
	// readError says how a failed readBody ended the exchange.
	readError(err error) zone.RequestOutcome
	// writeError says how a failed begin, write or end ended it.
	writeError(err error) zone.RequestOutcome
}

// run takes the exchange from its parsed request to its record.
func (ex *Exchange) run() {
	ex.worker.slab.Move(zone.GaugeRequests, 1)
	ex.outcome, ex.status = zone.RequestPanic, 500 // what is recorded unless it ends otherwise
	defer ex.worker.overload.leave(&ex.place)
	defer ex.record()
	ex.worker.overload.enter(&ex.place)
	for i := range ex.worker.filters {
		if r := ex.worker.filters[i].apply(ex); r != nil {
			ex.refuse(r)
			return
		}
	}
	if !ex.answered() {
		ex.forward()
	}
}

// record counts the exchange and hands its record to the log.
func (ex *Exchange) record() {
	w := ex.worker
	w.giveBack(ex.limiting.counted)
	w.slab.Move(zone.GaugeRequests, -1)
	took := time.Duration(w.now() - ex.start)
	slot := zone.NoRoute
	rec := zone.AccessRecord{
		Start: w.base.Add(time.Duration(ex.start)), Edge: w.base.Add(time.Duration(ex.edge)), NAPI: ex.napi, Duration: took,
		UpstreamDuration: ex.upstreamFor, ConnectDuration: ex.connectFor, Client: ex.peer,
		BytesIn: ex.bytesIn, BytesOut: ex.bytesOut, Worker: w.id, Core: w.core, Upstream: -1,
		Status: ex.status, Retries: ex.retries, Major: ex.major, Minor: ex.minor, TLSVersion: ex.tlsVersion,
		Resumed: ex.resumed, Outcome: ex.outcome, Method: ex.method, Host: ex.host, Target: ex.target,
		UserAgent: ex.userAgent, Referer: ex.referer, ID: ex.id[:], Trace: ex.trace.id[:], UpstreamAddr: ex.server, Key: ex.keyID,
	}
	if ex.trace.sampled() {
		rec.Sampled, rec.Span = true, ex.span()
		_, _ = hex.Decode(rec.Parent[:], ex.trace.parent[:])
	}
	if ex.snap != nil {
		rec.Generation = ex.snap.policy.Generation
		if ex.snap.trial != nil {
			ex.snap.trial.note(ex)
		}
	}
	if ex.route != nil {
		slot = ex.route.slot
		if ex.route.upstream != nil {
			rec.Upstream = ex.route.upstream.policy.Slot
		}
	}
	rec.Route = slot
	ex.judged()
	w.slab.Request(slot, ex.status, took, ex.outcome)
	w.slab.Add(zone.BytesReceived, ex.bytesIn)
	w.slab.Add(zone.BytesSent, ex.bytesOut)
	if !w.slab.Access.Put(&rec) {
		w.slab.Add(zone.AccessRecordsDropped, 1)
	}
}

// forward passes the request to an upstream and its reply to the client.
func (ex *Exchange) forward() {
	ex.webSocket = ex.head.WebSocket && ex.opensWebSocket()
	if ex.route.upstream.policy.Protocol == "http2" {
		ex.prepareStream()
	}
	ex.request = ex.appendHead(ex.request[:0])
	if !ex.body.Empty() {
		ex.client.proceed()
	}
	streamed := ex.body.Chunked || ex.body.Length > smallBody || ex.announcesTrailers()
	if !streamed && (ex.body.Length > 0 || ex.late) {
		var err error
		if streamed, err = ex.readSmallBody(); err != nil {
			ex.failRead(err)
			return
		}
	}
	if ex.route.mirror != nil && !streamed && !ex.webSocket { // a copy can open none
		ex.mirror()
	}
	u := ex.route.upstream
	if !u.enter() {
		ex.failTake(errSaturated, ex.worker.now())
		return
	}
	defer u.leave()
	for attempt := 0; ; attempt++ {
		if !ex.try(streamed, attempt > 0) {
			return
		}
		ex.retries++
		ex.worker.slab.Add(zone.UpstreamRetries, 1)
	}
}

// parkedMost is how much of small bodies that are not whole yet a client's connection may make
// the gateway hold. What is above, the upstream is to hold.
const parkedMost = 512 << 10

// readSmallBody reads to the body's end, which HTTP/2 tells apart from its last byte: what is
// longer than it says must not go on. parted: its connection has too many of them under way, and the rest is
// to be sent as it comes.
func (ex *Exchange) readSmallBody() (parted bool, err error) {
	at, n, got := len(ex.request), int(ex.body.Length), 0
	parked := &ex.conn.parked
	defer func() { parked.Add(int64(-got)) }()
	for {
		// It grows with what comes, fourfold, so that a body that comes as a whole is not moved often: a client that only announces one costs no room for it.
		room := min(n-got+1, max(bodyStep, 3*got, cap(ex.request)-at-got))
		ex.request = slices.Grow(ex.request[:at+got], room)[:at+got+room]
		read, err := ex.client.readBody(ex.request[at+got:])
		got += read
		ex.bytesIn += uint64(read)
		all := parked.Add(int64(read))
		switch {
		case errors.Is(err, io.EOF) && got == n:
			ex.request = ex.request[:at+n]
			return false, nil
		case errors.Is(err, io.EOF), err == nil && got > n:
			return false, io.ErrUnexpectedEOF
		case err != nil:
			return false, err
		case all > parkedMost:
			ex.request = ex.request[:at+got]
			return true, nil
		}
	}
}

// failRead ends an exchange whose request body did not come.
func (ex *Exchange) failRead(err error) {
	outcome := ex.client.readError(err)
	switch outcome {
	case zone.RequestBad:
		ex.refuse(&refusal{status: 400, outcome: outcome, text: "the request body is malformed"})
	case zone.RequestBodyTooLarge:
		ex.refuse(&refusal{status: 413, outcome: outcome, text: "the request body is too large"})
	case zone.RequestPanic:
		ex.refuse(&refusal{status: 500, outcome: outcome, text: "internal error"})
	case zone.RequestClientTimeout:
		ex.refuse(&refusal{status: 408, outcome: outcome, text: "the request body came too slowly"})
	default:
		ex.give(outcome)
	}
}

// give ends the exchange without a reply, or in the middle of one.
func (ex *Exchange) give(outcome zone.RequestOutcome) {
	ex.outcome = outcome
	if outcome == zone.RequestClientReset {
		ex.sayClientReset()
	}
	if !ex.replied {
		ex.status = 499 // no status was sent
	}
	ex.client.abort()
}

// try makes one attempt; true asks for another, with a new connection.
func (ex *Exchange) try(streamed, fresh bool) (again bool) {
	w, u := ex.worker, ex.route.upstream
	began := w.now()
	ex.begin(began)
	if ex.overdue(began) {
		ex.refuseLate(time.Duration(began - ex.start))
		return false
	}
	if ex.client.hasLeft() {
		ex.give(ex.client.readError(io.ErrUnexpectedEOF))
		return false
	}
	c, passed, err := u.take(w, ex, fresh)
	ex.retries += passed
	if err != nil {
		ex.failTake(err, began)
		return false
	}
	if ex.client.hasLeft() { // meanwhile: nothing was sent yet, so that others can have the connection
		c.give(w, true, reportNone)
		ex.give(ex.client.readError(io.ErrUnexpectedEOF))
		return false
	}
	ex.sentAt = began
	if c.reused {
		w.slab.Add(zone.UpstreamConnectionsReused, 1)
		ex.connectFor = 0
		if !ex.repeatable(streamed) && !c.alive() {
			c.give(w, false, reportNone)
			return true // nothing was sent yet
		}
	} else {
		ex.sentAt = w.now()
		ex.connectFor = time.Duration(ex.sentAt - began)
	}
	ex.server = c.server.text
	c.most = ex.totalBy
	a := attempt{ex: ex, conn: c, in: ex.replyBuffer(streamed), streamed: streamed}
	ex.client.watch(c)
	returned := false
	defer func() {
		if !returned { // a panic
			c.kill(killCancelled)
			ex.pump.stop(ex, c)
		}
		ex.client.watch(nil)
		w.putBack(a.in)
		c.give(w, a.reusable && returned, a.report)
	}()
	again = a.run()
	returned = true
	return again
}

// replyBuffer is what the reply is read into at first. It is a small one where a client may have
// many exchanges wait, or is waited for itself; fill and more replace it.
func (ex *Exchange) replyBuffer(streamed bool) *buffer {
	if ex.major == 2 || streamed {
		return ex.worker.inputs.get()
	}
	return ex.worker.buffers.get()
}

// repeatable tells whether the request may be sent again when its connection dies before a
// byte of the reply: RFC 9110, 9.2.2, or the client says by an Idempotency-Key that its
// server knows it again. A body that was sent on as it came is never sent twice.
func (ex *Exchange) repeatable(streamed bool) bool {
	return !streamed && (http1.Idempotent(ex.method) || ex.hasIdempotencyKey())
}

func (ex *Exchange) hasIdempotencyKey() bool {
	for i := range ex.fields {
		if f := &ex.fields[i]; f.Kind == http1.Other && len(f.Name) == len("idempotency-key") && equalFoldString(f.Name, "idempotency-key") {
			return len(f.Value) > 0
		}
	}
	return false
}

// failTake answers for an upstream without a connection to give.
func (ex *Exchange) failTake(err error, began int64) {
	slot := ex.route.upstream.policy.Slot
	took := time.Duration(ex.worker.now() - began)
	switch {
	case errors.Is(err, errSaturated):
		ex.worker.slab.Upstream(slot, zone.UpstreamSaturated, took)
		ex.refuse(&refusal{status: 503, outcome: zone.RequestUpstreamSaturated, text: "the upstream is saturated", retryAfter: 1})
	case isTimeout(err):
		ex.worker.slab.Upstream(slot, zone.UpstreamConnectTimeout, took)
		ex.refuse(&refusal{status: 504, outcome: zone.RequestConnectTimeout, text: "no connection to the upstream in time"})
	default:
		ex.worker.slab.Upstream(slot, zone.UpstreamRefused, took)
		ex.refuse(&refusal{status: 502, outcome: zone.RequestUpstreamRefused, text: "no connection to the upstream"})
	}
}
