// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// Drop is a sample of the dropped frames.
type Drop struct {
	Time    time.Duration `json:"time"` // CLOCK_MONOTONIC
	CPU     int           `json:"cpu"`
	Queue   int           `json:"queue"` // Other for queues that did not exist at creation
	Outcome string        `json:"outcome"`
	// Ordinal is how many this CPU had dropped for the queue and outcome, with this one.
	Ordinal uint64 `json:"ordinal"`
	Length  int    `json:"length"` // of the frame
	Head    []byte `json:"head"`   // its first bytes, 96 at most
}

// Drops reads samples of dropped frames. The kernel plane takes one of 64 for each CPU,
// queue and outcome, the first included, and keeps 128 for each CPU; a reader that
// comes too late misses some, and nothing ever waits for it. How many were dropped
// in all the counters say exactly.
type Drops struct {
	d       *Datapath
	seen    []uint64 // by CPU: samples that were read, or missed
	cursors []uint64
	perCPU  []bpf.GatewayDropSample
}

const dropSamples = 128

// NewDrops starts with the samples that are there now.
func (d *Datapath) NewDrops() (*Drops, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count possible CPUs: %w", err)
	}
	return &Drops{
		d: d, seen: make([]uint64, cpus), cursors: make([]uint64, cpus), perCPU: make([]bpf.GatewayDropSample, cpus),
	}, nil
}

// Read returns what was sampled since the last call, the oldest first.
func (r *Drops) Read() ([]Drop, error) {
	if err := r.d.objects.SampleCursor.Lookup(uint32(0), r.cursors); err != nil {
		return nil, fmt.Errorf("read drops of %s: %w", r.d.options.Interface, err)
	}
	var out []Drop
	for place := range uint32(dropSamples) {
		if !r.fresh(place) {
			continue
		}
		if err := r.d.objects.DropSamples.Lookup(place, r.perCPU); err != nil {
			return nil, fmt.Errorf("read drops of %s: %w", r.d.options.Interface, err)
		}
		for cpu := range r.perCPU {
			if r.has(cpu, place) {
				out = append(out, r.drop(cpu, &r.perCPU[cpu]))
			}
		}
	}
	copy(r.seen, r.cursors)
	slices.SortFunc(out, func(a, b Drop) int { return int(a.Time - b.Time) })
	return out, nil
}

// has tells whether the place holds a sample that this CPU wrote after the last call.
func (r *Drops) has(cpu int, place uint32) bool {
	first, end := r.seen[cpu], r.cursors[cpu]
	if end-first > dropSamples {
		first = end - dropSamples
	}
	// The next one at or after first that is at this place.
	next := first + (uint64(place)-first)%dropSamples
	return next < end
}

func (r *Drops) fresh(place uint32) bool {
	for cpu := range r.cursors {
		if r.has(cpu, place) {
			return true
		}
	}
	return false
}

func (r *Drops) drop(cpu int, s *bpf.GatewayDropSample) Drop {
	head := make([]byte, 0, len(s.Head)*4)
	for _, word := range s.Head {
		head = binary.NativeEndian.AppendUint32(head, word)
	}
	d := Drop{
		Time: time.Duration(s.Time), CPU: cpu, Queue: int(s.Queue), Ordinal: s.Ordinal, Length: int(s.Length),
		Head: head[:min(int(s.Captured), len(head))],
	}
	if d.Queue >= r.d.queues {
		d.Queue = Other
	}
	if int(s.Outcome) < len(r.d.reader.outcomes) {
		d.Outcome = r.d.reader.outcomes[s.Outcome].String()
	}
	return d
}
