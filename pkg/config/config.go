// SPDX-License-Identifier: Apache-2.0

// Package config reads text and yields values: gateway.yaml, and buffers.conf
// beside it for what concerns the shared zone. Every fault is reported with file,
// line and column, all of them at once, and a misspelt key with the nearest known
// one. Nothing is applied here.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Config is the whole configuration, defaults filled in.
type Config struct {
	Path         string // the file it was read from
	Instance     string // filled by the caller
	Interfaces   []Interface
	Deny         []netip.Prefix // packets from these are dropped in the kernel plane
	PacketLimits []PacketLimit
	Listeners    []Listener
	Telemetry    Telemetry
	Workers      int    // 0: one for each allowed core
	Pin          bool   // each worker to a core
	WorkerUser   string // the user that workers run as
	Connections  int    // per worker
	Timeouts     Timeouts
	Limits       RequestSizes
	Routes       []Route
	Upstreams    []Upstream
	Log          Log
	State        string // directory for the made certificate
	Buffers      Buffers
}

// Interface is a network interface of the kernel plane.
type Interface struct {
	Name string
	Mode string // native or generic
}

// PacketLimit limits packets in the kernel plane.
type PacketLimit struct {
	Name  string
	Key   string // source or queue
	Count string // syns or packets
	Rate  uint64 // per second
	Burst uint64 // packets; 0 means the rate of a second
}

// Listener is an address that workers serve.
type Listener struct {
	Address     string
	Certificate string   // PEM file; with Key, or neither
	Key         string   // PEM file
	ServerNames []string // of the certificate that is made when none is given
	MinVersion  string   // 1.2 or 1.3
}

// Telemetry is where metrics are served.
type Telemetry struct{ Address string }

// Timeouts of client connections.
type Timeouts struct {
	Keepalive time.Duration `json:"keepalive"` // between requests
	Header    time.Duration `json:"header"`    // for a whole request head
	Body      time.Duration `json:"body"`      // between two reads of a body
	Write     time.Duration `json:"write"`     // for the client to take what is sent
	Handshake time.Duration `json:"handshake"` // for TLS
}

// RequestSizes bound what a request may hold.
type RequestSizes struct {
	LineBytes    int   `json:"line_bytes"`
	HeaderBytes  int   `json:"header_bytes"`
	HeaderFields int   `json:"header_fields"`
	BodyBytes    int64 `json:"body_bytes"` // 0: no limit
}

// Route sends requests to an upstream.
type Route struct {
	Name     string
	Host     string // exact, lower case; "" for any
	Path     string // prefix
	Upstream string
}

// Upstream is the servers behind a route.
type Upstream struct {
	Name           string
	Servers        []string // host:port
	ConnectTimeout time.Duration
	HeaderTimeout  time.Duration
	IdleTimeout    time.Duration
	MaxConnections int // per worker
	MaxIdle        int // per worker
}

// Log says where logs go: a path, "-" (access: standard output) or "off".
type Log struct{ Access string }

// Buffers are the sizes in shared memory, from buffers.conf.
type Buffers struct {
	SharedMemoryZone int64 // bytes
	AccessRing       int64 // bytes per worker
}

// Defaults is the configuration of an empty file, which lacks only routes.
func Defaults() *Config {
	return &Config{
		Telemetry:   Telemetry{Address: "127.0.0.1:9090"},
		Pin:         true,
		WorkerUser:  "gateway_worker",
		Connections: 16384,
		Timeouts: Timeouts{
			Keepalive: 75 * time.Second, Header: 10 * time.Second, Body: 60 * time.Second,
			Write: 60 * time.Second, Handshake: 10 * time.Second,
		},
		Limits:  RequestSizes{LineBytes: 8 << 10, HeaderBytes: 32 << 10, HeaderFields: 100},
		Log:     Log{Access: "-"},
		State:   "/var/lib/xgw",
		Buffers: Buffers{SharedMemoryZone: 128 << 20, AccessRing: 1 << 20},
	}
}

// Error is one fault in a file.
type Error struct {
	File         string
	Line, Column int
	Msg          string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Msg)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
}

// Load reads path, and buffers.conf in the same directory if it is there.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	buffers, err := os.ReadFile(filepath.Join(filepath.Dir(path), "buffers.conf"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, text, buffers)
}

// Parse reads the text of both files; path is for messages. Its error joins an
// *Error for each fault.
func Parse(path string, text, buffers []byte) (*Config, error) {
	c := Defaults()
	c.Path = path
	d := &decoder{file: path}
	d.gateway(c, text)
	b := &decoder{file: filepath.Join(filepath.Dir(path), "buffers.conf")}
	b.buffers(c, buffers)
	if err := errors.Join(append(d.errs, b.errs...)...); err != nil {
		return nil, err
	}
	return c, nil
}
