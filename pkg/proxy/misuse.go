// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// misuseOf names for what the gateway ended an HTTP/2 connection; false: its client did
// nothing wrong, or nothing that could be told from a cut line.
func (c *conn) misuseOf(err error) (zone.Misuse, bool) {
	var misuse *http2.Misuse
	var broken *http2.ConnError
	switch {
	case errors.As(err, &misuse):
		return zone.Misuse(misuse.Kind), true // a test holds both lists to the same words
	case errors.As(err, &broken):
		return zone.MisuseProtocol, true
	case errors.Is(err, http2.ErrHeaderTimeout):
		return zone.MisuseSlowHeader, true
	case errors.Is(err, http2.ErrWriteTimeout):
		return zone.MisuseUnread, true
	case c.expired.Load():
		return zone.MisuseSlow, true
	}
	return 0, false
}

// tellMisuse counts a connection that was ended for what its client did, and names the client
// in the error log: once a second at most, with the number of those that were not named.
func (c *conn) tellMisuse(err error) {
	kind, ok := c.misuseOf(err)
	if !ok {
		return
	}
	w := c.worker
	w.slab.Misuse(kind)
	c.offend(zone.OffenceHTTP2, c.session.Who)
	now := w.clock.Load()
	if last := w.lastMisuseSaid.Load(); now-last < int64(time.Second) || !w.lastMisuseSaid.CompareAndSwap(last, now) {
		w.misuseUnsaid.Add(1)
		return
	}
	w.log.Warn("HTTP/2 connection was ended for what its client did",
		"client", c.peer, "kind", kind, "cause", err, "not_named_before", w.misuseUnsaid.Swap(0))
}
