// SPDX-License-Identifier: Apache-2.0

package escalate

import (
	"net/netip"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
)

// A verdict of another gateway meets this one's guard, exemptions and rules, and none that an
// operator ended here comes back by the message that gave it.
func TestToldByAnotherGateway(t *testing.T) {
	b, k, good, _ := book()
	now := time.Unix(1000, 0)
	var told []Verdict
	b.Tell = func(v Verdict, _ time.Duration) { told = append(told, v) }
	say := func(source netip.Addr, step policy.Step, rule string, mark uint64, want string) {
		t.Helper()
		v := Verdict{Source: source, Step: step, Reason: "429", Rule: rule, Until: now.Add(time.Minute)}
		if got := b.Told(v, mark, now); got != want {
			t.Errorf("step %v, message %d: %s, want %s", step, mark, got, want)
		}
	}
	say(abuser, policy.DropNew, "loud", 10, "given")
	if k.held[abuser] != policy.DropNew || k.ttl[abuser] != time.Minute+slack {
		t.Errorf("held to %v for %v", k.held[abuser], k.ttl[abuser])
	}
	say(abuser, policy.DropNew, "loud", 11, AlreadyHeld)
	say(abuser, policy.DropSYNs, "loud", 12, AlreadyHeld)
	say(netip.MustParseAddr("203.0.113.2"), policy.DropAll, "loud", 13, "exempt")
	k.exempt = netip.MustParseAddr("203.0.113.3")
	say(k.exempt, policy.DropAll, "loud", 14, "exempt")
	say(netip.MustParseAddr("192.0.2.50"), policy.DropAll, "tried", 15, "would_give")
	if k.held[netip.MustParseAddr("192.0.2.50")] != 0 {
		t.Error("a rule that is tried here was held")
	}
	// A rule of that name lowers the step as it would its own.
	b.Tick(now.Add(61 * time.Second))
	if k.held[abuser] != policy.DropSYNs {
		t.Errorf("after its time: %v, want a step less", k.held[abuser])
	}
	if err := b.Remove(abuser); err != nil {
		t.Fatal(err)
	}
	say(abuser, policy.DropNew, "loud", 10, "lifted")
	say(abuser, policy.DropNew, "loud", 12, "lifted")
	say(abuser, policy.DropNew, "loud", 20, "given") // another one
	*good = 1
	shared := netip.MustParseAddr("192.0.2.60")
	say(shared, policy.DropAll, "", 21, "capped")
	if k.held[shared] != policy.ThinSYNs {
		t.Errorf("beside a good one: %v", k.held[shared])
	}
	if len(told) > 0 {
		t.Errorf("what others told was told again: %+v", told)
	}
}

// What is given here is told as it was asked for, not as the guard here left it; not at each
// streak, but before it is over.
func TestTellingOthers(t *testing.T) {
	b, _, good, _ := book()
	now := time.Unix(1000, 0)
	var told []Verdict
	b.Tell = func(v Verdict, ttl time.Duration) {
		if ttl <= 0 {
			t.Errorf("told for %v", ttl)
		}
		told = append(told, v)
	}
	expect := func(what string, n int, step policy.Step) {
		t.Helper()
		if len(told) != n || n > 0 && told[n-1].Step != step {
			t.Fatalf("%s: told %d, %+v; want %d, the last %v", what, len(told), told, n, step)
		}
	}
	streak := func(rule uint64) { b.Streak(Streak{Source: abuser, Rule: rule, Reason: "429", Who: 7}, now) }
	streak(2)
	expect("a first streak", 1, policy.DropSYNs)
	if told[0].Who != 7 || told[0].Rule != "hard" {
		t.Errorf("told: %+v", told[0])
	}
	*good = 1
	streak(2)
	expect("a step that the guard caps here", 2, policy.DropNew)
	now = now.Add(100 * time.Millisecond)
	streak(2)
	expect("a tenth of its time later", 2, policy.DropNew)
	now = now.Add(300 * time.Millisecond)
	streak(2)
	expect("when a quarter of its time is over", 3, policy.DropSYNs)
	streak(3)
	expect("a rule that is tried", 3, policy.DropSYNs)
	if _, err := b.Add(Verdict{Source: netip.MustParseAddr("192.0.2.9"), Step: policy.DropAll}, time.Minute, true, now); err != nil {
		t.Fatal(err)
	}
	expect("an operator's", 4, policy.DropAll)
	b.Streak(Streak{Source: netip.MustParseAddr("203.0.113.2"), Rule: 1, Reason: "429"}, now)
	expect("one that is exempt here", 4, policy.DropAll)
}
