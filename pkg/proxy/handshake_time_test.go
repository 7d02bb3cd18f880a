// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// slowHello waits before it sends each part of a handshake.
type slowHello struct {
	net.Conn
	wait time.Duration
}

func (s slowHello) Write(b []byte) (int, error) {
	time.Sleep(s.wait)
	return s.Conn.Write(b)
}

// A handshake's time at work is counted, and the time that it waits for its client is not.
func TestHandshakeTimeLeavesWaitsOut(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})}, nil)
	const wait = 2 * time.Second
	nc, err := net.Dial("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(slowHello{nc, wait / 2}, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for begun := time.Now(); g.slab.LoadHandshake(zone.HandshakeFull) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("the handshake is not counted")
		}
	}
	if worked := time.Duration(g.slab.Load(zone.HandshakeTime)); worked <= 0 || worked > wait/2 {
		t.Errorf("a handshake with a client that waits for %s is said to have worked for %s", wait, worked)
	}
}
