// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/xgw-project/xgw/pkg/zone"
)

// http2Row is a stream: fields, the body in pieces, and trailers. want is a status, or the
// error by which the stream ends; up is what the upstream gets, "" for nothing at all.
type http2Row struct {
	name     string
	fields   []string // name, value, name, value …
	data     []string // DATA frames; nil: END_STREAM is on HEADERS
	trailers []string
	want     string
	up       string
}

// h2Of is a valid request with fields replaced, taken away (value "-"), or added.
func h2Of(method string, changes ...string) []string {
	fields := []string{":method", method, ":scheme", "https", ":authority", "a.test", ":path", "/p"}
next:
	for ; len(changes) > 0; changes = changes[2:] {
		for i := 0; i < len(fields); i += 2 {
			if fields[i] == changes[0] {
				if changes[1] == "-" {
					fields = append(fields[:i:i], fields[i+2:]...)
				} else {
					fields[i+1] = changes[1]
				}
				continue next
			}
		}
		fields = append(fields, changes[0], changes[1])
	}
	return fields
}

func http2Rows() []http2Row {
	const refused = "PROTOCOL_ERROR"
	get := func(changes ...string) []string { return h2Of("GET", changes...) }
	post := func(changes ...string) []string { return h2Of("POST", changes...) }
	also := func(fields ...string) []string { return append(get(), fields...) } // even if they are there
	two := append(post("content-length", "2"), "content-length", "2")
	hi := []string{"hi"}
	rows := []http2Row{
		{"GET", get(), nil, nil, "200", upGet("/p", "")}, {"POST", post("content-length", "2"), hi, nil, "200", upPost("")}, {"POST without length", post(), hi, nil, "200", upSend("2\r\nhi\r\n0\r\n\r\n")},
		{"POST in pieces", post("content-length", "2"), []string{"h", "", "i", ""}, nil, "200", upPost("")}, {"POST without body", post(), nil, nil, "200", upTo("a.test", "POST /p", "", "Content-Length: 0\r\n", "")},
		{"POST of length 0", post("content-length", "0"), nil, nil, "200", upTo("a.test", "POST /p", "", "Content-Length: 0\r\n", "")}, {"HEAD", h2Of("HEAD"), nil, nil, "200", upTo("a.test", "HEAD /p", "", "", "")},
		{"fields", get("x", "a", "user-agent", "u", "cookie", "a=b"), nil, nil, "200", upGet("/p", "x: a\r\nuser-agent: u\r\ncookie: a=b\r\n")}, {"cookie crumbs", append(also("cookie", "a=b", "x", "y"), "cookie", "c=d", "cookie", "e=f"), nil, nil, "200", upGet("/p", "cookie: a=b; c=d; e=f\r\nx: y\r\n")},
		{"te trailers", get("te", "trailers"), nil, nil, "200", upGet("/p", "TE: trailers\r\nConnection: TE\r\n")}, {"Host that agrees", get("host", "a.test"), nil, nil, "200", upGet("/p", "")}, {"only Host", get(":authority", "-", "host", "a.test"), nil, nil, "200", upGet("/p", "")},
		{"underscore", get("x_y", "z"), nil, nil, "200", upGet("/p", "")}, {"forged", get("x-forwarded-for", "6.6.6.6", "forwarded", "for=6.6.6.6", "x-request-id", "x"), nil, nil, "200", upGet("/p", "")}, {"query", get(":path", "/p?a#"[:4]), nil, nil, "200", upGet("/p?a", "")},
		{"asterisk", h2Of("OPTIONS", ":path", "*"), nil, nil, "200", upTo("a.test", "OPTIONS *", "", "", "")}, {"scheme http", get(":scheme", "http"), nil, nil, "200", upGet("/p", "")}, {"port", get(":authority", "a.test:8443"), nil, nil, "200", upTo("a.test:8443", "GET /p", "", "", "")},

		{"connection", get("connection", "x"), nil, nil, refused, ""}, {"keep-alive", get("keep-alive", "5"), nil, nil, refused, ""}, {"proxy-connection", get("proxy-connection", "x"), nil, nil, refused, ""}, {"transfer-encoding", post("transfer-encoding", "chunked"), []string{"0\r\n\r\n"}, nil, refused, ""},
		{"upgrade", get("upgrade", "websocket"), nil, nil, refused, ""}, {"te gzip", get("te", "gzip"), nil, nil, refused, ""}, {"te trailers and gzip", get("te", "trailers, gzip"), nil, nil, refused, ""}, {"te twice", also("te", "trailers", "te", "x"), nil, nil, refused, ""},
		{"two lengths", two, hi, nil, refused, ""}, {"two other lengths", append(post("content-length", "2"), "content-length", "3"), hi, nil, refused, ""}, {"length list", post("content-length", "2, 2"), hi, nil, refused, ""}, {"length with plus", post("content-length", "+2"), hi, nil, refused, ""},
		{"negative length", post("content-length", "-1"), hi, nil, refused, ""}, {"empty length", post("content-length", ""), hi, nil, refused, ""}, {"length overflows", post("content-length", "18446744073709551618"), hi, nil, refused, ""}, {"hexadecimal length", post("content-length", "0x2"), hi, nil, refused, ""},
		{"longer than its length", post("content-length", "1"), hi, nil, refused, ""}, {"shorter than its length", post("content-length", "3"), hi, nil, refused, ""}, {"shorter, in trailers", post("content-length", "3"), hi, []string{"x", "y"}, refused, ""},
		{"length without body", get("content-length", "2"), nil, nil, refused, ""}, {"length with empty body", post("content-length", "2"), []string{""}, nil, refused, ""}, {"length 0 with body", post("content-length", "0"), hi, nil, refused, ""},
		{"no authority", get(":authority", "-"), nil, nil, refused, ""}, {"empty authority", get(":authority", ""), nil, nil, refused, ""}, {"empty authority and Host", get(":authority", "", "host", "a.test"), nil, nil, refused, ""}, {"empty Host", get(":authority", "-", "host", ""), nil, nil, refused, ""},
		{"authority with userinfo", get(":authority", "u@a.test"), nil, nil, refused, ""}, {"authority with path", get(":authority", "a.test/x"), nil, nil, refused, ""}, {"authority with space", get(":authority", "a test"), nil, nil, refused, ""}, {"authority with CR LF", get(":authority", "a.test\r\nx: y"), nil, nil, refused, ""},
		{"authority list", get(":authority", "a.test,b.test"), nil, nil, "400", ""}, {"authority with escape", get(":authority", "%61.test"), nil, nil, "400", ""}, {"authority with large port", get(":authority", "a.test:65536"), nil, nil, "400", ""}, {"authority that is no IPv6", get(":authority", "[::x]"), nil, nil, "400", ""},
		{"Host differs", get("host", "b.test"), nil, nil, refused, ""}, {"Host differs in port", get("host", "a.test:443"), nil, nil, refused, ""}, {"two Hosts", also("host", "a.test", "host", "a.test"), nil, nil, refused, ""}, {"two authorities", append([]string{":authority", "a.test"}, get()...), nil, nil, refused, ""},
		{"PRI", h2Of("PRI"), nil, nil, "501", ""}, {"PRI *", h2Of("PRI", ":path", "*"), nil, nil, refused, ""}, {"CONNECT", []string{":method", "CONNECT", ":authority", "a.test:443"}, nil, nil, refused, ""}, {"method in lower case", h2Of("get"), nil, nil, "501", ""}, {"unknown method", h2Of("BREW"), nil, nil, "501", ""},
		{"TRACE", h2Of("TRACE"), nil, nil, "501", ""}, {"method with space", h2Of("GET /q"), nil, nil, refused, ""}, {"method with CR LF", h2Of("GET /q HTTP/1.1\r\nx:"), nil, nil, refused, ""}, {"empty method", h2Of(""), nil, nil, refused, ""}, {"no method", get(":method", "-"), nil, nil, refused, ""},
		{"asterisk of GET", get(":path", "*"), nil, nil, refused, ""}, {"asterisk and more", h2Of("OPTIONS", ":path", "*/p"), nil, nil, refused, ""}, {"empty path", get(":path", ""), nil, nil, refused, ""}, {"no path", get(":path", "-"), nil, nil, refused, ""}, {"path without slash", get(":path", "p"), nil, nil, refused, ""},
		{"absolute path", get(":path", "https://a.test/p"), nil, nil, refused, ""}, {"path with space", get(":path", "/p HTTP/1.1"), nil, nil, refused, ""}, {"path with fragment", get(":path", "/p#f"), nil, nil, refused, ""}, {"path with CR LF", get(":path", "/p HTTP/1.1\r\nx: y"), nil, nil, refused, ""},
		{"path with high byte", get(":path", "/\xe4"), nil, nil, refused, ""}, {"path with NUL", get(":path", "/p\x00"), nil, nil, refused, ""}, {"path with backslash", get(":path", "/p\\q"), nil, nil, "400", ""}, {"path with broken escape", get(":path", "/p%"), nil, nil, "400", ""}, {"path with escaped NUL", get(":path", "/p%00"), nil, nil, "400", ""},
		{"dot segment", get(":path", "/p/../q"), nil, nil, "400", ""}, {"two paths", append([]string{":path", "/q"}, get()...), nil, nil, refused, ""}, {"no scheme", get(":scheme", "-"), nil, nil, refused, ""}, {"other scheme", get(":scheme", "ftp"), nil, nil, refused, ""}, {"no route", get(":path", "/q"), nil, nil, "404", ""},
		{"upper-case name", get("X-A", "b"), nil, nil, refused, ""}, {"empty name", get("", "b"), nil, nil, refused, ""}, {"name with space", get("x y", "b"), nil, nil, refused, ""}, {"name with colon", get("x:y", "b"), nil, nil, refused, ""}, {"name with CR LF", get("x: y\r\nz", "b"), nil, nil, refused, ""}, {"name with NUL", get("x\x00", "b"), nil, nil, refused, ""},
		{"value with CR LF", get("x", "a\r\ny: b"), nil, nil, refused, ""}, {"value with LF", get("x", "a\nb"), nil, nil, refused, ""}, {"value with CR", get("x", "a\rb"), nil, nil, refused, ""}, {"value with NUL", get("x", "a\x00b"), nil, nil, refused, ""}, {"value in space", get("x", " a"), nil, nil, refused, ""}, {"control byte in value", get("x", "a\x01"), nil, nil, refused, ""},
		{"pseudo field behind", append([]string{"x", "y"}, get()...), nil, nil, refused, ""}, {"unknown pseudo field", append([]string{":x", "y"}, get()...), nil, nil, refused, ""}, {"pseudo field of a reply", append([]string{":status", "200"}, get()...), nil, nil, refused, ""}, {"extended CONNECT", append([]string{":protocol", "websocket"}, h2Of("CONNECT")...), nil, nil, refused, ""},
		{"trailers", post(), hi, []string{"x-end", "y", "x-more", "z"}, "200", upSend("2\r\nhi\r\n0\r\nx-end: y\r\nx-more: z\r\n\r\n")}, {"trailers without body", post(), []string{""}, []string{"x-end", "y"}, "200", upSend("0\r\nx-end: y\r\n\r\n")},
		{"trailers of a length", post("content-length", "2"), hi, []string{"x-end", "y"}, "200", upPost("")}, {"announced trailers of a length", post("content-length", "2", "trailer", "x-end"), hi, []string{"x-end", "y"}, "200", upPost("")}, // HTTP/1.1 has no place for them
		{"trailers that had to come before", post(), hi, []string{"content-type", "x", "x-forwarded-for", "6.6.6.6", "x_y", "z", "x-end", "y"}, "200", upSend("2\r\nhi\r\n0\r\nx-end: y\r\n\r\n")}, {"authorization in trailers", post(), hi, []string{"authorization", "x"}, "cut " + refused, upSend("")}, {"te in trailers", post(), hi, []string{"te", "trailers"}, "cut " + refused, upSend("")},
		{"length in trailers", post(), hi, []string{"content-length", "2"}, "cut " + refused, upSend("")}, {"Host in trailers", post(), hi, []string{"host", "b.test"}, "cut " + refused, upSend("")}, {"coding in trailers", post(), hi, []string{"transfer-encoding", "chunked"}, "cut " + refused, upSend("")},
		{"pseudo field in trailers", post(), hi, []string{":path", "/q"}, "cut " + refused, upSend("")}, {"upper-case name in trailers", post(), hi, []string{"X", "y"}, "cut " + refused, upSend("")}, {"CR LF in trailers", post(), hi, []string{"x", "y\r\n\r\nGET / HTTP/1.1"}, "cut " + refused, upSend("")},
		{"other expectation", get("expect", "200-ok"), nil, nil, "417", ""}, {"too many fields", append(get(), strings.Split(strings.Repeat("x,y,", 50)+"x,y", ",")...), nil, nil, "431", ""}, {"crumbs without bound", append(get(), strings.Split(strings.Repeat("cookie,a=b,", 50)+"x,y", ",")...), nil, nil, "431", ""},
		{"head too large", get("x", strings.Repeat("x", 4000)), nil, nil, "431", ""}, {"body too large", post("content-length", "1001"), []string{strings.Repeat("x", 1001)}, nil, "413", ""}, {"body too large, without length", post(), []string{strings.Repeat("x", 1001)}, nil, "cut 413", upSend("")},
	}
	return rows
}

// h2raw is a connection on which a test sends the frames that it likes.
type h2raw struct {
	*http2.Framer
	t     testing.TB
	conn  *tls.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
	id    uint32
}

func (g *gateway) h2raw(t testing.TB) *h2raw {
	t.Helper()
	conn, err := tls.Dial("tcp", g.address, g.tlsConfig("h2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.NetConn().Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	c := &h2raw{Framer: http2.NewFramer(conn, conn), t: t, conn: conn}
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.block)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	_ = c.WriteSettings()
	return c
}

func (c *h2raw) headers(end bool, fields []string) {
	c.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: c.id, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: end})
}

// ask opens the next stream and tells how it ends: by a status, or an error.
func (c *h2raw) ask(row *http2Row) string {
	c.id = max(c.id+2, 1) | 1
	c.headers(row.data == nil && row.trailers == nil, row.fields)
	for i, piece := range row.data {
		_ = c.WriteData(c.id, row.trailers == nil && i == len(row.data)-1, []byte(piece))
	}
	if row.trailers != nil {
		c.headers(true, row.trailers)
	}
	status := ""
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return fmt.Sprint("connection: ", err)
		}
		if f.Header().StreamID != c.id && f.Header().Type != http2.FrameGoAway {
			continue
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if s := f.PseudoValue("status"); s[0] != '1' && status == "" {
				status = s
			}
		case *http2.RSTStreamFrame:
			if status == "" {
				status = f.ErrCode.String()
			}
			return status
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) && (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) {
			return status
		}
	}
}

// TestHTTP2Table: what HTTP/2 is translated to, and what is refused.
func TestHTTP2Table(t *testing.T) {
	rows := http2Rows()
	g, u := newRecorded(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			uses, ended := g.upstreamUses(), u.connectionsEnded()
			c := g.h2raw(t)
			want, isCut := strings.CutPrefix(row.want, "cut ")
			if got := c.ask(&row); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			outcome, named := zone.RequestHTTP2Error, want
			for status, o := range outcomeOfStatus {
				if fmt.Sprint(status) == named {
					outcome = o
				}
			}
			if rec := g.records(1)[0]; rec.Outcome != outcome {
				t.Errorf("record: %d %s, want %s", rec.Status, rec.Outcome, outcome)
			}
			if isCut && g.upstreamUses() > uses {
				eventually(t, "the upstream's connection ends", func() bool { return u.connectionsEnded() > ended })
			}
			raw, joined, whole := u.take()
			switch {
			case isCut && (whole > 0 || raw != "" && !strings.HasPrefix(raw, row.up)):
				t.Errorf("upstream got %d whole requests, %q", whole, raw)
			case isCut:
			case joined != row.up:
				t.Errorf("upstream got\n%q, want\n%q", raw, row.up)
			case row.up == "" && (g.upstreamUses() != uses || raw != ""):
				t.Errorf("an upstream connection was taken; it got %q", raw)
			}
			probe := http2Row{fields: h2Of("GET", ":path", "/p?probe")}
			if got := c.ask(&probe); got != "200" {
				t.Errorf("the next request: %s", got)
			}
			g.records(1)
			if raw, _, _ := u.take(); raw != upGet("/p?probe", "") {
				t.Errorf("of the next request upstream got %q", raw)
			}
		})
	}
	t.Logf("%d rows", len(rows))
}

// TestHTTP2ReplyTable: what a client of HTTP/2 gets of an upstream's reply, frame by frame.
func TestHTTP2ReplyTable(t *testing.T) {
	const hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n"
	chunked := func(tail string) string { return chunkedOf("2\r\nok\r\n0\r\n" + tail + "\r\n") }
	for _, row := range []struct{ name, reply, want string }{
		{"length", okReply, "200 content-length=2 / ok end"},
		{"chunked", chunked(""), "200 / ok / end"},
		{"no body", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 content-length=0 end"},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", "204 end"},
		{"304", "HTTP/1.1 304 Not Modified\r\nEtag: x\r\nContent-Length: 5\r\n\r\n", "304 etag=x content-length=5 end"},
		{"fields", okOf("X-A: b\r\nConnection: x-c\r\nX-C: d\r\nKeep-Alive: 5\r\nSet-Cookie: e\r\nSet-Cookie: f\r\n"), "200 x-a=b set-cookie=e set-cookie=f content-length=2 / ok end"},
		{"early hint", hint + okReply, "103 link=</a> / 200 content-length=2 / ok end"},
		{"two early hints", hint + hint + chunked(""), "103 link=</a> / 103 link=</a> / 200 / ok / end"},
		{"other interim reply", "HTTP/1.1 142 x\r\n\r\n" + okReply, "142 / 200 content-length=2 / ok end"},
		{"100", "HTTP/1.1 100 Continue\r\n\r\n" + okReply, "200 content-length=2 / ok end"}, // the gateway's to say
		{"trailers", chunked("X-Sum: y\r\nX-More: z\r\n"), "200 / ok / x-sum=y x-more=z end"},
		{"announced trailers", strings.Replace(chunked("X-Sum: y\r\n"), "\r\n", "\r\nTrailer: X-Sum\r\n", 1), "200 trailer=X-Sum / ok / x-sum=y end"},
		{"trailers that had to come before", chunked("Set-Cookie: a=b\r\nCache-Control: no-store\r\nTE: x\r\nX-Sum: y\r\n"), "200 / ok / x-sum=y end"},
		{"trailers of no body", chunkedOf("0\r\nX-Sum: y\r\n\r\n"), "200 / x-sum=y end"},
		{"hint and trailers", hint + chunked("X-Sum: y\r\n"), "103 link=</a> / 200 / ok / x-sum=y end"},
		{"length in trailers", chunked("Content-Length: 2\r\n"), "200 / ok / reset INTERNAL_ERROR"},
		{"hint that is not valid", "HTTP/1.1 103 x\r\nX: a\x00\r\n\r\n" + okReply, "502"},
	} {
		t.Run(row.name, func(t *testing.T) {
			g, u := newRecorded(t)
			u.replyWith(func(*http.Request) string { return row.reply })
			c := g.h2raw(t)
			c.id = 1
			c.headers(true, h2Of("GET"))
			if got := c.frames(); got != row.want && (len(row.want) > 3 || !strings.HasPrefix(got, row.want)) {
				t.Errorf("got %s\nwant %s", got, row.want)
			}
		})
	}
}

// frames tells all of the stream's frames until its end.
func (c *h2raw) frames() string {
	var b strings.Builder
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return b.String() + err.Error()
		}
		if f.Header().StreamID != c.id {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(" / ")
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			var texts []string
			for _, hf := range f.Fields {
				switch hf.Name {
				case ":status":
					texts = append(texts, hf.Value)
				case "x-request-id", "date":
				default:
					texts = append(texts, hf.Name+"="+hf.Value)
				}
			}
			b.WriteString(strings.Join(texts, " "))
		case *http2.DataFrame:
			b.Write(f.Data())
		case *http2.RSTStreamFrame:
			return b.String() + "reset " + f.ErrCode.String()
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) && (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) {
			text := b.String()
			if !strings.HasSuffix(text, " ") {
				text += " "
			}
			return text + "end"
		}
	}
}
