// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"

	"golang.org/x/sys/unix"
)

// openSocket learns who received the connection, and sets what options the configuration
// has other than Go's (TCP_NODELAY, a probe after 15 s of silence). Those that a connection
// takes over from the socket it came by, the supervisor has set there.
func (c *conn) openSocket(snap *snapshot) {
	if c.sock == nil {
		return
	}
	_ = c.raw.Control(func(fd uintptr) {
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID); err == nil {
			c.napi = uint32(n)
		}
	})
	const idle = 15e9 // Go's own
	switch o := &snap.policy.TCP; o.KeepAlive {
	case idle:
	case 0:
		_ = c.sock.SetKeepAlive(false)
	default:
		_ = c.sock.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: o.KeepAlive})
	}
	if !snap.policy.TCP.NoDelay {
		_ = c.sock.SetNoDelay(false)
	}
}

// noPush has the kernel hold back what is no whole segment, or let it go.
func (c *conn) noPush(on bool) {
	if c.raw == nil || c.http1.noPush == on {
		return
	}
	c.http1.noPush = on
	value := 0
	if on {
		value = 1
	}
	_ = c.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, value) })
}
