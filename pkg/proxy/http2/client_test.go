// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
)

// webClient is net/http's over TLS, one connection.
func webClient(t *testing.T, cfg Config) (*testServer, *http.Client) {
	t.Helper()
	server, client := testTLS(t)
	s := startServer(t, "127.0.0.1:0", cfg, handlerFunc(testHandler), server)
	tr := &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return s, &http.Client{Transport: tr, Timeout: 60 * time.Second}
}

func patternBytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = pattern(i)
	}
	return b
}

// slowReader gives out a few bytes at a time and now and then waits.
type slowReader struct {
	r io.Reader
	n int
}

func (s *slowReader) Read(p []byte) (int, error) {
	if s.n++; s.n%64 == 0 {
		time.Sleep(time.Millisecond)
	}
	return s.r.Read(p[:min(len(p), 7001)])
}

func TestBodiesByteForByte(t *testing.T) {
	for _, window := range []int{0, 1000, 1 << 20} {
		for _, size := range []int{0, 1, 16384, 16385, 65535, 65536, 10 << 20} {
			if window == 1000 && size > 100_000 {
				continue // as many round trips as kilobytes
			}
			t.Run(fmt.Sprintf("window %d size %d", window, size), func(t *testing.T) {
				s, web := webClient(t, Config{StreamWindow: window})
				want := patternBytes(size)
				// The client may send what it took of the first window after it acknowledged a smaller one.
				resp, err := web.Get("https://" + s.addr() + "/bytes/0")
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				resp, err = web.Post("https://"+s.addr()+"/echo", "", &slowReader{r: bytes.NewReader(want)})
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(&slowReader{r: resp.Body})
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("echo of %d bytes came back as %d other ones", len(want), len(got))
				}
				resp, err = web.Get("https://" + s.addr() + fmt.Sprintf("/bytes/%d", size))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				got, err = io.ReadAll(resp.Body)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes for %d, error %v", len(got), len(want), err)
				}
			})
		}
	}
}

func TestManyStreams(t *testing.T) {
	s, web := webClient(t, Config{})
	want := patternBytes(100_000)
	var wg sync.WaitGroup
	for i := range 300 { // three times as many as may be open at once
		wg.Add(1)
		go func() {
			defer wg.Done()
			resp, err := web.Post("https://"+s.addr()+"/echo", "", bytes.NewReader(want[:i*300]))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, want[:i*300]) {
				t.Errorf("stream %d: %d bytes for %d, error %v", i, len(got), i*300, err)
			}
		}()
	}
	wg.Wait()
}

func TestTrailersAndInterim(t *testing.T) {
	s, web := webClient(t, Config{})
	req, _ := http.NewRequest("POST", "https://"+s.addr()+"/echo", io.NopCloser(strings.NewReader("body")))
	req.Trailer = http.Header{"Checksum": {"abc"}}
	resp, err := web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(got) != "body" || resp.Trailer.Get("Checksum") != "abc" {
		t.Errorf("body %q, trailers %v, error %v", got, resp.Trailer, err)
	}

	req, _ = http.NewRequest("POST", "https://"+s.addr()+"/interim", strings.NewReader("body"))
	req.Header.Set("Expect", "100-continue")
	resp, err = web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	got, _ = io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(got) != "4" {
		t.Errorf("after 100 Continue the body was of length %s", got)
	}
}

func TestFieldsAsHandlerSeesThem(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(func(s *Stream) {
		var b strings.Builder
		fmt.Fprintf(&b, "%s %s %s %s %d %v", s.Method(), s.Scheme(), s.Authority(), s.Path(), s.ContentLength(), s.EndStream())
		for _, f := range s.Fields() {
			fmt.Fprintf(&b, " %s=%s", f.Name, f.Value)
		}
		if got, want := b.String(), "GET https localhost /x -1 true a=1 cookie=c1=1; c2=2; c3=3 b="; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		answer(s, 200, "")
	}), nil)
	rc := dialRaw(t, s.addr())
	for id := uint32(1); id < 9; id += 2 { // also from the dynamic table and from recycled streams
		rc.request(id, true, get("/x", "a", "1", "cookie", "c1=1", "cookie", "c2=2", "host", "LOCALHOST", "b", "", "cookie", "c3=3")...)
		if o := rc.await(id); o.status != "200" {
			t.Fatal(o)
		}
	}
}

func TestPanicEndsOneStream(t *testing.T) {
	told := make(chan any, 1)
	s, web := webClient(t, Config{Panic: func(v any) { told <- v }})
	before, err := web.Get("https://" + s.addr() + "/hello")
	if err != nil {
		t.Fatal(err)
	}
	before.Body.Close()
	resp, err := web.Get("https://" + s.addr() + "/panic")
	if err == nil {
		resp.Body.Close()
		t.Error("a response came from a handler that panicked")
	}
	var se h2.StreamError
	if !errors.As(err, &se) || se.Code != h2.ErrCodeInternal {
		t.Errorf("client saw %v", err)
	}
	if v := <-told; v != "as asked" {
		t.Errorf("Config.Panic was told %v", v)
	}
	after, err := web.Get("https://" + s.addr() + "/hello")
	if err != nil {
		t.Fatalf("other streams do not go on: %v", err)
	}
	after.Body.Close()
	n := 0
	s.each(func(*Conn) { n++ })
	if n != 1 {
		t.Errorf("%d connections where one was enough", n)
	}
}

func TestClientCancels(t *testing.T) {
	s, web := webClient(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+s.addr()+"/hang", nil)
	if resp, err := web.Do(req); err == nil {
		resp.Body.Close()
		t.Error("a response came from a handler that hangs")
	}
	// The handler returns only when its hook was called; the connection serves on.
	resp, err := web.Get("https://" + s.addr() + "/hello")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	s.each(func(c *Conn) {
		deadline := time.Now().Add(10 * time.Second)
		for {
			c.mu.Lock()
			n := c.running
			c.mu.Unlock()
			if n == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d handlers still run", n)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func TestConnectionLossCancels(t *testing.T) {
	over := make(chan error, 1)
	begun, hooked := make(chan struct{}), make(chan struct{})
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(func(s *Stream) {
		s.SetCancel(func() { close(hooked) })
		close(begun)
		_, err := drainBody(s)
		if !s.Cancelled() {
			t.Error("not cancelled")
		}
		over <- err
	}), nil)
	rc := dialRaw(t, s.addr())
	rc.request(1, false, post("/")...)
	rc.fr.WriteData(1, false, []byte("some"))
	<-begun
	rc.nc.Close()
	if err := <-over; !errors.Is(err, ErrGone) {
		t.Errorf("handler saw %v", err)
	}
	<-hooked
	if err := s.serveErr(); err == nil {
		t.Error("Serve ended without an error with a stream open")
	}
}

func TestEarlyAnswerStopsUpload(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	rc.request(1, false, post("/early")...)
	if o := rc.await(1); o.status != "403" || !o.end {
		t.Fatal(o)
	}
	if o := rc.await(1); !o.isRST || o.reset != h2.ErrCodeNo {
		t.Fatalf("after the answer: %v", o)
	}
	rc.fr.WriteData(1, false, make([]byte, 10000)) // was under way
	rc.request(3, true, get("/")...)
	if o := rc.await(3); o.status != "200" {
		t.Fatal(o)
	}
}

// Discarded bodies must not eat the connection's window.
func TestWindowOfDiscardedData(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{ConnWindow: 65535, StreamWindow: 65535}, handlerFunc(testHandler), nil)
	server := s.addr()
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	web := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	body := make([]byte, 40000)
	for i := range 50 {
		resp, err := web.Post("http://"+server+"/early", "", bytes.NewReader(body))
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

func TestShutdownFinishesStreams(t *testing.T) {
	begun, release := make(chan struct{}, 2), make(chan struct{})
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(func(s *Stream) {
		begun <- struct{}{}
		<-release
		answer(s, 200, "late")
	}), nil)
	rc := dialRaw(t, s.addr())
	rc.request(1, true, get("/")...)
	<-begun
	s.each(func(c *Conn) { c.Shutdown() })

	var last []uint32
	sent := false
	for {
		f, err := rc.fr.ReadFrame()
		if err != nil {
			break
		}
		switch f := f.(type) {
		case *h2.GoAwayFrame:
			last = append(last, f.LastStreamID)
			if f.ErrCode != h2.ErrCodeNo {
				t.Errorf("GOAWAY says %v", f.ErrCode)
			}
			if len(last) == 2 {
				rc.request(5, true, get("/")...) // too late: to be ignored
				close(release)
			}
		case *h2.PingFrame:
			if !f.IsAck() && !sent {
				sent = true
				rc.request(3, true, get("/")...) // was under way: still served
				rc.fr.WritePing(true, f.Data)
			}
		case *h2.DataFrame:
			if f.StreamID == 5 {
				t.Error("a stream above the last was served")
			}
			if string(f.Data()) == "late" {
				last = append(last, 1000+f.StreamID)
			}
		}
	}
	if len(last) != 4 || last[0] != maxWindow || last[1] != 3 || last[2]+last[3] != 2004 {
		t.Errorf("GOAWAYs and answers: %v", last)
	}
	if err := s.serveErr(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestShutdownUnderLoad(t *testing.T) {
	s, web := webClient(t, Config{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := web.Get("https://" + s.addr() + "/bytes/3000")
				if err != nil {
					t.Error(err)
					return
				}
				n, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || n != 3000 {
					t.Errorf("%d bytes, %v", n, err)
				}
			}
		}()
	}
	for range 10 {
		time.Sleep(30 * time.Millisecond)
		s.each(func(c *Conn) { c.Shutdown() })
	}
	close(stop)
	wg.Wait()
}

func TestTools(t *testing.T) {
	server, _ := testTLS(t)
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), server)
	_, port, _ := strings.Cut(s.addr(), ":")
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"nghttp", "-v", "https://" + s.addr() + "/fields"}, "GET https " + s.addr() + " /fields"},
		{[]string{"h2load", "-n", "2000", "-c", "4", "-m", "16", "https://" + s.addr() + "/bytes/300"}, "2000 succeeded, 0 failed"},
		{[]string{"h2load", "-n", "100", "-c", "2", "-m", "10", "-w", "16", "https://" + s.addr() + "/bytes/1000000"}, "100 succeeded, 0 failed"},
		// The path is one whose handler reads the body first. An answer before it would end streams on which h2spec
		// wants to see the error of its next frame.
		{[]string{"h2spec", "-o", "10", "-t", "-k", "-S", "-h", "127.0.0.1", "-p", port, "-P", "/"}, "146 passed, 0 skipped, 0 failed"},
		{[]string{"curl", "-sk", "--http2", "https://" + s.addr() + "/fields"}, "user-agent: curl"},
	} {
		if _, err := exec.LookPath(row.args[0]); err != nil {
			t.Logf("skipping %s: it is not installed", row.args[0])
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		out, err := exec.CommandContext(ctx, row.args[0], row.args[1:]...).CombinedOutput()
		cancel()
		if err != nil || !strings.Contains(string(out), row.want) {
			t.Errorf("%v: %v: no %q in\n%s", row.args, err, row.want, out)
		}
	}
}

// A hook must never run when its exchange is over: what it would abort may belong to another one by then.
func TestCancelHookIsNeverLate(t *testing.T) {
	type exchange struct{ over, hooked atomic.Bool }
	s := startServer(t, "127.0.0.1:0", Config{Run: func(f func()) { go f() }}, handlerFunc(func(s *Stream) {
		e, id := new(exchange), s.ID()
		s.SetCancel(func() {
			time.Sleep(time.Duration(id%7) * 10 * time.Microsecond)
			if e.over.Load() {
				t.Error("hook of an exchange that is over")
			}
			if e.hooked.Swap(true) {
				t.Error("hook ran twice")
			}
		})
		time.Sleep(time.Duration(s.ID()%5) * 20 * time.Microsecond)
		if s.ID()%3 == 0 {
			s.SetCancel(nil)
			e.over.Store(true)
			time.Sleep(50 * time.Microsecond)
			return
		}
		answer(s, 200, "")
		s.SetCancel(nil)
		e.over.Store(true)
	}), nil)
	for range 20 {
		rc := dialRaw(t, s.addr())
		go io.Copy(io.Discard, rc.nc)
		for i := range 100 {
			rc.request(uint32(2*i+1), true, get("/")...)
			time.Sleep(20 * time.Microsecond)
			rc.fr.WriteRSTStream(uint32(2*i+1), h2.ErrCodeCancel)
		}
		rc.nc.Close()
		s.serveErr()
	}
}

// An idle connection holds no pooled buffer, and its buffers are there again when they are wanted.
func TestIdleConnectionIsSmall(t *testing.T) {
	s, web := webClient(t, Config{})
	for range 3 {
		resp, err := web.Post("https://"+s.addr()+"/count", "", bytes.NewReader(make([]byte, 50_000)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	held := func() (held bool) {
		s.each(func(c *Conn) {
			c.mu.Lock()
			defer c.mu.Unlock()
			held = held || c.out != nil || c.running != 0
		})
		return held
	}
	for deadline := time.Now().Add(10 * time.Second); held(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an idle connection holds buffers")
		}
	}
}
