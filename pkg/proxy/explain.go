// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// Question is a request that Explain is asked about.
type Question struct {
	Method, Host, Path string // the path with or without a query
	Fields             map[string]string
	Listener           string     // by whose address it comes; "": the first one's
	Client             netip.Addr // zero: nobody knows
	Key                *keys.Key  // that opens it; nil: none
}

// Explanation is where a request would go, and what it would be charged to.
type Explanation struct {
	Route  int // index in Snapshot.Routes; -1: none takes it
	Limits []LimitedBy
}

// LimitedBy is a limit that a request is held to, and whose bucket that is.
type LimitedBy struct{ Name, Value string }

// Explain finds the route of a request and its limits, by the look-ups that workers make. It
// needs no worker and charges nothing.
func Explain(s *policy.Snapshot, q *Question) (Explanation, error) {
	out := Explanation{Route: -1}
	routes := newTable()
	for i := range s.Routes {
		p := &s.Routes[i]
		r := &route{name: p.Name, index: i, methods: p.Methods, listeners: p.Listeners, headers: newHeaderConditions(p.Headers), cors: newCORS(p.CORS, p.Methods)}
		if err := routes.add(p, r); err != nil {
			return out, fmt.Errorf("explain: route %s: %w", p.Name, err)
		}
	}
	routes.settle()
	ex := &Exchange{apiKey: q.Key, method: []byte(q.Method), host: []byte(q.Host)}
	for name, value := range q.Fields {
		ex.fields = append(ex.fields, http1.Field{Name: []byte(name), Value: []byte(value)})
	}
	if q.Client.IsValid() {
		ex.peer = netip.AddrPortFrom(q.Client, 0)
	}
	ex.routing.host = appendLower(nil, ex.host)
	target, _, _ := bytes.Cut([]byte(q.Path), []byte{'?'})
	asked := &asked{host: ex.routing.host, method: ex.method, fields: ex.fields, preflight: preflightMethod(ex)}
	asked.path, _ = plainPath(nil, target)
	if asked.listener = q.Listener; asked.listener == "" && len(s.Listeners) > 0 {
		asked.listener = s.Listeners[0].Address
	}
	if ex.route = routes.find(asked); ex.route == nil {
		return out, nil
	}
	out.Route = ex.route.index
	for i := range s.ConnectionLimits {
		l := &s.ConnectionLimits[i]
		if l.Count != "requests" {
			continue
		}
		if err := out.limit(ex, l.Name, l.Routes, l.Methods, l.Tiers, l.Key); err != nil {
			return out, err
		}
	}
	if q.Key != nil && q.Key.Requests > 0 {
		out.Limits = append(out.Limits, LimitedBy{"api_key", string(q.Key.ID)})
	}
	for i := range s.RequestLimits {
		l := &s.RequestLimits[i]
		if err := out.limit(ex, l.Name, l.Routes, l.Methods, l.Tiers, l.Key); err != nil {
			return out, err
		}
	}
	return out, nil
}

// limit adds one, if it is for the exchange. A key that is a function needs the worker's script:
// of such a limit it says only that it is asked.
func (x *Explanation) limit(ex *Exchange, name string, routes []int, methods, tiers []string, key []policy.KeyPart) error {
	var values []string
	whose, err := newLimitMatch(name, routes, methods, tiers, []policy.KeyPart{{Kind: "route"}})
	if err != nil {
		return fmt.Errorf("explain: limit %s: %w", name, err)
	}
	if !whose.isForRoute(ex.route.index) || !whose.isFor(ex) {
		return nil
	}
	for _, part := range key {
		if part.Kind == "function" {
			values = append(values, "(what its function says)")
			continue
		}
		l, err := newLimitMatch(name, nil, nil, nil, []policy.KeyPart{part})
		if err != nil {
			return fmt.Errorf("explain: limit %s: %w", name, err)
		}
		unknown := part.Kind == "address" && !ex.peer.IsValid()
		if !unknown && !l.isFor(ex) { // it has nothing of that kind, and is not limited
			return nil
		}
		switch {
		case unknown:
			values = append(values, "(the client's address)")
		case part.Kind == "address" && ex.peer.Addr().Is6():
			values = append(values, netip.PrefixFrom(ex.peer.Addr(), 64).Masked().String())
		case part.Kind == "address":
			values = append(values, ex.peer.Addr().String())
		default:
			values = append(values, string(ex.limiting.key[2:]))
		}
	}
	x.Limits = append(x.Limits, LimitedBy{name, strings.Join(values, " ")})
	return nil
}
