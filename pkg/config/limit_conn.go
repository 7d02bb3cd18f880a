// SPDX-License-Identifier: Apache-2.0

package config

import "slices"

// ConnectionLimit bounds how much is open at once in the L7 plane.
type ConnectionLimit struct {
	Name    string
	Count   string   // connections, or requests under way: of HTTP/2 these are streams
	Routes  []string // of requests: names; none: all
	Methods []string // of requests; none: all
	Tiers   []string `json:",omitempty"` // of requests' API keys; none: all requests
	Key     []string // as of a RequestLimit; of connections the address alone
	Max     uint64   // at once, for each key, from 1
	DryRun  bool     // told, not held
	Status  int      // of the refusal of a request, 400 to 599
}

func connectionLimit(c *Config, keyed bool) mapping {
	l := &ConnectionLimit{}
	return mapping{
		rows: []row{
			{"name", required, label(&l.Name)},
			{"count", "connections", oneOf(&l.Count, "connections", "requests")},
			{"key", none, limitKey(&l.Key, keyed)},
			{"match", none, limitMatch(&l.Routes, &l.Methods, &l.Tiers)},
			{"max", required, whole(&l.Max, 1, maxBurst)},
			{"dry_run", "false", boolean(&l.DryRun)},
			{"status", "429", whole(&l.Status, 400, 599)},
		},
		check: func(f *found) {
			checkLimitMatch(f, c, l.Routes)
			checkLimitName(f, c, l.Name)
			if l.Count == "connections" {
				for _, key := range []string{"match", "status"} {
					if f.values[key] != nil {
						f.fail(key, `a connection has none before its first request: take it out, or say count = "requests"`)
					}
				}
				if !f.faulty["key"] && !slices.Equal(l.Key, []string{"address"}) {
					f.fail("key", `of a connection nothing but its address is known before its first request: want "address", or count = "requests"`)
				}
			}
			c.ConnectionLimits = append(c.ConnectionLimits, *l)
		},
	}
}

// checkLimitName: the limits of the L7 plane count under their names.
func checkLimitName(f *found, c *Config, name string) {
	if name != "" && (slices.ContainsFunc(c.RequestLimits, func(l RequestLimit) bool { return l.Name == name }) ||
		slices.ContainsFunc(c.ConnectionLimits, func(l ConnectionLimit) bool { return l.Name == name })) {
		f.fail("name", "another limit is called %s", plain(name))
	}
}
