// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/goleak"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustZone(tb testing.TB, workers, routes int) *zone.Zone {
	tb.Helper()
	z, err := zone.Create(filepath.Join(tb.TempDir(), "zone"), zone.Layout{
		Size: 32 << 20, Workers: workers, Routes: routes, Upstreams: 16, AccessRing: 64 << 10,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(z.Remove(), z.Close()); err != nil {
			tb.Error(err)
		}
	})
	return z
}

// mustServe starts a server over the sources and returns its address.
func mustServe(tb testing.TB, src ledger.Sources) string {
	tb.Helper()
	return mustServer(tb, src).address
}

// served is a server with its address.
type served struct {
	*Server
	address string
}

func mustServer(tb testing.TB, src ledger.Sources) served {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := New(ledger.New(src), Options{Log: slog.New(slog.DiscardHandler)})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	tb.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-ended); err != nil {
			tb.Error(err)
		}
	})
	return served{s, "http://" + l.Addr().String()}
}

const protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"

func get(tb testing.TB, url, accept string) (status int, contentType string, body []byte) {
	tb.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		tb.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), body
}

// scrape returns the series of this product in text form.
func scrape(tb testing.TB, address string) []string {
	tb.Helper()
	status, _, body := get(tb, address+"/metrics", "")
	if status != http.StatusOK {
		tb.Fatalf("status %d: %s", status, body)
	}
	var out []string
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "xgw_") {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}

func want(tb testing.TB, series []string, lines ...string) {
	tb.Helper()
	for _, l := range lines {
		if !slices.Contains(series, l) {
			name, _, _ := strings.Cut(l, "{")
			tb.Errorf("no %s; of that name there are:\n%s", l, strings.Join(named(series, name), "\n"))
		}
	}
}

func named(series []string, name string) (out []string) {
	for _, s := range series {
		if strings.HasPrefix(s, name) {
			out = append(out, s)
		}
	}
	return out
}

// fill counts a little of everything in a zone of two workers.
func fill(z *zone.Zone) ledger.Sources {
	api, app := z.RouteSlot("api"), z.UpstreamSlot("app")
	z.SetGeneration(3)
	w := z.Worker(0)
	w.Set(zone.GaugePID, 4711)
	w.Set(zone.GaugeCore, 1+6)
	w.Set(zone.GaugeState, uint64(zone.StateReady))
	w.Set(zone.GaugeRestarts, 2)
	w.Add(zone.ConnectionsAccepted, 10)
	w.Add(zone.ConnectionsClosed, 7)
	w.Move(zone.GaugeConnections, 3)
	w.Add(zone.ConnectionsRejected, 1)
	w.Handshake(zone.HandshakeFull, time.Millisecond)
	w.Handshake(zone.HandshakeResumed, time.Millisecond)
	w.Handshake(zone.HandshakeTimeout, 10*time.Second)
	w.Add(zone.RequestsHTTP1, 2)
	w.Add(zone.AccessRecordsDropped, 5)
	w.Add(zone.ErrorLinesDropped, 16)
	w.Add(zone.Mirrored, 8)
	w.Add(zone.MirrorDropped, 9)
	w.Add(zone.KeysCached, 11)
	w.Add(zone.KeysStale, 12)
	w.Add(zone.KeysEvicted, 13)
	w.Request(api, 200, 3*time.Millisecond, zone.RequestOK)
	w.Request(api, 504, 5*time.Second, zone.RequestUpstreamTimeout)
	z.Worker(1).Add(zone.RequestsHTTP2, 5)
	z.Worker(1).Move(zone.GaugeRequests, 4)
	z.Worker(1).Request(api, 200, 3*time.Millisecond, zone.RequestOK)
	z.Worker(1).Upstream(app, zone.UpstreamTimeout, 5*time.Second)
	return ledger.Sources{
		Zone: z, Version: "v1.2.3", Kernel: host.Kernel{Release: "6.12.0", Machine: "x86_64"},
		Interfaces: []ledger.Interface{{
			Name: "eth0", Driver: "ixgbe",
			Status: func() datapath.Status {
				return datapath.Status{Attached: true, Mode: datapath.ModeNative, Hook: "link", Program: 42}
			},
			Counters: func(dst *datapath.Counters) error {
				dst.Ingress = append(dst.Ingress[:0],
					datapath.QueueCount{Queue: 1, Verdict: "drop", Reason: "source_limit", Packets: 12, Bytes: 720},
					datapath.QueueCount{Queue: datapath.Other, Verdict: "pass", Reason: "tcp"})
				dst.Egress = append(dst.Egress[:0],
					datapath.QueueCount{Queue: datapath.All, Verdict: "pass", Reason: "tcp", Packets: 8, Bytes: 900})
				return nil
			},
			Receive: func() (host.Receive, error) {
				return host.Receive{Packets: 20, Missed: 21, Queues: []host.QueueDrops{{Queue: 0, Packets: 22}, {Queue: 1, Packets: 24}}}, nil
			},
		}},
		Pushed: func() ledger.Pushed { return ledger.Pushed{On: true, MetricsSent: 41, SpansDropped: 42} },
		Stack: func() (host.Stack, error) {
			return host.Stack{Backlog: []host.CPUDrops{{CPU: 0, Packets: 24}, {CPU: 1, Packets: 25}}, ListenOverflow: 26, SYNsDropped: 27, SYNCookies: 28}, nil
		},
		Listeners: func() []ledger.Listener {
			return []ledger.Listener{
				{Address: "[::]:443", Counts: func() (datapath.SteerCounts, bool) { return datapath.SteerCounts{Local: 9, Fallback: 1}, true }},
				{Address: "unsteered", Counts: func() (datapath.SteerCounts, bool) { return datapath.SteerCounts{}, false }},
			}
		},
		LostLines:  func() (uint64, uint64) { return 6, 0 },
		SampledOut: func() uint64 { return 17 },
		LostErrors: func() (uint64, uint64, uint64) { return 18, 19, 20 },
		Capacity: func() ledger.Capacity {
			return ledger.Capacity{Busy: 0.7, Attack: 0.1, Throttled: 1.5, Scale: ledger.ScaleHelps, Seconds: [10]float64{ledger.CauseLua: 2.5}}
		},
		Cluster: func() ledger.Cluster {
			return ledger.Cluster{Answers: true, Gateways: 3, Leases: map[string]uint64{"ok": 31, "stale": 32}, Verdicts: map[string]uint64{"sent": 33}}
		},
		Servers: func(dst []ledger.Server) []ledger.Server {
			return append(dst, ledger.Server{Upstream: "app", Address: "192.0.2.1:80", Checked: true, Up: true, Good: 2})
		},
		Verdicts: func() ([]ledger.VerdictCount, [4]int) {
			return []ledger.VerdictCount{{Fate: "given", Step: "thin", Reason: "429", Count: 1}}, [4]int{1}
		},
		Keys: func() ledger.KeyStore {
			return ledger.KeyStore{Answers: true, Failed: 14, Purges: map[string]uint64{"keys": 15, "unknown_keys": 0}}
		},
	}
}

func TestExactValues(t *testing.T) {
	z := mustZone(t, 2, 16)
	series := scrape(t, mustServe(t, fill(z)))
	want(t, series,
		`xgw_packets_total{direction="ingress",interface="eth0",queue="1",reason="source_limit",verdict="drop"} 12`,
		`xgw_packet_bytes_total{direction="ingress",interface="eth0",queue="1",reason="source_limit",verdict="drop"} 720`,
		`xgw_packets_total{direction="ingress",interface="eth0",queue="other",reason="tcp",verdict="pass"} 0`,
		`xgw_packets_total{direction="egress",interface="eth0",queue="all",reason="tcp",verdict="pass"} 8`,
		`xgw_interface_info{driver="ixgbe",hook="link",interface="eth0",mode="native",program_id="42"} 1`,
		`xgw_interface_attached{interface="eth0"} 1`,
		`xgw_steered_connections_total{listener="[::]:443",path="local"} 9`,
		`xgw_steered_connections_total{listener="[::]:443",path="fallback"} 1`,
		`xgw_steered_connections_total{listener="[::]:443",path="refused"} 0`,
		`xgw_steered_connections_local_ratio{listener="[::]:443"} 0.9`,
		`xgw_connections_total{worker="0"} 10`,
		`xgw_connections_active{worker="0"} 3`,
		`xgw_connections_rejected_total{worker="0"} 1`,
		`xgw_connections_rejected_total{worker="1"} 0`,
		`xgw_tls_handshakes_total{cause="none",outcome="full",worker="0"} 1`,
		`xgw_tls_handshakes_total{cause="none",outcome="resumed",worker="0"} 1`,
		`xgw_tls_handshakes_total{cause="timeout",outcome="failed",worker="0"} 1`,
		`xgw_tls_handshake_duration_seconds_count 3`,
		`xgw_requests_total{code="2xx",route="api"} 2`,
		`xgw_requests_total{code="5xx",route="api"} 1`,
		`xgw_requests_total{code="4xx",route="none"} 0`,
		`xgw_requests_by_protocol_total{protocol="http1"} 2`,
		`xgw_requests_by_protocol_total{protocol="http2"} 5`,
		`xgw_request_outcomes_total{outcome="ok"} 2`,
		`xgw_request_outcomes_total{outcome="upstream_timeout"} 1`,
		`xgw_request_outcomes_total{outcome="panic"} 0`,
		`xgw_request_duration_seconds_bucket{route="api",le="0.001953125"} 0`,
		`xgw_request_duration_seconds_bucket{route="api",le="0.00390625"} 2`,
		`xgw_request_duration_seconds_bucket{route="api",le="4"} 2`,
		`xgw_request_duration_seconds_bucket{route="api",le="8"} 3`,
		`xgw_request_duration_seconds_bucket{route="api",le="+Inf"} 3`,
		`xgw_request_duration_seconds_sum{route="api"} 5.006`,
		`xgw_request_duration_seconds_count{route="api"} 3`,
		`xgw_upstream_requests_total{outcome="timeout",upstream="app"} 1`,
		`xgw_upstream_duration_seconds_sum{upstream="app"} 5`,
		`xgw_worker_info{core="6",pid="4711",worker="0"} 1`,
		`xgw_worker_info{core="any",pid="0",worker="1"} 1`,
		`xgw_worker_up{worker="0"} 1`,
		`xgw_worker_up{worker="1"} 0`,
		`xgw_worker_restarts_total{worker="0"} 2`,
		`xgw_access_records_dropped_total{cause="ring_full",worker="0"} 5`,
		`xgw_mirrored_requests_total{result="sent",worker="0"} 8`,
		`xgw_mirrored_requests_total{result="dropped",worker="0"} 9`,
		`xgw_key_lookups_total{result="cached",worker="0"} 11`,
		`xgw_key_lookups_total{result="asked",worker="0"} 0`,
		`xgw_key_lookups_total{result="stale",worker="0"} 12`,
		`xgw_keys_evicted_total{worker="0"} 13`,
		`xgw_key_store_up 1`,
		`xgw_cluster_up 1`, `xgw_cluster_gateways 3`, `xgw_cluster_leases_total{outcome="ok"} 31`, `xgw_cluster_leases_total{outcome="stale"} 32`,
		`xgw_cluster_verdicts_total{outcome="sent"} 33`,
		`xgw_key_store_failed_lookups_total 14`,
		`xgw_cache_purges_total{kind="keys"} 15`,
		`xgw_cache_purges_total{kind="unknown_keys"} 0`,
		`xgw_access_lines_lost_total{cause="disk_full"} 6`,
		`xgw_access_records_sampled_out_total 17`,
		`xgw_error_lines_lost_total{cause="disk_full"} 18`,
		`xgw_error_lines_lost_total{cause="queue_full"} 19`,
		`xgw_error_lines_lost_total{cause="worker_queue_full"} 16`,
		`xgw_error_lines_lost_total{cause="other"} 20`,
		`xgw_cpu_seconds_total{cause="lua"} 2.5`,
		`xgw_cpu_throttled_seconds_total 1.5`,
		`xgw_cpu_busy_ratio 0.7`,
		`xgw_cpu_attack_ratio 0.1`,
		`xgw_scale_out{verdict="helps"} 1`,
		`xgw_scale_out{verdict="enough"} 0`,
		`xgw_unexplained{kind="packets"} 0`,
		`xgw_unexplained{kind="requests"} 0`,
		`xgw_unexplained{kind="statuses"} 0`,
		`xgw_otlp_pushed_total{result="sent",signal="metrics"} 41`,
		`xgw_otlp_pushed_total{result="queue_full",signal="spans"} 42`,
		`xgw_ledger_total{hop="nic",reason="missed",verdict="drop"} 21`,
		`xgw_ledger_total{hop="nic",reason="queue_dropped",verdict="drop"} 46`,
		`xgw_ledger_total{hop="xdp",reason="source_limit",verdict="drop"} 12`,
		`xgw_ledger_total{hop="backlog",reason="backlog_full",verdict="drop"} 49`,
		`xgw_ledger_total{hop="tcp",reason="syn_cookies",verdict="pass"} 28`,
		`xgw_ledger_total{hop="tcp",reason="syn_queue_full",verdict="drop"} 27`,
		`xgw_ledger_total{hop="tcp",reason="listen_overflow",verdict="drop"} 26`,
		`xgw_ledger_total{hop="connection",reason="accepted",verdict="pass"} 10`,
		`xgw_ledger_total{hop="handshake",reason="timeout",verdict="drop"} 1`,
		`xgw_ledger_total{hop="request",reason="upstream_timeout",verdict="drop"} 1`,
		`xgw_ledger_total{hop="status",reason="5xx_upstream",verdict="drop"} 1`,
		`xgw_ledger_total{hop="status",reason="5xx_gateway",verdict="drop"} 0`,
		`xgw_unexplained{kind="connections"} 0`,
		`xgw_zone_bytes 3.3554432e+07`,
		`xgw_generation 3`,
		`xgw_kernel_info{machine="x86_64",release="6.12.0"} 1`,
	)
	if got := named(series, `xgw_steered_connections_total{listener="unsteered"`); len(got) > 0 {
		t.Errorf("a listener that is not steered has %q", got)
	}
	if got := named(series, "xgw_build_info"); len(got) != 1 || !strings.Contains(got[0], `version="v1.2.3"`) {
		t.Errorf("build info %q", got)
	}
	_, _, body := get(t, mustServe(t, fill(mustZone(t, 2, 16)))+"/metrics", "")
	for _, name := range []string{"go_goroutines ", "process_open_fds "} {
		if !bytes.Contains(body, []byte("\n"+name)) {
			t.Errorf("no %s of the supervisor itself", name)
		}
	}
}

func TestPromtoolHasNoComplaint(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("needs promtool: the distribution's package is called prometheus")
	}
	_, _, body := get(t, mustServe(t, fill(mustZone(t, 2, 16)))+"/metrics", "")
	check := func(text []byte) (string, error) {
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(text)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := check(body); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := check([]byte("# TYPE bad_counter counter\nbad_counter 1\n")); err == nil {
		t.Errorf("promtool finds nothing wrong with anything: %s", out)
	}
}

func TestLabelsAreEscaped(t *testing.T) {
	z := mustZone(t, 2, 16)
	src := fill(z)
	src.Version = "v1\"} 1\nxgw_forged 1\\"
	src.Kernel.Release = "not utf-8: \xff"
	series := scrape(t, mustServe(t, src))
	if got := named(series, "xgw_forged"); len(got) > 0 {
		t.Errorf("a label made a series: %q", got)
	}
	if got := named(series, "xgw_build_info"); len(got) != 1 || !strings.Contains(got[0], `version="v1\"} 1\nxgw_forged 1\\"`) {
		t.Errorf("build info %q", got)
	}
	if got := named(series, "xgw_kernel_info"); len(got) > 0 {
		t.Errorf("a label that is not UTF-8 is sent: %q", got)
	}
	want(t, series, `xgw_generation 3`) // and the rest is there all the same
}

func TestManyRoutes(t *testing.T) {
	z := mustZone(t, 2, 128)
	for i := range 64 {
		slot := z.RouteSlot(fmt.Sprintf("route-%d", i))
		for range i {
			z.Worker(i%2).Request(slot, 200, time.Duration(i)*time.Millisecond, zone.RequestOK)
		}
	}
	series := scrape(t, mustServe(t, ledger.Sources{Zone: z}))
	if got := len(named(series, "xgw_requests_total")); got != 66*5 {
		t.Errorf("%d series, want 64 routes, none and overflow with 5 classes each", got)
	}
	for i := range 64 {
		want(t, series, fmt.Sprintf(`xgw_requests_total{code="2xx",route="route-%d"} %d`, i, i),
			fmt.Sprintf(`xgw_request_duration_seconds_count{route="route-%d"} %d`, i, i))
	}
}

func TestDeadWorkerKeepsItsCounters(t *testing.T) {
	z := mustZone(t, 2, 16)
	src := fill(z)
	address := mustServe(t, src)
	counters := func() map[string]string {
		out := map[string]string{}
		for _, s := range scrape(t, address) {
			name, value, _ := strings.Cut(s, " ")
			if i := strings.LastIndex(s, "} "); i >= 0 {
				name, value = s[:i+1], s[i+2:]
			}
			if strings.Contains(name, "_total") || strings.Contains(name, "_bucket") || strings.Contains(name, "_count") || strings.Contains(name, "_sum") {
				out[name] = value
			}
		}
		return out
	}
	before := counters()
	z.Worker(0).Set(zone.GaugeState, uint64(zone.StateDead))
	after := counters()
	for name, value := range before {
		if after[name] != value {
			t.Errorf("%s from %s to %q", name, value, after[name])
		}
	}
	if len(before) < 100 {
		t.Errorf("%d counters: the test did not read what it claims", len(before))
	}
	want(t, scrape(t, address), `xgw_worker_up{worker="0"} 0`, `xgw_connections_active{worker="0"} 0`, `xgw_unexplained{kind="connections"} 3`)
	// Its replacement counts on.
	z.Worker(0).Set(zone.GaugeState, uint64(zone.StateReady))
	z.Worker(0).Add(zone.ConnectionsAccepted, 1)
	want(t, scrape(t, address), `xgw_worker_up{worker="0"} 1`, `xgw_connections_total{worker="0"} 11`)
}

// families decodes the protobuf exposition.
func families(t *testing.T, address string) map[string]*dto.MetricFamily {
	t.Helper()
	_, contentType, body := get(t, address+"/metrics", protobuf)
	if !strings.HasPrefix(contentType, "application/vnd.google.protobuf") {
		t.Fatalf("content type %s", contentType)
	}
	d := expfmt.NewDecoder(bytes.NewReader(body), expfmt.NewFormat(expfmt.TypeProtoDelim))
	out := map[string]*dto.MetricFamily{}
	for {
		f := &dto.MetricFamily{}
		err := d.Decode(f)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out[f.GetName()] = f
	}
}

func TestProtobufHasNativeHistograms(t *testing.T) {
	all := families(t, mustServe(t, fill(mustZone(t, 2, 16))))
	f := all["xgw_request_duration_seconds"]
	if f.GetType() != dto.MetricType_HISTOGRAM || len(f.GetMetric()) != 3 {
		t.Fatalf("%v", f)
	}
	for _, m := range f.GetMetric() {
		h := m.GetHistogram()
		if h.GetSchema() != zone.Schema || h.GetZeroThreshold() == 0 || len(h.GetBucket()) == 0 || len(h.GetPositiveSpan()) == 0 && h.GetSampleCount() > 0 {
			t.Errorf("route %s lacks one of the forms: %v", m.GetLabel()[0].GetValue(), h)
		}
		if got := nativeTotal(h); got != h.GetSampleCount() {
			t.Errorf("native buckets sum up to %d of %d", got, h.GetSampleCount())
		}
	}
}

func TestOpenMetrics(t *testing.T) {
	address := mustServe(t, fill(mustZone(t, 2, 16)))
	_, contentType, body := get(t, address+"/metrics", "application/openmetrics-text;version=1.0.0")
	if !strings.HasPrefix(contentType, "application/openmetrics-text") || !bytes.HasSuffix(body, []byte("# EOF\n")) {
		t.Errorf("%s, ends with %q", contentType, body[max(0, len(body)-20):])
	}
	if !bytes.Contains(body, []byte("# TYPE xgw_connections counter\n")) {
		t.Error("counters are not declared as such")
	}
}

func TestPages(t *testing.T) {
	z := mustZone(t, 2, 16)
	src := fill(z)
	src.Version = "<script>"
	address := mustServe(t, src)
	for _, c := range []struct {
		path   string
		status int
		says   string
	}{
		{"/", 200, "xgw &lt;script&gt;"},
		{"/healthz", 200, "ok"},
		{"/readyz", 200, "ok"},
		{"/elsewhere", 404, ""},
		{"/metrics/x", 404, ""},
	} {
		status, _, body := get(t, address+c.path, "")
		if status != c.status || !strings.Contains(string(body), c.says) {
			t.Errorf("%s: %d %s", c.path, status, body)
		}
	}
	z.Worker(0).Set(zone.GaugeState, uint64(zone.StateDraining))
	if status, _, _ := get(t, address+"/healthz", ""); status != http.StatusServiceUnavailable {
		t.Errorf("no worker is ready, healthz says %d", status)
	}
	resp, err := http.Post(address+"/metrics", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}

// While one scrape hangs in the kernel, further ones wait up to the bound, and those
// beyond are refused at once; health and index answer throughout.
func TestScrapesAreBounded(t *testing.T) {
	z := mustZone(t, 2, 16)
	src := fill(z)
	entered, release := make(chan struct{}), make(chan struct{})
	read := src.Interfaces[0].Counters
	first := true
	src.Interfaces[0].Counters = func(dst *datapath.Counters) error {
		if first {
			first = false
			close(entered)
			<-release
		}
		return read(dst)
	}
	address := mustServe(t, src)
	statuses := make(chan int, maxScrapes)
	ask := func() {
		status, _, _ := get(t, address+"/metrics", "")
		statuses <- status
	}
	go ask()
	<-entered
	for range maxScrapes - 1 {
		go ask()
	}
	refused := false
	for range 1000 {
		if status, _, _ := get(t, address+"/healthz", ""); status != http.StatusOK {
			t.Fatalf("healthz waits for a scrape: %d", status)
		}
		// Until the others have arrived this one may be let in, and then is cut off.
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, address+"/metrics", nil)
		resp, err := http.DefaultClient.Do(r)
		if err == nil {
			resp.Body.Close()
			refused = resp.StatusCode == http.StatusServiceUnavailable
		}
		cancel()
		if refused {
			break
		}
	}
	if !refused {
		t.Error("any number of scrapes is let in")
	}
	close(release)
	served := 0
	for range maxScrapes {
		if <-statuses == http.StatusOK {
			served++
		}
	}
	if served == 0 {
		t.Error("no scrape was served afterwards")
	}
	if status, _, _ := get(t, address+"/metrics", ""); status != http.StatusOK && status != http.StatusServiceUnavailable {
		t.Errorf("after all: %d", status)
	}
}

// After Shutdown nothing touches the zone, which the owner then unmaps.
func TestShutdownLetsGoOfTheZone(t *testing.T) {
	z := mustZone(t, 1, 16)
	c := &collector{metrics: newMetrics(), ledger: ledger.New(ledger.Sources{Zone: z}), log: slog.New(slog.DiscardHandler), gate: &gate{}}
	var s ledger.Snapshot
	if !c.read(&s) {
		t.Fatal("closed before it was")
	}
	c.gate.close()
	if c.read(&s) {
		t.Error("the zone is read after shutdown")
	}
}

func BenchmarkScrape(b *testing.B) {
	z := mustZone(b, 2, 1024)
	for i := range 1000 {
		slot := z.RouteSlot(fmt.Sprintf("route-%d", i))
		for n := range 200 {
			z.Worker(n%2).Request(slot, 200, time.Duration(n*n)*time.Microsecond, zone.RequestOK)
		}
	}
	address := mustServe(b, ledger.Sources{Zone: z})
	for _, form := range []struct{ name, accept string }{{"text", ""}, {"protobuf", protobuf}} {
		b.Run(form.name, func(b *testing.B) {
			size := 0
			for b.Loop() {
				_, _, body := get(b, address+"/metrics", form.accept)
				size = len(body)
			}
			if size < 100_000 {
				b.Fatalf("%d bytes cannot be 1,000 routes", size)
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}
