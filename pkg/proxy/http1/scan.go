// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// Classes of bytes.
const (
	classToken  = 1 << iota // RFC 9110, 5.6.2
	classValue              // RFC 9110, 5.5: visible, space, tab, and bytes above ASCII
	classTarget             // printable ASCII except '#'
	classPath               // that, less what ends a path and the backslash
	classHost
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		if c == '\t' || c >= 0x20 && c != 0x7f {
			t[c] |= classValue
		}
		if c > 0x20 && c < 0x7f && c != '#' {
			t[c] |= classTarget
			if c != '?' && c != '\\' {
				t[c] |= classPath
			}
		}
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if letter || c < 0x80 && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0 {
			t[c] |= classToken
		}
		if letter || c < 0x80 && bytes.IndexByte([]byte("-._~"), byte(c)) >= 0 {
			t[c] |= classHost
		}
	}
	return t
}()

func all(b []byte, of uint8) bool {
	for _, c := range b {
		if class[c]&of == 0 {
			return false
		}
	}
	return true
}

func isToken(b []byte) bool { return len(b) > 0 && all(b, classToken) }

// equalFold compares ASCII without case; word is in lower case.
func equalFold(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != word[i] {
			return false
		}
	}
	return true
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// line cuts the first line off b: it must end with CR LF and hold no other CR.
// found is false when b has no LF yet.
func line(b []byte) (first, rest []byte, found bool, fault *Fault) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return nil, b, false, nil
	}
	if i == 0 || b[i-1] != '\r' {
		return nil, b, true, FaultLineEnd
	}
	return b[:i-1], b[i+1:], true, nil
}

// headEnd finds the empty line that ends a head and returns the length with it.
// from is where the search begins: what an earlier call has seen already.
func headEnd(b []byte, from int) int {
	from = max(from-3, 0)
	i := bytes.Index(b[from:], []byte("\r\n\r\n"))
	if i < 0 {
		return -1
	}
	return from + i + 4
}

// decimal reads digits only; no sign, no space, no overflow.
func decimal(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	n := int64(0)
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// list calls fn for each element of a comma-separated list; false stops it.
func list(b []byte, fn func(element []byte) bool) bool {
	for len(b) > 0 {
		element := b
		if i := bytes.IndexByte(b, ','); i >= 0 {
			element, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if element = trim(element); len(element) > 0 && !fn(element) {
			return false
		}
	}
	return true
}
