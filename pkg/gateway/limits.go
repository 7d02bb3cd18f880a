// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/cluster"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Limits are what those of the configuration come to, in the order in which they are asked:
// scope and error bound are what operators are most often wrong about.
func Limits(c *config.Config) []admin.Limit {
	out := []admin.Limit{}
	for _, l := range c.RequestLimits {
		v := admin.Limit{
			Name: l.Name, Plane: "workers", Of: requestsOf(l.Methods, l.Routes, l.Tiers), Key: bucketFor(l.Key), Rate: fmt.Sprintf("%dr/%s", l.Requests, periods[l.Period]),
			Burst: l.Burst, Scope: "all workers together", Bound: "nothing, while no bucket is evicted", DryRun: l.DryRun,
			Total: float64(l.Requests) / l.Period.Seconds(),
		}
		if l.Delay < l.Burst {
			v.AtOnce = l.Delay
		}
		if l.Cluster {
			v.Scope = "all gateways of redis " + c.Redis.Address
			v.Bound = fmt.Sprintf("%d for each further gateway, made up for afterwards", cluster.Bound(l.Requests, l.Period, l.Burst))
		}
		out = append(out, v)
	}
	for _, l := range c.ConnectionLimits {
		of := "connections"
		if l.Count == "requests" {
			of = requestsOf(l.Methods, l.Routes, l.Tiers) + " under way"
		}
		out = append(out, admin.Limit{
			Name: l.Name, Plane: "workers", Of: of, Key: bucketFor(l.Key), Max: l.Max, Scope: "all workers together",
			Bound: "nothing, while there is room to count", DryRun: l.DryRun,
		})
	}
	for _, l := range c.PacketLimits {
		key, bound := l.Key, packetBounds[l.Key]
		if l.Port != 0 {
			key = fmt.Sprintf("port %d", l.Port)
		}
		if l.Key == "port" || l.Key == "interface" {
			bound = fmt.Sprintf("%d, on %d CPUs", l.Burst/8, runtime.NumCPU())
		}
		out = append(out, admin.Limit{
			Name: l.Name, Plane: "kernel", Of: l.Count, Key: key, Rate: fmt.Sprintf("%d/s", l.Rate), Burst: l.Burst, Scope: "each interface", Bound: bound, DryRun: l.DryRun,
			Total: float64(l.Rate) * float64(len(c.Interfaces)),
		})
	}
	for i := range out {
		out[i].Counts = map[string]uint64{}
	}
	return out
}

func requestsOf(methods, routes, tiers []string) string {
	of := "requests"
	if len(methods) > 0 {
		of = strings.Join(methods, "|")
	}
	if len(routes) > 0 {
		of += " of route " + strings.Join(routes, ", ")
	}
	if len(tiers) > 0 {
		of += " by keys of tier " + strings.Join(tiers, ", ")
	}
	return of
}

// bucketFor is what has a bucket of its own.
func bucketFor(key []string) string {
	if slices.Equal(key, []string{"function"}) {
		return "function, or address where it fails"
	}
	out := slices.Clone(key)
	for i, k := range out {
		if strings.HasPrefix(k, "jwt:") { // anybody can write one
			out[i] += " (not verified)"
		}
	}
	return strings.Join(out, " and ")
}

// packetBounds are what the kernel plane may let pass beyond a limit, by its key.
var packetBounds = map[string]string{
	"queue":  "nothing in native mode; in tc and generic mode one for each CPU",
	"source": "nothing for known sources; strangers once more the rate under a flood",
	"prefix": "once more the rate under a flood",
}

var periods = map[time.Duration]string{time.Second: "s", time.Minute: "m", time.Hour: "h", 24 * time.Hour: "d"}

// Limits are those in force, and what they did.
func (s *supervisor) Limits() ([]admin.Limit, error) {
	c, _ := s.inForce()
	out := Limits(c)
	outcomes := zone.LimitOutcomes()
	for slot := range s.zone.Layout().Limits - 1 {
		at := slices.IndexFunc(out, func(l admin.Limit) bool { return l.Plane == "workers" && l.Name == s.zone.LimitName(slot) })
		if at < 0 {
			continue
		}
		for _, o := range outcomes {
			for i := range s.zone.Slots() {
				out[at].Counts[o.String()] += s.zone.Worker(i).LoadLimit(slot, o)
			}
		}
	}
	var errs []error
	for i := range out {
		if out[i].Plane == "kernel" {
			out[i].Counts = map[string]uint64{"dropped": 0, "dropped_bytes": 0, "would_drop": 0}
		}
	}
	for _, pl := range s.planes {
		counts, err := pl.limitCounts()
		errs = append(errs, err)
		for _, n := range counts {
			at := slices.IndexFunc(out, func(l admin.Limit) bool { return l.Plane == "kernel" && l.Name == n.Name })
			if at < 0 {
				continue
			}
			out[at].Counts["dropped"] += n.Dropped
			out[at].Counts["dropped_bytes"] += n.DroppedBytes
			out[at].Counts["would_drop"] += n.DryRun
		}
	}
	return out, errors.Join(errs...)
}
