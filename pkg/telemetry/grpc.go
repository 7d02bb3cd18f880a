// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/xgw-project/xgw/pkg/telemetry/telemetrypb"
)

// Bounds of gRPC. Watchers share readings, so that many of them cost as much as one.
const (
	maxWatchers  = 16 // under way, those of health included; those beyond are refused
	maxStreams   = 16 // of a connection
	maxMessage   = 64 << 10
	maxNames     = 64
	readingAge   = 50 * time.Millisecond // a reading younger than this is sent again
	healthStep   = time.Second           // between looks at the health for its watchers
	usualPause   = 5 * time.Second
	leastPause   = 100 * time.Millisecond
	longestPause = time.Hour
)

// service is telemetry.proto over the registry that /metrics shows.
type service struct {
	telemetrypb.UnimplementedTelemetryServer
	gatherer prometheus.Gatherer
	ready    func() bool
	takeTime time.Duration   // for a client to take some of what is sent
	scrapes  chan struct{}   // a place for each Snapshot under way
	watchers chan struct{}   // a place for each Watch
	ends     context.Context // of which stop is, when the listener is about to close
	stop     context.CancelFunc

	mu       sync.Mutex // among readings
	at       time.Time
	families []*dto.MetricFamily // never changed: readings share them
}

func newService(g prometheus.Gatherer, ready func() bool) *service {
	s := &service{
		gatherer: g, ready: ready, takeTime: 10 * time.Second,
		scrapes: make(chan struct{}, maxScrapes), watchers: make(chan struct{}, maxWatchers),
	}
	s.ends, s.stop = context.WithCancel(context.Background())
	return s
}

// server is the service with health and reflection.
func (s *service) server() *grpc.Server {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	telemetrypb.RegisterTelemetryServer(g, s)
	grpc_health_v1.RegisterHealthServer(g, health{service: s})
	reflection.Register(g)
	return g
}

// paced gives a client its time for each part of what is written, instead of one for all.
type paced struct {
	http.ResponseWriter
	control  *http.ResponseController
	takeTime time.Duration
}

func (p paced) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(p.takeTime))
	return p.ResponseWriter.Write(b)
}

func (p paced) Flush() {
	_ = p.control.Flush()
	_ = p.control.SetWriteDeadline(time.Time{})
}

// beside serves gRPC, and leaves all else to next.
func (s *service) beside(next http.Handler) http.Handler {
	g := s.server()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			next.ServeHTTP(w, r)
			return
		}
		c := http.NewResponseController(w)
		_ = c.SetReadDeadline(time.Time{})
		_ = c.SetWriteDeadline(time.Time{})
		if strings.HasPrefix(r.URL.Path, "/grpc.reflection.") { // a stream that knows no end but its client's
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(s.ends, cancel)()
			r = r.WithContext(ctx)
		}
		g.ServeHTTP(paced{w, c, s.takeTime}, r)
	})
}

// take gets a place, or says why there is none.
func take(places chan struct{}, of string) error {
	select {
	case places <- struct{}{}:
		return nil
	default:
		return status.Errorf(codes.ResourceExhausted, "%d %s are under way already, which is as many as there may be", cap(places), of)
	}
}

func (s *service) Snapshot(_ context.Context, r *telemetrypb.SnapshotRequest) (*telemetrypb.Reading, error) {
	if err := take(s.scrapes, "snapshots"); err != nil {
		return nil, err
	}
	defer func() { <-s.scrapes }()
	return s.read(r.GetFilter())
}

func (s *service) Watch(r *telemetrypb.WatchRequest, to grpc.ServerStreamingServer[telemetrypb.Reading]) error {
	pause := usualPause
	if r.GetInterval() != nil {
		if pause = r.GetInterval().AsDuration(); pause < leastPause || pause > longestPause {
			return status.Errorf(codes.InvalidArgument, "interval: %s is not from %s to %s", pause, leastPause, longestPause)
		}
	}
	return s.each(to.Context(), pause, func() error {
		reading, err := s.read(r.GetFilter())
		if err != nil {
			return err
		}
		return to.Send(reading)
	})
}

// each does it at once and then after each pause, in a place of its own, until there is an
// error or somebody is gone.
func (s *service) each(ctx context.Context, pause time.Duration, do func() error) error {
	if err := take(s.watchers, "watchers"); err != nil {
		return err
	}
	defer func() { <-s.watchers }()
	tick := time.NewTicker(pause) // it keeps one tick at most for who is late
	defer tick.Stop()
	for {
		if err := do(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.ends.Done():
			return status.Error(codes.Unavailable, "the gateway stops")
		case <-tick.C:
		}
	}
}

// read is what is counted now, as the filter lets through.
func (s *service) read(f *telemetrypb.Filter) (*telemetrypb.Reading, error) {
	if n := len(f.GetNames()); n > maxNames {
		return nil, status.Errorf(codes.InvalidArgument, "filter: %d names, and %d are possible", n, maxNames)
	}
	s.mu.Lock()
	if time.Since(s.at) > readingAge {
		families, err := s.gatherer.Gather()
		if err != nil && len(families) == 0 {
			s.mu.Unlock()
			return nil, status.Errorf(codes.Internal, "read metrics: %v", err)
		}
		s.families, s.at = families, time.Now()
	}
	out := &telemetrypb.Reading{Time: timestamppb.New(s.at), Families: s.families}
	s.mu.Unlock()
	if len(f.GetNames()) > 0 || len(f.GetLabels()) > 0 {
		out.Families = filter(out.Families, f)
	}
	return out, nil
}

func filter(all []*dto.MetricFamily, f *telemetrypb.Filter) (out []*dto.MetricFamily) {
	for _, family := range all {
		if !wants(family.GetName(), f.GetNames()) {
			continue
		}
		if len(f.GetLabels()) == 0 {
			out = append(out, family)
			continue
		}
		kept := &dto.MetricFamily{Name: family.Name, Help: family.Help, Type: family.Type, Unit: family.Unit}
		for _, m := range family.GetMetric() {
			if labelled(m, f.GetLabels()) {
				kept.Metric = append(kept.Metric, m)
			}
		}
		if len(kept.Metric) > 0 {
			out = append(out, kept)
		}
	}
	return out
}

func wants(name string, names []string) bool {
	for _, w := range names {
		if prefix, any := strings.CutSuffix(w, "*"); name == w || any && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return len(names) == 0
}

func labelled(m *dto.Metric, wanted map[string]string) bool {
	has := 0
	for _, l := range m.GetLabel() {
		if v, ok := wanted[l.GetName()]; ok && v == l.GetValue() {
			has++
		}
	}
	return has == len(wanted)
}

// health is grpc.health.v1: SERVING while a worker takes requests, as /readyz.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	*service
}

func (h health) Check(_ context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if name := r.GetService(); name != "" && name != telemetrypb.Telemetry_ServiceDesc.ServiceName {
		return nil, status.Errorf(codes.NotFound, "no service %q", name)
	}
	out := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}
	if h.ready() {
		out.Status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	return out, nil
}

func (h health) Watch(r *grpc_health_v1.HealthCheckRequest, to grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	var last *grpc_health_v1.HealthCheckResponse
	return h.each(to.Context(), healthStep, func() error {
		now, err := h.Check(to.Context(), r)
		if err != nil {
			return err
		}
		if last != nil && last.Status == now.Status {
			return nil
		}
		last = now
		return to.Send(now)
	})
}
