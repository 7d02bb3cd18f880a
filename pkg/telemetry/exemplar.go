// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Exemplars remember, for each route and classic bucket of its durations, the last exchange
// of a trace that its client records: whoever sees a slow one finds its trace.
type Exemplars struct {
	mu     sync.Mutex
	routes []*[classicBuckets]*dto.Exemplar // by slot; nil: none yet
}

// NewExemplars is for so many slots of routes, the overflow slot included.
func NewExemplars(routes int) *Exemplars {
	return &Exemplars{routes: make([]*[classicBuckets]*dto.Exemplar, routes)}
}

// Note remembers the exchange, if it belongs to a sampled trace.
func (e *Exemplars) Note(r *zone.AccessRecord) {
	if !r.Sampled {
		return
	}
	seconds := r.Duration.Seconds()
	bucket := 0
	for bucket < classicBuckets-1 && seconds > classicBound(bucket) {
		bucket++
	}
	label, id := "trace_id", string(r.Trace)
	made := &dto.Exemplar{
		Label: []*dto.LabelPair{{Name: &label, Value: &id}}, Value: &seconds, Timestamp: timestamppb.New(r.Start.Add(r.Duration)),
	}
	slot := e.within(r.Route)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.routes[slot] == nil {
		e.routes[slot] = new([classicBuckets]*dto.Exemplar)
	}
	e.routes[slot][bucket] = made
}

// overflowSlot is the last one, of routes without one of their own.
const overflowSlot = -1

func (e *Exemplars) within(slot int) int {
	if slot < 0 || slot >= len(e.routes) {
		return len(e.routes) - 1
	}
	return slot
}

// of is a copy of a route's, nil for none. What it holds is not changed any more.
func (e *Exemplars) of(slot int) *[classicBuckets]*dto.Exemplar {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	route := e.routes[e.within(slot)]
	if route == nil {
		return nil
	}
	all := *route
	return &all
}
