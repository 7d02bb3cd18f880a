// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// location is a location block, or what takes the place of one.
type location struct {
	s     *scope
	kind  string // =, "", ^~, ~ or ~*; @ for a named one
	path  string
	regex string // what path_regex is: of a whole path
}

// shape is what a server does with the requests that match: a route but for its host.
type shape struct {
	exact, prefix, regex string
	label                string // for its name
	act                  *action
	of                   *location // nil: it is of a server
}

// locations are those of a server, nested ones beside the others.
func (t *translation) locations(s *scope) (out []*location) {
	for _, d := range s.own("location") {
		l := &location{s: d.scope(s)}
		switch {
		case len(d.args) == 1 && strings.HasPrefix(d.args[0], "@"):
			l.kind, l.path = "@", d.args[0]
		case len(d.args) == 1 && strings.HasPrefix(d.args[0], "="):
			l.kind, l.path = "=", d.args[0][1:]
		case len(d.args) == 1 && strings.HasPrefix(d.args[0], "~"):
			l.kind, l.path = "~", strings.TrimPrefix(strings.TrimPrefix(d.args[0], "~"), "*")
			if strings.HasPrefix(d.args[0], "~*") {
				l.kind = "~*"
			}
		case len(d.args) == 1:
			l.path = d.args[0]
		default:
			l.kind, l.path = d.arg(0), d.arg(1)
		}
		inner := t.locations(l.s)
		for _, n := range inner {
			if n.kind == "~" || n.kind == "~*" || l.kind == "~" || l.kind == "~*" {
				t.note(Security, n.s.d, "a location with an expression within another one, or within one, is not translated: what it is in answers 503")
				l.s.d.closed = true
				continue
			}
			if (n.kind == "" || n.kind == "^~") && (l.kind == "" || l.kind == "^~") {
				n.kind = l.kind // nginx asks the outermost one whether expressions are tried
			}
			out = append(out, n)
		}
		out = append(out, l)
	}
	return out
}

// wholeRegex makes an expression that matches all of a path out of one that is searched for
// in it; "": the gateway cannot have it.
func wholeRegex(text string, anyCase bool) string {
	begin, end := ".*", ".*"
	if strings.Contains(text, "|") || strings.Contains(text, `\Q`) {
		// What is put beside it would be of one alternative alone, or be quoted. Whether there
		// is an alternation, a parser does not tell: it takes common prefixes out of it.
		text = "(?:" + text + ")"
	} else { // anchors of all of it; others stay where they are
		if rest, ok := strings.CutPrefix(text, "^"); ok {
			begin, text = "", rest
		}
		if rest, ok := strings.CutSuffix(text, "$"); ok && !strings.HasSuffix(rest, `\`) {
			end, text = "", rest
		}
		if strings.HasSuffix(text, ".*") && !strings.HasSuffix(text, `\.*`) {
			end = ""
		}
		if strings.HasPrefix(text, ".*") {
			begin = ""
		}
	}
	whole := begin + text + end
	if anyCase {
		whole = "(?i)" + whole
	}
	if _, err := regexp.Compile(whole); err != nil || len(whole) > 1024 || whole == "" {
		return ""
	}
	return whole
}

var (
	plainPath  = regexp.MustCompile(`^/[A-Za-z0-9._~!$&'()*+,;=:@/-]*$`)
	unreserved = regexp.MustCompile(`^[A-Za-z0-9._~/-]*$`)
	// What expressions are made of beside what clients never need to escape.
	plainRegex = regexp.MustCompile(`^([A-Za-z0-9._~/^$()|*+?-]|\\[._~/dw-]|\{[0-9]+(,[0-9]*)?\}|\[\^?([a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[A-Za-z0-9._~/]|\\[._~/dw-])+-?\])*$`)
	groupKind  = regexp.MustCompile(`\(\?([a-zA-Z-]*:|<\w+>|P<\w+>)`)
	anyOctet   = regexp.MustCompile(`(^|[^\\])(\.([^*+]|$)|\[\^|\\[DSW])`)
)

// mayBeEscaped: what the location takes has octets that a client may escape, so that the
// gateway would not know the path as one of its.
func (l *location) mayBeEscaped() bool {
	if l.kind != "~" && l.kind != "~*" {
		return !unreserved.MatchString(l.path)
	}
	text := groupKind.ReplaceAllString(l.path, "(")
	return !plainRegex.MatchString(text) || anyOctet.MatchString(text)
}

// shapes orders a server's locations as nginx does. The gateway asks exact paths, then
// prefixes, then expressions in their order, then /. Where nginx would ask in another order,
// or a prefix ends within a segment, prefixes are written as expressions.
func (t *translation) shapes(v *server) []*shape {
	all := t.locations(v.s)
	named := map[string]*location{}
	for _, l := range all {
		if l.kind == "@" {
			named[l.path] = l
		}
	}
	all = slices.DeleteFunc(all, func(l *location) bool { return l.kind == "@" })
	t.checkPaths(v, all)
	var exact, caret, regexes, prefixes []*shape
	var root *shape
	first := t.serverRewrites(v)
	regexes = append(regexes, first...)
	inOrder, closed, open, escapes := len(first) > 0, false, false, false
	t.rewritesFirst(first, all)
	var of []*shape
	for _, l := range all {
		act := t.act(v, l, named)
		sh := &shape{label: l.path, act: act, of: l}
		of = append(of, sh)
		if act.forbids {
			closed = true
			escapes = escapes || l.mayBeEscaped()
		} else {
			open = true
			escapes = escapes || l.regex != "" && takesEscapes(l.regex)
		}
		if act.before != nil {
			regexes = append(regexes, &shape{regex: act.before.regex, label: l.path, act: act.before.act})
			inOrder = true
		}
		switch {
		case l.kind == "=":
			sh.exact = l.path
			exact = append(exact, sh)
		case l.kind == "~" || l.kind == "~*":
			sh.regex = l.regex
			regexes = append(regexes, sh)
			inOrder = true
		case l.path == "/" && l.kind == "":
			sh.prefix = "/"
			root = sh
		case l.kind == "^~":
			sh.prefix = l.path
			caret = append(caret, sh)
			inOrder = inOrder || !strings.HasSuffix(l.path, "/")
		default:
			sh.prefix = l.path
			prefixes = append(prefixes, sh)
			inOrder = inOrder || !strings.HasSuffix(l.path, "/")
		}
	}
	if root == nil {
		root = &shape{prefix: "/", label: "/", act: t.rest(v)}
		open = open || !root.act.forbids
	}
	strict, hidden := stricter(of)
	guarded := closed && open || strict
	escapes = escapes || hidden
	return t.ordered(v, exact, caret, regexes, prefixes, root, inOrder || guarded, guarded, escapes)
}

// rewritesFirst closes exact paths that a rewrite of the server takes in nginx.
func (t *translation) rewritesFirst(first []*shape, all []*location) {
	for _, l := range all {
		for _, f := range first {
			if x, err := regexp.Compile(`\A(?:` + f.regex + `)\z`); l.kind == "=" && err == nil && x.MatchString(l.path) {
				t.note(Security, l.s.d, "a rewrite of the server takes this path first in nginx, and exact paths are first here: it answers 503")
				l.s.d.closed = true
			}
		}
	}
}

// stricter tells whether one has a limit that another one has not, or takes shorter bodies,
// so that the other is a way around it; and whether such a one may be escaped.
func stricter(list []*shape) (some, escapes bool) {
	passes := slices.DeleteFunc(slices.Clone(list), func(sh *shape) bool { return !sh.act.passes })
	for _, a := range passes {
		for _, b := range passes {
			lacks := func(l *limit) bool { return !slices.Contains(b.act.limits, l) }
			if a.act.most < b.act.most || slices.ContainsFunc(a.act.limits, lacks) {
				some, escapes = true, escapes || a.of.mayBeEscaped()
				break
			}
		}
	}
	return some, escapes
}

func (t *translation) ordered(v *server, exact, caret, regexes, prefixes []*shape, root *shape, inOrder, guarded, escapes bool) []*shape {
	longest := func(a, b *shape) int { return cmp.Compare(len(b.prefix), len(a.prefix)) }
	slices.SortStableFunc(caret, longest)
	slices.SortStableFunc(prefixes, longest)
	out := exact
	out = append(out, t.slashes(exact, caret, prefixes)...)
	if guarded {
		what := "//|%2[Ff]|%0[Aa]" // $ of nginx's expressions is also before a last %0A
		if escapes {
			what = "//|%"
		}
		t.note(Differs, v.s.d, "nginx merges // and decodes escapes before it looks for a location, the gateway does not; since some locations here are closed or held to limits, paths with one of %s are refused", what)
		out = append(out, &shape{regex: ".*(" + what + ").*", label: "guard", act: &action{
			from: []*directive{v.s.d}, comment: "what nginx would read as another path", reply: &reply{status: 400, body: "400 ambiguous path\n"},
		}})
	}
	hasRegex := len(regexes) > 0
	for _, c := range caret {
		for _, p := range append(slices.Clone(prefixes), root) {
			if hasRegex && p != c && strings.HasPrefix(p.prefix, c.prefix) {
				t.note(Security, c.act.from[0], "a longer location without ^~ is within it, and expressions come between: the order cannot be kept, so it answers 503")
				c.act.closed = append(c.act.closed, c.act.from[0])
			}
		}
	}
	if !hasRegex { // the longest of all
		prefixes = append(prefixes, caret...)
		slices.SortStableFunc(prefixes, longest)
		caret = nil
	}
	for _, list := range [][]*shape{caret, regexes, prefixes} {
		for _, sh := range list {
			if inOrder && sh.prefix != "" {
				sh.regex, sh.prefix = regexp.QuoteMeta(sh.prefix)+".*", ""
			}
			out = append(out, sh)
		}
	}
	return append(out, root)
}

// has tells whether one of the directives is in the location itself, and counts none as looked at.
func (l *location) has(names ...string) bool {
	return slices.ContainsFunc(l.s.d.block, func(d *directive) bool { return slices.Contains(names, d.name) })
}

// slashes are nginx's redirects of /x to the location /x/, where that has an upstream, whoever
// gets there. Where nobody does, /x has the same answer.
func (t *translation) slashes(exact []*shape, lists ...[]*shape) (out []*shape) {
	for _, list := range lists {
		for _, sh := range list {
			bare := strings.TrimSuffix(sh.prefix, "/")
			if bare == sh.prefix || bare == "" || !sh.of.has("proxy_pass", "grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "memcached_pass") {
				continue
			}
			same := func(o *shape) bool { return o.exact == bare || o.prefix == bare }
			if slices.ContainsFunc(exact, same) || slices.ContainsFunc(lists[0], same) || slices.ContainsFunc(lists[1], same) {
				continue
			}
			act := &action{from: sh.act.from[:1], comment: "as nginx does for a location that ends in /", closed: sh.act.closed, answers: sh.act.answers}
			if act.reply = sh.act.reply; act.reply == nil {
				act.redirect = &redirect{301, strings.ReplaceAll(sh.prefix, "$", "$$") + "$query"}
			}
			out = append(out, &shape{exact: bare, label: bare, act: act})
		}
	}
	return out
}

// checkPaths closes what the gateway would look for in another way than nginx.
func (t *translation) checkPaths(v *server, all []*location) {
	broken := false
	for _, l := range all {
		switch l.kind {
		case "~", "~*":
			l.regex = wholeRegex(l.path, l.kind == "~*")
			if l.regex == "" {
				t.note(Security, l.s.d, "the expression is not one of RE2 (no look-around, no back references, up to 1,024 bytes): it may be for any path, so the server answers 503")
				broken = true
			}
		case "=", "", "^~":
			if !plainPath.MatchString(l.path) {
				t.note(Security, l.s.d, "the path has characters that clients escape, in more than one way: the server answers 503")
				broken = true
			}
		default:
			t.note(Security, l.s.d, "%s is not known here: the server answers 503", l.kind)
			broken = true
		}
	}
	if !broken {
		return
	}
	for _, l := range all {
		if l.kind != "=" || !plainPath.MatchString(l.path) {
			l.s.d.closed = true
		}
		if l.regex == "" && (l.kind == "~" || l.kind == "~*") {
			l.regex = ".*" // which takes all that is not exact
		} else if !plainPath.MatchString(l.path) && l.kind != "~" && l.kind != "~*" {
			l.kind, l.regex, l.path = "~", ".*", "/"
		}
	}
	v.s.d.closed = true
}
