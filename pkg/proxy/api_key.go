// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// routeKeys is what a route wants of API keys. Its refusals are made once: RFC 6750, 3, and for a
// key that is not there RFC 9110, 11.6.1.
type routeKeys struct {
	optional bool
	pass     bool
	scopes   []string
	headers  []keyHeader

	missing, refused, scope *refusal
}

// keyHeader is a field that may hold a key.
type keyHeader struct {
	name   []byte
	bearer bool // behind that word: Authorization
}

func newRouteKeys(p *policy.RouteKeys, route string) *routeKeys {
	if p == nil {
		return nil
	}
	k := &routeKeys{optional: p.Optional, pass: p.Pass, scopes: p.Scopes}
	for _, name := range p.Headers {
		k.headers = append(k.headers, keyHeader{name: []byte(name), bearer: strings.EqualFold(name, "Authorization")})
	}
	challenge := func(format string, a ...any) []http1.Field {
		value := fmt.Appendf(nil, "Bearer realm=%q", route)
		return []http1.Field{{Name: []byte("WWW-Authenticate"), Value: fmt.Appendf(value, format, a...)}}
	}
	k.missing = &refusal{status: 401, outcome: zone.RequestKeyMissing, text: "an API key is needed", fields: challenge("")}
	k.refused = &refusal{status: 401, outcome: zone.RequestKeyRefused, text: "the API key is not good", fields: challenge(`, error="invalid_token"`)}
	k.scope = &refusal{
		status: 403, outcome: zone.RequestKeyScope, text: "the API key has not the scope",
		fields: challenge(`, error="insufficient_scope", scope=%q`, strings.Join(k.scopes, " ")),
	}
	return k
}

var keyUnanswered = &refusal{status: 503, outcome: zone.RequestKeyUnanswered, text: "API keys cannot be looked up now", retryAfter: 1}

// apiKey finds out whose the request is, and refuses it where the route wants to know and it is
// nobody's. Of what a client sends as a key none goes on, good or not, unless the route passes it.
func apiKey(ex *Exchange) *refusal {
	want := ex.route.keys
	if want == nil {
		return nil
	}
	if ex.route.cors != nil && ex.routing.asked.preflight != nil {
		return nil // it never has one, and is answered here
	}
	text, several := want.find(ex.fields)
	switch {
	case several:
		return want.refused // whose it is depends on who reads it
	case text == nil && want.optional:
		return nil
	case text == nil:
		return want.missing
	}
	id, secret, ok := keys.Split(text)
	if !ok {
		return want.refused
	}
	if ex.worker.keys == nil {
		return keyUnanswered
	}
	k, err := ex.worker.keys.Find(id, ex.worker.now(), (*keys.Times)(&ex.snap.policy.Keys))
	if err != nil {
		return keyUnanswered
	}
	now := time.Now()
	if k == nil || !k.Opens(secret, now) {
		return want.refused
	}
	ex.keyID = k.ID // it is the key's owner, good or not
	if k.Revoked || !k.Expires.IsZero() && !now.Before(k.Expires) {
		return want.refused
	}
	for _, s := range want.scopes {
		if !k.Has(s) {
			return want.scope
		}
	}
	ex.apiKey = k
	ex.who = hashBytes(hashBasis, []byte(k.ID)) // the same at each worker, for the guard of verdicts
	return nil
}

// find is the request's API key, and takes it out; nil: it has none. several tells that it has
// two that differ.
func (w *routeKeys) find(fields []http1.Field) (text []byte, several bool) {
	for _, h := range w.headers {
		for i := range fields {
			f := &fields[i]
			if len(f.Name) != len(h.name) || !bytes.EqualFold(f.Name, h.name) {
				continue
			}
			value := f.Value
			if h.bearer {
				value = afterBearer(value)
			}
			// What else stands there is none of the gateway's keys: upstreams have some, too.
			if !keys.IsKey(value) {
				continue
			}
			several = several || text != nil && !bytes.Equal(text, value)
			text = value
			if !w.pass {
				f.Kind = http1.HopByHop // those end here
			}
		}
	}
	return text, several
}

// afterBearer is the token of credentials as of RFC 6750, 2.1; nil: they are of another kind.
func afterBearer(value []byte) []byte {
	const scheme = "bearer "
	if len(value) < len(scheme) || !equalFoldString(value[:len(scheme)], scheme) {
		return nil
	}
	return bytes.TrimLeft(value[len(scheme):], " ")
}

// AnswerKeys takes what came of the questions of Options.Keys.
func (w *Worker) AnswerKeys(answers []keys.Answer) { w.keys.Answer(answers, w.now()) }

// ownRate is a rate that an API key has of its own.
type ownRate struct {
	requests uint64
	period   time.Duration
}

// ownLimits are made of such rates when they are met, one for each: keys that have the same
// differ in their buckets.
type ownLimits struct {
	mu  sync.Mutex // of this worker alone
	all map[ownRate]*requestLimit
}

// ownLimitID is that of all of them: a key keeps its bucket when its rate changes.
const ownLimitID = 0x6170695f6b6579 // "api_key"

// ownLimit is the limit that the exchange's API key has of its own; nil: none.
func (ex *Exchange) ownLimit() *requestLimit {
	k := ex.apiKey
	if k == nil || k.Requests == 0 {
		return nil
	}
	rate, own := ownRate{k.Requests, k.Period}, &ex.snap.own
	own.mu.Lock()
	defer own.mu.Unlock()
	if l := own.all[rate]; l != nil {
		return l
	}
	l, err := newRequestLimit(&policy.RequestLimit{
		Name: "api_key", ID: ownLimitID, Key: []policy.KeyPart{{Kind: "api_key"}}, Requests: k.Requests, Period: k.Period,
		Burst: k.Burst, Delay: k.Burst, Status: 429, Slot: ex.snap.policy.KeySlot,
	})
	if err != nil {
		return nil // keys.Rate yields none that is wrong
	}
	if own.all == nil {
		own.all = map[ownRate]*requestLimit{}
	}
	own.all[rate] = l
	return l
}
