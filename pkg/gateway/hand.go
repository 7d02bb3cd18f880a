// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/servers"
)

// byHand is what operators have set that is in no file: it goes with the lead from supervisor to
// supervisor, and back with it.
type byHand struct {
	Drained bool                  `json:"drained,omitempty"`
	Level   levelByHand           `json:"level,omitzero"`
	Hands   []admin.ServerSetting `json:"hands,omitempty"` // all servers: one may have been set back
}

// byHand is complete for one that nobody asks any more.
func (s *supervisor) byHand() *byHand {
	out := &byHand{Drained: s.drain.byHand.Load(), Level: s.level.byHand()}
	for _, v := range s.servers.Status() {
		h := s.servers.Hand(v.Upstream, v.Address)
		out.Hands = append(out.Hands, admin.ServerSetting{Upstream: v.Upstream, Address: v.Address, Drained: &h.Drained, Weight: &h.Weight})
	}
	return out
}

// takeByHand decides as operators did elsewhere; nil is nothing new. Servers that the other
// configuration does not have stay as they are.
func (s *supervisor) takeByHand(h *byHand) {
	if h == nil {
		return
	}
	s.drain.byHand.Store(h.Drained)
	s.takeLevel(h.Level)
	for _, drained := range []bool{false, true} { // the last one that gets requests cannot be drained
		for _, v := range h.Hands {
			if v.Drained == nil || v.Weight == nil || *v.Drained != drained {
				continue
			}
			if s.servers.Hand(v.Upstream, v.Address) == (servers.Hand{Drained: *v.Drained, Weight: *v.Weight}) {
				continue
			}
			if err := s.setServer(v); err != nil {
				s.log.Warn("a server is not as it was set by hand", "upstream", v.Upstream, "server", v.Address, "error", err)
			}
		}
	}
}
