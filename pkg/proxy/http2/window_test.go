// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"testing"

	h2 "golang.org/x/net/http2"
)

// credit is what a client may send, on the connection and on one stream.
type credit struct{ conn, stream int }

// read takes a frame of the server's, and tells whether it ended the stream or answers a PING.
func (c *credit) read(t *testing.T, rc *rawClient, id uint32) (end, pong bool) {
	t.Helper()
	f, err := rc.fr.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	switch f := f.(type) {
	case *h2.WindowUpdateFrame:
		switch f.StreamID {
		case 0:
			c.conn += int(f.Increment)
		case id:
			c.stream += int(f.Increment)
		}
	case *h2.PingFrame:
		return false, f.IsAck()
	case *h2.DataFrame:
		return f.StreamEnded(), false
	case *h2.GoAwayFrame, *h2.RSTStreamFrame:
		t.Fatal(f)
	}
	return false, false
}

// Of bodies that nobody takes a connection holds little; the more is taken, the more may be
// under way, up to what is configured.
func TestConnectionWindowWidens(t *testing.T) {
	const most, body, part = 1 << 20, 4 << 20, 4096
	s := startServer(t, "127.0.0.1:0", Config{ConnWindow: most}, handlerFunc(testHandler), nil)
	rc := dialRaw(t, s.addr())
	c := credit{conn: defaultWindow}
	for id := uint32(1); id < 9; id += 2 {
		rc.request(id, false, post("/hang")...)
		for range 10 {
			_ = rc.fr.WriteData(id, false, make([]byte, part))
			c.conn -= part
		}
	}
	_ = rc.fr.WritePing(false, [8]byte{})
	for pong := false; !pong; {
		_, pong = c.read(t, rc, 0)
	}
	if want := firstConnWindow - 4*10*part; c.conn != want {
		t.Errorf("%d bytes may follow those that nobody takes, want %d", c.conn, want)
	}

	rc = dialRaw(t, s.addr())
	c = credit{conn: defaultWindow, stream: 64 << 10}
	rc.request(1, false, post("/count")...)
	widest, sent, end := 0, 0, false
	for !end {
		for sent < body && c.conn >= part && c.stream >= part {
			sent, c.conn, c.stream = sent+part, c.conn-part, c.stream-part
			_ = rc.fr.WriteData(1, sent == body, make([]byte, part))
		}
		end, _ = c.read(t, rc, 1)
		widest = max(widest, c.conn)
	}
	if widest > most || widest < most-most/4 {
		t.Errorf("%d bytes may be under way at most after %d were taken, want %d", widest, body, most)
	}
}
