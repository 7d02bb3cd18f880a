// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Config is the whole configuration, defaults filled in.
type Config struct {
	Path             string // the file it was read from
	Instance         string // filled by the caller
	Interfaces       []Interface
	Allow            []netip.Prefix // packets from these meet no deny rule and no verdict
	Deny             []netip.Prefix // packets from these are dropped in the kernel plane
	PortGuard        PortGuard
	Admin            []Pinhole
	PacketLimits     []PacketLimit
	RequestLimits    []RequestLimit
	Escalations      []Escalation
	ConnectionLimits []ConnectionLimit
	KeyScript        *KeyScript // nil: no limit has a key function
	Budgets          Budgets
	Verdicts         Verdicts
	Spread           bool // flows over CPUs, where there are more of these than queues
	Listeners        []Listener
	Tickets          SessionTickets
	Handshakes       Handshakes
	Client           ClientAddress
	Telemetry        Telemetry
	AdminAPI         AdminAPI
	Workers          int    // 0: one for each allowed core
	Pin              bool   // each worker to a core
	WorkerUser       string // the user that workers run as
	Connections      int    // per worker
	OpenFiles        uint64 // of each worker, as far as the machine allows
	WorkerMemory     int64  // bytes; 0: a part of the machine's
	TCP              TCP
	// A wait for the worker that is longer, and stands, has requests refused; 0: none does.
	OverloadDelay time.Duration
	Timeouts      Timeouts
	Limits        RequestSizes
	Routes        []Route
	Upstreams     []Upstream
	Keys          Keys
	Redis         Redis
	Log           Log
	State         string // directory for the made certificate
	Buffers       Buffers
}

// Interface is a network interface of the kernel plane.
type Interface struct {
	Name string
	Mode string // native, generic, tc or auto
}

// PortGuard lists the ports that new flows may go to, beside those of the gateway.
type PortGuard struct {
	Mode     string // off, count or enforce
	TCP, UDP []uint16
}

// Pinhole is who may always reach a TCP port.
type Pinhole struct {
	Source netip.Prefix
	Port   uint16
}

// PacketLimit limits packets in the kernel plane.
type PacketLimit struct {
	Name   string
	Key    string // source, prefix, port, queue or interface
	Count  string // syns, packets or bytes
	Port   uint16 // of the key port
	Rate   uint64 // per second
	Burst  uint64 // absent in the file: those of one second
	DryRun bool   // told, not held
}

// Budgets are packets per second of each receive queue that no limit is for; 0 is none.
type Budgets struct {
	Essential    uint64 // ARP, neighbour discovery, DHCP, packet-too-big
	Echo         uint64 // ICMP echo requests
	Unclassified uint64 // later fragments, deep VLAN tags and headers, what is not IP
}

// Verdicts are what the gateway holds against clients in the kernel plane.
type Verdicts struct {
	StaleAfter time.Duration // of silence of the supervisor: they are ignored
	Guard      int           // from so many other good identities at an address none goes beyond thin; 0: any
	Share      bool          // with all gateways of the redis
}

// Listener is an address that workers serve. Its address is its name, too.
type Listener struct {
	Address            string
	TLS                bool // else in the clear
	HTTP2              bool
	Certificates       []Certificate // none: one is made; the first is for names that none has
	ServerNames        []string      // of the certificate that is made
	MinVersion         string        // 1.2 or 1.3
	ClientCertificates string        // off, request or require
	ClientCA           string        // PEM file
}

// Certificate is the files of one certificate of a listener.
type Certificate struct {
	Chain string // PEM
	Key   string // PEM
	OCSP  string // a staple, DER; "": none
}

// SessionTickets say what resumes a TLS session.
type SessionTickets struct {
	Rotate time.Duration // a key's time, and as long again for what it encrypted
	File   string        // of keys that several gateways share; "": they are made
}

// Handshakes bound the full TLS handshakes of a worker; 0 is no bound.
type Handshakes struct {
	Concurrent int `json:"concurrent"`
	PerSecond  int `json:"per_second"`
}

// ClientAddress is whose word about a client is believed.
type ClientAddress struct {
	Trusted       []netip.Prefix // proxies in front of the gateway
	ProxyProtocol bool           // they begin each connection with a PROXY header
	Header        string         // the field in which they name the client: "", X-Forwarded-For or Forwarded
}

// Telemetry is where metrics are served.
type Telemetry struct {
	Address     string
	Certificate Certificate // none: in the clear
	File        string      // "": none
	OTLP        OTLP
}

// OTLP is the Collector that gets metrics and spans.
type OTLP struct {
	Endpoint   string        // http://HOST:PORT, or https://HOST:PORT for TLS; "": none
	CA         string        // a file of authorities in PEM; "": the system's
	Interval   time.Duration // between two readings of the metrics
	TraceOneIn int           // of so many requests whose client decided nothing one is traced; 0: none
}

// AdminAPI is where an operator's tools and the dashboard are served, in TLS.
type AdminAPI struct {
	Address     string      // "": nowhere
	ServerNames []string    // that it goes by, beside localhost and addresses
	Certificate Certificate // none: one is made
	ClientCA    string      // PEM file of the authorities that clients' certificates may be from; "": none helps
	Clients     []AdminClient
}

// AdminClient is whose certificate lets them use the admin API.
type AdminClient struct {
	Subject string // the common name of its subject
	Role    string // viewer, operator or admin
}

// TCP is options of client connections' sockets.
type TCP struct {
	NoDelay     bool          `json:"nodelay"`      // TCP_NODELAY: what is written goes out at once
	NoPush      bool          `json:"nopush"`       // TCP_CORK: but within a long reply only whole segments do
	KeepAlive   time.Duration `json:"keepalive"`    // of silence until the kernel asks whether the peer is there; 0: never
	UserTimeout time.Duration `json:"user_timeout"` // TCP_USER_TIMEOUT: how long what was sent may go unacknowledged; 0: the kernel's
	FastOpen    int           `json:"fastopen"`     // TCP_FASTOPEN: data in a SYN, for so many that wait to be accepted; 0: none
}

// Timeouts of client connections.
type Timeouts struct {
	Keepalive time.Duration `json:"keepalive"` // between requests
	Header    time.Duration `json:"header"`    // for a whole request head
	Body      time.Duration `json:"body"`      // between two reads of a body
	Write     time.Duration `json:"write"`     // for the client to take what is sent
	Handshake time.Duration `json:"handshake"` // for TLS
	Drain     time.Duration `json:"drain"`     // for exchanges and WebSockets to end when the gateway stops
	MinRate   int           `json:"min_rate"`  // bytes a second, of bodies and replies; 0: any
}

// RequestSizes bound what a request may hold.
type RequestSizes struct {
	LineBytes    int   `json:"line_bytes"`
	HeaderBytes  int   `json:"header_bytes"`
	HeaderFields int   `json:"header_fields"`
	BodyBytes    int64 `json:"body_bytes"` // 0: no limit
}

// Upstream is the servers behind a route.
type Upstream struct {
	Name           string
	Servers        []Server
	Protocol       string // http1 or http2
	ConnectTimeout time.Duration
	HeaderTimeout  time.Duration
	IdleTimeout    time.Duration
	MaxConnections int // per worker
	MaxIdle        int // per worker
	Balance        string
	HashBy         string        // address, path, or the name of a field
	Retries        int           // of an exchange, on another connection
	MaxFails       int           // in a row, then a server is left alone; 0: never
	FailTime       time.Duration // for this long at first
	MaxPending     int           // exchanges that wait for a connection, per worker
	PendingTimeout time.Duration
	MaxRequests    int           // under way, per worker
	TotalTimeout   time.Duration // of an exchange; 0: none
	SlowStart      time.Duration // of a server that comes back
	Resolve        time.Duration // between two look-ups of a server's name
	Health         *HealthCheck  `json:",omitempty"` // nil: servers are not asked
	TLS            *UpstreamTLS  `json:",omitempty"` // nil: in the clear
}

// UpstreamTLS is how an upstream's servers are spoken with.
type UpstreamTLS struct {
	ServerName string // "": the host of each server
	Verify     bool
	CA         []byte // PEM; none: the system's
}

// Keys are where API keys are kept, and how long workers believe what they know of them.
type Keys struct {
	Store   string // file or redis
	File    string
	Known   time.Duration // of one that there is
	Unknown time.Duration // of one that there is not
	Stale   time.Duration // of one that there is, while the store does not answer
}

// Redis is a Valkey or Redis server that several gateways share.
type Redis struct {
	Address      string // HOST:PORT; "": there is none
	User         string // "": the default one
	PasswordFile string // "": no password
	TLS          bool
	Database     int
	Prefix       string // of all names there
}

// Log says where the logs go: a path, or "-" for standard output and standard error; "off" for
// no access log.
type Log struct {
	Access   string
	Format   string     // of the access log: combined or json
	Sampling []Sampling // the first that is for an exchange's route decides; without one it is logged
	Redact   []string   // names of query parameters whose values are not logged
	Error    string
	Level    string // of the error log: debug, info, warn, error or crit
	Syslog   Syslog
}

// Sampling leaves exchanges out of the access log and syslog, some of those that went well.
type Sampling struct {
	Routes []string // empty: all
	Share  float64  // that is logged
	Slow   time.Duration
}

// Syslog is whom the access log and the error log are sent to as well.
type Syslog struct {
	Address   string // "": nobody
	Transport string // udp, tcp or tls
	Facility  string
	Size      int    // of a message, bytes
	CA        string // PEM file that the receiver's certificate is from; "": the system's
}

// Buffers are the sizes in shared memory, from buffers.conf.
type Buffers struct {
	SharedMemoryZone int64 // bytes
	AccessRing       int64 // bytes per worker; the zone rounds it down to a power of two
}

// Defaults is the configuration of a file that gives routes and upstreams alone,
// without those.
func Defaults() *Config {
	c := &Config{}
	d := &decoder{}
	gateway(c).absent(d)
	buffers(&c.Buffers).absent(d)
	return c
}

// Error is one fault in a file.
type Error struct {
	File         string
	Line, Column int // both from 1
	Msg          string
}

// Error is "gateway.yaml:12:5: routes[0].upstrem: unknown key; did you mean …".
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
}

// Load reads path, and buffers.conf and ratelimit.lua in the same directory if they are
// there; run runs the latter, and nil leaves it out. A file that cannot be read is an
// fs.PathError, one with faults as of Parse.
func Load(path string, run Script) (*Config, error) {
	limits := limitsPath(path)
	if _, err := os.Stat(limits); errors.Is(err, os.ErrNotExist) {
		limits = ""
	}
	return LoadWith(path, limits, run)
}

// LoadWith is Load with another file in the place of ratelimit.lua; "": none.
func LoadWith(path, limits string, run Script) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	buffers, err := os.ReadFile(buffersPath(path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, err := parse(path, text, buffers, readBounded)
	if err != nil || run == nil || limits == "" {
		return c, err
	}
	source, err := os.ReadFile(limits)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	made, err := run(limits, source)
	if err != nil {
		return nil, err
	}
	if err := c.AddLimits(limits, made); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(made, func(call Call) bool { return call.KeyFunction }) {
		c.KeyScript = &KeyScript{Name: filepath.Base(limits), Source: source, Hash: Hash(made)}
	}
	return c, nil
}

// Parse reads the text of both files; path is for messages and for relative paths
// in the text. Its error joins an *Error for each fault, in the order of the text.
// Files that the text names are not looked at.
func Parse(path string, text, buffersText []byte) (*Config, error) {
	return parse(path, text, buffersText, nil)
}

func parse(path string, text, buffersText []byte, open func(string) ([]byte, error)) (*Config, error) {
	c := &Config{Path: path}
	d := &decoder{file: path, open: open}
	d.document(gateway(c), text)
	b := &decoder{file: buffersPath(path)}
	b.lines(buffers(&c.Buffers), buffersText)
	if err := errors.Join(append(d.faults(), b.faults()...)...); err != nil {
		return nil, err
	}
	return c, nil
}

// buffersPath is where buffers.conf is looked for.
func buffersPath(path string) string {
	return filepath.Join(filepath.Dir(path), "buffers.conf")
}

// readBounded reads what may stand in a reply, and a byte more when there is more.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	return io.ReadAll(io.LimitReader(f, maxReply+1))
}

// Files are those that a configuration is read from, besides what they name.
func Files(path string) []string { return []string{path, buffersPath(path), limitsPath(path)} }
