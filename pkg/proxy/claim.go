// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/base64"
	"slices"
)

// maxClaims is the longest payload of a token that is read, in bytes of base64.
const maxClaims = 8 << 10

// appendClaim appends a claim of a JSON Web Token (RFC 7519, 3): the text of a string as it
// stands there, or a number, true or false. Nothing is appended for other kinds of values, and
// for what is no token. The signature is not looked at: this is for limits behind something
// that verifies it.
func appendClaim(b, token, name []byte) []byte {
	_, rest, ok := bytes.Cut(token, []byte{'.'})
	payload, signature, more := bytes.Cut(rest, []byte{'.'})
	if !ok || !more || len(payload) > maxClaims || bytes.IndexByte(signature, '.') >= 0 {
		return b
	}
	// The text is decoded behind b, in whose room it is over soon.
	at, n := len(b), base64.RawURLEncoding.DecodedLen(len(payload))
	b = slices.Grow(b, n)
	n, err := base64.RawURLEncoding.Decode(b[at:at+n], payload)
	if err != nil {
		return b[:at]
	}
	value := claimIn(b[at:at+n], name)
	return append(b[:at], value...)
}

// claimIn is the value of the name in an object; of a name that comes again, the last one's.
func claimIn(text, name []byte) (value []byte) {
	s := jsonText(text)
	if !s.byte('{') {
		return nil
	}
	for first := true; ; first = false {
		if s.byte('}') {
			if s.space(); len(s) > 0 {
				return nil
			}
			return value
		}
		if !first && !s.byte(',') {
			return nil
		}
		key, ok := s.text()
		if !ok || !s.byte(':') {
			return nil
		}
		v, ok := s.value()
		if !ok {
			return nil
		}
		if bytes.Equal(key, name) {
			value = v
		}
	}
}

// jsonText is what is left to read of a JSON text. What is skipped is not checked in full.
type jsonText []byte

func (s *jsonText) space() { *s = bytes.TrimLeft(*s, " \t\r\n") }

// byte takes c, with space before it.
func (s *jsonText) byte(c byte) bool {
	s.space()
	if len(*s) == 0 || (*s)[0] != c {
		return false
	}
	*s = (*s)[1:]
	return true
}

// text takes a string; escapes in it stay as they are.
func (s *jsonText) text() ([]byte, bool) {
	if !s.byte('"') {
		return nil, false
	}
	for i := 0; i < len(*s); i++ {
		switch (*s)[i] {
		case '\\':
			i++
		case '"':
			out := (*s)[:i]
			*s = (*s)[i+1:]
			return out, true
		}
	}
	return nil, false
}

// value takes any value; it is nil for an object, a list and null.
func (s *jsonText) value() ([]byte, bool) {
	s.space()
	if len(*s) == 0 {
		return nil, false
	}
	switch (*s)[0] {
	case '"':
		return s.text()
	case '{', '[':
		return nil, s.nested()
	}
	n := bytes.IndexAny(*s, ",}] \t\r\n")
	if n <= 0 {
		return nil, false
	}
	out := (*s)[:n]
	*s = (*s)[n:]
	if string(out) == "null" {
		return nil, true
	}
	return out, true
}

// nested takes an object or a list, whatever is in it.
func (s *jsonText) nested() bool {
	for depth := 0; len(*s) > 0; {
		switch (*s)[0] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			if _, ok := s.text(); !ok {
				return false
			}
			continue
		}
		*s = (*s)[1:]
		if depth == 0 {
			return true
		}
	}
	return false
}
