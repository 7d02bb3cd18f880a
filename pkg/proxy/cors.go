// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// cors is a compiled policy.CORS: the Fetch standard's rules for pages of other
// origins, which the gateway keeps in the upstream's place.
type cors struct {
	any     bool // origin *
	origins [][]byte
	below   []originPattern
	methods []string

	always    []http1.Field // on each reply
	allowed   []http1.Field // on replies to origins that may read them, beside the origin
	preflight []http1.Field // on those to their preflights, too
}

// originPattern is SCHEME://*.DOMAIN, cut at the star.
type originPattern struct{ before, after []byte }

var (
	nameAllowOrigin = []byte("Access-Control-Allow-Origin")
	namePrefix      = []byte("Access-Control-")
	star            = []byte("*")
	preflightReply  = &ownReply{status: 204, outcome: zone.RequestRouteReply}
)

func newCORS(p *policy.CORS, methods []string) *cors {
	if p == nil {
		return nil
	}
	c := &cors{methods: p.AllowMethods}
	if len(c.methods) == 0 {
		c.methods = methods
	}
	if len(c.methods) == 0 {
		c.methods = []string{"GET", "HEAD", "POST"}
	}
	for _, o := range p.AllowOrigins {
		before, after, wild := strings.Cut(o, "*.")
		switch {
		case o == "*":
			c.any = true
		case wild:
			c.below = append(c.below, originPattern{[]byte(before), []byte("." + after)})
		default:
			c.origins = append(c.origins, []byte(o))
		}
	}
	field := func(name, value string) http1.Field { return http1.Field{Name: []byte(name), Value: []byte(value)} }
	if !c.any {
		c.always = append(c.always, field("Vary", "Origin"))
	}
	if p.Credentials {
		c.allowed = append(c.allowed, field("Access-Control-Allow-Credentials", "true"))
	}
	c.preflight = append(c.preflight, field("Access-Control-Allow-Methods", strings.Join(c.methods, ", ")))
	if len(p.AllowHeaders) > 0 {
		c.preflight = append(c.preflight, field("Access-Control-Allow-Headers", strings.Join(p.AllowHeaders, ", ")))
	}
	c.preflight = append(c.preflight, field("Access-Control-Max-Age", strconv.Itoa(int(p.MaxAge/time.Second))))
	if len(p.ExposeHeaders) > 0 {
		c.allowed = append(c.allowed, field("Access-Control-Expose-Headers", strings.Join(p.ExposeHeaders, ", ")))
	}
	return c
}

// allows tells whether pages of the origin may read replies.
func (c *cors) allows(origin []byte) bool {
	if c.any {
		return true
	}
	for _, o := range c.origins {
		if bytes.Equal(o, origin) {
			return true
		}
	}
	for i := range c.below {
		before, after := c.below[i].before, c.below[i].after
		if len(origin) > len(before)+len(after) && bytes.HasPrefix(origin, before) && bytes.HasSuffix(origin, after) &&
			isNames(origin[len(before):len(origin)-len(after)]) {
			return true
		}
	}
	return false
}

// isNames: nothing but labels and the dots between them, so that no user, port or path
// of another host can stand before the domain.
func isNames(b []byte) bool {
	for _, c := range b {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

// preflightMethod is the method that a CORS preflight asks for; nil when the request
// is none.
func preflightMethod(ex *Exchange) []byte {
	if string(ex.method) != "OPTIONS" || value(ex.fields, "Origin") == nil {
		return nil
	}
	return value(ex.fields, "Access-Control-Request-Method")
}

// value is that of the only field of the name; nil when there is none, or more.
func value(fields []http1.Field, name string) (v []byte) {
	for i := range fields {
		if f := &fields[i]; len(f.Name) == len(name) && strings.EqualFold(string(f.Name), name) {
			if v != nil || len(f.Value) == 0 {
				return nil
			}
			v = f.Value
		}
	}
	return v
}

func (ex *Exchange) answerPreflight() {
	c := ex.route.cors
	if !c.allows(value(ex.fields, "Origin")) || !slices.Contains(c.methods, string(ex.routing.asked.preflight)) {
		ex.refuse(&refusal{status: 403, outcome: zone.RequestRouteReply, text: "the origin or its method is not allowed"})
		return
	}
	ex.answer(preflightReply)
}

// apply gives a reply its Access-Control fields, in place of the upstream's.
func (c *cors) apply(ex *Exchange, r *http1.Response) {
	if c == nil {
		return
	}
	for i := range r.Fields {
		if f := &r.Fields[i]; len(f.Name) > len(namePrefix) && bytes.EqualFold(f.Name[:len(namePrefix)], namePrefix) {
			f.Kind = http1.HopByHop // those end here
		}
	}
	r.Fields = append(r.Fields, c.always...)
	origin := value(ex.fields, "Origin")
	if origin == nil || !c.allows(origin) {
		return
	}
	if c.any {
		origin = star
	}
	r.Fields = append(r.Fields, http1.Field{Name: nameAllowOrigin, Value: origin})
	r.Fields = append(r.Fields, c.allowed...)
	if ex.routing.asked.preflight != nil && r.Status == 204 {
		r.Fields = append(r.Fields, c.preflight...)
	}
}
