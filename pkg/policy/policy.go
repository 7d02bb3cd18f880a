// SPDX-License-Identifier: Apache-2.0

// Package policy compiles configuration into what the two planes take: tables for
// the kernel plane, a snapshot for the workers. It is pure: the same values give
// the same result, and nothing is read or written.
package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// Policy is one generation of both planes.
type Policy struct {
	Generation uint64
	Tables     Tables
	Pinholes   []Pinhole
	Snapshot   Snapshot
}

// Snapshot is the L7 plane of one generation, as it is sent to the workers.
type Snapshot struct {
	Generation uint64     `json:"generation"`
	Routes     []Route    `json:"routes"`
	Upstreams  []Upstream `json:"upstreams"`
	// RequestLimits are asked in this order.
	RequestLimits    []RequestLimit      `json:"request_limits,omitempty"`
	KeyScript        *KeyScript          `json:"key_script,omitempty"` // nil: no limit has a key function
	ConnectionLimits []ConnectionLimit   `json:"connection_limits,omitempty"`
	Escalations      []Escalation        `json:"escalations,omitempty"`
	Trial            *Trial              `json:"trial,omitempty"` // nil: none is under way
	Timeouts         config.Timeouts     `json:"timeouts"`
	Sizes            config.RequestSizes `json:"sizes"`
	Connections      int                 `json:"connections"` // per worker
	Listeners        []Listener          `json:"listeners"`
	Handshakes       Handshakes          `json:"handshakes"` // per worker
	Client           ClientAddress       `json:"client"`
	TCP              config.TCP          `json:"tcp"`
	// A wait for the worker that is longer, and stands, has requests refused; 0: none does.
	OverloadDelay time.Duration `json:"overload_delay"`
	Keys          KeyTimes      `json:"keys"`
	// Of so many requests whose client decided nothing one begins a trace that is recorded; 0:
	// none does.
	TraceOneIn int `json:"trace_one_in,omitempty"`
	// KeySlot is where limits that API keys have of their own count in the zone; the
	// supervisor fills it.
	KeySlot int `json:"key_slot"`
}

// KeyTimes are how long workers believe what they know of API keys.
type KeyTimes struct {
	Known   time.Duration `json:"known"`   // of one that there is
	Unknown time.Duration `json:"unknown"` // of one that there is not
	Stale   time.Duration `json:"stale"`   // of one that there is, while the store does not answer
}

// Listener is an address that is served, and how.
type Listener struct {
	Address            string `json:"address"` // as in the configuration: its name
	TLS                bool   `json:"tls"`
	HTTP2              bool   `json:"http2"`
	MinTLS             string `json:"min_tls"`             // 1.2 or 1.3
	ClientCertificates string `json:"client_certificates"` // off, request or require
}

// Handshakes bound the full TLS handshakes of a worker; 0 is no bound.
type Handshakes = config.Handshakes

// ClientAddress says whose word about a client is believed.
type ClientAddress struct {
	Trusted       []netip.Prefix `json:"trusted"`
	ProxyProtocol bool           `json:"proxy_protocol"` // they begin each connection with a PROXY header
	Header        string         `json:"header"`         // "", X-Forwarded-For or Forwarded
}

// Upstream is the servers behind a route.
type Upstream struct {
	Name           string        `json:"name"`
	Servers        []Server      `json:"servers"`
	Protocol       string        `json:"protocol"` // http1 or http2
	ConnectTimeout time.Duration `json:"connect_timeout"`
	HeaderTimeout  time.Duration `json:"header_timeout"`
	IdleTimeout    time.Duration `json:"idle_timeout"`
	MaxConnections int           `json:"max_connections"` // per worker
	MaxIdle        int           `json:"max_idle"`        // per worker
	Balance        string        `json:"balance"`         // round_robin, least_conn, p2c or hash
	HashBy         string        `json:"hash_by"`         // address, path, or the name of a field
	Retries        int           `json:"retries"`         // on another connection, for each exchange
	MaxFails       int           `json:"max_fails"`       // in a row, then a server is ejected; 0: never
	FailTime       time.Duration `json:"fail_time"`       // of the first ejection
	MaxPending     int           `json:"max_pending"`     // exchanges that wait for a connection, per worker
	PendingTimeout time.Duration `json:"pending_timeout"`
	TLS            *UpstreamTLS  `json:"tls,omitempty"`
	MaxRequests    int           `json:"max_requests"`     // under way, per worker
	TotalTimeout   time.Duration `json:"total_timeout"`    // of an exchange; 0: none
	SlowStart      time.Duration `json:"slow_start"`       // of a server that comes back
	Resolve        time.Duration `json:"resolve"`          // between two look-ups of a server's name
	Health         *HealthCheck  `json:"health,omitempty"` // nil: servers are not asked
	// Filled by the supervisor: where the upstream counts in the zone, and which of what it
	// watches the upstream is; 0 for servers that nobody watches.
	Slot  int    `json:"slot"`
	Watch uint64 `json:"watch,omitempty"`
}

// Server is one of an upstream.
type Server struct {
	Address string `json:"address"`           // HOST:PORT
	Host    string `json:"host,omitempty"`    // the name that the address was resolved from; "": that of the address
	Weight  int    `json:"weight"`            // its share of the requests; 0 is 1
	Down    bool   `json:"down,omitempty"`    // its checks fail
	Drained bool   `json:"drained,omitempty"` // by hand: it gets no requests, however the others are
}

// Servers are those that an upstream has at a time: those of its configuration with names
// resolved, and what is known of their health.
type Servers struct {
	Watch   uint64   `json:"watch"`
	Version uint64   `json:"version"` // higher in each list of a watch
	List    []Server `json:"list"`
}

// ServersAt are servers of weight 1.
func ServersAt(addresses ...string) []Server {
	out := make([]Server, len(addresses))
	for i, a := range addresses {
		out[i] = Server{Address: a, Weight: 1}
	}
	return out
}

// UpstreamTLS is how an upstream's servers are spoken with.
type UpstreamTLS struct {
	ServerName string `json:"server_name"` // "": the host of each server
	Verify     bool   `json:"verify"`
	CA         []byte `json:"ca,omitempty"` // PEM; none: the system's
}

func compileServers(list []config.Server) []Server {
	out := make([]Server, len(list))
	for i, s := range list {
		out[i] = Server{Address: s.Address, Weight: s.Weight}
	}
	return out
}

func compileTLS(t *config.UpstreamTLS) *UpstreamTLS {
	if t == nil {
		return nil
	}
	return &UpstreamTLS{ServerName: t.ServerName, Verify: t.Verify, CA: slices.Clone(t.CA)}
}

// Compile makes the policy of a configuration that config.Parse accepted. It shares
// no memory with it.
func Compile(c *config.Config, generation uint64) (*Policy, error) {
	prefixes, err := compilePrefixes(c)
	if err != nil {
		return nil, err
	}
	p := &Policy{
		Generation: generation,
		Tables: Tables{
			Prefixes: prefixes, PortGuard: compileGuard(c), Spread: c.Spread, StaleAfter: c.Verdicts.StaleAfter,
			Budgets: Budgets{
				Essential: compileBudget(c.Budgets.Essential), Echo: compileBudget(c.Budgets.Echo),
				Unclassified: compileBudget(c.Budgets.Unclassified),
			},
		},
		Snapshot: Snapshot{
			Generation: generation, Timeouts: c.Timeouts, Sizes: c.Limits, Connections: c.Connections, Handshakes: c.Handshakes,
			OverloadDelay: c.OverloadDelay, TCP: c.TCP, TraceOneIn: c.Telemetry.OTLP.TraceOneIn,
			Keys: KeyTimes{Known: c.Keys.Known, Unknown: c.Keys.Unknown, Stale: c.Keys.Stale},
			Client: ClientAddress{
				Trusted: slices.Clone(c.Client.Trusted), ProxyProtocol: c.Client.ProxyProtocol, Header: c.Client.Header,
			},
		},
	}
	for _, h := range c.Admin {
		p.Pinholes = append(p.Pinholes, Pinhole{Source: unmap(h.Source), Port: h.Port})
	}
	for _, l := range c.Listeners {
		p.Snapshot.Listeners = append(p.Snapshot.Listeners, Listener{
			Address: l.Address, TLS: l.TLS, HTTP2: l.HTTP2, MinTLS: l.MinVersion, ClientCertificates: l.ClientCertificates,
		})
	}
	for _, l := range c.PacketLimits {
		limit, err := compileLimit(l)
		if err != nil {
			return nil, fmt.Errorf("compile packet limit %s: %w", l.Name, err)
		}
		p.Tables.Limits = append(p.Tables.Limits, limit)
	}
	index := make(map[string]int, len(c.Upstreams))
	for i, u := range c.Upstreams {
		index[u.Name] = i
		p.Snapshot.Upstreams = append(p.Snapshot.Upstreams, Upstream{
			Name: u.Name, Servers: compileServers(u.Servers), Protocol: u.Protocol, ConnectTimeout: u.ConnectTimeout, HeaderTimeout: u.HeaderTimeout,
			IdleTimeout: u.IdleTimeout, MaxConnections: u.MaxConnections, MaxIdle: u.MaxIdle,
			Balance: u.Balance, HashBy: u.HashBy, Retries: u.Retries, MaxFails: u.MaxFails, FailTime: u.FailTime,
			MaxPending: u.MaxPending, PendingTimeout: u.PendingTimeout, MaxRequests: u.MaxRequests, TotalTimeout: u.TotalTimeout,
			SlowStart: u.SlowStart, Resolve: u.Resolve, Health: shallow(u.Health), TLS: compileTLS(u.TLS),
		})
	}
	for i := range c.Routes {
		r, err := compileRoute(&c.Routes[i], index)
		if err != nil {
			return nil, fmt.Errorf("compile route %s: %w", c.Routes[i].Name, err)
		}
		p.Snapshot.Routes = append(p.Snapshot.Routes, r)
	}
	if p.Snapshot.RequestLimits, err = compileRequestLimits(c); err != nil {
		return nil, fmt.Errorf("compile %w", err)
	}
	p.Snapshot.KeyScript = shallow(c.KeyScript)
	if p.Snapshot.ConnectionLimits, err = compileConnectionLimits(c); err != nil {
		return nil, fmt.Errorf("compile %w", err)
	}
	if p.Snapshot.Escalations, err = compileEscalations(c); err != nil {
		return nil, fmt.Errorf("compile %w", err)
	}
	return p, nil
}
