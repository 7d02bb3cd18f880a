// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// action is what becomes of requests: all of a route but its name and what it matches.
type action struct {
	from     []*directive // the location, and what says the most about it
	comment  string
	closed   []*directive // why it answers 503 until somebody has seen to it
	forbids  bool         // some or all are kept out
	passes   bool         // to an upstream
	upstream *upstream
	redirect *redirect
	reply    *reply
	rewrite  []setting
	request  []edit
	answers  []edit // of replies
	timeouts []setting
	body     *setting
	most     int64 // of a body, in bytes
	ws       string
	limits   []*limit
	before   *before
}

type redirect struct {
	status   int
	location string
}

type reply struct {
	status            int
	contentType, body string
}

// before is a redirect of some paths of a location, ahead of it.
type before struct {
	regex string
	act   *action
}

// edit is a field that is set, added or removed.
type edit struct {
	name, value, from string
	remove            bool
}

// putEdit adds one; with only it is in place of others of that name.
func putEdit(list *[]edit, e edit, only bool) {
	for i, o := range *list {
		if only && strings.EqualFold(o.name, e.name) || o == e {
			(*list)[i] = e
			return
		}
	}
	*list = append(*list, e)
}

// act is what becomes of a location's requests.
func (t *translation) act(v *server, l *location, named map[string]*location) *action {
	a := &action{from: []*directive{l.s.d}}
	if l.s.one("internal") != nil { // also of what is around it, and before all else
		a.reply, a.forbids, a.comment = &reply{status: 404}, true, "internal: nobody outside gets it"
		l.s.d.settle()
		return a
	}
	if list := l.s.own("return"); len(list) > 0 {
		t.answer(v, a, list[0])
		a.closed = t.conditions(l.s)
		// Who is sent away is kept out, too.
		a.forbids = len(a.closed) > 0 || a.redirect != nil || a.reply.status >= 300
		t.replyFields(a, l.s)
		return a
	}
	var all bool
	a.closed, all = t.forbidden(l.s)
	a.forbids = all || len(a.closed) > 0
	if all && len(a.closed) == 0 {
		a.reply, a.comment = &reply{status: 403}, "deny all"
		t.note(Own, l.s.d, "all are denied, so nothing within matters")
		l.s.d.settle()
		return a
	}
	s := t.tried(a, l, named)
	for _, name := range []string{"proxy_pass", "grpc_pass"} {
		if list := s.own(name); len(list) > 0 {
			t.pass(v, a, l, s, list[0])
			return a
		}
	}
	if t.rewritten(v, a, l, nil) {
		return a
	}
	a.reply = &reply{status: 503, body: "503 not translated\n"}
	t.note(Missing, l.s.d, "it passes nothing to an upstream: it answers 503. Files and other protocols than HTTP need a server behind the gateway")
	return a
}

// tried is the scope that says where requests go: that of a named location, when the location
// tries files first.
func (t *translation) tried(a *action, l *location, named map[string]*location) *scope {
	tries := l.s.own("try_files")
	if len(tries) == 0 {
		return l.s
	}
	last := tries[0].arg(len(tries[0].args) - 1)
	to := named[last]
	if to == nil {
		tries[0].done = false
		if l.has("proxy_pass", "grpc_pass") {
			t.note(Security, tries[0], "in nginx only what is there as a file gets to the upstream: the location answers 503")
			a.closed, a.forbids = append(a.closed, tries[0]), true
		}
		return l.s
	}
	t.note(Differs, tries[0], "the gateway serves no files: all requests go where %s sends them", last)
	more, all := t.forbidden(to.s)
	if all {
		more = append(more, to.s.d)
		t.note(Security, to.s.d, "all are denied: what tries it answers 503")
	}
	for _, name := range []string{"return", "rewrite", "try_files"} {
		for _, d := range to.s.own(name) {
			t.note(Security, d, "in a named location it is not translated: what tries it answers 503")
			more = append(more, d)
		}
	}
	a.closed = append(a.closed, more...)
	a.forbids = a.forbids || len(more) > 0
	return to.s
}

// rest is what a server does with what no location takes.
func (t *translation) rest(v *server) *action {
	a := &action{from: []*directive{v.s.d}, comment: "no location takes the rest", reply: &reply{status: 404}}
	a.closed = t.conditions(v.s)
	t.replyFields(a, v.s)
	return a
}

// conditions are those that come before all else: if, and what the command gave up on.
func (t *translation) conditions(s *scope) (out []*directive) {
	for at := s; at != nil; at = at.parent {
		if at == s || at.d.name == "server" {
			for _, d := range at.d.block {
				if d.name == "if" && !d.done || d.name == "if" && slices.Contains(t.ifs, d) {
					t.note(Security, d, "conditions are not translated: what it was for answers 503. Conditions on hosts, paths, methods and headers make routes of their own")
					t.ifs = append(t.ifs, d)
					out = append(out, d)
				}
			}
		}
		if at.d.closed {
			out = append(out, at.d)
		}
	}
	return out
}

// forbidden tells what keeps clients out of a scope. All of them: nobody gets in.
func (t *translation) forbidden(s *scope) (by []*directive, all bool) {
	by = t.conditions(s)
	for at := s; at != nil; at = at.parent {
		rules := slices.DeleteFunc(slices.Clone(at.d.block), func(d *directive) bool { return d.name != "allow" && d.name != "deny" })
		if len(rules) == 0 {
			continue
		}
		switch first := rules[0]; {
		case first.name == "deny" && first.arg(0) == "all":
			all = true
		case first.name == "allow" && first.arg(0) == "all":
		default:
			for _, r := range rules {
				t.note(Security, r, "routes know no lists of addresses: what it is for answers 503. deny and allow of gateway.yaml are for all ports and paths; client certificates and API keys (keys) are for routes")
			}
			by = append(by, rules[0])
		}
		for _, r := range rules {
			r.done = true
		}
		break
	}
	for _, name := range []string{"auth_basic", "auth_request"} {
		if d := s.one(name); d != nil && d.arg(0) != "off" {
			t.note(Security, d, "the gateway asks for no passwords and no other server's word: what it is for answers 503. API keys (keys) and client certificates are what it knows")
			by = append(by, d)
		}
	}
	for _, d := range s.all("satisfy") {
		if d.arg(0) == "any" && len(by) > 0 {
			t.note(Security, d, "one of several was enough: what it is for answers 503")
		}
	}
	for at := s; at != nil; at = at.parent {
		for _, d := range at.d.block {
			if why, closes := forbids(d); closes {
				t.note(Security, d, "%s: what it is for answers 503", why)
				by = append(by, d)
			}
		}
	}
	return by, all
}

var variable = regexp.MustCompile(`\$\{?(\w+)\}?`)

// expand writes a text of nginx as a redirect's location.
func (v *server) expand(text string) (string, bool) {
	for _, same := range []string{"$is_args$args", "?$args", "?$query_string", "$is_args$query_string"} {
		text = strings.ReplaceAll(text, same, "${q}")
	}
	ok := true
	out := variable.ReplaceAllStringFunc(text, func(name string) string {
		switch strings.Trim(name, "${}") {
		case "host", "http_host":
			return "$host"
		case "request_uri":
			return "$path$query"
		case "uri", "document_uri":
			return "$path"
		case "q":
			return "$query"
		case "server_name":
			if len(v.names) > 0 && !strings.HasPrefix(v.names[0], "*") {
				return v.names[0]
			}
		case "scheme":
			secure := slices.ContainsFunc(v.listens, func(l listen) bool { return l.listener != nil && l.listener.tls })
			clear := slices.ContainsFunc(v.listens, func(l listen) bool { return l.listener != nil && !l.listener.tls })
			if secure != clear {
				return map[bool]string{true: "https", false: "http"}[secure]
			}
		}
		ok = false
		return ""
	})
	_, err := url.Parse(variable.ReplaceAllString(out, ""))
	odd := func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }
	stray := strings.Contains(variable.ReplaceAllString(out, ""), "$")
	return out, ok && out != "" && err == nil && !stray && len(out) <= 4096 && !strings.ContainsFunc(out, odd)
}

// answer translates return.
func (t *translation) answer(v *server, a *action, d *directive) {
	d.done = true
	a.from = append(a.from, d)
	text := d.arg(1)
	status, err := strconv.Atoi(d.arg(0))
	if err != nil {
		status, text = 302, d.arg(0)
	}
	fail := func(format string, args ...any) {
		t.note(Missing, d, format+": its route answers 503", args...)
		a.reply = &reply{status: 503, body: "503 not translated\n"}
	}
	switch {
	case slices.Contains([]int{301, 302, 303, 307, 308}, status) && text != "":
		location, ok := v.expand(text)
		if !ok {
			fail("a location has $host, $path and $query")
			return
		}
		a.redirect = &redirect{status, location}
	case status == 444:
		t.note(Differs, d, "the reply is 400: the gateway does not hang up without one")
		a.reply = &reply{status: 400}
	case status < 200 || status > 599 || status == 205 || len(d.args) == 0:
		fail("a reply's status is 200 to 599, and not 205")
	case strings.Contains(text, "$"):
		fail("a reply is a text, without variables")
	default:
		a.reply = &reply{status: status, body: text}
		if text != "" {
			a.reply.contentType = "text/plain"
			if c := v.s.one("default_type"); c != nil {
				a.reply.contentType = c.arg(0)
			}
		}
		if status == 204 || status == 304 {
			a.reply.body, a.reply.contentType = "", ""
		}
	}
}

// pass translates a location that passes requests to an upstream.
func (t *translation) pass(v *server, a *action, l *location, s *scope, d *directive) {
	d.done = true
	a.from = append(a.from, d)
	closed := func() { a.reply = &reply{status: 503, body: "503 not translated\n"} }
	scheme, rest, ok := strings.Cut(d.arg(0), "://")
	if !ok && d.name == "grpc_pass" {
		scheme, rest, ok = "grpc", d.arg(0), true
	}
	authority, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	if !ok || !slices.Contains([]string{"http", "https", "grpc", "grpcs"}, scheme) || strings.Contains(d.arg(0), "$") || strings.HasPrefix(authority, "unix:") {
		t.note(Missing, d, "want http://HOST:PORT or the name of an upstream, without variables and sockets in the file system: its route answers 503")
		closed()
		return
	}
	if a.upstream = t.target(s, d, scheme, authority); a.upstream == nil {
		closed()
		return
	}
	a.passes = true
	host := authority
	if scheme == "http" || scheme == "grpc" {
		host = strings.TrimSuffix(host, ":80")
	} else {
		host = strings.TrimSuffix(host, ":443")
	}
	if path != "" {
		t.uri(a, l, d, path)
	}
	if t.rewritten(v, a, l, &path); !a.passes { // it became a redirect
		t.replyFields(a, s)
		return
	}
	t.requestFields(a, s, host)
	t.replyFields(a, s)
	t.times(a, s)
	t.body(a, s)
	t.uses(a, s)
	if s != l.s { // those of the location that tries, too
		n := len(a.limits)
		t.body(a, l.s)
		t.uses(a, l.s)
		if n > 0 && len(a.limits) > n {
			t.note(Differs, l.s.d, "its limits hold, and those of the named location, too")
		}
	}
}

// body is how long one may be; of several the least.
func (t *translation) body(a *action, s *scope) {
	n, b := int64(1<<20), s.one("client_max_body_size") // nginx's default
	if b != nil {
		var ok bool
		if n, ok = parseSize(b.arg(0)); !ok {
			t.note(Missing, b, "it is no size")
			return
		}
	}
	most := n
	if n == 0 {
		most = math.MaxInt64
	}
	if a.most != 0 && a.most <= most {
		return
	}
	a.most, a.body = most, nil
	if b != nil && b.up != t.http.d {
		a.body = &setting{"body_bytes", config.SizeText(n), b.at()}
	}
}

// uri has the part of the path that the location matched replaced, as nginx does for a
// proxy_pass with a path.
func (t *translation) uri(a *action, l *location, d *directive, path string) {
	switch {
	case !plainPath.MatchString(path) || l.kind == "~" || l.kind == "~*" || l.kind == "@":
		t.note(Security, d, "what stands in place of the location's path cannot be translated: its route answers 503")
		a.closed = append(a.closed, d)
	case l.kind == "=":
		set(&a.rewrite, "regex", regexp.QuoteMeta(l.path), d)
		set(&a.rewrite, "replacement", strings.ReplaceAll(path, "$", "$$"), d)
	case strings.HasSuffix(l.path, "/") && strings.HasSuffix(path, "/"):
		if strip := strings.TrimSuffix(l.path, "/"); strip != "" {
			set(&a.rewrite, "strip_prefix", strip, d)
		}
		if add := strings.TrimSuffix(path, "/"); add != "" {
			set(&a.rewrite, "add_prefix", add, d)
		}
	default:
		set(&a.rewrite, "regex", regexp.QuoteMeta(l.path)+"(.*)", d)
		set(&a.rewrite, "replacement", strings.ReplaceAll(path, "$", "$$")+"${1}", d)
	}
}

// times translates a location's timeouts.
func (t *translation) times(a *action, s *scope) {
	prefix := "proxy"
	if a.upstream.http2 {
		prefix = "grpc"
	}
	body := time.Duration(0)
	read := time.Minute
	var from *directive
	if d := s.one(prefix + "_read_timeout"); d != nil {
		if v, ok := parseTime(d.arg(0)); ok {
			read, from = min(max(v, 100*time.Millisecond), time.Hour), d
			body = read
			set(&a.timeouts, "header", config.TimeText(read), d)
			if v > time.Hour {
				t.note(Differs, d, "an hour is the longest")
			}
		}
	}
	if d := s.one(prefix + "_send_timeout"); d != nil {
		if v, ok := parseTime(d.arg(0)); ok {
			body = max(body, min(v, time.Hour), 100*time.Millisecond)
			from = d
			t.note(Differs, d, "timeouts.body is for both directions: the longer one of send and read")
		}
	}
	if body > 0 {
		set(&a.timeouts, "body", config.TimeText(body), from)
	}
	if a.ws != "" {
		a.ws = config.TimeText(max(read, time.Second))
		if a.upstream.http2 {
			a.ws = ""
		}
	}
}
