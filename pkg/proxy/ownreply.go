// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// ownReply is a reply that a route gives itself.
type ownReply struct {
	status   int
	outcome  zone.RequestOutcome
	fields   []http1.Field
	body     []byte
	location []piece // of a redirect
}

// What a location may hold of the request.
const (
	ofHost = iota
	ofPath
	ofQuery
)

// Names of fields, made once.
var (
	nameDate     = []byte("Date")
	nameLocation = []byte("Location")
)

func contentType(value string) []http1.Field {
	if value == "" {
		return nil
	}
	return []http1.Field{{Name: []byte("Content-Type"), Value: []byte(value)}}
}

func newReply(p *policy.Reply) *ownReply {
	return &ownReply{status: p.Status, outcome: zone.RequestRouteReply, fields: contentType(p.ContentType), body: p.Body}
}

func newRedirect(p *policy.Redirect) (*ownReply, error) {
	names := map[string]int{"host": ofHost, "path": ofPath, "query": ofQuery}
	location, err := parsePieces(p.Location, func(name string) (int, error) {
		n, ok := names[name]
		if !ok {
			return 0, errors.New("location: $" + name + " is not known")
		}
		return n, nil
	})
	return &ownReply{status: p.Status, outcome: zone.RequestRouteReply, location: location}, err
}

func newMaintenance(p *policy.Maintenance) *ownReply {
	body := p.Body
	if body == "" {
		body = "503 under maintenance\n"
	}
	after := strconv.AppendInt(nil, int64((p.RetryAfter+time.Second-1)/time.Second), 10)
	return &ownReply{
		status: 503, outcome: zone.RequestMaintenance, body: []byte(body),
		fields: append(contentType(p.ContentType), http1.Field{Name: []byte("Retry-After"), Value: after}),
	}
}

// answered replies in place of an upstream where the route does; false: it does not.
func (ex *Exchange) answered() bool {
	r := ex.route
	switch {
	case r.cors != nil && ex.routing.asked.preflight != nil:
		ex.answerPreflight()
	case r.closed != nil && ex.isGRPC():
		ex.refuse(&refusal{status: r.closed.status, outcome: r.closed.outcome, text: "under maintenance"})
	case r.closed != nil:
		ex.answer(r.closed)
	case r.own == nil:
		return false
	case r.own.needsHost() && len(ex.host) == 0:
		ex.refuse(&refusal{status: 400, outcome: zone.RequestBad, text: "the request names no host"})
	default:
		ex.answer(r.own)
	}
	return true
}

func (o *ownReply) needsHost() bool {
	for _, p := range o.location {
		if p.number == ofHost {
			return true
		}
	}
	return false
}

// answer sends the reply. It allocates nothing once the exchange's room has grown.
func (ex *Exchange) answer(o *ownReply) {
	if err := ex.skipSmallBody(); err != nil {
		ex.failRead(err)
		return
	}
	ex.outcome = o.outcome
	ex.routing.text = time.Now().UTC().AppendFormat(ex.routing.text[:0], http.TimeFormat)
	r := &ex.reply
	*r = http1.Response{Status: o.status, Fields: append(r.Fields[:0], http1.Field{Name: nameDate, Value: ex.routing.text})}
	r.Fields = append(r.Fields, o.fields...)
	if o.location != nil {
		ex.routing.location = ex.appendLocation(ex.routing.location[:0], o.location)
		r.Fields = append(r.Fields, http1.Field{Name: nameLocation, Value: ex.routing.location})
	}
	r.Body = http1.Body{Length: int64(len(o.body))}
	ex.dress(r)
	err := ex.client.begin(ex, r)
	for rest := o.body; err == nil && len(rest) > 0 && string(ex.method) != "HEAD"; {
		n := min(len(rest), flushAt) // pieces, so that the client's buffer stays small
		err = ex.client.write(ex, rest[:n])
		rest = rest[n:]
	}
	if err == nil {
		err = ex.client.end(ex)
	}
	if err != nil {
		ex.give(ex.client.writeError(err))
	}
}

// skipSmallBody reads a short body that nobody wants, where the reply would end an HTTP/1.1 connection for it.
// That costs less than another handshake, unless the client waits to be asked for it.
func (ex *Exchange) skipSmallBody() error {
	if ex.major != 1 || ex.body.Length <= 0 || ex.body.Length > smallBody {
		return nil
	}
	if slices.ContainsFunc(ex.fields, func(f http1.Field) bool { return f.Kind == http1.Expect }) {
		return nil
	}
	scrap := ex.worker.inputs.get()
	defer ex.worker.inputs.put(scrap)
	for {
		n, err := ex.client.readBody(scrap.b)
		ex.bytesIn += uint64(n)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// appendLocation puts the place together. Where it begins with the request's path, one
// slash does: browsers take //name for a host.
func (ex *Exchange) appendLocation(b []byte, pieces []piece) []byte {
	for i, p := range pieces {
		switch {
		case p.number < 0:
			b = append(b, p.literal...)
		case p.number == ofHost:
			b = append(b, bareHost(ex.host)...)
		case p.number == ofQuery:
			b = append(b, query(ex.target)...)
		default:
			path, _, _ := bytes.Cut(ex.upstreamTarget(), []byte{'?'})
			if i == 0 {
				b = append(b, '/')
				path = bytes.TrimLeft(path, "/")
			}
			b = append(b, path...)
		}
	}
	return b
}
