// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

// What is tried of a candidate: limits find their routes by name in the policy that holds, have
// buckets of their own, and what cannot be tried is said.
func TestNewTrial(t *testing.T) {
	holds := &Policy{Snapshot: Snapshot{Routes: []Route{{Name: "a"}, {Name: "b"}}, RequestLimits: []RequestLimit{{Name: "l", ID: 7}}}}
	candidate := &Policy{
		Tables: Tables{Limits: []PacketLimit{{Name: "p", DryRun: true}}},
		Snapshot: Snapshot{
			Routes: []Route{{Name: "new"}, {Name: "b"}, {Name: "a"}},
			RequestLimits: []RequestLimit{
				{Name: "l", ID: 7, Cluster: true}, {Name: "of b", ID: 8, Routes: []int{1, 0}}, {Name: "of new", ID: 9, Routes: []int{0}}, {Name: "dry", ID: 10, DryRun: true},
			},
			ConnectionLimits: []ConnectionLimit{{Name: "c", ID: 7, Routes: []int{2}}, {Name: "dry c", DryRun: true}},
			Escalations:      []Escalation{{Name: "e"}},
		},
	}
	tables, trial, notes := NewTrial(holds, candidate, 1)
	if tables != &candidate.Tables || len(trial.RequestLimits) != 2 || len(trial.ConnectionLimits) != 1 {
		t.Fatalf("%+v", trial)
	}
	l, b, c := trial.RequestLimits[0], trial.RequestLimits[1], trial.ConnectionLimits[0]
	if l.Name != "l" || l.Cluster || len(l.Routes) != 0 || len(b.Routes) != 1 || b.Routes[0] != 1 || len(c.Routes) != 1 || c.Routes[0] != 0 {
		t.Errorf("routes: %+v, %+v, %+v", l, b, c)
	}
	_, again, _ := NewTrial(holds, candidate, 2)
	if l.ID == 7 || l.ID == again.RequestLimits[0].ID || l.ID == b.ID || candidate.Snapshot.RequestLimits[1].Routes[0] != 1 {
		t.Errorf("ids %d, %d, %d; the candidate: %+v", l.ID, again.RequestLimits[0].ID, b.ID, candidate.Snapshot.RequestLimits)
	}
	for _, want := range []string{"packet limit p ", "of b: there is no route new", "of new: there is no route new", "limit_req dry ", "limit_conn dry c ", "l is tried with what this gateway", "escalate"} {
		if !strings.Contains(strings.Join(notes, "\n"), want) {
			t.Errorf("nothing is said of %q: %q", want, notes)
		}
	}
}
