// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// musts are what RFC 9113, sections 3 to 6 and 8, demands of an endpoint that reads, and the tests, or
// the rows of tests, that hold it; "h2spec" is TestTools. TestFrames and TestRequests are about what
// clients send, TestClient… about what servers do. Not in the list: what crypto/tls sees to (9.2), and
// push (8.4), which no side of the gateway has.
var musts = []struct{ clause, must, tests string }{
	{"3.4", "a preface that is not valid ends the connection", "TestFrames/not the preface; TestFrames/no SETTINGS first"},
	{"4.1", "frames of unknown types are ignored, so are flags without meaning", "TestFrames/unknown frame is ignored; TestFrames/flags without meaning are ignored; TestClientFrames/what may be under way for a stream that is over"},
	{"4.2", "frames above SETTINGS_MAX_FRAME_SIZE, or too small for what they must hold, are FRAME_SIZE_ERROR", "TestFrames/frame too large; TestFrames/short GOAWAY; TestClientFrames/DATA larger than allowed; TestClientFrames/short GOAWAY"},
	{"4.3", "a field block that cannot be decoded is COMPRESSION_ERROR, on whatever stream", "TestFrames/header block is garbage; TestFrames/header block is cut; TestClientFrames/header block is garbage; TestClientFrames/garbage on a stream that is over"},
	{"4.3", "no other frame comes within a field block", "TestFrames/frame inside a header block; TestFrames/unknown frame inside a header block; TestClientFrames/PING inside a header block"},
	{"4.3.1", "the table is no larger than was allowed, and resized at a block's beginning", "TestFrames/HPACK table larger than allowed; TestFrames/HPACK table resized within a block; TestEncoderAgainstDecoder"},
	{"5.1", "idle: only HEADERS and PRIORITY", "TestFrames/DATA on idle stream; TestFrames/RST_STREAM on idle stream; TestFrames/WINDOW_UPDATE on idle stream; TestFrames/priority is ignored; TestClientFrames/DATA on a stream that was not opened; TestClientFrames/HEADERS on a stream that was not opened"},
	{"5.1", "half-closed (remote): DATA and HEADERS are STREAM_CLOSED", "TestFrames/DATA after END_STREAM; TestFrames/HEADERS after END_STREAM"},
	{"5.1", "closed: STREAM_CLOSED, but for what may be under way", "TestFrames/DATA on closed stream; TestFrames/DATA after RST_STREAM; TestFrames/HEADERS on closed stream; TestFrames/frames on a closed stream that may be under way; TestLateFramesDoNotReachRecycledStreams"},
	{"5.1.1", "identifiers are odd, and grow", "TestFrames/HEADERS on stream 2; TestFrames/HEADERS on lower stream; TestClientFrames/DATA on a stream of a server"},
	{"5.1.2", "above SETTINGS_MAX_CONCURRENT_STREAMS: REFUSED_STREAM", "TestTooManyStreams"},
	{"5.2", "what is sent keeps within both windows, what is received is held to them", "TestTinyWindows; TestFrames/more DATA than the stream's window; TestFrames/more DATA than the connection's window; TestClientFrames/more DATA than the stream's window; TestWindowOfDiscardedData"},
	{"5.4.1", "GOAWAY says why a connection ends", "TestFrames; TestFloodIsToldToTheClient"},
	{"5.4.2", "no RST_STREAM answers RST_STREAM", "TestFrames/frames on a closed stream that may be under way"},
	{"5.5", "settings that are not known are ignored", "TestFrames/unknown setting is ignored"},
	{"6.1", "DATA: on no stream, or padding as long as the frame: PROTOCOL_ERROR", "TestFrames/DATA on stream 0; TestFrames/DATA with too much padding; TestFrames/padded; TestClientFrames/DATA on stream 0; TestClientFrames/DATA with too much padding"},
	{"6.2", "HEADERS: likewise", "TestFrames/HEADERS on stream 0; TestFrames/HEADERS with too much padding; TestClientFrames/HEADERS on stream 0; TestClientFrames/HEADERS with too much padding"},
	{"6.3", "PRIORITY: stream 0 is PROTOCOL_ERROR, another length FRAME_SIZE_ERROR of the stream", "TestFrames/PRIORITY on stream 0; TestFrames/short PRIORITY; TestClientFrames/PRIORITY on stream 0"},
	{"6.4", "RST_STREAM: stream 0, idle, length", "TestFrames/RST_STREAM on stream 0; TestFrames/short RST_STREAM; TestClientFrames/RST_STREAM on stream 0; TestClientFrames/short RST_STREAM"},
	{"6.5", "SETTINGS: stream, length, acknowledgement", "TestFrames/SETTINGS on a stream; TestFrames/SETTINGS of 5 bytes; TestFrames/ack with payload; TestClientFrames/SETTINGS on a stream; TestClientFrames/ack with payload"},
	{"6.5.2", "values out of range", "TestFrames/ENABLE_PUSH 2; TestFrames/INITIAL_WINDOW_SIZE too large; TestFrames/MAX_FRAME_SIZE too small; TestFrames/MAX_FRAME_SIZE too large; TestClientFrames/ENABLE_PUSH from a server; TestClientFrames/MAX_FRAME_SIZE too small"},
	{"6.5.3", "SETTINGS are acknowledged, and those that are not end the connection", "h2spec; TestTimeouts"},
	{"6.6", "PUSH_PROMISE that cannot be", "TestFrames/PUSH_PROMISE; TestClientFrames/PUSH_PROMISE"},
	{"6.7", "PING: answered with what was in it; stream, length", "h2spec; TestFrames/PING on a stream; TestFrames/PING of 7 bytes; TestClientFrames/PING on a stream; TestClientFrames/PING of 7 bytes"},
	{"6.8", "GOAWAY: two steps, the last stream never grows, streams above it are not served", "TestShutdownFinishesStreams; TestFrames/GOAWAY on a stream; TestClientFrames/GOAWAY on a stream; TestClientReplies"},
	{"6.9", "WINDOW_UPDATE: 0, length", "TestFrames/WINDOW_UPDATE of 0; TestFrames/stream window 0 for WINDOW_UPDATE; TestFrames/short WINDOW_UPDATE; TestClientFrames/WINDOW_UPDATE of 0; TestClientFrames/WINDOW_UPDATE of 0 for a stream"},
	{"6.9.1", "no window is above 2^31-1", "TestFrames/WINDOW_UPDATE overflows; TestFrames/stream window overflows; TestClientFrames/WINDOW_UPDATE overflows; TestClientFrames/WINDOW_UPDATE overflows a stream"},
	{"6.9.2", "a changed initial window changes all streams', also below 0", "TestFrames/INITIAL_WINDOW_SIZE overflows a stream; TestClientFrames/INITIAL_WINDOW_SIZE overflows a stream; h2spec"},
	{"6.10", "CONTINUATION follows its HEADERS", "TestFrames/CONTINUATION alone; TestFrames/CONTINUATION of another stream; TestClientFrames/CONTINUATION alone; TestClientFrames/CONTINUATION of another stream"},
	{"8.1", "trailers end the stream and have no pseudo fields; interim replies do not", "TestFrames/trailers without end; TestFrames/trailers with pseudo field; TestClientFrames/two final heads; TestClientFrames/interim head that ends the stream; TestClientFrames/trailers with a pseudo field; TestClientFrames/DATA before a final reply"},
	{"8.1.1", "content-length is the sum of DATA; malformed messages are not passed on", "TestFrames/content-length too short; TestFrames/content-length too long; TestFrames/content-length too long, trailers; TestRequests/content-length without body; TestClientMalformed/length too long; TestClientMalformed/length short"},
	{"8.2.1", "names and values", "TestRequests/upper case name; TestRequests/name with colon; TestRequests/name above ASCII; TestRequests/value with NUL; TestRequests/value with LF; TestRequests/value with leading space; TestRequests/value with trailing tab; TestClientMalformed/upper case; TestClientMalformed/CR LF"},
	{"8.2.2", "no connection-specific fields, TE says trailers or nothing", "TestRequests/connection; TestRequests/keep-alive; TestRequests/proxy-connection; TestRequests/transfer-encoding; TestRequests/upgrade; TestRequests/te gzip; TestRequests/te trailers; TestClientMalformed/connection; TestClientMalformed/coding; TestResponseFieldsAreGuarded"},
	{"8.2.3", "cookie crumbs are one field to others", "TestFieldsAsHandlerSeesThem"},
	{"8.3", "pseudo fields: known, once, before all others", "TestRequests/unknown pseudo; TestRequests/response pseudo; TestRequests/two methods in front; TestRequests/pseudo after regular; TestClientMalformed/status late; TestClientMalformed/another pseudo"},
	{"8.3.1", "one valid :method, :scheme, :path; no userinfo; Host that agrees", "TestRequests/no method; TestRequests/no scheme; TestRequests/no path; TestRequests/empty path; TestRequests/OPTIONS *; TestRequests/authority with userinfo; TestRequests/host differs; TestRequests/only host"},
	{"8.3.2", "one valid :status", "TestClientMalformed/no status; TestClientMalformed/status twice"},
	{"8.5", "CONNECT has no :scheme and :path, and may be refused", "TestRequests/CONNECT; TestRequests/extended CONNECT"},
	{"8.6", "no 101", "TestClientMalformed/status 101; TestResponseFieldsAreGuarded"},
	{"8.7", "what was refused unseen, and only that, is sent again", "TestClientReplies; TestTooManyStreams"},
	{"10.5", "work for nothing is bounded", "TestFloods; TestClientFloods; TestMemoryIsBounded"},
}

// The list names what there is.
func TestMusts(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	bodies := map[string]string{"h2spec": "h2spec"}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range strings.Split(string(b), "\nfunc ")[1:] {
			name, body, _ := strings.Cut(f, "(")
			bodies[name] = body
		}
	}
	for _, m := range musts {
		for name := range strings.SplitSeq(m.tests, "; ") {
			test, row, hasRow := strings.Cut(name, "/")
			body, there := bodies[test]
			if !there || hasRow && !strings.Contains(body, `"`+row+`"`) {
				t.Errorf("%s, %s: there is no %s", m.clause, m.must, name)
			}
		}
	}
}
