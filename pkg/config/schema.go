// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxText bounds a configuration file; a longer one is a mistake.
const maxText = 16 << 20

// gateway reads gateway.yaml into c, which holds the defaults.
func (d *decoder) gateway(c *Config, text []byte) {
	var doc yaml.Node
	if len(text) > maxText {
		d.errs = append(d.errs, &Error{File: d.file, Msg: fmt.Sprintf("%d bytes; at most %d are read", len(text), maxText)})
		return
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		d.errs = append(d.errs, &Error{File: d.file, Msg: strings.TrimPrefix(err.Error(), "yaml: ")})
		return
	}
	root := &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
	if len(doc.Content) > 0 {
		root = doc.Content[0]
	}
	d.object(root, "", map[string]field{
		"interfaces":         d.list(d.interfaces(c)),
		"deny":               d.list(d.prefix(c)),
		"packet_limits":      d.list(d.packetLimit(c)),
		"listeners":          d.list(d.listener(c)),
		"telemetry":          d.telemetry(c),
		"workers":            d.workers(c),
		"pin":                d.bool(&c.Pin),
		"worker_user":        d.string(&c.WorkerUser, notEmpty),
		"worker_connections": integer(d, &c.Connections, 1, 1<<20),
		"timeouts":           d.timeouts(&c.Timeouts),
		"limits":             d.requestSizes(&c.Limits),
		"routes":             d.list(d.route(c)),
		"upstreams":          d.list(d.upstream(c)),
		"log":                d.log(&c.Log),
		"state":              d.string(&c.State, absolute),
	})
	if len(d.errs) == 0 {
		d.whole(c, root)
	}
}

func notEmpty(s string) error {
	if s == "" {
		return errors.New("want a value, it is empty")
	}
	return nil
}

func absolute(s string) error {
	if !strings.HasPrefix(s, "/") {
		return fmt.Errorf("%q: want a path from the root, such as /var/lib/xgw", s)
	}
	return nil
}

// name of a thing in metrics and messages.
func name(s string) error {
	if s == "" || len(s) > 63 {
		return fmt.Errorf("%q: want 1 to 63 characters", s)
	}
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '"' || r == '\\' {
			return fmt.Errorf("%q: want printable ASCII without spaces, quotes and backslashes", s)
		}
	}
	return nil
}

// hostPort checks HOST:PORT; anyHost allows :PORT.
func hostPort(s string, anyHost bool) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || (host == "" && !anyHost) {
		return fmt.Errorf("%q: want HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || (n == 0 && !anyHost) {
		return fmt.Errorf("%q: port %q: want a number from 1 to 65535", s, port)
	}
	return nil
}

func serverAddress(s string) error { return hostPort(s, false) }
func listenAddress(s string) error { return hostPort(s, true) }

func (d *decoder) interfaces(c *Config) field {
	return func(n *yaml.Node, where string) {
		i := Interface{Mode: "native"}
		d.object(n, where, map[string]field{
			"name": d.string(&i.Name, name),
			"mode": d.string(&i.Mode, oneOf("native", "generic")),
		})
		d.require(n, where, "name", i.Name)
		c.Interfaces = append(c.Interfaces, i)
	}
}

func (d *decoder) require(n *yaml.Node, where, key, value string) {
	if value == "" && n.Kind == yaml.MappingNode {
		d.fail(n, "%s: %s is missing", where, key)
	}
}

func (d *decoder) prefix(c *Config) field {
	return d.text(func(s string) error {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" {
				return fmt.Errorf("%q: want a prefix or an address, such as 192.0.2.0/24 or 2001:db8::/32", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p != p.Masked() {
			return fmt.Errorf("%q: bits are set after the prefix: did you mean %s?", s, p.Masked())
		}
		c.Deny = append(c.Deny, p)
		return nil
	})
}

func (d *decoder) packetLimit(c *Config) field {
	return func(n *yaml.Node, where string) {
		var l PacketLimit
		d.object(n, where, map[string]field{
			"name":  d.string(&l.Name, name),
			"key":   d.string(&l.Key, oneOf("source", "queue")),
			"count": d.string(&l.Count, oneOf("syns", "packets")),
			"rate":  integer(d, &l.Rate, 1, 1_000_000_000),
			"burst": integer(d, &l.Burst, 1, 1_000_000_000),
		})
		d.require(n, where, "name", l.Name)
		d.require(n, where, "key", l.Key)
		d.require(n, where, "count", l.Count)
		if l.Rate == 0 && len(d.errs) == 0 {
			d.fail(n, "%s: rate is missing", where)
		}
		if l.Burst == 0 {
			l.Burst = l.Rate
		}
		if l.Key != "" && l.Count != "" && (l.Key == "source") != (l.Count == "syns") {
			d.fail(n, "%s: no limit of %s by %s: there are syns by source and packets by queue", where, l.Count, l.Key)
		}
		for _, other := range c.PacketLimits {
			if other.Key == l.Key {
				d.fail(n, "%s: %q limits %s by %s already", where, other.Name, l.Count, l.Key)
			}
		}
		c.PacketLimits = append(c.PacketLimits, l)
	}
}

func (d *decoder) listener(c *Config) field {
	return func(n *yaml.Node, where string) {
		l := Listener{Address: ":443", MinVersion: "1.3"}
		d.object(n, where, map[string]field{
			"address":      d.string(&l.Address, listenAddress),
			"certificate":  d.string(&l.Certificate, notEmpty),
			"key":          d.string(&l.Key, notEmpty),
			"server_names": d.strings(&l.ServerNames, name),
			"min_version":  d.string(&l.MinVersion, oneOf("1.2", "1.3")),
		})
		if (l.Certificate == "") != (l.Key == "") {
			d.fail(n, "%s: certificate and key go together", where)
		}
		if len(c.Listeners) == 1 {
			d.fail(n, "%s: one listener is supported", where)
		}
		c.Listeners = append(c.Listeners, l)
	}
}

func (d *decoder) telemetry(c *Config) field {
	return func(n *yaml.Node, where string) {
		d.object(n, where, map[string]field{"address": d.string(&c.Telemetry.Address, listenAddress)})
	}
}

func (d *decoder) workers(c *Config) field {
	number := integer(d, &c.Workers, 1, 256)
	return func(n *yaml.Node, where string) {
		if n.Value == "auto" {
			c.Workers = 0
			return
		}
		number(n, where)
	}
}

func (d *decoder) timeouts(t *Timeouts) field {
	return func(n *yaml.Node, where string) {
		d.object(n, where, map[string]field{
			"keepalive": d.duration(&t.Keepalive, time.Second, time.Hour),
			"header":    d.duration(&t.Header, 100*time.Millisecond, 10*time.Minute),
			"body":      d.duration(&t.Body, 100*time.Millisecond, time.Hour),
			"write":     d.duration(&t.Write, 100*time.Millisecond, time.Hour),
			"handshake": d.duration(&t.Handshake, 100*time.Millisecond, time.Minute),
		})
	}
}

func (d *decoder) requestSizes(s *RequestSizes) field {
	return func(n *yaml.Node, where string) {
		d.object(n, where, map[string]field{
			"line_bytes":    size(d, &s.LineBytes, 256, 64<<10),
			"header_bytes":  size(d, &s.HeaderBytes, 1<<10, 1<<20),
			"header_fields": integer(d, &s.HeaderFields, 10, 1000),
			"body_bytes":    size(d, &s.BodyBytes, 0, 1<<40),
		})
	}
}

func (d *decoder) route(c *Config) field {
	return func(n *yaml.Node, where string) {
		r := Route{Path: "/"}
		d.object(n, where, map[string]field{
			"name": d.string(&r.Name, name),
			"host": d.text(func(s string) error {
				r.Host = strings.ToLower(s)
				if strings.ContainsAny(s, "/: *") {
					return fmt.Errorf("%q: want a host name without port, such as api.example.com", s)
				}
				return nil
			}),
			"path": d.string(&r.Path, func(s string) error {
				if !strings.HasPrefix(s, "/") || strings.ContainsAny(s, "?# ") {
					return fmt.Errorf("%q: want the beginning of a path, such as /v1/", s)
				}
				return nil
			}),
			"upstream": d.string(&r.Upstream, name),
		})
		d.require(n, where, "name", r.Name)
		d.require(n, where, "upstream", r.Upstream)
		for _, other := range c.Routes {
			if other.Name == r.Name && r.Name != "" {
				d.fail(n, "%s: name %q is taken", where, r.Name)
			} else if other.Host == r.Host && other.Path == r.Path {
				d.fail(n, "%s: never used: route %q has the same host and path", where, other.Name)
			}
		}
		c.Routes = append(c.Routes, r)
	}
}

func (d *decoder) upstream(c *Config) field {
	return func(n *yaml.Node, where string) {
		u := Upstream{
			ConnectTimeout: 2 * time.Second, HeaderTimeout: 5 * time.Second, IdleTimeout: 60 * time.Second,
			MaxConnections: 512, MaxIdle: 64,
		}
		d.object(n, where, map[string]field{
			"name":            d.string(&u.Name, name),
			"servers":         d.strings(&u.Servers, serverAddress),
			"connect_timeout": d.duration(&u.ConnectTimeout, time.Millisecond, time.Minute),
			"header_timeout":  d.duration(&u.HeaderTimeout, time.Millisecond, time.Hour),
			"idle_timeout":    d.duration(&u.IdleTimeout, time.Second, time.Hour),
			"max_connections": integer(d, &u.MaxConnections, 1, 1<<16),
			"max_idle":        integer(d, &u.MaxIdle, 0, 1<<16),
		})
		d.require(n, where, "name", u.Name)
		if len(u.Servers) == 0 && len(d.errs) == 0 {
			d.fail(n, "%s: servers are missing", where)
		}
		for _, other := range c.Upstreams {
			if other.Name == u.Name && u.Name != "" {
				d.fail(n, "%s: name %q is taken", where, u.Name)
			}
		}
		c.Upstreams = append(c.Upstreams, u)
	}
}

func (d *decoder) log(l *Log) field {
	return func(n *yaml.Node, where string) {
		d.object(n, where, map[string]field{
			"access": d.string(&l.Access, func(s string) error {
				if s == "-" || s == "off" {
					return nil
				}
				return absolute(s)
			}),
		})
	}
}

// whole checks what no single value can tell, on a configuration without other faults.
func (d *decoder) whole(c *Config, root *yaml.Node) {
	if len(c.Listeners) == 0 {
		c.Listeners = []Listener{{Address: ":443", MinVersion: "1.3"}}
	}
	if len(c.Routes) == 0 {
		d.fail(root, "no routes: at least one with its upstream is needed")
	}
	known := map[string]bool{}
	for _, u := range c.Upstreams {
		known[u.Name] = true
	}
	for i, r := range c.Routes {
		if !known[r.Upstream] {
			d.fail(routeNode(root, i), "routes[%d].upstream: there is no upstream %q", i, r.Upstream)
		}
	}
	if c.Timeouts.Keepalive < c.Timeouts.Header && c.Timeouts.Keepalive < time.Second {
		d.fail(root, "timeouts.keepalive: shorter than a request takes to arrive")
	}
}

// routeNode finds the node of route i, for its line.
func routeNode(root *yaml.Node, i int) *yaml.Node {
	for k := 0; k+1 < len(root.Content); k += 2 {
		if list := root.Content[k+1]; root.Content[k].Value == "routes" && i < len(list.Content) {
			return list.Content[i]
		}
	}
	return root
}

// buffers reads buffers.conf: `key value` lines, # begins a comment.
func (d *decoder) buffers(c *Config, text []byte) {
	fields := map[string]field{
		"shared_memory_zone": size(d, &c.Buffers.SharedMemoryZone, 1<<20, 1<<36),
		"access_ring":        size(d, &c.Buffers.AccessRing, 64<<10, 1<<30),
	}
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		at := &yaml.Node{Kind: yaml.ScalarNode, Line: i + 1, Column: 1}
		read, ok := fields[words[0]]
		switch {
		case !ok:
			d.fail(at, "%s: unknown key%s", words[0], suggestion(words[0], fields))
		case len(words) != 2:
			d.fail(at, "%s: want one value, such as `%s 128m`", words[0], words[0])
		default:
			at.Value = words[1]
			read(at, words[0])
		}
	}
}
