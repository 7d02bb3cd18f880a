// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/prometheus/procfs"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// Receive is what an interface has counted of the packets that came, since it was made.
type Receive struct {
	Packets uint64 // that the driver handed on, to XDP where it is native
	// Those that nobody saw: Missed since the ring was full, NoBuffer since the driver had no
	// memory for them, Damaged on the wire.
	Missed, NoBuffer, Damaged uint64
	Queues                    []QueueDrops // where the driver tells
}

// QueueDrops are packets that one queue's driver dropped, none of which XDP did.
type QueueDrops struct {
	Queue   int
	Packets uint64
}

// Names differ between drivers, and some count the same under several: the highest counts.
var (
	noBuffer   = regexp.MustCompile(`^(rx_out_of_buffer|rx_no_dma_resources|rx_no_buffer_count|alloc_rx_buff_failed|rx_dropped_no_buffer|rx_buff_alloc_err|no_rx_mbuf)$`)
	queueDrops = regexp.MustCompile(`^rx_queue_(\d+)_drops$`)
)

// ReadReceive asks kernel and driver.
func ReadReceive(name string) (Receive, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return Receive{}, fmt.Errorf("read what %s received: %w", name, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return Receive{}, fmt.Errorf("read what %s received: the kernel does not tell", name)
	}
	r := Receive{Packets: s.RxPackets, Missed: s.RxMissedErrors, NoBuffer: max(s.RxFifoErrors, s.RxOverErrors), Damaged: max(s.RxCrcErrors, s.RxFrameErrors, s.RxLengthErrors)}
	r.ofDriver(name)
	return r, nil
}

// ofDriver adds what ethtool -S has, where there is any.
func (r *Receive) ofDriver(name string) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return
	}
	defer e.Close()
	all, err := e.Stats(name)
	if err != nil {
		return
	}
	for name, n := range all {
		if noBuffer.MatchString(name) {
			r.NoBuffer = max(r.NoBuffer, n)
		}
		if m := queueDrops.FindStringSubmatch(name); m != nil {
			q, _ := strconv.Atoi(m[1]) // digits
			r.Queues = append(r.Queues, QueueDrops{q, n})
		}
	}
	slices.SortFunc(r.Queues, func(a, b QueueDrops) int { return a.Queue - b.Queue })
}

// Stack is what the kernel dropped between XDP and the listening sockets: Backlog on the whole
// machine, the rest in this network namespace, of all who listen there.
type Stack struct {
	Backlog        []CPUDrops // packets beyond net.core.netdev_max_backlog, by CPU
	ListenOverflow uint64     // connections for which the queue of those to be accepted had no room
	SYNsDropped    uint64     // for which the queue of SYNs had none
	SYNCookies     uint64     // answered by a cookie since that queue had none: not dropped
	ListenOther    uint64     // SYNs and handshakes dropped for other causes, such as memory
}

// CPUDrops are packets that a CPU dropped.
type CPUDrops struct {
	CPU     int
	Packets uint64
}

// ReadStack reads /proc; what is not there is left 0.
func ReadStack() (Stack, error) {
	var out Stack
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return out, fmt.Errorf("read the stack's counts: %w", err)
	}
	rows, errSoftnet := fs.NetSoftnetStat()
	for _, r := range rows {
		out.Backlog = append(out.Backlog, CPUDrops{int(r.Index), uint64(r.Dropped)})
	}
	self, err := fs.Self()
	if err != nil {
		return out, fmt.Errorf("read the stack's counts: %w", err)
	}
	tcp, errTCP := self.Netstat()
	if err := errors.Join(errSoftnet, errTCP); err != nil {
		return out, fmt.Errorf("read the stack's counts: %w", err)
	}
	out.ListenOverflow, out.SYNsDropped, out.SYNCookies = count(tcp.ListenOverflows), count(tcp.TCPReqQFullDrop), count(tcp.TCPReqQFullDoCookies)
	// Each of the first two is a drop, too.
	if all, known := count(tcp.ListenDrops), out.ListenOverflow+out.SYNsDropped; all > known {
		out.ListenOther = all - known
	}
	return out, nil
}

func count(v *float64) uint64 {
	if v == nil {
		return 0
	}
	return uint64(*v)
}
