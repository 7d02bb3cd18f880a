// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/xgw-project/xgw/pkg/zone"
)

// span is an exchange of a sampled trace, in memory of its own.
type span struct {
	trace                        trace.TraceID
	id, parent                   trace.SpanID
	began                        time.Time
	took, upstream               time.Duration
	method, host, path           string
	client, server               string
	route, upstreamSlot, retries int
	status                       int
	outcome                      zone.RequestOutcome
	version                      string
	secure                       bool
}

// newSpan copies what the record lends; false: it names no trace. A query is not in it, since
// nobody knows what clients put there.
func newSpan(r *zone.AccessRecord) (span, bool) {
	id, err := trace.TraceIDFromHex(string(r.Trace))
	if err != nil || !trace.SpanID(r.Span).IsValid() {
		return span{}, false
	}
	path, _, _ := bytes.Cut(r.Target, []byte("?"))
	s := span{
		trace: id, id: r.Span, parent: r.Parent, began: r.Start, took: r.Duration, upstream: r.UpstreamDuration,
		method: plain(r.Method), host: plain(r.Host), path: plain(path), server: plain(r.UpstreamAddr),
		route: r.Route, upstreamSlot: r.Upstream, retries: r.Retries, status: r.Status, outcome: r.Outcome, secure: r.TLSVersion != 0,
	}
	if r.Client.IsValid() {
		s.client = r.Client.Addr().String()
	}
	s.version = "1.1"
	switch {
	case r.Major == 2:
		s.version = "2"
	case r.Minor == 0:
		s.version = "1.0"
	}
	return s, true
}

// plain is text that protobuf takes, whatever a client sent.
func plain(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

// record makes the SDK's span of it.
func (p *Push) record(s *span) {
	ctx := context.WithValue(context.Background(), givenKey{}, s)
	if s.parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: s.trace, SpanID: s.parent, TraceFlags: trace.FlagsSampled, Remote: true,
		}))
	}
	route, scheme := p.options.Route(s.route), "http"
	if s.secure {
		scheme = "https"
	}
	attributes := []attribute.KeyValue{
		attribute.String("http.request.method", s.method), attribute.String("url.scheme", scheme), attribute.String("url.path", s.path),
		attribute.String("server.address", s.host), attribute.String("client.address", s.client),
		attribute.Int("http.response.status_code", s.status), attribute.String("network.protocol.name", "http"), attribute.String("network.protocol.version", s.version),
		attribute.String("xgw.route", route), attribute.String("xgw.outcome", s.outcome.String()),
	}
	if s.upstreamSlot >= 0 {
		attributes = append(attributes, attribute.String("xgw.upstream", p.options.Upstream(s.upstreamSlot)), attribute.String("xgw.upstream.server", s.server),
			attribute.Float64("xgw.upstream.duration", s.upstream.Seconds()), attribute.Int("xgw.upstream.retries", s.retries))
	}
	if s.status >= 500 {
		attributes = append(attributes, attribute.String("error.type", s.outcome.String()))
	}
	_, made := p.tracing.Tracer("github.com/xgw-project/xgw").Start(ctx, s.method+" "+route,
		trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(s.began), trace.WithAttributes(attributes...))
	if s.status >= 500 {
		made.SetStatus(codes.Error, s.outcome.String())
	}
	made.End(trace.WithTimestamp(s.began.Add(s.took)))
}

// given hands the SDK the identifiers that the worker has already told the upstream.
type given struct{}

type givenKey struct{}

func (given) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	s := ctx.Value(givenKey{}).(*span)
	return s.trace, s.id
}

func (given) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	return ctx.Value(givenKey{}).(*span).id
}

// collecting keeps ended spans until they are taken. One goroutine uses it.
type collecting struct{ ended []sdktrace.ReadOnlySpan }

func (c *collecting) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (c *collecting) OnEnd(s sdktrace.ReadOnlySpan)                   { c.ended = append(c.ended, s) }
func (c *collecting) ForceFlush(context.Context) error                { return nil }
func (c *collecting) Shutdown(context.Context) error                  { return nil }

func (c *collecting) take() []sdktrace.ReadOnlySpan {
	all := c.ended
	c.ended = nil
	return all
}

var (
	_ sdktrace.SpanProcessor = (*collecting)(nil)
	_ sdktrace.IDGenerator   = given{}
)
