// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// grpcServer is grpc-go's, behind the gateway.
type grpcServer struct {
	pb.UnimplementedTestServiceServer
	calls, cancelled atomic.Int64
	waiting          chan struct{} // receives one when a call waits for its end
}

const waitSize = 77 // the response size that makes a call wait until its client is gone

func (s *grpcServer) UnaryCall(ctx context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	s.calls.Add(1)
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-head", fmt.Sprint(md.Get("x-ask"))))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-tail", fmt.Sprint(md.Get("x-ask")), "x-bin-bin", "\x00\xff"))
	}
	if r.ResponseSize == waitSize {
		s.waiting <- struct{}{}
		<-ctx.Done()
		s.cancelled.Add(1)
		return nil, ctx.Err()
	}
	if r.ResponseStatus != nil {
		return nil, status.Error(codes.Code(r.ResponseStatus.Code), r.ResponseStatus.Message)
	}
	return &pb.SimpleResponse{Payload: payload(int(r.ResponseSize) + len(r.Payload.GetBody()))}, nil
}

func (s *grpcServer) StreamingOutputCall(r *pb.StreamingOutputCallRequest, out pb.TestService_StreamingOutputCallServer) error {
	for _, p := range r.ResponseParameters {
		if err := out.Send(&pb.StreamingOutputCallResponse{Payload: payload(int(p.Size))}); err != nil {
			return err
		}
	}
	return nil
}

func (s *grpcServer) StreamingInputCall(in pb.TestService_StreamingInputCallServer) error {
	sum := 0
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			s.cancelled.Add(1)
			return err
		}
		sum += len(m.Payload.Body)
	}
}

func (s *grpcServer) FullDuplexCall(x pb.TestService_FullDuplexCallServer) error {
	for {
		m, err := x.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			s.cancelled.Add(1)
			return err
		}
		if m.ResponseStatus != nil {
			return status.Error(codes.Code(m.ResponseStatus.Code), m.ResponseStatus.Message)
		}
		if err := x.Send(&pb.StreamingOutputCallResponse{Payload: m.Payload}); err != nil {
			return err
		}
	}
}

func payload(n int) *pb.Payload { return &pb.Payload{Body: bytes.Repeat([]byte("p"), n)} }

// newGRPCServer serves with the options; with a TLS configuration over that.
func newGRPCServer(t testing.TB, opts ...grpc.ServerOption) (*grpcServer, *grpc.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	impl := &grpcServer{waiting: make(chan struct{}, 2000)}
	s := grpc.NewServer(opts...)
	pb.RegisterTestServiceServer(s, impl)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return impl, s, l.Addr().String()
}

// http2Upstream makes the upstream one that speaks HTTP/2.
func http2Upstream(s *policy.Snapshot) { s.Upstreams[0].Protocol = "http2" }

func (g *gateway) grpc() pb.TestServiceClient {
	g.Helper()
	c, err := grpc.NewClient("dns:///"+g.address, grpc.WithTransportCredentials(credentials.NewTLS(g.tlsConfig())),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { c.Close() })
	return pb.NewTestServiceClient(c)
}

// grpcGateways are a gateway before a server in the clear, and one before a server with TLS.
func grpcGateways(t *testing.T, run func(t *testing.T, g *gateway, s *grpcServer)) {
	t.Run("h2c", func(t *testing.T) {
		s, _, address := newGRPCServer(t, grpc.MaxRecvMsgSize(64<<20))
		run(t, newGateway(t, []string{address}, http2Upstream), s)
	})
	t.Run("tls", func(t *testing.T) {
		g := newStoppedGateway(t, nil)
		s, _, address := newGRPCServer(t, grpc.MaxRecvMsgSize(64<<20),
			grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: g.certs, NextProtos: []string{"h2"}})))
		g.snapshot.Upstreams[0].Servers = policy.ServersAt(address)
		g.snapshot.Upstreams[0].Protocol = "http2"
		g.snapshot.Upstreams[0].TLS = &policy.UpstreamTLS{}
		g.start()
		run(t, g, s)
	})
}

func TestGRPC(t *testing.T) {
	grpcGateways(t, func(t *testing.T, g *gateway, s *grpcServer) {
		c := g.grpc()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		t.Run("unary", func(t *testing.T) { unaryCalls(t, ctx, c) })
		t.Run("client stream", func(t *testing.T) {
			in, err := c.StreamingInputCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for range 50 {
				if err := in.Send(&pb.StreamingInputCallRequest{Payload: payload(10000)}); err != nil {
					t.Fatal(err)
				}
			}
			if r, err := in.CloseAndRecv(); err != nil || r.AggregatedPayloadSize != 500000 {
				t.Errorf("%v %v", r, err)
			}
		})
		t.Run("server stream", func(t *testing.T) {
			r := &pb.StreamingOutputCallRequest{}
			for i := range 50 {
				r.ResponseParameters = append(r.ResponseParameters, &pb.ResponseParameters{Size: int32(i * 3000)})
			}
			out, err := c.StreamingOutputCall(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 50 {
				if m, err := out.Recv(); err != nil || len(m.Payload.Body) != i*3000 {
					t.Fatalf("message %d: %d bytes, %v", i, len(m.GetPayload().GetBody()), err)
				}
			}
			if _, err := out.Recv(); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		})
		t.Run("both ways", func(t *testing.T) {
			x, err := c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 100 { // each answer is waited for: nothing may be held back
				if err := x.Send(&pb.StreamingOutputCallRequest{Payload: payload(i * 100)}); err != nil {
					t.Fatal(err)
				}
				if m, err := x.Recv(); err != nil || len(m.Payload.Body) != i*100 {
					t.Fatalf("message %d: %v", i, err)
				}
			}
			_ = x.CloseSend()
			if _, err := x.Recv(); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			// The server ends while the client could go on.
			if x, err = c.FullDuplexCall(ctx); err != nil {
				t.Fatal(err)
			}
			_ = x.Send(&pb.StreamingOutputCallRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.DataLoss), Message: "a € b"}})
			if _, err := x.Recv(); status.Code(err) != codes.DataLoss || status.Convert(err).Message() != "a € b" {
				t.Error(err)
			}
		})
	})
}

func unaryCalls(t *testing.T, ctx context.Context, c pb.TestServiceClient) {
	for _, n := range []int{0, 1, 100, 16 << 10, 70 << 10, 1 << 20, 10 << 20} {
		var head, tail metadata.MD
		r, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-ask", "why"),
			&pb.SimpleRequest{Payload: payload(n), ResponseSize: 1}, grpc.Header(&head), grpc.Trailer(&tail))
		if err != nil || len(r.Payload.Body) != n+1 {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if fmt.Sprint(head["x-head"], tail["x-tail"], tail["x-bin-bin"]) != "[[why]] [[why]] [\x00\xff]" {
			t.Errorf("head %v, tail %v", head, tail)
		}
	}
	_, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: 9, Message: "not now"}})
	if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "not now" {
		t.Error(err)
	}
	if _, err := c.UnimplementedCall(ctx, &pb.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

// What ends a call early reaches the other side: deadlines, cancellation, a lost connection.
func TestGRPCCancel(t *testing.T) {
	grpcGateways(t, func(t *testing.T, g *gateway, s *grpcServer) {
		c := g.grpc()
		if _, err := c.UnaryCall(t.Context(), &pb.SimpleRequest{}); err != nil { // the connections are there
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseSize: waitSize}); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		eventually(t, "the server sees the deadline", func() bool { return s.cancelled.Load() == 1 })
		<-s.waiting
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		go func() { <-s.waiting; cancel() }()
		if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseSize: waitSize}); status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		eventually(t, "the server sees the cancellation", func() bool { return s.cancelled.Load() == 2 })
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		x, err := c.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = x.Send(&pb.StreamingOutputCallRequest{Payload: payload(5)})
		if _, err := x.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel()
		eventually(t, "the server sees a stream's end", func() bool { return s.cancelled.Load() == 3 })
		if _, err := c.UnaryCall(t.Context(), &pb.SimpleRequest{}); err != nil {
			t.Error(err)
		}
		if n := g.slab.Load(zone.UpstreamConnectionsOpened); n != 1 {
			t.Errorf("%d connections: a cancelled stream took one with it", n)
		}
	})
}

// A thousand calls at once, on few connections.
func TestGRPCMany(t *testing.T) {
	s, _, address := newGRPCServer(t, grpc.MaxConcurrentStreams(250))
	g := newGateway(t, []string{address}, http2Upstream)
	var clients []pb.TestServiceClient
	for range 20 {
		clients = append(clients, g.grpc())
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			if _, err := clients[i%20].UnaryCall(ctx, &pb.SimpleRequest{ResponseSize: waitSize}); status.Code(err) != codes.Canceled {
				t.Error(err)
			}
		})
	}
	for range 1000 {
		<-s.waiting
	}
	if n := g.slab.Load(zone.UpstreamConnectionsOpened); n < 4 || n > 8 {
		t.Errorf("%d connections for 1000 calls of up to 250 each", n)
	}
	cancel()
	all.Wait()
	eventually(t, "all are cancelled", func() bool { return s.cancelled.Load() == 1000 })
	if _, err := clients[0].UnaryCall(t.Context(), &pb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
}

// A server that restarts, politely, costs no call.
func TestGRPCGoAway(t *testing.T) {
	one, server, address := newGRPCServer(t)
	two, _, other := newGRPCServer(t)
	g := newGateway(t, []string{address, other}, http2Upstream)
	c := g.grpc()
	stop := make(chan struct{})
	var all sync.WaitGroup
	var failed, done atomic.Int64
	for range 20 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.UnaryCall(t.Context(), &pb.SimpleRequest{ResponseSize: 1000}); err != nil {
					t.Error(err)
					failed.Add(1)
				}
				done.Add(1)
			}
		})
	}
	eventually(t, "both serve", func() bool { return one.calls.Load() > 50 && two.calls.Load() > 50 })
	server.GracefulStop()
	before := done.Load()
	eventually(t, "the other serves on", func() bool { return done.Load() > before+200 })
	close(stop)
	all.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d calls failed", failed.Load(), done.Load())
	}
}

// When the gateway answers itself, a gRPC client gets a status of gRPC.
func TestGRPCRefusals(t *testing.T) {
	_, server, address := newGRPCServer(t)
	g := newGateway(t, []string{address}, func(s *policy.Snapshot) {
		http2Upstream(s)
		s.Routes[0].PathPrefix = "/grpc.testing.TestService/UnaryCall"
		s.Upstreams[0].HeaderTimeout = time.Second
		s.Upstreams[0].Retries = 0
	})
	c := g.grpc()
	want := func(err error, code codes.Code) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("got %v, want %v", err, code)
		}
	}
	_, err := c.EmptyCall(t.Context(), &pb.Empty{})
	want(err, codes.Unimplemented) // no route
	_, err = c.UnaryCall(t.Context(), &pb.SimpleRequest{ResponseSize: waitSize})
	want(err, codes.DeadlineExceeded)
	server.Stop()
	eventually(t, "the connection's end", func() bool {
		g.worker.mu.Lock()
		defer g.worker.mu.Unlock()
		return len(g.worker.shared) == 0
	})
	_, err = c.UnaryCall(t.Context(), &pb.SimpleRequest{})
	want(err, codes.Unavailable)
	outcomes := map[zone.RequestOutcome]int{}
	for _, r := range g.records(3) {
		outcomes[r.Outcome]++
		if r.Status != 200 {
			t.Errorf("status %d", r.Status)
		}
	}
	if outcomes[zone.RequestNoRoute] != 1 || outcomes[zone.RequestUpstreamTimeout] != 1 || outcomes[zone.RequestUpstreamRefused] != 1 {
		t.Errorf("outcomes %v", outcomes)
	}
}
