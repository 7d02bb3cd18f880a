// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// Step is what a verdict does to packets of its source; each does what those before it do.
type Step uint8

// Steps.
const (
	ThinSYNs Step = 1 + iota // drop three SYNs of four
	DropSYNs                 // drop all SYNs
	DropNew                  // drop all but established TCP
	DropAll
)

// String is the step in the words of configuration and outcomes.
func (s Step) String() string {
	if s < ThinSYNs || s > DropAll {
		return fmt.Sprintf("step %d", uint8(s))
	}
	return config.Steps[s-1]
}

// Steps lists all, the mildest first.
func Steps() []Step { return []Step{ThinSYNs, DropSYNs, DropNew, DropAll} }

// ParseStep reads a step's word.
func ParseStep(word string) (Step, error) {
	i := slices.Index(config.Steps, word)
	if i < 0 {
		return 0, fmt.Errorf("no such step: %q: want one of %v", word, config.Steps)
	}
	return Step(i + 1), nil
}

// Escalation turns streaks of offences into verdicts: workers count by On, Count and Within,
// the supervisor does the rest.
type Escalation struct {
	Name   string        `json:"name"`
	ID     uint64        `json:"id"` // of the name: the same in all generations, never 0
	On     []string      `json:"on"` // words of zone.Offence
	Count  int           `json:"count"`
	Within time.Duration `json:"within"`
	Step   Step          `json:"step"`
	Most   Step          `json:"most"`
	TTL    time.Duration `json:"ttl"`
	DryRun bool          `json:"dry_run,omitempty"`
}

func compileEscalations(c *config.Config) ([]Escalation, error) {
	var out []Escalation
	for _, e := range c.Escalations {
		step, err1 := ParseStep(e.Step)
		most, err2 := ParseStep(e.Most)
		if err1 != nil || err2 != nil || e.Count < 1 || e.Within <= 0 || e.TTL <= 0 || len(e.On) == 0 || step > most {
			return nil, fmt.Errorf("escalation %s: %+v", e.Name, e)
		}
		id := fnv.New64a()
		_, _ = id.Write([]byte(e.Name)) // never fails
		out = append(out, Escalation{
			Name: e.Name, ID: max(id.Sum64(), 1), On: slices.Clone(e.On), Count: e.Count, Within: e.Within,
			Step: step, Most: most, TTL: e.TTL, DryRun: e.DryRun,
		})
	}
	return out, nil
}
