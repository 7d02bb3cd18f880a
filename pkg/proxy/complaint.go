// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// complaint is one kind of line of the error log, in words that operators search for. It is
// written once a second at most: counts have every event.
type complaint struct{ last, untold atomic.Int64 }

// due tells whether to write it now, by the worker's clock, and how many were not since the
// last one.
func (c *complaint) due(now int64) (untold int64, ok bool) {
	last := c.last.Load()
	if last != 0 && now-last < int64(time.Second) || !c.last.CompareAndSwap(last, max(1, now)) {
		c.untold.Add(1)
		return 0, false
	}
	return c.untold.Swap(0), true
}

// complaints are those about an upstream.
type complaints struct{ unreachable, late, reset, closed, invalid complaint }

// say tells why there is no connection to a server.
func (u *upstream) say(w *Worker, s *server, err error) {
	if isTimeout(err) {
		u.sayLate(w, s.address, "connecting")
		return
	}
	if untold, ok := u.complaints.unreachable.due(w.clock.Load()); ok {
		w.log.Warn("no connection to an upstream's server", "upstream", u.policy.Name, "server", s.address, "error", err, "untold", untold)
	}
}

func (u *upstream) sayLate(w *Worker, server, while string) {
	u.sayOf(w, &u.complaints.late, "upstream timed out", server, while)
}

func (u *upstream) sayOf(w *Worker, c *complaint, what, server, while string) {
	if untold, ok := c.due(w.clock.Load()); ok {
		w.log.Error(what, "while", while, "upstream", u.policy.Name, "server", server, "untold", untold)
	}
}

// complain tells of a try that failed for its server.
func (a *attempt) complain(err error, while string) {
	w, u, server := a.ex.worker, a.conn.up, a.conn.server.address
	var fault *http1.Fault
	switch why := a.conn.killed(); {
	case why == killCancelled || a.passed:
	case why == killTimeout:
		u.sayLate(w, server, while)
	case errors.Is(err, errInvalidReply) || errors.As(err, &fault):
		u.sayOf(w, &u.complaints.invalid, "upstream sent an invalid reply", server, while)
	case errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE):
		u.sayOf(w, &u.complaints.reset, "connection reset by peer", server, while)
	default:
		u.sayOf(w, &u.complaints.closed, "upstream prematurely closed connection", server, while)
	}
}

// sayClientReset: clients may go away as they like, so that is for who asks for all.
func (ex *Exchange) sayClientReset() {
	w := ex.worker
	if !w.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	if untold, ok := w.clientResets.due(w.clock.Load()); ok {
		w.log.Debug("connection reset by peer", "client", ex.peer, "id", string(ex.id[:]), "untold", untold)
	}
}
