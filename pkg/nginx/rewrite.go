// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"regexp"
	"slices"
	"strings"
)

var groupNumber = regexp.MustCompile(`\$\{?([0-9])\}?`)

// movedTo makes a redirect of a rewrite; nil: it is none, or cannot be translated.
func (v *server) movedTo(d *directive) *action {
	status := map[string]int{"redirect": 302, "permanent": 301}[d.arg(2)]
	to := d.arg(1)
	if status == 0 && (strings.HasPrefix(to, "http://") || strings.HasPrefix(to, "https://") || strings.HasPrefix(to, "$scheme")) {
		status = 302
	}
	if status == 0 {
		return nil
	}
	a := &action{from: []*directive{d}}
	query := "$query"
	if strings.HasSuffix(to, "?") {
		to, query = strings.TrimSuffix(to, "?"), ""
	}
	if strings.Contains(to, "?") || strings.Contains(to, "$request_uri") && query != "" {
		return nil
	}
	if !groupNumber.MatchString(to) {
		location, ok := v.expand(to)
		if !ok {
			return nil
		}
		a.redirect = &redirect{status, location + query}
		return a
	}
	base, path := "", to
	if i := strings.Index(to, "://"); i >= 0 {
		slash := strings.IndexByte(to[i+3:], '/')
		if slash < 0 {
			return nil
		}
		base, path = to[:i+3+slash], to[i+3+slash:]
		var ok bool
		if base, ok = v.expand(base); !ok {
			return nil
		}
	}
	if !v.replaced(a, d, path) {
		return nil
	}
	a.redirect = &redirect{status, base + "$path" + query}
	return a
}

// replaced has the path replaced by an expression.
func (v *server) replaced(a *action, d *directive, to string) bool {
	regex := wholeRegex(d.arg(0), false)
	text := groupNumber.ReplaceAllString(to, "$${$1}")
	rest := groupNumber.ReplaceAllString(to, "")
	if regex == "" || !strings.HasPrefix(to, "/") || !plainPath.MatchString("/"+rest) || strings.Contains(rest, "$") {
		return false
	}
	groups := regexp.MustCompile(regex).NumSubexp()
	for _, m := range groupNumber.FindAllStringSubmatch(to, -1) {
		if n := int(m[1][0] - '0'); n > groups || n == 0 {
			return false
		}
	}
	if strings.HasPrefix(regex, ".*") && !strings.HasPrefix(d.arg(0), ".*") {
		regex = ".*?" + regex[2:] // nginx replaces what it finds first
	}
	set(&a.rewrite, "regex", regex, d)
	set(&a.rewrite, "replacement", text, d)
	return true
}

// serverRewrites are the redirects that a server makes before it looks for a location. Any
// other rewrite there closes the server.
func (t *translation) serverRewrites(v *server) (out []*shape) {
	for _, d := range v.s.own("rewrite") {
		regex := wholeRegex(d.arg(0), false)
		a := v.movedTo(d)
		if a == nil || regex == "" {
			t.note(Security, d, "a rewrite of all that comes is translated when it is a redirect: the server answers 503")
			v.s.d.closed = true
			continue
		}
		a.closed = t.conditions(v.s)
		t.replyFields(a, v.s)
		out = append(out, &shape{regex: regex, label: "rewrite", act: a})
	}
	return out
}

// rewritten translates the rewrite of a location, if there is one. With uri it goes on to an
// upstream, and else the rewrite is all that it does; false: that is not so.
func (t *translation) rewritten(v *server, a *action, l *location, uri *string) bool {
	list := l.s.own("rewrite")
	if len(list) == 0 {
		return false
	}
	d := list[0]
	closed := func(format string) bool {
		for _, d := range list {
			t.note(Security, d, "%s: the location answers 503", format)
		}
		a.closed = append(a.closed, d)
		if uri == nil {
			a.reply = &reply{status: 503, body: "503 not translated\n"}
		}
		return true
	}
	if len(list) > 1 {
		return closed("several of them are not translated")
	}
	if moved := v.movedTo(d); moved != nil {
		regex := wholeRegex(d.arg(0), false)
		universal := []string{"^", "^.*$", ".*", "^.*", "^/.*$", "^(.*)$", "^/(.*)$", "^/(.*)", "^(.*)", "(.*)", "^" + l.path + "(.*)$", "^" + l.path + "(.*)", "^" + l.path}
		literal := ""
		if x, err := regexp.Compile(regex); err == nil {
			literal, _ = x.LiteralPrefix()
		}
		switch {
		case slices.Contains(universal, d.arg(0)):
			a.upstream, a.reply, a.redirect, a.rewrite, a.passes = nil, nil, moved.redirect, moved.rewrite, false
			a.from = append(a.from, d)
			return true
		case (l.kind == "" || l.kind == "^~") && regex != "" && strings.HasPrefix(literal, l.path) && l.path != "/":
			moved.closed = t.conditions(l.s)
			t.replyFields(moved, l.s)
			a.before = &before{regex, moved}
			return false
		}
		return closed("the redirect is for some of its paths")
	}
	if uri == nil || d.arg(2) != "break" || *uri != "" || !v.replaced(a, d, d.arg(1)) {
		return closed("of rewrites of a location one with break, groups and no variables is translated")
	}
	return true
}
