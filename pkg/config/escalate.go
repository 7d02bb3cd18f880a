// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"time"
)

// Escalation turns what a source does in the L7 plane into a verdict on it.
type Escalation struct {
	Name   string
	On     []string      // 429, 401, http2, handshake or malformed: what is an offence
	Count  int           // offences that are a streak, from 1
	Within time.Duration // of the first of them
	// Step is that of the first streak, Most the last that further ones lead to: thin, syns,
	// new or all.
	Step, Most string
	TTL        time.Duration // of each step; then the one before holds for as long
	DryRun     bool          // told, not held
}

// Steps of a verdict, the mildest first; each does what those before it do.
var Steps = []string{"thin", "syns", "new", "all"}

// Offences that streaks are made of.
var Offences = []string{"429", "401", "http2", "handshake", "malformed"}

// maxEscalations bounds what a worker keeps counts for.
const maxEscalations = 16

func escalation(c *Config) mapping {
	e := &Escalation{}
	return mapping{
		rows: []row{
			{"name", required, label(&e.Name)},
			{"on", required, oneOrMore{item: added(&e.On, func(dst *string) scalar { return oneOf(dst, Offences...) })}},
			{"count", required, whole(&e.Count, 1, 1_000_000)},
			{"within", "10s", duration(&e.Within, 100*time.Millisecond, time.Hour)},
			{"step", "thin", oneOf(&e.Step, Steps...)},
			{"most", "all", oneOf(&e.Most, Steps...)},
			{"ttl", "1m", duration(&e.TTL, 200*time.Millisecond, 24*time.Hour)},
			{"dry_run", "false", boolean(&e.DryRun)},
		},
		check: func(f *found) {
			if slices.Index(Steps, e.Step) > slices.Index(Steps, e.Most) {
				f.fail("step", "%s is beyond most, %s", e.Step, e.Most)
			}
			if e.Name != "" && slices.ContainsFunc(c.Escalations, func(other Escalation) bool { return other.Name == e.Name }) {
				f.fail("name", "another escalate is called %s", plain(e.Name))
			}
			if len(c.Escalations) == maxEscalations {
				f.fail("name", "it is one too many: %d are possible", maxEscalations)
			}
			c.Escalations = append(c.Escalations, *e)
		},
	}
}
