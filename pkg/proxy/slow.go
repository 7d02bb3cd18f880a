// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"time"

	"golang.org/x/sys/unix"
)

// rateWindow is how long a client is waited for, all waits together, before it is judged.
const rateWindow = 15 * time.Second

// slowness is what the sweeper knows of one direction of a connection: it alone uses it.
type slowness struct {
	waited time.Duration // for the client, since the window began
	from   uint64        // bytes by TCP's count when it began
}

// isSlow adds the time since the last sweep to what the client was waited for, and says
// whether it has moved fewer bytes in a whole window than the rate asks for. Time in which
// the gateway was not waiting for this client does not count, however long.
func (s *slowness) isSlow(passed, window time.Duration, rate int, count func() (uint64, bool)) bool {
	if s.waited == 0 {
		from, ok := count()
		if !ok {
			return false
		}
		s.from = from
	}
	if s.waited += passed; s.waited < window {
		return false
	}
	s.waited = 0
	now, ok := count()
	return ok && now-s.from < uint64(float64(rate)*window.Seconds())
}

// tooSlow cuts a client that sends a body, or takes a reply, slower than the least rate:
// the slow ways to hold a gateway's connections. The kernel counts the bytes, so that
// nothing is to be counted here, and a write that is under way shows its progress.
func (c *conn) tooSlow(passed time.Duration) {
	w := c.worker
	snap := w.current.Load()
	if snap == nil || snap.policy.Timeouts.MinRate == 0 || c.raw == nil {
		return
	}
	rate := snap.policy.Timeouts.MinRate
	if c.receiving.Load() > 0 && c.slow[0].isSlow(passed, w.rateWindow, rate, func() (uint64, bool) {
		i, ok := c.tcpInfo()
		return i.Bytes_received, ok
	}) {
		c.expired.Store(true)
		if c.isHTTP2 {
			c.cut()
		} else {
			_ = c.tcp.SetReadDeadline(past) // it can still be told
		}
	}
	if (c.sending.Load() > 0 || c.writeBy.Load() != 0) && c.slow[1].isSlow(passed, w.rateWindow, rate, func() (uint64, bool) {
		i, ok := c.tcpInfo()
		return i.Bytes_acked, ok
	}) {
		c.expired.Store(true)
		c.cut()
	}
}

// cut closes the connection at once: what the kernel still holds for a client that does not
// take it would stay there for minutes.
func (c *conn) cut() {
	if t, ok := c.tcp.(interface{ SetLinger(seconds int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = c.tcp.Close()
}

func (c *conn) tcpInfo() (i unix.TCPInfo, ok bool) {
	_ = c.raw.Control(func(fd uintptr) {
		if p, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			i, ok = *p, true
		}
	})
	return i, ok
}
