// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
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

// mad is a server that says what is in data, after its SETTINGS, to two open streams, and waits before it closes: for the connection's end, or with
// a negative time until the first stream is over. It returns the first stream's body, and how the connection and that stream ended.
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
	_ = far.SetWriteDeadline(time.Now().Add(20 * time.Second))
	_ = h2.NewFramer(far, nil).WriteSettings()
	if err := c.Ready(time.Now().Add(20 * time.Second)); err != nil {
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
	over := func(s *ClientStream) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return s.err != nil || s.remoteEnd
	}
	for end := time.Now().Add(max(wait, -wait)); len(served) == 0 && time.Now().Before(end) && (wait > 0 || !over(streams[0])); {
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

// untilOver is for mad: the first stream is over long before. A server that closes at once may
// be gone before the client has looked at what it sent.
const untilOver = -20 * time.Second

func TestClientReplies(t *testing.T) {
	all := seeds(t)
	body, _, err := mad(t, all["reply"], untilOver)
	if !errors.Is(err, io.EOF) || string(body) != "hello" {
		t.Errorf("%v %q", err, body)
	}
	if body, _, err = mad(t, all["continuation"], untilOver); !errors.Is(err, io.EOF) || string(body) != "ab" {
		t.Errorf("%v %q", err, body)
	}
	var reset *ResetError
	if _, _, err = mad(t, all["end"], untilOver); !errors.As(err, &reset) || !reset.Remote || reset.Code != uint32(h2.ErrCodeCancel) {
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
		if _, _, err := mad(t, data, untilOver); !errors.As(err, &reset) || reset.Remote {
			t.Errorf("%s: %v", name, err)
		}
	}
	cut := script(t, func(f *h2.Framer, block func(...string) []byte) {
		_ = f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", "200"), EndHeaders: true})
		_ = f.WriteData(1, false, []byte("ab"))
	})
	if body, _, err := mad(t, cut, 1500*time.Millisecond); !errors.Is(err, ErrGone) || string(body) != "ab" {
		t.Errorf("cut: %v %q", err, body)
	}
}

// Each row is frames of a server, whose SETTINGS were good and which has two requests, on streams 1
// and 3, and by what the connection ends, or stream 1.
func TestClientFrames(t *testing.T) {
	ok := []byte{0x88} // :status 200
	raw := func(kind h2.FrameType, flags h2.Flags, id uint32, payload ...byte) func(*h2.Framer) {
		return func(f *h2.Framer) { _ = f.WriteRawFrame(kind, flags, id, payload) }
	}
	set := func(id h2.SettingID, v uint32) func(*h2.Framer) {
		return func(f *h2.Framer) { _ = f.WriteSettings(h2.Setting{ID: id, Val: v}) }
	}
	all := func(steps ...func(*h2.Framer)) func(*h2.Framer) {
		return func(f *h2.Framer) {
			for _, step := range steps {
				step(f)
			}
		}
	}
	head := raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, ok...)
	whole := raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders|h2.FlagHeadersEndStream, 1, ok...)
	for _, row := range []struct {
		name string
		send func(*h2.Framer)
		want string
	}{
		{"DATA on stream 0", raw(h2.FrameData, 0, 0), "conn PROTOCOL_ERROR"},
		{"DATA on a stream that was not opened", raw(h2.FrameData, 0, 5), "conn PROTOCOL_ERROR"},
		{"DATA on a stream of a server", raw(h2.FrameData, 0, 2), "conn PROTOCOL_ERROR"},
		{"DATA with too much padding", all(head, raw(h2.FrameData, h2.FlagDataPadded, 1, 2, 0)), "conn PROTOCOL_ERROR"},
		{"padded DATA without length", all(head, raw(h2.FrameData, h2.FlagDataPadded, 1)), "conn FRAME_SIZE_ERROR"},
		{"DATA before a final reply", raw(h2.FrameData, 0, 1, 'x'), "stream PROTOCOL_ERROR"},
		{"DATA larger than allowed", all(head, raw(h2.FrameData, 0, 1, make([]byte, maxFrame+1)...)), "conn FRAME_SIZE_ERROR"},
		{"more DATA than the stream's window", all(head, raw(h2.FrameData, 0, 1, make([]byte, maxFrame)...), raw(h2.FrameData, 0, 1, make([]byte, maxFrame)...),
			raw(h2.FrameData, 0, 1, make([]byte, maxFrame)...), raw(h2.FrameData, 0, 1, make([]byte, maxFrame)...), raw(h2.FrameData, 0, 1, 'x')), "stream FLOW_CONTROL_ERROR"},
		{"HEADERS on stream 0", raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 0, ok...), "conn PROTOCOL_ERROR"},
		{"HEADERS on a stream that was not opened", raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 5, ok...), "conn PROTOCOL_ERROR"},
		{"HEADERS too short for priority", raw(h2.FrameHeaders, h2.FlagHeadersPriority|h2.FlagHeadersEndHeaders, 1, 0), "conn FRAME_SIZE_ERROR"},
		{"HEADERS with too much padding", raw(h2.FrameHeaders, h2.FlagHeadersPadded|h2.FlagHeadersEndHeaders, 1, 2, 0x88), "conn PROTOCOL_ERROR"},
		{"two final heads", all(head, head), "stream PROTOCOL_ERROR"},
		{"interim head that ends the stream", raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders|h2.FlagHeadersEndStream, 1, 8, 3, '1', '0', '3'), "stream PROTOCOL_ERROR"},
		{"trailers with a pseudo field", all(head, whole), "stream PROTOCOL_ERROR"},
		{"header block is garbage", raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f), "conn COMPRESSION_ERROR"},
		{"header block is cut", raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, 0x40, 0x0a, 'a'), "conn COMPRESSION_ERROR"},
		{"garbage on a stream that is over", all(whole, raw(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f)), "conn COMPRESSION_ERROR"},
		{"CONTINUATION alone", raw(h2.FrameContinuation, h2.FlagContinuationEndHeaders, 1), "conn PROTOCOL_ERROR"},
		{"CONTINUATION of another stream", all(raw(h2.FrameHeaders, 0, 1, ok...), raw(h2.FrameContinuation, h2.FlagContinuationEndHeaders, 3)), "conn PROTOCOL_ERROR"},
		{"PING inside a header block", all(raw(h2.FrameHeaders, 0, 1, ok...), raw(h2.FramePing, 0, 0, make([]byte, 8)...)), "conn PROTOCOL_ERROR"},
		{"RST_STREAM on stream 0", raw(h2.FrameRSTStream, 0, 0, u32(0)...), "conn PROTOCOL_ERROR"},
		{"RST_STREAM on a stream that was not opened", raw(h2.FrameRSTStream, 0, 5, u32(0)...), "conn PROTOCOL_ERROR"},
		{"short RST_STREAM", raw(h2.FrameRSTStream, 0, 1, 0), "conn FRAME_SIZE_ERROR"},
		{"PRIORITY on stream 0", raw(h2.FramePriority, 0, 0, make([]byte, 5)...), "conn PROTOCOL_ERROR"},
		{"PUSH_PROMISE", raw(h2.FramePushPromise, h2.FlagPushPromiseEndHeaders, 1, append(u32(2), 0x82)...), "conn PROTOCOL_ERROR"},
		{"SETTINGS on a stream", raw(h2.FrameSettings, 0, 1), "conn PROTOCOL_ERROR"},
		{"SETTINGS of 5 bytes", raw(h2.FrameSettings, 0, 0, make([]byte, 5)...), "conn FRAME_SIZE_ERROR"},
		{"ack with payload", raw(h2.FrameSettings, h2.FlagSettingsAck, 0, make([]byte, 6)...), "conn FRAME_SIZE_ERROR"},
		{"ENABLE_PUSH from a server", set(h2.SettingEnablePush, 1), "conn PROTOCOL_ERROR"},
		{"INITIAL_WINDOW_SIZE too large", set(h2.SettingInitialWindowSize, 1<<31), "conn FLOW_CONTROL_ERROR"},
		{"INITIAL_WINDOW_SIZE overflows a stream", all(raw(h2.FrameWindowUpdate, 0, 1, u32(1000)...), set(h2.SettingInitialWindowSize, maxWindow)), "conn FLOW_CONTROL_ERROR"},
		{"MAX_FRAME_SIZE too small", set(h2.SettingMaxFrameSize, maxFrame-1), "conn PROTOCOL_ERROR"},
		{"MAX_FRAME_SIZE too large", set(h2.SettingMaxFrameSize, 1<<24), "conn PROTOCOL_ERROR"},
		{"PING on a stream", raw(h2.FramePing, 0, 1, make([]byte, 8)...), "conn PROTOCOL_ERROR"},
		{"PING of 7 bytes", raw(h2.FramePing, 0, 0, make([]byte, 7)...), "conn FRAME_SIZE_ERROR"},
		{"GOAWAY on a stream", raw(h2.FrameGoAway, 0, 1, make([]byte, 8)...), "conn PROTOCOL_ERROR"},
		{"short GOAWAY", raw(h2.FrameGoAway, 0, 0, make([]byte, 7)...), "conn FRAME_SIZE_ERROR"},
		{"WINDOW_UPDATE of 0", raw(h2.FrameWindowUpdate, 0, 0, u32(0)...), "conn PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of 0 for a stream", raw(h2.FrameWindowUpdate, 0, 1, u32(0)...), "stream PROTOCOL_ERROR"},
		{"WINDOW_UPDATE overflows", raw(h2.FrameWindowUpdate, 0, 0, u32(maxWindow)...), "conn FLOW_CONTROL_ERROR"},
		{"WINDOW_UPDATE overflows a stream", raw(h2.FrameWindowUpdate, 0, 1, u32(maxWindow)...), "stream FLOW_CONTROL_ERROR"},
		{"WINDOW_UPDATE on a stream that was not opened", raw(h2.FrameWindowUpdate, 0, 5, u32(1)...), "conn PROTOCOL_ERROR"},
		{"short WINDOW_UPDATE", raw(h2.FrameWindowUpdate, 0, 0, 0, 0, 1), "conn FRAME_SIZE_ERROR"},
		{"what may be under way for a stream that is over", all(whole, raw(h2.FrameWindowUpdate, 0, 1, u32(1)...), raw(h2.FrameRSTStream, 0, 1, u32(0)...),
			raw(h2.FrameData, 0, 1, 'x'), raw(h2.FramePriority, 0, 1, make([]byte, 5)...), raw(0x42, 0xff, 1, 'x'), set(0x99, 1)), "EOF"},
	} {
		t.Run(row.name, func(t *testing.T) {
			data := script(t, func(f *h2.Framer, _ func(...string) []byte) {
				f.AllowIllegalWrites = true
				row.send(f)
			})
			isConn := strings.HasPrefix(row.want, "conn")
			wait := 20 * time.Second
			if !isConn {
				wait = -wait
			}
			_, conn, stream := mad(t, data, wait)
			var ce *ConnError
			var reset *ResetError
			got := stream.Error()
			switch {
			case errors.As(conn, &ce):
				got = "conn " + h2.ErrCode(ce.Code).String()
			case errors.As(stream, &reset) && !reset.Remote:
				got = "stream " + h2.ErrCode(reset.Code).String()
			}
			if got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
			if isConn && !errors.Is(stream, ErrGone) && !errors.Is(stream, io.EOF) {
				t.Errorf("the stream ended with %v", stream)
			}
		})
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
		if _, err, _ := mad(t, data, 20*time.Second); !errors.As(err, &misuse) {
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
