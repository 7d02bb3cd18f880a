// SPDX-License-Identifier: Apache-2.0

// Package telemetry serves what the ledger knows on 9090: Prometheus text,
// OpenMetrics and protobuf with native histograms under /metrics, and under /healthz
// whether any worker serves. It reads on demand and stores nothing; the number of
// series depends on the configuration alone, never on traffic.
package telemetry

import (
	"context"
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
	maxScrapes     = 4   // under way; those beyond are answered 503 at once
	maxConnections = 128 // open; those beyond wait to be accepted
	scrapeTimeout  = 10 * time.Second
)

// Server is the side listener. It is no part of the request path.
type Server struct {
	http *http.Server
	gate *gate
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
func New(l *ledger.Ledger, log *slog.Logger) *Server {
	registry := prometheus.NewRegistry()
	g := &gate{}
	registry.MustRegister(
		&collector{metrics: newMetrics(), ledger: l, log: log, revision: revision(), gate: g},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	src := l.Sources()
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { health(w, src.Zone, g) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { index(w, src.Version) })
	return &Server{gate: g, http: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
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

// health is 200 while a worker takes requests. It reads the zone alone, so it
// answers while scrapes wait for each other.
func health(w http.ResponseWriter, z *zone.Zone, g *gate) {
	if g.enter() {
		defer g.leave()
		for i := range z.Workers() {
			if zone.State(z.Worker(i).LoadGauge(zone.GaugeState)) == zone.StateReady {
				fmt.Fprintln(w, "ok")
				return
			}
		}
	}
	http.Error(w, "no worker is ready", http.StatusServiceUnavailable)
}

func index(w http.ResponseWriter, version string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>xgw</title>
<h1>xgw %s</h1>
<ul><li><a href="/metrics">/metrics</a>: counters for Prometheus<li><a href="/healthz">/healthz</a>: whether it serves</ul>
`, html.EscapeString(version))
}

// Serve answers on the listener until Shutdown, and closes it.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(netutil.LimitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// Shutdown ends Serve; a scrape under way may finish until ctx ends. When it has
// returned nothing reads the ledger's sources any more: they may be closed.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = fmt.Errorf("shut down metrics: %w", errors.Join(err, s.http.Close()))
	}
	s.gate.close()
	return err
}
