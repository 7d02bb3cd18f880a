// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// RequestLimit is a limit as workers take it.
type RequestLimit struct {
	Name string `json:"name"`
	// ID goes into the keys of its buckets: these outlive a generation as long as the
	// limit has its name and key.
	ID       uint64        `json:"id"`
	Routes   []int         `json:"routes,omitempty"` // index in Snapshot.Routes; none: all
	Methods  []string      `json:"methods,omitempty"`
	Tiers    []string      `json:"tiers,omitempty"` // of the API key; none: all requests
	Key      []KeyPart     `json:"key"`
	Requests uint64        `json:"requests"`
	Period   time.Duration `json:"period"`
	Burst    uint64        `json:"burst"`
	Delay    uint64        `json:"delay"` // of the burst, those that pass at once
	DryRun   bool          `json:"dry_run,omitempty"`
	Status   int           `json:"status"`
	Cluster  bool          `json:"cluster,omitempty"` // it holds over all gateways that share a redis
	Slot     int           `json:"slot"`              // in the zone; the supervisor fills it
}

// ConnectionLimit bounds what is open at once, as workers take it.
type ConnectionLimit struct {
	Name    string    `json:"name"`
	ID      uint64    `json:"id"`    // as of a RequestLimit
	Count   string    `json:"count"` // connections or requests
	Routes  []int     `json:"routes,omitempty"`
	Methods []string  `json:"methods,omitempty"`
	Tiers   []string  `json:"tiers,omitempty"`
	Key     []KeyPart `json:"key"`
	Max     uint64    `json:"max"`
	DryRun  bool      `json:"dry_run,omitempty"`
	Status  int       `json:"status"`
	Slot    int       `json:"slot"` // in the zone; the supervisor fills it
}

// KeyScript is a script with key functions.
type KeyScript = config.KeyScript

// KeyPart is one thing that tells a request's bucket from another's.
type KeyPart struct {
	Kind   string `json:"kind"`             // address, route, host, api_key, consumer, header, jwt or function
	Header string `json:"header,omitempty"` // its name; of jwt that of the token's
	Claim  string `json:"claim,omitempty"`  // of jwt
}

func compileRequestLimits(c *config.Config) ([]RequestLimit, error) {
	var out []RequestLimit
	for _, l := range c.RequestLimits {
		routes, err := routesNamed(c, l.Routes)
		if err != nil {
			return nil, fmt.Errorf("request limit %s: %w", l.Name, err)
		}
		out = append(out, RequestLimit{
			Name: l.Name, ID: limitID(l.Name, l.Key), Routes: routes, Methods: slices.Clone(l.Methods), Tiers: slices.Clone(l.Tiers), Key: compileKey(l.Key),
			Requests: l.Requests, Period: l.Period, Burst: l.Burst, Delay: l.Delay, DryRun: l.DryRun, Status: l.Status,
			Cluster: l.Cluster,
		})
	}
	return out, nil
}

func compileConnectionLimits(c *config.Config) ([]ConnectionLimit, error) {
	var out []ConnectionLimit
	for _, l := range c.ConnectionLimits {
		routes, err := routesNamed(c, l.Routes)
		if err != nil {
			return nil, fmt.Errorf("connection limit %s: %w", l.Name, err)
		}
		out = append(out, ConnectionLimit{
			Name: l.Name, ID: limitID(l.Count+" "+l.Name, l.Key), Count: l.Count, Routes: routes, Methods: slices.Clone(l.Methods), Tiers: slices.Clone(l.Tiers), Key: compileKey(l.Key),
			Max: l.Max, DryRun: l.DryRun, Status: l.Status,
		})
	}
	return out, nil
}

// routesNamed are the indexes of the routes.
func routesNamed(c *config.Config, names []string) (out []int, err error) {
	for _, name := range names {
		i := slices.IndexFunc(c.Routes, func(r config.Route) bool { return r.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no route %q", name)
		}
		out = append(out, i)
	}
	return out, nil
}

func compileKey(words []string) (out []KeyPart) {
	for _, k := range words {
		kind, name, _ := strings.Cut(k, ":")
		part := KeyPart{Kind: kind, Header: name}
		if kind == "jwt" {
			part.Claim, part.Header, _ = strings.Cut(name, ":")
			part.Header = cmp.Or(part.Header, "Authorization")
		}
		out = append(out, part)
	}
	return out
}

// limitID is the same as long as a limit has its name and key.
func limitID(name string, key []string) uint64 {
	id := fnv.New64a()
	fmt.Fprintf(id, "%q%q", name, key) // never fails
	return id.Sum64()
}
