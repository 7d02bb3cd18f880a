// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"net/http"
	"time"
)

// Upgrader is a gateway that can hand over to a new process. Who may open its control socket
// may ask for that.
type Upgrader interface {
	// Upgrade starts the binary, has it take over, and returns when it has served well for as
	// long as was asked, or when this process goes on as before.
	Upgrade(Upgrade) (Upgraded, error)
}

// Upgrade asks for one.
type Upgrade struct {
	Binary string        `json:"binary,omitempty"` // absolute; empty: where that of the present process was
	Watch  time.Duration `json:"watch_ns"`         // 0 to LongestWatch
}

// LongestWatch is for how long a new process can be watched.
const LongestWatch = time.Hour

// Upgraded is an upgrade that was done.
type Upgraded struct {
	PID  int           `json:"pid"`
	Took time.Duration `json:"took_ns"`
}

func (a *api) upgrade(u Upgrader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var ask Upgrade
		err := decode(w, r, &ask)
		if err == nil && (ask.Watch < 0 || ask.Watch > LongestWatch) {
			err = ErrInvalid
		}
		if err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		done, err := u.Upgrade(ask)
		reply(w, a.log, done, err)
	}
}

// Upgrade as of Upgrader.
func (c *Client) Upgrade(ask Upgrade) (done Upgraded, err error) {
	return done, c.post("/v1/upgrade", ask, &done)
}
