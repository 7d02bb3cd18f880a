// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"math/rand/v2"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/zone"
)

// samplingRule leaves out a share of the exchanges that went well.
type samplingRule struct {
	routes map[string]bool // nil: all
	share  float64         // that is logged
	slow   time.Duration   // what takes as long is logged
}

func samplingRules(rules []config.Sampling) (out []samplingRule) {
	for _, r := range rules {
		rule := samplingRule{share: r.Share, slow: r.Slow}
		for _, name := range r.Routes {
			if rule.routes == nil {
				rule.routes = map[string]bool{}
			}
			rule.routes[name] = true
		}
		out = append(out, rule)
	}
	return out
}

// keeps tells whether the record is logged: the first rule that is for its route decides.
// Whatever did not go well is, and the choice is not the client's.
func keeps(rules []samplingRule, r *zone.AccessRecord, route string) bool {
	for i := range rules {
		rule := &rules[i]
		if rule.routes != nil && !rule.routes[route] {
			continue
		}
		return !wentWell(r) || r.Duration >= rule.slow || rand.Float64() < rule.share
	}
	return true
}

// wentWell: the reply is a good one, and whole.
func wentWell(r *zone.AccessRecord) bool {
	return r.Status < 400 && (r.Outcome == zone.RequestOK || r.Outcome == zone.RequestRouteReply)
}
