// SPDX-License-Identifier: Apache-2.0

package policy

import (
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
	Key      []KeyPart     `json:"key"`
	Requests uint64        `json:"requests"`
	Period   time.Duration `json:"period"`
	Burst    uint64        `json:"burst"`
	Delay    uint64        `json:"delay"` // of the burst, those that pass at once
	DryRun   bool          `json:"dry_run,omitempty"`
	Status   int           `json:"status"`
	Slot     int           `json:"slot"` // in the zone; the supervisor fills it
}

// KeyPart is one thing that tells a request's bucket from another's.
type KeyPart struct {
	Kind   string `json:"kind"`             // address, route, host or header
	Header string `json:"header,omitempty"` // its name
}

func compileRequestLimits(c *config.Config) ([]RequestLimit, error) {
	routes := make(map[string]int, len(c.Routes))
	for i, r := range c.Routes {
		routes[r.Name] = i
	}
	var out []RequestLimit
	for _, l := range c.RequestLimits {
		r := RequestLimit{
			Name: l.Name, Methods: slices.Clone(l.Methods), Requests: l.Requests, Period: l.Period,
			Burst: l.Burst, Delay: l.Delay, DryRun: l.DryRun, Status: l.Status,
		}
		for _, name := range l.Routes {
			i, ok := routes[name]
			if !ok {
				return nil, fmt.Errorf("request limit %s: there is no route %q", l.Name, name)
			}
			r.Routes = append(r.Routes, i)
		}
		for _, k := range l.Key {
			kind, header, _ := strings.Cut(k, ":")
			r.Key = append(r.Key, KeyPart{Kind: kind, Header: header})
		}
		id := fnv.New64a()
		fmt.Fprintf(id, "%q%q", l.Name, l.Key) // never fails
		r.ID = id.Sum64()
		out = append(out, r)
	}
	return out, nil
}
