// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/xgw-project/xgw/pkg/policy"
)

// limitMatch is which exchanges a limit is for, and what has a bucket of its own.
type limitMatch struct {
	routes  []int    // none: all
	methods []string // none: all
	tiers   []string // of the API key; none: all exchanges
	key     []policy.KeyPart
	headers [][]byte // by part of the key; nil where that is no header
	claims  [][]byte // likewise, of tokens
	name    string   // of the limit, by which its key function is found
	// Whose functions: those of the snapshot, or of the trial. nil: its key is no function.
	functions KeyFunctions
}

func newLimitMatch(name string, routes []int, methods, tiers []string, key []policy.KeyPart) (limitMatch, error) {
	l := limitMatch{name: name, routes: routes, methods: methods, tiers: tiers, key: key}
	if len(key) == 0 {
		return l, errors.New("it has no key")
	}
	for _, k := range key {
		var header, claim []byte
		switch k.Kind {
		case "address", "route", "host", "api_key", "consumer", "function":
		case "header", "jwt":
			header, claim = []byte(k.Header), []byte(k.Claim)
		default:
			return l, fmt.Errorf("key %q", k.Kind)
		}
		l.headers, l.claims = append(l.headers, header), append(l.claims, claim)
	}
	return l, nil
}

// isForRoute tells whether it is for the route at the index.
func (l *limitMatch) isForRoute(route int) bool {
	return len(l.routes) == 0 || slices.Contains(l.routes, route)
}

// isFor tells whether the limit is for this exchange, and leaves its key in limiting.key.
func (l *limitMatch) isFor(ex *Exchange) bool {
	if len(l.methods) > 0 && !hasMethod(l.methods, ex.method) {
		return false
	}
	if len(l.tiers) > 0 && (ex.apiKey == nil || !slices.Contains(l.tiers, ex.apiKey.Tier)) {
		return false
	}
	b := ex.limiting.key[:0]
	for i, k := range l.key {
		at := len(b)
		b = append(b, 0, 0) // its length, so that no two lists of parts are alike
		switch k.Kind {
		case "address":
			b = appendAddress(b, ex.peer.Addr())
		case "route":
			b = append(b, ex.route.name...)
		case "host":
			b = append(b, ex.routing.host...)
		case "function":
			b = ex.appendFunctionKey(b, l)
		case "api_key":
			if ex.apiKey != nil {
				b = append(b, ex.apiKey.ID...)
			}
		case "consumer":
			if ex.apiKey != nil {
				b = append(b, ex.apiKey.Consumer...)
			}
		case "jwt":
			token := ex.header(l.headers[i])
			if bearer := afterBearer(token); bearer != nil {
				token = bearer
			}
			b = appendClaim(b, token, l.claims[i])
		default:
			b = append(b, ex.header(l.headers[i])...)
		}
		n := len(b) - at - 2
		if n == 0 {
			ex.limiting.key = b
			return false
		}
		binary.BigEndian.PutUint16(b[at:], uint16(n))
	}
	ex.limiting.key = b
	return true
}

// appendAddress appends whom an address stands for: itself, or of IPv6 the /64.
func appendAddress(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		four := a.As4()
		return append(b, four[:]...)
	}
	sixteen := a.As16()
	return append(b, sixteen[:8]...)
}

// header is the value of the request's first field of that name; nil: there is none.
func (ex *Exchange) header(name []byte) []byte {
	for i := range ex.fields {
		if f := &ex.fields[i]; len(f.Name) == len(name) && bytes.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return nil
}
