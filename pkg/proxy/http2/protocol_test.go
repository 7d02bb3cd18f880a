// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	h2 "golang.org/x/net/http2"
)

// with gives the fields of a good request with some replaced (or, with value "-", taken out) and more added.
func with(changes ...string) []string {
	fields := get("/count")
	for i := 0; i+1 < len(changes); i += 2 {
		found := false
		for j := 0; j+1 < len(fields); j += 2 {
			if fields[j] == changes[i] {
				found = true
				if changes[i+1] == "-" {
					fields = append(fields[:j:j], fields[j+2:]...)
				} else {
					fields[j+1] = changes[i+1]
				}
				break
			}
		}
		if !found {
			fields = append(fields, changes[i], changes[i+1])
		}
	}
	return fields
}

// Each row is a good request and one change. The outcome is a status, or the error of the stream.
func TestRequests(t *testing.T) {
	const bad = "stream PROTOCOL_ERROR"
	rows := []struct {
		name   string
		fields []string
		want   string
	}{
		{"good", with(), "200"},
		{"HEAD", with(":method", "HEAD"), "200"},
		{"POST without body", with(":method", "POST"), "200"},
		{"OPTIONS *", with(":method", "OPTIONS", ":path", "*"), "200"},
		{"te trailers", with("te", "trailers"), "200"},
		{"content-length 0", with("content-length", "0"), "200"},
		{"host agrees", with("host", "localhost"), "200"},
		{"host agrees in other case", with("host", "LocalHost"), "200"},
		{"only host", with(":authority", "-", "host", "localhost"), "200"},
		{"scheme http", with(":scheme", "http"), "200"},
		{"authority with port", with(":authority", "localhost:443"), "200"},
		{"authority IPv6", with(":authority", "[::1]:443"), "200"},
		{"empty value", with("x", ""), "200"},
		{"value with tab inside", with("x", "a\tb"), "200"},
		{"value above ASCII", with("x", "\xc3\xa4"), "200"},
		{"path with query", with(":path", "/?a=b&c=%20"), "200"},
		{"name with underscore", with("a_b", "1"), "200"},

		{"upper case name", with("Xy", "1"), bad},
		{"empty name", with("", "1"), bad},
		{"name with space", with("a b", "1"), bad},
		{"name with colon", with("a:b", "1"), bad},
		{"name with NUL", with("a\x00", "1"), bad},
		{"name above ASCII", with("\xe4", "1"), bad},
		{"value with LF", with("x", "a\nb"), bad},
		{"value with CR", with("x", "a\rb"), bad},
		{"value with NUL", with("x", "a\x00b"), bad},
		{"value with DEL", with("x", "a\x7fb"), bad},
		{"value with control character", with("x", "a\x01b"), bad},
		{"value with leading space", with("x", " a"), bad},
		{"value with trailing tab", with("x", "a\t"), bad},
		{"connection", with("connection", "close"), bad},
		{"keep-alive", with("keep-alive", "1"), bad},
		{"proxy-connection", with("proxy-connection", "close"), bad},
		{"transfer-encoding", with("transfer-encoding", "chunked"), bad},
		{"upgrade", with("upgrade", "h2c"), bad},
		{"te gzip", with("te", "gzip"), bad},
		{"te with more", with("te", "trailers, gzip"), bad},
		{"no method", with(":method", "-"), bad},
		{"no scheme", with(":scheme", "-"), bad},
		{"no path", with(":path", "-"), bad},
		{"no authority nor host", with(":authority", "-"), bad},
		{"two methods", append(with(), ":method", "GET"), bad},
		{"two methods in front", append([]string{":method", "GET"}, with()...), bad},
		{"two paths in front", append([]string{":path", "/"}, with()...), bad},
		{"two schemes in front", append([]string{":scheme", "https"}, with()...), bad},
		{"two authorities in front", append([]string{":authority", "localhost"}, with()...), bad},
		{"unknown pseudo", append([]string{":foo", "1"}, with()...), bad},
		{"response pseudo", append([]string{":status", "200"}, with()...), bad},
		{"extended CONNECT", append([]string{":protocol", "websocket"}, with(":method", "CONNECT")...), bad},
		{"pseudo after regular", append([]string{"x", "1"}, with()...), bad},
		{"empty path", with(":path", ""), bad},
		{"path without slash", with(":path", "a"), bad},
		{"absolute path", with(":path", "https://localhost/"), bad},
		{"path with space", with(":path", "/a b"), bad},
		{"path with fragment", with(":path", "/a#b"), bad},
		{"path with CR LF", with(":path", "/a\r\nb"), bad},
		{"path above ASCII", with(":path", "/\xe4"), bad},
		{"GET *", with(":path", "*"), bad},
		{"empty method", with(":method", ""), bad},
		{"method with space", with(":method", "GET /"), bad},
		{"CONNECT", []string{":method", "CONNECT", ":authority", "localhost:443"}, bad},
		{"scheme ftp", with(":scheme", "ftp"), bad},
		{"scheme empty", with(":scheme", ""), bad},
		{"authority empty", with(":authority", ""), bad},
		{"authority with userinfo", with(":authority", "me@localhost"), bad},
		{"authority with slash", with(":authority", "localhost/x"), bad},
		{"authority with space", with(":authority", "local host"), bad},
		{"authority only a port", with(":authority", ":443"), bad},
		{"host differs", with("host", "other"), bad},
		{"two hosts", append(with(), "host", "localhost", "host", "localhost"), bad},
		{"host empty", with("host", ""), bad},
		{"host with userinfo", with(":authority", "-", "host", "me@localhost"), bad},
		{"two content-lengths", append(with(), "content-length", "0", "content-length", "0"), bad},
		{"content-length list", with("content-length", "0, 0"), bad},
		{"content-length negative", with("content-length", "-1"), bad},
		{"content-length signed", with("content-length", "+0"), bad},
		{"content-length too large", with("content-length", "9999999999999999999"), bad},
		{"content-length empty", with("content-length", ""), bad},
		{"content-length without body", with("content-length", "5"), bad},

		{"method not allowed", with(":method", "TRACE"), "501"},
		{"method unknown", with(":method", "get"), "501"},
		{"too many fields", append(with(), strings.Split(strings.Repeat("a,,", 97)+"a", ",")...)[:2*101], "431"},
		{"too large", with("x", strings.Repeat("a", 33<<10)), "431"},
		{"large with overhead", append(with(), many("cookie", strings.Repeat("c", 700), 46)...), "431"},
		{"not quite too large", append(with(), many("cookie", strings.Repeat("c", 700), 43)...), "200"},
	}
	var served atomic.Int64
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(func(s *Stream) {
		served.Add(1)
		testHandler(s)
	}), nil)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			served.Store(0)
			rc := dialRaw(t, s.addr())
			rc.sendBlock(1, true, rc.block(row.fields...))
			if o := rc.await(1); o.String() != row.want {
				t.Errorf("got %v, want %s", o, row.want)
			}
			if reached := served.Load() == 1; reached != (row.want == "200") {
				t.Errorf("handler was reached: %v", reached)
			}
			rc.request(3, true, get("/")...) // HPACK's state and the connection are well
			if o := rc.await(3); o.String() != "200" {
				t.Errorf("next request: %v", o)
			}
		})
	}
	if len(rows) < 40 {
		t.Error("the table has shrunk")
	}
}

func many(name, value string, n int) (fields []string) {
	for range n {
		fields = append(fields, name, value)
	}
	return fields
}

// sendBlock sends a header block in as many frames as it needs.
func (rc *rawClient) sendBlock(id uint32, end bool, block []byte) {
	n := min(len(block), maxFrame)
	rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n], EndStream: end, EndHeaders: n == len(block)})
	for block = block[n:]; len(block) > 0; block = block[n:] {
		n = min(len(block), maxFrame)
		rc.fr.WriteContinuation(id, n == len(block), block[:n])
	}
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// Each row is frames after a good beginning, and the outcome of stream 1 or of the connection.
func TestFrames(t *testing.T) {
	rows := []struct {
		name string
		send func(rc *rawClient)
		want string
	}{
		{"good body", func(rc *rawClient) {
			rc.request(1, false, post("/count")...)
			rc.fr.WriteData(1, false, []byte("ab"))
			rc.fr.WriteData(1, true, nil)
		}, "200"},
		{"padded", func(rc *rawClient) {
			rc.request(1, false, post("/count", "content-length", "2")...)
			rc.fr.WriteDataPadded(1, true, []byte("ab"), make([]byte, 100))
		}, "200"},
		{"content-length too short", func(rc *rawClient) {
			rc.request(1, false, post("/count", "content-length", "1")...)
			rc.fr.WriteData(1, true, []byte("ab"))
		}, "stream PROTOCOL_ERROR"},
		{"content-length too long", func(rc *rawClient) {
			rc.request(1, false, post("/count", "content-length", "3")...)
			rc.fr.WriteData(1, true, []byte("ab"))
		}, "stream PROTOCOL_ERROR"},
		{"content-length too long, trailers", func(rc *rawClient) {
			rc.request(1, false, post("/count", "content-length", "3")...)
			rc.request(1, true, "x", "1")
		}, "stream PROTOCOL_ERROR"},
		{"trailers", func(rc *rawClient) {
			rc.request(1, false, post("/count")...)
			rc.request(1, true, "x", "1")
		}, "200"},
		{"trailers without end", func(rc *rawClient) {
			rc.request(1, false, post("/count")...)
			rc.request(1, false, "x", "1")
		}, "stream PROTOCOL_ERROR"},
		{"trailers with pseudo field", func(rc *rawClient) {
			rc.request(1, false, post("/count")...)
			rc.request(1, true, ":path", "/")
		}, "stream PROTOCOL_ERROR"},
		{"trailers with content-length", func(rc *rawClient) {
			rc.request(1, false, post("/count")...)
			rc.request(1, true, "content-length", "0")
		}, "stream PROTOCOL_ERROR"},
		{"trailers with connection", func(rc *rawClient) {
			rc.request(1, false, post("/count")...)
			rc.request(1, true, "connection", "x")
		}, "stream PROTOCOL_ERROR"},
		{"trailers in two frames", func(rc *rawClient) {
			rc.request(1, false, post("/count")...)
			b := rc.block("x", "1", "y", "2")
			rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true})
			rc.fr.WriteContinuation(1, true, b[3:])
		}, "200"},
		{"DATA after END_STREAM", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WriteData(1, true, []byte("ab"))
		}, "stream STREAM_CLOSED"},
		{"HEADERS after END_STREAM", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.request(1, true, "x", "1")
		}, "stream STREAM_CLOSED"},
		{"self-dependency in HEADERS", func(rc *rawClient) {
			rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: rc.block(get("/")...), EndStream: true,
				EndHeaders: true, Priority: h2.PriorityParam{StreamDep: 1}})
		}, "stream PROTOCOL_ERROR"},
		{"self-dependency in PRIORITY", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WritePriority(1, h2.PriorityParam{StreamDep: 1})
		}, "stream PROTOCOL_ERROR"},
		{"short PRIORITY", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WriteRawFrame(h2.FramePriority, 0, 1, []byte{0})
		}, "stream FRAME_SIZE_ERROR"},
		{"priority is ignored", func(rc *rawClient) {
			rc.fr.WritePriority(1, h2.PriorityParam{StreamDep: 7, Weight: 3})
			rc.request(1, true, get("/")...)
		}, "200"},
		{"unknown frame is ignored", func(rc *rawClient) {
			rc.fr.WriteRawFrame(0x42, 0xff, 1, []byte("what"))
			rc.request(1, true, get("/")...)
		}, "200"},
		{"unknown setting is ignored", func(rc *rawClient) {
			rc.fr.WriteSettings(h2.Setting{ID: 0x99, Val: 1})
			rc.request(1, true, get("/")...)
		}, "200"},
		{"flags without meaning are ignored", func(rc *rawClient) {
			rc.fr.WriteRawFrame(h2.FramePing, 0xfe, 0, make([]byte, 8))
			rc.fr.WriteRawFrame(h2.FrameHeaders, 0xd2|h2.FlagHeadersEndHeaders|h2.FlagHeadersEndStream, 1, rc.block(get("/")...))
		}, "200"},
		{"frames on a closed stream that may be under way", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WriteRSTStream(1, h2.ErrCodeCancel)
			rc.fr.WriteWindowUpdate(1, 1)
			rc.fr.WritePriority(1, h2.PriorityParam{StreamDep: 3})
			rc.fr.WriteRSTStream(1, h2.ErrCodeCancel)
			rc.fr.WritePing(false, [8]byte{})
			rc.request(3, true, get("/")...)
			if o := rc.await(3); o.String() != "200" {
				t.Errorf("another stream: %v", o)
			}
			rc.request(5, true, with("te", "gzip")...)
			rc.fr.WriteRSTStream(5, h2.ErrCodeProtocol) // no RST_STREAM answers it
			rc.fr.WriteRawFrame(h2.FramePriority, 0, 1, nil)
		}, "stream FRAME_SIZE_ERROR"},
		{"stream window 0 for WINDOW_UPDATE", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, 1, u32(0))
		}, "stream PROTOCOL_ERROR"},
		{"stream window overflows", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, 1, u32(maxWindow))
		}, "stream FLOW_CONTROL_ERROR"},
		{"more DATA than the stream's window", func(rc *rawClient) {
			rc.request(1, false, post("/hang")...)
			for range 5 {
				rc.fr.WriteData(1, false, make([]byte, maxFrame))
			}
		}, "stream FLOW_CONTROL_ERROR"},

		{"not the preface", func(rc *rawClient) { rc.send([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")) }, "conn PROTOCOL_ERROR"},
		{"no SETTINGS first", func(rc *rawClient) {
			rc.send([]byte(h2.ClientPreface))
			rc.fr.WritePing(false, [8]byte{})
		}, "conn PROTOCOL_ERROR"},
		{"DATA on stream 0", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameData, 0, 0, nil) }, "conn PROTOCOL_ERROR"},
		{"DATA on idle stream", func(rc *rawClient) { rc.fr.WriteData(1, true, nil) }, "conn PROTOCOL_ERROR"},
		{"DATA with too much padding", func(rc *rawClient) {
			rc.request(1, false, post("/hang")...)
			rc.fr.WriteRawFrame(h2.FrameData, h2.FlagDataPadded, 1, []byte{2, 0})
		}, "conn PROTOCOL_ERROR"},
		{"padded DATA without length", func(rc *rawClient) {
			rc.request(1, false, post("/hang")...)
			rc.fr.WriteRawFrame(h2.FrameData, h2.FlagDataPadded, 1, nil)
		}, "conn FRAME_SIZE_ERROR"},
		{"DATA on closed stream", func(rc *rawClient) {
			rc.request(1, true, get("/")...)
			rc.await(1)
			rc.fr.WriteData(1, true, nil)
		}, "conn STREAM_CLOSED"},
		{"DATA after RST_STREAM", func(rc *rawClient) {
			rc.request(1, false, post("/hang")...)
			rc.fr.WriteRSTStream(1, h2.ErrCodeCancel)
			rc.fr.WriteData(1, true, nil)
		}, "conn STREAM_CLOSED"},
		{"HEADERS on stream 0", func(rc *rawClient) { rc.request(0, true, get("/")...) }, "conn PROTOCOL_ERROR"},
		{"HEADERS on stream 2", func(rc *rawClient) { rc.request(2, true, get("/")...) }, "conn PROTOCOL_ERROR"},
		{"HEADERS on lower stream", func(rc *rawClient) {
			rc.request(3, true, get("/hang")...)
			rc.request(1, true, get("/")...)
		}, "conn PROTOCOL_ERROR"},
		{"HEADERS on closed stream", func(rc *rawClient) {
			rc.request(1, true, get("/")...)
			rc.await(1)
			rc.request(1, true, get("/")...)
		}, "conn STREAM_CLOSED"},
		{"HEADERS too short for priority", func(rc *rawClient) {
			rc.fr.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersPriority|h2.FlagHeadersEndHeaders, 1, []byte{0, 0})
		}, "conn FRAME_SIZE_ERROR"},
		{"header block is garbage", func(rc *rawClient) {
			rc.fr.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0x0f})
		}, "conn COMPRESSION_ERROR"},
		{"header block is cut", func(rc *rawClient) {
			rc.fr.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, []byte{0x40, 0x0a, 'a'})
		}, "conn COMPRESSION_ERROR"},
		{"CONTINUATION alone", func(rc *rawClient) { rc.fr.WriteContinuation(1, true, nil) }, "conn PROTOCOL_ERROR"},
		{"frame inside a header block", func(rc *rawClient) {
			rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: rc.block(get("/")...)})
			rc.fr.WritePing(false, [8]byte{})
		}, "conn PROTOCOL_ERROR"},
		{"unknown frame inside a header block", func(rc *rawClient) {
			rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: rc.block(get("/")...)})
			rc.fr.WriteRawFrame(0x42, 0, 1, nil)
		}, "conn PROTOCOL_ERROR"},
		{"HEADERS with too much padding", func(rc *rawClient) {
			rc.fr.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersPadded|h2.FlagHeadersEndHeaders, 1, []byte{2, 0x82})
		}, "conn PROTOCOL_ERROR"},
		{"HPACK table larger than allowed", func(rc *rawClient) {
			rc.fr.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, []byte{0x3f, 0xe2, 0x1f, 0x82})
		}, "conn COMPRESSION_ERROR"},
		{"HPACK table resized within a block", func(rc *rawClient) {
			rc.fr.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, []byte{0x40, 1, 'a', 1, 'b', 0x20})
		}, "conn COMPRESSION_ERROR"},
		{"CONTINUATION of another stream", func(rc *rawClient) {
			rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: rc.block(get("/")...)})
			rc.fr.WriteContinuation(3, true, nil)
		}, "conn PROTOCOL_ERROR"},
		{"RST_STREAM on idle stream", func(rc *rawClient) { rc.fr.WriteRSTStream(1, 0) }, "conn PROTOCOL_ERROR"},
		{"RST_STREAM on stream 0", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameRSTStream, 0, 0, u32(0)) }, "conn PROTOCOL_ERROR"},
		{"short RST_STREAM", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WriteRawFrame(h2.FrameRSTStream, 0, 1, []byte{0})
		}, "conn FRAME_SIZE_ERROR"},
		{"PRIORITY on stream 0", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FramePriority, 0, 0, make([]byte, 5)) }, "conn PROTOCOL_ERROR"},
		{"PUSH_PROMISE", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FramePushPromise, 4, 1, u32(2)) }, "conn PROTOCOL_ERROR"},
		{"SETTINGS on a stream", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameSettings, 0, 1, nil) }, "conn PROTOCOL_ERROR"},
		{"SETTINGS of 5 bytes", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameSettings, 0, 0, make([]byte, 5)) }, "conn FRAME_SIZE_ERROR"},
		{"ack with payload", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameSettings, 1, 0, make([]byte, 6)) }, "conn FRAME_SIZE_ERROR"},
		{"ack of nothing", func(rc *rawClient) { rc.fr.WriteSettingsAck() }, "conn PROTOCOL_ERROR"},
		{"ENABLE_PUSH 2", func(rc *rawClient) { rc.fr.WriteSettings(h2.Setting{ID: h2.SettingEnablePush, Val: 2}) }, "conn PROTOCOL_ERROR"},
		{"INITIAL_WINDOW_SIZE too large", func(rc *rawClient) {
			rc.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 31})
		}, "conn FLOW_CONTROL_ERROR"},
		{"INITIAL_WINDOW_SIZE overflows a stream", func(rc *rawClient) {
			rc.request(1, true, get("/hang")...)
			rc.fr.WriteWindowUpdate(1, 1000)
			rc.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: maxWindow})
		}, "conn FLOW_CONTROL_ERROR"},
		{"MAX_FRAME_SIZE too small", func(rc *rawClient) { rc.fr.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 16383}) }, "conn PROTOCOL_ERROR"},
		{"MAX_FRAME_SIZE too large", func(rc *rawClient) { rc.fr.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 1 << 24}) }, "conn PROTOCOL_ERROR"},
		{"PING on a stream", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FramePing, 0, 1, make([]byte, 8)) }, "conn PROTOCOL_ERROR"},
		{"PING of 7 bytes", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FramePing, 0, 0, make([]byte, 7)) }, "conn FRAME_SIZE_ERROR"},
		{"GOAWAY on a stream", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameGoAway, 0, 1, make([]byte, 8)) }, "conn PROTOCOL_ERROR"},
		{"short GOAWAY", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameGoAway, 0, 0, make([]byte, 7)) }, "conn FRAME_SIZE_ERROR"},
		{"short WINDOW_UPDATE", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, 0, make([]byte, 3)) }, "conn FRAME_SIZE_ERROR"},
		{"WINDOW_UPDATE of 0", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, 0, u32(0)) }, "conn PROTOCOL_ERROR"},
		{"WINDOW_UPDATE overflows", func(rc *rawClient) { rc.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, 0, u32(maxWindow)) }, "conn FLOW_CONTROL_ERROR"},
		{"WINDOW_UPDATE on idle stream", func(rc *rawClient) { rc.fr.WriteWindowUpdate(1, 1) }, "conn PROTOCOL_ERROR"},
		{"frame too large", func(rc *rawClient) {
			rc.request(1, false, post("/hang")...)
			rc.fr.WriteRawFrame(h2.FrameData, 0, 1, make([]byte, maxFrame+1))
		}, "conn FRAME_SIZE_ERROR"},
		{"more DATA than the connection's window", func(rc *rawClient) {
			rc.request(1, false, post("/hang")...)
			rc.request(3, false, post("/hang")...)
			for id := range 10 {
				rc.fr.WriteData(uint32(1+id%2*2), false, make([]byte, 15000))
			}
		}, "conn FLOW_CONTROL_ERROR"},
	}
	s := startServer(t, "127.0.0.1:0", Config{ConnWindow: 100_000}, handlerFunc(testHandler), nil)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var rc *rawClient
			bare := row.name == "not the preface" || row.name == "no SETTINGS first"
			if bare {
				rc = dialBare(t, s.addr())
			} else {
				rc = dialRaw(t, s.addr())
			}
			row.send(rc)
			o := rc.await(1)
			if row.name == "more DATA than the connection's window" && o.isRST {
				o = rc.await(0) // one of the streams' windows was the first to overflow
			}
			if o.String() != row.want {
				t.Fatalf("got %v, want %s", o, row.want)
			}
			if !o.isGone {
				rc.request(101, true, get("/")...)
				if o := rc.await(101); o.String() != "200" {
					t.Errorf("next request: %v", o)
				}
			}
			rc.nc.Close()
			if o.isGone {
				var ce *ConnError
				if err := s.serveErr(); !errors.As(err, &ce) || "conn "+h2.ErrCode(ce.Code).String() != row.want {
					t.Errorf("Serve: %v, want %s", err, row.want)
				}
				return
			}
			s.serveErr()
		})
	}
}

func TestTooManyStreams(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{MaxStreams: 3}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	for id := uint32(1); id <= 7; id += 2 {
		rc.request(id, true, get("/hang")...)
	}
	if o := rc.await(7); o.String() != "stream REFUSED_STREAM" {
		t.Errorf("the fourth of three streams: %v", o)
	}
	rc.fr.WriteRSTStream(1, h2.ErrCodeCancel)
	rc.request(9, true, get("/")...)
	if o := rc.await(9); o.String() != "200" {
		t.Errorf("after one was given up: %v", o)
	}
}

// Frames for a stream that is over must not reach the stream that has its memory now.
func TestLateFramesDoNotReachRecycledStreams(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	id := uint32(1)
	for range 50 {
		rc.request(id, false, post("/early")...) // answered and reset before its body comes
		if o := rc.await(id); o.status != "403" {
			t.Fatal(o)
		}
		rc.request(id+2, false, post("/count")...)
		rc.fr.WriteData(id, true, []byte("late"))
		rc.fr.WriteWindowUpdate(id, 1)
		rc.fr.WriteRSTStream(id, h2.ErrCodeCancel)
		rc.fr.WriteData(id+2, true, []byte("ab"))
		if o := rc.await(id + 2); o.status != "200" || o.body != 1 {
			t.Fatalf("stream %d: %v", id+2, o)
		}
		id += 4
	}
}

func TestRefusedIsTold(t *testing.T) {
	type told struct {
		id     uint32
		status int
		path   string
		cause  error
	}
	got := make(chan told, 4)
	s := startServer(t, "127.0.0.1:0", Config{Refused: func(s *Stream, status int, cause error) {
		got <- told{s.ID(), status, string(s.Path()), cause}
	}}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	rc.request(1, true, with("te", "gzip")...)
	rc.request(3, true, with(":method", "TRACE")...)
	if v := <-got; v != (told{1, 0, "/count", errTE}) {
		t.Error(v)
	}
	if v := <-got; v != (told{3, 501, "/count", errMethod}) {
		t.Error(v)
	}
}

func TestResponseFieldsAreGuarded(t *testing.T) {
	results := make(chan error, 8)
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(func(s *Stream) {
		for _, f := range [][2]string{{"x", "a\r\nset-cookie: b"}, {"x y", "1"}, {"", "1"}, {":status", "500"}} {
			s.BeginHeaders(200)
			s.AddHeader([]byte(f[0]), []byte(f[1]))
			results <- s.EndHeaders(true)
		}
		s.BeginHeaders(101)
		results <- s.EndHeaders(false)
		_, err := s.Write([]byte("x"), false)
		results <- err
		s.BeginHeaders(200)
		s.AddHeader([]byte("Connection"), []byte("close")) // left out
		results <- s.EndHeaders(true)
		_, err = s.Write([]byte("x"), false)
		results <- err
	}), nil)
	rc := dialRaw(t, s.addr())
	rc.request(1, true, get("/")...)
	if o := rc.await(1); o.status != "200" {
		t.Error(o)
	}
	for i, want := range []error{ErrField, ErrField, ErrField, ErrField, ErrField, ErrOrder, nil, ErrEnded} {
		if err := <-results; !errors.Is(err, want) {
			t.Errorf("call %d: %v, want %v", i, err, want)
		}
	}
}

func TestHandlerReset(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(func(s *Stream) {
		s.BeginHeaders(200)
		s.EndHeaders(false)
		s.Reset(uint32(h2.ErrCodeEnhanceYourCalm))
		if _, err := s.Write([]byte("x"), true); !errors.Is(err, ErrEnded) {
			t.Errorf("write after reset: %v", err)
		}
	}), nil)
	rc := dialRaw(t, s.addr())
	rc.request(1, true, get("/")...)
	if o := rc.await(1); o.String() != "stream ENHANCE_YOUR_CALM" {
		t.Error(o)
	}
}
