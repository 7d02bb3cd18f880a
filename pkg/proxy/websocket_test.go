// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

func withWebSocket(idle time.Duration) func(*policy.Snapshot) {
	return func(s *policy.Snapshot) { s.Routes[0].WebSocket = idle }
}

// echoUpstream opens WebSockets and sends back what it gets, until told to go.
func echoUpstream(t *testing.T) string {
	return httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, Subprotocols: []string{"v1"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if string(b) == "go" {
				c.Close(websocket.StatusGoingAway, "told to")
				return
			}
			if c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
}

func (g *gateway) dialWebSocket(ctx context.Context) (*websocket.Conn, *http.Response, error) {
	return websocket.Dial(ctx, g.url("/ws"), &websocket.DialOptions{HTTPClient: g.client(false), Subprotocols: []string{"v1"}, HTTPHeader: http.Header{"Cookie": {"a=b"}}})
}

// Messages of all sizes go both ways, and either side may end it.
func TestWebSocket(t *testing.T) {
	g := newGateway(t, []string{echoUpstream(t)}, withWebSocket(time.Minute))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, server := range []bool{false, true} {
		c, r, err := g.dialWebSocket(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if c.Subprotocol() != "v1" || r.Header.Get("X-Request-Id") == "" {
			t.Errorf("subprotocol %q, header %v", c.Subprotocol(), r.Header)
		}
		c.SetReadLimit(-1)
		for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20, 3_000_001} {
			for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
				b := bytes.Repeat([]byte("x"), n)
				if kind == websocket.MessageBinary {
					b = content(n)
				}
				sent := make(chan error, 1)
				go func() { sent <- c.Write(ctx, kind, b) }()
				gotKind, got, err := c.Read(ctx)
				if err := errors.Join(err, <-sent); err != nil || gotKind != kind || !bytes.Equal(got, b) {
					t.Fatalf("%d bytes: %d came back, %v", n, len(got), err)
				}
			}
		}
		if server {
			if err := c.Write(ctx, websocket.MessageText, []byte("go")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
				t.Errorf("the server's end: %v", err)
			}
		} else if err := c.Close(websocket.StatusNormalClosure, "enough"); err != nil {
			t.Errorf("the client's end: %v", err)
		}
	}
	for _, r := range g.records(2) {
		if r.Status != 101 || r.Outcome != zone.RequestOK || r.BytesIn < 8_000_000 || r.BytesOut < 8_000_000 {
			t.Errorf("record: %+v", r)
		}
	}
}

const upgradeRequest = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// What comes right behind the heads, on either side, belongs to the WebSocket.
func TestWebSocketEagerPeers(t *testing.T) {
	up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		head, err := readRawHead(r)
		if err != nil || !strings.Contains(head, "Upgrade: websocket\r\n") || !strings.Contains(head, "Connection: Upgrade\r\n") {
			t.Errorf("upstream got %q, %v", head, err)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nserver first")
		b := make([]byte, len("client first"))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != "client first" {
			t.Errorf("upstream got %q, %v", b, err)
		}
		// The client's end comes; what is said after it still arrives.
		if n, err := r.Read(b); err != io.EOF {
			t.Errorf("upstream read %d, %v; want the client's end", n, err)
		}
		_, _ = io.WriteString(c, ", and last")
	})
	g := newGateway(t, []string{up}, withWebSocket(time.Minute))
	c := g.raw()
	c.send(upgradeRequest + "client first")
	head, err := readRawHead(c.r)
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") || !strings.Contains(head, "Sec-WebSocket-Accept: x\r\n") {
		t.Fatalf("client got %q, %v", head, err)
	}
	b := make([]byte, len("server first"))
	if _, err := io.ReadFull(c.r, b); err != nil || string(b) != "server first" {
		t.Fatalf("client got %q, %v", b, err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c.r); err != nil || string(rest) != ", and last" {
		t.Errorf("client got %q, %v", rest, err)
	}
	if r := g.records(1)[0]; r.Outcome != zone.RequestOK {
		t.Errorf("outcome %s", r.Outcome)
	}
}

func readRawHead(r *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String(), err
		}
	}
}

// What is no WebSocket, or is not allowed, is an ordinary request; and a server that
// changes the protocol unasked is not believed.
func TestNoWebSocket(t *testing.T) {
	const accept = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
	plain := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	with := func(old, text string) string { return strings.Replace(upgradeRequest, old, text, 1) }
	for _, row := range []struct {
		name    string
		allowed time.Duration
		request string
		answer  string
		status  string
		passed  bool // the upgrade is passed on
	}{
		{"not allowed", 0, upgradeRequest, plain, "200", false},
		{"refused by the server", time.Minute, upgradeRequest, plain, "200", true},
		{"another protocol", time.Minute, with("WebSocket\r", "h2c\r"), plain, "200", false},
		{"one of two protocols", time.Minute, with("WebSocket\r", "h2c, websocket\r"), plain, "200", false},
		{"twice", time.Minute, with("Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nUpgrade: websocket\r\n"), plain, "200", false},
		{"Connection does not name it", time.Minute, with("keep-alive, Upgrade", "keep-alive"), plain, "200", false},
		{"HTTP/1.0", time.Minute, with("HTTP/1.1", "HTTP/1.0"), plain, "200", false},
		{"POST", time.Minute, with("GET", "POST"), plain, "200", false},
		{"with a body", time.Minute, with("Host:", "Content-Length: 1\r\nHost:") + "x", plain, "200", false},
		{"unasked", time.Minute, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", accept, "502", false},
		{"not allowed, and opened", 0, upgradeRequest, accept, "502", false},
		{"without its proof", time.Minute, upgradeRequest, strings.Replace(accept, "Accept", "Except", 1), "502", true},
		{"to another protocol", time.Minute, upgradeRequest, strings.Replace(accept, "websocket", "h2c", 1), "502", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
				head, err := readRawHead(r)
				if err != nil {
					return
				}
				if got := strings.Contains(strings.ToLower(head), "upgrade"); got != row.passed {
					t.Errorf("upgrade passed on: %t, want %t: %q", got, row.passed, head)
				}
				_, _ = io.WriteString(c, row.answer)
				_, _ = io.Copy(io.Discard, r)
			})
			g := newGateway(t, []string{up}, withWebSocket(row.allowed))
			c := g.raw()
			c.send(row.request)
			if line, err := c.r.ReadString('\n'); err != nil || !strings.HasPrefix(line[8:], " "+row.status) {
				t.Errorf("client got %q, %v; want status %s", line, err, row.status)
			}
		})
	}
}

// A silent WebSocket is cut after its time, and one that says something is not; a side that
// breaks off ends the other; and a drain ends them all within its bound.
func TestWebSocketEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	t.Run("silence", func(t *testing.T) {
		g := newGateway(t, []string{echoUpstream(t)}, withWebSocket(2*time.Second))
		c, _, err := g.dialWebSocket(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		for range 12 { // more than the time, in small talk
			time.Sleep(250 * time.Millisecond)
			if err := c.Write(ctx, websocket.MessageText, []byte("still here")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("after silence: %v", err)
		}
		if r := g.records(1)[0]; r.Outcome != zone.RequestClientTimeout {
			t.Errorf("outcome %s", r.Outcome)
		}
	})
	t.Run("client breaks off", func(t *testing.T) {
		gone := make(chan error, 1)
		up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			_, _ = readRawHead(r)
			_, _ = io.WriteString(c, "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
			_, err := r.ReadByte()
			gone <- err
		})
		g := newGateway(t, []string{up}, withWebSocket(time.Minute))
		c := g.raw()
		c.send(upgradeRequest)
		if _, err := readRawHead(c.r); err != nil {
			t.Fatal(err)
		}
		_ = c.NetConn().(*net.TCPConn).SetLinger(0)
		c.NetConn().Close()
		select {
		case err := <-gone:
			if err == nil {
				t.Error("upstream read a byte")
			}
		case <-ctx.Done():
			t.Error("the server's side lives on")
		}
		if r := g.records(1)[0]; r.Outcome != zone.RequestClientReset {
			t.Errorf("outcome %s", r.Outcome)
		}
	})
	t.Run("server breaks off", func(t *testing.T) {
		came := make(chan struct{}) // the reply, which a reset would take away
		up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			_, _ = readRawHead(r)
			_, _ = io.WriteString(c, "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
			select {
			case <-came:
			case <-ctx.Done():
			}
			_ = c.(*net.TCPConn).SetLinger(0)
		})
		g := newGateway(t, []string{up}, withWebSocket(time.Minute))
		c := g.raw()
		c.send(upgradeRequest)
		if _, err := readRawHead(c.r); err != nil {
			t.Fatal(err)
		}
		close(came)
		if b, err := c.r.ReadByte(); err == nil {
			t.Errorf("client read %q", b)
		}
		if r := g.records(1)[0]; r.Outcome != zone.RequestUpstreamReset {
			t.Errorf("outcome %s", r.Outcome)
		}
	})
	t.Run("drain", func(t *testing.T) {
		g := newGateway(t, []string{echoUpstream(t)}, withWebSocket(time.Minute))
		c, _, err := g.dialWebSocket(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		bound, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		down := make(chan error, 1)
		go func() { down <- g.worker.Shutdown(bound) }()
		time.Sleep(200 * time.Millisecond)
		if err := c.Write(ctx, websocket.MessageText, []byte("x")); err != nil {
			t.Errorf("within the bound: %v", err)
		}
		if _, _, err := c.Read(ctx); err != nil {
			t.Errorf("within the bound: %v", err)
		}
		if err := <-down; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shut down: %v", err)
		}
		if _, _, err := c.Read(ctx); err == nil {
			t.Error("it lives on behind the bound")
		}
		g.down.Do(func() { <-g.served; g.zone.Close() })
	})
}
