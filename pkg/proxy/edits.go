// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// edits are compiled policy.HeaderEdits. Fields of a connection and of framing are not
// among them: the configuration refuses those.
type edits struct {
	away   [][]byte // fields that are taken away: set or removed
	fields []http1.Field
	lines  []byte // the same fields, as lines of a head
}

func newEdits(p *policy.HeaderEdits) *edits {
	if p == nil {
		return nil
	}
	e := &edits{}
	add := func(list []policy.HeaderValue) {
		for _, v := range list {
			name, value := []byte(v.Name), []byte(v.Value)
			e.fields = append(e.fields, http1.Field{Name: name, Value: value})
			e.lines = appendField(e.lines, name, value)
		}
	}
	for _, v := range p.Set {
		e.away = append(e.away, []byte(v.Name))
	}
	for _, name := range p.Remove {
		e.away = append(e.away, []byte(name))
	}
	add(p.Set)
	add(p.Add)
	return e
}

// drops tells whether a field is taken away.
func (e *edits) drops(name []byte) bool {
	if e == nil {
		return false
	}
	for _, away := range e.away {
		if len(away) == len(name) && bytes.EqualFold(away, name) {
			return true
		}
	}
	return false
}

// append adds the lines to a request's head.
func (e *edits) append(b []byte) []byte {
	if e == nil {
		return b
	}
	return append(b, e.lines...)
}

// apply changes a reply.
func (e *edits) apply(r *http1.Response) {
	if e == nil {
		return
	}
	for i := range r.Fields {
		if e.drops(r.Fields[i].Name) {
			r.Fields[i].Kind = http1.HopByHop // those end here
		}
	}
	r.Fields = append(r.Fields, e.fields...)
}

// dress gives a reply what the route says of it.
func (ex *Exchange) dress(r *http1.Response) {
	if ex.route == nil {
		return
	}
	ex.route.reply.apply(r)
	ex.route.cors.apply(ex, r)
}
