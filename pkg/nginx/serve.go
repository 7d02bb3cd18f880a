// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"fmt"
	"slices"
	"strings"
)

// route is one of gateway.yaml.
type route struct {
	name, host string
	listeners  []string // none: all
	*shape
}

// unique makes a name of what text has, that nothing of its kind has yet.
func (t *translation) unique(kind, text string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./@+", r) {
			return r
		}
		return '_'
	}, text)
	name = name[:min(len(name), 56)]
	if name == "" || name == "none" || name == "overflow" {
		name += "_"
	}
	for i := 1; ; i++ {
		one := name
		if i > 1 {
			one = fmt.Sprintf("%s-%d", name, i)
		}
		if !t.names[kind+one] {
			t.names[kind+one] = true
			return one
		}
	}
}

// serve makes the routes of a server: for each of its hosts, by the listeners where it is
// the one for it. Its first routes are for names that nobody has, where it is the default.
func (t *translation) serve(v *server) {
	shapes := t.serverShapes(v)
	if shapes == nil {
		return
	}
	var first []*listener // where it is the default
	var at []*listener
	for i := range v.listens {
		if o := v.listens[i].listener; o != nil && !slices.Contains(at, o) {
			at = append(at, o)
			if o.first == v {
				first = append(first, o)
			}
		}
	}
	if len(at) == 0 {
		return
	}
	for _, host := range v.names {
		owned := slices.DeleteFunc(slices.Clone(at), func(o *listener) bool { return t.ownerOf(o, host) != v })
		own, special := v.byName[host]
		if !special && !t.wildcardTakes(v, host) {
			owned = slices.DeleteFunc(owned, func(o *listener) bool { return o.first == v })
		}
		if special {
			t.emit(v, host, owned, t.answering(v, own))
		} else {
			t.emit(v, host, owned, shapes)
		}
	}
	t.emit(v, "", first, shapes)
}

// ownerOf is the first server on a listener that has the name, as in nginx.
func (t *translation) ownerOf(o *listener, host string) *server {
	for _, v := range o.servers {
		if slices.Contains(v.names, host) {
			return v
		}
	}
	return nil
}

// wildcardTakes: another server's *.DOMAIN would take the name from a default server that has
// no route for it.
func (t *translation) wildcardTakes(v *server, host string) bool {
	for _, o := range t.servers {
		for _, name := range o.names {
			if wild, ok := strings.CutPrefix(name, "*"); ok && o != v && strings.HasSuffix(host, wild) {
				return true
			}
		}
	}
	return false
}

// serverShapes are a server's routes but for hosts.
func (t *translation) serverShapes(v *server) []*shape {
	if v.whole == nil {
		return t.shapes(v)
	}
	out := t.answering(v, v.whole)
	for _, d := range v.s.own("location") {
		t.note(Own, d, "never reached: the return on line %d answers all", v.whole.line)
		d.settle()
	}
	return out
}

// answering is one route that answers all requests as a return says.
func (t *translation) answering(v *server, d *directive) []*shape {
	a := &action{from: []*directive{v.s.d}}
	t.answer(v, a, d)
	a.closed = t.conditions(v.s)
	t.replyFields(a, v.s)
	return []*shape{{prefix: "/", label: "/", act: a}}
}

// emit writes the shapes down for a host at listeners.
func (t *translation) emit(v *server, host string, at []*listener, shapes []*shape) {
	if v.inClear != nil {
		clear := slices.DeleteFunc(slices.Clone(at), func(o *listener) bool { return o.tls })
		at = slices.DeleteFunc(slices.Clone(at), func(o *listener) bool { return !o.tls })
		t.write(v, host, clear, t.answering(v, v.inClear))
	}
	t.write(v, host, at, shapes)
}

func (t *translation) write(v *server, host string, at []*listener, shapes []*shape) {
	if len(at) == 0 {
		return
	}
	var listeners []string
	if len(at) < len(t.listeners) {
		for _, o := range at {
			listeners = append(listeners, o.address)
		}
	}
	base := host
	if base == "" {
		base = "default"
		if len(v.names) > 0 {
			base = v.names[0]
		}
	}
	seen := map[string]bool{}
	for _, sh := range shapes {
		match := fmt.Sprintf("%q", []string{sh.exact, sh.prefix, sh.regex})
		if seen[match] {
			t.note(Missing, sh.act.from[0], "never used: what is before it takes the same paths")
			continue
		}
		seen[match] = true
		label := sh.label
		if !strings.HasPrefix(label, "/") {
			label = "/" + label
		}
		r := &route{name: t.unique("route ", strings.Replace(base, "*.", "any.", 1)+label), host: host, listeners: listeners, shape: sh}
		t.routes = append(t.routes, r)
		if !sh.act.passes {
			continue
		}
		for _, l := range sh.act.limits {
			l.routes = append(l.routes, r.name)
		}
	}
}
