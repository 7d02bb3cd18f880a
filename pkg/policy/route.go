// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// Route is which requests it takes and what becomes of them: as of config.Route,
// upstreams by their index.
type Route struct {
	Name       string               `json:"name"`
	Host       string               `json:"host"`        // "" matches any
	PathPrefix string               `json:"path_prefix"` // "" when one of the next two holds
	PathExact  string               `json:"path_exact,omitempty"`
	PathRegex  string               `json:"path_regex,omitempty"`
	Methods    []string             `json:"methods,omitempty"`
	Headers    []config.HeaderMatch `json:"headers,omitempty"`
	Listeners  []string             `json:"listeners,omitempty"` // their addresses; none: all

	Upstream int              `json:"upstream"` // index in Snapshot.Upstreams; Local: answered here; of no meaning with Split
	Split    []Share          `json:"split,omitempty"`
	Redirect *config.Redirect `json:"redirect,omitempty"`
	Reply    *config.Reply    `json:"reply,omitempty"`

	Maintenance    *config.Maintenance   `json:"maintenance,omitempty"` // only while it is enabled
	Rewrite        *config.Rewrite       `json:"rewrite,omitempty"`
	RequestHeaders *config.HeaderEdits   `json:"request_headers,omitempty"`
	ReplyHeaders   *config.HeaderEdits   `json:"reply_headers,omitempty"`
	Timeouts       *config.RouteTimeouts `json:"timeouts,omitempty"`
	BodyBytes      *int64                `json:"body_bytes,omitempty"`
	CORS           *config.CORS          `json:"cors,omitempty"`
	Mirror         *int                  `json:"mirror,omitempty"` // index in Snapshot.Upstreams

	Keys *config.RouteKeys `json:"keys,omitempty"` // nil: it looks for no API key

	WebSocket time.Duration `json:"websocket,omitempty"` // of silence that one may have; 0: none is opened

	Slot int `json:"slot"` // in the zone; the supervisor fills it
}

// Local is the upstream of routes that the gateway answers itself.
const Local = -1

// Share is an upstream, by its index, and its part of a route's requests.
type Share struct {
	Upstream int `json:"upstream"`
	Weight   int `json:"weight"`
}

func compileRoute(r *config.Route, index map[string]int) (Route, error) {
	out := Route{
		Name: r.Name, Host: r.Host, PathPrefix: r.Path, PathExact: r.PathExact, PathRegex: r.PathRegex,
		Methods: slices.Clone(r.Methods), Headers: slices.Clone(r.Headers), Listeners: slices.Clone(r.Listeners), Upstream: Local,
		Redirect: shallow(r.Redirect), Reply: shallow(r.Reply), Rewrite: shallow(r.Rewrite), Timeouts: shallow(r.Timeouts),
		RequestHeaders: cloneEdits(r.RequestHeaders), ReplyHeaders: cloneEdits(r.ReplyHeaders),
		BodyBytes: shallow(r.BodyBytes), CORS: shallow(r.CORS), WebSocket: r.WebSocket,
	}
	if out.Keys = shallow(r.Keys); r.Keys != nil {
		out.Keys.Scopes, out.Keys.Headers = slices.Clone(r.Keys.Scopes), slices.Clone(r.Keys.Headers)
	}
	for i := range out.Headers {
		h := &out.Headers[i]
		h.Equal, h.Prefix = shallow(h.Equal), shallow(h.Prefix)
	}
	if r.Reply != nil {
		out.Reply.Body, out.Reply.File = slices.Clone(r.Reply.Body), "" // the file was read
	}
	if r.Maintenance != nil && r.Maintenance.Enabled {
		out.Maintenance = shallow(r.Maintenance)
	}
	if c := out.CORS; c != nil {
		c.AllowOrigins, c.AllowMethods = slices.Clone(c.AllowOrigins), slices.Clone(c.AllowMethods)
		c.AllowHeaders, c.ExposeHeaders = slices.Clone(c.AllowHeaders), slices.Clone(c.ExposeHeaders)
	}
	return out, out.refer(r, index)
}

// refer finds the upstreams that the route names.
func (out *Route) refer(r *config.Route, index map[string]int) error {
	find := func(name string) (int, error) {
		i, ok := index[name]
		if !ok {
			return 0, fmt.Errorf("no upstream %q", name)
		}
		return i, nil
	}
	var err error
	if r.Redirect == nil && r.Reply == nil && len(r.Split) == 0 {
		if out.Upstream, err = find(r.Upstream); err != nil {
			return err
		}
	}
	for _, s := range r.Split {
		to, err := find(s.Upstream)
		if err != nil {
			return err
		}
		out.Split = append(out.Split, Share{Upstream: to, Weight: s.Weight})
	}
	if r.Mirror != "" {
		to, err := find(r.Mirror)
		if err != nil {
			return err
		}
		out.Mirror = &to
	}
	return nil
}

func cloneEdits(e *config.HeaderEdits) *config.HeaderEdits {
	if e == nil {
		return nil
	}
	return &config.HeaderEdits{Set: slices.Clone(e.Set), Add: slices.Clone(e.Add), Remove: slices.Clone(e.Remove)}
}

func shallow[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// What a route holds of its configuration as it is.
type (
	Redirect    = config.Redirect
	Reply       = config.Reply
	Maintenance = config.Maintenance
	Rewrite     = config.Rewrite
	HeaderMatch = config.HeaderMatch
	HeaderEdits = config.HeaderEdits
	HeaderValue = config.HeaderValue
	Timeouts    = config.RouteTimeouts
	CORS        = config.CORS
	RouteKeys   = config.RouteKeys
	HealthCheck = config.HealthCheck
)
