// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"time"
)

// Tables are the kernel plane's rules and limits of one generation.
type Tables struct {
	// Prefixes are masked, IPv4 before IPv6, by address, then length.
	Prefixes  []PrefixRule
	PortGuard PortGuard
	Limits    []PacketLimit
	Budgets   Budgets
	Spread    bool // flows over CPUs, where there are more of these than queues
	// StaleAfter is the age of a heartbeat from which verdicts are ignored.
	StaleAfter time.Duration
}

// Action is what a rule says of a packet's source.
type Action uint8

// Actions. The longest prefix that contains the source decides.
const (
	// Deny: the packet is dropped.
	Deny Action = 1
	// Allow: no deny rule, verdict, source or prefix limit touches the packet. Limits of
	// ports, queues and the interface hold, since addresses can be forged.
	Allow Action = 2
)

// PrefixRule is an action for all sources in a prefix.
type PrefixRule struct {
	Prefix netip.Prefix
	Action Action
}

// GuardMode says what happens to a new flow that goes to a port not in the list.
type GuardMode uint8

// Guard modes.
const (
	GuardOff GuardMode = iota
	GuardCount
	GuardEnforce
)

// PortGuard lists the ports that new flows may go to, sorted.
type PortGuard struct {
	Mode     GuardMode
	TCP, UDP []uint16
}

// LimitKey is what a limit has one bucket for each of.
type LimitKey uint8

// Keys.
const (
	ByQueue     LimitKey = iota // receive queue
	BySource                    // IPv4 /32, IPv6 /64
	ByPrefix                    // of the source: IPv4 /24, IPv6 /48
	ByPort                      // destination port: of a limit, one
	ByInterface                 // all packets of the interface
)

// LimitCount is what a limit counts.
type LimitCount uint8

// Counts.
const (
	SYNs LimitCount = iota
	Packets
	Bytes // of whole frames
)

// PacketLimit is a limit as the generic cell rate algorithm takes it.
type PacketLimit struct {
	Name  string // at most 15 bytes reach the kernel
	Key   LimitKey
	Count LimitCount
	Port  uint16 // of ByPort
	// Cost of one packet or byte in 2^-16 ns: 10^9 * 2^16 / rate, rounded.
	Cost uint64
	// Tolerance is burst * cost in 2^-6 ns: (burst * Cost) >> 10.
	Tolerance uint64
	DryRun    bool // told, not held
}

// Budget is a limit on packets that no other limit is for; Cost 0 is none.
type Budget struct{ Cost, Tolerance uint64 }

// Budgets hold for each receive queue.
type Budgets struct {
	Essential    Budget // ARP, neighbour discovery, DHCP, packet-too-big
	Echo         Budget // ICMP echo requests
	Unclassified Budget // later fragments, too many tags or headers, not IP
}

// Pinhole is who may always reach a TCP port.
type Pinhole struct {
	Source netip.Prefix
	Port   uint16
}
