// SPDX-License-Identifier: Apache-2.0

// Package telemetry serves what the ledger knows on 9090: Prometheus text,
// OpenMetrics and protobuf with native histograms under /metrics, the same by gRPC, and
// under /healthz whether any worker serves, and under /readyz whether it should be sent clients. It reads on demand and stores nothing; the
// number of series depends on the configuration alone, never on traffic.
package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Bounds of the side listener: whoever asks too much must not cost the gateway its
// memory or descriptors.
const (
	maxScrapes     = 4   // under way, of text and of others; those beyond are answered 503 at once
	maxTexts       = 16  // that slow clients have not taken yet, in memory; as well
	maxConnections = 128 // open; those beyond wait to be accepted
	scrapeTimeout  = 10 * time.Second
)

// Server is the side listener. It is no part of the request path.
type Server struct {
	http   *http.Server
	gate   *gate
	reader *reader
	texts  *texts
	calls  *service
	log    *slog.Logger

	version string
}

// Options of a Server.
type Options struct {
	// Certificate is asked at each handshake; nil: HTTP/1.1 and HTTP/2 are in the clear.
	Certificate func() (*tls.Certificate, error)
	// Drained, when not nil, tells whether others should be sent what comes: /readyz and the
	// health of gRPC say so.
	Drained func() bool
	// Exemplars go with the durations of routes; nil: none.
	Exemplars *Exemplars
	Log       *slog.Logger
}

// gate keeps readers from the ledger's sources once they may be unmapped: a scrape
// that timed out runs on behind its answer.
type gate struct {
	mu     sync.RWMutex
	closed bool
}

// enter is true, and then needs a leave, while the sources are there.
func (g *gate) enter() bool {
	g.mu.RLock()
	if g.closed {
		g.mu.RUnlock()
		return false
	}
	return true
}

func (g *gate) leave() { g.mu.RUnlock() }

// close waits for readers inside.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
}

// New makes a server over the ledger, which is the server's from now on: it is not
// safe for concurrent use.
func New(l *ledger.Ledger, o Options) *Server {
	log := o.Log
	registry := prometheus.NewRegistry()
	g := &gate{}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	all := &reader{
		collector: &collector{metrics: newMetrics(), ledger: l, log: log, revision: revision(), gate: g, exemplars: o.Exemplars},
		process:   registry,
	}
	src := l.Sources()
	mux := http.NewServeMux()
	library := promhttp.HandlerForTransactional(all, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
	})
	text := &texts{reader: all, rest: library, slots: make(chan struct{}, maxScrapes), held: make(chan struct{}, maxTexts), log: log}
	mux.Handle("GET /metrics", text)
	drained := o.Drained
	if drained == nil {
		drained = func() bool { return false }
	}
	ready := func() bool { return ready(src.Zone, g) }
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { healthz(w, ready(), false) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { healthz(w, ready(), drained()) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { index(w, src.Version) })
	calls := newService(kept{all}, func() bool { return ready() && !drained() })
	s := &Server{gate: g, reader: all, texts: text, calls: calls, log: log, version: src.Version, http: &http.Server{
		Handler:           calls.beside(mux),
		Protocols:         new(http.Protocols),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	s.http.Protocols.SetHTTP1(true)
	s.http.Protocols.SetHTTP2(true)
	s.http.Protocols.SetUnencryptedHTTP2(true)
	s.http.RegisterOnShutdown(calls.stop)
	if o.Certificate != nil {
		s.http.TLSConfig = &tls.Config{
			MinVersion:     tls.VersionTLS13,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificate() },
		}
	}
	return s
}

// revision is the commit that the program was built from.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// ready tells whether a worker takes requests. It reads the zone alone, so it answers
// while scrapes wait for each other.
func ready(z *zone.Zone, g *gate) bool {
	if !g.enter() {
		return false
	}
	defer g.leave()
	for i := range z.Slots() {
		if zone.State(z.Worker(i).LoadGauge(zone.GaugeState)) == zone.StateReady {
			return true
		}
	}
	return false
}

func healthz(w http.ResponseWriter, ready, drained bool) {
	switch {
	case !ready:
		http.Error(w, "no worker is ready", http.StatusServiceUnavailable)
	case drained:
		http.Error(w, "drained: `gateway-ctl undrain` takes it back", http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ok")
	}
}

func index(w http.ResponseWriter, version string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>xgw</title>
<h1>xgw %s</h1>
<ul><li><a href="/metrics">/metrics</a>: counters for Prometheus<li><a href="/healthz">/healthz</a>: whether it serves
<li><a href="/readyz">/readyz</a>: whether to send it clients</ul>
`, html.EscapeString(version))
}

// Serve answers on the listener until Shutdown, and closes it.
func (s *Server) Serve(l net.Listener) error {
	l = netutil.LimitListener(l, maxConnections)
	serve := s.http.Serve
	if s.http.TLSConfig != nil {
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// Shutdown ends Serve; a scrape under way may finish until ctx ends, and then is cut off.
// When it has returned nothing reads the ledger's sources any more: they may be closed.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil { // somebody takes too long, as over HTTP/2 the library itself does
		err = s.http.Close()
	}
	s.gate.close()
	if err != nil {
		return fmt.Errorf("shut down metrics: %w", err)
	}
	return nil
}
