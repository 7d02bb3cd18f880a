// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// connect asks for a tunnel on the stream.
func (f *frames) connect(id uint32, path, protocol string, more ...string) error {
	list := []string{":method", "CONNECT", ":protocol", protocol, ":scheme", "https", ":authority", "localhost", ":path", path, "sec-websocket-version", "13"}
	return f.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: f.fields(append(list, more...)...), EndHeaders: true})
}

// answer reads until the stream has a status or is reset, and returns it or the code, and the fields.
func (f *frames) answer(id uint32) (string, map[string]string, error) {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return "", nil, err
		}
		switch fr := fr.(type) {
		case *h2.HeadersFrame:
			list, err := f.dec.DecodeFull(fr.HeaderBlockFragment())
			if err != nil {
				return "", nil, err
			}
			fields := map[string]string{}
			for _, hf := range list {
				fields[hf.Name] = hf.Value
			}
			if fr.StreamID == id {
				return fields[":status"], fields, nil
			}
		case *h2.RSTStreamFrame:
			if fr.StreamID == id {
				return fr.ErrCode.String(), nil, nil
			}
		case *h2.GoAwayFrame:
			return "GOAWAY " + fr.ErrCode.String(), nil, nil
		}
	}
}

// data reads n bytes of the stream, giving its windows back, or with n < 0 all until its end,
// which is "end" or the code of a reset.
func (f *frames) data(id uint32, n int) (b []byte, end string, err error) {
	w := h2.NewFramer(f.nc, nil) // another goroutine may write as well
	for n < 0 || len(b) < n {
		fr, err := f.ReadFrame()
		if err != nil {
			return b, "", err
		}
		switch fr := fr.(type) {
		case *h2.DataFrame:
			b = append(b, fr.Data()...)
			if fr.StreamEnded() {
				return b, "end", nil
			}
			if len(fr.Data()) > 0 {
				_ = w.WriteWindowUpdate(0, uint32(len(fr.Data())))
				_ = w.WriteWindowUpdate(id, uint32(len(fr.Data())))
			}
		case *h2.RSTStreamFrame:
			return b, fr.ErrCode.String(), nil
		}
	}
	return b, "", nil
}

func (g *gateway) frames() *frames {
	g.Helper()
	f, err := dialFrames(g.address)
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { f.nc.NetConn().Close() })
	return f
}

// open opens a tunnel on stream 1.
func (g *gateway) open() *frames {
	g.Helper()
	f := g.frames()
	if err := f.connect(1, "/ws", "websocket", "sec-websocket-protocol", "v1"); err != nil {
		g.Fatal(err)
	}
	status, fields, err := f.answer(1)
	if status != "200" || err != nil {
		g.Fatalf("status %s, %v", status, err)
	}
	if fields["x-request-id"] == "" || fields["sec-websocket-accept"] != "" || fields["upgrade"] != "" {
		g.Errorf("fields of the answer: %v", fields)
	}
	return f
}

// tunnelUpstream opens each WebSocket that is asked for, and hands it over.
func tunnelUpstream(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) string {
	return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		req, _, err := readRequest(r)
		if err != nil {
			return
		}
		if req.Method != "GET" || req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Sec-Websocket-Version") != "13" ||
			len(req.Header["Sec-Websocket-Key"]) != 1 || req.ContentLength != 0 {
			t.Errorf("upstream got %s %v", req.Method, req.Header)
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			acceptKey([]byte(req.Header.Get("Sec-Websocket-Key"))))
		serve(c, r)
	})
}

// A real server's WebSocket, opened within HTTP/2: the server sees HTTP/1.1, and the client is told
// beforehand that it can.
func TestWebSocketInHTTP2(t *testing.T) {
	g := newGateway(t, []string{echoUpstream(t)}, withWebSocket(time.Minute))
	f := g.frames()
	fr, err := f.ReadFrame()
	settings, ok := fr.(*h2.SettingsFrame)
	if !ok {
		t.Fatalf("%v, %v", fr, err)
	}
	if v, ok := settings.Value(h2.SettingEnableConnectProtocol); !ok || v != 1 {
		t.Error("clients are not told that CONNECT is served")
	}
	if err := f.connect(1, "/ws", "websocket", "sec-websocket-protocol", "v1", "sec-websocket-key", "of the client"); err != nil {
		t.Fatal(err)
	}
	status, fields, err := f.answer(1)
	if status != "200" || fields["sec-websocket-protocol"] != "v1" || fields["sec-websocket-accept"] != "" || err != nil {
		t.Fatalf("status %s, %v, %v", status, fields, err)
	}
	message := append([]byte{0x81, 0x80 | 5, 0, 0, 0, 0}, "hello"...) // text, masked by zeros
	if err := f.WriteData(1, false, message); err != nil {
		t.Fatal(err)
	}
	if b, end, err := f.data(1, 7); string(b) != "\x81\x05hello" || err != nil {
		t.Errorf("%q came back, %s, %v", b, end, err)
	}
	// A second one beside it, and ordinary requests.
	if err := f.connect(3, "/ws", "websocket"); err != nil {
		t.Fatal(err)
	}
	if status, _, err := f.answer(3); status != "200" || err != nil {
		t.Errorf("second one: %s, %v", status, err)
	}
	for _, id := range []uint32{1, 3} { // a close frame; the server answers it and closes
		_ = f.WriteData(id, false, []byte{0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8})
		b, end, err := f.data(id, -1)
		if string(b) != "\x88\x02\x03\xe8" || end != "end" || err != nil {
			t.Errorf("end: %q, %s, %v", b, end, err)
		}
		_ = f.WriteData(id, true, nil)
	}
	for _, r := range g.records(2) {
		if r.Status != 200 || r.Outcome != zone.RequestOK || r.Major != 2 || string(r.Method) != "GET" {
			t.Errorf("record: %+v", r)
		}
	}
}

// Bytes go both ways at once, in any number, and each side's end reaches the other.
func TestWebSocketInHTTP2Bytes(t *testing.T) {
	up := tunnelUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = io.Copy(c, r)
		_, _ = io.WriteString(c, "and last")
	})
	g := newGateway(t, []string{up}, withWebSocket(time.Minute))
	f := g.open()
	want := content(60_000) // within the window
	got := make(chan []byte, 1)
	go func() {
		b, end, err := f.data(1, -1)
		if end != "end" || err != nil {
			t.Errorf("%s, %v", end, err)
		}
		got <- b
	}()
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 4<<10)
		if err := f.WriteData(1, false, rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := f.WriteData(1, true, nil); err != nil {
		t.Fatal(err)
	}
	if b := <-got; !bytes.Equal(b, append(want, "and last"...)) {
		t.Errorf("%d bytes came back", len(b))
	}
	if r := g.records(1)[0]; r.Outcome != zone.RequestOK || r.BytesIn < 60_000 || r.BytesOut < 60_000 {
		t.Errorf("record: %+v", r)
	}
}

// What opens no tunnel is never answered by a 2xx.
func TestNoWebSocketInHTTP2(t *testing.T) {
	const open = "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
	for _, row := range []struct {
		name   string
		ask    func(f *frames) error
		reply  string
		answer string
	}{
		{"plain CONNECT", func(f *frames) error {
			return f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields(":method", "CONNECT", ":authority", "localhost:22"), EndHeaders: true})
		}, "", "PROTOCOL_ERROR"},
		{":protocol of a GET", func(f *frames) error { return f.request(1, true, "GET", "/ws", ":protocol", "websocket") }, "", "PROTOCOL_ERROR"},
		{"a length", func(f *frames) error { return f.connect(1, "/ws", "websocket", "content-length", "3") }, "", "PROTOCOL_ERROR"},
		{"another protocol", func(f *frames) error { return f.connect(1, "/ws", "connect-udp") }, "", "501"},
		{"another route", func(f *frames) error { return f.connect(1, "/none/ws", "websocket") }, "", "501"},
		{"the server refuses", nil, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "403"},
		{"the server does not change", nil, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "502"},
		{"the proof is wrong", nil, open + "x\r\n\r\n", "502"},
	} {
		t.Run(row.name, func(t *testing.T) {
			up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
				if _, err := readRawHead(r); err == nil {
					_, _ = io.WriteString(c, row.reply)
					_, _ = io.Copy(io.Discard, r)
				}
			})
			g := newStoppedGateway(t, []string{up})
			withWebSocket(time.Minute)(&g.snapshot)
			g.snapshot.Routes = append(g.snapshot.Routes, policy.Route{Name: "none", PathPrefix: "/none/", Slot: g.zone.RouteSlot("none")})
			g.start()
			f := g.frames()
			ask := row.ask
			if ask == nil {
				ask = func(f *frames) error { return f.connect(1, "/ws", "websocket") }
			}
			if err := ask(f); err != nil {
				t.Fatal(err)
			}
			if got, _, err := f.answer(1); got != row.answer || err != nil {
				t.Errorf("answer %s, %v; want %s", got, err, row.answer)
			}
		})
	}
	t.Run("an upstream of HTTP/2", func(t *testing.T) {
		up := madeUpstream(t, nil, func(s *madeServer, f h2.Frame) {
			if h, ok := f.(*h2.HeadersFrame); ok {
				s.reply(h.StreamID, true, ":status", "200")
			}
		})
		g := newGateway(t, []string{up}, func(s *policy.Snapshot) { withWebSocket(time.Minute)(s); http2Upstream(s) })
		f := g.frames()
		if err := f.connect(1, "/ws", "websocket"); err != nil {
			t.Fatal(err)
		}
		if got, _, err := f.answer(1); got != "501" || err != nil {
			t.Errorf("answer %s, %v", got, err)
		}
		if r := g.records(1)[0]; r.Outcome != zone.RequestMethodRefused {
			t.Errorf("outcome %s", r.Outcome)
		}
		c := g.raw()
		c.send(upgradeRequest) // an ordinary request, as where no route has them
		if resp, _ := c.reply("GET"); resp.StatusCode != 200 {
			t.Errorf("HTTP/1.1: status %d", resp.StatusCode)
		}
	})
	t.Run("no route has them", func(t *testing.T) {
		g := newGateway(t, []string{echoUpstream(t)}, nil)
		f := g.frames()
		if fr, err := f.ReadFrame(); err != nil || strings.Contains(fmt.Sprint(fr), "CONNECT") {
			t.Errorf("%v, %v", fr, err)
		}
		_ = f.connect(1, "/ws", "websocket")
		if got, _, err := f.answer(1); got != "PROTOCOL_ERROR" || err != nil {
			t.Errorf("answer %s, %v", got, err)
		}
	})
}

// Silence and either side's breaking off end the whole of it, and nothing else on the connection.
func TestWebSocketInHTTP2Ends(t *testing.T) {
	gone := make(chan error, 1)
	hold := func(c net.Conn, r *bufio.Reader) { _, err := io.Copy(io.Discard, r); gone <- err }
	check := func(t *testing.T, g *gateway, f *frames, want zone.RequestOutcome) {
		t.Helper()
		if r := g.records(1)[0]; r.Outcome != want {
			t.Errorf("outcome %s, want %s", r.Outcome, want)
		}
		_ = f.request(5, true, "GET", "/none/")
		if got, _, err := f.answer(5); got != "404" || err != nil {
			t.Errorf("the connection: %s, %v", got, err)
		}
	}
	start := func(t *testing.T, idle time.Duration, serve func(net.Conn, *bufio.Reader)) *gateway {
		g := newStoppedGateway(t, []string{tunnelUpstream(t, serve)})
		g.snapshot.Routes[0].PathPrefix, g.snapshot.Routes[0].WebSocket = "/ws", idle
		g.start()
		return g
	}
	t.Run("silence", func(t *testing.T) {
		g := start(t, 2*time.Second, hold)
		f := g.open()
		for range 12 { // more than the time, one side's talk being enough
			time.Sleep(250 * time.Millisecond)
			if err := f.WriteData(1, false, []byte("still here")); err != nil {
				t.Fatal(err)
			}
		}
		if b, end, err := f.data(1, -1); end != "CANCEL" || err != nil {
			t.Errorf("after silence: %q, %s, %v", b, end, err)
		}
		<-gone
		check(t, g, f, zone.RequestClientTimeout)
	})
	t.Run("client resets", func(t *testing.T) {
		g := start(t, time.Minute, hold)
		f := g.open()
		_ = f.WriteRSTStream(1, h2.ErrCodeCancel)
		select {
		case <-gone:
		case <-time.After(20 * time.Second):
			t.Error("the server's side lives on")
		}
		check(t, g, f, zone.RequestClientReset)
	})
	t.Run("server breaks off", func(t *testing.T) {
		came := make(chan struct{}) // the reply, which a reset would take away
		g := start(t, time.Minute, func(c net.Conn, _ *bufio.Reader) {
			select {
			case <-came:
			case <-time.After(20 * time.Second):
			}
			_ = c.(*net.TCPConn).SetLinger(0)
		})
		f := g.open()
		close(came)
		if b, end, err := f.data(1, -1); end == "end" || end == "" || err != nil {
			t.Errorf("%q, %s, %v", b, end, err)
		}
		check(t, g, f, zone.RequestUpstreamReset)
	})
	t.Run("client is gone", func(t *testing.T) {
		g := start(t, time.Minute, hold)
		f := g.open()
		f.nc.NetConn().Close()
		select {
		case <-gone:
		case <-time.After(20 * time.Second):
			t.Error("the server's side lives on")
		}
		if r := g.records(1)[0]; r.Outcome != zone.RequestClientReset {
			t.Errorf("outcome %s", r.Outcome)
		}
	})
}
