// SPDX-License-Identifier: Apache-2.0

package config

import (
	"time"
)

// gateway is the whole of gateway.yaml.
func gateway(c *Config) mapping {
	return mapping{check: across, rows: []row{
		{"interfaces", none, list{example: "name: eth0", item: func() reader { return interfaceRow(c) }}},
		{"deny", none, list{example: "192.0.2.0/24", item: prefixes(&c.Deny)}},
		{"packet_limits", none, list{example: "name: syns", item: func() reader { return packetLimit(c) }}},
		{"listeners", none, list{example: "address: :443", least: 1, most: 1, one: true, item: func() reader { return listener(c) }}},
		{"telemetry", none, mapping{rows: []row{
			{"address", "127.0.0.1:9090", listenAddress(&c.Telemetry.Address)},
		}}},
		{"workers", "auto", workers(c)},
		{"pin", "true", boolean(&c.Pin)},
		{"worker_user", "gateway_worker", account(&c.WorkerUser)},
		{"worker_connections", "16384", whole(&c.Connections, 1, 1<<20)},
		{"timeouts", none, timeouts(&c.Timeouts)},
		{"limits", none, requestSizes(&c.Limits)},
		{"routes", required, list{example: "{name: api, upstream: app}", least: 1, item: func() reader { return route(c) }}},
		{"upstreams", required, list{example: `{name: app, servers: ["127.0.0.1:8080"]}`, least: 1, item: func() reader { return upstream(c) }}},
		{"log", none, mapping{rows: []row{
			{"access", "-", absolute(&c.Log.Access, "-", "off")},
		}}},
		{"state", "/var/lib/xgw", absolute(&c.State)},
	}}
}

// across runs the checks that need all of the file.
func across(f *found) {
	for _, check := range f.d.later {
		check()
	}
}

func interfaceRow(c *Config) mapping {
	i := &Interface{}
	return mapping{
		rows: []row{
			{"name", required, device(&i.Name)},
			{"mode", "native", oneOf(&i.Mode, "native", "generic")},
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

// maxRate is above what any queue carries, and where rounding an interval to whole
// nanoseconds still keeps the rate within 5 %.
const maxRate = 100_000_000

func packetLimit(c *Config) mapping {
	l := &PacketLimit{}
	burst := whole(&l.Burst, 1, 10*maxRate)
	burst.want += "; without it, the rate"
	return mapping{
		rows: []row{
			{"name", required, label(&l.Name)},
			{"key", required, oneOf(&l.Key, "source", "queue")},
			{"count", required, oneOf(&l.Count, "syns", "packets")},
			{"rate", required, whole(&l.Rate, 1, maxRate)},
			{"burst", none, burst},
		},
		check: func(f *found) {
			if l.Burst == 0 {
				l.Burst = l.Rate
			}
			if l.Key != "" && l.Count != "" && (l.Key == "source") != (l.Count == "syns") {
				f.fail("count", "no limit of %s by %s: there are syns by source, and packets by queue", l.Count, l.Key)
			}
			for _, other := range c.PacketLimits {
				switch {
				case l.Key != "" && other.Key == l.Key:
					f.fail("key", "limit %s has this key already: one limit for each", other.Name)
				case l.Name != "" && other.Name == l.Name:
					f.fail("name", "another limit is called %s", l.Name)
				}
			}
			c.PacketLimits = append(c.PacketLimits, *l)
		},
	}
}

func listener(c *Config) mapping {
	l := &Listener{}
	return mapping{
		rows: []row{
			{"address", ":443", listenAddress(&l.Address)},
			{"certificate", none, file(&l.Certificate, c.Path)},
			{"key", none, file(&l.Key, c.Path)},
			{"server_names", none, list{example: "gateway.example.com", item: added(&l.ServerNames, certificateName)}},
			{"min_version", "1.3", oneOf(&l.MinVersion, "1.3", "1.2")},
		},
		check: func(f *found) {
			switch {
			case f.faulty["certificate"] || f.faulty["key"]:
			case l.Certificate != "" && l.Key == "":
				f.fail("certificate", "its key is missing: give both, or neither for a certificate that is made")
			case l.Certificate == "" && l.Key != "":
				f.fail("key", "its certificate is missing: give both, or neither for a certificate that is made")
			}
			c.Listeners = append(c.Listeners, *l)
		},
	}
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

func timeouts(t *Timeouts) mapping {
	return mapping{rows: []row{
		{"keepalive", "75s", duration(&t.Keepalive, 60*time.Second, 120*time.Second)},
		{"header", "10s", duration(&t.Header, 100*time.Millisecond, 10*time.Minute)},
		{"body", "60s", duration(&t.Body, 100*time.Millisecond, time.Hour)},
		{"write", "60s", duration(&t.Write, 100*time.Millisecond, time.Hour)},
		{"handshake", "10s", duration(&t.Handshake, 100*time.Millisecond, time.Minute)},
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
					sizeText(int64(s.LineBytes)), sizeText(int64(s.HeaderBytes)))
			}
		},
	}
}

func route(c *Config) mapping {
	r := &Route{}
	return mapping{
		rows: []row{
			{"name", required, label(&r.Name)},
			{"host", none, hostName(&r.Host)},
			{"path", "/", urlPath(&r.Path)},
			{"upstream", required, label(&r.Upstream)},
		},
		check: func(f *found) {
			for _, other := range c.Routes {
				switch {
				case r.Name != "" && other.Name == r.Name:
					f.fail("name", "another route is called %s", r.Name)
				case f.faulty["host"] || f.faulty["path"]:
				case other.Host == r.Host && other.Path == r.Path:
					f.fail("path", "never used: route %s before it has the same host and path", other.Name)
				}
			}
			f.d.later = append(f.d.later, func() { refer(f, c, r.Upstream) })
			c.Routes = append(c.Routes, *r)
		},
	}
}

// refer checks a route's upstream when all upstreams are known.
func refer(f *found, c *Config, upstream string) {
	var known []row
	for _, u := range c.Upstreams {
		if u.Name == "" {
			return // a name is missing or wrong: it may be this one
		}
		known = append(known, row{key: u.Name})
	}
	for _, k := range known {
		if k.key == upstream {
			return
		}
	}
	if upstream != "" && len(known) > 0 {
		_, hint := suggestion(upstream, known)
		f.fail("upstream", "there is no upstream %s%s", upstream, hint)
	}
}

func upstream(c *Config) mapping {
	u := &Upstream{}
	return mapping{
		rows: []row{
			{"name", required, label(&u.Name)},
			{"servers", required, list{example: `"127.0.0.1:8080"`, least: 1, item: added(&u.Servers, serverAddress)}},
			{"connect_timeout", "2s", duration(&u.ConnectTimeout, time.Millisecond, time.Minute)},
			{"header_timeout", "5s", duration(&u.HeaderTimeout, time.Millisecond, time.Hour)},
			{"idle_timeout", "60s", duration(&u.IdleTimeout, time.Second, time.Hour)},
			{"max_connections", "512", whole(&u.MaxConnections, 1, 1<<16)},
			{"max_idle", "64", whole(&u.MaxIdle, 0, 1<<16)},
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

// buffers is the whole of buffers.conf.
func buffers(b *Buffers) mapping {
	return mapping{rows: []row{
		{"shared_memory_zone", "128m", size(&b.SharedMemoryZone, 1<<20, 64<<30)},
		{"access_ring", "1m", size(&b.AccessRing, 64<<10, 1<<30)},
	}}
}
