// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
)

// segments is how many segments with data the connection's other end has sent.
func segments(tb testing.TB, nc net.Conn) int {
	tb.Helper()
	return int(tcpInfo(tb, nc).Data_segs_in)
}

func tcpInfo(tb testing.TB, nc net.Conn) *unix.TCPInfo {
	tb.Helper()
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	var info *unix.TCPInfo
	if err := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil || info == nil {
		tb.Fatal(err)
	}
	return info
}

// The last reply, the alert that ends TLS and the end of the connection are one segment.
func TestEndIsOneSegment(t *testing.T) {
	g := newGateway(t, []string{plainUpstream(t)}, nil)
	for _, ends := range []bool{true, false} {
		least := 99
		for range 5 { // a scheduler may part what was written together
			if least = min(least, lastSegments(t, g, ends)); least <= 1 {
				break
			}
		}
		if least != 1 {
			t.Errorf("connection ends %v: %d segments, want 1", ends, least)
		}
	}
}

// lastSegments is of how many segments a reply is that ends its connection, or not.
func lastSegments(t *testing.T, g *gateway, ends bool) int {
	t.Helper()
	c, err := tls.Dial("tcp", g.address, g.tlsConfig("http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
	if !ends {
		request = strings.Replace(request, "Connection: close\r\n", "", 1)
	}
	before := segments(t, c.NetConn())
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 4096)
	n, err := c.Read(reply)
	if err != nil || !bytes.HasPrefix(reply[:n], []byte("HTTP/1.1 200 OK\r\n")) {
		t.Fatalf("read %q, %v", reply[:n], err)
	}
	if ends {
		if n, err := c.Read(reply); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("behind the reply: %d bytes, %v, want an alert and the end", n, err)
		}
	}
	return segments(t, c.NetConn()) - before
}

// In the clear, too, the last reply goes out with the end of the connection.
func TestEndInTheClear(t *testing.T) {
	g := newGateway(t, []string{plainUpstream(t)}, func(s *policy.Snapshot) {
		s.Listeners = []policy.Listener{{Address: testListener}}
	})
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", "GET /../ HTTP/1.1\r\nHost: a\r\n\r\n"} {
		c, err := net.Dial("tcp", g.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(request, "..") {
			_ = c.(*net.TCPConn).CloseWrite() // refused, and kept alive
		}
		reply, err := io.ReadAll(c)
		if err != nil || !bytes.HasPrefix(reply, []byte("HTTP/1.1 ")) {
			t.Errorf("%q: %q, %v", request, reply, err)
		}
		if !strings.Contains(request, "..") && !bytes.HasSuffix(reply, bytes.Repeat([]byte("x"), 100)) {
			t.Errorf("%q: reply %q is not whole", request, reply)
		}
	}
}

// The records of a long piece go out by one call: on loopback, where a segment holds as
// much, in one or two.
func TestRecordsGoOutTogether(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 2<<10) // 32 KiB
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body))
		scrap := make([]byte, 4096)
		for {
			if _, err := c.Read(scrap); err != nil {
				return
			}
			if _, err := c.Write(append([]byte(head), body...)[:bufferSize]); err != nil { // what one read of it takes
				return
			}
			if _, err := c.Write(body[bufferSize-len(head):]); err != nil {
				return
			}
		}
	}()
	g := newGateway(t, []string{l.Addr().String()}, nil)
	c, err := tls.Dial("tcp", g.address, g.tlsConfig("http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	least := 99
	for range 5 { // a scheduler may part what was written together
		before := segments(t, c.NetConn())
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		var got []byte
		piece := make([]byte, 64<<10)
		for !bytes.HasSuffix(got, body) {
			n, err := c.Read(piece)
			if err != nil {
				t.Fatalf("after %d bytes: %v", len(got), err)
			}
			got = append(got, piece[:n]...)
		}
		least = min(least, segments(t, c.NetConn())-before)
	}
	if least > 2 {
		t.Errorf("%d segments, want 2: four records were written one by one", least)
	}
}

// A writer that waits for its peer can be woken, whether its data was held back or not.
func TestBlockedWriterIsWoken(t *testing.T) {
	for _, held := range []bool{false, true} {
		near, far := tcpPair(t)
		s := newSock(near)
		done := make(chan error, 1)
		go func() {
			p := make([]byte, 16<<20)
			if !held {
				_, err := s.Write(p)
				done <- err
				return
			}
			b := &buffer{b: make([]byte, 0)}
			s.cork(b)
			if _, err := s.Write(p); err != nil {
				t.Error(err)
			}
			done <- s.uncork(b)
		}()
		select {
		case err := <-done:
			t.Fatalf("held %v: 16 MiB written at once: %v", held, err)
		case <-time.After(200 * time.Millisecond):
		}
		_ = s.SetWriteDeadline(past)
		select {
		case err := <-done:
			if !isTimeout(err) {
				t.Errorf("held %v: %v, want a timeout", held, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("held %v: still waits", held)
		}
		far.Close()
	}
}

// What a sock says of the end, and of a reset, is what the net.Conn below would.
func TestSockErrors(t *testing.T) {
	near, far := tcpPair(t)
	s := newSock(near)
	b := make([]byte, 10)
	if _, err := io.WriteString(far, "hello"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(b); string(b[:n]) != "hello" || err != nil {
		t.Errorf("read %q, %v", b[:n], err)
	}
	_ = s.SetReadDeadline(past)
	if n, err := s.Read(b); n != 0 || !isTimeout(err) {
		t.Errorf("past the deadline: %d, %v", n, err)
	}
	_ = s.SetReadDeadline(time.Time{})
	_ = far.(*net.TCPConn).CloseWrite()
	if n, err := s.Read(b); n != 0 || err != io.EOF { //nolint:errorlint // io.Reader's contract
		t.Errorf("at the end: %d, %v", n, err)
	}
	near, far = tcpPair(t)
	s = newSock(near)
	_ = far.(*net.TCPConn).SetLinger(0)
	far.Close()
	if n, err := s.Read(b); n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after a reset: %d, %v", n, err)
	}
	if n, err := s.Write(b); n != 0 || !errors.Is(err, unix.EPIPE) {
		t.Errorf("write after a reset: %d, %v", n, err)
	}
	s.Close()
	if _, err := s.Read(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}
