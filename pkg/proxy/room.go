// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// spareShare: of worker_connections so large a part is kept free for new connections, by
// closing those that have been idle the longest. An idle client opens another when it has
// something to ask; a new one has.
const spareShare = 16

// makeRoom is the sweeper's, which holds the lock.
func (w *Worker) makeRoom() {
	snap := w.current.Load()
	if snap == nil {
		return
	}
	all := snap.policy.Connections
	spare := max(1, all/spareShare)
	lack := spare - (all - int(w.open.Load()))
	if lack <= 0 {
		return
	}
	type candidate struct {
		c     *conn
		since int64
	}
	var idle []candidate
	now := w.clock.Load()
	for c := range w.conns {
		if c.makesRoom != 0 && now-c.makesRoom < int64(time.Second) {
			lack-- // it is as good as gone, which may take more than a sweep
			continue
		}
		if since := c.idleSince(); since != 0 && !c.closing.Load() {
			idle = append(idle, candidate{c, since})
		}
	}
	slices.SortFunc(idle, func(a, b candidate) int { return cmp.Compare(a.since, b.since) })
	idle = idle[:max(0, min(len(idle), lack))]
	for _, i := range idle {
		i.c.makesRoom = now
		i.c.drain()
	}
	if len(idle) > 0 {
		w.slab.Add(zone.ConnectionsDrained, uint64(len(idle)))
		w.sayFull("idle ones are closed")
	}
}

// sayFull tells the error log, once a second at most.
func (w *Worker) sayFull(so string) {
	now := w.clock.Load()
	if last := w.lastFullSaid.Load(); now-last >= int64(time.Second) && w.lastFullSaid.CompareAndSwap(last, now) {
		w.log.Error("worker_connections are not enough", "worker_connections", w.current.Load().policy.Connections, "so", so)
	}
}

// idleSince orders idle connections by age, by the worker's clock; 0 for one that is not.
func (c *conn) idleSince() int64 {
	if h := c.http2.Load(); h != nil {
		if since := h.IdleSince(); !since.IsZero() {
			return max(1, int64(since.Sub(c.worker.base)))
		}
		return 0
	}
	if by := c.readBy.Load(); c.idle.Load() && by != 0 {
		return max(1, by-int64(c.worker.current.Load().policy.Timeouts.Keepalive))
	}
	return 0
}
