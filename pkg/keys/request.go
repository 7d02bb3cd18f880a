// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"fmt"
	"time"
)

// Request is what an operator wants of a store, in this process or in that of a gateway.
type Request struct {
	Op     string        `json:"op"`               // add, revoke, rotate, import or list
	ID     string        `json:"id,omitempty"`     // revoke, rotate
	Record *Record       `json:"record,omitempty"` // add
	Keep   time.Duration `json:"keep_ns,omitempty"`
	Page   []Record      `json:"page,omitempty"` // import
	From   string        `json:"from,omitempty"` // list
}

// Reply is what came of it. Records in it have no digests.
type Reply struct {
	Key      string   `json:"key,omitempty"` // add, rotate: the text, told this once
	Record   *Record  `json:"record,omitempty"`
	Replaced int      `json:"replaced,omitempty"` // import: so many were there already
	List     []Record `json:"list,omitempty"`
	Next     string   `json:"next,omitempty"` // list: "" at the end
}

// Page is how many records are listed or imported at once: as many of the longest as fit
// into a message to a gateway.
const Page = 200

// Do carries the request out. changed are the ids of which what was known holds no longer.
func Do(ctx context.Context, s Store, r *Request, now time.Time) (reply Reply, changed []string, err error) {
	var record Record
	switch r.Op {
	case "add":
		if r.Record == nil {
			return reply, nil, fmt.Errorf("add key: no record")
		}
		reply.Key, record, err = Add(ctx, s, *r.Record, now)
	case "revoke":
		record, err = Revoke(ctx, s, r.ID, now)
	case "rotate":
		reply.Key, record, err = Rotate(ctx, s, r.ID, r.Keep, now)
	case "import":
		reply.Replaced, err = Import(ctx, s, r.Page)
		for i := range r.Page {
			changed = append(changed, r.Page[i].ID)
		}
		return reply, changed, err
	case "list":
		reply.List, reply.Next, err = s.List(ctx, r.From, Page)
		for i := range reply.List {
			reply.List[i].hide()
		}
		return reply, nil, err
	default:
		return reply, nil, fmt.Errorf("keys: %q: want add, revoke, rotate, import or list", r.Op)
	}
	if err != nil {
		return Reply{}, nil, err
	}
	record.hide()
	reply.Record = &record
	return reply, []string{record.ID}, nil
}

// hide leaves out what verifies secrets.
func (r *Record) hide() { r.Secret, r.Old = Digest{}, nil }
