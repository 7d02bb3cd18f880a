// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Inspection is what a gateway tells of itself beyond its state, and what of that may be
// changed for now.
type Inspection interface {
	// Limits are those in force, of both planes, and what they did.
	Limits() ([]Limit, error)
	// Configuration is what is in force, defaults filled in, by the keys of the file. It has no
	// secrets: these are in files that it names, and fields' values are left out. It is for
	// encoding/json.
	Configuration() any
	// Datapath tells of each interface what is attached, its programs, tables and their fill, and
	// what they counted. It is for encoding/json.
	Datapath() (any, error)
	// Certificates are those that listeners show, and how handshakes went.
	Certificates() (Certificates, error)
	// Explain tells what would become of a request. Nothing is counted or charged for it.
	Explain(ExplainRequest) (Explained, error)
	// Busiest are at most k sources, keys or routes, those with the most requests lately first.
	// ErrNotFound for any other kind.
	Busiest(kind string, k int) ([]Busy, error)
	// Events are told as they happen.
	Events() *Events
	// Logging is the error log's level.
	Logging() Logging
	// SetLogging changes it, in the supervisor and all workers.
	SetLogging(SetLogging) error
	// SetDrained has whoever balances over gateways leave this one out, or take it again.
	SetDrained(drained bool) error
}

// Logging is from which level on the error log is written.
type Logging struct {
	Level string    `json:"level"`          // debug, info, warn, error or crit
	Until time.Time `json:"until,omitzero"` // then it goes back; zero: it stays
	Back  string    `json:"back,omitempty"` // to this one
}

// SetLogging asks for another level.
type SetLogging struct {
	Level string        `json:"level"`
	For   time.Duration `json:"for_ns,omitempty"` // up to 24 h, then it goes back; 0: until the next start
}

// Limit is one limit in force, and what it did.
type Limit struct {
	Name  string `json:"name"`
	Plane string `json:"plane"`           // kernel or workers
	Of    string `json:"of"`              // what it counts
	Key   string `json:"key"`             // what has a bucket of its own
	Rate  string `json:"rate,omitempty"`  // as in ratelimit.lua; absent where it bounds what is open at once
	Burst uint64 `json:"burst,omitempty"` // 0: it has none
	// AtOnce is how many of the burst do not wait for their turn.
	AtOnce uint64 `json:"at_once,omitempty"`
	Max    uint64 `json:"max,omitempty"` // open at once; 0: any
	Scope  string `json:"scope"`         // what holds it together
	// Total is what may pass for one key in a second, over all that hold the limit each for itself.
	Total  float64           `json:"total_per_second,omitempty"`
	Bound  string            `json:"bound"` // how much more may pass than rate x t + burst
	DryRun bool              `json:"dry_run"`
	Counts map[string]uint64 `json:"counts"` // by what became of it
}

// Certificate is one that clients are shown.
type Certificate struct {
	Listener    string    `json:"listener"` // its address, admin_api or telemetry
	Names       []string  `json:"names"`
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Days        int       `json:"days_left"` // whole ones; negative when it has expired
	Key         string    `json:"key"`       // kind and size
	Fingerprint string    `json:"sha256"`
	OCSPUntil   time.Time `json:"ocsp_until,omitzero"` // of the staple that is sent with it
}

// Certificates are all, with the handshakes of all workers by outcome.
type Certificates struct {
	Certificates []Certificate     `json:"certificates"`
	Handshakes   map[string]uint64 `json:"handshakes"`
	Resumed      float64           `json:"resumed_ratio"` // of those that succeeded
	TicketKeys   int               `json:"ticket_keys"`   // that sessions can be resumed with
}

// ExplainRequest is a request to be explained.
type ExplainRequest struct {
	Method string            `json:"method,omitempty"` // GET when empty
	Host   string            `json:"host,omitempty"`
	Path   string            `json:"path"`
	Fields map[string]string `json:"fields,omitempty"`
	// Client is its address; empty: what depends on it is not told.
	Client string `json:"client,omitempty"`
	Key    string `json:"key,omitempty"` // the id of its API key
	// Listener is the address by which it comes; empty: the first listener's.
	Listener string `json:"listener,omitempty"`
}

// Explained is what would become of it.
type Explained struct {
	Route    string           `json:"route,omitempty"` // empty: 404
	Ends     string           `json:"ends"`            // how
	Upstream []string         `json:"upstream"`        // one of these gets it
	Servers  []Server         `json:"servers"`         // of these
	Key      string           `json:"key,omitempty"`   // how the route takes the API key
	Limits   []ExplainedLimit `json:"limits"`          // that it is charged to
	Verdict  *Verdict         `json:"verdict,omitempty"`
	// Packets is what becomes of the SYN that would begin the connection, by interface.
	Packets map[string]ExplainedPacket `json:"packets"`
}

// ExplainedLimit is a limit that a request would be held to.
type ExplainedLimit struct {
	Name  string `json:"name"`
	Value string `json:"value"` // of its key: whose bucket it is
}

// ExplainedPacket is what the kernel plane would do with a packet.
type ExplainedPacket struct {
	Outcome string   `json:"outcome"`
	Rule    string   `json:"rule,omitempty"`
	Verdict string   `json:"verdict,omitempty"`
	Over    []string `json:"over,omitempty"` // limits
}

// Busy is a source, key or route with many requests.
type Busy struct {
	Name        string    `json:"name"`
	PerSecond   float64   `json:"requests_per_second"` // lately
	Requests    uint64    `json:"requests"`            // since then, at least
	ClientFault uint64    `json:"status_4xx"`
	ServerFault uint64    `json:"status_5xx"`
	Limited     uint64    `json:"limited"`
	Sent        uint64    `json:"sent_bytes"`
	From        string    `json:"last_from,omitempty"` // a key's
	Since       time.Time `json:"since"`
	Last        time.Time `json:"last,omitzero"`
}

// Bounds of what Busiest is asked for.
const (
	usualBusy = 20
	mostBusy  = 512
)

// inspections are the endpoints of Inspection.
func (a *api) inspections() []endpoint {
	return []endpoint{
		{"GET /v1/limits", Viewer, func(w http.ResponseWriter, _ *http.Request) {
			list, err := a.control.Limits()
			reply(w, a.log, list, err)
		}},
		{"GET /v1/config", Viewer, func(w http.ResponseWriter, _ *http.Request) {
			reply(w, a.log, a.control.Configuration(), nil)
		}},
		{"GET /v1/datapath", Viewer, func(w http.ResponseWriter, _ *http.Request) {
			all, err := a.control.Datapath()
			reply(w, a.log, all, err)
		}},
		{"GET /v1/certificates", Viewer, func(w http.ResponseWriter, _ *http.Request) {
			all, err := a.control.Certificates()
			reply(w, a.log, all, err)
		}},
		{"GET /v1/top/{kind}", Viewer, a.top},
		{"POST /v1/explain", Viewer, a.explain},
		{"GET /v1/events", Viewer, a.events},
		{"POST /v1/drain", Operator, a.drain},
		{"GET /v1/log", Viewer, func(w http.ResponseWriter, _ *http.Request) { reply(w, a.log, a.control.Logging(), nil) }},
		{"POST /v1/log", Operator, a.setLogging},
	}
}

func (a *api) top(w http.ResponseWriter, r *http.Request) {
	k, err := parameter(r, "k", usualBusy, 1, mostBusy)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	list, err := a.control.Busiest(r.PathValue("kind"), k)
	reply(w, a.log, list, err)
}

func (a *api) explain(w http.ResponseWriter, r *http.Request) {
	var ask ExplainRequest
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	done, err := a.control.Explain(ask)
	reply(w, a.log, done, err)
}

func (a *api) setLogging(w http.ResponseWriter, r *http.Request) {
	var ask SetLogging
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	err := a.control.SetLogging(ask)
	reply(w, a.log, a.control.Logging(), err)
}

func (a *api) drain(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Drained *bool `json:"drained"`
	}
	err := decode(w, r, &ask)
	if err == nil && ask.Drained == nil {
		err = fmt.Errorf("%w: drained is missing: true or false", ErrInvalid)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	reply(w, a.log, struct{}{}, a.control.SetDrained(*ask.Drained))
}

// Limits as of Inspection.
func (c *Client) Limits() (list []Limit, err error) { return list, c.get("/v1/limits", &list) }

// Explain as of Inspection.
func (c *Client) Explain(ask ExplainRequest) (x Explained, err error) {
	return x, c.post("/v1/explain", ask, &x)
}

// Logging as of Inspection.
func (c *Client) Logging() (l Logging, err error) { return l, c.get("/v1/log", &l) }

// SetLogging as of Inspection. ErrInvalid when there is no such level.
func (c *Client) SetLogging(ask SetLogging) (l Logging, err error) {
	return l, c.post("/v1/log", ask, &l)
}

// SetDrained as of Inspection.
func (c *Client) SetDrained(drained bool) error {
	return c.post("/v1/drain", map[string]bool{"drained": drained}, &struct{}{})
}

// Events calls tell with each one, until the context ends or the gateway does.
func (c *Client) Events(ctx context.Context, tell func(Event)) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway/v1/events", nil)
	if err != nil {
		return err
	}
	r, err := c.http.Do(q)
	if err != nil {
		return c.unreachable(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return c.read(r, nil)
	}
	return readEvents(r.Body, tell)
}
