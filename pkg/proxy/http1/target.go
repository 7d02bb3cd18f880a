// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bytes"
	"net/netip"
)

// ValidTarget checks origin-form and "*". The path follows RFC 3986 in that each
// percent sign begins an escape, and has no backslash, which some servers take for
// a slash, nor an escaped NUL, at which some end it. The query may hold any printable ASCII: clients in use send a lot of it.
func ValidTarget(t []byte) bool {
	path, query, _ := bytes.Cut(t, []byte{'?'})
	if !all(path, classPath) || !all(query, classTarget) {
		return false
	}
	for at := bytes.IndexByte(path, '%'); at >= 0; {
		if at+2 >= len(path) || !isHex(path[at+1]) || !isHex(path[at+2]) || path[at+1] == '0' && path[at+2] == '0' {
			return false
		}
		next := bytes.IndexByte(path[at+1:], '%')
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return true
}

// DotSegments tells whether the path of a target has a segment "." or "..", also
// with its dots escaped: an upstream may resolve it and so serve another path than
// the one that was routed.
func DotSegments(target []byte) bool {
	if bytes.IndexByte(target, '.') < 0 && bytes.IndexByte(target, '%') < 0 {
		return false // nearly all
	}
	path, _, _ := bytes.Cut(target, []byte{'?'})
	for len(path) > 0 {
		var segment []byte
		segment, path, _ = bytes.Cut(path, []byte{'/'})
		segment, _, _ = bytes.Cut(segment, []byte{';'}) // "..;x" is ".." to some servers
		if isDots(segment) {
			return true
		}
	}
	return false
}

func isDots(segment []byte) bool {
	dots := 0
	for len(segment) > 0 {
		switch {
		case segment[0] == '.':
			segment = segment[1:]
		case len(segment) >= 3 && segment[0] == '%' && segment[1] == '2' && segment[2]|0x20 == 'e':
			segment = segment[3:]
		default:
			return false
		}
		dots++
	}
	return dots == 1 || dots == 2
}

// ValidHost accepts host[:port]: a name of letters, digits, '-', '.', '_' and '~'
// (escapes and the other characters that RFC 3986 allows name no host in use), an
// IPv4 address, or an IPv6 address in brackets; the port, if there is a colon, is a
// decimal number up to 65535.
func ValidHost(h []byte) bool {
	if len(h) == 0 || len(h) > MaxHost {
		return false
	}
	name, port := h, []byte(nil)
	if h[0] == '[' {
		end := bytes.IndexByte(h, ']')
		if end < 3 || bytes.IndexByte(h[:end], '%') >= 0 {
			return false
		}
		if a, err := netip.ParseAddr(string(h[1:end])); err != nil || !a.Is6() {
			return false
		}
		if end+1 == len(h) {
			return true
		}
		if h[end+1] != ':' {
			return false
		}
		return validPort(h[end+2:])
	}
	if colon := bytes.IndexByte(h, ':'); colon >= 0 {
		name, port = h[:colon], h[colon+1:]
		if !validPort(port) {
			return false
		}
	}
	return len(name) > 0 && name[0] != '.' && !bytes.Contains(name, []byte("..")) && all(name, classHost)
}

// MaxHost is the length of the longest host that is accepted, port included.
const MaxHost = 255

func validPort(b []byte) bool {
	n, ok := decimal(b)
	return ok && len(b) <= 5 && n <= 65535
}

func isHex(c byte) bool {
	return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
