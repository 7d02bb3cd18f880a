// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/escalate"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// openLanes lets those go on whom a verdict on everything from their address would cut off:
// connections of good identities that were proved, other than the offender's. Nobody can
// connect while such a verdict is held, so these are all there will be.
func (e *escalator) openLanes(v *escalate.Verdict) {
	var now []datapath.Lane
	if v.Step == policy.DropAll && v.Reason != escalate.ByOperator {
		e.sessions = e.zone.Sessions(e.sessions[:0], policy.AddressKey(v.Source), monotonic())
		for i := range e.sessions {
			s := &e.sessions[i]
			c := escalate.Conduct{Good: s.Good, Bad: s.Bad}
			if s.Proved && s.Port != 0 && s.Who != v.Who && c.IsGood() {
				now = append(now, laneOf(v.Source, s))
			}
		}
	}
	for _, l := range now {
		for _, pl := range e.planes {
			if err := pl.openLane(l); err != nil {
				e.log.Error("a good client is cut off with its address", "client", l.Client, "error", err)
			}
		}
	}
	for _, err := range e.closeLanes(v.Source, now) {
		if err != nil {
			e.log.Error("a lane stays open", "source", v.Source, "error", err)
		}
	}
	if len(now) > 0 {
		e.lanes[v.Source] = now
	}
}

// closeLanes takes the source's lanes away, but for some.
func (e *escalator) closeLanes(source netip.Addr, but []datapath.Lane) (errs []error) {
	for _, l := range e.lanes[source] {
		if slices.Contains(but, l) {
			continue
		}
		for _, pl := range e.planes {
			errs = append(errs, pl.closeLane(l))
		}
	}
	delete(e.lanes, source)
	return errs
}

func laneOf(source netip.Addr, s *zone.Session) datapath.Lane {
	if source.Is6() {
		whole := source.As16()
		binary.BigEndian.PutUint64(whole[8:], s.Low)
		source = netip.AddrFrom16(whole)
	}
	return datapath.Lane{Client: netip.AddrPortFrom(source, s.Port), Own: s.Own}
}

// A worker that had no handshake left has strangers thinned at its CPU for a while, which is
// lengthened as long as it says so.
const (
	pressTime = 300 * time.Millisecond
	pressLook = 100 * time.Millisecond
)

// press does that for all workers that need it, and tells whether there are any.
func (e *escalator) press() (any bool) {
	for i := range e.zone.Slots() {
		slab := e.zone.Worker(i)
		gone := int64(slab.LoadGauge(zone.GaugeHandshakesGone))
		now := gone != 0 && monotonic()-gone < int64(2*pressLook) && zone.State(slab.LoadGauge(zone.GaugeState)) == zone.StateReady
		if now && !e.pressed[i] && len(e.planes) > 0 {
			e.log.Warn("no handshakes are left: SYNs of unknown sources are thinned", "worker", i%len(e.cores), "core", e.cores[i%len(e.cores)])
		}
		e.pressed[i] = now
		if !now {
			continue
		}
		any = true
		for _, pl := range e.planes {
			for _, cpu := range e.feeding(i % len(e.cores)) {
				if err := pl.press(cpu, pressTime); err != nil {
					e.log.Error("strangers are not thinned", "worker", i, "error", err)
				}
			}
		}
	}
	return any
}

// feeding is which CPUs' packets come to the worker.
func (e *escalator) feeding(worker int) []int {
	if core := e.cores[worker]; core >= 0 && !e.spread {
		return []int{core}
	}
	all := make([]int, runtime.NumCPU())
	for i := range all {
		all[i] = i
	}
	return all
}
