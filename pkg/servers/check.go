// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
)

// maxReply is how much of an answer is read; a longer head is none.
const maxReply = 64 << 10

// checker asks servers of one upstream.
type checker struct {
	health *policy.HealthCheck
	tls    *tls.Config // nil: in the clear
	http2  bool        // requests go by it, so checks do
}

func newChecker(u *policy.Upstream) (*checker, error) {
	c := &checker{health: u.Health, http2: u.Protocol == "http2"}
	if u.TLS == nil {
		return c, nil
	}
	c.tls = &tls.Config{ServerName: u.TLS.ServerName, InsecureSkipVerify: !u.TLS.Verify}
	if len(u.TLS.CA) > 0 {
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(u.TLS.CA) {
			return nil, fmt.Errorf("watch upstream %s: no certificate in the file of its authorities", u.Name)
		}
	}
	return c, nil
}

// check is nil when the server is well, or says what is wrong with it. It ends with ctx.
func (c *checker) check(ctx context.Context, s *policy.Server) error {
	switch c.health.Protocol {
	case "tcp":
		conn, err := c.connect(ctx, s, "")
		if err == nil {
			conn.Close()
		}
		return err
	case "grpc":
		return c.askGRPC(ctx, s)
	}
	if c.http2 {
		return c.askHTTP2(ctx, s)
	}
	return c.askHTTP(ctx, s)
}

// host is the server's name, or its address.
func host(s *policy.Server) string {
	if s.Host != "" {
		return s.Host
	}
	h, _, _ := net.SplitHostPort(s.Address)
	return h
}

// connect makes a connection, by TLS where the upstream has it, that ends with ctx.
func (c *checker) connect(ctx context.Context, s *policy.Server, protocol string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return nil, err
	}
	by, _ := ctx.Deadline()
	_ = conn.SetDeadline(by)
	context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if c.tls == nil {
		return conn, nil
	}
	config := c.tls.Clone()
	if config.ServerName == "" {
		config.ServerName = host(s)
	}
	if protocol != "" {
		config.NextProtos = []string{protocol}
	}
	tc := tls.Client(conn, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

func (c *checker) askHTTP(ctx context.Context, s *policy.Server) error {
	conn, err := c.connect(ctx, s, "http/1.1")
	if err != nil {
		return err
	}
	defer conn.Close()
	name := c.health.Host
	if name == "" {
		_, port, _ := net.SplitHostPort(s.Address)
		name = net.JoinHostPort(host(s), port)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: xgw-health\r\nConnection: close\r\n\r\n", c.health.Path, name); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(conn, maxReply))
	for {
		reply, err := http.ReadResponse(r, &http.Request{Method: http.MethodGet})
		switch {
		case err != nil:
			return fmt.Errorf("read reply: %w", err)
		case reply.StatusCode < 200 && reply.StatusCode != http.StatusSwitchingProtocols:
			continue
		}
		return c.judge(reply.StatusCode)
	}
}

func (c *checker) judge(status int) error {
	if status < c.health.StatusMin || status > c.health.StatusMax {
		return fmt.Errorf("status %d", status)
	}
	return nil
}

func (c *checker) askHTTP2(ctx context.Context, s *policy.Server) error {
	tr, base := c.overHTTP2(s)
	defer tr.CloseIdleConnections()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, base+c.health.Path, nil)
	if err != nil {
		return err
	}
	q.Host = c.health.Host
	q.Header = http.Header{"User-Agent": {"xgw-health"}}
	reply, err := tr.RoundTrip(q)
	if err != nil {
		return err
	}
	reply.Body.Close()
	return c.judge(reply.StatusCode)
}

// overHTTP2 is for one check of the server, at URLs that begin with base.
func (c *checker) overHTTP2(s *policy.Server) (tr *http.Transport, base string) {
	scheme, protocols := "http", new(http.Protocols)
	protocols.SetUnencryptedHTTP2(c.tls == nil)
	protocols.SetHTTP2(c.tls != nil)
	tr = &http.Transport{Protocols: protocols, DisableCompression: true, MaxResponseHeaderBytes: maxReply}
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.Address)
	}
	if c.tls != nil {
		scheme = "https"
		tr.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return c.connect(ctx, s, "h2") }
	}
	_, port, _ := net.SplitHostPort(s.Address)
	return tr, scheme + "://" + net.JoinHostPort(host(s), port)
}

// askGRPC calls grpc.health.v1.Health/Check. Its two messages have one field each, so they
// are written and read here.
func (c *checker) askGRPC(ctx context.Context, s *policy.Server) error {
	tr, base := c.overHTTP2(s)
	defer tr.CloseIdleConnections()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/grpc.health.v1.Health/Check", bytes.NewReader(healthRequest(c.health.Service)))
	if err != nil {
		return err
	}
	q.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"xgw-health"}}
	reply, err := tr.RoundTrip(q)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(io.LimitReader(reply.Body, maxReply))
	if err != nil {
		return fmt.Errorf("read reply: %w", err)
	}
	status, message := reply.Trailer.Get("Grpc-Status"), reply.Trailer.Get("Grpc-Message")
	if status == "" {
		status, message = reply.Header.Get("Grpc-Status"), reply.Header.Get("Grpc-Message")
	}
	switch {
	case reply.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d", reply.StatusCode)
	case status != "0":
		return fmt.Errorf("gRPC status %q: %s", status, message)
	}
	return serving(body)
}

// healthRequest is a HealthCheckRequest behind its gRPC prefix. The service's name is at
// most 255 bytes.
func healthRequest(service string) []byte {
	var m []byte
	if service != "" {
		m = append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service))), service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// serving reads a HealthCheckResponse: nil for SERVING.
func serving(b []byte) error {
	if len(b) < 5 || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-5) {
		return errors.New("the answer is no gRPC message")
	}
	words := []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}
	status := uint64(0)
	for m := b[5:]; len(m) > 0; {
		tag, n := binary.Uvarint(m)
		if n <= 0 || tag&7 != 0 {
			return errors.New("the answer is no HealthCheckResponse")
		}
		m = m[n:]
		v, n := binary.Uvarint(m)
		if n <= 0 {
			return errors.New("the answer is cut")
		}
		if m = m[n:]; tag>>3 == 1 {
			status = v
		}
	}
	if status == 1 {
		return nil
	}
	if status < uint64(len(words)) {
		return errors.New(words[status])
	}
	return fmt.Errorf("serving status %d", status)
}
