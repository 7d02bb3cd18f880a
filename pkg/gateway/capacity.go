// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/ledger"
)

// makeMeter begins to measure how busy the machine is.
func (s *supervisor) makeMeter() error {
	l, err := s.ledger(nil)
	if err == nil {
		s.meter = ledger.NewMeter(l, "/")
	}
	return err
}

// capacity is what the admin API says of the machine.
func (s *supervisor) capacity() admin.Capacity {
	if s.meter == nil {
		return admin.Capacity{Verdict: ledger.ScaleUnknown.String(), Why: ledger.ScaleUnknown.Why()}
	}
	c := s.meter.Capacity()
	out := admin.Capacity{
		Known: c.Known, Busy: c.Busy, Causes: map[string]float64{}, Attack: c.Attack, Slowed: c.Slowed,
		Verdict: c.Scale.String(), Why: c.Scale.Why(),
	}
	for _, cause := range ledger.Causes() {
		out.Causes[cause.String()] = c.Shares[cause]
	}
	return out
}
