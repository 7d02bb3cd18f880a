// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fullstorydev/grpcurl"
	"github.com/jhump/protoreflect/grpcreflect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/xgw-project/xgw/pkg/lab"
)

// gRPC is what grpcurl is given to reach a server by: its reflection.
type gRPC struct {
	conn   *grpc.ClientConn
	source grpcurl.DescriptorSource
}

func dialGRPC(t *testing.T, address string) gRPC {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	secret := insecure.NewCredentials()
	if u.Scheme == "https" {
		secret = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	conn, err := grpcurl.BlockingDial(t.Context(), "tcp", u.Host, secret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := grpcreflect.NewClientAuto(t.Context(), conn)
	t.Cleanup(c.Reset)
	return gRPC{conn, grpcurl.DescriptorSourceFromServer(t.Context(), c)}
}

// call is `grpcurl -d REQUEST ADDRESS METHOD`, as text; it ends once enough, when not nil,
// says so.
func (g gRPC) call(t *testing.T, method, request string, enough func(string) bool) (string, codes.Code) {
	t.Helper()
	parse, format, err := grpcurl.RequestParserAndFormatter(grpcurl.FormatJSON, g.source, strings.NewReader(request), grpcurl.FormatOptions{EmitJSONDefaultFields: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out lockedBuffer
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if enough != nil && enough(out.String()) {
				cancel()
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	h := &grpcurl.DefaultEventHandler{Out: &out, Formatter: format}
	if err := grpcurl.InvokeRPC(ctx, g.source, g.conn, method, nil, h, parse.Next); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return out.String(), h.Status.Code()
}

// grpcurl lists, describes and watches, in the clear and by TLS, on the port that
// Prometheus scrapes.
func TestGRPCurl(t *testing.T) {
	for _, secure := range []bool{false, true} {
		dir := t.TempDir()
		yaml := gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n")
		if secure {
			chain, key := certificateFiles(t, dir)
			yaml = strings.Replace(yaml, `telemetry: {address: "127.0.0.1:0"}`, `telemetry: {address: "127.0.0.1:0", certificate: "`+chain+`", key: "`+key+`"}`, 1)
		}
		yaml = strings.Replace(yaml, `telemetry: {`, `telemetry: {file: "`+filepath.Join(dir, "metrics.prom")+`", `, 1)
		g := startGateway(t, startHere, "grpcurl", dir, yaml)
		if got := strings.HasPrefix(g.metrics, "https://"); got != secure {
			t.Errorf("metrics on %s", g.metrics)
		}
		rpc := dialGRPC(t, g.metrics)
		services, err := grpcurl.ListServices(rpc.source)
		if err != nil || !slices.Contains(services, "xgw.telemetry.v1.Telemetry") || !slices.Contains(services, "grpc.health.v1.Health") {
			t.Fatalf("list: %q, %v", services, err)
		}
		symbol, err := rpc.source.FindSymbol("xgw.telemetry.v1.Telemetry")
		if err != nil {
			t.Fatal(err)
		}
		if text, err := grpcurl.GetDescriptorText(symbol, rpc.source); err != nil || !strings.Contains(text, "rpc Watch ( .xgw.telemetry.v1.WatchRequest ) returns ( stream .xgw.telemetry.v1.Reading );") {
			t.Errorf("describe: %v\n%s", err, text)
		}
		if out, code := rpc.call(t, "grpc.health.v1.Health/Check", "", nil); code != codes.OK || !strings.Contains(out, `"SERVING"`) {
			t.Errorf("health: %s %s", code, out)
		}
		if out, code := rpc.call(t, "xgw.telemetry.v1.Telemetry/Snapshot", `{"filter": {"names": ["xgw_generation"]}}`, nil); code != codes.OK || !strings.Contains(out, `"value": 1`) || strings.Contains(out, "xgw_requests_total") {
			t.Errorf("snapshot: %s %s", code, out)
		}
		// One reading before the request and one with it.
		asked := false
		out, code := rpc.call(t, "xgw.telemetry.v1.Telemetry/Watch", `{"interval": "0.1s", "filter": {"names": ["xgw_requests_total"], "labels": {"route": "all", "code": "2xx"}}}`, func(out string) bool {
			if !asked && strings.Contains(out, `"value": 0`) {
				asked = true
				if err := exchange(client(true), "https://"+g.address, 0, 100, lab.BodyHash(100)); err != nil {
					t.Error(err)
				}
			}
			return strings.Contains(out, `"value": 1`)
		})
		if code != codes.Canceled || !strings.Contains(out, `"value": 1`) {
			t.Errorf("watch: %s %s", code, out)
		}
		r, err := client(true).Get(g.metrics)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		_, _ = text.ReadFrom(r.Body)
		r.Body.Close()
		if !strings.Contains(text.String(), `xgw_requests_total{code="2xx",route="all"} 1`) {
			t.Error("what is scraped is not what was watched")
		}
		g.stop(t)
		if file, err := os.ReadFile(filepath.Join(dir, "metrics.prom")); err != nil || !bytes.Contains(file, []byte("\nxgw_generation 1\n")) {
			t.Errorf("the file of metrics: %d bytes, %v", len(file), err)
		}
	}
}

// certificateFiles are a chain and a key that the gateway made in a directory.
func certificateFiles(t *testing.T, dir string) (chain, key string) {
	t.Helper()
	state := t.TempDir()
	g := startGateway(t, startHere, "certificate", state, gatewayYAML(state, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"))
	g.stop(t)
	for _, kind := range []string{".crt", ".key"} {
		made, err := filepath.Glob(filepath.Join(state, "*"+kind))
		if err != nil || len(made) != 1 {
			t.Fatalf("%q, %v", made, err)
		}
		text, err := os.ReadFile(made[0])
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "own"+kind), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "own.crt"), filepath.Join(dir, "own.key")
}
