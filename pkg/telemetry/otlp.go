// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/credentials"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Bounds of what is pushed: a Collector that is slow or gone costs so much memory and no more.
const (
	spanQueue   = 2048 // that wait to be sent; those beyond are dropped and counted
	spanBatch   = 512  // of one call
	spanPause   = time.Second
	pushTimeout = 5 * time.Second // of one call
)

// PushOptions of a Push.
type PushOptions struct {
	Endpoint string        // HOST:PORT of a receiver of OTLP by gRPC
	TLS      *tls.Config   // nil: in the clear
	Interval time.Duration // between two readings of the metrics
	Instance string        // of this gateway
	// Route and Upstream are the names of slots.
	Route, Upstream func(slot int) string
}

// Push sends metrics and spans to a Collector by OTLP, with the SDK of OpenTelemetry. Nobody
// waits for it: what the Collector does not take is dropped and counted.
type Push struct {
	options PushOptions
	log     *slog.Logger
	spans   chan span
	counts  [otlpOutcomes]atomic.Uint64
	failing [2]bool // metrics, spans; each of its own goroutine

	reader    *sdkmetric.ManualReader
	provider  *sdkmetric.MeterProvider
	metrics   *otlpmetricgrpc.Exporter
	traces    sdktrace.SpanExporter
	tracing   *sdktrace.TracerProvider
	collected *collecting
	done      chan struct{}
}

// What became of what was to be sent.
const (
	metricsSent = iota // readings
	metricsFailed
	spansSent
	spansFailed
	spansDropped // there was no room for them
	otlpOutcomes
)

// NewPush connects when it has something to send, and again when it was cut off. Fields for
// each call, such as a key, come from OTEL_EXPORTER_OTLP_HEADERS. It is for one process: the
// SDK's own faults go to the server's log from then on.
func (s *Server) NewPush(ctx context.Context, o PushOptions) (*Push, error) {
	p := &Push{options: o, log: s.log, spans: make(chan span, spanQueue), collected: new(collecting), done: make(chan struct{})}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { s.log.Debug("OpenTelemetry", "error", err) }))
	metrics := []otlpmetricgrpc.Option{
		otlpmetricgrpc.WithEndpoint(o.Endpoint), otlpmetricgrpc.WithTimeout(pushTimeout), otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{}),
	}
	traces := []otlptracegrpc.Option{
		otlptracegrpc.WithEndpoint(o.Endpoint), otlptracegrpc.WithTimeout(pushTimeout), otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{}),
	}
	if o.TLS == nil {
		metrics, traces = append(metrics, otlpmetricgrpc.WithInsecure()), append(traces, otlptracegrpc.WithInsecure())
	} else {
		secret := credentials.NewTLS(o.TLS)
		metrics, traces = append(metrics, otlpmetricgrpc.WithTLSCredentials(secret)), append(traces, otlptracegrpc.WithTLSCredentials(secret))
	}
	var err error
	if p.metrics, err = otlpmetricgrpc.New(ctx, metrics...); err != nil {
		return nil, fmt.Errorf("push metrics to %s: %w", o.Endpoint, err)
	}
	if p.traces, err = otlptracegrpc.New(ctx, traces...); err != nil {
		return nil, errors.Join(fmt.Errorf("push spans to %s: %w", o.Endpoint, err), p.metrics.Shutdown(ctx))
	}
	self := resource.NewSchemaless(
		attribute.String("service.name", "xgw"), attribute.String("service.version", s.version), attribute.String("service.instance.id", o.Instance))
	p.reader = sdkmetric.NewManualReader(sdkmetric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(all{s.calls.gatherer}))))
	p.provider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(p.reader), sdkmetric.WithResource(self))
	p.tracing = sdktrace.NewTracerProvider(sdktrace.WithResource(self), sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithIDGenerator(given{}), sdktrace.WithSpanProcessor(p.collected))
	return p, nil
}

// all lets by what could be read where a part could not: the collector has said so.
type all struct{ prometheus.Gatherer }

func (g all) Gather() ([]*dto.MetricFamily, error) {
	families, err := g.Gatherer.Gather()
	if len(families) > 0 {
		err = nil
	}
	return families, err
}

// Run sends until ctx ends, and then what is left, for a second.
func (p *Push) Run(ctx context.Context) {
	defer close(p.done)
	spans := make(chan struct{})
	go func() { defer close(spans); p.sendSpans(ctx) }()
	tick := time.NewTicker(p.options.Interval)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-tick.C:
			p.sendMetrics(ctx)
		}
	}
	<-spans
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	p.sendMetrics(last)
	for p.flush(last) && last.Err() == nil {
	}
	// What does not end in time is cut off by the process's end.
	_ = errors.Join(p.metrics.Shutdown(last), p.traces.Shutdown(last), p.provider.Shutdown(last), p.tracing.Shutdown(last))
}

// Wait returns when Run has: nothing reads the ledger's sources any more.
func (p *Push) Wait() { <-p.done }

func (p *Push) sendMetrics(ctx context.Context) {
	var reading metricdata.ResourceMetrics
	if err := p.reader.Collect(ctx, &reading); err != nil || len(reading.ScopeMetrics) == 0 {
		return // it ends
	}
	within, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	err := p.metrics.Export(within, &reading)
	if err != nil {
		p.counts[metricsFailed].Add(1)
	} else {
		p.counts[metricsSent].Add(1)
	}
	p.say("metrics", &p.failing[0], err)
}

// say tells when sending begins to fail and when that is over.
func (p *Push) say(what string, failing *bool, err error) {
	switch {
	case err != nil && !*failing:
		p.log.Error("the Collector does not take "+what, "endpoint", p.options.Endpoint, "error", err)
	case err == nil && *failing:
		p.log.Info("the Collector takes "+what+" again", "endpoint", p.options.Endpoint)
	}
	*failing = err != nil
}

// Note queues the span of an exchange that is sampled. It waits for nothing.
func (p *Push) Note(r *zone.AccessRecord) {
	if !r.Sampled {
		return
	}
	made, ok := newSpan(r)
	if !ok {
		return // of a worker that does not speak the truth
	}
	select {
	case p.spans <- made:
	default:
		p.counts[spansDropped].Add(1)
	}
}

func (p *Push) sendSpans(ctx context.Context) {
	tick := time.NewTicker(spanPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for p.flush(ctx) && ctx.Err() == nil {
			}
		}
	}
}

// flush sends what waits, up to a batch; true: more may.
func (p *Push) flush(ctx context.Context) (more bool) {
	for len(p.collected.ended) < spanBatch {
		select {
		case s := <-p.spans:
			p.record(&s)
			continue
		default:
		}
		break
	}
	batch := p.collected.take()
	if len(batch) == 0 {
		return false
	}
	within, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	err := p.traces.ExportSpans(within, batch)
	if err != nil {
		p.counts[spansFailed].Add(uint64(len(batch)))
	} else {
		p.counts[spansSent].Add(uint64(len(batch)))
	}
	p.say("spans", &p.failing[1], err)
	return len(batch) == spanBatch
}

// Counts are for the ledger.
func (p *Push) Counts() ledger.Pushed {
	n := func(i int) uint64 { return p.counts[i].Load() }
	return ledger.Pushed{
		On: true, MetricsSent: n(metricsSent), MetricsFailed: n(metricsFailed),
		SpansSent: n(spansSent), SpansFailed: n(spansFailed), SpansDropped: n(spansDropped),
	}
}
