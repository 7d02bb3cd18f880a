// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// maxHops bounds the proxies that a request is believed to have come through.
const maxHops = 16

// clientAddress finds who asks. What a client says of that is never passed on; what a
// trusted proxy says is believed, as far back as the proxies are trusted: the last
// address that is not a trusted one is the client. A list with anything in it that is
// no address is believed up to there.
func clientAddress(ex *Exchange) *refusal {
	trust := &ex.snap.policy.Client
	if trust.Header == "" || !trusts(trust, ex.peer.Addr()) {
		return nil
	}
	for i := len(ex.fields) - 1; i >= 0; i-- {
		f := &ex.fields[i]
		if f.Kind != http1.Forwarded || !strings.EqualFold(unsafe.String(unsafe.SliceData(f.Name), len(f.Name)), trust.Header) {
			continue
		}
		if !ex.believe(trust, f.Value) {
			break
		}
	}
	return nil
}

// believe follows one field from its end; false: the client is found.
func (ex *Exchange) believe(trust *policy.ClientAddress, value []byte) bool {
	for len(value) > 0 {
		var last []byte
		value, last = cutLast(value)
		text := last
		if trust.Header == "Forwarded" {
			text = forwardedFor(last)
		}
		a, ok := parseHop(text)
		if !ok || len(ex.chain) == maxHops {
			return false
		}
		ex.chain = append(ex.chain, ex.peer.Addr())
		ex.peer = a
		if !trusts(trust, a.Addr()) {
			return false
		}
	}
	return true
}

// cutLast splits a list at its last comma outside of quotes.
func cutLast(list []byte) (rest, last []byte) {
	quoted := false
	for i := len(list) - 1; i >= 0; i-- {
		switch {
		case list[i] == '"':
			quoted = !quoted
		case list[i] == ',' && !quoted:
			return list[:i], bytes.TrimSpace(list[i+1:])
		}
	}
	return nil, bytes.TrimSpace(list)
}

// forwardedFor is the value of for= in an element of a Forwarded field: RFC 7239, 4.
func forwardedFor(element []byte) []byte {
	for len(element) > 0 {
		var pair []byte
		pair, element, _ = bytes.Cut(element, []byte(";"))
		name, value, ok := bytes.Cut(bytes.TrimSpace(pair), []byte("="))
		if ok && bytes.EqualFold(name, []byte("for")) {
			if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			return value
		}
	}
	return nil
}

// parseHop reads an address, with or without port; an IPv6 address with a port is in
// brackets. Without a port it is 0.
func parseHop(text []byte) (netip.AddrPort, bool) {
	if len(text) == 0 || len(text) > 64 || bytes.IndexByte(text, '%') >= 0 {
		return netip.AddrPort{}, false
	}
	// The string is not kept: an address without a zone holds none of its text.
	s := unsafe.String(&text[0], len(text))
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
	}
	if s[0] == '[' && strings.HasSuffix(s, "]") {
		if a, err := netip.ParseAddr(s[1 : len(s)-1]); err == nil && a.Is6() {
			return netip.AddrPortFrom(a.Unmap(), 0), true
		}
	}
	return netip.AddrPort{}, false
}

func trusts(t *policy.ClientAddress, a netip.Addr) bool {
	for _, p := range t.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// appendForwardedFor writes the client and, behind it, the proxies that it came through.
func (ex *Exchange) appendForwardedFor(b []byte) []byte {
	b = append(b, "X-Forwarded-For: "...)
	b = ex.peer.Addr().AppendTo(b)
	for _, hop := range slices.Backward(ex.chain) {
		b = append(b, ", "...)
		b = hop.AppendTo(b)
	}
	return b
}
