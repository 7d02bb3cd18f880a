// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// RequestLimit limits requests in the L7 plane.
type RequestLimit struct {
	Name    string
	Routes  []string // names; none: all routes
	Methods []string // none: all
	Tiers   []string `json:",omitempty"` // of the API key; none: all requests
	// Key is what has a bucket of its own: address (an IPv4 address, an IPv6 /64), route,
	// host, api_key, consumer, header:NAME, or jwt:CLAIM (of the token in Authorization) and
	// jwt:CLAIM:HEADER, whose signature is not verified; several of them together. A request
	// that lacks one of these is not limited.
	Key      []string
	Requests uint64        // in each Period, from 1
	Period   time.Duration // a second, minute, hour or day
	Burst    uint64        // requests that may come at once, from 1
	// Delay is how many of the burst pass at once; those beyond wait for their turn. It is
	// Burst where none waits.
	Delay  uint64
	DryRun bool // told, not held
	Status int  // of the refusal, 400 to 599
	// Cluster: it holds over all gateways that share a redis, not in each of them.
	Cluster bool `json:",omitempty"`
}

// Call is one that ratelimit.lua makes: of a function named here, with one table.
type Call struct {
	Function string `json:"function"`
	Line     int    `json:"line"`
	// Args is a map[string]any or an []any, of those, and of string, bool and json.Number.
	Args any `json:"args"`
	// KeyFunction: its key is a Lua function, which is not in Args.
	KeyFunction bool `json:"key_function,omitempty"`
}

// Hash tells whether two runs of a script made the same calls.
func Hash(made []Call) []byte {
	text, _ := json.Marshal(made) // never fails for such values
	sum := sha256.Sum256(text)
	return sum[:]
}

// KeyScript is a ratelimit.lua with key functions, for who runs these.
type KeyScript struct {
	Name   string `json:"name"`
	Source []byte `json:"source"`
	Hash   []byte `json:"hash"` // of the calls that it makes
}

// keyFunction is the word for a key function in the key of a limit.
const keyFunction = "function"

// Script runs the text of ratelimit.lua and returns its calls. path is for messages.
type Script func(path string, source []byte) ([]Call, error)

// calls are the functions of ratelimit.lua. What they read goes into c.
func calls(c *Config, made *Call) map[string]func() reader {
	return map[string]func() reader{
		"limit_req":    func() reader { return requestLimit(c, made.KeyFunction) },
		"limit_conn":   func() reader { return connectionLimit(c, made.KeyFunction) },
		"packet_limit": func() reader { return packetLimit(c) },
		"escalate":     func() reader { return escalation(c) },
		"allow":        func() reader { return list{example: "198.51.100.0/24", item: prefixes(&c.Allow)} },
		"deny":         func() reader { return list{example: "192.0.2.0/24", item: prefixes(&c.Deny)} },
	}
}

// AddLimits reads the arguments of calls as if they stood in a file, path, at the place of
// their call, and adds what they mean to c, which Load or Parse made. Its error joins an
// *Error for each fault, in the order of the lines; then c is of no use.
func (c *Config) AddLimits(path string, made []Call) error {
	d := &decoder{file: path}
	for i := range made {
		call := &made[i]
		known := calls(c, call)
		n := nodeOf(call.Args, call.Line)
		if fn, ok := known[call.Function]; ok {
			readValue(d, fn(), n, call.Function)
		} else {
			d.fail(n, "%s: unknown function; known are %s", plain(call.Function), strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	}
	for _, check := range d.later {
		check()
	}
	return errors.Join(d.faults()...)
}

// limitsPath is where ratelimit.lua is looked for.
func limitsPath(path string) string {
	return filepath.Join(filepath.Dir(path), "ratelimit.lua")
}

// nodeOf is the value as YAML has it.
func nodeOf(v any, line int) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: line, Column: 1}
	switch v := v.(type) {
	case map[string]any:
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		for _, k := range slices.Sorted(maps.Keys(v)) {
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: k, Line: line, Column: 1}, nodeOf(v[k], line))
		}
	case []any:
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		for _, item := range v {
			n.Content = append(n.Content, nodeOf(item, line))
		}
	case json.Number:
		n.Tag, n.Value = "!!float", v.String()
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(v)
	default:
		n.Tag, n.Value = "!!str", fmt.Sprint(v)
	}
	return n
}

// maxWait is how long a request may have to wait for its turn: most clients do not longer.
const maxWait = time.Minute

// maxBurst is more than any bucket is asked for.
const maxBurst = 1_000_000_000

func requestLimit(c *Config, keyed bool) mapping {
	l := &RequestLimit{}
	var nodelay bool
	var scope string
	var delay uint64
	delayed := whole(&delay, 1, maxBurst)
	delayed.want += ": so many of the burst pass at once, the others wait for their turn; without it, 1"
	return mapping{
		rows: []row{
			{"name", required, label(&l.Name)},
			{"key", none, limitKey(&l.Key, keyed)},
			{"match", none, limitMatch(&l.Routes, &l.Methods, &l.Tiers)},
			{"rate", required, requestRate(l)},
			{"burst", "1", whole(&l.Burst, 1, maxBurst)},
			{"nodelay", "false", boolean(&nodelay)},
			{"delay", none, delayed},
			{"dry_run", "false", boolean(&l.DryRun)},
			{"status", "429", whole(&l.Status, 400, 599)},
			{"scope", "gateway", oneOf(&scope, "gateway", "cluster")},
		},
		check: func(f *found) {
			if l.Cluster = scope == "cluster"; l.Cluster && c.Redis.Address == "" {
				f.fail("scope", "gateways tell each other through a redis: give redis.address in gateway.yaml, too")
			}
			if nodelay && delay > 0 {
				f.fail("delay", "with nodelay none waits: take one of the two out")
			}
			l.Delay = cmp.Or(min(delay, l.Burst), 1)
			if nodelay {
				l.Delay = l.Burst
			}
			checkRequestLimit(f, c, l)
		},
	}
}

func checkRequestLimit(f *found, c *Config, l *RequestLimit) {
	if l.Requests > 0 && !f.faulty["burst"] {
		interval := float64(l.Period) / float64(l.Requests)
		if wait := interval * float64(l.Burst-l.Delay); wait > float64(maxWait) {
			f.fail("burst", "%d: its last request would wait for %s: want `nodelay = true`, a `delay`, or less", l.Burst, TimeText(time.Duration(min(wait, float64(1<<62))).Round(time.Second)))
		}
		if interval*float64(l.Burst) > float64(366*24*time.Hour) {
			f.fail("burst", "%d: it lasts longer than a year at this rate", l.Burst)
		}
	}
	checkLimitMatch(f, c, l.Routes)
	checkLimitName(f, c, l.Name)
	c.RequestLimits = append(c.RequestLimits, *l)
}

// limitKey is what has a bucket of its own.
func limitKey(dst *[]string, keyed bool) oneOrMore {
	o := oneOrMore{item: added(dst, keyPart), initial: "address"}
	if keyed {
		*dst, o.initial = []string{keyFunction}, ""
	}
	return o
}

// limitMatch is which requests a limit is for.
func limitMatch(routes, methods, tiers *[]string) mapping {
	return mapping{rows: []row{
		{"route", none, oneOrMore{item: added(routes, label)}},
		{"method", none, oneOrMore{item: added(methods, method)}},
		{"tier", none, oneOrMore{item: added(tiers, label)}},
	}}
}

func checkLimitMatch(f *found, c *Config, routes []string) {
	for _, name := range routes {
		if !slices.ContainsFunc(c.Routes, func(r Route) bool { return r.Name == name }) {
			f.fail("match", "there is no route %s", plain(name))
		}
	}
}

// keyPart is one word of a request limit's key.
func keyPart(dst *string) scalar {
	return text(dst, "address, route, host, api_key, consumer, header:NAME, jwt:CLAIM or jwt:CLAIM:HEADER", "", func(s string) bool {
		var field string
		switch kind, name, named := strings.Cut(s, ":"); kind {
		case "address", "route", "host", "api_key", "consumer":
			return !named
		case "header":
			return token(&field).set(name) == nil
		case "jwt":
			claim, header, given := strings.Cut(name, ":")
			return claim != "" && len(claim) <= 64 && isFieldText(claim) && (!given || token(&field).set(header) == nil)
		}
		return false
	})
}

// periods that a rate of requests can be for.
var periods = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}

// requestRate is how many requests in a second, minute, hour or day; a plain number is for
// a second.
func requestRate(l *RequestLimit) scalar {
	return scalar{want: "a rate such as 100r/s, 30r/m, 5r/h or 1000r/d", closed: true, set: func(s string) error {
		number, period, ok := strings.Cut(s, "r/")
		if !ok {
			number, period = s, "s"
		}
		var n uint64
		if amount(&n).set(number) != nil || n > maxBurst || periods[period] == 0 {
			return errWant
		}
		l.Requests, l.Period = n, periods[period]
		return nil
	}}
}

// oneOrMore reads a list, or one item without a list around it.
type oneOrMore struct {
	item    func() reader
	initial string
}

func (o oneOrMore) wanted() string { return o.item().wanted() + ", or a list of those" }

func (o oneOrMore) read(d *decoder, n *yaml.Node, where string) {
	if n.Kind == yaml.SequenceNode {
		list{least: 1, item: o.item, example: "one"}.read(d, n, where)
		return
	}
	readValue(d, o.item(), n, where)
}

func (o oneOrMore) absent(d *decoder) {
	if o.initial != "" {
		readValue(d, o.item(), &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: o.initial}, "")
	}
}
