// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// script makes the bytes of a server.
func script(tb testing.TB, write func(*h2.Framer, func(...string) []byte)) []byte {
	tb.Helper()
	var out, block bytes.Buffer
	e := hpack.NewEncoder(&block)
	write(h2.NewFramer(&out, nil), func(pairs ...string) []byte {
		block.Reset()
		for i := 0; i < len(pairs); i += 2 {
			_ = e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		return bytes.Clone(block.Bytes())
	})
	return out.Bytes()
}

// mad is a server that says what is in data, after its SETTINGS, to two open streams, and waits before it closes. It returns the first stream's
// body, and how the connection and that stream ended.
func mad(tb testing.TB, data []byte, wait time.Duration) (body []byte, conn, stream error) {
	tb.Helper()
	near, far := net.Pipe()
	pool := NewPool()
	defer pool.Close()
	c := NewClientConn(near, ClientConfig{Pool: pool, Panic: func(v any) { tb.Errorf("panic: %v", v) }})
	served := make(chan error, 1)
	go func() { served <- c.Serve() }()
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, far) }()
	_ = far.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_ = h2.NewFramer(far, nil).WriteSettings()
	if err := c.Ready(time.Now().Add(5 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	var streams []*ClientStream
	for range 2 {
		if !c.Reserve() {
			tb.Fatal("no place")
		}
		s := c.NewStream()
		s.Renew()
		s.Begin([]byte("GET"), []byte("http"), []byte("a"), []byte("/"))
		if err := s.EndHeaders(true); err != nil {
			tb.Fatal(err)
		}
		streams = append(streams, s)
	}
	_, _ = far.Write(data)
	for end := time.Now().Add(wait); len(served) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	far.Close()
	for i, s := range streams {
		h := Head{}
		var err error
		for h.Status < 200 && err == nil {
			h, err = s.ReadHead()
		}
		var b []byte
		for buffer := make([]byte, 1000); err == nil; {
			var n int
			n, err = s.Read(buffer)
			b = append(b, buffer[:n]...)
		}
		_ = s.Trailers()
		if i == 0 {
			stream, body = err, b
		}
		s.Finish()
	}
	select {
	case conn = <-served:
	case <-time.After(10 * time.Second):
		tb.Fatal("the connection does not end")
	}
	<-drained
	return body, conn, stream
}

func seeds(tb testing.TB) map[string][]byte {
	return map[string][]byte{
		"reply": script(tb, func(f *h2.Framer, fields func(...string) []byte) {
			_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":status", "103", "link", "x"), EndHeaders: true})
			_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":status", "200", "content-type", "x"), EndHeaders: true})
			_ = f.WriteDataPadded(1, false, []byte("hello"), []byte{0, 0})
			_ = f.WritePing(false, [8]byte{1})
			_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: fields("grpc-status", "0"), EndHeaders: true, EndStream: true})
		}),
		"continuation": script(tb, func(f *h2.Framer, fields func(...string) []byte) {
			b := fields(":status", "200", "content-length", "2")
			_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:2]})
			_ = f.WriteContinuation(1, true, b[2:])
			_ = f.WriteData(1, true, []byte("ab"))
		}),
		"end": script(tb, func(f *h2.Framer, fields func(...string) []byte) {
			_ = f.WriteRSTStream(1, h2.ErrCodeCancel)
			_ = f.WriteWindowUpdate(0, 100)
			_ = f.WriteWindowUpdate(3, 100)
			_ = f.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 10}, h2.Setting{ID: h2.SettingHeaderTableSize, Val: 0})
			_ = f.WriteGoAway(1, h2.ErrCodeNo, []byte("bye"))
		}),
	}
}

// Whatever a server sends: no panic, and both the connection and its streams come to an end.
func FuzzClientConn(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, stream := mad(t, data, 0); stream == nil {
			t.Error("a stream has no end")
		}
	})
}

func TestClientReplies(t *testing.T) {
	all := seeds(t)
	body, _, err := mad(t, all["reply"], 0)
	if !errors.Is(err, io.EOF) || string(body) != "hello" {
		t.Errorf("%v %q", err, body)
	}
	if body, _, err = mad(t, all["continuation"], 0); !errors.Is(err, io.EOF) || string(body) != "ab" {
		t.Errorf("%v %q", err, body)
	}
	var reset *ResetError
	if _, _, err = mad(t, all["end"], 0); !errors.As(err, &reset) || !reset.Remote || reset.Code != uint32(h2.ErrCodeCancel) {
		t.Error(err)
	}
}

// A reply that is not well-formed, or cut, is never taken for a whole one.
func TestClientMalformed(t *testing.T) {
	for name, fields := range map[string][]string{
		"no status":       {"content-type", "x"},
		"status twice":    {":status", "200", ":status", "200"},
		"status late":     {"a", "b", ":status", "200"},
		"status 101":      {":status", "101"},
		"another pseudo":  {":status", "200", ":path", "/"},
		"connection":      {":status", "200", "connection", "close"},
		"coding":          {":status", "200", "transfer-encoding", "chunked"},
		"two lengths":     {":status", "200", "content-length", "2", "content-length", "2"},
		"length too long": {":status", "200", "content-length", "3"},
		"length short":    {":status", "200", "content-length", "1"},
		"upper case":      {":status", "200", "Name", "x"},
		"CR LF":           {":status", "200", "name", "x\r\ny"},
	} {
		data := script(t, func(f *h2.Framer, block func(...string) []byte) {
			f.AllowIllegalWrites = true
			_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block(fields...), EndHeaders: true})
			_ = f.WriteData(1, true, []byte("ab"))
		})
		var reset *ResetError
		if _, _, err := mad(t, data, 0); !errors.As(err, &reset) || reset.Remote {
			t.Errorf("%s: %v", name, err)
		}
	}
	cut := script(t, func(f *h2.Framer, block func(...string) []byte) {
		_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", "200"), EndHeaders: true})
		_ = f.WriteData(1, false, []byte("ab"))
	})
	if body, _, err := mad(t, cut, 0); !errors.Is(err, ErrGone) || string(body) != "ab" {
		t.Errorf("cut: %v %q", err, body)
	}
}

// Floods of a server end its connection.
func TestClientFloods(t *testing.T) {
	for name, frame := range map[string]func(*h2.Framer){
		"ping":     func(f *h2.Framer) { _ = f.WritePing(false, [8]byte{}) },
		"settings": func(f *h2.Framer) { _ = f.WriteSettings() },
		"window":   func(f *h2.Framer) { _ = f.WriteWindowUpdate(0, 1) },
		"priority": func(f *h2.Framer) { _ = f.WritePriority(1, h2.PriorityParam{StreamDep: 3}) },
		"reset":    func(f *h2.Framer) { _ = f.WriteRSTStream(1, h2.ErrCodeCancel) },
		"unknown":  func(f *h2.Framer) { _ = f.WriteRawFrame(0xee, 0, 0, nil) },
		"interim": func(f *h2.Framer) {
			_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{8, 3, '1', '0', '3'}, EndHeaders: true})
		},
	} {
		data := script(t, func(f *h2.Framer, _ func(...string) []byte) {
			for range 1000 {
				frame(f)
			}
		})
		var misuse *Misuse
		if _, err, _ := mad(t, data, 5*time.Second); !errors.As(err, &misuse) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server that has been silent while streams are open is asked whether it is there, and one that
// does not answer loses its connection.
func TestClientOfADeadServer(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	pool := NewPool()
	defer pool.Close()
	c := NewClientConn(near, ClientConfig{Pool: pool})
	served := make(chan error, 1)
	go func() { served <- c.Serve() }()
	pings := make(chan [8]byte, 10)
	fr := h2.NewFramer(far, far)
	go func() {
		_, _ = io.CopyN(io.Discard, far, int64(len(h2.ClientPreface)))
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			if p, ok := f.(*h2.PingFrame); ok {
				pings <- p.Data
			}
		}
	}()
	_ = fr.WriteSettings()
	if err := c.Ready(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	silent := func(d time.Duration) { // so long, and then the sweeper comes
		c.mu.Lock()
		c.lastActive.Store(c.now() - int64(d))
		if a := &c.alive; a.pinged != 0 {
			a.pinged -= int64(d)
		} else {
			a.next -= int64(d)
		}
		c.mu.Unlock()
		c.Tick()
	}
	silent(time.Hour) // with no stream open it may be
	s := c.NewStream()
	if !c.Reserve() {
		t.Fatal("no place")
	}
	s.Renew()
	s.Begin([]byte("GET"), []byte("http"), []byte("a"), []byte("/"))
	if err := s.EndHeaders(true); err != nil {
		t.Fatal(err)
	}
	silent(pingAfter - time.Second)
	silent(pingAfter + time.Second)
	data := <-pings
	silent(pingWait - time.Second)
	if len(pings) > 0 || len(served) > 0 {
		t.Fatalf("%d more PINGs, %d connections ended", len(pings), len(served))
	}
	_ = fr.WritePing(true, data)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		answered := c.alive.pinged == 0
		c.mu.Unlock()
		if answered {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the answer to the PING is not noted")
		}
	}
	silent(pingAfter + time.Second) // servers count PINGs
	if len(pings) > 0 {
		t.Error("another PING soon after the last one")
	}
	silent(pingRarely)
	<-pings
	silent(pingWait + time.Second)
	if _, err := s.ReadHead(); !errors.Is(err, ErrGone) {
		t.Errorf("the stream ended with %v", err)
	}
	s.Finish()
	if err := <-served; !errors.Is(err, errSilent) {
		t.Errorf("the connection ended with %v", err)
	}
}
