// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// madeServer is a connection of an HTTP/2 server that does what a test likes.
type madeServer struct {
	*h2.Framer
	n     int // which connection, from 0
	block bytes.Buffer
	enc   *hpack.Encoder
}

// madeUpstream is such a server; SETTINGS of the gateway are acknowledged, all other frames are for serve.
func madeUpstream(t testing.TB, settings []h2.Setting, serve func(s *madeServer, f h2.Frame)) string {
	return rawUpstream(t, func(n int, c net.Conn, r *bufio.Reader) {
		if _, err := r.Discard(len(h2.ClientPreface)); err != nil {
			return
		}
		s := &madeServer{Framer: h2.NewFramer(c, r), n: n}
		s.enc = hpack.NewEncoder(&s.block)
		_ = s.WriteSettings(settings...)
		for {
			f, err := s.ReadFrame()
			if err != nil {
				return
			}
			if sf, ok := f.(*h2.SettingsFrame); ok {
				if !sf.IsAck() {
					_ = s.WriteSettingsAck()
				}
				continue
			}
			serve(s, f)
		}
	})
}

func (s *madeServer) reply(id uint32, end bool, fields ...string) {
	s.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = s.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: s.block.Bytes(), EndHeaders: true, EndStream: end})
}

// Clients that begin requests and give them up, again and again, make the gateway open no more
// streams than the server allows, cancelled ones included until it has heard of them.
func TestCancelsAreBounded(t *testing.T) {
	const most = 4
	var mu sync.Mutex
	var opened, reset, known int // streams; those that were reset before the PING that was answered last
	var unanswered func()
	up := madeUpstream(t, []h2.Setting{{ID: h2.SettingMaxConcurrentStreams, Val: most}}, func(s *madeServer, f h2.Frame) {
		mu.Lock()
		defer mu.Unlock()
		switch f := f.(type) {
		case *h2.HeadersFrame:
			if opened++; opened-known > most {
				t.Errorf("%d streams that the server may have at once", opened-known)
			}
			if known > 0 {
				s.reply(f.StreamID, true, ":status", "200")
				known++
			}
		case *h2.RSTStreamFrame:
			reset++
		case *h2.PingFrame:
			data, before := f.Data, reset
			answer := func() {
				known = max(known, before)
				_ = s.WritePing(true, data)
			}
			if known > 0 {
				answer()
				return
			}
			if unanswered != nil {
				t.Error("a PING while another one is under way")
			}
			unanswered = answer
		}
	})
	g := newGateway(t, []string{up}, func(s *policy.Snapshot) {
		http2Upstream(s)
		s.Upstreams[0].MaxConnections = 1
	})
	client := g.client(true)
	give := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", g.url("/"), nil)
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close() // 503: there is no place
		}
	}
	eventually(t, "all places are taken by what was given up", func() bool {
		give()
		mu.Lock()
		defer mu.Unlock()
		return reset == most
	})
	for range 5 {
		give()
	}
	eventually(t, "a PING", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return unanswered != nil
	})
	mu.Lock()
	if opened != most {
		t.Errorf("%d streams were opened", opened)
	}
	unanswered()
	mu.Unlock()
	eventually(t, "there are places again", func() bool {
		resp, err := client.Get(g.url("/"))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
	if n := g.slab.Load(zone.UpstreamConnectionsOpened); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// What a server refuses unseen is sent again, whatever it is, but not for ever.
func TestRefusedAgainAndAgain(t *testing.T) {
	for _, row := range []struct {
		refused, status int
		method, body    string
	}{
		{1, 200, "GET", ""},
		{refusalsMost, 200, "POST", "small"}, // what has not been looked at was not done
		{1000, 502, "GET", ""},
		{1000, 502, "POST", "small"},
		{1, 502, "POST", strings.Repeat("x", smallBody+1)}, // it is not here any more
	} {
		t.Run(fmt.Sprintf("%s %d, %d times", row.method, len(row.body), row.refused), func(t *testing.T) {
			var streams atomic.Int64
			up := madeUpstream(t, nil, func(s *madeServer, f h2.Frame) {
				h, ok := f.(*h2.HeadersFrame)
				switch {
				case !ok:
				case streams.Add(1) <= int64(row.refused):
					_ = s.WriteRSTStream(h.StreamID, h2.ErrCodeRefusedStream)
				default:
					s.reply(h.StreamID, true, ":status", "200")
				}
			})
			g := newGateway(t, []string{up}, http2Upstream)
			req, _ := http.NewRequest(row.method, g.url("/"), strings.NewReader(row.body))
			resp, err := g.client(false).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != row.status {
				t.Errorf("status %d, want %d", resp.StatusCode, row.status)
			}
			want := zone.RequestOK
			if row.status != 200 {
				want = zone.RequestUpstreamReset
			}
			if rec := g.records(1)[0]; rec.Outcome != want {
				t.Errorf("outcome %s, want %s", rec.Outcome, want)
			}
			if n := streams.Load(); n > refusalsMost+1 {
				t.Errorf("sent %d times", n)
			}
		})
	}
}

// A server that takes a request byte by byte gets it whole, and nobody else waits for that.
func TestTinyWindowsOfAServer(t *testing.T) {
	bothProtocols(t, func(t *testing.T, down bool) {
		body := strings.Repeat("0123456789", 40)
		got := make(chan string, 1)
		var taken bytes.Buffer
		halted := uint32(0) // half of the body is here: the rest is asked for when another was served
		up := madeUpstream(t, []h2.Setting{{ID: h2.SettingInitialWindowSize, Val: 1}}, func(s *madeServer, f h2.Frame) {
			switch f := f.(type) {
			case *h2.HeadersFrame:
				if f.StreamEnded() {
					s.reply(f.StreamID, true, ":status", "204")
					if halted != 0 {
						_ = s.WriteWindowUpdate(halted, 1)
						halted = 0
					}
				}
			case *h2.DataFrame:
				if len(f.Data()) > 1 {
					t.Errorf("%d bytes into a window of 1", len(f.Data()))
				}
				taken.Write(f.Data())
				if f.StreamEnded() {
					got <- taken.String()
					s.reply(f.StreamID, true, ":status", "200")
					return
				}
				if taken.Len() == len(body)/2 {
					halted = f.StreamID
					return
				}
				_ = s.WriteWindowUpdate(f.StreamID, 1)
			}
		})
		g := newGateway(t, []string{up}, http2Upstream)
		client := g.client(down)
		others, over := make(chan int, 1), make(chan struct{})
		go func() {
			n := 0
			defer func() { others <- n }()
			for {
				select {
				case <-over:
					return
				default:
				}
				resp, err := client.Get(g.url("/"))
				if err != nil || resp.StatusCode != 204 {
					t.Errorf("beside it: %v, %v", resp, err)
					return
				}
				resp.Body.Close()
				n++
			}
		}()
		resp, err := client.Post(g.url("/"), "", struct{ io.Reader }{strings.NewReader(body)})
		close(over)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		resp.Body.Close()
		if s := <-got; s != body {
			t.Errorf("the server got %d bytes: %.60q", len(s), s)
		}
		if n := <-others; n == 0 {
			t.Error("nobody else was served")
		}
		if n := g.slab.Load(zone.UpstreamConnectionsOpened); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}
