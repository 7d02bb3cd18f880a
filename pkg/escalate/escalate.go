// SPDX-License-Identifier: Apache-2.0

// Package escalate decides what is held against whom: streaks that workers signal, by rules,
// to the steps of a verdict; what an operator asks for; and the guard, which spares those
// who share an address with an offender. It knows no clock, no kernel and no zone: time is
// a parameter, and what it decides goes to a Plane.
package escalate

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
)

// Reasons of verdicts are the words of zone.Offence, and these.
const (
	ByOperator = "operator"
	Unknown    = "unknown" // a verdict that was there before this program
)

// Verdict is what is held against a source.
type Verdict struct {
	Source netip.Addr // IPv4, or the first address of an IPv6 /64
	Step   policy.Step
	Reason string
	Rule   string    // the escalation's name; "" for none
	Note   string    // the operator's
	Since  time.Time // when the first step began
	Until  time.Time // when this step ends
	// Capped: the guard kept the step from going beyond thin, since so many others are Good.
	Capped bool
	Good   int
	Who    uint64 // the identity that offended; 0: none that is known
}

// Plane is where verdicts take effect.
type Plane interface {
	// Hold drops packets of the source as the verdict says until its time is over, or for
	// ErrExempt, which is not logged as a fault, does nothing.
	Hold(v *Verdict, ttl time.Duration) error
	// Release ends what is held.
	Release(source netip.Addr) error
}

// Errors of a Book and of a Plane.
var (
	ErrExempt = errors.New("the source is exempt")
	ErrFull   = errors.New("too many verdicts are held")
	ErrNone   = errors.New("nothing is held against the source")
)

// Fate is what became of a verdict.
type Fate int

// Fates.
const (
	Given   Fate = iota // a step that began
	Capped              // a step that the guard kept at thin
	Expired             // a step whose time was over
	Lifted              // by an operator, or since the source is exempt by now
	Tried               // a step that would have been given: the rule is tried only
	Refused             // a streak of a source that is exempt
	fates
)

var fateNames = [fates]string{"given", "capped", "expired", "lifted", "would_give", "exempt"}

func (f Fate) String() string { return fateNames[f] }

// Fates lists all.
func Fates() []Fate { return []Fate{Given, Capped, Expired, Lifted, Tried, Refused} }

// most verdicts that are held at once: what the kernel plane has room for, less what collides.
const most = 16384

// Streak is a completed one.
type Streak struct {
	Source netip.Addr
	Who    uint64 // the identity that completed it
	Rule   uint64 // policy.Escalation.ID
	Reason string
	Age    time.Duration // since it was complete
}

// Count is how often a fate befell verdicts of a step and reason.
type Count struct {
	Fate   Fate
	Step   policy.Step
	Reason string
}

// Book holds all verdicts. It is not safe for concurrent use.
type Book struct {
	Plane Plane
	Log   *slog.Logger
	// Good is how many good identities other than the one share the source's address.
	Good func(source netip.Addr, except uint64) int
	// Tell, when not nil, hears of each verdict that is given here, of the step that was asked
	// for and how long that holds. It must not wait.
	Tell func(v Verdict, ttl time.Duration)

	rules  map[uint64]*policy.Escalation
	guard  int // 0: none
	exempt func(netip.Addr) bool
	held   map[netip.Addr]*entry
	tried  map[netip.Addr]*entry // of rules that are tried only
	lifts  map[netip.Addr]lift   // of what other gateways told
	counts map[Count]uint64
}

type entry struct {
	Verdict
	rule *policy.Escalation // nil: of no rule, or of one that is no more
	age  time.Duration      // of the streak that led to it
	mark uint64             // of the last message of another gateway about the source; 0: none
	// What other gateways have been told of it.
	told      policy.Step
	toldUntil time.Time
}

// NewBook makes one without rules.
func NewBook(p Plane, log *slog.Logger, good func(netip.Addr, uint64) int) *Book {
	return &Book{
		Plane: p, Log: log, Good: good, exempt: func(netip.Addr) bool { return false },
		held: map[netip.Addr]*entry{}, tried: map[netip.Addr]*entry{}, lifts: map[netip.Addr]lift{}, counts: map[Count]uint64{},
	}
}

// Key is the source that an address stands for: itself, or the /64 of it.
func Key(a netip.Addr) netip.Addr { return policy.KeyAddress(policy.AddressKey(a)) }

// SetRules makes these the rules from now on. What is held stays, but for sources that are
// exempt now.
func (b *Book) SetRules(rules []policy.Escalation, guard int, exempt func(netip.Addr) bool) {
	b.rules, b.guard, b.exempt = map[uint64]*policy.Escalation{}, guard, exempt
	for i := range rules {
		b.rules[rules[i].ID] = &rules[i]
	}
	for source, e := range b.held {
		if e.rule != nil {
			e.rule = b.rules[e.rule.ID]
		}
		if exempt(source) {
			b.end(e, Lifted)
		}
	}
	clear(b.tried)
}

// Adopt takes a verdict over that is held already.
func (b *Book) Adopt(v Verdict) {
	v.Source = Key(v.Source)
	if len(b.held) < most {
		b.held[v.Source] = &entry{Verdict: v}
	}
}

// Streak acts on a completed one.
func (b *Book) Streak(s Streak, now time.Time) {
	r := b.rules[s.Rule]
	if r == nil {
		return // of a generation that is over
	}
	source := Key(s.Source)
	in := b.held
	if r.DryRun {
		in = b.tried
	}
	e := in[source]
	if e == nil && b.exempt(source) {
		b.counts[Count{Refused, r.Step, s.Reason}]++
		return
	}
	step := r.Step
	if e != nil {
		step = min(max(e.Step+1, r.Step), r.Most)
		if e.Step > step || e.Reason == ByOperator && e.Step >= step {
			return // it is held to more than that already
		}
	}
	v := Verdict{Source: source, Step: step, Reason: s.Reason, Rule: r.Name, Since: now, Until: now.Add(r.TTL), Who: s.Who}
	if e != nil {
		v.Since = e.Since
	}
	if !r.DryRun {
		b.cap(&v, s.Who, e != nil && e.Capped)
	}
	same := e != nil && e.Step == v.Step && e.Rule == v.Rule
	if same && v.Until.Sub(e.Until) < fresh {
		return
	}
	if r.DryRun {
		b.try(&entry{Verdict: v, rule: r}, same)
		return
	}
	given := &entry{Verdict: v, rule: r, age: s.Age}
	if err := b.hold(given, r.TTL); err == nil {
		b.tell(given, e, step, r.TTL)
	} else if !errors.Is(err, ErrExempt) {
		b.Log.Error("no verdict could be given", "source", source, "step", v.Step, "error", err)
	}
}

// fresh is the age up to which a step is not held anew for a further streak.
const fresh = 50 * time.Millisecond

// cap asks the guard about a step that would hit all who speak from the address.
func (b *Book) cap(v *Verdict, except uint64, known bool) {
	if v.Step <= policy.ThinSYNs || b.guard == 0 {
		return
	}
	v.Good = b.Good(v.Source, except)
	if v.Reason == ByOperator {
		v.Good = max(v.Good-1, 0) // one of them is whom the verdict is meant for
	}
	if v.Good >= b.guard {
		b.counts[Count{Capped, v.Step, v.Reason}]++
		if !known {
			b.Log.Warn("a verdict goes no further than thin: others share the address", "source", v.Source, "asked", v.Step, "reason", v.Reason, "rule", v.Rule, "good_identities", v.Good)
		}
		v.Step, v.Capped = policy.ThinSYNs, true
	}
}

// try counts what a rule would have done.
func (b *Book) try(e *entry, same bool) {
	if len(b.tried) >= most {
		clear(b.tried)
	}
	b.tried[e.Source] = e
	if same {
		return
	}
	b.counts[Count{Tried, e.Step, e.Reason}]++
	b.Log.Info("a verdict would be given: its rule is tried only", "source", e.Source, "step", e.Step, "reason", e.Reason, "rule", e.Rule)
}

// slack is by how much the kernel plane holds a step longer than this book: it is for this
// book to end it, and for the kernel plane when there is nobody left to.
const slack = 2 * time.Second

// hold makes a verdict take effect.
func (b *Book) hold(e *entry, ttl time.Duration) error {
	old := b.held[e.Source]
	if old == nil && len(b.held) >= most {
		return fmt.Errorf("%w: %d", ErrFull, len(b.held))
	}
	if err := b.Plane.Hold(&e.Verdict, ttl+slack); err != nil {
		if errors.Is(err, ErrExempt) {
			b.counts[Count{Refused, e.Step, e.Reason}]++
		}
		return err
	}
	b.held[e.Source] = e
	if old != nil && old.Step == e.Step && old.Reason == e.Reason {
		return nil // it goes on
	}
	b.counts[Count{Given, e.Step, e.Reason}]++
	b.Log.Warn("verdict given", "source", e.Source, "step", e.Step, "reason", e.Reason, "rule", e.Rule, "note", e.Note, "for", ttl, "capped", e.Capped, "after_us", e.age.Microseconds())
	return nil
}

// end takes a verdict off.
func (b *Book) end(e *entry, why Fate) {
	if err := b.Plane.Release(e.Source); err != nil {
		b.Log.Error("a verdict is over and could not be taken off: it ends by itself", "source", e.Source, "error", err)
	}
	delete(b.held, e.Source)
	b.counts[Count{why, e.Step, e.Reason}]++
	b.Log.Info("verdict "+why.String(), "source", e.Source, "step", e.Step, "reason", e.Reason, "rule", e.Rule)
}

// Tick ends steps whose time is over: those of rules go back to the step before, down to the
// rule's first. It returns when there will be something to do again; zero for never.
func (b *Book) Tick(now time.Time) (next time.Time) {
	for _, e := range b.held {
		if e.Until.After(now) {
			continue
		}
		if e.rule == nil || e.Step <= e.rule.Step {
			b.end(e, Expired)
			continue
		}
		b.counts[Count{Expired, e.Step, e.Reason}]++
		milder := &entry{Verdict: e.Verdict, rule: e.rule, mark: e.mark}
		milder.Step--
		milder.Until = now.Add(e.rule.TTL)
		if err := b.hold(milder, e.rule.TTL); err != nil {
			b.end(e, Expired)
		}
	}
	for source, e := range b.tried {
		if !e.Until.After(now) {
			delete(b.tried, source)
		}
	}
	b.forget(now)
	for _, in := range []map[netip.Addr]*entry{b.held, b.tried} {
		for _, e := range in {
			if next.IsZero() || e.Until.Before(next) {
				next = e.Until
			}
		}
	}
	return next
}

// Add gives a verdict that an operator asks for. force: whoever shares the address.
func (b *Book) Add(v Verdict, ttl time.Duration, force bool, now time.Time) (Verdict, error) {
	v.Source, v.Reason, v.Since, v.Until = Key(v.Source), ByOperator, now, now.Add(ttl)
	if b.exempt(v.Source) {
		return v, fmt.Errorf("%w: it is an upstream, a trusted proxy or this gateway", ErrExempt)
	}
	asked, before := v.Step, b.held[v.Source]
	if !force {
		b.cap(&v, 0, false)
	}
	e := &entry{Verdict: v}
	err := b.hold(e, ttl)
	if err == nil {
		b.tell(e, before, asked, ttl)
	}
	return v, err
}

// Remove ends what is held against the source.
func (b *Book) Remove(source netip.Addr) error {
	e := b.held[Key(source)]
	if e == nil {
		return fmt.Errorf("%s: %w", source, ErrNone)
	}
	b.lift(e.Source, e)
	b.end(e, Lifted)
	return nil
}

// Lost notes that the kernel plane had no room for the source any longer.
func (b *Book) Lost(source netip.Addr) {
	if e := b.held[Key(source)]; e != nil {
		delete(b.held, e.Source)
		b.counts[Count{Expired, e.Step, e.Reason}]++
		b.Log.Warn("verdict made room for another", "source", e.Source, "step", e.Step)
	}
}

// Renew holds all verdicts anew, for a plane that has forgotten them.
func (b *Book) Renew(now time.Time) {
	for _, e := range b.held {
		if err := b.Plane.Hold(&e.Verdict, e.Until.Sub(now)+slack); err != nil {
			b.Log.Error("a verdict could not be given again", "source", e.Source, "error", err)
		}
	}
}

// List is all that is held, by source.
func (b *Book) List() []Verdict {
	out := make([]Verdict, 0, len(b.held))
	for _, e := range b.held {
		out = append(out, e.Verdict)
	}
	slices.SortFunc(out, func(x, y Verdict) int { return x.Source.Compare(y.Source) })
	return out
}

// Counts calls fn for each count that is not 0.
func (b *Book) Counts(fn func(Count, uint64)) {
	all := make([]Count, 0, len(b.counts))
	for c := range b.counts {
		all = append(all, c)
	}
	slices.SortFunc(all, func(x, y Count) int {
		return cmp.Or(cmp.Compare(x.Fate, y.Fate), cmp.Compare(x.Step, y.Step), cmp.Compare(x.Reason, y.Reason))
	})
	for _, c := range all {
		fn(c, b.counts[c])
	}
}
