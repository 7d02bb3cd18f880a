// SPDX-License-Identifier: Apache-2.0

package config

import "time"

// Route is which requests it takes, by host, path, method and fields, and what
// becomes of them: an upstream, several by weight, a redirect or a reply.
type Route struct {
	Name string
	Host string // exact, or "*." and a domain; lower case, without port; "" for any
	Path string // prefix, which ends where a segment of the path does; "" when one of the next two is given

	PathExact string        `json:",omitempty"`
	PathRegex string        `json:",omitempty"` // RE2, of the whole path
	Methods   []string      `json:",omitempty"` // none: any
	Headers   []HeaderMatch `json:",omitempty"` // all of them must hold
	Listeners []string      `json:",omitempty"` // addresses by which it is reached; none: all

	Upstream string    `json:",omitempty"`
	Split    []Share   `json:",omitempty"`
	Redirect *Redirect `json:",omitempty"`
	Reply    *Reply    `json:",omitempty"`

	Maintenance    *Maintenance   `json:",omitempty"`
	Rewrite        *Rewrite       `json:",omitempty"`
	RequestHeaders *HeaderEdits   `json:",omitempty"`
	ReplyHeaders   *HeaderEdits   `json:",omitempty"`
	Timeouts       *RouteTimeouts `json:",omitempty"`
	BodyBytes      *int64         `json:",omitempty"` // nil: that of all requests; 0: no limit
	CORS           *CORS          `json:",omitempty"`
	Mirror         string         `json:",omitempty"` // an upstream that gets copies
	Keys           *RouteKeys     `json:",omitempty"` // nil: API keys are none of this route's business
	WebSocket      time.Duration  `json:",omitempty"` // of silence that one may have; 0: none is opened
}

// RouteKeys is what a route wants of API keys.
type RouteKeys struct {
	Optional bool     `json:"optional,omitempty"` // who has none is served, too
	Scopes   []string `json:"scopes,omitempty"`   // a key needs all of them
	Headers  []string `json:"headers"`            // where it is looked for, in this order; in Authorization behind Bearer
	Pass     bool     `json:"pass,omitempty"`     // the upstream gets the key, too
}

// HeaderMatch is a condition on a request's field: present, or by its value.
type HeaderMatch struct {
	Name   string  `json:"name"`
	Equal  *string `json:"equal,omitempty"`
	Prefix *string `json:"prefix,omitempty"`
}

// Share is an upstream and its part of a route's requests.
type Share struct {
	Upstream string
	Weight   int
}

// Redirect answers with another place.
type Redirect struct {
	Status   int    `json:"status"`
	Location string `json:"location"` // with $host, $path and $query
}

// Reply is a reply of the gateway's own.
type Reply struct {
	Status      int    `json:"status"`
	ContentType string `json:"content_type"`
	Body        []byte `json:"body,omitempty"` // of the file, where there is one and Load read it
	File        string `json:"-"`
}

// Maintenance answers 503 while it is enabled.
type Maintenance struct {
	Enabled     bool          `json:"enabled"`
	RetryAfter  time.Duration `json:"retry_after"`
	ContentType string        `json:"content_type"`
	Body        string        `json:"body"`
}

// Rewrite changes what the upstream is asked: first StripPrefix is taken off the
// path, then AddPrefix is put before it; or Regex is replaced.
type Rewrite struct {
	Host        string `json:"host,omitempty"`
	StripPrefix string `json:"strip_prefix,omitempty"`
	AddPrefix   string `json:"add_prefix,omitempty"`
	Regex       string `json:"regex,omitempty"`       // RE2
	Replacement string `json:"replacement,omitempty"` // with $1 or ${1}
}

// HeaderEdits change the fields of a message.
type HeaderEdits struct {
	Set    []HeaderValue `json:"set,omitempty"` // in place of all of that name
	Add    []HeaderValue `json:"add,omitempty"`
	Remove []string      `json:"remove,omitempty"`
}

// HeaderValue is a field.
type HeaderValue struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// RouteTimeouts stand in place of the general ones where they are not 0.
type RouteTimeouts struct {
	Header time.Duration `json:"header,omitempty"` // for the upstream's reply to begin
	Body   time.Duration `json:"body,omitempty"`   // between two reads of a body
	Total  time.Duration `json:"total,omitempty"`  // of an exchange
}

// CORS says which pages of other origins may read replies: the Fetch standard, 3.2.
type CORS struct {
	AllowOrigins  []string      `json:"allow_origins"`
	AllowMethods  []string      `json:"allow_methods,omitempty"`
	AllowHeaders  []string      `json:"allow_headers,omitempty"`
	ExposeHeaders []string      `json:"expose_headers,omitempty"`
	Credentials   bool          `json:"credentials,omitempty"`
	MaxAge        time.Duration `json:"max_age"`
}
