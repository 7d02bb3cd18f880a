// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
)

// Each flood must end its connection within 1,000 frames, be named, and leave a good client beside it alone.
func TestFloods(t *testing.T) {
	rows := []struct {
		want  MisuseKind
		frame func(rc *rawClient, i int)
	}{
		{Pings, func(rc *rawClient, i int) { rc.fr.WritePing(false, [8]byte{byte(i)}) }},
		{SettingsFrames, func(rc *rawClient, i int) {
			rc.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: uint32(i)})
		}},
		{SettingsFrames, func(rc *rawClient, i int) { rc.fr.WriteSettings() }},
		{Priorities, func(rc *rawClient, i int) { rc.fr.WritePriority(uint32(2*i+1), h2.PriorityParam{}) }},
		{EmptyData, func(rc *rawClient, i int) {
			if i == 0 {
				rc.request(1, false, post("/count")...)
			}
			rc.fr.WriteData(1, false, nil)
		}},
		{EmptyData, func(rc *rawClient, i int) {
			if i == 0 {
				rc.request(1, false, post("/count")...)
			}
			rc.fr.WriteDataPadded(1, false, nil, make([]byte, 30))
		}},
		{WindowUpdates, func(rc *rawClient, i int) { rc.fr.WriteWindowUpdate(0, 1) }},
		{Resets, func(rc *rawClient, i int) { // rapid reset
			rc.request(uint32(2*i+1), true, get("/hang")...)
			rc.fr.WriteRSTStream(uint32(2*i+1), h2.ErrCodeCancel)
		}},
		{CausedResets, func(rc *rawClient, i int) { // made you reset
			rc.request(uint32(2*i+1), true, get("/hang")...)
			rc.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, uint32(2*i+1), u32(0))
		}},
		{CausedResets, func(rc *rawClient, i int) { rc.request(uint32(2*i+1), true, with("te", "gzip")...) }},
		{CausedResets, func(rc *rawClient, i int) { rc.request(uint32(2*i+1), true, with(":method", "BREW")...) }},
		{Continuations, func(rc *rawClient, i int) {
			if i == 0 {
				rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: rc.block(get("/")...)})
			}
			rc.fr.WriteContinuation(1, false, nil)
		}},
		{Continuations, func(rc *rawClient, i int) {
			if i == 0 {
				rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: rc.block(get("/")...)})
			}
			rc.fr.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 16000))
		}},
		{HeaderFloods, func(rc *rawClient, i int) { // thousands of fields of one byte each
			rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: uint32(2*i + 1), EndHeaders: true, EndStream: true,
				BlockFragment: append(rc.block(get("/")...), bytes.Repeat([]byte{0xbe}, 16000)...)})
		}},
		{RefusedStreams, func(rc *rawClient, i int) { rc.request(uint32(2*i+1), true, get("/hang")...) }},
		{UnknownFrames, func(rc *rawClient, i int) { rc.fr.WriteRawFrame(0x99, 0, 0, nil) }},
		{ClosedStreams, func(rc *rawClient, i int) {
			if i == 0 {
				rc.request(1, false, post("/early")...)
				rc.await(1)
				rc.await(1)
			}
			rc.fr.WriteData(1, false, []byte("a"))
		}},
		{WindowUpdates, func(rc *rawClient, i int) { // a response byte by byte
			if i == 0 {
				rc.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0})
				rc.request(1, true, get("/bytes/100000")...)
			}
			rc.fr.WriteWindowUpdate(1, 1)
		}},
	}
	for _, row := range rows {
		t.Run(row.want.String(), func(t *testing.T) {
			s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
			rc := dialRaw(t, s.addr())
			row.frame(rc, 0) // may read
			go io.Copy(io.Discard, rc.nc)
			for i := range 999 {
				row.frame(rc, i+1)
			}
			var m *Misuse
			if err := s.serveErr(); !errors.As(err, &m) || m.Kind != row.want {
				t.Errorf("Serve: %v, want %v", err, row.want)
			}
		})
	}
}

// Streams that are reset as soon as they are begun, by either side, end their connection the soonest: each of them may
// have cost a connection to a server. Who cancels all of its streams once is a browser.
func TestResetsEndSoon(t *testing.T) {
	for _, row := range []struct {
		kind  MisuseKind
		pairs int // that are enough
		frame func(rc *rawClient, id uint32)
	}{
		{Resets, misuseBudget/costEarlyReset + 1, func(rc *rawClient, id uint32) { rc.fr.WriteRSTStream(id, h2.ErrCodeCancel) }},
		{CausedResets, misuseBudget/costCaused + 1, func(rc *rawClient, id uint32) { rc.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, id, u32(0)) }},
	} {
		t.Run(row.kind.String(), func(t *testing.T) {
			s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
			rc := dialRaw(t, s.addr())
			go io.Copy(io.Discard, rc.nc)
			for i := range row.pairs + misuseRefill { // a second is more than this takes
				rc.request(oddID(i), true, get("/hang")...)
				row.frame(rc, oddID(i))
			}
			rc.nc.(*net.TCPConn).CloseWrite()
			var m *Misuse
			if err := s.serveErr(); !errors.As(err, &m) || m.Kind != row.kind {
				t.Errorf("Serve: %v, want %v", err, row.kind)
			}
		})
	}
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	for i := range 100 {
		rc.request(oddID(i), true, get("/hang")...)
	}
	for i := range 100 {
		rc.fr.WriteRSTStream(oddID(i), h2.ErrCodeCancel)
	}
	rc.request(oddID(100), true, get("/")...)
	if o := rc.await(oddID(100)); o.String() != "200" {
		t.Errorf("after all streams were cancelled once: %v", o)
	}
}

func oddID(i int) uint32 { return uint32(2*i + 1) }

func TestFloodIsToldToTheClient(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	for range 1000 {
		rc.fr.WritePing(false, [8]byte{})
	}
	if o := rc.await(0); o.String() != "conn ENHANCE_YOUR_CALM" {
		t.Error(o)
	}
}

// Good work pays for what goes with it, however long the connection lives.
func TestBudgetIsRefilled(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	for i := range 3 * misuseBudget {
		id := uint32(2*i + 1)
		rc.request(id, true, get("/")...)
		rc.fr.WriteWindowUpdate(0, 5)
		rc.fr.WriteWindowUpdate(id, 5)
		rc.fr.WritePing(false, [8]byte{})
		if o := rc.await(id); o.String() != "200" {
			t.Fatalf("request %d: %v", i, o)
		}
	}
}

func TestBudgetByTime(t *testing.T) {
	now := time.Unix(1000, 0)
	clock := func() time.Time { return now }
	b := budget{left: misuseBudget, filled: now}
	spend := func() (n int) {
		for b.charge(Pings, 1, clock) == nil {
			n++
		}
		b.left = 0 // the charge that failed ends the connection; here it goes on
		return n
	}
	if n := spend(); n != misuseBudget {
		t.Errorf("%d before the first refusal", n)
	}
	now = now.Add(2 * time.Second)
	if n := spend(); n != 2*misuseRefill {
		t.Errorf("%d after two seconds", n)
	}
	now = now.Add(time.Hour)
	if n := spend(); n != misuseBudget {
		t.Errorf("%d after an hour", n)
	}
}

// A client that makes us answer and does not read the answers must not make the output grow.
func TestUnreadAnswersAreBounded(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr(), h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 30})
	rc.fr.WriteWindowUpdate(0, 1<<30)
	for i := range 100 {
		rc.request(uint32(2*i+1), true, get("/bytes/10000000")...)
	}
	time.Sleep(300 * time.Millisecond)
	s.each(func(c *Conn) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := c.waiting(); n > c.cfg.OutputBytes+maxFrame+1000 {
			t.Errorf("%d bytes wait to be written", n)
		}
	})
}

// Memory of what clients may make us hold: 100 streams with as much body as the windows allow, unread.
func TestMemoryIsBounded(t *testing.T) {
	hold := make(chan struct{})
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(func(*Stream) { <-hold }), nil)
	defer close(hold)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const conns = 8
	for range conns {
		rc := dialRaw(t, s.addr())
		go io.Copy(io.Discard, rc.nc)
		for i := range 100 {
			rc.request(uint32(2*i+1), false, post("/")...)
		}
		for i := range 100 {
			rc.fr.WriteData(uint32(2*i+1), false, make([]byte, 10400)) // 1 MiB in all
		}
	}
	time.Sleep(300 * time.Millisecond)
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / conns
	t.Logf("%d KiB per connection", per>>10)
	if per > 4<<20 {
		t.Errorf("a connection holds %d bytes", per)
	}
}

// A body that is under way when its request is answered is no misuse, however often that happens.
func TestAnsweredBeforeTheBody(t *testing.T) {
	for _, row := range []struct {
		name   string
		cfg    Config
		path   string
		status string
	}{
		{"by the handler", Config{}, "/early", "403"},
		{"for want of room", Config{Admit: func() int { return 7 }}, "/", "503"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := startServer(t, "127.0.0.1:0", row.cfg, handlerFunc(testHandler), nil)
			rc := dialRaw(t, s.addr())
			for i := range misuseBudget {
				rc.request(oddID(i), false, post(row.path)...)
				if o := rc.await(oddID(i)); o.status != row.status {
					t.Fatalf("request %d: %v", i, o)
				}
				for range 4 {
					_ = rc.fr.WriteData(oddID(i), false, make([]byte, 4<<10))
				}
			}
		})
	}
}
