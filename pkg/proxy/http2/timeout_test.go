// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"errors"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
)

func TestTimeouts(t *testing.T) {
	const short = 300 * time.Millisecond
	rows := []struct {
		name string
		cfg  Config
		send func(rc *rawClient)
		want func(err error) bool
	}{
		{"idle", Config{Idle: short}, func(*rawClient) {}, func(err error) bool { return err == nil }},
		{"cut header block", Config{Header: short}, func(rc *rawClient) {
			rc.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: rc.block(get("/")...)})
		}, func(err error) bool { return errors.Is(err, ErrHeaderTimeout) }},
		{"cut frame", Config{Header: short}, func(rc *rawClient) { rc.send([]byte{0, 0}) },
			func(err error) bool { return errors.Is(err, ErrHeaderTimeout) }},
		{"cut payload", Config{Header: short}, func(rc *rawClient) { rc.send([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 1}) },
			func(err error) bool { return errors.Is(err, ErrHeaderTimeout) }},
		{"does not read", Config{Write: short}, func(rc *rawClient) {
			rc.fr.WriteWindowUpdate(0, 1<<30)
			rc.request(1, true, get("/bytes/100000000")...)
			rc.request(3, true, get("/bytes/100000000")...)
		}, func(err error) bool { return errors.Is(err, ErrWriteTimeout) }},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s := startServer(t, "127.0.0.1:0", row.cfg, handlerFunc(testHandler), nil)
			settings := []h2.Setting{{ID: h2.SettingInitialWindowSize, Val: 1 << 30}}
			row.send(dialRaw(t, s.addr(), settings...))
			if err := s.serveErr(); !row.want(err) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	t.Run("no preface", func(t *testing.T) {
		s := startServer(t, "127.0.0.1:0", Config{Header: short}, handlerFunc(testHandler), nil)
		dialBare(t, s.addr()).send([]byte("PRI *"))
		if err := s.serveErr(); !errors.Is(err, ErrHeaderTimeout) {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Run("SETTINGS not acknowledged", func(t *testing.T) {
		s := startServer(t, "127.0.0.1:0", Config{Header: time.Second}, handlerFunc(testHandler), nil)
		rc := dialBare(t, s.addr())
		rc.send([]byte(h2.ClientPreface))
		rc.fr.WriteSettings()
		if o := rc.await(0); o.String() != "conn SETTINGS_TIMEOUT" {
			t.Error(o)
		}
	})
}

func TestStreamTimeouts(t *testing.T) {
	seen := make(chan error, 1)
	s := startServer(t, "127.0.0.1:0", Config{Body: 500 * time.Millisecond, Write: 500 * time.Millisecond}, handlerFunc(func(s *Stream) {
		if string(s.Method()) == "POST" {
			_, err := drainBody(s)
			seen <- err
			answer(s, 408, "")
			return
		}
		s.BeginHeaders(200)
		s.EndHeaders(false)
		_, err := s.Write(make([]byte, 100), true)
		seen <- err
	}), nil)
	rc := dialRaw(t, s.addr(), h2.Setting{ID: h2.SettingInitialWindowSize, Val: 10})
	rc.request(1, false, post("/")...)
	if err := <-seen; !errors.Is(err, ErrTimeout) {
		t.Errorf("body that does not come: %v", err)
	}
	if o := rc.await(1); o.status != "408" {
		t.Error(o)
	}
	rc.request(3, true, get("/")...)
	if err := <-seen; !errors.Is(err, ErrTimeout) {
		t.Errorf("window that does not open: %v", err)
	}
	if o := rc.await(3); o.String() != "stream CANCEL" {
		t.Error(o)
	}
	rc.request(5, true, get("/")...)
	rc.fr.WriteWindowUpdate(5, 90)
	if err := <-seen; err != nil {
		t.Errorf("window that opens: %v", err)
	}
}

func TestTinyWindows(t *testing.T) {
	s := startServer(t, "127.0.0.1:0", Config{}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr(), h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0})
	rc.request(1, true, get("/bytes/60")...)
	for range 60 {
		rc.fr.WriteWindowUpdate(1, 1)
	}
	if o := rc.await(1); !o.end || o.body != 60 {
		t.Errorf("%d bytes through a window of one: %v", o.body, o)
	}
	// A window below 0 is filled up first.
	rc.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 50})
	rc.request(3, true, get("/bytes/100")...)
	for got := 0; got < 50; {
		f, err := rc.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*h2.DataFrame); ok {
			got += len(d.Data())
		}
	}
	rc.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0})
	rc.fr.WriteWindowUpdate(3, 50)
	rc.fr.WriteWindowUpdate(3, 49)
	rc.fr.WritePing(false, [8]byte{1})
	for {
		f, err := rc.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*h2.DataFrame); ok && d.StreamEnded() {
			t.Error("more was sent than the window allows")
		}
		if p, ok := f.(*h2.PingFrame); ok && p.IsAck() {
			break
		}
	}
	rc.fr.WriteWindowUpdate(3, 1)
	if o := rc.await(3); !o.end {
		t.Error(o)
	}
}
