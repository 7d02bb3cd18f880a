// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// An exchange has one time for the head of the upstream's reply, for all of its tries
// together and their connections, and may have another for the whole of it. Where another
// server could answer as well, a try gets two thirds of what is left of the first: of
// two servers one may then take requests and say nothing, and what may be repeated is
// answered in time by the other. A body that is sent on as it comes has its own times, and
// the reply to it one from its end.

// begin sets both times at the first try; now is the worker's clock. The
// sweeper comes up to an interval late, so that the first ends a little early: a client
// that was told of it has its answer by then.
func (ex *Exchange) begin(now int64) {
	if ex.headBy != 0 {
		return
	}
	wait := ex.headerTimeout()
	ex.headBy = now + int64(wait-min(2*sweepInterval, wait/10))
	if total := ex.totalTimeout(); total > 0 {
		ex.totalBy = ex.start + int64(total)
		ex.headBy = min(ex.headBy, ex.totalBy)
	}
}

// overdue says that there is no time left to begin a try.
func (ex *Exchange) overdue(now int64) bool { return now >= ex.headBy }

// triable says that another server could answer if this try comes to nothing.
func (ex *Exchange) triable(streamed bool) bool {
	return ex.others && ex.failures < ex.route.upstream.policy.Retries && ex.repeatable(streamed)
}

// replyBy is when a try that begins now must have the head of its reply.
func (ex *Exchange) replyBy(now int64, streamed bool) int64 {
	if left := ex.headBy - now; left > 0 && ex.triable(streamed) {
		return now + left*2/3
	}
	return max(ex.headBy, 1) // 0 would be no deadline
}

// connectTime is how long a connection may take that is begun now. Nothing has been sent
// then, so that any request may go to another server.
func (ex *Exchange) connectTime(now int64) time.Duration {
	left := time.Duration(ex.headBy - now)
	if ex.others {
		left = left * 2 / 3
	}
	return max(1, min(left, ex.route.upstream.policy.ConnectTimeout))
}

// totalTimeout is how long the exchange may take; 0: any time.
func (ex *Exchange) totalTimeout() time.Duration {
	if ex.route.totalTime > 0 {
		return ex.route.totalTime
	}
	return ex.route.upstream.policy.TotalTimeout
}

// refuseLate answers for an exchange whose time is over.
func (ex *Exchange) refuseLate(took time.Duration) {
	ex.worker.slab.Upstream(ex.route.upstream.policy.Slot, zone.UpstreamTimeout, took)
	ex.route.upstream.sayLate(ex.worker, string(ex.server), "the time for a reply was over before another try")
	ex.refuse(&refusal{status: 504, outcome: zone.RequestUpstreamTimeout, text: "the upstream gave no reply in time"})
}

// enter counts the exchange among those of its upstream; false: there are too many.
func (u *upstream) enter() bool {
	if n, most := u.requests.Add(1), int64(u.policy.MaxRequests); most > 0 && n > most {
		u.requests.Add(-1)
		return false
	}
	return true
}

func (u *upstream) leave() { u.requests.Add(-1) }

// mayRepeat decides on another try after one that came to no reply. A connection that died
// after it had been idle says nothing of its server, and costs no retry.
func (a *attempt) mayRepeat(err error) bool {
	ex, u := a.ex, a.conn.up
	why := a.conn.killed()
	if why == killCancelled {
		return false
	}
	if a.refused && why == killNone {
		return a.mayRepeatRefused()
	}
	stale := a.conn.reused && why == killNone && a.n == 0
	if !stale && (!a.lost || a.conn.shared.Blame()) {
		a.report = reportFailed
	}
	if errors.Is(err, errInvalidReply) || !ex.repeatable(a.streamed) || ex.overdue(ex.worker.now()) {
		return false
	}
	if stale {
		return true
	}
	if ex.failures == u.policy.Retries || !u.allowRetry() {
		return false
	}
	ex.failures++
	u.markTried(ex, a.conn.server)
	return true
}
