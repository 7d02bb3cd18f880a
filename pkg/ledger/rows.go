// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"strconv"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Hops of the ledger, in the order in which a packet and what it carries comes by them.
const (
	HopNIC        = "nic"        // before XDP
	HopXDP        = "xdp"        // the kernel plane
	HopBacklog    = "backlog"    // a CPU's queue of packets, of all network namespaces
	HopTCP        = "tcp"        // queues of listening sockets, of all who listen here
	HopConnection = "connection" // a client's, as a worker takes it
	HopHandshake  = "handshake"  // of TLS
	HopRequest    = "request"    // exchanges, by outcome
	HopStatus     = "status"     // the same exchanges, by class and, for errors, by who decided
)

// Row is one line of the ledger: how many ended so at a hop.
type Row struct {
	Hop     string `json:"hop"`
	Where   string `json:"where"`   // the interface, its queue, the CPU; "" for all
	Verdict string `json:"verdict"` // pass or drop; of requests and statuses: passed on or not
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
}

// Rows appends the whole ledger as one table, zeros included, in the order of hops.
func (s *Snapshot) Rows(dst []Row) []Row {
	add := func(hop, where string, passed bool, reason string, n uint64) {
		verdict := "drop"
		if passed {
			verdict = "pass"
		}
		dst = append(dst, Row{hop, where, verdict, reason, n})
	}
	for i := range s.Interfaces {
		in := &s.Interfaces[i]
		add(HopNIC, in.Name, true, "received", in.Receive.Packets)
		add(HopNIC, in.Name, false, "missed", in.Receive.Missed)
		add(HopNIC, in.Name, false, "no_buffer", in.Receive.NoBuffer)
		add(HopNIC, in.Name, false, "damaged", in.Receive.Damaged)
		for _, q := range in.Receive.Queues {
			add(HopNIC, in.Name+":"+strconv.Itoa(q.Queue), false, "queue_dropped", q.Packets)
		}
	}
	for i := range s.Interfaces {
		in := &s.Interfaces[i]
		for c := range in.Counters.Ingress {
			q := &in.Counters.Ingress[c]
			add(HopXDP, in.Name+":"+q.QueueName(), q.Verdict != "drop", q.Reason, q.Packets)
		}
	}
	for _, c := range s.Stack.Backlog {
		add(HopBacklog, "cpu"+strconv.Itoa(c.CPU), false, "backlog_full", c.Packets)
	}
	add(HopTCP, "", true, "syn_cookies", s.Stack.SYNCookies)
	add(HopTCP, "", false, "syn_queue_full", s.Stack.SYNsDropped)
	add(HopTCP, "", false, "listen_overflow", s.Stack.ListenOverflow)
	add(HopTCP, "", false, "other", s.Stack.ListenOther)
	s.workerRows(add)
	return dst
}

// workerRows are what all workers counted.
func (s *Snapshot) workerRows(add func(hop, where string, passed bool, reason string, n uint64)) {
	var limited uint64
	handshakes := make([]uint64, len(zone.HandshakeOutcomes()))
	errors := map[zone.Counter]uint64{}
	for i := range s.Workers {
		w := &s.Workers[i]
		limited += w.Counter(zone.ConnectionsLimited)
		for o, n := range w.Handshakes {
			handshakes[o] += n
		}
		for _, of := range zone.Sources() {
			errors[zone.Errors(false, of)] += w.Counter(zone.Errors(false, of))
			errors[zone.Errors(true, of)] += w.Counter(zone.Errors(true, of))
		}
	}
	add(HopConnection, "", true, "accepted", s.Sums.Accepted)
	add(HopConnection, "", false, "not_enough", s.Sums.Rejected)
	add(HopConnection, "", false, "limited", limited)
	var refused uint64
	for i := range s.Listeners {
		refused += s.Listeners[i].Refused
	}
	add(HopConnection, "", false, "no_worker", refused)
	for o, n := range handshakes {
		add(HopHandshake, "", !zone.HandshakeOutcome(o).Failed(), zone.HandshakeOutcome(o).String(), n)
	}
	for o, n := range s.Requests {
		passed := zone.RequestOutcome(o) == zone.RequestOK || zone.RequestOutcome(o) == zone.RequestRouteReply
		add(HopRequest, "", passed, zone.RequestOutcome(o).String(), n)
	}
	var classes [5]uint64
	for i := range s.Routes {
		for class, n := range s.Routes[i].Classes {
			classes[class] += n
		}
	}
	for class, n := range classes[:3] {
		add(HopStatus, "", true, strconv.Itoa(class+1)+"xx", n)
	}
	for _, server := range []bool{false, true} {
		for _, of := range zone.Sources() {
			class := "4xx_"
			if server {
				class = "5xx_"
			}
			add(HopStatus, "", false, class+of.String(), errors[zone.Errors(server, of)])
		}
	}
}
