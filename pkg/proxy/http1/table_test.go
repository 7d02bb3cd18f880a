// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

var testLimits = Limits{LineBytes: 200, HeaderBytes: 2000, Fields: 20}

// valid is the request that each row breaks, or bends, in one place.
const valid = "POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\n"

func edit(old, new string) string {
	if !strings.Contains(valid, old) {
		panic("the valid request has no " + old)
	}
	return strings.Replace(valid, old, new, 1)
}

func with(line string) string { return edit("\r\n\r\n", "\r\n"+line+"\r\n\r\n") }

func get(target string) string { return "GET " + target + " HTTP/1.1\r\nHost: a.test\r\n\r\n" }

func options(target string) string { return "OPTIONS " + target + " HTTP/1.1\r\nHost: a.test\r\n\r\n" }

func host(h string) string { return edit("a.test", h) }

// requestRows: status 0 is accepted, -1 needs more bytes.
var requestRows = []struct {
	name, request string
	status        int
}{
	{"valid", valid, 0},
	{"empty line before", "\r\n" + valid, 0},
	{"two empty lines before", "\r\n\r\n" + valid, 400},
	{"no empty line after", valid[:len(valid)-2], -1},
	{"nothing", "", -1},
	{"one byte", "G", -1},

	{"get", edit("POST", "GET"), 0}, {"head", edit("POST", "HEAD"), 0}, {"put", edit("POST", "PUT"), 0},
	{"patch", edit("POST", "PATCH"), 0}, {"delete", edit("POST", "DELETE"), 0}, {"options", edit("POST", "OPTIONS"), 0},
	{"connect", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", 501},
	{"trace", edit("POST", "TRACE"), 501}, {"unknown method", edit("POST", "BREW"), 501}, {"lower-case method", edit("POST", "post"), 501},
	{"method with colon", edit("POST", "PO:ST"), 400}, {"empty method", edit("POST ", " "), 400}, {"space first", " " + valid, 400},

	{"no version", edit(" HTTP/1.1", ""), 400}, {"version 1.2", edit("1.1", "1.2"), 505}, {"version 2.0", edit("1.1", "2.0"), 505},
	{"version 0.9", edit("1.1", "0.9"), 505}, {"version in lower case", edit("HTTP/1.1", "http/1.1"), 400}, {"version 1.10", edit("1.1", "1.10"), 400},
	{"version of letters", edit("1.1", "x.y"), 400}, {"version 1.", edit("1.1", "1."), 400}, {"space after version", edit("1.1", "1.1 "), 400},
	{"two spaces", edit("POST /", "POST  /"), 400}, {"tab", edit("POST /", "POST\t/"), 400}, {"space in target", edit("/p", "/p q"), 400},
	{"version 1.0", edit("1.1", "1.0"), 0}, {"version 1.0 without host", "GET / HTTP/1.0\r\n\r\n", 0},

	{"query", get("/p?a=b&c[]=%20|%zz"), 0}, {"fragment", get("/p#f"), 400}, {"fragment in query", get("/p?q#f"), 400}, {"bare name", get("p"), 400},
	{"escape", get("/%41%2f"), 0}, {"broken escape", get("/%4"), 400}, {"no escape", get("/%zz"), 400}, {"percent at the end", get("/a%"), 400},
	{"backslash", get("/a\\b"), 400}, {"high byte", get("/\xc3\xa4"), 400}, {"control byte", get("/\x01"), 400}, {"delete", get("/\x7f"), 400},
	{"NUL in target", get("/\x00"), 400}, {"asterisk", options("*"), 0}, {"asterisk with get", get("*"), 400}, {"two asterisks", options("**"), 400},
	{"absolute", get("https://a.test/p"), 0}, {"absolute http", get("http://A.test/p?q"), 0}, {"absolute elsewhere", get("https://b.test/p"), 400},
	{"absolute without path", get("https://a.test"), 400}, {"absolute with userinfo", get("https://u@a.test/"), 400}, {"other scheme", get("ftp://a.test/"), 400},
	{"absolute with port", get("https://a.test:443/"), 400}, {"authority", get("a.test:443"), 400}, {"long line", get("/" + strings.Repeat("x", 300)), 414},

	{"no host", edit("Host: a.test\r\n", ""), 400}, {"two hosts", with("Host: a.test"), 400}, {"two hosts, other case", with("hOST: b"), 400},
	{"empty host", host(""), 400}, {"host with port", host("a:1"), 0}, {"host with IPv6", host("[::1]"), 0}, {"IPv6 and port", host("[::1]:443"), 0},
	{"host with path", host("a/b"), 400}, {"host with space", host("a b"), 400}, {"host list", host("a,b"), 400}, {"userinfo", host("u@a"), 400},
	{"port of letters", host("a:x"), 400}, {"empty port", host("a:"), 400}, {"large port", host("a:65536"), 400}, {"two ports", host("a:1:2"), 400},
	{"open bracket", host("[::1"), 400}, {"text after bracket", host("[::1]x"), 400}, {"only a port", host(":443"), 400}, {"escape in host", host("%61"), 400},

	{"LF ends request line", edit(" HTTP/1.1\r\n", " HTTP/1.1\n"), 400}, {"LF ends field", edit("a.test\r\n", "a.test\n"), 400}, {"LF ends head", edit("\r\n\r\n", "\r\n\n"), 400},
	{"all LF", strings.ReplaceAll(valid, "\r", ""), 400}, {"CR in value", with("X: a\rb"), 400}, {"CR CR LF", edit("a.test\r\n", "a.test\r\r\n"), 400},
	{"folded", with("X: a\r\n b"), 400}, {"folded by tab", with("X: a\r\n\tb"), 400}, {"space before first field", edit("Host", " Host"), 400},
	{"space before colon", edit("Host:", "Host :"), 400}, {"tab before colon", with("X\t: a"), 400}, {"no colon", with("X"), 400}, {"no name", with(": a"), 400},
	{"space in name", with("X Y: a"), 400}, {"quote in name", with("X\"Y: a"), 400}, {"high byte in name", with("\xc3: a"), 400}, {"NUL in name", with("X\x00: a"), 400},
	{"NUL in value", with("X: a\x00b"), 400}, {"control byte in value", with("X: \x01"), 400}, {"delete in value", with("X: \x7f"), 400},
	{"tab in value", with("X: a\tb"), 0}, {"high byte in value", with("X: \xc3\xa4"), 0}, {"empty value", with("X:"), 0}, {"space around value", with("X: \t a \t"), 0},
	{"underscore in name", with("X_Y: a"), 0}, {"many fields", edit("\r\n\r\n", "\r\n"+strings.Repeat("X: a\r\n", 19)+"\r\n"), 431},
	{"large head", with("X: " + strings.Repeat("x", 3000)), 431},

	{"empty length", edit("h: 2", "h: "), 400}, {"negative length", edit("h: 2", "h: -2"), 400}, {"plus", edit("h: 2", "h: +2"), 400}, {"hexadecimal", edit("h: 2", "h: 0x2"), 400},
	{"length with space", edit("h: 2", "h: 2 2"), 400}, {"length list", edit("h: 2", "h: 2, 2"), 400}, {"length twice", with("Content-Length: 2"), 400},
	{"two lengths", with("content-length: 3"), 400}, {"overflow", edit("h: 2", "h: 9999999999999999999"), 400}, {"overflow by much", edit("h: 2", "h: 18446744073709551618"), 400},
	{"length 0", edit("h: 2", "h: 0"), 0}, {"no length", edit("Content-Length: 2\r\n", ""), 0}, {"leading zeros", edit("h: 2", "h: 002"), 0}, {"decimal point", edit("h: 2", "h: 2.0"), 400},

	{"chunked", edit("Content-Length: 2", "Transfer-Encoding: chunked"), 0}, {"Chunked", edit("Content-Length: 2", "Transfer-Encoding: Chunked"), 0},
	{"both", with("Transfer-Encoding: chunked"), 400}, {"gzip", edit("Content-Length: 2", "Transfer-Encoding: gzip"), 501}, {"gzip, chunked", edit("Content-Length: 2", "Transfer-Encoding: gzip, chunked"), 501},
	{"identity", edit("Content-Length: 2", "Transfer-Encoding: identity"), 501}, {"empty coding", edit("Content-Length: 2", "Transfer-Encoding:"), 400},
	{"coding twice", edit("Content-Length: 2", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400}, {"chunked twice", edit("Content-Length: 2", "Transfer-Encoding: chunked, chunked"), 501},
	{"quoted coding", edit("Content-Length: 2", "Transfer-Encoding: \"chunked\""), 501}, {"coding with vertical tab", edit("Content-Length: 2", "Transfer-Encoding: \vchunked"), 400},
	{"chunked in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400}, {"space before coding's colon", edit("Content-Length: 2", "Transfer-Encoding : chunked"), 400},

	{"expect", with("Expect: 100-Continue"), 0}, {"other expect", with("Expect: 200-ok"), 417},
	{"close", with("Connection: close"), 0}, {"names a field", with("X: a\r\nConnection: x"), 0}, {"names host", with("Connection: host"), 400},
	{"names length", with("Connection: Content-Length"), 400}, {"not a name", with("Connection: a b"), 400}, {"upgrade", with("Connection: upgrade\r\nUpgrade: h2c"), 0},
}

func status(n int, f *Fault) int {
	switch {
	case f != nil:
		return f.Status
	case n == 0:
		return -1
	}
	return 0
}

func TestRequestRows(t *testing.T) {
	t.Logf("%d rows", len(requestRows))
	for _, row := range requestRows {
		t.Run(row.name, func(t *testing.T) {
			var r Request
			n, fault := r.Parse([]byte(row.request), 0, &testLimits)
			if got := status(n, fault); got != row.status {
				t.Fatalf("%q: %d (%v), want %d", row.request, got, fault, row.status)
			}
			// Byte by byte the verdict is the same, though a refusal may come earlier.
			var r2 Request
			seen := 0
			for i := range len(row.request) {
				n2, fault2 := r2.Parse([]byte(row.request[:i+1]), seen, &testLimits)
				seen = i + 1
				if got := status(n2, fault2); got != -1 {
					if got != row.status || n2 != n {
						t.Fatalf("byte by byte: %d at %d, want %d", got, i+1, row.status)
					}
					return
				}
			}
			if row.status != -1 {
				t.Fatal("byte by byte: no verdict")
			}
		})
	}
}

func TestRequestValues(t *testing.T) {
	var r Request
	b := []byte("PUT https://A.test:8443/x?y HTTP/1.1\r\nHost: a.test:8443\r\nUser-Agent: me\r\nReferer: you\r\n" +
		"X-Hop: 1\r\nConnection: x-hop, close\r\nTE: trailers\r\nX-Forwarded-Foo: z\r\nContent-Length: 7\r\n\r\nnext")
	n, fault := r.Parse(b, 0, &testLimits)
	if fault != nil || n != len(b)-4 {
		t.Fatal(n, fault)
	}
	if string(r.Method) != "PUT" || string(r.Target) != "/x?y" || string(r.Host) != "a.test:8443" || string(r.UserAgent) != "me" ||
		string(r.Referer) != "you" || r.KeepAlive || r.Body != (Body{Length: 7}) || r.Minor != 1 {
		t.Errorf("%+v", r)
	}
	kinds := map[string]Kind{"X-Hop": HopByHop, "TE": HopByHop, "X-Forwarded-Foo": Forwarded, "Connection": Connection, "Host": Host}
	for _, f := range r.Fields {
		if want, ok := kinds[string(f.Name)]; ok && f.Kind != want {
			t.Errorf("%s is kind %d, want %d", f.Name, f.Kind, want)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	var r Request
	var p Response
	request := []byte(with("X: a\r\nConnection: x\r\nUser-Agent: u"))
	response := []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\nX: y\r\n\r\n")
	out := make([]byte, 0, 100)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = r.Parse(request, 0, &testLimits)
		_, _ = p.Parse(response, 0, &testLimits, []byte("GET"))
		var c Chunked
		_, _, _ = c.Next([]byte("5\r\nhello\r\n0\r\n\r\n"))
		out = AppendChunk(out[:0], response)
		DotSegments([]byte("/a/b.c/%20"))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestResponseRows(t *testing.T) {
	for _, row := range []struct {
		name, method, head string
		ok                 bool
		body               Body
		keep               bool
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Body{Length: 5}, true},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true, Body{Chunked: true, Length: -1}, true},
		{"until close", "GET", "HTTP/1.1 200 OK\r\n\r\n", true, Body{Length: -1}, false},
		{"1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", true, Body{Length: 5}, false},
		{"1.0 keep-alive", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", true, Body{Length: 5}, true},
		{"close", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", true, Body{Length: 5}, false},
		{"no reason", "GET", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", true, Body{}, true},
		{"no space", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", true, Body{}, true},
		{"head", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Body{}, true},
		{"204", "GET", "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", true, Body{}, true},
		{"304", "GET", "HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n", true, Body{}, true},
		{"100", "GET", "HTTP/1.1 100 Continue\r\n\r\n", true, Body{}, true},
		{"both", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", false, Body{}, false},
		{"two lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", false, Body{}, false},
		{"bad length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n", false, Body{}, false},
		{"chunked in 1.0", "GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, Body{}, false},
		{"gzip", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", false, Body{}, false},
		{"bare LF", "GET", "HTTP/1.1 200 OK\nX: y\r\n\r\n", false, Body{}, false},
		{"folded", "GET", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", false, Body{}, false},
		{"version", "GET", "HTTP/2.0 200 OK\r\n\r\n", false, Body{}, false},
		{"status of two digits", "GET", "HTTP/1.1 20 OK\r\n\r\n", false, Body{}, false},
		{"status of four digits", "GET", "HTTP/1.1 2000 OK\r\n\r\n", false, Body{}, false},
		{"status 99", "GET", "HTTP/1.1 099 OK\r\n\r\n", false, Body{}, false},
		{"status 600", "GET", "HTTP/1.1 600 OK\r\n\r\n", false, Body{}, false},
		{"NUL in reason", "GET", "HTTP/1.1 200 \x00\r\n\r\n", false, Body{}, false},
		{"space before colon", "GET", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", false, Body{}, false},
		{"mail", "GET", "220 mail.test\r\n\r\n", false, Body{}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			var r Response
			n, fault := r.Parse([]byte(row.head+"body"), 0, &testLimits, []byte(row.method))
			if (fault == nil) != row.ok || row.ok && (n != len(row.head) || r.Body != row.body || r.KeepAlive != row.keep) {
				t.Errorf("%d %v %+v", n, fault, r)
			}
		})
	}
}

// decode reads a chunked body that comes in pieces of size step.
func decode(b []byte, step int) (body []byte, used int, err error) {
	var c Chunked
	have := 0
	for {
		data, n, fault := c.Next(b[used:have])
		if fault != nil {
			return body, used, fault
		}
		body = append(body, data...)
		used += n
		if c.Done() {
			return body, used, nil
		}
		if n == 0 {
			if have == len(b) {
				return body, used, io.ErrUnexpectedEOF
			}
			have = min(have+step, len(b))
		}
	}
}

func TestChunkedRows(t *testing.T) {
	for _, row := range []struct{ name, in, body string }{
		{"one", "5\r\nhello\r\n0\r\n\r\nnext", "hello"}, {"two", "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "hello!"}, {"none", "0\r\n\r\n", ""},
		{"hexadecimal", "A\r\n0123456789\r\n0\r\n\r\n", "0123456789"}, {"lower case", "a\r\n0123456789\r\n0\r\n\r\n", "0123456789"}, {"zeros", "005\r\nhello\r\n000\r\n\r\n", "hello"},
		{"extension", "5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n", "hello"}, {"trailer", "0\r\nX: y\r\nZ: \r\n\r\n", ""},
	} {
		for _, step := range []int{1, 2, 3, 1000} {
			body, used, err := decode([]byte(row.in), step)
			if err != nil || string(body) != row.body || row.name == "one" && row.in[used:] != "next" {
				t.Errorf("%s by %d: %q, %v", row.name, step, body, err)
			}
		}
	}
	for name, in := range map[string]string{
		"no size": "\r\nhello", "letter": "g\r\n", "minus": "-1\r\n", "0x": "0x5\r\nhello\r\n", "space": "5 \r\nhello\r\n", "space first": " 5\r\nhello\r\n",
		"LF after size": "5\nhello\r\n", "LF after data": "5\r\nhello\n0\r\n\r\n", "long data": "5\r\nhello!\r\n", "CR in extension": "5;\ra\r\nhello\r\n", "NUL in extension": "5;\x00\r\n",
		"overflow": "10000000000000000\r\n", "long extension": "5;" + strings.Repeat("x", 300) + "\r\n", "long line without end": strings.Repeat("0", 300),
		"extensions without end": strings.Repeat("1;"+strings.Repeat("x", 200)+"\r\ny\r\n", 30), "folded trailer": "0\r\nX: y\r\n z\r\n\r\n", "host in trailer": "0\r\nHost: a\r\n\r\n",
		"length in trailer": "0\r\nContent-Length: 1\r\n\r\n", "coding in trailer": "0\r\nTransfer-Encoding: chunked\r\n\r\n", "bad trailer": "0\r\nX\r\n\r\n", "long trailer": "0\r\nX: " + strings.Repeat("x", 9000),
		"LF in trailer": "0\r\nX: y\n\r\n",
	} {
		for _, step := range []int{1, 1000, 10000} {
			var f *Fault
			if body, _, err := decode([]byte(in), step); !errors.As(err, &f) {
				t.Errorf("%s by %d: %q, %v", name, step, body, err)
			}
		}
	}
}

func TestAppendChunkRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 255, 256, 4095, 4096, 65535, 65536} {
		want := bytes.Repeat([]byte("x"), n)
		got, _, err := decode(AppendLastChunk(AppendChunk(nil, want), nil), 1<<20)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d: %d bytes, %v", n, len(got), err)
		}
	}
}

func TestDotSegments(t *testing.T) {
	for target, want := range map[string]bool{
		"/": false, "/a": false, "/a.b": false, "/...": false, "/.a": false, "/a..": false, "/?../x": false, "/%2ea": false, "/%20": false, "*": false,
		"/.": true, "/..": true, "/./a": true, "/a/../b": true, "/a/..": true, "/%2e": true, "/%2E.": true, "/.%2e/": true, "/a/..?q": true, "/..;x/": true,
	} {
		if got := DotSegments([]byte(target)); got != want {
			t.Errorf("%s: %v", target, got)
		}
	}
}

// lineOf returns a head of total bytes with a request line of line bytes.
func lineOf(line, total int) []byte {
	const start, end, host = "GET /", " HTTP/1.1\r\n", "Host: a\r\nX: "
	b := []byte(start + strings.Repeat("a", line+2-len(start)-len(end)) + end + host)
	return append(append(b, bytes.Repeat([]byte("x"), max(0, total-len(b)-4))...), "\r\n\r\n"...)
}

// The longest request line is accepted however it arrives; one byte more is refused as soon
// as it is there.
func TestLongestRequestLine(t *testing.T) {
	for _, more := range []int{0, 1} {
		b := lineOf(testLimits.LineBytes+more, 0)
		for cut := range b {
			var r Request
			refused := more > 0 && cut >= testLimits.LineBytes+2
			if n, fault := r.Parse(b[:cut], 0, &testLimits); n != 0 || (fault != nil) != refused {
				t.Fatalf("a line of %d bytes, %d of the head are there: %d, %v", testLimits.LineBytes+more, cut, n, fault)
			}
		}
		var r Request
		if n, fault := r.Parse(b, 0, &testLimits); (fault == nil) != (more == 0) || fault == nil && n != len(b) {
			t.Errorf("a line of %d bytes: %d, %v", testLimits.LineBytes+more, n, fault)
		}
	}
}
