// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"testing"

	"github.com/vishvananda/netlink/nl"
)

func TestReceiveQueue(t *testing.T) {
	message := func(id, kind, napi int) []byte {
		m := (&nl.Genlmsg{Command: netdevQueueGet, Version: 1}).Serialize()
		for _, a := range []struct{ attribute, value int }{{2, 7}, {netdevQueueID, id}, {netdevQueueType, kind}, {netdevQueueNAPI, napi}} {
			if a.value >= 0 {
				m = append(m, nl.NewRtAttr(a.attribute, binary.NativeEndian.AppendUint32(nil, uint32(a.value))).Serialize()...)
			}
		}
		return m
	}
	for _, row := range []struct {
		name    string
		message []byte
		queue   uint32
		ok      bool
	}{
		{"receive queue", message(3, 0, 8193), 3, true},
		{"transmit queue", message(3, 1, 8193), 3, false},
		{"another instance", message(3, 0, 8194), 3, false},
		{"instance not told", message(3, 0, -1), 3, false},
		{"cut", message(3, 0, 8193)[:6], 0, false},
		{"empty", nil, 0, false},
	} {
		if queue, ok := receiveQueue(row.message, 8193); ok != row.ok || ok && queue != row.queue {
			t.Errorf("%s: %d, %v; want %d, %v", row.name, queue, ok, row.queue, row.ok)
		}
	}
	if queue := ReceiveQueue(0xffffffff); queue != "" {
		t.Errorf("an instance that there is not polls queue %q", queue)
	}
}
