// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/zone"
)

// replyRow is a reply of the upstream's, valid or broken in one way, and what the client gets
// of it, byte for byte; or with a body that breaks off behind "cut ". used says that the
// upstream's connection may serve another request.
type replyRow struct {
	name, request, reply, want string
	outcome                    zone.RequestOutcome
	used                       bool
}

// okOf is the valid reply with more fields.
func okOf(fields string) string {
	return "HTTP/1.1 200 OK\r\n" + fields + "Content-Length: 2\r\n\r\nok"
}

func down(status, fields, framing, body string) string {
	return "HTTP/1.1 " + status + "\r\n" + fields + "X-Request-Id: ID\r\n" + framing + "\r\n" + body
}

func downOK(fields string) string { return down("200 OK", fields, "Content-Length: 2\r\n", "ok") }

func chunkedOf(body string) string {
	return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
}

// invalid is the gateway's own reply.
var invalid = down("502 Bad Gateway", "Date: DATE\r\nContent-Type: text/plain; charset=utf-8\r\n", "Content-Length: 38\r\n", "502 the upstream's reply is malformed\n")

func replyRows() []replyRow {
	const ok, bad, reset = zone.RequestOK, zone.RequestUpstreamInvalid, zone.RequestUpstreamReset
	head := bend(aGet, "GET", "HEAD")
	old := bend(aGet, "1.1", "1.0")
	kept := bend(getWith("Connection: keep-alive"), "1.1", "1.0")
	taking := getWith("TE: trailers")
	two := "2\r\nok\r\n0\r\n\r\n"
	zstd := "\x28\xb5\x2f\xfd\x04\x00\x11\x00\x00hi\x0a\x00\xff"
	rows := []replyRow{
		{"length", aGet, okReply, downOK(""), ok, true}, {"chunked", aGet, chunkedOf(two), down("200 OK", "", "Transfer-Encoding: chunked\r\n", two), ok, true},
		{"two chunks", aGet, chunkedOf("1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n"), down("200 OK", "", "Transfer-Encoding: chunked\r\n", "1\r\no\r\n1\r\nk\r\n0\r\n\r\n"), ok, true},
		{"until close", aGet, "HTTP/1.1 200 OK\r\n\r\nok" + closing, down("200 OK", "", "Transfer-Encoding: chunked\r\n", two), ok, false}, {"no body", aGet, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", down("200 OK", "", "Content-Length: 0\r\n", ""), ok, true},
		{"HTTP/1.0", aGet, strings.Replace(okReply, "1.1", "1.0", 1), downOK(""), ok, false}, {"HTTP/1.0 keep-alive", aGet, strings.Replace(okOf("Connection: Keep-Alive\r\n"), "1.1", "1.0", 1), downOK(""), ok, true}, {"close", aGet, okOf("Connection: close\r\n"), downOK(""), ok, false},
		{"bytes behind it", aGet, okReply + okReply, downOK(""), ok, false}, {"to HTTP/1.0", old, okReply, down("200 OK", "", "Content-Length: 2\r\nConnection: close\r\n", "ok"), ok, true}, {"chunked to HTTP/1.0", old, chunkedOf(two), down("200 OK", "", "Connection: close\r\n", "ok"), ok, true},
		{"until close to HTTP/1.0", old, "HTTP/1.1 200 OK\r\n\r\nok" + closing, down("200 OK", "", "Connection: close\r\n", "ok"), ok, false}, {"to HTTP/1.0 kept alive", kept, okReply, down("200 OK", "", "Content-Length: 2\r\nConnection: keep-alive\r\n", "ok"), ok, true},
		{"chunked to HTTP/1.0 kept alive", kept, chunkedOf(two), down("200 OK", "", "Connection: close\r\n", "ok"), ok, true},
		{"HEAD", head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n", down("200 OK", "Content-Length: 5\r\nX: y\r\n", "", ""), ok, true}, {"HEAD chunked", head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", down("200 OK", "", "", ""), ok, true}, {"HEAD without length", head, "HTTP/1.1 200 OK\r\n\r\n", down("200 OK", "", "", ""), ok, true},
		{"HEAD with a body", head, okReply, down("200 OK", "Content-Length: 2\r\n", "", ""), ok, false}, {"204", aGet, "HTTP/1.1 204 No Content\r\n\r\n", down("204 No Content", "", "", ""), ok, true}, {"204 with length", aGet, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", down("204 No Content", "", "", ""), ok, true},
		{"204 chunked", aGet, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", down("204 No Content", "", "", ""), ok, true}, {"304", aGet, "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n", down("304 Not Modified", "Etag: \"x\"\r\n", "", ""), ok, true},
		{"304 with length", aGet, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", down("304 Not Modified", "Content-Length: 5\r\n", "", ""), ok, true}, {"404", aGet, strings.Replace(okReply, "200 OK", "404 Not Found", 1), down("404 Not Found", "", "Content-Length: 2\r\n", "ok"), ok, true},
		{"599", aGet, strings.Replace(okReply, "200 OK", "599 Odd", 1), down("599 Odd", "", "Content-Length: 2\r\n", "ok"), ok, true}, {"no reason", aGet, strings.Replace(okReply, " OK", " ", 1), downOK(""), ok, true}, {"no space for a reason", aGet, strings.Replace(okReply, " OK", "", 1), downOK(""), ok, true}, {"other reason", aGet, strings.Replace(okReply, "OK", "All's \xe4 well", 1), down("200 All's \xe4 well", "", "Content-Length: 2\r\n", "ok"), ok, true},
		{"fields", aGet, okOf("Server: x\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\nX_Y: z\r\nEmpty:\r\n"), downOK("Server: x\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\nX_Y: z\r\nEmpty: \r\n"), ok, true},
		{"hop by hop", aGet, okOf("Connection: x-named, keep-alive\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Connection: x\r\nTE: x\r\nX: y\r\n"), downOK("X: y\r\n"), ok, true}, {"its own id", aGet, okOf("X-Request-Id: x\r\n"), downOK(""), ok, true},
		{"gzip", aGet, okOf("Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n"), downOK("Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n"), ok, true},
		{"zstd", aGet, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nContent-Length: %d\r\n\r\n%s", len(zstd), zstd), down("200 OK", "Content-Encoding: zstd\r\n", fmt.Sprintf("Content-Length: %d\r\n", len(zstd)), zstd), ok, true},
		{"zstd chunked", aGet, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(zstd), zstd), down("200 OK", "Content-Encoding: zstd\r\n", "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(zstd), zstd)), ok, true},
		{"ranges", aGet, strings.Replace(okOf("Content-Range: bytes 0-1/9\r\n"), "200 OK", "206 Partial Content", 1), down("206 Partial Content", "Content-Range: bytes 0-1/9\r\n", "Content-Length: 2\r\n", "ok"), ok, true},
		{"early hint", aGet, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nKeep-Alive: 5\r\n\r\n" + okReply, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + downOK(""), ok, true},
		{"two interim replies", aGet, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 x\r\nLink: </a>\r\n\r\n" + okReply, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + downOK(""), ok, true},
		{"100 unasked", aGet, "HTTP/1.1 100 Continue\r\n\r\n" + okReply, downOK(""), ok, true}, {"hint to HTTP/1.0", old, "HTTP/1.1 103 x\r\n\r\n" + okReply, down("200 OK", "", "Content-Length: 2\r\nConnection: close\r\n", "ok"), ok, true},
		{"trailers", taking, chunkedOf("2\r\nok\r\n0\r\nX-Sum: y\r\nX-More: z\r\n\r\n"), down("200 OK", "", "Transfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\nX-Sum: y\r\nX-More: z\r\n\r\n"), ok, true},
		{"trailers that nobody asked for", aGet, chunkedOf("2\r\nok\r\n0\r\nX-Sum: y\r\n\r\n"), down("200 OK", "", "Transfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\nX-Sum: y\r\n\r\n"), ok, true},
		{"announced trailers", taking, strings.Replace(chunkedOf("2\r\nok\r\n0\r\nX-Sum: y\r\n\r\n"), "\r\n", "\r\nTrailer: X-Sum\r\n", 1), down("200 OK", "Trailer: X-Sum\r\n", "Transfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\nX-Sum: y\r\n\r\n"), ok, true},
		{"trailers that had to come before", taking, chunkedOf("2\r\nok\r\n0\r\nSet-Cookie: a=b\r\nTE: x\r\nX-Sum: y\r\n\r\n"), down("200 OK", "", "Transfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\nX-Sum: y\r\n\r\n"), ok, true},

		{"shorter than its length", aGet, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok" + closing, "cut " + down("200 OK", "", "Content-Length: 5\r\n", "ok"), reset, false}, {"chunked without end", aGet, chunkedOf("2\r\nok\r\n") + closing, "cut " + down("200 OK", "", "Transfer-Encoding: chunked\r\n", "2\r\nok\r\n"), reset, false},
		{"chunk of letters", aGet, chunkedOf("2\r\nok\r\nx\r\n"), "cut " + down("200 OK", "", "Transfer-Encoding: chunked\r\n", "2\r\nok\r\n"), bad, false}, {"LF ends chunk", aGet, chunkedOf("2\nok\r\n0\r\n\r\n"), "cut " + down("200 OK", "", "Transfer-Encoding: chunked\r\n", ""), bad, false},
		{"length in trailer", aGet, chunkedOf("2\r\nok\r\n0\r\nContent-Length: 2\r\n\r\n"), "cut " + down("200 OK", "", "Transfer-Encoding: chunked\r\n", "2\r\nok\r\n"), bad, false},
	}
	for _, broken := range []struct{ name, reply string }{
		{"both", okOf("Transfer-Encoding: chunked\r\n")}, {"length twice", okOf("Content-Length: 2\r\n")}, {"two lengths", okOf("content-length: 3\r\n")}, {"length list", strings.Replace(okReply, " 2", " 2, 2", 1)}, {"negative length", strings.Replace(okReply, " 2", " -2", 1)},
		{"length with plus", strings.Replace(okReply, " 2", " +2", 1)}, {"empty length", strings.Replace(okReply, " 2", "", 1)}, {"length overflows", strings.Replace(okReply, " 2", " 18446744073709551618", 1)}, {"gzip coding", chunkedGzip}, {"coding twice", strings.Replace(chunkedOf(two), "chunked", "chunked\r\nTransfer-Encoding: chunked", 1)},
		{"coding list", strings.Replace(chunkedOf(two), "chunked", "chunked, chunked", 1)}, {"chunked in HTTP/1.0", strings.Replace(chunkedOf(two), "1.1", "1.0", 1)}, {"all LF", strings.ReplaceAll(okReply, "\r", "") + "\r\n\r\n"}, {"LF in field", okOf("X: a\nY: b\r\n")}, {"CR in value", okOf("X: a\rb\r\n")}, {"NUL in value", okOf("X: a\x00b\r\n")},
		{"folded", okOf("X: a\r\n b\r\n")}, {"space before colon", okOf("X : a\r\n")}, {"no colon", okOf("X\r\n")}, {"no name", okOf(": x\r\n")}, {"space in name", okOf("X Y: a\r\n")}, {"Connection names framing", okOf("Connection: content-length\r\n")}, {"Trailer names framing", okOf("Trailer: content-length\r\n")},
		{"version 2.0", strings.Replace(okReply, "1.1", "2.0", 1)}, {"version 1.2", strings.Replace(okReply, "1.1", "1.2", 1)}, {"lower case", strings.Replace(okReply, "HTTP", "http", 1)}, {"status 99", strings.Replace(okReply, "200", "099", 1)}, {"status 600", strings.Replace(okReply, "200", "600", 1)},
		{"status of two digits", strings.Replace(okReply, "200", "20", 1)}, {"status of four", strings.Replace(okReply, "200", "2000", 1)}, {"status of letters", strings.Replace(okReply, "200", "2o0", 1)}, {"two spaces", strings.Replace(okReply, " 200", "  200", 1)}, {"NUL in reason", strings.Replace(okReply, "OK", "\x00", 1)},
		{"space before", " " + okReply}, {"empty line before", "\r\n" + okReply}, {"mail", "220 mail.test ESMTP\r\n\r\n"}, {"101 that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"}, {"too many fields", okOf(strings.Repeat("X: y\r\n", 256))}, {"head too large", okOf("X: " + strings.Repeat("x", 64<<10) + "\r\n")},
	} {
		rows = append(rows, replyRow{broken.name, aGet, broken.reply, invalid, bad, false})
	}
	return rows
}

const chunkedGzip = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"

// TestReplyTable: what becomes of the upstream's reply.
func TestReplyTable(t *testing.T) {
	g, u := newRecorded(t)
	rows := replyRows()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			u.replyWith(func(*http.Request) string { return row.reply })
			c := g.raw()
			c.t = t
			c.send(row.request)
			var got bytes.Buffer
			c.r = bufio.NewReader(io.TeeReader(c.Conn, &got))
			method, _, _ := strings.Cut(row.request, " ")
			resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
			for err == nil && resp.StatusCode < 200 {
				resp, err = http.ReadResponse(c.r, &http.Request{Method: method})
			}
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			want, isCut := strings.CutPrefix(row.want, "cut ")
			if text := plain(got.Bytes()); text != want || (err != nil) != isCut {
				t.Errorf("client got %q (%v), want %q", text, err, row.want)
			}
			if rec := g.records(1)[0]; rec.Outcome != row.outcome {
				t.Errorf("outcome %s, want %s", rec.Outcome, row.outcome)
			}
			if err != nil || resp.Close {
				c.closed()
			}
			// The next request takes the same connection, or it must not.
			u.replyWith(sayOK)
			reused := g.slab.Load(zone.UpstreamConnectionsReused)
			c = g.raw()
			c.t = t
			c.send(aGet)
			if resp, body := c.reply("GET"); resp.StatusCode != 200 || body != "ok" {
				t.Errorf("the next request: %d %q", resp.StatusCode, body)
			}
			g.records(1)
			if now := g.slab.Load(zone.UpstreamConnectionsReused); (now > reused) != row.used {
				t.Errorf("the upstream's connection was used again: %v", now > reused)
			}
		})
	}
	t.Logf("%d rows", len(rows))
}
