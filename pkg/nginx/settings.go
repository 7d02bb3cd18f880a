// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// setting is a line of gateway.yaml, with where it comes from.
type setting struct{ key, value, from string }

// settings are those of the whole gateway, by the mapping that they are in.
type settings struct {
	top, tcp, timeouts, sizes, client, log []setting
	trusted                                []string
}

func set(list *[]setting, key, value string, d *directive) {
	for i := range *list {
		if (*list)[i].key == key {
			(*list)[i] = setting{key, value, d.at()}
			return
		}
	}
	*list = append(*list, setting{key, value, d.at()})
}

// process translates what stands outside of http.
func (t *translation) process() {
	main := &scope{d: &directive{block: t.main}}
	for _, d := range main.own("worker_processes") {
		if n, err := strconv.Atoi(d.arg(0)); err == nil && n >= 1 && n <= 256 {
			set(&t.out.top, "workers", d.arg(0), d)
		} else if d.arg(0) != "auto" {
			t.note(Missing, d, "want auto or 1 to 256: workers is auto, one for each core")
		}
	}
	for _, d := range main.own("worker_rlimit_nofile") {
		if n, err := strconv.Atoi(d.arg(0)); err == nil && n >= 1024 && n <= 1<<30 {
			set(&t.out.top, "worker_rlimit_nofile", strconv.Itoa(n), d)
		} else {
			t.note(Missing, d, "want 1024 to 1073741824: the default, 65535, holds")
		}
	}
	for _, events := range main.own("events") {
		for _, d := range events.scope(nil).own("worker_connections") {
			if n, err := strconv.Atoi(d.arg(0)); err == nil && n >= 1 && n <= 1<<20 {
				set(&t.out.top, "worker_connections", strconv.Itoa(n), d)
				t.note(Differs, d, "connections to upstreams are not among them here: they have max_connections of each upstream")
			} else {
				t.note(Missing, d, "want 1 to 1048576: the default, 16384, holds")
			}
		}
	}
	t.errorLog(main)
}

// global translates what http says for all servers.
func (t *translation) global() {
	for _, d := range t.http.own("tcp_nopush") {
		if d.arg(0) == "on" {
			set(&t.out.tcp, "nopush", "true", d)
		}
	}
	for _, d := range t.http.own("tcp_nodelay") {
		if d.arg(0) == "off" {
			set(&t.out.tcp, "nodelay", "false", d)
		}
	}
	for _, r := range []struct {
		name, key string
		low, high time.Duration
	}{
		{"keepalive_timeout", "keepalive", time.Minute, 2 * time.Minute},
		{"client_header_timeout", "header", 100 * time.Millisecond, 10 * time.Minute},
		{"client_body_timeout", "body", 100 * time.Millisecond, time.Hour},
		{"send_timeout", "write", 100 * time.Millisecond, time.Hour},
	} {
		for _, d := range t.http.own(r.name) {
			v, ok := parseTime(d.arg(0))
			if !ok {
				t.note(Missing, d, "it is no time")
				continue
			}
			if within := min(max(v, r.low), r.high); within != v {
				t.note(Differs, d, "timeouts.%s is %s to %s here", r.key, config.TimeText(r.low), config.TimeText(r.high))
				v = within
			}
			set(&t.out.timeouts, r.key, config.TimeText(v), d)
		}
	}
	for _, d := range t.http.own("large_client_header_buffers") {
		n, err := strconv.Atoi(d.arg(0))
		size, ok := parseSize(d.arg(1))
		if err != nil || !ok || n < 1 || n > 1000 || size < 256 || size > 1<<20 {
			t.note(Missing, d, "the defaults hold: limits.line_bytes 8k, limits.header_bytes 32k")
			continue
		}
		line := min(size, 64<<10)
		set(&t.out.sizes, "line_bytes", config.SizeText(line), d)
		set(&t.out.sizes, "header_bytes", config.SizeText(min(max(int64(n)*size, line, 1<<10), 1<<20)), d)
	}
	t.errorLog(t.http)
	for _, d := range t.http.own("access_log") {
		t.accessLog(d)
	}
}

func (t *translation) accessLog(d *directive) {
	path := d.arg(0)
	switch address, isSyslog := strings.CutPrefix(path, "syslog:server="); {
	case path == "off" || filepath.IsAbs(path) && !strings.Contains(path, "$"):
		set(&t.out.log, "access", path, d)
		if len(d.args) > 1 {
			t.note(Differs, d, "format and buffers are the gateway's own: a superset of combined, or log: {format: json}")
		}
	case isSyslog:
		t.note(Missing, d, "give log.syslog.address: it gets both logs, as of RFC 5424 (%s)", address)
	default:
		t.note(Missing, d, "want a path from the root, without variables, for log.access")
	}
}

func (t *translation) errorLog(s *scope) {
	levels := map[string]string{"debug": "debug", "info": "info", "notice": "info", "warn": "warn", "error": "error", "crit": "crit", "alert": "crit", "emerg": "crit"}
	for _, d := range s.own("error_log") {
		path := d.arg(0)
		if path == "stderr" {
			path = "-"
		}
		if path != "-" && !filepath.IsAbs(path) {
			t.note(Missing, d, "want a path from the root for log.error, or log.syslog")
			continue
		}
		set(&t.out.log, "error", path, d)
		level := "error" // nginx's default
		if len(d.args) > 1 {
			level = levels[d.arg(1)]
		}
		if level == "" {
			t.note(Missing, d, "log.level is debug, info, warn, error or crit")
			continue
		}
		set(&t.out.log, "level", level, d)
	}
}

// clientAddress translates whose word about a client is believed.
func (t *translation) clientAddress() {
	var from *directive
	for _, d := range t.http.own("set_real_ip_from") {
		p, err := netip.ParsePrefix(d.arg(0))
		if a, addrErr := netip.ParseAddr(d.arg(0)); addrErr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			t.note(Security, d, "want an address or a prefix for client_address.trusted: what comes from there is taken for the client itself")
			continue
		}
		from = d
		if text := p.Masked().String(); !slices.Contains(t.out.trusted, text) {
			t.out.trusted = append(t.out.trusted, text)
		}
	}
	header := t.http.own("real_ip_header")
	recursive := t.http.own("real_ip_recursive")
	if from == nil {
		for _, d := range append(header, recursive...) {
			t.note(Own, d, "nobody is trusted (set_real_ip_from), so nobody's word is believed")
		}
		return
	}
	name, at := "X-Real-IP", from
	if len(header) > 0 {
		at = header[len(header)-1]
		name = at.arg(0)
	}
	switch strings.ToLower(name) {
	case "x-forwarded-for":
		set(&t.out.client, "header", "X-Forwarded-For", at)
	case "proxy_protocol": // what listens with it says so
	default:
		t.note(Security, at, "the client's address is not taken from %s: limits and logs go by the proxy's until it sends X-Forwarded-For, Forwarded or a PROXY header (client_address)", name)
	}
	if len(recursive) == 0 || recursive[0].arg(0) != "on" {
		t.note(Differs, at, "as with real_ip_recursive on: the last address that is not trusted is the client's")
	}
}

// parseTime reads nginx's times: 60, 60s, 1m30s, 500ms, 1d.
func parseTime(s string) (time.Duration, bool) {
	units := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}
	total, rest := time.Duration(0), s
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseInt(rest[:digits], 10, 32)
		if err != nil {
			return 0, false
		}
		rest = rest[digits:]
		letters := len(rest) - len(strings.TrimLeft(rest, "mshdw"))
		unit, ok := units[rest[:letters]]
		if !ok || n > int64(1000*time.Hour/unit)+1<<20 {
			return 0, false
		}
		total, rest = total+time.Duration(n)*unit, rest[letters:]
		if total > 10000*time.Hour || total < 0 {
			return 0, false
		}
	}
	return total, s != ""
}

// parseSize reads nginx's sizes: 8192, 8k, 1m, 1g.
func parseSize(s string) (int64, bool) {
	shift := 0
	if n := len(s) - 1; n > 0 {
		if i := strings.IndexByte("kmg", s[n]|0x20); i >= 0 {
			shift, s = 10*(i+1), s[:n]
		}
	}
	n, err := strconv.ParseUint(s, 10, 30)
	return int64(n) << shift, err == nil && int64(n)<<shift <= 1<<40
}
