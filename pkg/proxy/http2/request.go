// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"errors"
)

// This file decides which requests are well-formed (RFC 9113, 8.2 and 8.3; RFC 9110). It refuses and never repairs: what
// is repaired here could be read in another way by an upstream.

// requestParse is the state between the fields of a request.
type requestParse struct {
	bytes   int
	count   int
	regular bool // a field that is not a pseudo field was seen
	seen    pseudo
	host    []byte
	cookies int
	length  bool // content-length was seen
}

type pseudo uint8

const (
	pseudoMethod pseudo = 1 << iota
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoProtocol
)

// fieldOverhead is what each field counts for beside its bytes (RFC 9113, 6.5.2).
const fieldOverhead = 32

var (
	errName       = errors.New("field name is not valid")
	errValue      = errors.New("field value is not valid")
	errConnection = errors.New("connection-specific field")
	errTE         = errors.New("te is not trailers")
	errPseudo     = errors.New("pseudo field is unknown, doubled or after regular fields")
	errMissing    = errors.New("pseudo field is missing")
	errPath       = errors.New(":path is not valid")
	errScheme     = errors.New(":scheme is neither http nor https")
	errConnect    = errors.New("CONNECT is not served, or :protocol is not in its place")
	errAuthority  = errors.New(":authority is missing or not valid")
	errHost       = errors.New("host is doubled or differs from :authority")
	errLength     = errors.New("content-length is doubled or not valid")
	errNoBody     = errors.New("content-length without a body")
	errTrailer    = errors.New("field is not allowed in trailers")
)

// addField takes one decoded field of the request.
func (s *Stream) addField(cfg *Config, name, value string) {
	p := &s.parse
	p.count++
	p.bytes += len(name) + len(value) + fieldOverhead
	if s.tooLarge || p.count > cfg.MaxFields || p.bytes > cfg.MaxHeaderBytes {
		s.tooLarge = true
		return
	}
	if s.bad != nil {
		return
	}
	if len(name) > 0 && name[0] == ':' {
		s.bad = s.addPseudo(name, value)
		return
	}
	p.regular = true
	if !validName(name) {
		s.bad = errName
		return
	}
	if !validValue(value) {
		s.bad = errValue
		return
	}
	var keep bool
	if keep, s.bad = s.special(name, value); keep && s.bad == nil {
		s.fields = append(s.fields, Field{Name: s.save(name), Value: s.save(value)})
	}
}

// save copies v to the arena. When that grows, what was saved before stays where it is.
func (s *Stream) save(v string) []byte {
	at := len(s.arena)
	s.arena = append(s.arena, v...)
	return s.arena[at:len(s.arena):len(s.arena)]
}

func (s *Stream) addPseudo(name, value string) error {
	var bit pseudo
	var to *[]byte
	switch name {
	case ":method":
		bit, to = pseudoMethod, &s.method
	case ":scheme":
		bit, to = pseudoScheme, &s.scheme
	case ":authority":
		bit, to = pseudoAuthority, &s.authority
	case ":path":
		bit, to = pseudoPath, &s.path
	case ":protocol":
		bit, to = pseudoProtocol, &s.protocol
	default:
		return errPseudo
	}
	if s.parse.regular || s.parse.seen&bit != 0 {
		return errPseudo
	}
	s.parse.seen |= bit
	if !validValue(value) {
		return errValue
	}
	*to = s.save(value)
	return nil
}

// special looks at the fields that mean something to a connection or to the framing of the request. keep says that the
// field goes to the handler.
func (s *Stream) special(name, value string) (keep bool, err error) {
	p := &s.parse
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return false, errConnection
	case "te":
		if value != "trailers" {
			return false, errTE
		}
	case "cookie":
		p.cookies++
	case "host":
		if p.host != nil || len(value) == 0 {
			return false, errHost
		}
		p.host = s.save(value)
		return false, nil
	case "content-length":
		n, ok := parseLength(value)
		if p.length || !ok {
			return false, errLength
		}
		p.length, s.length = true, n
	}
	return true, nil
}

// parseLength reads up to 18 digits, which fit.
func parseLength(v string) (int64, bool) {
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	n := int64(0)
	for i := range len(v) {
		d := v[i] - '0'
		if d > 9 {
			return 0, false
		}
		n = 10*n + int64(d)
	}
	return n, true
}

// finishFields looks at the request as a whole.
func (s *Stream) finishFields(end bool) {
	s.noBody = end
	s.bad = s.checkPseudo()
	if s.bad == nil && end && s.length > 0 {
		s.bad = errNoBody
	}
	if s.parse.cookies > 1 {
		s.joinCookies()
	}
}

func (s *Stream) checkPseudo() error {
	const must = pseudoMethod | pseudoScheme | pseudoPath
	p := &s.parse
	extended := p.seen&pseudoProtocol != 0
	switch {
	case extended != (string(s.method) == "CONNECT"), extended && !s.c.cfg.Protocols:
		return errConnect
	case extended && (len(s.protocol) == 0 || s.noBody || p.length):
		return errConnect // RFC 8441, 4: the stream is a tunnel from its first byte
	case p.seen&must != must:
		return errMissing
	case !validMethod(s.method):
		return errPseudo
	case string(s.scheme) != "https" && string(s.scheme) != "http":
		return errScheme
	case !s.validPath():
		return errPath
	}
	switch {
	case p.seen&pseudoAuthority == 0:
		s.authority = p.host
	case p.host != nil && !bytes.EqualFold(p.host, s.authority):
		return errHost
	}
	if !validAuthority(s.authority) {
		return errAuthority
	}
	return nil
}

func (s *Stream) validPath() bool {
	p := s.path
	if len(p) == 0 || p[0] != '/' {
		return string(p) == "*" && string(s.method) == "OPTIONS"
	}
	for _, b := range p {
		if b <= ' ' || b >= 0x7f || b == '#' {
			return false
		}
	}
	return true
}

// joinCookies puts cookie crumbs together (RFC 9113, 8.2.3), in the place of the first.
func (s *Stream) joinCookies() {
	var first *Field
	at := len(s.arena)
	kept := s.fields[:0]
	for _, f := range s.fields {
		if string(f.Name) != "cookie" {
			kept = append(kept, f)
			continue
		}
		if first == nil {
			kept = append(kept, f)
			first = &kept[len(kept)-1]
		} else {
			s.arena = append(s.arena, "; "...)
		}
		s.arena = append(s.arena, f.Value...)
	}
	first.Value = s.arena[at:len(s.arena):len(s.arena)]
	clear(s.fields[len(kept):])
	s.fields = kept
}

func (s *Stream) allowed(methods []string) bool {
	if s.protocol != nil {
		return true
	}
	for _, m := range methods {
		if string(s.method) == m {
			return true
		}
	}
	return false
}

// addTrailer takes one decoded trailer field.
func (s *Stream) addTrailer(cfg *Config, name, value string) {
	s.trailBytes += len(name) + len(value) + fieldOverhead
	if s.tooLarge || s.trailBytes > cfg.MaxHeaderBytes || len(s.trailers) >= cfg.MaxFields {
		s.tooLarge = true
		return
	}
	switch {
	case s.bad != nil:
		return
	case !validName(name): // pseudo fields among them
		s.bad = errName
		return
	case !validValue(value):
		s.bad = errValue
		return
	}
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade",
		"te", "host", "content-length", "trailer", "cookie", "authorization":
		s.bad = errTrailer
		return
	}
	at := len(s.trailArena)
	s.trailArena = append(append(s.trailArena, name...), value...)
	b := s.trailArena[at:len(s.trailArena):len(s.trailArena)]
	s.trailers = append(s.trailers, Field{Name: b[:len(name):len(name)], Value: b[len(name):]})
}

// connectionSpecific says whether a response field of HTTP/1.1 has no place in HTTP/2.
func connectionSpecific(name []byte) bool {
	switch string(name) {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

// Each character class is 128 bits, one per ASCII character, in two words.
type class [2]uint64

func (c *class) has(b byte) bool { return b < 0x80 && c[b>>6]>>(b&63)&1 != 0 }

func classOf(chars string) (c class) {
	for i := range len(chars) {
		c[chars[i]>>6] |= 1 << (chars[i] & 63)
	}
	return c
}

const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// Tables, never written to.
var (
	nameClass      = classOf(digits + lower + "!#$%&'*+-.^_`|~")         // RFC 9110, 5.6.2, without upper case
	methodClass    = classOf(digits + lower + upper + "!#$%&'*+-.^_`|~") // the same with upper case
	authorityClass = classOf(digits + lower + upper + "-._~%!$&'()*+,;=:[]")
)

func validName[T string | []byte](name T) bool {
	for i := range len(name) {
		if !nameClass.has(name[i]) {
			return false
		}
	}
	return len(name) > 0
}

func validMethod(method []byte) bool {
	for _, b := range method {
		if !methodClass.has(b) {
			return false
		}
	}
	return len(method) > 0
}

// validAuthority wants a host and perhaps a port; userinfo has an @.
func validAuthority(authority []byte) bool {
	for _, b := range authority {
		if !authorityClass.has(b) {
			return false
		}
	}
	return len(authority) > 0 && authority[0] != ':'
}

// validValue refuses control characters other than tab, and white space at the ends (RFC 9113, 8.2.1; RFC 9110, 5.5).
func validValue[T string | []byte](value T) bool {
	for i := range len(value) {
		if b := value[i]; b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	if n := len(value); n > 0 {
		return !isBlank(value[0]) && !isBlank(value[n-1])
	}
	return true
}

func isBlank(b byte) bool { return b == ' ' || b == '\t' }
