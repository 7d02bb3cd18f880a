// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// table finds the route of a request. Of the routes that match, the first in this
// order is it:
//
//  1. by host: one that is equal, then *.DOMAIN, the longest first, then any host;
//  2. by path: one that is equal, then the longest prefix, then regular expressions
//     in the order of the configuration, each where the first route of it stands that
//     the request's listener has, then every path ("/");
//  3. by conditions, methods, listeners and fields: more of them before fewer, then in the order of the configuration.
//
// A look-up costs a map probe for each level of the host and each length of prefix
// that there is, whatever the number of routes; only regular expressions are tried
// one after the other. It allocates nothing.
type table struct {
	exact map[string]*hostRoutes // by host, lower case; "" for any, too
	below map[string]*hostRoutes // by domain: the hosts that end with a dot and it
	any   *hostRoutes            // nil: all routes have hosts
}

// hostRoutes are the routes of one host, or of all hosts below one. Each list has
// the routes with more conditions first.
type hostRoutes struct {
	exact   map[string][]*route // by path
	prefix  map[string][]*route // by prefix
	lengths []int               // of the prefixes, longest first
	regexes []regexPlace
	every   []*route // of every path
}

// regexPlace is where a regular expression is tried, for requests by some listeners: where the
// first of its routes stands that those have. Other listeners' routes move it for nobody.
type regexPlace struct {
	listeners []string // none: all
	*regexRoutes
}

// regexRoutes are the routes of one regular expression.
type regexRoutes struct {
	text    string
	literal []byte // what every path that matches begins with
	whole   *regexp.Regexp
	routes  []*route
}

// asked is what a look-up looks at; its slices are the exchange's.
type asked struct {
	host, path, method []byte // host in lower case without port; path without query
	fields             []http1.Field
	preflight          []byte // the method that a CORS preflight asks for; nil: it is none
	listener           string // the address by which the request came
}

func newTable() table {
	return table{exact: map[string]*hostRoutes{}, below: map[string]*hostRoutes{}}
}

func (t *table) add(p *policy.Route, r *route) error {
	host := t.routesOf(strings.ToLower(p.Host))
	switch {
	case p.PathExact != "":
		host.exact[p.PathExact] = append(host.exact[p.PathExact], r)
	case p.PathRegex != "":
		return host.addRegex(p.PathRegex, r)
	case p.PathPrefix == "/":
		host.every = append(host.every, r)
	case p.PathPrefix == "":
		return fmt.Errorf("no path")
	default:
		host.prefix[p.PathPrefix] = append(host.prefix[p.PathPrefix], r)
	}
	return nil
}

func (t *table) routesOf(host string) *hostRoutes {
	in := t.exact
	if domain, ok := strings.CutPrefix(host, "*."); ok {
		in, host = t.below, domain
	}
	if h, ok := in[host]; ok {
		return h
	}
	h := &hostRoutes{exact: map[string][]*route{}, prefix: map[string][]*route{}}
	in[host] = h
	if host == "" {
		t.any = h
	}
	return h
}

func (h *hostRoutes) addRegex(text string, r *route) error {
	var x *regexRoutes
	placed := false // for all by whom the route is reached
	for _, place := range h.regexes {
		if place.text == text {
			x = place.regexRoutes
			placed = placed || len(place.listeners) == 0 || slices.Equal(place.listeners, r.listeners)
		}
	}
	if x == nil {
		plain, err := regexp.Compile(text)
		if err != nil {
			return err
		}
		whole, err := regexp.Compile(`\A(?:` + text + `)\z`)
		if err != nil {
			return err
		}
		literal, _ := plain.LiteralPrefix()
		x = &regexRoutes{text: text, literal: []byte(literal), whole: whole}
	}
	x.routes = append(x.routes, r)
	if !placed {
		h.regexes = append(h.regexes, regexPlace{r.listeners, x})
	}
	return nil
}

// settle puts all lists in order; it is called once, when all routes are in.
func (t *table) settle() {
	for _, in := range []map[string]*hostRoutes{t.exact, t.below} {
		for _, h := range in {
			h.settle()
		}
	}
}

func (h *hostRoutes) settle() {
	order := func(list []*route) {
		slices.SortStableFunc(list, func(a, b *route) int { return cmp.Compare(b.conditions(), a.conditions()) })
	}
	for _, list := range h.exact {
		order(list)
	}
	for prefix, list := range h.prefix {
		order(list)
		h.lengths = append(h.lengths, len(prefix))
	}
	for _, x := range h.regexes {
		order(x.routes)
	}
	order(h.every)
	slices.SortFunc(h.lengths, func(a, b int) int { return cmp.Compare(b, a) })
	h.lengths = slices.Compact(h.lengths)
}

// find returns the route, or nil.
func (t *table) find(a *asked) *route {
	if h, ok := t.exact[string(a.host)]; ok && len(a.host) > 0 {
		if r := h.find(a); r != nil {
			return r
		}
	}
	if len(t.below) > 0 {
		for rest := a.host; ; {
			dot := bytes.IndexByte(rest, '.')
			if dot < 0 {
				break
			}
			rest = rest[dot+1:]
			if h, ok := t.below[string(rest)]; ok {
				if r := h.find(a); r != nil {
					return r
				}
			}
		}
	}
	if t.any == nil {
		return nil
	}
	return t.any.find(a)
}

func (h *hostRoutes) find(a *asked) *route {
	if len(a.path) == 1 && a.path[0] == '*' {
		return first(h.every, a) // OPTIONS * belongs to the root
	}
	if r := first(h.exact[string(a.path)], a); r != nil {
		return r
	}
	for _, n := range h.lengths {
		if n > len(a.path) || !endsSegment(a.path, n) {
			continue
		}
		if r := first(h.prefix[string(a.path[:n])], a); r != nil {
			return r
		}
	}
	for _, x := range h.regexes {
		if (len(x.listeners) == 0 || slices.Contains(x.listeners, a.listener)) && bytes.HasPrefix(a.path, x.literal) && x.whole.Match(a.path) {
			if r := first(x.routes, a); r != nil {
				return r
			}
		}
	}
	return first(h.every, a)
}

// endsSegment: a prefix of n bytes ends where a segment of the path does. /v1 takes
// /v1, /v1/x and /v1?q, not /v10.
func endsSegment(path []byte, n int) bool {
	return len(path) == n || path[n-1] == '/' || path[n] == '/'
}

func first(list []*route, a *asked) *route {
	for _, r := range list {
		if r.admits(a) {
			return r
		}
	}
	return nil
}

// conditions is how many there are beside host and path.
func (r *route) conditions() int {
	n := len(r.headers)
	if len(r.methods) > 0 {
		n++
	}
	if len(r.listeners) > 0 {
		n++
	}
	return n
}

// admits holds the request to the route's conditions. A preflight asks on behalf of a
// request that is still to come: it is judged by that one's method, and of the
// fields it can say nothing.
func (r *route) admits(a *asked) bool {
	if len(r.listeners) > 0 && !slices.Contains(r.listeners, a.listener) {
		return false
	}
	if a.preflight != nil && r.cors != nil && r.hasMethod(a.preflight) {
		return true
	}
	if !r.hasMethod(a.method) {
		return false
	}
	for i := range r.headers {
		if !r.headers[i].holds(a.fields) {
			return false
		}
	}
	return true
}

func (r *route) hasMethod(method []byte) bool {
	return len(r.methods) == 0 || hasMethod(r.methods, method)
}

func hasMethod(list []string, method []byte) bool {
	for _, m := range list {
		if string(method) == m {
			return true
		}
	}
	return false
}

// headerCondition is one on a field; of several of that name, one is enough.
type headerCondition struct {
	name, value []byte
	equal       bool // to value; else value is a prefix, and any field has the empty one
}

func newHeaderConditions(list []policy.HeaderMatch) (out []headerCondition) {
	for _, h := range list {
		c := headerCondition{name: []byte(h.Name), equal: h.Equal != nil}
		if h.Equal != nil {
			c.value = []byte(*h.Equal)
		} else if h.Prefix != nil {
			c.value = []byte(*h.Prefix)
		}
		out = append(out, c)
	}
	return out
}

func (c *headerCondition) holds(fields []http1.Field) bool {
	for i := range fields {
		f := &fields[i]
		if f.Kind == http1.Identity || len(f.Name) != len(c.name) || !bytes.EqualFold(f.Name, c.name) {
			continue
		}
		if c.equal && bytes.Equal(f.Value, c.value) || !c.equal && bytes.HasPrefix(f.Value, c.value) {
			return true
		}
	}
	return false
}
