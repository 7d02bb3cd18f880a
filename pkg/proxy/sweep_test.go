// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math"
	"testing"
	"unsafe"

	"github.com/xgw-project/xgw/pkg/policy"
)

// What the sweeper passes over must not be overdue, ever, nor become so unseen.
func TestQuietConnections(t *testing.T) {
	const now = 1000
	w := newGateway(t, []string{httpUpstream(t, echo)}, nil).worker
	for name, row := range map[string]struct {
		change func(c *conn)
		quiet  bool
	}{
		"nothing":           {func(*conn) {}, true},
		"idle, in time":     {func(c *conn) { c.idle.Store(true); c.readBy.Store(now) }, true},
		"idle, overdue":     {func(c *conn) { c.idle.Store(true); c.readBy.Store(now - 1) }, false},
		"a reply goes out":  {func(c *conn) { c.writeBy.Store(math.MaxInt64) }, false},
		"a body comes":      {func(c *conn) { c.receiving.Add(1) }, false},
		"a stream sends":    {func(c *conn) { c.sending.Add(1) }, false},
		"it rests":          {func(c *conn) { c.restUntil.Store(math.MaxInt64) }, false},
		"an upstream works": {func(c *conn) { c.watch(&upConn{}) }, false},
		"none any more":     {func(c *conn) { c.watch(&upConn{}); c.watch(nil) }, true},
		"a stream is abandoned": {func(c *conn) {
			u := &upstream{policy: &policy.Upstream{MaxConnections: 8 * heldShare}}
			u.cancelAt.Store(math.MaxInt64 / 2) // the rate is used up
			st := &stream{conn: c, upstream: &upConn{up: u}}
			st.cancelUpstream()
		}, false},
		"and reclaimed": {func(c *conn) {
			st := &stream{conn: c}
			c.abandoned = map[*stream]*upstream{st: {}}
			c.watches.Store(true)
			c.reclaim(st)
		}, true},
	} {
		c := &conn{worker: w}
		row.change(c)
		if got := c.quiet(now); got != row.quiet {
			t.Errorf("%s: quiet %v", name, got)
		}
	}
	if size := unsafe.Sizeof(phase{}); size != 64 {
		t.Errorf("what the sweeper looks at is %d bytes, want a cache line", size)
	}
}

// BenchmarkSweep looks at 10,000 idle connections that nobody looked at lately.
func BenchmarkSweep(b *testing.B) {
	w := &Worker{conns: map[*conn]struct{}{}}
	for range 10_000 {
		c := &conn{worker: w}
		c.idle.Store(true)
		c.readBy.Store(math.MaxInt64)
		w.conns[c] = struct{}{}
	}
	others := make([]byte, 128<<20) // what the caches hold instead
	for b.Loop() {
		b.StopTimer()
		for i := 0; i < len(others); i += 64 {
			others[i]++
		}
		b.StartTimer()
		w.sweepOnce(1)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(w.conns)), "ns/connection")
}
