// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/xgw-project/xgw/pkg/config"
)

// text writes gateway.yaml, line by line.
type text struct{ strings.Builder }

func (b *text) line(comment, format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	b.WriteString(s)
	if comment != "" {
		b.WriteString(strings.Repeat(" ", max(1, 40-len(s))) + "# " + strings.Map(printable, comment))
	}
	b.WriteByte('\n')
}

func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return '?'
	}
	return r
}

var bare = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*$|^[0-9]+$|^[0-9]+[a-z]+[0-9a-z.]*$`)

// scalar quotes where YAML, or who reads it, might take a text for something else.
func scalar(s string) string {
	if bare.MatchString(s) {
		var v any
		if yaml.Unmarshal([]byte(s), &v) == nil {
			if _, isBool := v.(bool); !isBool && v != nil {
				return s
			}
		}
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r < ' ' || r > '~' && r <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		case r > '~':
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func (b *text) settings(indent string, list []setting) {
	for _, s := range list {
		if s.value == "true" || s.value == "false" {
			b.line(s.from, "%s%s: %s", indent, s.key, s.value)
			continue
		}
		b.line(s.from, "%s%s: %s", indent, s.key, scalar(s.value))
	}
}

func (b *text) mapping(name string, list []setting) {
	if len(list) > 0 {
		b.line("", "%s:", name)
		b.settings("  ", list)
	}
}

// gateway writes gateway.yaml.
func (t *translation) gateway(path string) []byte {
	b := &text{}
	b.line("", "# Translated from %s by `xgw import nginx`; behind # is where a line is from.", strings.Map(printable, path))
	b.line("", "# What could not be translated, the command lists. Routes with `maintenance: {enabled: true}` are")
	b.line("", "# closed for a reason that stands beside it: see to it, then take that out.")
	b.settings("", t.out.top)
	b.mapping("tcp", t.out.tcp)
	b.mapping("timeouts", t.out.timeouts)
	if d := t.http.one("client_max_body_size"); d != nil {
		if n, ok := parseSize(d.arg(0)); ok {
			set(&t.out.sizes, "body_bytes", config.SizeText(n), d)
		} else {
			t.note(Missing, d, "it is no size")
		}
	}
	if !slices.ContainsFunc(t.out.sizes, func(s setting) bool { return s.key == "body_bytes" }) {
		t.out.sizes = append(t.out.sizes, setting{"body_bytes", "1m", "nginx's default"})
	}
	b.mapping("limits", t.out.sizes)
	if len(t.out.trusted) > 0 {
		b.mapping("client_address", t.out.client)
		if len(t.out.client) == 0 {
			b.line("", "client_address:")
		}
		b.line("set_real_ip_from", "  trusted: %s", list(t.out.trusted))
	}
	b.mapping("log", t.out.log)
	t.writeListeners(b)
	b.line("", "routes:")
	for _, r := range t.routes {
		r.write(b)
	}
	b.line("", "upstreams:")
	for _, u := range t.upstreams {
		u.write(b)
	}
	if len(t.upstreams) == 0 {
		b.line("no route has an upstream, and one is needed", "  - {name: none-yet, servers: [\"127.0.0.1:9\"]}")
	}
	return []byte(b.String())
}

func list(items []string) string {
	var out []string
	for _, s := range items {
		out = append(out, scalar(s))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

func (t *translation) writeListeners(b *text) {
	b.line("", "listeners:")
	for _, l := range t.listeners {
		b.line(l.from.at(), "  - address: %s", scalar(l.address))
		if !l.tls {
			b.line("", "    tls: off")
			continue
		}
		if !l.http2 {
			b.line("no server here has http2", "    http2: off")
		}
		b.settings("    ", []setting{l.minVersion})
		if len(l.certificates) > 0 {
			b.line("", "    certificates:")
			for _, c := range l.certificates {
				b.line(c[0].from, "      - certificate: %s", scalar(c[0].value))
				b.line(c[1].from, "        key: %s", scalar(c[1].value))
			}
		}
		if l.mode.value != "" {
			b.line("", "    client_certificates:")
			b.settings("      ", []setting{l.mode, l.ca})
		}
	}
}

func (r *route) write(b *text) {
	a := r.act
	comment := a.from[0].at()
	if a.comment != "" {
		comment += ": " + a.comment
	}
	b.line(comment, "  - name: %s", scalar(r.name))
	if r.host != "" {
		b.line("", "    host: %s", scalar(r.host))
	}
	for _, m := range [][2]string{{"path_exact", r.exact}, {"path", r.prefix}, {"path_regex", r.regex}} {
		if m[1] != "" {
			b.line("", "    %s: %s", m[0], scalar(m[1]))
		}
	}
	if len(r.listeners) > 0 {
		b.line("", "    listeners: %s", list(r.listeners))
	}
	if len(a.closed) > 0 {
		b.line("", "    # Closed, as it was not for everybody, or not so:")
		var said []string
		for _, d := range a.closed {
			if why := d.at() + ": " + d.text(); !slices.Contains(said, why) {
				said = append(said, why)
				b.line("", "    #   %s", strings.Map(printable, why[:min(len(why), 100)]))
			}
		}
		b.line("", "    maintenance: {enabled: true}")
	}
	a.write(b)
}

func (a *action) write(b *text) {
	from := a.from[len(a.from)-1].at()
	switch {
	case a.reply != nil:
		b.line(from, "    reply: {status: %d%s%s}", a.reply.status, keyed2("content_type", a.reply.contentType), keyed2("body", a.reply.body))
	case a.redirect != nil:
		b.line(from, "    redirect: {status: %d, location: %s}", a.redirect.status, scalar(a.redirect.location))
	default:
		b.line(from, "    upstream: %s", scalar(a.upstream.name))
	}
	group := func(name string, list []setting) {
		if len(list) > 0 {
			b.line("", "    %s:", name)
			b.settings("      ", list)
		}
	}
	if a.reply == nil {
		group("rewrite", a.rewrite)
	}
	if a.reply == nil && a.redirect == nil {
		writeEdits(b, "request_headers", "set", a.request)
	}
	writeEdits(b, "reply_headers", "add", a.answers)
	if a.reply != nil || a.redirect != nil {
		return
	}
	group("timeouts", a.timeouts)
	if a.body != nil {
		b.settings("    ", []setting{*a.body})
	}
	if a.ws != "" {
		b.line("proxy_set_header Upgrade", "    websocket: %s", a.ws)
	}
}

func keyed2(key, value string) string {
	if value == "" {
		return ""
	}
	return ", " + key + ": " + scalar(value)
}

func writeEdits(b *text, name, verb string, edits []edit) {
	if len(edits) == 0 {
		return
	}
	b.line("", "    %s:", name)
	began := false
	for _, e := range edits {
		if e.remove {
			continue
		}
		if !began {
			b.line("", "      %s:", verb)
			began = true
		}
		b.line(e.from, "        - {name: %s, value: %s}", scalar(e.name), scalar(e.value))
	}
	began = false
	for _, e := range edits {
		if !e.remove {
			continue
		}
		if !began {
			b.line("", "      remove:")
			began = true
		}
		b.line(e.from, "        - %s", scalar(e.name))
	}
}

func (u *upstream) write(b *text) {
	b.line(u.from.at(), "  - name: %s", scalar(u.name))
	b.line("", "    servers: %s", list(u.servers))
	if u.http2 {
		b.line("", "    protocol: http2")
	}
	b.settings("    ", u.settings)
	if u.tls != nil {
		b.line("", "    tls:")
		b.settings("      ", u.tls)
	}
}

// ratelimit writes ratelimit.lua; nil: nothing is limited.
func (t *translation) ratelimit(path string) []byte {
	b := &text{}
	forwards := 0
	for _, r := range t.routes {
		if r.act.passes {
			forwards++
		}
	}
	for _, l := range t.limits {
		if len(l.routes) == 0 {
			continue
		}
		key := l.zone.fn
		if key == "" {
			key = fmt.Sprintf("%q", l.zone.key[0])
			if len(l.zone.key) > 1 {
				key = "{" + strings.Join(quoteAll(l.zone.key), ", ") + "}"
			}
		}
		match := ""
		if len(l.routes) < forwards {
			match = ", match = {route = {" + strings.Join(quoteAll(l.routes), ", ") + "}}"
		}
		b.line("", "-- %s, %s", strings.Map(printable, l.zone.d.at()), strings.Map(printable, l.from.at()))
		b.line("", "%s{name = %q, key = %s%s, %s}", l.call, l.name, key, match, strings.Join(l.args, ", "))
	}
	if b.Len() == 0 {
		return nil
	}
	return []byte(fmt.Sprintf("-- Translated from %s by `xgw import nginx`. 503 is nginx's status for who is refused, 429 says better.\n", strings.Map(printable, path)) + b.String())
}

func quoteAll(list []string) (out []string) {
	for _, s := range list {
		out = append(out, fmt.Sprintf("%q", s))
	}
	return out
}
