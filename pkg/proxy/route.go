// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"cmp"
	"crypto/tls"
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
	routes    []route // those with a host first, longer paths first
	upstreams []*upstream
	tls       *tls.Config
}

type route struct {
	slot     int
	host     []byte // lower case, without port; empty for any
	path     []byte // prefix
	upstream *upstream
}

// compile builds the route table. An upstream that did not change keeps its
// object, and with it its connections.
func compile(p *policy.Snapshot, old *snapshot) (*snapshot, error) {
	s := &snapshot{policy: p, limits: http1.Limits{
		LineBytes: p.Sizes.LineBytes, HeaderBytes: p.Sizes.HeaderBytes, Fields: p.Sizes.HeaderFields,
	}}
	for i := range p.Upstreams {
		s.upstreams = append(s.upstreams, reuse(&p.Upstreams[i], old))
	}
	for _, r := range p.Routes {
		if r.Upstream < 0 || r.Upstream >= len(s.upstreams) {
			return nil, fmt.Errorf("apply route %s: upstream %d of %d", r.Name, r.Upstream, len(s.upstreams))
		}
		s.routes = append(s.routes, route{slot: r.Slot, host: []byte(r.Host), path: []byte(r.PathPrefix), upstream: s.upstreams[r.Upstream]})
	}
	slices.SortStableFunc(s.routes, func(a, b route) int {
		return cmp.Or(cmp.Compare(min(len(b.host), 1), min(len(a.host), 1)), cmp.Compare(len(b.path), len(a.path)))
	})
	return s, nil
}

func reuse(p *policy.Upstream, old *snapshot) *upstream {
	if old != nil {
		for _, u := range old.upstreams {
			if reflect.DeepEqual(u.policy, p) {
				return u
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

// match finds the route: a host that is equal before any host, then the longest
// path. A path prefix ends where a segment does: /v1 matches /v1, /v1/x and /v1?q,
// not /v10.
func (s *snapshot) match(host, target []byte) *route {
	host = withoutPort(host)
	if q := bytes.IndexByte(target, '?'); q >= 0 {
		target = target[:q]
	}
	for i := range s.routes {
		r := &s.routes[i]
		if len(r.host) > 0 && !bytes.EqualFold(r.host, host) {
			continue
		}
		if hasPathPrefix(target, r.path) {
			return r
		}
	}
	return nil
}

func hasPathPrefix(path, prefix []byte) bool {
	if len(path) == 1 && path[0] == '*' {
		return len(prefix) == 1 // OPTIONS * belongs to the root
	}
	if !bytes.HasPrefix(path, prefix) {
		return false
	}
	return len(path) == len(prefix) || prefix[len(prefix)-1] == '/' || path[len(prefix)] == '/'
}

func withoutPort(host []byte) []byte {
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && bytes.IndexByte(host[i:], ']') < 0 {
		return host[:i]
	}
	return host
}
