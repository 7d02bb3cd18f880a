// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// readersIn is how many goroutines wait for a client in that function: waitIdle for a request's first byte, readHead for more of its head.
func readersIn(function string) (n int) {
	b := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if strings.Contains(g, "[IO wait") && strings.Contains(g, "(*conn)."+function+"(") {
			n++
		}
	}
	return n
}

// unread is what the kernel holds of the gateway's only client.
func (g *gateway) unread() (n int) {
	g.Helper()
	g.worker.mu.Lock()
	defer g.worker.mu.Unlock()
	for c := range g.worker.conns {
		err := c.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		if err != nil {
			g.Fatal(err)
		}
	}
	return n
}

// In an overload an idle client's request waits for its turn where it is, in the kernel, whatever becomes of it then.
func TestQueueUnread(t *testing.T) {
	request := "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 7000) + "\r\n\r\n" // more than one call reads
	for _, row := range []struct {
		name   string
		then   func(g *gateway, c *raw) // while it waits
		status int                      // 0: none
		closes bool
	}{
		{"served", func(*gateway, *raw) {}, 200, false},
		{"gone", func(_ *gateway, c *raw) { _ = c.NetConn().Close() }, 0, true},
		{"drained", func(g *gateway, _ *raw) {
			g.worker.mu.Lock()
			defer g.worker.mu.Unlock()
			for c := range g.worker.conns {
				if c.idleSince() != 0 {
					t.Error("it counts as idle: it may be closed to make room")
				}
				c.drain()
			}
		}, 200, true},
		{"overload over", func(g *gateway, _ *raw) { g.worker.overload.end() }, 200, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
			o := &g.worker.overload
			c := g.raw()
			c.send(request)
			c.reply("GET") // the first is always served
			eventually(t, "the client is idle", func() bool { return readersIn("waitIdle") == 1 })
			o.room.Store(10)
			o.turns.set(0)
			o.standing.Store(true)
			defer o.end()
			if row.status == 0 {
				row.then(g, c) // its end is what comes
			} else {
				c.send(request)
			}
			eventually(t, "it waits for its turn", func() bool { return o.turns.wanted() })
			if n := g.unread(); row.status != 0 && n < len(request) {
				t.Errorf("%d bytes are unread, want the request", n)
			}
			const wait = 50 * time.Millisecond
			time.Sleep(wait)
			if row.status != 0 {
				row.then(g, c)
			}
			o.turns.set(1)
			if row.status != 0 {
				if r, _ := c.reply("GET"); r.StatusCode != row.status || r.Close != row.closes {
					t.Errorf("status %d, closes %v", r.StatusCode, r.Close)
				}
				if took := g.records(2)[1].Duration; took < wait {
					t.Errorf("the request took %v by its record, but waited for %v", took, wait)
				}
			} else {
				g.records(1)
			}
			eventually(t, "its place is free", func() bool {
				o.turns.mu.Lock()
				defer o.turns.mu.Unlock()
				return o.under.Load() == 0 && o.running.Load() == 0 && o.turns.taken == 0
			})
			if n := o.refused.Load(); n != 0 {
				t.Errorf("%d count as refused", n)
			}
		})
	}
}

// Who is refused before the request was read learns it, is counted once, and can go on.
func TestQueueRefuses(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
	o := &g.worker.overload
	c := g.raw()
	ask := func(body string) int {
		eventually(t, "the client is idle", func() bool { return readersIn("waitIdle") == 1 })
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n" + body)
		r, _ := c.reply("POST")
		return r.StatusCode
	}
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.reply("GET")
	o.standing.Store(true) // there is no room
	for n := range 3 {
		if status := ask("abc"); status != 503 {
			t.Fatalf("status %d", status)
		}
		if refused, under := o.refused.Load(), o.under.Load(); refused != int64(n+1) || under != 0 {
			t.Errorf("%d are refused, want %d, and %d under way", refused, n+1, under)
		}
	}
	o.room.Store(10)
	if status := ask("abc"); status != 200 {
		t.Errorf("status %d where there is room", status)
	}
	o.room.Store(0)
	if status := ask("abc"); status != 503 {
		t.Errorf("status %d where there is none any more", status)
	}
	o.end()
	if status := ask("abc"); status != 200 {
		t.Errorf("status %d after the overload", status)
	}
}

// A client that sends a part of a request keeps no place from others until the rest comes.
func TestQueueSlowHead(t *testing.T) {
	g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
	o := &g.worker.overload
	c := g.raw()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.reply("GET")
	eventually(t, "the client is idle", func() bool { return readersIn("waitIdle") == 1 })
	o.room.Store(10)
	o.turns.set(1)
	o.standing.Store(true)
	defer o.end()
	c.send("GET / HTTP/1.1\r\nHost")
	eventually(t, "the worker reads on", func() bool { return readersIn("readHead") == 1 })
	if under, running := o.under.Load(), o.running.Load(); under != 0 || running != 0 {
		t.Errorf("%d are under way, %d of them run", under, running)
	}
	c.send(": a\r\n\r\n")
	if r, _ := c.reply("GET"); r.StatusCode != 200 {
		t.Errorf("status %d", r.StatusCode)
	}
	eventually(t, "its place is free", func() bool { return o.under.Load() == 0 && o.running.Load() == 0 })
}

// With one worker process for each core, whoever comes waits for one round of turns, not for all who wait for theirs.
func TestTurnsLetOthersIn(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	g := newGateway(t, []string{httpUpstream(t, echo)}, nil)
	o := &g.worker.overload
	o.standing.Store(true)
	defer o.end()
	o.turns.set(1)
	far, near, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	defer near.Close()
	const n = 2000
	began := 0 // by one goroutine at a time
	var ended atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		_, _ = far.Read(make([]byte, 1))
		if before := ended.Load(); before > 20 {
			t.Errorf("%d had a turn before somebody was looked at who came after the first", before)
		}
	})
	for range n {
		all.Go(func() {
			o.under.Add(1)
			var p place
			o.enter(&p)
			if began++; began == 2 {
				_, _ = near.Write([]byte{0}) // somebody comes
			}
			runtime.Gosched()
			ended.Add(1)
			o.leave(&p)
		})
	}
	all.Wait()
	if ended.Load() != n || o.turns.taken != 0 {
		t.Errorf("%d of %d had a turn, and %d have one still", ended.Load(), n, o.turns.taken)
	}
}
