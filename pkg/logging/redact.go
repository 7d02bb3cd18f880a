// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"

	"github.com/xgw-project/xgw/pkg/zone"
)

// redacted stands for what is not logged.
const redacted = "***"

// redaction takes secrets out of the targets and referers of records: values of query
// parameters by their names, what stands before the @ of a URL, and API keys of this gateway
// wherever they are. Other header fields, Authorization and cookies among them, are in no
// record. It is not safe for concurrent use.
type redaction struct {
	names           map[string]bool // as folded leaves them
	target, referer []byte
}

func newRedaction(names []string) *redaction {
	x := &redaction{names: map[string]bool{}}
	for _, name := range names {
		x.names[string(folded(nil, []byte(name)))] = true
	}
	return x
}

// apply changes the record, which borrows from x until the next one.
func (x *redaction) apply(r *zone.AccessRecord) {
	x.target, r.Target = x.clean(x.target, r.Target)
	x.referer, r.Referer = x.clean(x.referer, r.Referer)
}

// clean gives s without secrets, in the buffer where it differs.
func (x *redaction) clean(buffer, s []byte) (kept, out []byte) {
	if bytes.IndexByte(s, '=') < 0 && bytes.IndexByte(s, '%') < 0 && bytes.IndexByte(s, '@') < 0 && !bytes.Contains(s, keyStart) {
		return buffer, s
	}
	b, from := buffer[:0], 0
	leave := func(at, end int) {
		if at < from || at == end { // within what is left out already
			return
		}
		b = append(append(b, s[from:at]...), redacted...)
		from = end
	}
	name, nested := -1, false // where the parameter's name begins
	before, query := byte(0), false
	for i := 0; i < len(s); {
		c, width := decoded(s, i)
		last := before
		before = c
		switch c {
		case '?', '&', ';', '#':
			name, nested, query = i+width, width > 1, true
		case '/':
			if last != '/' {
				break
			}
			if at, end := userInfo(s, i+width, query); at < end {
				leave(at, end)
				i = end
				continue
			}
		case '=':
			if name >= 0 && x.secret(s[name:i]) {
				end := valueEnd(s, i+width, nested || width > 1)
				leave(i+width, end)
				i = end
				name = -1
				continue
			}
			name = -1
		case 'x':
			if at, end := ownKey(s, i); at < end {
				leave(at, end)
				i = end
				continue
			}
		}
		i += width
	}
	if from == 0 {
		return buffer, s
	}
	b = append(b, s[from:]...)
	return b, b
}

// decoded is the byte at i, or that which a percent sign there stands for, and how long it is.
func decoded(s []byte, i int) (c byte, width int) {
	if s[i] == '%' && i+2 < len(s) {
		if high, low := unhex(s[i+1]), unhex(s[i+2]); high < 16 && low < 16 {
			return high<<4 | low, 3
		}
	}
	return s[i], 1
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 16
}

// valueEnd is where the value ends that begins at i: at the next &, which within a URL that
// is itself a parameter may be an encoded one. Everything else may be part of a secret.
func valueEnd(s []byte, i int, nested bool) int {
	for i < len(s) {
		c, width := decoded(s, i)
		if c == '&' && (width == 1 || nested) {
			return i
		}
		i += width
	}
	return i
}

// secret tells whether the name, or a part of it as in user[password], is one of the list.
func (x *redaction) secret(name []byte) bool {
	var room [64]byte
	for len(name) > 0 {
		part, rest := name, []byte(nil)
		for i := 0; i < len(name); {
			c, width := decoded(name, i)
			if c == '[' || c == ']' || c == '.' {
				part, rest = name[:i], name[i+width:]
				break
			}
			i += width
		}
		if x.names[string(folded(room[:0], part))] {
			return true
		}
		name = rest
	}
	return false
}

// folded is the name in lower case, without what words are set apart by: api_key, Api-Key and
// apiKey are one.
func folded(b, name []byte) []byte {
	for i := 0; i < len(name); {
		c, width := decoded(name, i)
		i += width
		switch {
		case c >= 'A' && c <= 'Z':
			b = append(b, c|0x20)
		case c == '-' || c == '_' || c == '+' || c == ' ':
		default:
			b = append(b, c)
		}
	}
	return b
}

// userInfo is where a URL whose authority begins at i has a name and a password; within the
// query of another one it is a parameter's, and ends with that.
func userInfo(s []byte, i int, query bool) (at, end int) {
	at, end = i, i
	for i < len(s) {
		c, width := decoded(s, i)
		switch {
		case c == '/' || c == '?' || c == '#' || c == '&' && query:
			return at, end
		case c == '@':
			end = i
		}
		i += width
	}
	return at, end
}

var keyStart = []byte("xgw_")

// ownKey is where the secret of an API key is that begins at i: xgw_ID_SECRET.
func ownKey(s []byte, i int) (at, end int) {
	if !bytes.HasPrefix(s[i:], keyStart) {
		return 0, 0
	}
	at = i + len(keyStart)
	for at < len(s) && isWordByte(s[at]) {
		at++
	}
	if at == len(s) || s[at] != '_' {
		return 0, 0
	}
	return at + 1, valueEnd(s, at+1, false)
}

func isWordByte(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '-'
}
