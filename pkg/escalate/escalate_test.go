// SPDX-License-Identifier: Apache-2.0

package escalate

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
)

// kernel is a Plane that keeps what it is told.
type kernel struct {
	held   map[netip.Addr]policy.Step
	ttl    map[netip.Addr]time.Duration
	exempt netip.Addr
	writes int
}

func (k *kernel) Hold(v *Verdict, ttl time.Duration) error {
	if v.Source == k.exempt {
		return fmt.Errorf("hold: %w", ErrExempt)
	}
	k.writes++
	k.held[v.Source], k.ttl[v.Source] = v.Step, ttl
	return nil
}

func (k *kernel) Release(a netip.Addr) error { delete(k.held, a); return nil }

var (
	abuser = netip.MustParseAddr("192.0.2.18")
	rules  = []policy.Escalation{
		{Name: "loud", ID: 1, Step: policy.ThinSYNs, Most: policy.DropAll, TTL: time.Minute},
		{Name: "hard", ID: 2, Step: policy.DropSYNs, Most: policy.DropNew, TTL: time.Second},
		{Name: "tried", ID: 3, Step: policy.DropNew, Most: policy.DropAll, TTL: time.Minute, DryRun: true},
	}
)

// book is one with rules, a kernel, and a count of good neighbours that a test sets.
func book() (b *Book, k *kernel, good *int, log *bytes.Buffer) {
	k = &kernel{held: map[netip.Addr]policy.Step{}, ttl: map[netip.Addr]time.Duration{}}
	good, log = new(int), &bytes.Buffer{}
	b = NewBook(k, slog.New(slog.NewTextHandler(log, nil)), func(netip.Addr, uint64) int { return *good })
	b.SetRules(rules, 1, func(a netip.Addr) bool { return a == netip.MustParseAddr("203.0.113.2") })
	return b, k, good, log
}

func counts(b *Book) string {
	var out []string
	b.Counts(func(c Count, n uint64) { out = append(out, fmt.Sprintf("%s %s %s %d", c.Fate, c.Step, c.Reason, n)) })
	return strings.Join(out, ", ")
}

// Streaks raise the step, one by one, up to the rule's last; time lowers it again, down to
// nothing.
func TestStepsRiseAndDecay(t *testing.T) {
	b, k, _, log := book()
	now := time.Unix(1000, 0)
	for i, want := range []policy.Step{policy.ThinSYNs, policy.DropSYNs, policy.DropNew, policy.DropAll, policy.DropAll} {
		b.Streak(Streak{Source: abuser, Rule: 1, Reason: "429"}, now)
		if k.held[abuser] != want || k.ttl[abuser] != time.Minute+slack {
			t.Errorf("streak %d: held to %v for %v, want %v", i, k.held[abuser], k.ttl[abuser], want)
		}
		now = now.Add(time.Second)
	}
	// A milder rule takes nothing back.
	b.Streak(Streak{Source: abuser, Rule: 2, Reason: "401"}, now)
	if list := b.List(); k.held[abuser] != policy.DropAll || len(list) != 1 || list[0].Rule != "loud" || !list[0].Since.Equal(time.Unix(1000, 0)) {
		t.Errorf("after a streak of a milder rule: held to %v: %+v", k.held[abuser], list)
	}
	if n := strings.Count(log.String(), "verdict given"); n != 4 {
		t.Errorf("%d lines of 4 steps:\n%s", n, log)
	}
	// The last one held it for a minute more, from 4 s on.
	for _, want := range []policy.Step{policy.DropNew, policy.DropSYNs, policy.ThinSYNs, 0} {
		next := b.Tick(now)
		if next.Sub(now) > time.Minute || next.Before(now) {
			t.Errorf("next tick %v after", next.Sub(now))
		}
		now = next
		next = b.Tick(now)
		if k.held[abuser] != want || next.IsZero() != (want == 0) {
			t.Errorf("decayed to %v, next %v; want %v", k.held[abuser], next, want)
		}
	}
	if got, want := counts(b), "given thin 429 2, given syns 429 2, given new 429 2, given all 429 1, expired thin 429 1, expired syns 429 1, expired new 429 1, expired all 429 1"; got != want {
		t.Errorf("counts\n%s, want\n%s", got, want)
	}
	if len(b.List()) != 0 {
		t.Errorf("still held: %+v", b.List())
	}

	// A rule with a first and a last step of its own, and one that nobody knows.
	for range 3 {
		b.Streak(Streak{Source: abuser, Rule: 2, Reason: "401"}, now)
		b.Streak(Streak{Source: abuser, Rule: 99, Reason: "401"}, now)
		now = now.Add(100 * time.Millisecond)
	}
	if k.held[abuser] != policy.DropNew {
		t.Errorf("held to %v", k.held[abuser])
	}
	before := k.writes
	b.Streak(Streak{Source: abuser, Rule: 2, Reason: "401"}, now.Add(-90*time.Millisecond))
	if k.writes != before {
		t.Error("a step that has just begun was written again")
	}
}

func TestGuard(t *testing.T) {
	b, k, good, log := book()
	now := time.Unix(1000, 0)
	*good = 1
	for range 4 {
		b.Streak(Streak{Source: abuser, Rule: 1, Reason: "429"}, now)
		now = now.Add(time.Second)
	}
	list := b.List()
	if k.held[abuser] != policy.ThinSYNs || len(list) != 1 || !list[0].Capped || list[0].Good != 1 {
		t.Errorf("held to %v: %+v", k.held[abuser], list)
	}
	if got, want := counts(b), "given thin 429 1, capped syns 429 3"; got != want {
		t.Errorf("counts %s, want %s", got, want)
	}
	if n := strings.Count(log.String(), "others share the address"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log)
	}
	*good = 0 // they are gone
	b.Streak(Streak{Source: abuser, Rule: 1, Reason: "429"}, now)
	if k.held[abuser] != policy.DropSYNs || b.List()[0].Capped {
		t.Errorf("held to %v: %+v", k.held[abuser], b.List())
	}
	*good = 1
	if v, err := b.Add(Verdict{Source: netip.MustParseAddr("192.0.2.98"), Step: policy.DropAll}, time.Minute, false, now); err != nil || v.Step != policy.DropAll || v.Capped {
		t.Errorf("an operator's, on a client that does well: %+v, %v", v, err)
	}
	*good = 6
	if v, err := b.Add(Verdict{Source: netip.MustParseAddr("192.0.2.99"), Step: policy.DropAll}, time.Minute, false, now); err != nil || v.Step != policy.ThinSYNs || !v.Capped || v.Good != 5 {
		t.Errorf("an operator's: %+v, %v", v, err)
	}
	if v, err := b.Add(Verdict{Source: netip.MustParseAddr("192.0.2.99"), Step: policy.DropAll}, time.Minute, true, now); err != nil || v.Step != policy.DropAll {
		t.Errorf("an operator's by force: %+v, %v", v, err)
	}
	b.SetRules(rules, 0, func(netip.Addr) bool { return false })
	b.Streak(Streak{Source: abuser, Rule: 1, Reason: "429"}, now.Add(time.Second))
	if k.held[abuser] != policy.DropNew {
		t.Errorf("without a guard: held to %v", k.held[abuser])
	}
}

func TestExempt(t *testing.T) {
	b, k, _, _ := book()
	now := time.Unix(1000, 0)
	k.exempt = netip.MustParseAddr("198.51.100.9")
	for _, a := range []netip.Addr{k.exempt, netip.MustParseAddr("203.0.113.2")} {
		b.Streak(Streak{Source: a, Rule: 1, Reason: "http2"}, now)
		if _, err := b.Add(Verdict{Source: a, Step: policy.DropAll}, time.Minute, true, now); !errors.Is(err, ErrExempt) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if len(k.held) != 0 || len(b.List()) != 0 {
		t.Errorf("held: %v, %v", k.held, b.List())
	}
	if got, want := counts(b), "exempt thin http2 2, exempt all operator 1"; got != want {
		t.Errorf("counts %s, want %s", got, want)
	}
	// What becomes exempt by a reload is let go.
	b.Streak(Streak{Source: abuser, Rule: 1, Reason: "429"}, now)
	b.SetRules(rules, 1, func(a netip.Addr) bool { return a == abuser })
	if len(k.held) != 0 || len(b.List()) != 0 {
		t.Errorf("held: %v, %v", k.held, b.List())
	}
}

func TestRulesThatAreTried(t *testing.T) {
	b, k, good, log := book()
	*good = 9
	now := time.Unix(1000, 0)
	for range 4 {
		b.Streak(Streak{Source: abuser, Rule: 3, Reason: "malformed"}, now)
		now = now.Add(time.Second)
	}
	if len(k.held) != 0 || len(b.List()) != 0 {
		t.Errorf("held: %v, %v", k.held, b.List())
	}
	if got, want := counts(b), "would_give new malformed 1, would_give all malformed 1"; got != want {
		t.Errorf("counts %s, want %s\n%s", got, want, log)
	}
	if next := b.Tick(now.Add(time.Hour)); !next.IsZero() {
		t.Errorf("next %v", next)
	}
}

func TestOperator(t *testing.T) {
	b, k, _, _ := book()
	now := time.Unix(1000, 0)
	six := netip.MustParseAddr("2001:db8:1::77")
	v, err := b.Add(Verdict{Source: six, Step: policy.DropNew, Note: "tests"}, time.Minute, false, now)
	if err != nil || v.Source != netip.MustParseAddr("2001:db8:1::") || k.held[v.Source] != policy.DropNew {
		t.Fatalf("%+v, %v", v, err)
	}
	// A rule does not make it milder, nor does it lose the operator's note by that.
	b.Streak(Streak{Source: six, Rule: 2, Reason: "401"}, now)
	if got := b.List(); len(got) != 1 || got[0].Note != "tests" || got[0].Reason != ByOperator {
		t.Errorf("%+v", got)
	}
	if err := b.Remove(abuser); !errors.Is(err, ErrNone) {
		t.Errorf("of nobody: %v", err)
	}
	if err := b.Remove(six); err != nil || len(k.held) != 0 {
		t.Errorf("%v, %v", err, k.held)
	}
	if _, err := b.Add(Verdict{Source: six, Step: policy.DropAll}, time.Minute, false, now); err != nil {
		t.Fatal(err)
	}
	clear(k.held)
	b.Renew(now)
	if k.held[Key(six)] != policy.DropAll {
		t.Errorf("not held anew: %v", k.held)
	}
	if next := b.Tick(now.Add(time.Minute)); !next.IsZero() || len(k.held) != 0 {
		t.Errorf("after its time: next %v, held %v", next, k.held)
	}
	b.Adopt(Verdict{Source: abuser, Step: policy.DropAll, Reason: Unknown, Until: now})
	if list := b.List(); len(list) != 1 || list[0].Source != abuser || list[0].Step != policy.DropAll {
		t.Errorf("adopted: %+v", list)
	}
	if b.Tick(now); len(b.List()) != 0 {
		t.Errorf("an adopted one after its time: %v", b.List())
	}
}

func TestBookIsBounded(t *testing.T) {
	b, k, _, _ := book()
	now := time.Unix(1000, 0)
	for i := range most + 10 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		b.Streak(Streak{Source: a, Rule: 1, Reason: "429"}, now)
		b.Streak(Streak{Source: a, Rule: 3, Reason: "429"}, now)
	}
	if len(b.List()) != most || len(k.held) != most || len(b.tried) > most {
		t.Errorf("%d verdicts, %d held, %d tried", len(b.List()), len(k.held), len(b.tried))
	}
	b.Lost(netip.AddrFrom4([4]byte{10, 0, 0, 1}))
	if len(b.List()) != most-1 {
		t.Errorf("%d verdicts", len(b.List()))
	}
}

func TestGoodOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		list []Conduct
		want int
	}{
		"nobody":                     {nil, 0},
		"the offender alone":         {[]Conduct{{Who: 1, Good: 100}, {Who: 1, Good: 50}}, 0},
		"one other":                  {[]Conduct{{Who: 1, Good: 100}, {Who: 2, Good: 1}}, 1},
		"twice the same":             {[]Conduct{{Who: 2, Good: 5}, {Who: 2, Good: 5}, {Who: 3, Good: 5}}, 2},
		"no exchange yet":            {[]Conduct{{Who: 2}}, 0},
		"offends, too":               {[]Conduct{{Who: 2, Good: 8, Bad: 2}, {Who: 3, Good: 9, Bad: 2}}, 1},
		"good here and bad there":    {[]Conduct{{Who: 2, Good: 9}, {Who: 2, Bad: 9}}, 0},
		"an offence long outweighed": {[]Conduct{{Who: 2, Good: 100, Bad: 1}}, 1},
	} {
		if got := GoodOthers(slices.Clone(tt.list), 1); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
