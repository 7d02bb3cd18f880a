// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// group is an upstream block, as locations ask for it.
type group struct {
	d        *directive
	servers  []string // with their weights
	settings []setting
}

// upstream is a group as it is spoken with: by TLS or not, and with these times.
type upstream struct {
	name     string
	key      string
	from     *directive
	settings []setting
	servers  []string
	http2    bool
	tls      []setting // nil: in the clear
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)

// isHost tells whether it is a name, or an IPv4 address, as gateway.yaml takes it.
func isHost(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	if strings.Trim(last, "0123456789") == "" {
		a, err := netip.ParseAddr(s)
		return err == nil && a.Is4()
	}
	if slices.ContainsFunc(strings.Split(s, "."), func(label string) bool { return len(label) > 63 }) {
		return false
	}
	return len(s) <= 253 && hostName.MatchString(s)
}

// hostPort completes an address; "": it is none.
func hostPort(s, port string) string {
	host := s
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	n, err := strconv.ParseUint(port, 10, 16)
	a, addrErr := netip.ParseAddr(host)
	if err != nil || n == 0 || addrErr == nil && a.Zone() != "" || addrErr != nil && !isHost(host) {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// group translates an upstream block.
func (t *translation) group(d *directive) {
	g := &group{d: d}
	d.done = true
	var fails, failTime *directive
	for _, s := range d.block {
		s.done = true
		switch s.name {
		case "server":
			t.groupServer(g, s, &fails, &failTime)
		case "least_conn":
			set(&g.settings, "balance", "least_conn", s)
		case "ip_hash":
			set(&g.settings, "balance", "hash", s)
			set(&g.settings, "hash_by", "address", s)
			t.note(Differs, s, "by the whole address, where nginx takes three of four octets of IPv4")
		case "hash":
			t.groupHash(g, s)
		case "random":
			set(&g.settings, "balance", "p2c", s)
			t.note(Differs, s, "the less busy of two by chance")
		case "keepalive":
			if n, err := strconv.Atoi(s.arg(0)); err == nil && n <= 1<<16 && n >= 0 {
				set(&g.settings, "max_idle", strconv.Itoa(n), s)
			}
		case "keepalive_timeout":
			if v, ok := parseTime(s.arg(0)); ok {
				set(&g.settings, "idle_timeout", config.TimeText(min(max(v, time.Second), time.Hour)), s)
			}
		case "zone", "keepalive_requests", "keepalive_time", "resolver", "resolver_timeout":
			t.note(Own, s, "names are looked up each resolve, and workers share nothing of upstreams but their health")
		default:
			s.done = false
		}
	}
	if t.groups == nil {
		t.groups = map[string]*group{}
	}
	t.groups[d.arg(0)] = g
}

func (t *translation) groupServer(g *group, s *directive, fails, failTime **directive) {
	address := hostPort(s.arg(0), "80")
	if address == "" {
		t.note(Missing, s, "want HOST:PORT: sockets in the file system are not for upstreams")
		return
	}
	weight := ""
	for _, p := range s.args[1:] {
		name, value, _ := strings.Cut(p, "=")
		n, _ := strconv.Atoi(value)
		switch {
		case name == "weight" && n >= 1 && n <= 1000:
			weight = " weight=" + strconv.Itoa(n)
		case name == "max_fails" && value != "" && n >= 0 && n <= 1000:
			if v := find(g.settings, "max_fails"); *fails != nil && v != strconv.Itoa(n) {
				t.note(Differs, s, "max_fails is the upstream's: it is %s for all of its servers", v)
				continue
			}
			*fails = s
			set(&g.settings, "max_fails", strconv.Itoa(n), s)
		case name == "fail_timeout":
			v, ok := parseTime(value)
			if !ok {
				continue
			}
			text := config.TimeText(min(max(v, 100*time.Millisecond), time.Hour))
			if had := find(g.settings, "fail_time"); *failTime != nil && had != text {
				t.note(Differs, s, "fail_time is the upstream's: it is %s for all of its servers", had)
				continue
			}
			*failTime = s
			set(&g.settings, "fail_time", text, s)
		case p == "down":
			t.note(Differs, s, "left out: it is down; `xgw ctl upstreams drain` is for that")
			return
		case p == "backup":
			t.note(Missing, s, "left out: no server is kept in reserve. Give all of them, and health: so that those which are down get nothing")
			return
		case p == "resolve" || p == "":
		case name == "slow_start":
			if v, ok := parseTime(value); ok && v >= time.Second && v <= time.Hour {
				set(&g.settings, "slow_start", config.TimeText(v), s)
			}
		default:
			t.note(Missing, s, "%s: the bounds of an upstream are max_connections and max_requests, of each worker", p)
		}
	}
	if slices.ContainsFunc(g.servers, func(o string) bool { o, _, _ = strings.Cut(o, " "); return o == address }) || len(g.servers) == 64 {
		t.note(Differs, s, "left out: it is there already, or one of more than 64")
		return
	}
	g.servers = append(g.servers, address+weight)
}

func (t *translation) groupHash(g *group, s *directive) {
	by := ""
	switch key := strings.NewReplacer("{", "", "}", "").Replace(s.arg(0)); {
	case key == "$remote_addr" || key == "$binary_remote_addr":
		by = "address"
	case key == "$uri" || key == "$request_uri":
		by = "path"
	case strings.HasPrefix(key, "$http_") && fieldText.MatchString(key[6:]):
		by = strings.ReplaceAll(key[6:], "_", "-")
	}
	if by == "" {
		t.note(Missing, s, "hash_by is address, path or the name of a field: the servers take turns")
		return
	}
	set(&g.settings, "balance", "hash", s)
	set(&g.settings, "hash_by", by, s)
}

var fieldText = regexp.MustCompile(`^[a-z0-9_]{1,60}$`)

func find(list []setting, key string) string {
	for _, s := range list {
		if s.key == key {
			return s.value
		}
	}
	return ""
}

// target finds, or makes, the upstream of a location that passes requests to
// SCHEME://AUTHORITY; nil: it cannot be spoken with, which is noted.
func (t *translation) target(s *scope, d *directive, scheme, authority string) *upstream {
	g := t.groups[authority]
	if g == nil {
		port := "80"
		if scheme == "https" || scheme == "grpcs" {
			port = "443"
		}
		address := hostPort(authority, port)
		if address == "" {
			t.note(Missing, d, "want HOST:PORT: sockets in the file system and variables are not for upstreams; its route answers 503")
			return nil
		}
		g = &group{d: d, servers: []string{address}}
	}
	g.d.settle()
	if len(g.servers) == 0 {
		t.note(Missing, d, "no server of upstream %s could be translated; its route answers 503", authority)
		return nil
	}
	u := &upstream{from: d, servers: g.servers, settings: slices.Clone(g.settings), http2: scheme == "grpc" || scheme == "grpcs"}
	prefix := "proxy"
	if u.http2 {
		prefix = "grpc"
	}
	connect, from := time.Minute, d
	if c := s.one(prefix + "_connect_timeout"); c != nil {
		if v, ok := parseTime(c.arg(0)); ok {
			connect, from = min(max(v, time.Millisecond), time.Minute), c
		}
	}
	set(&u.settings, "connect_timeout", config.TimeText(connect), from)
	set(&u.settings, "header_timeout", "60s", d)
	retries := min(max(len(g.servers)-1, 0), 8)
	if n := s.one(prefix + "_next_upstream"); n != nil {
		if n.arg(0) == "off" {
			retries = 0
		} else {
			t.note(Differs, n, "what failed is repeated where that is harmless: see retries")
		}
	}
	if n := s.one(prefix + "_next_upstream_tries"); n != nil {
		if v, err := strconv.Atoi(n.arg(0)); err == nil && v > 0 {
			retries = min(retries, v-1)
		}
	}
	set(&u.settings, "retries", strconv.Itoa(retries), d)
	if scheme == "https" || scheme == "grpcs" {
		t.upstreamTLS(s, u, d)
	}
	u.key = authority + " " + scheme
	for _, list := range [][]setting{u.settings, u.tls} {
		for _, v := range list {
			u.key += " " + v.key + "=" + v.value
		}
	}
	for _, o := range t.upstreams {
		if o.key == u.key {
			return o
		}
	}
	u.name = t.unique("upstream ", strings.NewReplacer(":", "-", "[", "", "]", "").Replace(authority))
	t.upstreams = append(t.upstreams, u)
	return u
}

func (t *translation) upstreamTLS(s *scope, u *upstream, d *directive) {
	prefix := "proxy"
	if u.http2 {
		prefix = "grpc"
	}
	verify := s.one(prefix + "_ssl_verify")
	if verify != nil && verify.arg(0) == "on" {
		set(&u.tls, "verify", "true", verify)
		if ca := s.one(prefix + "_ssl_trusted_certificate"); ca != nil {
			set(&u.tls, "ca", t.path(ca.arg(0)), ca)
		}
	} else {
		set(&u.tls, "verify", "false", d)
		t.note(Differs, d, "nginx does not verify the upstream's certificate unless told to, so neither does the gateway: take out `verify: false`, if the certificate is good")
	}
	if name := s.one(prefix + "_ssl_name"); name != nil {
		if isHost(name.arg(0)) {
			set(&u.tls, "server_name", name.arg(0), name)
		} else {
			t.note(Missing, name, "tls.server_name takes no variables: it is the host of each server")
		}
	}
}
