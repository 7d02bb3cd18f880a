// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/xgw-project/xgw/pkg/telemetry/telemetrypb"
	"github.com/xgw-project/xgw/pkg/zone"
)

func mustDial(tb testing.TB, address string, o ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	c, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(address, "http://"), append(o, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func family(r *telemetrypb.Reading, name string) *dto.MetricFamily {
	for _, f := range r.GetFamilies() {
		if f.GetName() == name {
			return f
		}
	}
	return nil
}

func TestSnapshotByGRPC(t *testing.T) {
	z := mustZone(t, 2, 16)
	c := telemetrypb.NewTelemetryClient(mustDial(t, mustServe(t, fill(z))))
	all, err := c.Snapshot(t.Context(), &telemetrypb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if h := family(all, "xgw_request_duration_seconds").GetMetric(); len(h) != 3 || h[0].GetHistogram().GetSchema() != zone.Schema {
		t.Errorf("durations %v", h)
	}
	if family(all, "go_goroutines") == nil {
		t.Error("what /metrics has of the supervisor itself is missing")
	}
	for _, c := range []struct {
		filter         *telemetrypb.Filter
		families, rows int
	}{
		{&telemetrypb.Filter{Names: []string{"xgw_connections_total"}}, 1, 2},
		{&telemetrypb.Filter{Names: []string{"xgw_connections_total", "xgw_requests_*"}}, 4, 2 + 2 + 2 + 15},
		{&telemetrypb.Filter{Names: []string{"xgw_requests_total"}, Labels: map[string]string{"route": "api", "code": "2xx"}}, 1, 1},
		{&telemetrypb.Filter{Names: []string{"xgw_requests_total"}, Labels: map[string]string{"worker": "0"}}, 0, 0},
		{&telemetrypb.Filter{Names: []string{"nothing"}}, 0, 0},
	} {
		r, err := telemetrypb.NewTelemetryClient(mustDial(t, mustServe(t, fill(mustZone(t, 2, 16))))).Snapshot(t.Context(), &telemetrypb.SnapshotRequest{Filter: c.filter})
		if err != nil {
			t.Fatal(err)
		}
		rows := 0
		for _, f := range r.GetFamilies() {
			rows += len(f.GetMetric())
		}
		if len(r.GetFamilies()) != c.families || rows != c.rows {
			t.Errorf("%v: %d families, %d series, want %d and %d", c.filter, len(r.GetFamilies()), rows, c.families, c.rows)
		}
	}
	if _, err := c.Snapshot(t.Context(), &telemetrypb.SnapshotRequest{Filter: &telemetrypb.Filter{Names: make([]string, maxNames+1)}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("any number of names is taken: %v", err)
	}
}

// A watcher sees counters move, and its stream ends with the server.
func TestWatch(t *testing.T) {
	z := mustZone(t, 2, 16)
	address := mustServe(t, fill(z))
	c := telemetrypb.NewTelemetryClient(mustDial(t, address))
	watch := func(interval time.Duration) (grpc.ServerStreamingClient[telemetrypb.Reading], error) {
		return c.Watch(t.Context(), &telemetrypb.WatchRequest{
			Interval: durationpb.New(interval), Filter: &telemetrypb.Filter{Names: []string{"xgw_connections_total"}, Labels: map[string]string{"worker": "0"}},
		})
	}
	w, err := watch(leastPause)
	if err != nil {
		t.Fatal(err)
	}
	count := func() float64 {
		t.Helper()
		r, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return family(r, "xgw_connections_total").GetMetric()[0].GetCounter().GetValue()
	}
	if n := count(); n != 10 {
		t.Errorf("%v connections at first", n)
	}
	z.Worker(0).Add(zone.ConnectionsAccepted, 5)
	for begun := time.Now(); count() != 15; {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("a watcher does not see what is counted")
		}
	}
	for _, interval := range []time.Duration{0, -time.Second, leastPause - 1, longestPause + 1} {
		w, err := watch(interval)
		if err == nil {
			_, err = w.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("an interval of %s is taken: %v", interval, err)
		}
	}
}

// Streams end with the server: a watcher hears why, and reflection does not hold it up.
func TestShutdownEndsStreams(t *testing.T) {
	s := mustServer(t, fill(mustZone(t, 2, 16)))
	conn := mustDial(t, s.address)
	w, err := telemetrypb.NewTelemetryClient(conn).Watch(t.Context(), &telemetrypb.WatchRequest{Interval: durationpb.New(time.Hour)})
	if err == nil {
		_, err = w.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err == nil {
		err = r.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	}
	if err == nil {
		_, err = r.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	go s.http.Shutdown(t.Context())
	if _, err := w.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a watcher hears %v", err)
	}
	if _, err := r.Recv(); err == nil {
		t.Error("reflection goes on")
	}
}

// Watchers have places, which those who leave give back.
func TestWatchersAreBounded(t *testing.T) {
	address := mustServe(t, fill(mustZone(t, 2, 16)))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	begin := func(ctx context.Context) error {
		w, err := telemetrypb.NewTelemetryClient(mustDial(t, address)).Watch(ctx, &telemetrypb.WatchRequest{Interval: durationpb.New(time.Hour)})
		if err == nil {
			_, err = w.Recv()
		}
		return err
	}
	for range maxWatchers {
		if err := begin(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin(t.Context()); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more than %d: %v", maxWatchers, err)
	}
	if _, err := telemetrypb.NewTelemetryClient(mustDial(t, address)).Snapshot(t.Context(), &telemetrypb.SnapshotRequest{}); err != nil {
		t.Errorf("a snapshot beside watchers: %v", err)
	}
	leave()
	for begun := time.Now(); begin(t.Context()) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("places are not given back")
		}
	}
}

// slow is a connection that stops reading, and its owner's word.
type slow struct {
	net.Conn
	stop chan struct{}
	end  chan struct{}
}

func (s *slow) Read(b []byte) (int, error) {
	select {
	case <-s.stop:
		<-s.end
		return 0, errors.New("over")
	default:
		return s.Conn.Read(b)
	}
}

// Who takes nothing is cut off in time, and its place is free.
func TestSlowWatcherIsCutOff(t *testing.T) {
	z := mustZone(t, 2, 1024)
	for i := range 200 { // so that a few readings fill all buffers on the way
		z.RouteSlot(strings.Repeat("r", 20) + string(rune('0'+i%10)) + string(rune('0'+i/10%10)) + string(rune('0'+i/100)))
	}
	src := fill(z)
	s := mustServer(t, src)
	s.calls.takeTime = 300 * time.Millisecond
	conn := make(chan *slow, 1)
	c := telemetrypb.NewTelemetryClient(mustDial(t, s.address, grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", a)
		if err != nil {
			return nil, err
		}
		out := &slow{Conn: c, stop: make(chan struct{}), end: make(chan struct{})}
		conn <- out
		return out, nil
	})))
	w, err := c.Watch(t.Context(), &telemetrypb.WatchRequest{Interval: durationpb.New(leastPause)})
	if err == nil {
		_, err = w.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.calls.watchers); n != 1 {
		t.Fatalf("%d watchers", n)
	}
	peer := <-conn
	close(peer.stop)
	defer close(peer.end)
	for begun := time.Now(); len(s.calls.watchers) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			t.Fatal("a watcher that takes nothing keeps its place")
		}
	}
}

func TestHealthByGRPC(t *testing.T) {
	z := mustZone(t, 2, 16)
	c := grpc_health_v1.NewHealthClient(mustDial(t, mustServe(t, fill(z))))
	for _, name := range []string{"", "xgw.telemetry.v1.Telemetry"} {
		r, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: name})
		if err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v, %v", name, r, err)
		}
	}
	if _, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("a service that is not there: %v", err)
	}
	w, err := c.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{grpc_health_v1.HealthCheckResponse_SERVING, grpc_health_v1.HealthCheckResponse_NOT_SERVING} {
		if r, err := w.Recv(); err != nil || r.GetStatus() != want {
			t.Errorf("%v, %v, want %v", r, err, want)
		}
		z.Worker(0).Set(zone.GaugeState, uint64(zone.StateDraining))
	}
}
