// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// snapshot is a compiled policy.Snapshot. It does not change once it is current.
type snapshot struct {
	policy    *policy.Snapshot
	limits    http1.Limits
	routes    table
	upstreams []*upstream
	listeners map[string]*listener

	requestLimits    []*requestLimit
	connectionLimits []*connectionLimit
	streakRules      []streakRule
	own              ownLimits
	trial            *trial // nil: none is under way
}

// compile builds the route table. An upstream that did not change keeps its
// object, and with it its connections.
func compile(p *policy.Snapshot, old *snapshot) (*snapshot, error) {
	s := &snapshot{policy: p, routes: newTable(), limits: http1.Limits{
		LineBytes: p.Sizes.LineBytes, HeaderBytes: p.Sizes.HeaderBytes, Fields: p.Sizes.HeaderFields,
	}}
	if p.Connections < 1 {
		return nil, fmt.Errorf("apply snapshot: %d connections: at least 1 is needed", p.Connections)
	}
	var err error
	if s.streakRules, err = newStreakRules(p.Escalations); err != nil {
		return nil, fmt.Errorf("apply %w", err)
	}
	for i := range p.Upstreams {
		if u := &p.Upstreams[i]; len(u.Servers) == 0 || len(u.Servers) > maxServers || u.MaxConnections < 1 {
			return nil, fmt.Errorf("apply upstream %s: %d servers, %d connections: at least 1 of each is needed, and at most 64 servers", u.Name, len(u.Servers), u.MaxConnections)
		}
		u, err := reuse(&p.Upstreams[i], old)
		if err != nil {
			return nil, fmt.Errorf("apply upstream %s: %w", p.Upstreams[i].Name, err)
		}
		s.upstreams = append(s.upstreams, u)
	}
	for i := range p.RequestLimits {
		l, err := newRequestLimit(&p.RequestLimits[i])
		if err != nil {
			return nil, fmt.Errorf("apply request limit %s: %w", p.RequestLimits[i].Name, err)
		}
		s.requestLimits = append(s.requestLimits, l)
	}
	for i := range p.ConnectionLimits {
		l, err := newConnectionLimit(&p.ConnectionLimits[i])
		if err != nil {
			return nil, fmt.Errorf("apply %w", err)
		}
		s.connectionLimits = append(s.connectionLimits, l)
	}
	if old != nil && old.policy.Generation == p.Generation && reflect.DeepEqual(old.policy.Trial, p.Trial) {
		s.trial = old.trial // a certificate was renewed: what it has counted stays
	} else if s.trial, err = newTrial(p.Trial); err != nil {
		return nil, err
	}
	for i := range p.Routes {
		r, err := s.newRoute(i, &p.Routes[i])
		if err == nil {
			err = s.routes.add(&p.Routes[i], r)
		}
		if err != nil {
			return nil, fmt.Errorf("apply route %s: %w", p.Routes[i].Name, err)
		}
	}
	s.routes.settle()
	return s, nil
}

func reuse(p *policy.Upstream, old *snapshot) (*upstream, error) {
	if old != nil {
		for _, u := range old.upstreams {
			if reflect.DeepEqual(u.policy, p) {
				return u, nil
			}
		}
	}
	return newUpstream(p)
}

// retire closes the idle connections of upstreams that next does not have.
func (s *snapshot) retire(next *snapshot) {
	for _, u := range s.upstreams {
		if !slices.Contains(next.upstreams, u) {
			u.retire()
		}
	}
}
