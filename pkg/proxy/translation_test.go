// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// translated is what the upstream gets of a request in HTTP/2 that has one field more than it
// must, by the rules as they are written down.
func translated(method, path, authority, name, value, body string) string {
	fields := ""
	switch http1.KindOf([]byte(name)) {
	case http1.Other, http1.UserAgent, http1.Referer:
		if !strings.Contains(name, "_") {
			fields = name + ": " + value + "\r\n"
		}
	}
	framing := ""
	switch {
	case name == "content-length" && value != "" && strings.Trim(value, "0") != "":
		framing = fmt.Sprintf("Content-Length: %d\r\n", len(body))
	case body != "" && name != "content-length":
		framing, body = "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	case method == "POST" || method == "PUT" || method == "PATCH":
		framing = "Content-Length: 0\r\n"
	}
	return upTo(authority, method+" "+path, fields, framing, body)
}

// FuzzTranslation: whatever fields a stream of HTTP/2 has, the upstream gets one request of
// HTTP/1.1 that says just that, or none.
func FuzzTranslation(f *testing.F) {
	f.Add("GET", "/p", "a.test", "x", "y", "")
	f.Add("POST", "/p?q", "a.test:1", "content-length", "2", "hi")
	f.Add("POST", "/p", "[::1]", "content-length", "3", "hi")
	f.Add("PUT", "/p", "A.", "x_y", "z", "hi")
	f.Add("GET", "/p HTTP/1.1\r\nx: y", "a\r\nb: c", "x\r\ny", "z\r\n\r\nGET / HTTP/1.1\r\n", "")
	f.Add("OPTIONS", "*", "a.test", "te", "trailers", "")
	f.Add("DELETE", "/p#", "a@b", "transfer-encoding", "chunked", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
	g, u := newRecorded(f)
	f.Fuzz(func(t *testing.T, method, path, authority, name, value, body string) {
		switch name {
		case "host", "cookie", "expect", "te", "origin", "connection", "upgrade", "trailer", "traceparent", "tracestate":
			return // rows of the table
		}
		row := http2Row{fields: []string{":method", method, ":scheme", "https", ":authority", authority, ":path", path, name, value}}
		if body != "" {
			row.data = []string{body}
		}
		c := g.h2raw(t)
		got := c.ask(&row)
		_ = c.conn.NetConn().Close()
		g.slab.Access.Drain(func(*zone.AccessRecord) {})
		raw, joined, whole := u.take()
		switch want := translated(method, path, authority, name, value, body); {
		case got != "200" && whole > 0:
			t.Errorf("ends with %s, but upstream got %q", got, raw)
		case got == "200" && (whole != 1 || joined != want):
			t.Errorf("upstream got %d requests, %q, want %q", whole, raw, want)
		}
	})
}
