// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// snapshot is a compiled policy.Snapshot. It does not change once it is current.
type snapshot struct {
	policy    *policy.Snapshot
	limits    http1.Limits
	byHost    map[string][]route // by host in lower case without port, "" for any; longer paths first
	upstreams []*upstream
	tls       *tls.Config
}

type route struct {
	slot     int
	path     []byte // prefix
	upstream *upstream
}

// compile builds the route table. An upstream that did not change keeps its
// object, and with it its connections.
func compile(p *policy.Snapshot, old *snapshot) (*snapshot, error) {
	s := &snapshot{policy: p, byHost: map[string][]route{}, limits: http1.Limits{
		LineBytes: p.Sizes.LineBytes, HeaderBytes: p.Sizes.HeaderBytes, Fields: p.Sizes.HeaderFields,
	}}
	if p.Connections < 1 {
		return nil, fmt.Errorf("apply snapshot: %d connections: at least 1 is needed", p.Connections)
	}
	for i := range p.Upstreams {
		if u := &p.Upstreams[i]; len(u.Servers) == 0 || u.MaxConnections < 1 {
			return nil, fmt.Errorf("apply upstream %s: %d servers, %d connections: at least 1 of each is needed", u.Name, len(u.Servers), u.MaxConnections)
		}
		s.upstreams = append(s.upstreams, reuse(&p.Upstreams[i], old))
	}
	for _, r := range p.Routes {
		if r.Upstream < 0 || r.Upstream >= len(s.upstreams) {
			return nil, fmt.Errorf("apply route %s: upstream %d of %d", r.Name, r.Upstream, len(s.upstreams))
		}
		host := strings.ToLower(r.Host)
		s.byHost[host] = append(s.byHost[host], route{slot: r.Slot, path: []byte(r.PathPrefix), upstream: s.upstreams[r.Upstream]})
	}
	for _, routes := range s.byHost {
		slices.SortStableFunc(routes, func(a, b route) int { return cmp.Compare(len(b.path), len(a.path)) })
	}
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
	if q := bytes.IndexByte(target, '?'); q >= 0 {
		target = target[:q]
	}
	var lower [http1.MaxHost]byte
	host = withoutPort(host)
	n := copy(lower[:], host)
	for i, c := range lower[:n] {
		if c >= 'A' && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	if r := longest(s.byHost[string(lower[:n])], target); r != nil || n == 0 {
		return r
	}
	return longest(s.byHost[""], target)
}

func longest(routes []route, path []byte) *route {
	for i := range routes {
		if hasPathPrefix(path, routes[i].path) {
			return &routes[i]
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
