// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net/http"

	"github.com/xgw-project/xgw/pkg/keys"
)

// KeyControl is what a gateway lets its operator do with API keys, and with what workers
// remember of them.
type KeyControl interface {
	// Keys changes and lists API keys. What is changed holds in all workers when it returns.
	Keys(ctx context.Context, r *keys.Request) (keys.Reply, error)
	// Purge has all workers forget what they keep in memory of a kind, by its name in Caches,
	// or of "all". It may be done at any time and again; nothing waits for it.
	Purge(kind string) error
}

// Caches are the kinds of what workers keep in memory: API keys that there are, and ids that
// are none.
var Caches = []string{"keys", "unknown_keys"}

func (a *api) keys(w http.ResponseWriter, r *http.Request) {
	var ask keys.Request
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	done, err := a.control.Keys(r.Context(), &ask)
	reply(w, a.log, done, err)
}

func (a *api) purge(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Kind string `json:"kind"`
	}
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	reply(w, a.log, struct{}{}, a.control.Purge(ask.Kind))
}

// Keys as of KeyControl.
func (c *Client) Keys(r *keys.Request) (out keys.Reply, err error) {
	return out, c.post("/v1/keys", r, &out)
}

// Purge as of KeyControl.
func (c *Client) Purge(kind string) error {
	return c.post("/v1/cache/purge", map[string]string{"kind": kind}, &struct{}{})
}
