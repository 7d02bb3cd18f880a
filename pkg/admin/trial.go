// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net/http"
	"time"
)

// Trials are what a gateway lets who may open its control socket try.
type Trials interface {
	// Try tries the rules and limits of another configuration file, or of a ratelimit.lua,
	// beside those that hold, for so long, until the context ends or somebody calls EndTrial;
	// then it tells what would have been dropped and refused. Nothing is.
	Try(ctx context.Context, ask TryPolicy) (Tried, error)
	// EndTrial makes the Try under way return.
	EndTrial() error
}

// TryPolicy asks for a trial.
type TryPolicy struct {
	Path string        `json:"path"` // absolute
	For  time.Duration `json:"for_ns"`
}

// Times of a trial.
const (
	ShortestTrial = time.Second
	LongestTrial  = 24 * time.Hour
)

// Tried is what a trial has found.
type Tried struct {
	Began time.Time     `json:"began"`
	Took  time.Duration `json:"took_ns"`
	Ended string        `json:"ended"` // why: time, asked, gone (who asked), reload or stop

	Packets TriedPackets `json:"packets"`
	// Requests and connections, of all clients.
	Requests         uint64 `json:"requests"`
	OK               uint64 `json:"ok"`      // of these, with a 2xx
	Refused          uint64 `json:"refused"` // of the requests, that a limit would have refused
	Connections      uint64 `json:"connections_refused"`
	AuthenticatedHit int    `json:"authenticated_clients_hit"` // API keys that would have lost something, or may have
	// Lost are replies with a 2xx that nobody would have got for certain: refused by a limit, or
	// of a source that a rule denies. AtRisk are those of sources of
	// which packets would have been dropped by limits: TCP sends these again.
	Lost   uint64 `json:"ok_lost"`
	AtRisk uint64 `json:"ok_at_risk"`

	Limits  []TriedLimit  `json:"limits"`
	Clients []TriedClient `json:"clients"` // who would have been hurt, the most hurt first; then, as ones that are not, at most 10
	Hurt    int           `json:"clients_hurt"`
	Unhurt  int           `json:"clients_not_hurt"`
	Bounds  []string      `json:"bounds"` // what the figures do not say
}

// TriedPackets are those of all interfaces.
type TriedPackets struct {
	Tried     uint64        `json:"tried"`
	Dropped   uint64        `json:"dropped"`
	Bytes     uint64        `json:"dropped_bytes"`
	Addresses int           `json:"addresses"` // sources of dropped ones, as far as they are told apart
	Unknown   uint64        `json:"dropped_of_other_addresses"`
	Reasons   []TriedReason `json:"reasons"`
}

// TriedReason is a part of the dropped packets.
type TriedReason struct {
	Interface string `json:"interface"`
	Reason    string `json:"reason"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// TriedLimit is what one limit would have refused.
type TriedLimit struct {
	Name string `json:"name"`
	Unit string `json:"unit"` // packets, or requests and connections
	Over uint64 `json:"over"`
}

// TriedClient is an address, or an address and an API key.
type TriedClient struct {
	Address  string `json:"address"`
	Key      string `json:"key,omitempty"` // its id
	Consumer string `json:"consumer,omitempty"`
	// Of the address, whoever speaks there.
	Packets uint64 `json:"packets_dropped"`
	Denied  uint64 `json:"packets_denied"` // of those dropped, by a rule that denies the source

	Requests    uint64 `json:"requests"`
	OK          uint64 `json:"ok"`
	Refused     uint64 `json:"refused"`
	Connections uint64 `json:"connections_refused"`
	Lost        uint64 `json:"ok_lost"`
	AtRisk      uint64 `json:"ok_at_risk"`
}

// IsHurt tells whether it would have lost anything.
func (c *TriedClient) IsHurt() bool { return c.Packets+c.Refused+c.Connections > 0 }

// tryPolicy answers when the trial is over: who asked and goes away ends it.
func (a *api) tryPolicy(t Trials) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var ask TryPolicy
		if err := decode(w, r, &ask); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		done, err := t.Try(r.Context(), ask)
		reply(w, a.log, done, err)
	}
}

func (a *api) endTrial(t Trials) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { reply(w, a.log, struct{}{}, t.EndTrial()) }
}

// Try as of Trials. ErrConfiguration when the file is wrong.
func (c *Client) Try(ctx context.Context, ask TryPolicy) (t Tried, err error) {
	return t, c.postUntil(ctx, "/v1/policy/try", ask, &t)
}

// EndTrial as of Trials.
func (c *Client) EndTrial() error { return c.post("/v1/policy/try/end", nil, &struct{}{}) }
