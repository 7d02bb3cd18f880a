// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// recorder is an upstream that keeps what it receives, byte for byte.
type recorder struct {
	mu     sync.Mutex
	raw    []byte // all bytes
	joined []byte // whole requests, each chunked body as one chunk
	whole  int    // requests
	ended  int    // connections
	reply  func(r *http.Request) string
}

// closing behind a reply ends the connection.
const closing = "<close>"

func (u *recorder) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.raw = append(u.raw, p...)
	return len(p), nil
}

func (u *recorder) serve(_ int, c net.Conn, _ *bufio.Reader) {
	defer func() {
		u.mu.Lock()
		u.ended++
		u.mu.Unlock()
	}()
	var own bytes.Buffer
	r := bufio.NewReader(io.TeeReader(c, io.MultiWriter(u, &own)))
	for {
		own.Reset()
		req, body, err := readRequest(r)
		if err != nil {
			return
		}
		head, _, _ := bytes.Cut(own.Bytes(), []byte("\r\n\r\n"))
		u.mu.Lock()
		u.whole++
		u.joined = append(append(u.joined, head...), "\r\n\r\n"...)
		if len(req.TransferEncoding) > 0 {
			if body != "" {
				u.joined = http1.AppendChunk(u.joined, []byte(body))
			}
			u.joined = http1.AppendLastChunk(u.joined, trailersOf(own.Bytes()))
		} else {
			u.joined = append(u.joined, body...)
		}
		reply, closes := strings.CutSuffix(u.reply(req), closing)
		u.mu.Unlock()
		if _, err := io.WriteString(c, reply); err != nil || closes {
			return
		}
	}
}

// trailersOf are those behind the last chunk of a request that was read.
func trailersOf(request []byte) (fields []http1.Field) {
	_, tail, _ := bytes.Cut(request, []byte("\r\n0\r\n"))
	for line := range bytes.SplitSeq(tail, []byte("\r\n")) {
		if name, value, ok := bytes.Cut(line, []byte(": ")); ok {
			fields = append(fields, http1.Field{Name: name, Value: value})
		}
	}
	return fields
}

var (
	anID   = regexp.MustCompile(`(X-Request-Id|x-request-id): [0-9a-f]{32}\r\n`)
	aTrace = regexp.MustCompile(`Traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\r\n`)
	aDate  = regexp.MustCompile(`Date: [A-Z][^\r]* GMT\r\n`)
)

// plain puts words for what differs from one exchange to the next.
func plain(b []byte) string {
	b = anID.ReplaceAll(b, []byte("$1: ID\r\n"))
	b = aTrace.ReplaceAll(b, []byte("Traceparent: TRACE\r\n"))
	return string(aDate.ReplaceAll(b, []byte("Date: DATE\r\n")))
}

// take gives what was received since the last call.
func (u *recorder) take() (raw, joined string, whole int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	raw, joined, whole = plain(u.raw), plain(u.joined), u.whole
	u.raw, u.joined, u.whole = nil, nil, 0
	return raw, joined, whole
}

func (u *recorder) connectionsEnded() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ended
}

func (u *recorder) replyWith(f func(*http.Request) string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reply = f
}

func sayOK(r *http.Request) string {
	if r.Method == "HEAD" {
		return strings.TrimSuffix(okReply, "ok")
	}
	return okReply
}

// newRecorded is a gateway with narrow limits before a recorder.
func newRecorded(t testing.TB) (*gateway, *recorder) {
	u := &recorder{reply: sayOK}
	g := newStoppedGateway(t, []string{rawUpstream(t, u.serve)})
	one := g.snapshot.Routes[0]
	g.snapshot.Routes = nil
	for _, path := range []string{`/p.*|//p.*`, "/ws"} {
		r := one
		r.Name, r.PathPrefix, r.PathRegex, r.Slot = path, "", path, g.zone.RouteSlot(path)
		if path == "/ws" {
			r.WebSocket = time.Minute
		}
		g.snapshot.Routes = append(g.snapshot.Routes, r)
	}
	star := policy.Route{Name: "star", PathPrefix: "/", Methods: []string{"OPTIONS"}, Slot: g.zone.RouteSlot("star")}
	g.snapshot.Routes = append(g.snapshot.Routes, star)
	g.snapshot.Sizes.LineBytes, g.snapshot.Sizes.HeaderBytes, g.snapshot.Sizes.HeaderFields, g.snapshot.Sizes.BodyBytes = 1000, 4000, 50, 1000
	g.start()
	return g, u
}

// upstreamUses is how often an upstream connection was taken.
func (g *gateway) upstreamUses() uint64 {
	return g.slab.Load(zone.UpstreamConnectionsOpened) + g.slab.Load(zone.UpstreamConnectionsReused)
}

var outcomeOfStatus = map[int]zone.RequestOutcome{
	200: zone.RequestOK, 400: zone.RequestBad, 404: zone.RequestNoRoute, 413: zone.RequestBodyTooLarge, 414: zone.RequestURITooLong, 417: zone.RequestBad,
	431: zone.RequestHeaderTooLarge, 501: zone.RequestMethodRefused, 505: zone.RequestBad,
}

// TestHTTP1Table: each request of the table whole, and again in pieces of a few bytes.
func TestHTTP1Table(t *testing.T) {
	rows := http1Rows()
	if len(rows) < 200 {
		t.Errorf("the table has shrunk to %d rows", len(rows))
	}
	g, u := newRecorded(t)
	for _, pieces := range []bool{false, true} {
		for _, row := range rows {
			if pieces && strings.Contains(row.send, "xpect:") {
				continue // whether there is a 100 depends on when the body comes
			}
			t.Run(row.name, func(t *testing.T) { runHTTP1Row(t, g, u, row, pieces) })
		}
	}
	t.Logf("%d rows, whole and in pieces", len(rows))
}

func runHTTP1Row(t *testing.T, g *gateway, u *recorder, row http1Row, pieces bool) {
	const probe = "/p?probe"
	uses, ended := g.upstreamUses(), u.connectionsEnded()
	c := g.raw()
	c.t = t
	sendInPieces(c, row.send, pieces)
	want := strings.Fields(row.want)
	statuses, open := want[:len(want)-1], want[len(want)-1] == "open"
	method, _, _ := strings.Cut(row.send, " ")
	for i, text := range statuses {
		status, _ := strconv.Atoi(text)
		resp, body := c.reply(method)
		if resp.StatusCode != status || status == 200 && body != "ok" && method != "HEAD" {
			t.Errorf("reply %d: %d %q, want %d", i, resp.StatusCode, body, status)
		}
		if last := i == len(statuses)-1; resp.Close != (last && !open) {
			t.Errorf("reply %d says close: %v", i, resp.Close)
		}
	}
	recs := g.records(len(statuses))
	for i, text := range statuses {
		if status, _ := strconv.Atoi(text); recs[i].Status != status || recs[i].Outcome != outcomeOfStatus[status] {
			t.Errorf("record %d: %d %s, want %s", i, recs[i].Status, recs[i].Outcome, text)
		}
	}
	up, isCut := strings.CutPrefix(row.up, "cut ")
	if isCut {
		eventually(t, "the upstream's connection ends", func() bool { return u.connectionsEnded() > ended })
	}
	raw, joined, whole := u.take()
	switch {
	case isCut && (whole > 0 || !strings.HasPrefix(raw, up)):
		t.Errorf("upstream got %d whole requests, %q", whole, raw)
	case isCut:
	case pieces && joined != up, !pieces && raw != up:
		t.Errorf("upstream got\n%q, want\n%q", raw, up)
	case up == "" && g.upstreamUses() != uses:
		t.Error("an upstream connection was taken")
	}
	if !open {
		c.closed()
		return
	}
	c.send(getOf(probe))
	if resp, _ := c.reply("GET"); resp.StatusCode != 200 {
		t.Errorf("the next request: %d", resp.StatusCode)
	}
	g.records(1)
	if raw, _, _ := u.take(); raw != upGet(probe, "") {
		t.Errorf("of the next request upstream got %q", raw)
	}
	c.Close()
}

// sendInPieces does not mind an error: the gateway may refuse before the end.
func sendInPieces(c *raw, s string, pieces bool) {
	n := len(s)
	if pieces {
		n = 1 + len(s)/40
	}
	for len(s) > 0 {
		n = min(n, len(s))
		if _, err := io.WriteString(c.Conn, s[:n]); err != nil {
			return
		}
		s = s[n:]
	}
}
