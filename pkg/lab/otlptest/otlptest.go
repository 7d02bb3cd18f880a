// SPDX-License-Identifier: Apache-2.0

// Package otlptest is a Collector for tests: a server of the real protocol that keeps what it
// is sent.
package otlptest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"

	metricsservice "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	traceservice "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// Collector keeps spans and the last reading of the metrics.
type Collector struct {
	metricsservice.UnimplementedMetricsServiceServer
	Address string

	server *grpc.Server

	mu       sync.Mutex
	spans    []*tracepb.Span
	metrics  map[string]*metricspb.Metric
	resource map[string]string
	fields   metadata.MD
}

// Start listens, at an address of loopback or at one that another left; it ends with the test
// at the latest. secret is nil for the clear.
func Start(tb testing.TB, address string, secret *tls.Config) *Collector {
	tb.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	var o []grpc.ServerOption
	if secret != nil {
		o = append(o, grpc.Creds(credentials.NewTLS(secret)))
	}
	c := &Collector{Address: l.Addr().String(), server: grpc.NewServer(o...)}
	metricsservice.RegisterMetricsServiceServer(c.server, c)
	traceservice.RegisterTraceServiceServer(c.server, &traces{Collector: c})
	go func() { _ = c.server.Serve(l) }()
	tb.Cleanup(c.Stop)
	return c
}

// Stop ends it at once.
func (c *Collector) Stop() { c.server.Stop() }

// Export of metrics.
func (c *Collector) Export(ctx context.Context, r *metricsservice.ExportMetricsServiceRequest) (*metricsservice.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fields, _ = metadata.FromIncomingContext(ctx)
	c.metrics = map[string]*metricspb.Metric{}
	for _, of := range r.GetResourceMetrics() {
		c.resource = Attributes(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeMetrics() {
			for _, m := range scope.GetMetrics() {
				c.metrics[m.GetName()] = m
			}
		}
	}
	return &metricsservice.ExportMetricsServiceResponse{}, nil
}

type traces struct {
	traceservice.UnimplementedTraceServiceServer
	*Collector
}

// Export of spans.
func (t *traces) Export(_ context.Context, r *traceservice.ExportTraceServiceRequest) (*traceservice.ExportTraceServiceResponse, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, of := range r.GetResourceSpans() {
		for _, scope := range of.GetScopeSpans() {
			t.spans = append(t.spans, scope.GetSpans()...)
		}
	}
	return &traceservice.ExportTraceServiceResponse{}, nil
}

// Spans are all that came.
func (c *Collector) Spans() []*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*tracepb.Span(nil), c.spans...)
}

// Metric is of the last reading; nil for none of that name.
func (c *Collector) Metric(name string) *metricspb.Metric {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.metrics[name]
}

// Resource is whose the last reading was, and Fields what came with the call.
func (c *Collector) Resource() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resource
}

// Fields came with the last reading.
func (c *Collector) Fields() metadata.MD {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fields
}

// Attributes are those that are text.
func Attributes(all []*commonpb.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range all {
		out[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return out
}

// Point is the value of a counter's only series with the attribute; 0 for none.
func Point(m *metricspb.Metric, key, value string) float64 {
	for _, p := range m.GetSum().GetDataPoints() {
		if Attributes(p.GetAttributes())[key] == value {
			return p.GetAsDouble()
		}
	}
	return 0
}
