// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// keyed is a zone of limits: a key, and of limit_req a rate.
type keyed struct {
	d    *directive
	key  []string // of the limit; nil: it cannot be translated
	fn   string   // or a function of Lua
	rate string   // "10r/s"
	gap  time.Duration
}

// limit is a call of ratelimit.lua.
type limit struct {
	key    string // what makes it another one
	name   string
	call   string
	zone   *keyed
	args   []string // in the order in which they are written
	from   *directive
	routes []string
}

var rateText = regexp.MustCompile(`^rate=([0-9]{1,9})r/([sm])$`)

// zones reads limit_req_zone and limit_conn_zone.
func (t *translation) zones() {
	t.requests, t.atOnce = map[string]*keyed{}, map[string]*keyed{}
	for _, d := range t.http.own("limit_req_zone") {
		z := t.zoneKey(d)
		name := zoneName(d)
		for _, arg := range d.args {
			if m := rateText.FindStringSubmatch(arg); m != nil {
				n, _ := strconv.Atoi(m[1])
				z.rate = m[1] + "r/" + m[2]
				if n > 0 {
					z.gap = map[string]time.Duration{"s": time.Second, "m": time.Minute}[m[2]] / time.Duration(n)
				}
			}
		}
		if name == "" || z.gap <= 0 {
			t.note(Security, d, "want zone=NAME:SIZE and rate=1r/s or more: nothing is limited by it")
			continue
		}
		t.requests[name] = z
	}
	for _, d := range t.http.own("limit_conn_zone") {
		if name := zoneName(d); name != "" {
			t.atOnce[name] = t.zoneKey(d)
		}
	}
}

func zoneName(d *directive) string {
	for _, arg := range d.args {
		if rest, ok := strings.CutPrefix(arg, "zone="); ok {
			name, _, _ := strings.Cut(rest, ":")
			return name
		}
	}
	return ""
}

// zoneKey translates what has a bucket of its own.
func (t *translation) zoneKey(d *directive) *keyed {
	z := &keyed{d: d}
	text := d.arg(0)
	for _, m := range variable.FindAllStringSubmatch(text, -1) {
		switch name := m[1]; {
		case name == "binary_remote_addr" || name == "remote_addr":
			z.key = append(z.key, "address")
		case name == "host" || name == "http_host":
			z.key = append(z.key, "host")
		case name == "server_name": // not host, which the client chooses
			z.key = append(z.key, "route")
			t.note(Security, d, "each route has a bucket of its own, where nginx has one for all of a server")
		case (name == "uri" || name == "request_uri") && text == m[0]:
			z.fn = "function(r) return r.path end"
		case strings.HasPrefix(name, "http_") && fieldText.MatchString(name[5:]):
			z.key = append(z.key, "header:"+strings.ReplaceAll(name[5:], "_", "-"))
		default:
			z.key = nil
			t.note(Security, d, "the key %s cannot be translated, so nothing is limited by it: keys are address, host, route, header:NAME, jwt:CLAIM, or a function in ratelimit.lua", text)
			return z
		}
	}
	slices.Sort(z.key)
	z.key = slices.Compact(z.key)
	if len(z.key) == 0 && z.fn == "" {
		t.note(Security, d, "the key %s cannot be translated, so nothing is limited by it", text)
	} else if slices.Contains(z.key, "address") {
		t.note(Differs, d, "of an IPv6 address its /64 has the bucket")
	}
	return z
}

// status is what a refusal has: 503 in nginx, unless it says otherwise.
func status(s *scope, name string) string {
	if d := s.one(name); d != nil {
		if n, err := strconv.Atoi(d.arg(0)); err == nil && n >= 400 && n <= 599 {
			return d.arg(0)
		}
	}
	return "503"
}

// uses adds the limits that a location's requests are held to.
func (t *translation) uses(a *action, s *scope) {
	dry := func(name string) string {
		if d := s.one(name); d != nil && d.arg(0) == "on" {
			return "dry_run = true"
		}
		return ""
	}
	for _, d := range s.all("limit_req") {
		name := zoneName(d)
		z := t.requests[name]
		if z == nil || z.key == nil && z.fn == "" {
			t.note(Security, d, "its zone is not translated: nothing is limited")
			continue
		}
		args := []string{fmt.Sprintf("rate = %q", z.rate)}
		args = append(args, t.burst(d, z)...)
		args = append(args, "status = "+status(s, "limit_req_status"), dry("limit_req_dry_run"))
		t.limit(a, "limit_req", name, z, d, args)
	}
	for _, d := range s.all("limit_conn") {
		z := t.atOnce[d.arg(0)]
		n, err := strconv.Atoi(d.arg(1))
		if z == nil || z.key == nil && z.fn == "" || err != nil || n < 1 || n > 1e9 {
			t.note(Security, d, "its zone is not translated: nothing is limited")
			continue
		}
		t.limit(a, "limit_conn", d.arg(0), z, d, []string{`count = "requests"`, "max = " + strconv.Itoa(n), "status = " + status(s, "limit_conn_status"), dry("limit_conn_dry_run")})
	}
}

// burst: nginx counts those above the rate, the gateway all that may come at once.
func (t *translation) burst(d *directive, z *keyed) []string {
	burst, delay, nodelay := 0, 0, false
	for _, arg := range d.args {
		name, value, _ := strings.Cut(arg, "=")
		n, err := strconv.Atoi(value)
		switch {
		case name == "burst" && err == nil:
			burst = min(max(n, 0), 1e9-1)
		case name == "delay" && err == nil:
			delay = max(n, 0)
		case arg == "nodelay":
			nodelay = true
		}
	}
	delay = min(delay, burst)
	if most := int(time.Minute / z.gap); !nodelay && burst-delay > most {
		t.note(Differs, d, "its last requests would wait for longer than a minute: those are refused here")
		burst = delay + most
	}
	if longest := int(365 * 24 * time.Hour / z.gap); burst > longest {
		burst = longest
	}
	switch out := []string{"burst = " + strconv.Itoa(burst+1)}; {
	case burst == 0 || nodelay:
		return append(out, "nodelay = true")
	case delay > 0:
		return append(out, "delay = "+strconv.Itoa(min(delay, burst)+1))
	default:
		return out
	}
}

// limit finds or makes one of the zone with these values.
func (t *translation) limit(a *action, call, name string, z *keyed, d *directive, args []string) {
	args = slices.DeleteFunc(args, func(s string) bool { return s == "" })
	key := call + " " + name + " " + strings.Join(args, " ")
	for _, l := range t.limits {
		if l.key == key {
			if !slices.Contains(a.limits, l) {
				a.limits = append(a.limits, l)
			}
			return
		}
	}
	for _, l := range t.limits {
		if l.zone == z {
			t.note(Differs, d, "zone %s is used with other values, too: each has buckets of its own here", name)
			break
		}
	}
	l := &limit{key: key, name: t.unique("limit ", name), call: call, zone: z, args: args, from: d}
	t.limits = append(t.limits, l)
	a.limits = append(a.limits, l)
}
