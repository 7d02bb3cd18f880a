// SPDX-License-Identifier: Apache-2.0

package zone

import "testing"

func TestSignals(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	r := z.Worker(1).Signals
	drained := func() (out []Signal) {
		r.Drain(func(s Signal) { out = append(out, s) })
		return out
	}
	want := Signal{Source: 1 << 60, Who: 2, Rule: 3, At: 4, Offence: OffenceMalformed}
	if !r.Put(want) {
		t.Fatal("an empty ring is full")
	}
	if got := drained(); len(got) != 1 || got[0] != want {
		t.Errorf("got %+v", got)
	}
	if got := drained(); len(got) != 0 {
		t.Errorf("drained twice: %+v", got)
	}
	for i := range signalRecords + 3 { // round its end
		if got := r.Put(Signal{Source: uint64(i + 1)}); got != (i < signalRecords) {
			t.Errorf("signal %d: put is %v", i, got)
		}
	}
	got := drained()
	for i, s := range got {
		if s.Source != uint64(i+1) {
			t.Fatalf("signal %d is %+v", i, s)
		}
	}
	if len(got) != signalRecords || r.Damaged() != 0 {
		t.Errorf("%d signals, %d damaged", len(got), r.Damaged())
	}

	// What no worker writes ends nothing.
	r.Put(Signal{Source: 0})
	r.Put(Signal{Source: 1, Offence: 77})
	r.Put(Signal{Source: 5})
	if got := drained(); len(got) != 1 || got[0].Source != 5 || r.Damaged() != 2 {
		t.Errorf("%+v, %d damaged", got, r.Damaged())
	}
	r.header.store(signalHead, 1<<63)
	if got := drained(); len(got) != 0 || r.Damaged() != 3 || !r.Put(Signal{Source: 9}) {
		t.Errorf("%+v, %d damaged", got, r.Damaged())
	}
	if got := drained(); len(got) != 1 {
		t.Errorf("after damage: %+v", got)
	}
}

func TestSessions(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	const epoch = int64(1) << epochShift
	now := 100 * epoch
	a := Session{Source: 7, Low: 9, Who: 1, Port: 1000, Own: 443}
	b := Session{Source: 7, Who: 2, Port: 1001, Own: 443, Proved: true}
	at := func(s Session, good, bad uint64) Session { s.Good, s.Bad = good, bad; return s }
	expect := func(when string, source uint64, want ...Session) {
		t.Helper()
		got := z.Sessions(nil, source, now)
		if len(got) != len(want) {
			t.Errorf("%s: %+v, want %+v", when, got, want)
			return
		}
		for _, w := range want {
			found := false
			for _, g := range got {
				found = found || g == w
			}
			if !found {
				t.Errorf("%s: %+v has no %+v", when, got, w)
			}
		}
	}
	expect("at first", 7)
	one, two := z.Worker(0).Sessions, z.Worker(1).Sessions
	for range 3 {
		one.Note(&a, true, now)
	}
	one.Note(&a, false, now)
	two.Note(&b, true, now)
	one.Note(&Session{Source: 8, Who: 3}, true, now)
	expect("of two workers", 7, at(a, 3, 1), at(b, 1, 0))
	now += epoch
	two.Note(&b, false, now)
	expect("in the next epoch", 7, at(a, 3, 1), at(b, 1, 1))
	one.End(&a)
	two.End(&b)
	gone := b
	gone.Port = 0
	expect("when both have ended", 7, at(gone, 1, 1))
	b.Port = 1002
	two.Note(&b, true, now)
	expect("an identity that comes back", 7, at(b, 2, 1))
	now += epoch
	expect("later", 7, at(b, 1, 1))
	now += epoch
	expect("long after", 7)

	for range 1 << 17 {
		one.Note(&a, true, now)
	}
	expect("a count has its end", 7, at(a, 0xffff, 0))
	for i := range uint64(20) { // more than a set holds: those of now stay
		one.Note(&Session{Source: 7, Who: 100 + i}, true, now+epoch)
	}
	now += epoch
	if got := z.Sessions(nil, 7, now); len(got) != sessionWays {
		t.Errorf("%d sessions in a full set", len(got))
	}
}

// A session that has ended leaves its place to the next one, which costs nobody who is there.
func TestSessionTakesAFreePlace(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	s, now := z.Worker(0).Sessions, int64(100)<<epochShift
	of := func(n int) *Session {
		return &Session{Source: 7, Who: uint64(n) + 1, Port: uint16(1000 + n), Own: 443}
	}
	for n := range sessionWays {
		s.Note(of(n), true, now)
	}
	s.End(of(sessionWays - 1))
	s.Note(of(sessionWays), true, now)
	known := map[uint64]bool{}
	for _, got := range z.Sessions(nil, 7, now) {
		known[got.Who] = true
	}
	for n := range sessionWays + 1 {
		if ended := n == sessionWays-1; known[uint64(n)+1] == ended {
			t.Errorf("session %d is known: %v", n, !ended)
		}
	}
}

func BenchmarkSessionNote(b *testing.B) {
	z := mustCreate(b, zonePath(b), small())
	s := Session{Source: 0xffff0a000001, Who: 1, Port: 1000, Own: 443}
	b.ReportAllocs()
	for b.Loop() {
		z.Worker(0).Sessions.Note(&s, true, 1<<40)
	}
}
