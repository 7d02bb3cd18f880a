// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// The mirror gets what the upstream gets, the client hears of the upstream alone, and
// a body that is streamed is not mirrored.
func TestMirror(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		type seen struct{ line, tier, id, body string }
		var mu sync.Mutex
		got := map[string][]seen{}
		keep := func(name string) *witness {
			return &witness{address: httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				mu.Lock()
				got[name] = append(got[name], seen{r.Method + " " + r.Host + r.RequestURI, r.Header.Get("X-Tier"), r.Header.Get("X-Request-Id"), string(b)})
				mu.Unlock()
				w.Header().Set("X-Name", name)
				_, _ = io.WriteString(w, name)
			})}
		}
		count := func(name string) int { mu.Lock(); defer mu.Unlock(); return len(got[name]) }
		g := routed(t, []*witness{keep("first"), keep("copy")},
			policy.Route{PathPrefix: "/m", Mirror: ptr(1), Rewrite: &policy.Rewrite{StripPrefix: "/m"}, ReplyHeaders: &policy.HeaderEdits{Remove: []string{"X-Gone"}},
				RequestHeaders: &policy.HeaderEdits{Set: []policy.HeaderValue{{Name: "X-Tier", Value: "gold"}}}},
			policy.Route{},
		)
		client := g.client(h2)
		bodies := []string{"", "small", strings.Repeat("x", smallBody)}
		for i, body := range bodies {
			method := "POST"
			if body == "" {
				method = "GET"
			}
			resp, text := g.askWith(client, method, "a.test", "/m/x?"+fmt.Sprint(i), strings.NewReader(body))
			if text != "first" || resp.Header.Get("X-Name") != "first" {
				t.Errorf("the client got %q of %s", text, resp.Header.Get("X-Name"))
			}
			eventually(t, "a copy", func() bool { return count("copy") == i+1 })
		}
		mu.Lock()
		for i := range bodies {
			if a, b := got["first"][i], got["copy"][i]; a != b || b.body != bodies[i] || b.tier != "gold" || !strings.Contains(b.line, " a.test/x?") {
				t.Errorf("the upstream got %+v, the mirror %+v", a, b)
			}
		}
		mu.Unlock()
		g.ask(client, "GET", "", "/other")
		g.askWith(client, "POST", "", "/m/long", strings.NewReader(strings.Repeat("x", smallBody+1)))
		eventually(t, "a try at the mirror", func() bool { return g.worker.mirrors.Load() == 0 })
		if count("copy") != 3 || count("first") != 5 || g.slab.Load(zone.Mirrored) != 3 || g.slab.Load(zone.MirrorDropped) != 0 {
			t.Errorf("%d copies of %d, counted %d and %d", count("copy"), count("first"), g.slab.Load(zone.Mirrored), g.slab.Load(zone.MirrorDropped))
		}
		g.records(5) // copies have none
	})
}

// A mirror that does not answer, or is not there, delays nobody: what there is no room
// for is dropped and counted, and what waits is bounded.
func TestMirrorDelaysNobody(t *testing.T) {
	up := newWitness(t, "up")
	hung := &witness{address: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		_, _ = io.Copy(io.Discard, r) // takes all, says nothing
	})}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	none := &witness{address: gone.Addr().String()}
	g := routed(t, []*witness{up, hung, none}, policy.Route{Mirror: ptr(1)}, policy.Route{PathPrefix: "/none", Mirror: ptr(2)})
	client := g.client(false)
	const n = 3 * mirrorsOfRoute
	began := time.Now()
	for range n {
		if resp, body := g.ask(client, "GET", "", "/"); resp.StatusCode != 200 || body != "up" {
			t.Fatalf("%d %q", resp.StatusCode, body)
		}
	}
	if took := time.Since(began); took > 4*time.Second { // a copy waits for 5 s
		t.Errorf("%d requests took %v: they waited for the mirror", n, took)
	}
	if sent, dropped := g.slab.Load(zone.Mirrored), g.slab.Load(zone.MirrorDropped); sent != mirrorsOfRoute || dropped != n-mirrorsOfRoute {
		t.Errorf("%d copies sent, %d dropped; want %d and %d", sent, dropped, mirrorsOfRoute, n-mirrorsOfRoute)
	}
	for range 50 { // those fail at once and make room for the next
		if resp, _ := g.ask(client, "GET", "", "/none"); resp.StatusCode != 200 {
			t.Fatalf("%d", resp.StatusCode)
		}
	}
	eventually(t, "copies that find no server are counted", func() bool {
		return g.slab.LoadUpstream(g.snapshot.Upstreams[0].Slot, zone.UpstreamRefused) > 0
	})
	g.records(n + 50)
	for _, o := range []zone.RequestOutcome{zone.RequestUpstreamRefused, zone.RequestUpstreamTimeout} {
		if g.slab.LoadRequest(o) != 0 {
			t.Errorf("%s is counted for a copy", o)
		}
	}
}

// A reply without end holds a place of the mirror's for a bounded time.
func TestMirrorReadsSoMuch(t *testing.T) {
	up := newWitness(t, "up")
	closed := make(chan struct{}, 1)
	endless := &witness{address: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if _, _, err := readRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		piece := make([]byte, 64<<10)
		for {
			if _, err := c.Write(piece); err != nil {
				closed <- struct{}{}
				return
			}
		}
	})}
	g := routed(t, []*witness{up, endless}, policy.Route{Mirror: ptr(1)})
	if _, body := g.ask(g.client(false), "GET", "", "/"); body != "up" {
		t.Errorf("%q", body)
	}
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Error("it is still read")
	}
	eventually(t, "room for the next copy", func() bool { return g.worker.mirrors.Load() == 0 })
}

// A route's edits hold for the reply that opens a WebSocket; copies open none.
func TestWebSocketOfAnEditedRoute(t *testing.T) {
	mirrored := newWitness(t, "mirror")
	g := routed(t, []*witness{{address: echoUpstream(t)}, mirrored}, policy.Route{
		WebSocket: time.Minute, Mirror: ptr(1),
		ReplyHeaders: &policy.HeaderEdits{Set: []policy.HeaderValue{{Name: "X-Own", Value: "1"}}, Remove: []string{"Date"}},
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, resp, err := g.dialWebSocket(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("X-Own") != "1" || resp.Header.Get("Date") != "" {
		t.Errorf("the client got %v", resp.Header)
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	g.records(1)
	if n := g.slab.Load(zone.Mirrored) + g.slab.Load(zone.MirrorDropped); n != 0 || len(mirrored.taken()) != 0 {
		t.Errorf("%d copies", n)
	}
}
