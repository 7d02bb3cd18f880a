// SPDX-License-Identifier: Apache-2.0

package escalate

import (
	"errors"
	"net/netip"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
)

// AlreadyHeld is what became of a verdict of another gateway where as much is held already.
const AlreadyHeld = "known"

// lift is what an operator ended here.
type lift struct {
	mark  uint64 // of the last message about the source
	until time.Time
}

// Told acts on a verdict of another gateway, which asked for the step until v.Until. The
// message's mark grows from one to the next, and v.Step is what was asked for there: this book has
// its own guard and exemptions, and the rule of that name, if there is one, lowers the step again.
// It says what became of it: the word of a Fate, known, or failed.
func (b *Book) Told(v Verdict, mark uint64, now time.Time) string {
	v.Source, v.Since = Key(v.Source), now
	if l, ok := b.lifts[v.Source]; ok && mark <= l.mark {
		return Lifted.String()
	}
	e := b.held[v.Source]
	if e == nil && b.exempt(v.Source) {
		b.counts[Count{Refused, v.Step, v.Reason}]++
		return Refused.String()
	}
	rule := b.ruleNamed(v.Rule)
	if rule != nil && rule.DryRun {
		in := b.tried[v.Source]
		b.try(&entry{Verdict: v, rule: rule}, in != nil && in.Step == v.Step)
		return Tried.String()
	}
	if rule != nil && v.Step > rule.Most {
		rule = nil // it ends, and has no step to go back to
	}
	b.cap(&v, v.Who, e != nil && e.Capped)
	if e != nil {
		e.mark = max(e.mark, mark)
		if e.Step > v.Step || e.Step == v.Step && v.Until.Sub(e.Until) < fresh {
			return AlreadyHeld
		}
		v.Since = e.Since
	}
	if err := b.hold(&entry{Verdict: v, rule: rule, mark: mark, told: v.Step}, v.Until.Sub(now)); err != nil {
		if errors.Is(err, ErrExempt) {
			return Refused.String()
		}
		b.Log.Error("no verdict could be given that another gateway told of", "source", v.Source, "step", v.Step, "error", err)
		return "failed"
	}
	if v.Capped {
		return Capped.String()
	}
	return Given.String()
}

func (b *Book) ruleNamed(name string) *policy.Escalation {
	for _, r := range b.rules {
		if r.Name == name && name != "" {
			return r
		}
	}
	return nil
}

// tell has other gateways hear of a verdict given here: of asked, which the guard of this one may
// have capped. One that goes on is told again before its time is over.
func (b *Book) tell(e, before *entry, asked policy.Step, ttl time.Duration) {
	e.told, e.toldUntil = asked, e.Until
	if before != nil {
		e.mark = before.mark
		if e.Reason != ByOperator && before.told >= asked && e.Until.Sub(before.toldUntil) < ttl/4 {
			e.told, e.toldUntil = before.told, before.toldUntil
			return
		}
	}
	if b.Tell != nil {
		v := e.Verdict
		v.Step = asked
		b.Tell(v, ttl)
	}
}

// forget drops what was lifted and would be over by now.
func (b *Book) forget(now time.Time) {
	for source, l := range b.lifts {
		if !l.until.After(now) {
			delete(b.lifts, source)
		}
	}
}

// lift has messages up to the last one about the source give nothing any more.
func (b *Book) lift(source netip.Addr, e *entry) {
	if e.mark != 0 {
		b.lifts[source] = lift{e.mark, e.Until.Add(longest)}
	}
}

// longest is how much longer a message may hold than the step it led to here.
const longest = 24 * time.Hour
