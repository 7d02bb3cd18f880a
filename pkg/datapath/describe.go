// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// Description is what there is to say of an interface's kernel plane.
type Description struct {
	Status
	Generation uint64        `json:"generation"`         // of the tables; 0: there are none
	Waits      time.Duration `json:"waits_ns,omitempty"` // until they are undone unless they are confirmed
	Programs   []ProgramInfo `json:"programs"`
	Maps       []MapInfo     `json:"maps"`
	Tables     TableCounts   `json:"tables"`
	Limits     []LimitCount  `json:"limits"`
	// Outcomes are packets, by what became of them: those that there were, of all queues.
	Outcomes map[string]uint64 `json:"outcomes"`
}

// ProgramInfo is a program of it.
type ProgramInfo struct {
	Name  string `json:"name"`
	ID    uint32 `json:"id"`
	Tag   string `json:"tag"`             // a hash of its instructions
	Bytes uint64 `json:"bytes,omitempty"` // of memory; 0: the kernel does not say
}

// MapInfo is a map of it.
type MapInfo struct {
	Name    string `json:"name"`
	ID      uint32 `json:"id"`
	Type    string `json:"type"`
	Entries uint32 `json:"entries"` // that there is room for
	// Used is how many of these are; nil where all are always, or nobody counts: no map is walked for it
	// but that of verdicts.
	Used  *uint64 `json:"used,omitempty"`
	Bytes uint64  `json:"bytes,omitempty"` // of memory; 0: the kernel does not say
}

// Describe reads all of it. It is for people who ask, not for each second.
func (d *Datapath) Describe() (*Description, error) {
	out := &Description{Status: d.Status(), Programs: []ProgramInfo{}, Maps: []MapInfo{}, Outcomes: map[string]uint64{}}
	if err := d.describe(out); err != nil {
		return nil, fmt.Errorf("describe %s: %w", d.options.Interface, err)
	}
	return out, nil
}

func (d *Datapath) describe(out *Description) error {
	state, err := d.State()
	if err != nil {
		return err
	}
	out.Generation, out.Waits = state.Generation, state.Waits
	if out.Tables, err = d.TableCounts(); err != nil {
		return err
	}
	if out.Limits, err = d.LimitCounts(); err != nil {
		return err
	}
	var counters Counters
	if err := d.Counters(&counters); err != nil {
		return err
	}
	for _, c := range counters.Ingress {
		if c.Packets > 0 {
			out.Outcomes[c.Verdict+"_"+c.Reason] += c.Packets
		}
	}
	if err := d.describePrograms(out); err != nil {
		return err
	}
	return d.describeMaps(out)
}

func (d *Datapath) describePrograms(out *Description) error {
	for name, place := range d.objects.programs() {
		if *place == nil {
			continue
		}
		info, err := (*place).Info()
		if err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
		p := ProgramInfo{Name: name, Tag: info.Tag}
		if id, ok := info.ID(); ok {
			p.ID = uint32(id)
		}
		if memory, ok := info.Memlock(); ok {
			p.Bytes = memory
		}
		out.Programs = append(out.Programs, p)
	}
	slices.SortFunc(out.Programs, func(a, b ProgramInfo) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

func (d *Datapath) describeMaps(out *Description) error {
	used, err := d.used(&out.Tables)
	if err != nil {
		return err
	}
	for name, place := range d.objects.maps() {
		info, err := (*place).Info()
		if err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
		m := MapInfo{Name: name, Type: info.Type.String(), Entries: info.MaxEntries, Used: used[*place]}
		switch *place { // rows of several
		case d.objects.Verdicts:
			m.Entries *= uint32(len(bpf.GatewayVerdictRow{}.Entry))
		case d.objects.Verified:
			m.Entries *= uint32(len(bpf.GatewayVerifiedSet{}.Source))
		}
		if id, ok := info.ID(); ok {
			m.ID = uint32(id)
		}
		if memory, ok := info.Memlock(); ok {
			m.Bytes = memory
		}
		out.Maps = append(out.Maps, m)
	}
	slices.SortFunc(out.Maps, func(a, b MapInfo) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// used is how full the maps are of which that is known.
func (d *Datapath) used(t *TableCounts) (map[*ebpf.Map]*uint64, error) {
	verdicts, err := d.Verdicts()
	if err != nil {
		return nil, err
	}
	held := uint64(len(verdicts))
	verified := t.VerifiedAdded - min(t.VerifiedAdded, t.VerifiedIdle+t.VerifiedLive)
	return map[*ebpf.Map]*uint64{d.objects.Verdicts: &held, d.objects.Verified: &verified}, nil
}
