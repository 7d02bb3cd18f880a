// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// States in which a crowd's connections do a little now and then, for as long as they are let.
const (
	crowdTrickle1 = "trickled-head" // the next byte of a head without an end
	crowdTrickle2 = "trickled-block"
	crowdUnread1  = "unread-http1" // the next bytes of a long reply
	crowdUnread2  = "unread-http2"
	crowdBody1    = "trickled-body-http1"
	crowdBody2    = "trickled-body-http2"
)

// dialSlow brings a connection to its state and returns what it goes on with.
func dialSlow(address, state string) (c *tls.Conn, step func() error, err error) {
	switch state {
	case crowdTrickle1, crowdUnread1, crowdBody1:
		head := crowdHead
		if state != crowdTrickle1 {
			head = crowdFresh
		}
		if c, err = crowdDial(address, head); err != nil {
			return nil, nil, err
		}
		step = func() error { _, err := c.Write([]byte("x")); return err }
		switch state {
		case crowdBody1:
			_, err = io.WriteString(c, "POST /hang HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
		case crowdUnread1:
			_ = c.NetConn().(interface{ SetReadBuffer(int) error }).SetReadBuffer(4 << 10)
			_, err = io.WriteString(c, "GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
			step = func() error { _, err := c.NetConn().Read(make([]byte, 10)); return err }
		}
		return c, step, err
	case crowdTrickle2:
		c, err = crowdDial(address, crowdHeaders)
		more := frame(h2.FrameContinuation, 1, 0x82)
		return c, func() error { _, err := c.Write(more); return err }, err
	}
	f, err := dialFrames(address, h2.Setting{ID: h2.SettingInitialWindowSize})
	if err != nil {
		return nil, nil, err
	}
	if state == crowdUnread2 {
		return f.nc, func() error { return f.WriteWindowUpdate(1, 1) }, f.request(1, true, "GET", "/long")
	}
	return f.nc, func() error { return f.WriteData(1, false, []byte("x")) }, f.request(1, false, "POST", "/hang")
}

func frame(t h2.FrameType, stream uint32, payload ...byte) []byte {
	b := []byte{0, 0, byte(len(payload)), byte(t), 0}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// keepOn takes a step each interval until one fails: the gateway has had enough.
func keepOn(step func() error, interval time.Duration) {
	for step() == nil {
		time.Sleep(interval)
	}
}

// Each way of doing too little is cut, with a name, and costs a good client beside it nothing.
func TestSlowClients(t *testing.T) {
	testWindow = 500 * time.Millisecond
	defer func() { testWindow = 0 }()
	up, end := helper(t, "upstream")
	defer end()
	const n = 50
	for _, row := range []struct {
		state   string
		outcome zone.RequestOutcome
		misuse  zone.Misuse // of HTTP/2
	}{
		{crowdTrickle1, zone.RequestClientTimeout, -1},
		{crowdTrickle2, -1, zone.MisuseSlowHeader}, // there is no exchange yet
		{crowdUnread1, zone.RequestClientTimeout, -1},
		{crowdUnread2, zone.RequestClientTimeout, zone.MisuseSlow},
		{crowdBody1, zone.RequestClientTimeout, -1},
		{crowdBody2, zone.RequestClientTimeout, zone.MisuseSlow},
	} {
		t.Run(row.state, func(t *testing.T) {
			g := newGateway(t, []string{up}, func(s *policy.Snapshot) {
				s.Timeouts.Header, s.Timeouts.MinRate, s.Upstreams[0].MaxConnections = time.Second, 5000, 512
			})
			client := g.client(true)
			if _, err := good(client, g.url("/"), 50); err != nil { // warm
				t.Fatal(err)
			}
			g.unharmed(func(round int) (beside, quiet time.Duration) {
				measure := func() time.Duration {
					d, err := good(client, g.url("/"), 200)
					if err != nil {
						t.Fatalf("good client: %v", err)
					}
					return d
				}
				quiet = measure()
				leave := g.crowd(row.state, n)
				defer leave()
				beside = measure()
				defer func() { quiet = max(quiet, measure()) }() // they are all gone
				eventually(t, "all are cut and named", func() bool {
					return (row.outcome < 0 || g.slab.LoadRequest(row.outcome) == uint64(round*n)) &&
						(row.misuse < 0 || g.slab.LoadMisuse(row.misuse) == uint64(round*n)) &&
						g.slab.LoadGauge(zone.GaugeConnections) == 1 // the good client's
				})
				return beside, quiet
			})
		})
	}
}

// unharmed asserts of two times, measured beside an abuse and without it, that the first is not
// far above the second: above five times what is promised. Others share this machine: what the abuse does, it does each round.
func (g *gateway) unharmed(round func(n int) (beside, quiet time.Duration)) {
	g.Helper()
	for n := 1; ; n++ {
		beside, quiet := round(n)
		g.Logf("good client: p99 %v, %v quiet", beside, quiet)
		switch {
		case raceEnabled || g.Failed() || beside <= max(25*time.Millisecond, 3*quiet):
			return
		case n == 5:
			g.Errorf("good client: p99 %v, quiet %v", beside, quiet)
			return
		}
	}
}

// Five thousand connections with heads that never end hold little, and a good client beside them
// does not notice.
func TestThousandsOfSlowClients(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	const most = 20 << 10
	n := 5000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < 6000 {
		n = int(limit.Cur) / 2
		t.Logf("%d connections, since descriptors are limited to %d", n, limit.Cur)
	}
	up, end := helper(t, "upstream")
	defer end()
	g := newGateway(t, []string{up}, func(s *policy.Snapshot) { s.Connections, s.Timeouts.Header = 2*n, 5*time.Minute })
	client := g.client(true)
	g.crowd(crowdTrickle1, 10)() // what is made once
	g.unharmed(func(int) (beside, quiet time.Duration) {
		measure := func() time.Duration {
			d, err := good(client, g.url("/"), 200)
			if err != nil {
				t.Fatalf("good client: %v", err)
			}
			return d
		}
		quiet = measure()
		before := inUse()
		leave := g.crowd(crowdTrickle1, n)
		beside = measure()
		eventually(t, "all are open", func() bool { return g.slab.LoadGauge(zone.GaugeConnections) == uint64(n+1) })
		each := (inUse() - before) / int64(n)
		t.Logf("%.1f KiB a connection", float64(each)/1024)
		if each > most {
			t.Errorf("%d bytes a connection, want at most %d", each, most)
		}
		leave()
		eventually(t, "they are gone", func() bool { return g.slab.LoadGauge(zone.GaugeConnections) == 1 })
		return beside, max(quiet, measure())
	})
	eventually(t, "those that left are counted", func() bool { return g.slab.LoadRequest(zone.RequestClientReset) >= uint64(n) })
}
