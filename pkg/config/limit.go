// SPDX-License-Identifier: Apache-2.0

package config

import "time"

// RequestLimit limits requests in the L7 plane.
type RequestLimit struct {
	Name    string
	Routes  []string // names; none: all routes
	Methods []string // none: all
	// Key is what has a bucket of its own: address (an IPv4 address, an IPv6 /64), route,
	// host, or header:NAME; several of them together. A request that lacks one of these
	// is not limited.
	Key      []string
	Requests uint64        // in each Period, from 1
	Period   time.Duration // a second, minute, hour or day
	Burst    uint64        // requests that may come at once, from 1
	// Delay is how many of the burst pass at once; those beyond wait for their turn. It is
	// Burst where none waits.
	Delay  uint64
	DryRun bool // told, not held
	Status int  // of the refusal, 400 to 599
}
