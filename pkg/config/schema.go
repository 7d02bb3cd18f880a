// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// gateway is the whole of gateway.yaml.
func gateway(c *Config) mapping {
	seen := newRoutesSeen()
	return mapping{check: across(c), rows: []row{
		{"interfaces", none, list{example: "name: eth0", item: func() reader { return interfaceRow(c) }}},
		{"allow", none, list{example: "198.51.100.0/24", item: prefixes(&c.Allow)}},
		{"deny", none, list{example: "192.0.2.0/24", item: prefixes(&c.Deny)}},
		{"port_guard", none, portGuard(&c.PortGuard)},
		{"admin", none, list{example: "source: 192.0.2.7", most: 8, item: func() reader { return pinhole(c) }}},
		{"budgets", none, mapping{rows: []row{
			{"essential", "10000", budget(&c.Budgets.Essential)},
			{"echo", "1000", budget(&c.Budgets.Echo)},
			{"unclassified", "1000", budget(&c.Budgets.Unclassified)},
		}}},
		{"verdicts", none, verdicts(c)},
		{"spread", "off", spread(&c.Spread)},
		{"packet_limits", none, list{example: "name: syns", item: func() reader { return packetLimit(c) }}},
		{"listeners", none, list{example: "address: :443", least: 1, most: maxListeners, one: true, item: func() reader { return listener(c) }}},
		{"session_tickets", none, mapping{rows: []row{
			{"rotate", "12h", duration(&c.Tickets.Rotate, time.Second, 72*time.Hour)},
			{"file", none, file(&c.Tickets.File, c.Path)},
		}}},
		{"handshakes", none, mapping{rows: []row{
			{"concurrent", "1024", whole(&c.Handshakes.Concurrent, 0, 1<<20)},
			{"per_second", "4000", whole(&c.Handshakes.PerSecond, 0, 1<<20)},
		}}},
		{"client_address", none, clientAddress(&c.Client)},
		{"telemetry", none, telemetry(c)},
		{"admin_api", none, adminAPI(c)},
		{"workers", "auto", workers(c)},
		{"pin", "true", boolean(&c.Pin)},
		{"worker_user", "gateway_worker", account(&c.WorkerUser)},
		{"worker_connections", "16384", whole(&c.Connections, 1, 1<<20)},
		{"worker_rlimit_nofile", "65535", whole(&c.OpenFiles, 1024, 1<<30)},
		{"worker_memory", "auto", workerMemory(c)},
		{"tcp", none, mapping{rows: []row{
			{"nodelay", "true", boolean(&c.TCP.NoDelay)},
			{"nopush", "false", boolean(&c.TCP.NoPush)},
			{"keepalive", "15s", offOr(&c.TCP.KeepAlive, duration(&c.TCP.KeepAlive, time.Second, 2*time.Hour))},
			{"user_timeout", "off", offOr(&c.TCP.UserTimeout, duration(&c.TCP.UserTimeout, time.Second, time.Hour))},
			{"fastopen", "off", offOr(&c.TCP.FastOpen, whole(&c.TCP.FastOpen, 1, 1<<16))},
		}}},
		{"overload_delay", "5ms", offOr(&c.OverloadDelay, duration(&c.OverloadDelay, time.Millisecond, 10*time.Second))},
		{"timeouts", none, timeouts(&c.Timeouts)},
		{"limits", none, requestSizes(&c.Limits)},
		{"routes", required, list{example: "{name: api, upstream: app}", least: 1, item: func() reader { return route(c, seen) }}},
		{"upstreams", required, list{example: `{name: app, servers: ["127.0.0.1:8080"]}`, least: 1, item: func() reader { return upstream(c) }}},
		{"keys", none, keyStore(c)},
		{"redis", none, redis(&c.Redis, c.Path)},
		{"log", none, logs(c)},
		{"state", "/var/lib/xgw", absolute(&c.State)},
	}}
}

// across makes the checks that need all of the file.
func across(c *Config) func(*found) {
	return func(f *found) {
		allowed := make(map[netip.Prefix]bool, len(c.Allow))
		for _, p := range c.Allow {
			allowed[p] = true
		}
		for i, p := range c.Deny {
			if allowed[p] && !f.faulty["deny"] {
				f.d.fail(f.values["deny"].Content[i], "deny[%d]: %s is allowed as well: take it out of one list", i, p)
			}
		}
		for _, check := range f.d.later {
			check()
		}
	}
}

func telemetry(c *Config) mapping {
	t := &c.Telemetry
	return mapping{
		rows: []row{
			{"address", "127.0.0.1:9090", listenAddress(&t.Address)},
			{"certificate", none, file(&t.Certificate.Chain, c.Path)},
			{"key", none, file(&t.Certificate.Key, c.Path)},
			{"file", "off", offOr(&t.File, absolute(&t.File))},
			{"otlp", none, mapping{rows: []row{
				{"endpoint", "off", offOr(&t.OTLP.Endpoint, collector(&t.OTLP.Endpoint))},
				{"ca", none, file(&t.OTLP.CA, c.Path)},
				{"interval", "10s", duration(&t.OTLP.Interval, time.Second, time.Hour)},
				{"trace_one_in", "off", offOr(&t.OTLP.TraceOneIn, whole(&t.OTLP.TraceOneIn, 1, 1<<30))},
			}}},
		},
		check: func(f *found) { checkPair(f, &t.Certificate) },
	}
}

func adminAPI(c *Config) mapping {
	a := &c.AdminAPI
	return mapping{
		rows: []row{
			{"address", "127.0.0.1:8444", offOr(&a.Address, listenAddress(&a.Address))},
			{"server_names", none, list{example: "gateway.example.com", item: added(&a.ServerNames, certificateName)}},
			{"certificate", none, file(&a.Certificate.Chain, c.Path)},
			{"key", none, file(&a.Certificate.Key, c.Path)},
			{"client_ca", none, file(&a.ClientCA, c.Path)},
			{"clients", none, list{example: "{subject: alice, role: operator}", item: func() reader { return adminClient(a) }}},
		},
		check: func(f *found) {
			checkPair(f, &a.Certificate)
			switch {
			case f.faulty["client_ca"] || f.faulty["clients"]:
			case a.ClientCA != "" && len(a.Clients) == 0:
				f.fail("client_ca", "no certificate has a role: add `clients: [{subject: alice, role: operator}]`")
			case a.ClientCA == "" && len(a.Clients) > 0:
				f.fail("clients", "nobody vouches for their certificates: give client_ca, too")
			}
		},
	}
}

func adminClient(a *AdminAPI) mapping {
	v := AdminClient{}
	return mapping{
		rows: []row{
			{"subject", required, label(&v.Subject)},
			{"role", required, oneOf(&v.Role, "viewer", "operator", "admin")},
		},
		check: func(f *found) {
			if v.Subject != "" && slices.ContainsFunc(a.Clients, func(o AdminClient) bool { return o.Subject == v.Subject }) {
				f.fail("subject", "%s is in the list already", v.Subject)
			}
			a.Clients = append(a.Clients, v)
		},
	}
}

// secretParameters are names of query parameters that are not logged where the file has no list
// of its own.
var secretParameters = []string{
	"access_token", "api_key", "auth", "authorization", "client_secret", "credential", "id_token", "jwt", "key", "passwd", "password", "pwd",
	"refresh_token", "secret", "session", "session_id", "sig", "signature", "token", "x_amz_credential", "x_amz_security_token", "x_amz_signature",
}

func logs(c *Config) mapping {
	l := &c.Log
	errorLog := absolute(&l.Error, "-")
	errorLog.example = "/var/log/gateway/error.log"
	return mapping{
		rows: []row{
			{"access", "-", absolute(&l.Access, "-", "off")},
			{"format", "combined", oneOf(&l.Format, "combined", "json")},
			{"sampling", none, list{example: "share: 0.1", most: 64, item: func() reader { return sampling(c) }}},
			{"redact", none, list{example: "token", most: 256, item: added(&l.Redact, parameter)}},
			{"error", "-", errorLog},
			{"level", "info", oneOf(&l.Level, "debug", "info", "warn", "error", "crit")},
			{"syslog", none, syslog(c)},
		},
		check: func(f *found) {
			if f.values["redact"] == nil {
				l.Redact = slices.Clone(secretParameters)
			}
		},
	}
}

// parameter is the name of one in a query.
func parameter(dst *string) scalar {
	return text(dst, "the name of a query parameter", "access_token", func(s string) bool {
		return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool { return !letterOrDigit(r) && r != '-' && r != '_' })
	})
}

func sampling(c *Config) mapping {
	s := &Sampling{}
	return mapping{
		rows: []row{
			{"routes", none, list{example: "health", least: 1, item: added(&s.Routes, label)}},
			{"share", required, ratio(&s.Share)},
			{"slow", "500ms", duration(&s.Slow, time.Millisecond, time.Hour)},
		},
		check: func(f *found) {
			c.Log.Sampling = append(c.Log.Sampling, *s)
			f.d.later = append(f.d.later, func() {
				for i, name := range s.Routes {
					if !slices.ContainsFunc(c.Routes, func(r Route) bool { return r.Name == name || r.Name == "" }) {
						f.d.fail(f.values["routes"].Content[i], "%s.routes[%d]: there is no route %s", f.where, i, name)
					}
				}
			})
		},
	}
}

func syslog(c *Config) mapping {
	s := &c.Log.Syslog
	return mapping{
		rows: []row{
			{"address", "off", offOr(&s.Address, hostPort(&s.Address))},
			{"transport", "udp", oneOf(&s.Transport, "udp", "tcp", "tls")},
			{"facility", "local0", oneOf(&s.Facility, "user", "daemon", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7")},
			{"size", "2048", whole(&s.Size, 480, 8192)},
			{"ca", none, file(&s.CA, c.Path)},
		},
	}
}

func interfaceRow(c *Config) mapping {
	i := &Interface{}
	return mapping{
		rows: []row{
			{"name", required, device(&i.Name)},
			{"mode", "auto", oneOf(&i.Mode, "auto", "native", "generic", "tc")},
		},
		check: func(f *found) {
			for _, other := range c.Interfaces {
				if other.Name == i.Name && i.Name != "" {
					f.fail("name", "%s is in the list already", i.Name)
				}
			}
			c.Interfaces = append(c.Interfaces, *i)
		},
	}
}

func verdicts(c *Config) mapping {
	v := &c.Verdicts
	return mapping{
		rows: []row{
			{"stale_after", "5s", duration(&v.StaleAfter, time.Second, time.Hour)},
			{"guard", "1", offOr(&v.Guard, whole(&v.Guard, 1, 1000))},
			{"share", "false", boolean(&v.Share)},
		},
		check: func(f *found) {
			f.d.later = append(f.d.later, func() {
				if v.Share && c.Redis.Address == "" {
					f.fail("share", "gateways tell each other through a redis: give redis.address, too")
				}
			})
		},
	}
}

func portGuard(g *PortGuard) mapping {
	return mapping{rows: []row{
		{"mode", "count", oneOf(&g.Mode, "off", "count", "enforce")},
		{"tcp", none, list{example: "22", item: ports(&g.TCP)}},
		{"udp", none, list{example: "53", item: ports(&g.UDP)}},
	}}
}

func pinhole(c *Config) mapping {
	h := &Pinhole{}
	var sources []netip.Prefix
	return mapping{
		rows: []row{
			{"source", required, prefixes(&sources)()},
			{"port", "22", port(&h.Port)},
		},
		check: func(*found) {
			if len(sources) == 1 {
				h.Source = sources[0]
				c.Admin = append(c.Admin, *h)
			}
		},
	}
}

// budget: 0 stands for off.
func budget(dst *uint64) scalar {
	number := whole(dst, 1, maxRate)
	return scalar{want: "off or " + number.want, set: func(s string) error {
		if s == "off" {
			*dst = 0
			return nil
		}
		return number.set(s)
	}}
}

func spread(dst *bool) scalar {
	return scalar{want: "auto or off", set: func(s string) error {
		*dst = s == "auto"
		if s != "auto" && s != "off" {
			return errWant
		}
		return nil
	}}
}

// maxRate is above what any queue carries, maxByteRate above what any interface does.
const (
	maxRate     = 100_000_000
	maxByteRate = 100_000_000_000
)

// minByteBurst lets frames of 64 KiB, as merging makes them, through three quarters of a
// burst: a frame that costs more than there is at most would be dropped for ever.
const minByteBurst = 100_000

func packetLimit(c *Config) mapping {
	l := &PacketLimit{}
	var unit string
	rate, burst := packetRate(&l.Rate, &unit), amount(&l.Burst)
	burst.want += "; without it, the rate"
	return mapping{
		rows: []row{
			{"name", required, label(&l.Name)},
			{"key", required, oneOf(&l.Key, "source", "prefix", "port", "queue", "interface")},
			{"count", required, oneOf(&l.Count, "syns", "packets", "bytes")},
			{"port", none, port(&l.Port)},
			{"rate", required, rate},
			{"burst", none, burst},
			{"dry_run", "false", boolean(&l.DryRun)},
		},
		check: func(f *found) {
			if counts := map[string]string{"pps": "packets", "bit/s": "bytes", "B/s": "bytes"}[unit]; counts != "" && l.Count != "" && counts != l.Count {
				f.fail("rate", "%s is a rate of %s, and the limit counts %s", unit, counts, l.Count)
			}
			checkLimit(f, c, l)
		},
	}
}

func checkLimit(f *found, c *Config, l *PacketLimit) {
	if l.Burst == 0 {
		l.Burst = l.Rate
	}
	switch {
	case f.faulty["name"] || f.faulty["key"] || f.faulty["count"] || f.faulty["rate"]:
	case len(l.Name) > 15:
		f.fail("name", "%s: the kernel plane keeps 15 letters", l.Name)
	case l.Key == "port" && l.Port == 0 && !f.faulty["port"]:
		f.fail("key", "a limit by port needs its port, such as `port: 443`")
	case l.Key != "port" && l.Port != 0:
		f.fail("port", "only a limit with `key: port` has one")
	case l.Count != "bytes" && l.Rate > maxRate:
		f.fail("rate", "%d: %s are counted up to %d per second", l.Rate, l.Count, maxRate)
	case l.Count == "bytes" && l.Burst < minByteBurst && !f.faulty["burst"]:
		key := "burst"
		if f.values[key] == nil {
			key = "rate"
		}
		f.fail(key, "with a burst of %d bytes the longest frames would never pass: want `burst: %dk` or more", l.Burst, minByteBurst/1000)
	case l.Rate > 0 && l.Burst/l.Rate > 86400:
		f.fail("burst", "%d: it lasts longer than a day at this rate", l.Burst)
	}
	ports := map[uint16]bool{}
	for _, other := range c.PacketLimits {
		if other.Key == "port" {
			ports[other.Port] = true
		}
		switch {
		case l.Key != "" && l.Count != "" && other.Key == l.Key && other.Count == l.Count && other.Port == l.Port:
			f.fail("key", "limit %s has this key and count already: one limit for each", other.Name)
		case l.Name != "" && other.Name == l.Name:
			f.fail("name", "another limit is called %s", l.Name)
		}
	}
	if l.Key == "port" && len(ports) == 16 && !ports[l.Port] {
		f.fail("port", "16 ports have limits already: there is no room for more")
	}
	c.PacketLimits = append(c.PacketLimits, *l)
}

func clientAddress(a *ClientAddress) mapping {
	return mapping{
		rows: []row{
			{"trusted", none, list{example: "192.0.2.10", item: prefixes(&a.Trusted)}},
			{"proxy_protocol", "false", boolean(&a.ProxyProtocol)},
			{"header", "off", clientHeader(&a.Header)},
		},
		check: func(f *found) {
			if len(a.Trusted) > 0 || f.faulty["trusted"] {
				return
			}
			switch {
			case a.ProxyProtocol:
				f.fail("proxy_protocol", "nobody is trusted, so it would never be read: add `trusted:`")
			case a.Header != "":
				f.fail("header", "nobody is trusted, so it would never be read: add `trusted:`")
			}
		},
	}
}

// clientHeader: the empty name stands for off.
func clientHeader(dst *string) scalar {
	s := oneOf(dst, "off", "X-Forwarded-For", "Forwarded")
	set := s.set
	s.set = func(text string) error {
		err := set(text)
		if *dst == "off" {
			*dst = ""
		}
		return err
	}
	return s
}

// workers: 0 stands for auto.
func workers(c *Config) scalar {
	number := whole(&c.Workers, 1, 256)
	return scalar{want: "auto or " + number.want, set: func(s string) error {
		if s == "auto" {
			c.Workers = 0
			return nil
		}
		return number.set(s)
	}}
}

// workerMemory: 0 stands for auto.
func workerMemory(c *Config) scalar {
	bytes := size(&c.WorkerMemory, 64<<20, 1<<40)
	return scalar{want: "auto or " + bytes.want, set: func(s string) error {
		if s == "auto" {
			c.WorkerMemory = 0
			return nil
		}
		return bytes.set(s)
	}}
}

func timeouts(t *Timeouts) mapping {
	return mapping{rows: []row{
		{"keepalive", "75s", duration(&t.Keepalive, 60*time.Second, 120*time.Second)},
		{"header", "10s", duration(&t.Header, 100*time.Millisecond, 10*time.Minute)},
		{"body", "60s", duration(&t.Body, 100*time.Millisecond, time.Hour)},
		{"write", "60s", duration(&t.Write, 100*time.Millisecond, time.Hour)},
		{"handshake", "10s", duration(&t.Handshake, 100*time.Millisecond, time.Minute)},
		{"drain", "10s", duration(&t.Drain, 100*time.Millisecond, 24*time.Hour)},
		{"min_rate", "500", whole(&t.MinRate, 0, 1<<30)},
	}}
}

func requestSizes(s *RequestSizes) mapping {
	return mapping{
		rows: []row{
			{"line_bytes", "8k", size(&s.LineBytes, 256, 64<<10)},
			{"header_bytes", "32k", size(&s.HeaderBytes, 1<<10, 1<<20)},
			{"header_fields", "100", whole(&s.HeaderFields, 10, 1000)},
			{"body_bytes", "0", size(&s.BodyBytes, 0, 1<<40)},
		},
		check: func(f *found) {
			if !f.faulty["line_bytes"] && !f.faulty["header_bytes"] && s.LineBytes > s.HeaderBytes {
				f.fail("line_bytes", "%s: the line is part of the head, for which header_bytes allows %s",
					SizeText(int64(s.LineBytes)), SizeText(int64(s.HeaderBytes)))
			}
		},
	}
}

// refer checks the upstream that a route names at a key when all upstreams are known.
func refer(f *found, c *Config, key, upstream string) {
	var known []row
	for _, u := range c.Upstreams {
		if u.Name == upstream || u.Name == "" {
			return // a name that is missing or wrong may be this one
		}
	}
	for _, u := range c.Upstreams {
		known = append(known, row{key: u.Name})
	}
	if upstream != "" && len(known) > 0 {
		_, hint := suggestion(upstream, known)
		f.fail(key, "there is no upstream %s%s", upstream, hint)
	}
}

func upstream(c *Config) mapping {
	u := &Upstream{}
	return mapping{
		rows: []row{
			{"name", required, label(&u.Name)},
			{"servers", required, list{example: `"127.0.0.1:8080"`, least: 1, most: 64, item: servers(&u.Servers)}},
			{"protocol", "http1", oneOf(&u.Protocol, "http1", "http2")},
			{"connect_timeout", "2s", duration(&u.ConnectTimeout, time.Millisecond, time.Minute)},
			{"header_timeout", "5s", duration(&u.HeaderTimeout, time.Millisecond, time.Hour)},
			{"idle_timeout", "60s", duration(&u.IdleTimeout, time.Second, time.Hour)},
			{"max_connections", "512", whole(&u.MaxConnections, 1, 1<<16)},
			{"max_idle", "256", whole(&u.MaxIdle, 0, 1<<16)},
			{"balance", "round_robin", oneOf(&u.Balance, "round_robin", "least_conn", "p2c", "hash")},
			{"hash_by", "address", hashBy(&u.HashBy)},
			{"retries", "1", whole(&u.Retries, 0, 8)},
			{"max_fails", "3", whole(&u.MaxFails, 0, 1000)},
			{"fail_time", "5s", duration(&u.FailTime, 100*time.Millisecond, time.Hour)},
			{"max_pending", "128", whole(&u.MaxPending, 0, 1<<16)},
			{"pending_timeout", "1s", duration(&u.PendingTimeout, time.Millisecond, time.Minute)},
			{"max_requests", "4096", whole(&u.MaxRequests, 1, 1<<20)},
			{"total_timeout", "off", offOr(&u.TotalTimeout, duration(&u.TotalTimeout, 10*time.Millisecond, 24*time.Hour))},
			{"slow_start", "10s", offOr(&u.SlowStart, duration(&u.SlowStart, time.Second, time.Hour))},
			{"resolve", "10s", duration(&u.Resolve, time.Second, time.Hour)},
			{"health", none, healthCheck(u)},
			{"tls", none, upstreamTLS(c, u)},
		},
		check: func(f *found) {
			for _, other := range c.Upstreams {
				if u.Name != "" && other.Name == u.Name {
					f.fail("name", "another upstream is called %s", u.Name)
				}
			}
			c.Upstreams = append(c.Upstreams, *u)
		},
	}
}

// upstreamTLS: the mapping is there, or the upstream is spoken with in the clear.
func upstreamTLS(c *Config, u *Upstream) mapping {
	t := &UpstreamTLS{}
	var path string
	return mapping{
		rows: []row{
			{"server_name", none, text(&t.ServerName, "a host name or an address", "app.internal", isHostName)},
			{"verify", "true", boolean(&t.Verify)},
			{"ca", none, file(&path, c.Path)},
		},
		check: func(f *found) {
			if f.values == nil {
				return
			}
			u.TLS = t
			if path != "" {
				t.CA = f.contents("ca", path)
			}
		},
	}
}

// hashBy is address, path or the name of a field.
func hashBy(dst *string) scalar {
	s := token(dst)
	s.want, s.example = "address, path, or the name of a header field", ""
	return s
}

// buffers is the whole of buffers.conf.
func buffers(b *Buffers) mapping {
	return mapping{rows: []row{
		{"shared_memory_zone", "128m", size(&b.SharedMemoryZone, 1<<20, 64<<30)},
		{"access_ring", "1m", size(&b.AccessRing, 64<<10, 1<<30)},
	}}
}
