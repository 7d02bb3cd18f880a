// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
)

// Trial is limits that workers try beside those that hold: they count what these would refuse,
// and of whom, and refuse nothing.
type Trial struct {
	RequestLimits    []RequestLimit    `json:"request_limits,omitempty"`
	ConnectionLimits []ConnectionLimit `json:"connection_limits,omitempty"`
	KeyScript        *KeyScript        `json:"key_script,omitempty"` // nil: no limit has a key function
}

// NewTrial is what of a candidate can be tried beside the policy that holds: rules and limits
// of packets, for the kernel plane, and limits of requests. number tells its buckets from those
// of other trials. notes say what is not tried.
func NewTrial(holds, candidate *Policy, number uint64) (tables *Tables, t *Trial, notes []string) {
	note := func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
	tables = &candidate.Tables
	for _, l := range tables.Limits {
		if l.DryRun {
			note("packet limit %s has dry_run and would drop nothing", l.Name)
		}
	}
	t = &Trial{KeyScript: candidate.Snapshot.KeyScript}
	// A limit is for routes by their places in the snapshot.
	places := func(name string, of []int) (out []int, any bool) {
		for _, i := range of {
			route := candidate.Snapshot.Routes[i].Name
			at := slices.IndexFunc(holds.Snapshot.Routes, func(r Route) bool { return r.Name == route })
			if at < 0 {
				note("limit %s: there is no route %s yet", name, route)
				continue
			}
			out = append(out, at)
		}
		return out, len(out) > 0 || len(of) == 0
	}
	for _, l := range candidate.Snapshot.RequestLimits {
		if l.DryRun {
			note("limit_req %s has dry_run and would refuse nothing", l.Name)
			continue
		}
		if l.Cluster {
			note("limit_req %s is tried with what this gateway sees alone", l.Name)
		}
		l.Cluster = false
		routes, some := places(l.Name, l.Routes)
		if l.Routes, l.ID = routes, trialID(l.ID, number); some {
			t.RequestLimits = append(t.RequestLimits, l)
		}
	}
	for _, l := range candidate.Snapshot.ConnectionLimits {
		if l.DryRun {
			note("limit_conn %s has dry_run and would refuse nothing", l.Name)
			continue
		}
		routes, some := places(l.Name, l.Routes)
		if l.Routes, l.ID = routes, trialID(l.ID, number); some {
			t.ConnectionLimits = append(t.ConnectionLimits, l)
		}
	}
	if len(candidate.Snapshot.Escalations) > 0 {
		note("escalate rules are not tried: no verdict is given for what is counted here")
	}
	return tables, t, notes
}

// trialID is another one than that of the limit which holds, and than that of the trial before.
func trialID(id, number uint64) uint64 { return mix(id, number) }
