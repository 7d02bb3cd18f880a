// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

func bothProtocols(t *testing.T, f func(t *testing.T, h2 bool)) {
	t.Run("h1", func(t *testing.T) { f(t, false) })
	t.Run("h2", func(t *testing.T) { f(t, true) })
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	_, _ = r.Read(b)
	return b
}

// echo sends the body back: as it comes with "stream", else when it has it all; with
// a length unless "chunked" is asked for.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("stream") {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		_, _ = io.Copy(w, r.Body)
		return
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if !r.URL.Query().Has("chunked") {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	} else {
		w.(http.Flusher).Flush()
	}
	w.Header().Set("X-Sent-Length", fmt.Sprint(r.ContentLength))
	_, _ = w.Write(b)
}

// Bodies of all sizes arrive byte for byte, both ways, with a length and chunked.
func TestBodies(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
		client := g.client(h2)
		n := 0
		for _, size := range []int{0, 1, 100, 4096, 16383, 16384, 16385, 32768, 65536, 100_001, 1 << 20, 10 << 20} {
			for _, query := range []string{"", "?chunked", "?stream"} {
				for _, sendChunked := range []bool{false, true} {
					want := content(size)
					var body io.Reader = bytes.NewReader(want)
					if sendChunked {
						body = struct{ io.Reader }{body}
					}
					resp, err := client.Post(g.url("/x"+query), "application/octet-stream", body)
					if err != nil {
						t.Fatalf("%d%s chunked=%v: %v", size, query, sendChunked, err)
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || sha256.Sum256(got) != sha256.Sum256(want) || resp.StatusCode != 200 {
						t.Fatalf("%d%s chunked=%v: status %d, %d bytes, %v", size, query, sendChunked, resp.StatusCode, len(got), err)
					}
					n++
				}
			}
		}
		recs := g.records(n)
		for _, r := range recs {
			if r.Outcome != zone.RequestOK || r.Status != 200 || string(r.Method) != "POST" {
				t.Errorf("record %+v", r)
			}
		}
		if got := g.outcomes(); got != uint64(n) {
			t.Errorf("%d outcomes, want %d", got, n)
		}
	})
}

func TestKeepAliveReusesUpstreamConnections(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
		client := g.client(h2)
		for range 50 {
			resp, err := client.Get(g.url("/"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		g.records(50)
		if opened, reused := g.slab.Load(zone.UpstreamConnectionsOpened), g.slab.Load(zone.UpstreamConnectionsReused); opened > 5 || opened+reused != 50 {
			// A stream may begin before the one before it has given its connection back.
			t.Errorf("%d opened, %d reused", opened, reused)
		}
		if n := g.slab.Load(zone.ConnectionsAccepted); n != 1 {
			t.Errorf("%d client connections", n)
		}
	})
}

// What the upstream receives, and what the client gets back, field by field.
func TestFields(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		seen := make(chan *http.Request, 1)
		g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			seen <- r
			w.Header().Set("X-Request-Id", "the upstream's")
			w.Header().Set("Keep-Alive", "timeout=5")
			w.Header().Set("X-Own", "1")
			w.WriteHeader(201)
			_, _ = io.WriteString(w, "made")
		})}, nil)
		req, _ := http.NewRequest("GET", g.url("/path?q=1%20x&a[]=2"), nil)
		req.Host = "API.test:8443"
		for k, v := range map[string]string{
			"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Host": "evil", "X-Forwarded-Anything": "x", "Forwarded": "for=6.6.6.6",
			"X-Real-Ip": "6.6.6.6", "X-Request-Id": "forged", "X_Under": "x", "User-Agent": "tester", "Referer": "r",
			"Cookie": "a=b; c=d", "Authorization": "Bearer x",
		} {
			req.Header.Set(k, v)
		}
		if !h2 {
			req.Header.Set("Connection", "x-named")
			req.Header.Set("X-Named", "must go")
			req.Header.Set("Upgrade", "h2c")
			req.Header.Set("Te", "deflate")
		}
		resp, err := g.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		r := <-seen
		rec := g.records(1)[0]
		id := r.Header.Get("X-Request-Id")
		trace := r.Header.Get("Traceparent")
		if parts := strings.Split(trace, "-"); len(parts) != 4 || parts[0] != "00" || parts[1] != id || !validParent([]byte(trace)) {
			t.Errorf("upstream got traceparent %q in a request of id %s", trace, id)
		}
		want := http.Header{
			"Traceparent":     {trace},
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"API.test:8443"},
			"X-Request-Id": {id}, "User-Agent": {"tester"}, "Referer": {"r"}, "Cookie": {"a=b; c=d"}, "Authorization": {"Bearer x"},
		}
		for k, v := range r.Header {
			if fmt.Sprint(want[k]) != fmt.Sprint(v) && k != "Accept-Encoding" {
				t.Errorf("upstream got %s: %q, want %q", k, v, want[k])
			}
		}
		for k := range want {
			if r.Header[k] == nil {
				t.Errorf("upstream lacks %s", k)
			}
		}
		if r.Host != "API.test:8443" || r.RequestURI != "/path?q=1%20x&a[]=2" {
			t.Errorf("upstream got host %q, target %q", r.Host, r.RequestURI)
		}
		if resp.StatusCode != 201 || string(body) != "made" || resp.Header.Get("X-Own") != "1" || resp.Header.Get("Keep-Alive") != "" {
			t.Errorf("client got %v %q", resp, body)
		}
		if got := resp.Header.Values("X-Request-Id"); len(got) != 1 || got[0] != id || len(id) != 32 || string(rec.ID) != id {
			t.Errorf("ids: upstream %q, client %q, record %q", id, got, rec.ID)
		}
		if rec.Client.Addr().String() != "127.0.0.1" || string(rec.Host) != "API.test:8443" || string(rec.UserAgent) != "tester" ||
			string(rec.Referer) != "r" || rec.TLSVersion != 0x304 || rec.Status != 201 || rec.UpstreamDuration <= 0 || rec.Duration < rec.UpstreamDuration {
			t.Errorf("record %+v", rec)
		}
		if major := map[bool]uint8{false: 1, true: 2}[h2]; rec.Major != major {
			t.Errorf("protocol %d", rec.Major)
		}
	})
}

func TestStatusWithoutBody(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/204":
				w.WriteHeader(204)
			case "/304":
				w.Header().Set("Etag", `"x"`)
				w.WriteHeader(304)
			default:
				w.Header().Set("Content-Length", "5")
				_, _ = io.WriteString(w, "hello")
			}
		})}, nil)
		client := g.client(h2)
		for _, row := range []struct {
			method, path string
			status       int
			length       int64
		}{
			{"GET", "/204", 204, 0}, {"GET", "/304", 304, 0}, {"HEAD", "/", 200, 5}, {"GET", "/", 200, 5}, {"HEAD", "/204", 204, 0},
			{"OPTIONS", "/", 200, 5}, {"DELETE", "/", 200, 5}, {"PATCH", "/", 200, 5},
		} {
			req, _ := http.NewRequest(row.method, g.url(row.path), nil)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s %s: %v", row.method, row.path, err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != row.status || resp.ContentLength > 0 && resp.ContentLength != row.length {
				t.Errorf("%s %s: %d, length %d, %q", row.method, row.path, resp.StatusCode, resp.ContentLength, b)
			}
		}
		g.records(8)
		if n := g.slab.Load(zone.ConnectionsAccepted); n != 1 {
			t.Errorf("%d client connections: a reply without a body ended one", n)
		}
	})
}

func TestPipelining(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.URL.Path, b)
	})}, nil)
	c := g.raw()
	var all strings.Builder
	for i := range 30 {
		switch i % 3 {
		case 0:
			fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
		case 1:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", i)
		case 2:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", i)
		}
	}
	c.send(all.String())
	for i := range 30 {
		want := fmt.Sprintf("/%d ", i)
		if i%3 != 0 {
			want += "body"
		}
		if resp, body := c.reply("GET"); resp.StatusCode != 200 || body != want {
			t.Fatalf("reply %d: %d %q, want %q", i, resp.StatusCode, body, want)
		}
	}
	g.records(30)
}

// The last reply arrives whole though the client has sent more than will be answered: the
// connection must not end by a reset.
func TestLastReplyOfPipeline(t *testing.T) {
	want := content(1 << 20)
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(want) })}, nil)
	for range 5 {
		c := g.raw()
		c.send(getWith("Connection: close") + aGet)
		go func() { _, _ = io.WriteString(c.Conn, strings.Repeat(aGet, 3000)) }()
		resp, body := c.reply("GET")
		if resp.StatusCode != 200 || !resp.Close || body != string(want) {
			t.Fatalf("%d, %d bytes", resp.StatusCode, len(body))
		}
		c.closed()
	}
	g.records(5)
}

func TestHTTP10(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // no length
		_, _ = io.WriteString(w, "until close")
	})}, nil)
	c := g.raw()
	c.send("GET / HTTP/1.0\r\n\r\n")
	all, err := io.ReadAll(c.r)
	if err != nil || !bytes.HasSuffix(all, []byte("\r\n\r\nuntil close")) || bytes.Contains(all, []byte("chunked")) {
		t.Errorf("%q, %v", all, err)
	}

	g = newGateway(t, []string{httpUpstream(t, echo)}, nil)
	c = g.raw()
	for range 2 {
		c.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
		if resp, _ := c.reply("GET"); resp.StatusCode != 200 || resp.Header.Get("Connection") != "keep-alive" {
			t.Errorf("%v", resp)
		}
	}
	c.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
	c.reply("GET")
	c.closed()
}

// A client of HTTP/2 that waits to be asked for its body is asked at once, and one that is
// refused keeps it.
func TestExpect100OfHTTP2(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Expect") != "" {
			t.Error("Expect was passed on")
		}
		_, _ = io.Copy(w, r.Body)
	})}, nil)
	c := g.client(true)
	c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
	for path, want := range map[string]struct {
		status int
		asked  bool
	}{"/": {200, true}, "/a/../b": {400, false}} {
		asked := false
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { asked = true }})
		req, _ := http.NewRequestWithContext(ctx, "POST", g.url(""), strings.NewReader("hello"))
		req.URL.Opaque = path
		req.Header.Set("Expect", "100-continue")
		began := time.Now()
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want.status || asked != want.asked || want.asked && string(body) != "hello" || time.Since(began) > 30*time.Second {
			t.Errorf("%s: %d %q, asked %v, after %v", path, resp.StatusCode, body, asked, time.Since(began))
		}
	}
}

func TestExpect100(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Expect") != "" {
			t.Error("Expect was passed on")
		}
		echo(w, r)
	})}, nil)
	c := g.raw()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	line, err := c.r.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = c.r.ReadString('\n')
	c.send("body")
	if _, body := c.reply("POST"); body != "body" {
		t.Errorf("%q", body)
	}
	// Refused before the body: no 100, and the connection ends since the body may follow.
	c.send("POST /../x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if resp, _ := c.reply("POST"); resp.StatusCode != 400 || !resp.Close {
		t.Errorf("%v", resp)
	}
	c.closed()
	g.records(2)
}

// Broken requests get their status, are counted, and end the connection.
func TestRefusedRequests(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, func(s *policy.Snapshot) {
		s.Routes[0].PathPrefix = "/ok"
		s.Sizes.BodyBytes = 100
	})
	for _, row := range []struct {
		name, request string
		status        int
		outcome       zone.RequestOutcome
		open          bool // the connection lives on
	}{
		{"valid", "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n", 200, zone.RequestOK, true},
		{"no route", "GET /no HTTP/1.1\r\nHost: a\r\n\r\n", 404, zone.RequestNoRoute, true},
		{"segment boundary", "GET /okay HTTP/1.1\r\nHost: a\r\n\r\n", 404, zone.RequestNoRoute, true},
		{"dot segment", "GET /ok/../no HTTP/1.1\r\nHost: a\r\n\r\n", 400, zone.RequestBad, true},
		{"escaped dot segment", "GET /ok/%2E./no HTTP/1.1\r\nHost: a\r\n\r\n", 400, zone.RequestBad, true},
		{"no host", "GET /ok HTTP/1.1\r\n\r\n", 400, zone.RequestBad, false},
		{"bare LF", "GET /ok HTTP/1.1\nHost: a\n\n", 400, zone.RequestBad, false},
		{"both lengths", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, zone.RequestBad, false},
		{"method", "BREW /ok HTTP/1.1\r\nHost: a\r\n\r\n", 501, zone.RequestMethodRefused, false},
		{"version", "GET /ok HTTP/2.0\r\nHost: a\r\n\r\n", 505, zone.RequestBad, false},
		{"long line", "GET /" + strings.Repeat("x", 9000) + " HTTP/1.1\r\nHost: a\r\n\r\n", 414, zone.RequestURITooLong, false},
		{"large head", "GET /ok HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 40000) + "\r\n\r\n", 431, zone.RequestHeaderTooLarge, false},
		{"many fields", "GET /ok HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 101) + "\r\n", 431, zone.RequestHeaderTooLarge, false},
		{"body too long", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n", 413, zone.RequestBodyTooLarge, false},
		{"chunked body too long", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + strings.Repeat("x", 101) + "\r\n0\r\n\r\n", 413, zone.RequestBodyTooLarge, false},
		{"bad chunk", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400, zone.RequestBad, false},
		{"not HTTP", "\x16\x03\x01 hello\r\n\r\n", 400, zone.RequestBad, false},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, zone.RequestBad, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := g.slab.LoadRequest(row.outcome)
			c := g.raw()
			c.t = t
			c.send(row.request)
			resp, body := c.reply("GET")
			if resp.StatusCode != row.status {
				t.Errorf("status %d %q, want %d", resp.StatusCode, body, row.status)
			}
			if row.open == resp.Close {
				t.Errorf("close: %v", resp.Close)
			}
			if len(resp.Header.Get("X-Request-Id")) != 32 {
				t.Error("no request id")
			}
			if !row.open {
				c.closed()
			}
			rec := g.records(1)[0]
			if rec.Status != row.status || rec.Outcome != row.outcome {
				t.Errorf("record: status %d, outcome %v", rec.Status, rec.Outcome)
			}
			if after := g.slab.LoadRequest(row.outcome); after != before+1 {
				t.Errorf("outcome %v: %d, then %d", row.outcome, before, after)
			}
		})
	}
	g.outcomes()
}

func TestRoutes(t *testing.T) {
	named := func(name string) string {
		return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			for {
				if _, _, err := readRequest(r); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
			}
		})
	}
	g := newStoppedGateway(t, nil)
	g.snapshot.Upstreams = nil
	g.snapshot.Routes = nil
	for i, r := range []struct{ host, path string }{{"", "/"}, {"", "/v1"}, {"a.test", "/v1/x"}, {"a.test", "/"}, {"b.test", "/only"}} {
		up := testSnapshot(g.zone, []string{named(fmt.Sprint(i))}).Upstreams[0]
		up.Name = fmt.Sprint("up", i)
		g.snapshot.Upstreams = append(g.snapshot.Upstreams, up)
		g.snapshot.Routes = append(g.snapshot.Routes, policy.Route{Name: fmt.Sprint(i), Host: r.host, PathPrefix: r.path, Upstream: i})
	}
	g.start()
	c := g.raw()
	for _, row := range []struct{ host, target, want string }{
		{"z.test", "/", "0"}, {"z.test", "/v1", "1"}, {"z.test", "/v1/", "1"}, {"z.test", "/v1?q", "1"}, {"z.test", "/v10", "0"},
		{"a.test", "/v1", "3"}, {"a.test", "/v1/x", "2"}, {"a.test", "/v1/x/y", "2"}, {"A.TEST", "/v1/x", "2"}, {"a.test:443", "/v1/xy", "3"},
		{"b.test", "/only", "4"}, {"b.test", "/other", "0"}, {"b.test", "/v1/x", "1"}, {"[::1]:443", "/v1", "1"},
	} {
		c.send("GET " + row.target + " HTTP/1.1\r\nHost: " + row.host + "\r\n\r\n")
		if _, body := c.reply("GET"); body != row.want {
			t.Errorf("%s%s went to %s, want %s", row.host, row.target, body, row.want)
		}
	}
}

// Requests go on while snapshots are swapped beneath them.
func TestApplyUnderLoad(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		a, b := httpUpstream(t, echo), httpUpstream(t, echo)
		g := newGateway(t, []string{a}, nil)
		client := g.client(h2)
		stop := make(chan struct{})
		var all sync.WaitGroup
		var count [4]int
		for i := range count {
			all.Go(func() {
				for ; ; count[i]++ {
					select {
					case <-stop:
						return
					default:
					}
					resp, err := client.Post(g.url("/"), "text/plain", strings.NewReader("hello"))
					if err != nil {
						t.Error(err)
						return
					}
					body, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || resp.StatusCode != 200 || string(body) != "hello" {
						t.Errorf("%d %q %v", resp.StatusCode, body, err)
						return
					}
				}
			})
		}
		for i := range 200 {
			before := g.slab.LoadRequest(zone.RequestOK)
			eventually(t, "a request under this snapshot", func() bool { return g.slab.LoadRequest(zone.RequestOK) > before })
			s := testSnapshot(g.zone, []string{[]string{a, b}[i%2]})
			s.Generation = uint64(i + 2)
			if i%4 > 1 {
				s.Upstreams[0].Servers = policy.ServersAt(a, b)
			}
			if err := g.worker.Apply(&s, g.certs); err != nil {
				t.Fatal(err)
			}
		}
		bad := testSnapshot(g.zone, []string{a})
		bad.Routes[0].Upstream = 7
		if err := g.worker.Apply(&bad, g.certs); err == nil {
			t.Error("a route to nowhere was accepted")
		}
		if err := g.worker.Apply(&bad, nil); err == nil {
			t.Error("no certificate was accepted")
		}
		close(stop)
		all.Wait()
		total := 0
		for _, n := range count {
			total += n
		}
		if total == 0 {
			t.Error("no requests")
		}
		eventually(t, "an exchange counted for each", func() bool { return g.slab.LoadRequest(zone.RequestOK) == uint64(total) })
	})
}
