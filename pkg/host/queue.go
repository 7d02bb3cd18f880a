// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of the generic netlink family netdev, linux/netdev.h: Linux 6.8.
const (
	netdevQueueGet = 10

	netdevQueueID   = 1
	netdevQueueType = 3 // 0: receive
	netdevQueueNAPI = 4
)

// ReceiveQueue is the receive queue that a NAPI instance polls, as SO_INCOMING_NAPI_ID
// numbers them; "" where the kernel does not tell: before Linux 6.8, and for drivers that
// do not say which instance polls which queue.
func ReceiveQueue(napi uint32) string {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return ""
	}
	r := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_DUMP)
	r.AddData(&nl.Genlmsg{Command: netdevQueueGet, Version: 1})
	messages, err := r.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return ""
	}
	for _, m := range messages {
		if queue, ok := receiveQueue(m, napi); ok {
			return strconv.FormatUint(uint64(queue), 10)
		}
	}
	return ""
}

// receiveQueue reads one message of the dump.
func receiveQueue(m []byte, napi uint32) (queue uint32, ok bool) {
	if len(m) < nl.SizeofGenlmsg {
		return 0, false
	}
	attributes, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
	if err != nil {
		return 0, false
	}
	values := map[uint16]uint32{}
	for _, a := range attributes {
		if len(a.Value) == 4 {
			values[a.Attr.Type&nl.NLA_TYPE_MASK] = binary.NativeEndian.Uint32(a.Value)
		}
	}
	kind, told := values[netdevQueueType]
	return values[netdevQueueID], told && kind == 0 && napi != 0 && values[netdevQueueNAPI] == napi
}
