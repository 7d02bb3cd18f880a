// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"math"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// pong waits until all that was sent before is done.
func (f *frames) pong(t *testing.T) {
	t.Helper()
	if err := f.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := fr.(*h2.PingFrame); ok && p.IsAck() {
			return
		}
	}
}

// A stream that is over before its exchange has come to the upstream costs that nothing, whoever reset it.
func TestResetBeforeTheUpstream(t *testing.T) {
	var asked atomic.Int64
	g := newGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })}, nil)
	const each = 10
	o := &g.worker.overload
	o.turns.set(0) // so that all wait where they begin
	o.room.Store(100)
	o.standing.Store(true)
	f, err := dialFrames(g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer f.nc.NetConn().Close()
	for i := range 2 * each {
		if i < each {
			err = errors.Join(f.request(oddID(i), true, "GET", "/"), f.WriteRSTStream(oddID(i), h2.ErrCodeCancel))
		} else {
			err = errors.Join(f.request(oddID(i), true, "GET", "/"), f.WriteRawFrame(h2.FrameWindowUpdate, 0, oddID(i), make([]byte, 4)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f.pong(t)
	o.standing.Store(false)
	o.turns.set(math.MaxInt)
	outcomes := map[zone.RequestOutcome]int{}
	for _, r := range g.records(2 * each) {
		outcomes[r.Outcome]++
		if r.Status != 499 {
			t.Errorf("status %d", r.Status)
		}
	}
	if outcomes[zone.RequestClientReset] != each || outcomes[zone.RequestHTTP2Error] != each {
		t.Errorf("outcomes: %v", outcomes)
	}
	if n, opened := asked.Load(), g.slab.Load(zone.UpstreamConnectionsOpened); n != 0 || opened != 0 {
		t.Errorf("%d requests came to the upstream over %d connections", n, opened)
	}
}

// A connection for which a stream has waited until it was reset goes to the next as it is.
func TestResetBeforeItsConnection(t *testing.T) {
	var asked atomic.Int64
	hold := make(chan struct{})
	g := newGateway(t, []string{httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path == "/hold" {
			<-hold
		}
		_, _ = io.WriteString(w, "hello")
	})}, func(s *policy.Snapshot) {
		u := &s.Upstreams[0]
		u.MaxConnections, u.MaxPending, u.PendingTimeout = 1, 10, 20*time.Second
		u.HeaderTimeout = 20 * time.Second
	})
	f, err := dialFrames(g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer f.nc.NetConn().Close()
	if err := f.request(1, true, "GET", "/hold"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the only connection is in use", func() bool { return asked.Load() == 1 })
	if err := f.request(3, true, "GET", "/"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another stream waits for it", func() bool {
		u := g.worker.current.Load().upstreams[0]
		u.mu.Lock()
		defer u.mu.Unlock()
		return len(u.waiting) == 1
	})
	if err := f.WriteRSTStream(3, h2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	f.pong(t)
	close(hold)
	if err := f.request(5, true, "GET", "/"); err != nil {
		t.Fatal(err)
	}
	outcomes := map[zone.RequestOutcome]int{}
	for _, r := range g.records(3) {
		outcomes[r.Outcome]++
	}
	if outcomes[zone.RequestOK] != 2 || outcomes[zone.RequestClientReset] != 1 {
		t.Errorf("outcomes: %v", outcomes)
	}
	if n, opened := asked.Load(), g.slab.Load(zone.UpstreamConnectionsOpened); n != 2 || opened != 1 {
		t.Errorf("%d requests came to the upstream over %d connections", n, opened)
	}
}
