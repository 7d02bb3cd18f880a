// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
)

// court keeps what a bulletin gives it to judge.
type court struct {
	*Bulletin
	mu    sync.Mutex
	heard []Verdict
}

func newCourt(t *testing.T, s *server) *court {
	c := &court{}
	c.Bulletin = NewBulletin(New(s.client(), "test:", slog.New(slog.NewTextHandler(io.Discard, nil))), func(v Verdict) string {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.heard = append(c.heard, v)
		return "given"
	})
	c.Set(true)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { c.Send(ctx) })
	all.Go(func() { c.Follow(ctx) })
	t.Cleanup(func() { cancel(); all.Wait() })
	return c
}

func (c *court) of(source string) (out []Verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.heard {
		if v.Source == netip.MustParseAddr(source) {
			out = append(out, v)
		}
	}
	return out
}

func give(source string, ttl time.Duration) Verdict {
	return Verdict{Source: netip.MustParseAddr(source), Step: "all", Reason: "429", Rule: "loud", Who: 5, TTL: ttl}
}

// Verdicts come to the others and not back; to who comes later while they are in force; and after
// a silence of the server.
func TestVerdictsTravel(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	a, b := newCourt(t, s), newCourt(t, s)
	a.Tell(give("192.0.2.1", time.Minute))
	a.Tell(give("192.0.2.2", 100*time.Millisecond))
	began := time.Now()
	eventually(t, "the other hears", func() bool { return len(b.of("192.0.2.1")) == 1 })
	t.Logf("heard after %s", time.Since(began))
	if v := b.of("192.0.2.1")[0]; v.Step != "all" || v.Reason != "429" || v.Rule != "loud" || v.Who != 5 || v.Mark == 0 || v.TTL > time.Minute+time.Second || v.TTL < 50*time.Second {
		t.Errorf("heard: %+v", v)
	}
	if err := s.client().XAdd(context.Background(), xadd("test:verdicts", `{"source":"no address"}`)).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is none is counted", func() bool { return b.node.Stats().Verdicts[Invalid] == 1 })
	time.Sleep(100 * time.Millisecond) // the second one is over
	late := newCourt(t, s)
	eventually(t, "who comes later hears", func() bool { return len(late.of("192.0.2.1")) == 1 })
	if len(late.of("192.0.2.2")) > 0 || late.node.Stats().Verdicts[Expired] != 1 {
		t.Errorf("who comes later heard %+v, counts %+v", late.heard, late.node.Stats().Verdicts)
	}
	if len(a.of("192.0.2.1")) > 0 {
		t.Error("it came back")
	}

	s.Signal(syscall.SIGSTOP)
	a.Tell(give("192.0.2.3", time.Minute))
	time.Sleep(300 * time.Millisecond)
	s.Signal(syscall.SIGCONT)
	eventually(t, "one that was given while the server stood still", func() bool { return len(b.of("192.0.2.3")) > 0 })
	s.Kill()
	a.Tell(give("192.0.2.4", time.Minute))
	s.Again() // without anything it had
	eventually(t, "one that was given while there was no server", func() bool { return len(b.of("192.0.2.4")) > 0 && len(late.of("192.0.2.4")) > 0 })
	b.Tell(give("192.0.2.5", time.Minute))
	eventually(t, "the other way round", func() bool { return len(a.of("192.0.2.5")) == 1 })
	if st := a.node.Stats().Verdicts; st[Sent] != 4 || st[Unsent] != 0 {
		t.Errorf("counts: %+v", st)
	}
}

// One that is off tells and hears nothing; a queue that nobody empties loses and counts.
func TestBulletinIsOff(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	b := NewBulletin(New(s.client(), "test:", slog.New(slog.NewTextHandler(io.Discard, nil))), nil)
	b.Tell(give("192.0.2.1", time.Minute))
	if len(b.queue) > 0 {
		t.Error("told while off")
	}
	b.Set(true)
	for range queueVerdicts + 3 {
		b.Tell(give("192.0.2.1", time.Minute))
	}
	if n := b.node.Stats().Verdicts[Unsent]; n != 3 {
		t.Errorf("%d unsent, want 3", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"from":"a","source":"192.0.2.1","step":"all","reason":"429","ttl":1000000000}`)
	f.Add(`{"source":"fe80::1%eth0","ttl":1}`)
	f.Add(`{"source":"","ttl":-1}`)
	f.Add(`[]`)
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		v, ok := parse(text)
		if ok && (!v.Source.IsValid() || v.TTL <= 0 || v.TTL > longest || len(v.Note) > maxText || !utf8.ValidString(v.Note)) {
			t.Errorf("%q: %+v", text, v)
		}
	})
}

func TestMarksGrow(t *testing.T) {
	for _, p := range [][2]string{{"0-0", "0-1"}, {"5-9", "6-0"}, {"1764000000000-1", "1764000000000-2"}, {"1764000000000-99", "1764000000001-0"}} {
		if mark(p[0]) >= mark(p[1]) {
			t.Errorf("%s is not before %s", p[0], p[1])
		}
	}
}

func xadd(stream, text string) *redis.XAddArgs {
	return &redis.XAddArgs{Stream: stream, Values: []string{"verdict", text}}
}
