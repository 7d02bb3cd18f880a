// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/xgw-project/xgw/pkg/policy"
)

// The states in which a crowd leaves its connections.
const (
	crowdIdle1   = "idle-http1" // one exchange, then silence
	crowdIdle2   = "idle-http2"
	crowdFresh   = "fresh" // handshake, then silence
	crowdHead    = "half-a-head"
	crowdHeaders = "half-a-block" // of HTTP/2

	// As much as the windows allow on as many streams as there may be.
	crowdUploads      = "uploads"       // bodies without an end
	crowdSmallUploads = "small-uploads" // bodies that are not yet whole
	crowdZeroWindow   = "zero-window"   // replies that are not taken
	crowdBlock        = "large-block"   // a header block without an end
)

// crowdMain opens the connections, says so, and holds them until its input ends.
func crowdMain(address, state string, n int) error {
	conns := make([]*tls.Conn, 0, n)
	interval := max(100*time.Millisecond, time.Duration(n)*time.Millisecond/2)
	for i := range n {
		var c *tls.Conn
		var step func() error
		var err error
		switch state {
		case crowdTrickle1, crowdTrickle2, crowdUnread1, crowdUnread2, crowdBody1, crowdBody2:
			c, step, err = dialSlow(address, state)
		default:
			c, err = crowdDial(address, state)
		}
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		if step != nil {
			go keepOn(step, interval)
		}
		conns = append(conns, c)
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	for _, c := range conns {
		c.NetConn().Close()
	}
	return err
}

func crowdDial(address, state string) (*tls.Conn, error) {
	switch state {
	case crowdUploads, crowdSmallUploads, crowdZeroWindow, crowdBlock:
		f, err := dialFrames(address, h2.Setting{ID: h2.SettingInitialWindowSize})
		if err != nil {
			return nil, err
		}
		return f.nc, f.fill(state)
	}
	protocol := "http/1.1"
	if state == crowdIdle2 || state == crowdHeaders {
		protocol = "h2"
	}
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	const cookie = 700 // of a usual request
	switch state {
	case crowdIdle1:
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\nCookie: a=%s\r\n\r\n", strings.Repeat("x", cookie))
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, r.Body)
		return c, err
	case crowdHead:
		_, err = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\nCookie: a=%s", strings.Repeat("x", cookie))
	case crowdIdle2, crowdHeaders:
		err = crowdStream(c, state == crowdIdle2, cookie)
	}
	return c, err
}

// fill makes the gateway hold what it can be made to.
func (f *frames) fill(state string) error {
	if state == crowdBlock {
		part := f.fields(":method", "GET", "cookie", strings.Repeat("x", 15<<10))
		return errors.Join(f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: part}), f.WriteContinuation(1, false, part))
	}
	for i := range 100 {
		var err error
		switch state {
		case crowdUploads:
			err = f.request(oddID(i), false, "POST", "/hang")
		case crowdSmallUploads:
			err = f.request(oddID(i), false, "POST", "/hang", "content-length", "16384")
		case crowdZeroWindow:
			err = f.request(oddID(i), true, "GET", "/long")
		}
		if err != nil {
			return err
		}
	}
	if state == crowdZeroWindow {
		return nil
	}
	const part = 2600 // of a stream; a hundred are the window before anything was read
	rounds, window := 1, 1<<16-1
	if state == crowdSmallUploads {
		rounds = 6 // their beginnings are read, and give the window back
	}
	for range rounds {
		for window < 100*part {
			fr, err := f.ReadFrame()
			if err != nil {
				return err
			}
			if u, ok := fr.(*h2.WindowUpdateFrame); ok && u.StreamID == 0 {
				window += int(u.Increment)
			}
		}
		for i := range 100 {
			if err := f.WriteData(oddID(i), false, make([]byte, part)); err != nil {
				return err
			}
			window -= part
		}
	}
	return nil
}

// crowdStream sends a request of HTTP/2; whole and awaited, or the first half of its fields.
func crowdStream(c *tls.Conn, whole bool, cookie int) error {
	var block, out bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", "/"}, {"cookie", strings.Repeat("x", cookie)}} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	out.WriteString(h2.ClientPreface)
	fr := h2.NewFramer(&out, c)
	_ = fr.WriteSettings()
	_ = fr.WriteSettingsAck()
	_ = fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: whole})
	if _, err := c.Write(out.Bytes()); err != nil || !whole {
		return err
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err
		}
		if d, ok := f.(*h2.DataFrame); ok && d.StreamEnded() {
			return nil
		}
	}
}

// inUse is the bytes of heap and stacks.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools gave up
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// What a connection costs while it waits, idle or slow with its head: heap and stacks, without
// what the collector lets come together.
func TestMemoryOfConnections(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	const n, most = 1000, 20 << 10
	for _, state := range []string{crowdFresh, crowdIdle1, crowdIdle2, crowdHeaders} {
		t.Run(state, func(t *testing.T) {
			up := httpUpstream(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
			g := newGateway(t, []string{up}, func(s *policy.Snapshot) { s.Connections = 2 * n })
			g.crowd(state, 10)() // what is made once
			before := inUse()
			leave := g.crowd(state, n)
			each := (inUse() - before) / n
			t.Logf("%.1f KiB a connection", float64(each)/1024)
			if each > most {
				t.Errorf("%d bytes a connection, want at most %d", each, most)
			}
			leave()
		})
	}
}

// A hundred small bodies that come together, each a bit at a time, are held as far as one connection may have
// the gateway hold; of those beyond, the upstream has the beginnings before any is whole. All arrive as they were sent.
func TestParkedBodies(t *testing.T) {
	bothProtocols(t, func(t *testing.T, upstream2 bool) {
		const n, size, early = 100, smallBody, 12 << 10
		var begun atomic.Int64
		g := newGateway(t, []string{goUpstream(t, upstream2, func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength == size {
				begun.Add(1)
			}
			echo(w, r)
		})}, func(s *policy.Snapshot) {
			s.Upstreams[0].MaxConnections = 2 * n
			if upstream2 {
				http2Upstream(s)
			}
		})
		client := g.client(true)
		if resp, err := client.Get(g.url("/")); err != nil { // so that all have one connection
			t.Fatal(err)
		} else {
			resp.Body.Close()
		}
		rest := make(chan struct{})
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				body := bytes.Repeat([]byte{byte(i)}, size)
				in, out := io.Pipe()
				go func() {
					for at := 0; at < size; at += 1 << 10 {
						if at == early {
							<-rest
						}
						_, _ = out.Write(body[at : at+1<<10])
					}
					out.Close()
				}()
				req, err := http.NewRequestWithContext(t.Context(), "POST", g.url("/"), in)
				if err != nil {
					t.Error(err)
					return
				}
				req.ContentLength = size
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || !bytes.Equal(b, body) {
					t.Errorf("body %d: status %d, %d bytes, %v", i, resp.StatusCode, len(b), err)
				}
			})
		}
		var parked int64
		eventually(t, "those beyond are with the upstream", func() bool {
			parked = 0
			g.worker.mu.Lock()
			for c := range g.worker.conns {
				parked += c.parked.Load()
			}
			g.worker.mu.Unlock()
			return begun.Load() >= n-parkedMost/early-1 && parked > 0
		})
		if parked > parkedMost+early {
			t.Errorf("%d bytes are held, want at most %d", parked, parkedMost)
		}
		if least := int64(parkedMost / size / 2); n-begun.Load() < least {
			t.Errorf("%d of %d went on before they were whole: %d can wait", begun.Load(), n, least)
		}
		close(rest)
		all.Wait()
	})
}
