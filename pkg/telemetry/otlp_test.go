// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/xgw-project/xgw/pkg/lab/otlptest"
	"github.com/xgw-project/xgw/pkg/zone"
)

// mustPush starts to send to the address; what it returns ends that, and may be called again.
func mustPush(t *testing.T, address string, secret *tls.Config) (*Push, func()) {
	t.Helper()
	s := mustServer(t, fill(mustZone(t, 2, 16)))
	named := func(slot int) string { return fmt.Sprint("slot", slot) }
	p, err := s.NewPush(t.Context(), PushOptions{Endpoint: address, TLS: secret, Interval: 50 * time.Millisecond, Instance: "one", Route: named, Upstream: named})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go p.Run(ctx)
	end := func() { cancel(); p.Wait() }
	t.Cleanup(end)
	return p, end
}

const sampledTrace, sampledParent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

func sampledRecord(n byte) *zone.AccessRecord {
	r := &zone.AccessRecord{
		Start: time.Unix(1_700_000_000, 5), Duration: 3 * time.Millisecond, Status: 504, Outcome: zone.RequestUpstreamTimeout, Route: 1, Upstream: 0,
		Major: 2, TLSVersion: tls.VersionTLS13, Method: []byte("GET"), Host: []byte("example.com"), Target: []byte("/a\xff?key=secret"),
		Trace: []byte(sampledTrace), Sampled: true, Span: [8]byte{1, n},
	}
	_, _ = hex.Decode(r.Parent[:], []byte(sampledParent))
	return r
}

func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// secrets are a server's and a client's side of TLS.
func secrets(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2"}}, &tls.Config{RootCAs: pool, ServerName: "example.com"}
}

// A Collector gets all metrics, with histograms as they are, and a span of each exchange of a
// sampled trace under the identifiers that the upstream was told; in the clear and by TLS.
func TestPush(t *testing.T) {
	server, client := secrets(t)
	for _, row := range []struct{ server, client *tls.Config }{{nil, nil}, {server, client}} {
		c := otlptest.Start(t, "127.0.0.1:0", row.server)
		t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
		p, end := mustPush(t, c.Address, row.client)
		unsampled := sampledRecord(9)
		unsampled.Sampled = false
		for _, r := range []*zone.AccessRecord{sampledRecord(1), unsampled, sampledRecord(2)} {
			p.Note(r)
		}
		within(t, "spans and metrics", func() bool {
			return len(c.Spans()) == 2 && c.Metric("xgw_requests_total") != nil && p.Counts().SpansSent == 2
		})
		s := c.Spans()[0]
		a := otlptest.Attributes(s.GetAttributes())
		if hex.EncodeToString(s.GetTraceId()) != sampledTrace || hex.EncodeToString(s.GetSpanId()) != "0101000000000000" || hex.EncodeToString(s.GetParentSpanId()) != sampledParent {
			t.Errorf("trace %x, span %x of %x", s.GetTraceId(), s.GetSpanId(), s.GetParentSpanId())
		}
		if s.GetName() != "GET slot1" || s.GetKind() != tracepb.Span_SPAN_KIND_SERVER || s.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR ||
			s.GetStartTimeUnixNano() != 1_700_000_000_000_000_005 || s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano() != 3e6 {
			t.Errorf("span %v", s)
		}
		if a["url.path"] != "/a\uFFFD" || a["xgw.outcome"] != "upstream_timeout" || a["url.scheme"] != "https" || a["xgw.upstream"] != "slot0" {
			t.Errorf("attributes %v", a)
		}
		if n := otlptest.Point(c.Metric("xgw_request_outcomes_total"), "outcome", "ok"); n != 2 {
			t.Errorf("%v requests ended well, want 2", n)
		}
		points := c.Metric("xgw_request_duration_seconds").GetExponentialHistogram().GetDataPoints()
		found := false
		for _, d := range points {
			if otlptest.Attributes(d.GetAttributes())["route"] == "api" {
				found = d.GetCount() == 3 && d.GetScale() == zone.Schema && d.GetSum() > 5 && d.GetSum() < 5.1
			}
		}
		if !found {
			t.Errorf("durations: %v", points)
		}
		if r := c.Resource(); r["service.name"] != "xgw" || r["service.version"] != "v1.2.3" || r["service.instance.id"] != "one" {
			t.Errorf("resource %v", r)
		}
		if got := c.Fields().Get("x-key"); len(got) != 1 || got[0] != "secret" {
			t.Errorf("fields %v", c.Fields())
		}
		p.Note(sampledRecord(3)) // to be sent at the end
		end()
		if n := len(c.Spans()); n != 3 {
			t.Errorf("%d spans at the end, want 3", n)
		}
		if n := p.Counts(); n.SpansSent != 3 || n.SpansFailed+n.SpansDropped+n.MetricsFailed > 1 || n.MetricsSent == 0 {
			t.Errorf("%+v", n)
		}
	}
}

// A Collector that is gone, or takes connections and says nothing, slows nobody and costs a
// queue; what it does not get is counted, each span once.
func TestPushToNobody(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	for name, l := range map[string]net.Listener{"gone": gone, "silent": silent} {
		p, end := mustPush(t, l.Addr().String(), nil)
		const spans = 4 * spanQueue
		longest := time.Duration(0)
		for n := range spans {
			began := time.Now()
			p.Note(sampledRecord(byte(n)))
			longest = max(longest, time.Since(began))
		}
		began := time.Now()
		end()
		took := time.Since(began)
		n := p.Counts()
		t.Logf("%s: %+v, the slowest call took %s, the end %s", name, n, longest, took)
		if n.SpansSent != 0 || n.SpansDropped == 0 || n.MetricsSent != 0 {
			t.Errorf("%s: %+v", name, n)
		}
		// The end waits a second; spans that are left then are in the queue.
		if left := uint64(len(p.spans)); n.SpansFailed+n.SpansDropped+left != spans {
			t.Errorf("%s: %d spans, counted %+v and %d left", name, spans, n, left)
		}
		if took > 10*time.Second || longest > time.Second {
			t.Errorf("%s: a call took %s, the end %s", name, longest, took)
		}
	}
}
