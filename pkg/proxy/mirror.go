// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// mirror sends copies of a route's requests to another upstream and drops the replies.
// A copy is a try at an upstream as any other, on a goroutine of its own, with a
// client that nobody is. The exchange itself pays for copying its head and small body,
// and for the start of that goroutine, and waits for nothing.
type mirror struct {
	route    *route // with the upstream of the copies
	underWay atomic.Int64
}

// Bounds of copies: those that are under way, of a route and of a worker, and what is
// read of a reply. A mirror that is slow loses copies, and holds no memory for them.
const (
	mirrorsOfRoute  = 32
	mirrorsOfWorker = 128
	mirrorBytes     = 1 << 20
	mirrorTime      = 30 * time.Second
)

func (s *snapshot) newMirror(r *route, upstream *int) (*mirror, error) {
	if upstream == nil {
		return nil, nil
	}
	up, err := s.upstreamAt(*upstream)
	return &mirror{route: &route{slot: r.slot, upstream: up, bodyBytes: -1}}, err
}

// take claims a place for a copy; false: there is none.
func (m *mirror) take(w *Worker) bool {
	if m.underWay.Add(1) > mirrorsOfRoute {
		m.underWay.Add(-1)
		return false
	}
	if w.mirrors.Add(1) > mirrorsOfWorker || w.draining.Load() {
		m.release(w)
		return false
	}
	return true
}

func (m *mirror) release(w *Worker) {
	m.underWay.Add(-1)
	w.mirrors.Add(-1)
}

// mirror sends a copy of ex.request, which is the whole of it.
func (ex *Exchange) mirror() {
	m, w := ex.route.mirror, ex.worker
	if !m.take(w) {
		w.slab.Add(zone.MirrorDropped, 1)
		return
	}
	w.slab.Add(zone.Mirrored, 1)
	cp := w.exchanges.Get().(*Exchange)
	*cp = Exchange{
		worker: w, snap: ex.snap, route: m.route, start: w.now(), peer: ex.peer, major: 1, minor: 1, body: ex.body, id: ex.id,
		room: cp.room[:0], request: append(cp.request[:0], ex.request...), routing: cp.routing.cleared(),
		head: http1.Request{Fields: cp.head.Fields[:0]}, reply: http1.Response{Fields: cp.reply.Fields[:0]},
		pump: pump{done: cp.pump.done, fields: cp.pump.fields}, trailers: cp.trailers[:0], unsized: ex.unsized,
	}
	cp.client = &nobody{ex: cp}
	cp.routing.text = append(cp.routing.text, ex.method...) // the client's may be gone before the reply is here
	cp.method = cp.routing.text
	w.serving.Go(func() { w.runMirror(cp, m) })
}

// runMirror tries as forward does. How it went is counted for the upstream.
func (w *Worker) runMirror(ex *Exchange, m *mirror) {
	defer m.release(w)
	defer func() {
		if v := recover(); v != nil {
			w.recovered(v)
		}
	}()
	for again := false; ex.try(false, again); {
		again = true
	}
	w.freeExchange(ex)
}

// watch lets Shutdown end the copy, for which it does not wait.
func (n *nobody) watch(u *upConn) {
	w := n.ex.worker
	w.mu.Lock()
	defer w.mu.Unlock()
	if u == nil {
		delete(w.mirrored, n)
		return
	}
	w.mirrored[n] = u
	if w.draining.Load() {
		u.kill(killCancelled)
	}
}

// endMirrors ends all copies. The worker's lock is held.
func (w *Worker) endMirrors() {
	for _, u := range w.mirrored {
		u.kill(killCancelled)
	}
}

// nobody takes the replies to copies.
type nobody struct {
	ex   *Exchange
	took int
}

var _ client = (*nobody)(nil)

var errEnough = errors.New("enough of a reply that nobody reads")

func (n *nobody) begin(ex *Exchange, r *http1.Response) error {
	ex.replied, ex.status = true, r.Status
	return nil
}

func (n *nobody) write(_ *Exchange, p []byte) error {
	if n.took += len(p); n.took > mirrorBytes || n.ex.worker.now()-n.ex.start > int64(mirrorTime) {
		return errEnough
	}
	return nil
}

func (n *nobody) trailers() []http1.Field                  { return nil }
func (n *nobody) interim(*Exchange, *http1.Response) error { return nil }
func (n *nobody) dropBody()                                {}
func (n *nobody) hasLeft() bool                            { return false }
func (n *nobody) proceed()                                 {}
func (n *nobody) awaitBody() bool                          { return true }
func (n *nobody) readBody([]byte) (int, error)             { return 0, io.EOF }
func (n *nobody) flush()                                   {}
func (n *nobody) end(*Exchange) error                      { return nil }
func (n *nobody) abort()                                   {}
func (n *nobody) bound(int64, time.Duration)               {}
func (n *nobody) stopBody()                                {}
func (n *nobody) readError(error) zone.RequestOutcome      { return zone.RequestClientReset }
func (n *nobody) writeError(error) zone.RequestOutcome     { return zone.RequestClientReset }
