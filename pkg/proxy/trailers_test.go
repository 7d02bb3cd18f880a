// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// goUpstream is net/http's server, over HTTP/1.1 or in the clear over HTTP/2.
func goUpstream(t *testing.T, h2 bool, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	s.Protocols.SetHTTP1(!h2)
	s.Protocols.SetUnencryptedHTTP2(h2)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

// everyProtocol runs with HTTP/1.1 and HTTP/2 on both sides of the gateway.
func everyProtocol(t *testing.T, h http.HandlerFunc, run func(t *testing.T, g *gateway, client *http.Client)) {
	for _, up := range []bool{false, true} {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprintf("client h2 %v, upstream h2 %v", down, up), func(t *testing.T) {
				g := newGateway(t, []string{goUpstream(t, up, h)}, func(s *policy.Snapshot) {
					if up {
						http2Upstream(s)
					}
				})
				run(t, g, g.client(down))
			})
		}
	}
}

// Trailers go on, both ways, whatever is spoken on either side; what has no place in them does not.
func TestTrailers(t *testing.T) {
	everyProtocol(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Tail")
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
		w.Header().Set("X-Tail", fmt.Sprint(r.Trailer))
		w.Header().Set(http.TrailerPrefix+"Set-Cookie", "a=b")
	}, func(t *testing.T, g *gateway, client *http.Client) {
		req, _ := http.NewRequest("POST", g.url("/"), io.MultiReader(strings.NewReader("body")))
		req.Header.Set("TE", "trailers")
		req.Trailer = http.Header{"X-End": {"sum"}, "X-Real-Ip": {"6.6.6.6"}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != "body" {
			t.Errorf("%q %v", b, err)
		}
		if got := resp.Trailer.Get("X-Tail"); got != "map[X-End:[sum]]" && got != "map[X-End:[sum] X-Real-Ip:[]]" {
			t.Errorf("the upstream got trailers %s", got)
		}
		if resp.Trailer.Get("Set-Cookie") != "" {
			t.Errorf("trailers %v", resp.Trailer)
		}
	})
}

// An early hint comes before the reply that it is for, wherever it has to pass.
func TestInterimReplies(t *testing.T) {
	everyProtocol(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</x>")
		w.WriteHeader(103)
		w.WriteHeader(103)
		w.WriteHeader(200)
	}, func(t *testing.T, g *gateway, client *http.Client) {
		var hints []string
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				hints = append(hints, fmt.Sprint(code, h.Get("Link")))
				return nil
			},
		})
		req, _ := http.NewRequestWithContext(ctx, "GET", g.url("/"), nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if fmt.Sprint(hints) != "[103</x> 103</x>]" && fmt.Sprint(hints) != "[103 </x> 103 </x>]" || resp.StatusCode != 200 {
			t.Errorf("%v, then %d", hints, resp.StatusCode)
		}
	})
	t.Run("too many", func(t *testing.T) {
		g := newGateway(t, []string{rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, _, err := readRequest(r); err == nil {
				_, _ = io.WriteString(c, strings.Repeat("HTTP/1.1 103 x\r\n\r\n", interimMost+1)+"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				_, _ = r.ReadByte()
			}
		})}, nil)
		c := g.raw()
		c.send("GET / HTTP/1.0\r\n\r\n")
		if resp, _ := c.reply("GET"); resp.StatusCode != 502 {
			t.Errorf("status %d", resp.StatusCode)
		}
		if rec := g.records(1)[0]; rec.Outcome != zone.RequestUpstreamInvalid {
			t.Errorf("%v", rec.Outcome)
		}
	})
}

// Bodies of all sizes, both ways at once, byte for byte.
func TestBodiesEveryProtocol(t *testing.T) {
	everyProtocol(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		_, _ = io.Copy(w, r.Body)
	}, func(t *testing.T, g *gateway, client *http.Client) {
		for _, n := range []int{0, 1, 16 << 10, 16<<10 + 1, 64 << 10, 3 << 20} {
			sent := make([]byte, n)
			_, _ = rand.Read(sent)
			resp, err := client.Post(g.url("/"), "x/y", strings.NewReader(string(sent)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(got) != string(sent) {
				t.Errorf("%d bytes: got %d, %v", n, len(got), err)
			}
		}
	})
}
