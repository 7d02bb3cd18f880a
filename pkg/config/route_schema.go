// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// routesSeen finds what a route repeats without a look at each pair of them.
type routesSeen struct {
	names   map[string]bool
	matches map[string]string // what a route matches -> its name
	bodies  int               // bytes of replies, over all routes
}

func newRoutesSeen() *routesSeen {
	return &routesSeen{names: map[string]bool{}, matches: map[string]string{}}
}

func route(c *Config, seen *routesSeen) mapping {
	r := &Route{}
	body := int64(0)
	return mapping{
		rows: []row{
			{"name", required, label(&r.Name)},
			{"host", none, hostPattern(&r.Host)},
			{"path", "/", urlPath(&r.Path)},
			{"path_exact", none, urlPath(&r.PathExact)},
			{"path_regex", none, pathRegex(&r.PathRegex)},
			{"methods", none, list{example: "GET", least: 1, item: added(&r.Methods, method)}},
			{"headers", none, list{example: "{name: X-Version, equal: \"2\"}", most: 16, item: func() reader { return headerMatch(r) }}},
			{"listeners", none, list{example: `":80"`, least: 1, most: maxListeners, item: added(&r.Listeners, listenAddress)}},
			{"upstream", none, label(&r.Upstream)},
			{"split", none, list{example: "{upstream: app, weight: 95}", least: 1, most: 64, item: func() reader { return share(c, r) }}},
			{"redirect", none, redirect(r)},
			{"reply", none, reply(c, r, seen)},
			{"maintenance", none, maintenance(r)},
			{"rewrite", none, rewrite(r)},
			{"request_headers", none, headerEdits(&r.RequestHeaders)},
			{"reply_headers", none, headerEdits(&r.ReplyHeaders)},
			{"timeouts", none, routeTimeouts(r)},
			{"body_bytes", none, size(&body, 0, 1<<40)},
			{"cors", none, cors(r)},
			{"mirror", none, label(&r.Mirror)},
			{"keys", none, routeKeys(r)},
			{"websocket", "off", webSocket(&r.WebSocket)},
		},
		check: func(f *found) {
			if f.values["body_bytes"] != nil {
				r.BodyBytes = &body
			}
			checkPath(f, r)
			checkMatch(f, r, seen)
			checkAction(f, c, r)
			c.Routes = append(c.Routes, *r)
		},
	}
}

// webSocket: 0 stands for off.
func webSocket(dst *time.Duration) scalar {
	return offOr(dst, duration(dst, time.Second, 24*time.Hour))
}

// checkPath: a path is matched in one way.
func checkPath(f *found, r *Route) {
	given := 0
	for _, key := range []string{"path", "path_exact", "path_regex"} {
		if f.values[key] == nil {
			continue
		}
		if given++; given > 1 {
			f.fail(key, "a route has one of path, path_exact and path_regex")
			f.faulty[key] = true
		}
	}
	if given > 0 && f.values["path"] == nil {
		r.Path = ""
	}
}

// checkMatch finds names given twice, and routes that no request can reach.
func checkMatch(f *found, r *Route, seen *routesSeen) {
	if r.Name != "" && seen.names[r.Name] {
		f.fail("name", "another route is called %s", r.Name)
	}
	seen.names[r.Name] = true
	for _, key := range []string{"host", "path", "path_exact", "path_regex", "methods", "headers", "listeners"} {
		if f.faulty[key] {
			return
		}
	}
	slices.Sort(r.Methods)
	match := fmt.Sprintf("%q", []string{r.Host, r.Path, r.PathExact, r.PathRegex, strings.Join(r.Methods, " ")})
	conditions := make([]string, 0, len(r.Headers))
	for _, h := range r.Headers {
		conditions = append(conditions, h.text())
	}
	slices.Sort(conditions)
	conditions = append(conditions, slices.Sorted(slices.Values(r.Listeners))...)
	match += strings.Join(conditions, "\n")
	if other, there := seen.matches[match]; there {
		key, what := "path", "host and path"
		if r.Path == "" {
			key = "path_exact"
			if r.PathExact == "" {
				key = "path_regex"
			}
		}
		if len(r.Methods)+len(r.Headers)+len(r.Listeners) > 0 {
			what = "host, path, methods, headers and listeners"
		}
		f.fail(key, "never used: route %s before it has the same %s", other, what)
		return
	}
	seen.matches[match] = r.Name
}

func (h HeaderMatch) text() string {
	s := strings.ToLower(h.Name)
	if h.Equal != nil {
		s += fmt.Sprintf("=%q", *h.Equal)
	}
	if h.Prefix != nil {
		s += fmt.Sprintf("^%q", *h.Prefix)
	}
	return s
}

// checkAction: a route does one thing with a request.
func checkAction(f *found, c *Config, r *Route) {
	actions := []string{"upstream", "split", "redirect", "reply"}
	given := 0
	for _, key := range actions {
		if f.values[key] == nil && !f.faulty[key] {
			continue
		}
		if given++; given > 1 {
			f.fail(key, "a route has one of %s", strings.Join(actions, ", "))
		}
	}
	if given == 0 {
		f.fail("upstream", "a route needs one of %s", strings.Join(actions, ", "))
	}
	forwards := f.values["upstream"] != nil || f.values["split"] != nil
	for _, key := range []string{"request_headers", "timeouts", "mirror"} {
		if f.values[key] != nil && given == 1 && !forwards {
			f.fail(key, "nothing is sent to an upstream: take it out, or give upstream or split")
		}
	}
	f.d.later = append(f.d.later, func() {
		refer(f, c, "upstream", r.Upstream)
		refer(f, c, "mirror", r.Mirror)
		checkListeners(f, c, r)
		checkWebSocket(f, c, r)
	})
}

// checkListeners: a route that is kept to listeners names such as there are.
func checkListeners(f *found, c *Config, r *Route) {
	for i, address := range r.Listeners {
		if !slices.ContainsFunc(c.Listeners, func(l Listener) bool { return l.Address == address }) {
			f.d.fail(f.values["listeners"].Content[i], "%s.listeners[%d]: there is no listener %s: name one as it is in listeners", f.where, i, address)
		}
	}
}

// checkWebSocket: none is opened within HTTP/2 to an upstream.
func checkWebSocket(f *found, c *Config, r *Route) {
	for _, u := range c.Upstreams {
		used := u.Name == r.Upstream || slices.ContainsFunc(r.Split, func(s Share) bool { return s.Upstream == u.Name })
		if used && u.Protocol == "http2" && r.WebSocket > 0 {
			f.fail("websocket", "upstream %s has `protocol: http2`, within which no WebSocket is opened: send them to one with http1, by a route of their own", u.Name)
		}
	}
}

func headerMatch(r *Route) mapping {
	h := &HeaderMatch{}
	var equal, prefix string
	return mapping{
		rows: []row{
			{"name", required, fieldName(&h.Name)},
			{"equal", none, fieldValue(&equal)},
			{"prefix", none, fieldPrefix(&prefix)},
		},
		check: func(f *found) {
			if f.values["equal"] != nil {
				h.Equal = &equal
			}
			if f.values["prefix"] != nil {
				h.Prefix = &prefix
			}
			switch {
			case h.Equal != nil && h.Prefix != nil:
				f.fail("prefix", "a condition has one of equal and prefix")
			case strings.Contains(h.Name, "_"):
				f.fail("name", "%s: fields with _ in their name are not taken from clients", h.Name)
			}
			r.Headers = append(r.Headers, *h)
		},
	}
}

func share(c *Config, r *Route) mapping {
	s := &Share{}
	return mapping{
		rows: []row{
			{"upstream", required, label(&s.Upstream)},
			{"weight", "1", whole(&s.Weight, 0, 1_000_000)},
		},
		check: func(f *found) {
			if slices.ContainsFunc(r.Split, func(o Share) bool { return s.Upstream != "" && o.Upstream == s.Upstream }) {
				f.fail("upstream", "%s has a share already", s.Upstream)
			}
			r.Split = append(r.Split, *s)
			f.d.later = append(f.d.later, func() { refer(f, c, "upstream", s.Upstream) })
			first := len(r.Split) == 1
			f.d.later = append(f.d.later, func() {
				if first && !slices.ContainsFunc(r.Split, func(o Share) bool { return o.Weight > 0 }) && !f.faulty["weight"] {
					f.fail("weight", "no share has a weight above 0: nobody would get a request")
				}
			})
		},
	}
}

func routeTimeouts(r *Route) mapping {
	t := &RouteTimeouts{}
	return mapping{
		rows: []row{
			{"header", none, duration(&t.Header, time.Millisecond, time.Hour)},
			{"body", none, duration(&t.Body, 100*time.Millisecond, time.Hour)},
			{"total", none, duration(&t.Total, 10*time.Millisecond, 24*time.Hour)},
		},
		check: func(f *found) {
			if f.values != nil {
				r.Timeouts = t
			}
		},
	}
}

func headerEdits(dst **HeaderEdits) mapping {
	e := &HeaderEdits{}
	return mapping{
		rows: []row{
			{"set", none, list{example: "{name: X-Tier, value: gold}", most: 64, item: func() reader { return headerValue(&e.Set) }}},
			{"add", none, list{example: "{name: Vary, value: Accept}", most: 64, item: func() reader { return headerValue(&e.Add) }}},
			{"remove", none, list{example: "Server", most: 64, item: added(&e.Remove, fieldName)}},
		},
		check: func(f *found) {
			if f.values == nil {
				return
			}
			*dst = e
			for _, s := range e.Set {
				if slices.ContainsFunc(e.Remove, func(name string) bool { return strings.EqualFold(name, s.Name) }) {
					f.fail("remove", "%s is set, too: it is one or the other", s.Name)
				}
			}
		},
	}
}

func headerValue(dst *[]HeaderValue) mapping {
	v := &HeaderValue{}
	return mapping{
		rows: []row{
			{"name", required, editedName(&v.Name)},
			{"value", required, fieldValue(&v.Value)},
		},
		check: func(*found) { *dst = append(*dst, *v) },
	}
}
