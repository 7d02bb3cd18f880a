// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"

	"github.com/xgw-project/xgw/bench/packet/rotate"
	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// setup is a set of tables that xgw is measured with.
type setup string

const (
	allFeatures setup = "all features"
	recommended setup = "recommended features" // all but limits on packets of queue and interface
	tightLimit  setup = "a tight source limit" // of SYNs, and all features
	emptyTables setup = "empty tables"
)

var setups = []setup{allFeatures, recommended, tightLimit, emptyTables}

// testCase is packets, and how each program must end all of them.
type testCase struct {
	name   string
	setup  setup
	frame  []byte
	flows  []rotate.RotateFlow
	want   string // xgw's outcome
	action uint32 // and its action
	filter string // what xdp-filter does
}

// tables of a setup. No rate but the tight one is ever reached: what passes is not
// queued, so it is no more than the processor can do, some ten million packets a second.
func (s setup) tables(rules []policy.PrefixRule) *policy.Tables {
	if s == emptyTables {
		return &policy.Tables{}
	}
	t := &policy.Tables{}
	for _, f := range features {
		if s == recommended && f.packets {
			continue
		}
		f.add(t, rules)
	}
	if s == tightLimit {
		for i, l := range t.Limits {
			if l.Key == policy.BySource {
				t.Limits[i] = limit("source-syns", policy.BySource, policy.SYNs, 1)
				t.Limits[i].Cost = 3_600_000_000_000 << 16 // an hour
				t.Limits[i].Tolerance = t.Limits[i].Cost >> 10
			}
		}
	}
	return t
}

// feature is a step that tables switch on; they come in the order that packets meet them.
type feature struct {
	name    string
	packets bool // it charges established packets, too
	add     func(*policy.Tables, []policy.PrefixRule)
}

var features = []feature{
	{name: "deny list", add: func(t *policy.Tables, rules []policy.PrefixRule) { t.Prefixes = rules }},
	{name: "port guard", add: func(t *policy.Tables, _ []policy.PrefixRule) {
		t.PortGuard = policy.PortGuard{Mode: policy.GuardEnforce, TCP: []uint16{22, 80, servicePort}, UDP: []uint16{servicePort}}
	}},
	{name: "budgets", add: func(t *policy.Tables, _ []policy.PrefixRule) {
		b := policy.Budget{Cost: costOf(50_000_000), Tolerance: 50_000_000 * costOf(50_000_000) >> 10}
		t.Budgets = policy.Budgets{Essential: b, Echo: b, Unclassified: b}
	}},
	{name: "SYNs of a source", add: adds(limit("source-syns", policy.BySource, policy.SYNs, 100_000))},
	{name: "SYNs of a prefix", add: adds(limit("prefix-syns", policy.ByPrefix, policy.SYNs, 1_000_000))},
	{name: "SYNs to a port", add: adds(limit("port-syns", policy.ByPort, policy.SYNs, 50_000_000))},
	{name: "packets of a queue", packets: true, add: adds(limit("queue-packets", policy.ByQueue, policy.Packets, 50_000_000))},
	{name: "packets of the interface", packets: true, add: adds(limit("wire-packets", policy.ByInterface, policy.Packets, 50_000_000))},
}

func adds(l policy.PacketLimit) func(*policy.Tables, []policy.PrefixRule) {
	return func(t *policy.Tables, _ []policy.PrefixRule) { t.Limits = append(t.Limits, l) }
}

// limit is one of so many a second, and a second's worth at once.
func limit(name string, key policy.LimitKey, count policy.LimitCount, rate uint64) policy.PacketLimit {
	l := policy.PacketLimit{Name: name, Key: key, Count: count, Cost: costOf(rate), Tolerance: rate * costOf(rate) >> 10}
	if key == policy.ByPort {
		l.Port = servicePort
	}
	return l
}

func costOf(rate uint64) uint64 { return (1_000_000_000<<16 + rate/2) / rate }

var pinholes = []policy.Pinhole{
	{Source: netip.MustParsePrefix("203.0.113.7/32"), Port: 22},
	{Source: netip.MustParsePrefix("2001:db8:aaaa::/48"), Port: 22},
}

// bench is all programs with their tables, and the packets.
type bench struct {
	traffic  *traffic
	bare     *lane
	filter   *filter
	gateways map[setup]*gateway
	cases    []testCase
}

func newBench(prefixes, live int) (b *bench, err error) {
	b = &bench{traffic: newTraffic(prefixes, live), gateways: map[setup]*gateway{}}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if b.bare, err = newLane("bare XDP_DROP", nil, nil); err != nil {
		return b, err
	}
	if b.filter, err = newFilter(b.traffic.single); err != nil {
		return b, err
	}
	for _, s := range setups {
		g, err := newGateway(s.tables(b.traffic.rules), pinholes)
		if err != nil {
			return b, err
		}
		b.gateways[s] = g
		if s == allFeatures || s == tightLimit {
			if err := g.hold(); err != nil {
				return b, err
			}
		}
		if err := g.shake(b.traffic.live); err != nil {
			return b, err
		}
	}
	stopped, err := b.gateways[tightLimit].stopped(b.traffic.stranger)
	if err != nil {
		return b, err
	}
	b.cases = casesOf(b.traffic, stopped)
	return b, nil
}

func casesOf(t *traffic, stopped []netip.Addr) []testCase {
	tcp := func(source netip.Addr, flags uint8) []byte {
		return Pad(TCPSegment(netip.AddrPortFrom(source, clientPort), serverOf(source), flags), 6)
	}
	live6 := t.live[len(t.live)-flowCount:]
	ack, syn := tcp(t.live[0], ACK), tcp(t.stranger[0], SYN)
	live := flowsOf(t.live, servicePort)
	echo := Pad(ICMPMessage(t.stranger[0], server4, 8, 0), 18)
	pass := func(name string, s setup, frame []byte, flows []rotate.RotateFlow, outcome string) testCase {
		return testCase{name: name, setup: s, frame: frame, flows: flows, want: outcome, action: xdpPass, filter: "pass"}
	}
	over := pass("SYN over its source's limit", tightLimit, syn, flowsOf(stopped, servicePort), "drop_source_limit")
	over.action = xdpDrop
	return []testCase{
		{
			name: "deny-list hit", setup: allFeatures, frame: ack, flows: flowsOf(t.deniedOf, servicePort),
			want: "drop_deny", action: xdpDrop, filter: "drop",
		},
		pass("established", allFeatures, ack, live, "pass_tcp"),
		pass("established", recommended, ack, live, "pass_tcp"),
		pass("established, IPv6", allFeatures, tcp(live6[0], ACK), flowsOf(live6, servicePort), "pass_tcp"),
		pass("SYN of a new source", allFeatures, syn, flowsOf(t.stranger, servicePort), "pass_tcp"),
		over,
		pass("echo request", allFeatures, echo, echoFlows(t.stranger, echo, EthernetLen+IPv4Len), "pass_icmp"),
		pass("established", emptyTables, ack, live, "pass_tcp"),
		pass("SYN of a new source", emptyTables, syn, flowsOf(t.stranger, servicePort), "pass_tcp"),
	}
}

func (b *bench) Close() error {
	var errs []error
	if b.bare != nil {
		errs = append(errs, b.bare.Close())
	}
	if b.filter != nil {
		errs = append(errs, b.filter.Close())
	}
	for _, g := range b.gateways {
		errs = append(errs, g.Close())
	}
	return errors.Join(errs...)
}
