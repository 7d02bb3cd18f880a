// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule is what a packet must be, and what becomes of it.
type rule struct {
	matches []match
	then    match
}

func (r rule) text() string {
	words := make([]string, 0, len(r.matches)+1)
	for _, m := range append(append([]match{}, r.matches...), r.then) {
		words = append(words, m.text)
	}
	return strings.Join(words, " ")
}

// match is one part of a rule, as text and as the kernel takes it.
type match struct {
	text  string
	exprs []expr.Any
	// What is in register 1 then is to be one of these; none: no more is asked.
	key nftables.SetDatatype
	in  []nftables.SetElement
	// Whether they are ranges, each as its beginning and the first behind it.
	interval bool
}

// ports of a rule: a message to the kernel has room for 64 KiB of elements.
const mostPorts = 512

const (
	mostFlows = 65536            // for each family
	flowTime  = 30 * time.Second // since what was sent last; as connection tracking has it
)

// Registers of 4 bytes, of which the first 4 are register 1, and the next register 2.
const firstWord = unix.NFT_REG32_00

func meta(key expr.MetaKey, value ...byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func isProtocol(p byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, p) }

func isFamily(f int) []expr.Any {
	if f == 4 {
		return meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4)
	}
	return meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)
}

func payload(base expr.PayloadBase, offset, length, register uint32) expr.Any {
	return &expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: register}
}

func equals(data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}
}

func masked(length uint32, mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)}
}

func join(parts ...[]expr.Any) (out []expr.Any) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

var (
	accept       = match{text: "accept", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
	countAndDrop = match{text: `counter name "dropped" drop`, exprs: []expr.Any{
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: dropped}, &expr.Verdict{Kind: expr.VerdictDrop},
	}}
	loopback = match{text: `iif "lo"`, exprs: meta(expr.MetaKeyIIF, binaryutil.NativeEndian.PutUint32(1)...)}
	// TCP but for the packet that opens a connection, which has SYN and not ACK.
	opensNothing = match{text: "tcp flags & (syn | ack) != syn", exprs: join(isProtocol(unix.IPPROTO_TCP), []expr.Any{
		payload(expr.PayloadBaseTransportHeader, 13, 1, 1), masked(1, []byte{0x12}),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0x02}},
	})}
	// A fragment that is not the first, of the fragment header's offset in its upper 13 bits.
	laterFragment = match{text: "frag frag-off != 0", exprs: join(isFamily(6), []expr.Any{
		&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6}, masked(2, []byte{0xff, 0xf8}),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	})}
	// Neighbour discovery has come from this link if no router has counted its hop limit down.
	onLink     = match{text: "ip6 hoplimit 255", exprs: join(isFamily(6), []expr.Any{payload(expr.PayloadBaseNetworkHeader, 7, 1, 1), equals(255)})}
	neighbours = icmpTypes(6, "nd-router-solicit 133", "nd-router-advert 134", "nd-neighbor-solicit 135", "nd-neighbor-advert 136", "nd-redirect 137")
	icmp       = icmpTypes(4, "echo-reply 0", "destination-unreachable 3", "echo-request 8", "time-exceeded 11", "parameter-problem 12")
	icmp6      = icmpTypes(6, "destination-unreachable 1", "packet-too-big 2", "time-exceeded 3", "parameter-problem 4",
		"echo-request 128", "echo-reply 129", "mld-listener-query 130")
)

// icmpTypes takes each type as its name and number.
func icmpTypes(version int, types ...string) match {
	word, protocol, m := "icmp", byte(unix.IPPROTO_ICMP), match{key: nftables.TypeICMPType}
	if version == 6 {
		word, protocol, m.key = "icmpv6", unix.IPPROTO_ICMPV6, nftables.TypeICMP6Type
	}
	var names []string
	for _, t := range types {
		var name string
		var number byte
		_, _ = fmt.Sscan(t, &name, &number)
		names = append(names, name)
		m.in = append(m.in, nftables.SetElement{Key: []byte{number}})
	}
	m.text = fmt.Sprintf("%s type { %s }", word, strings.Join(names, ", "))
	m.exprs = join(isFamily(version), isProtocol(protocol), []expr.Any{payload(expr.PayloadBaseTransportHeader, 0, 1, 1)})
	return m
}

func family(version int) match {
	return match{text: fmt.Sprintf("meta nfproto ipv%d", version), exprs: isFamily(version)}
}

// field is a port's place in a packet.
type field struct {
	text     string
	protocol byte
	offset   uint32
}

var (
	tcpDestination = field{"tcp dport", unix.IPPROTO_TCP, 2}
	udpDestination = field{"udp dport", unix.IPPROTO_UDP, 2}
	udpSource      = field{"udp sport", unix.IPPROTO_UDP, 0}
)

func (f field) load() []expr.Any {
	return join(isProtocol(f.protocol), []expr.Any{payload(expr.PayloadBaseTransportHeader, f.offset, 2, 1)})
}

func onPort(f field, port uint16) match {
	return match{text: fmt.Sprintf("%s %d", f.text, port), exprs: append(f.load(), equals(binaryutil.BigEndian.PutUint16(port)...))}
}

// served are the rules that accept the ports, some in each.
func served(f field, list []ports) (out []rule) {
	for ; len(list) > mostPorts; list = list[mostPorts:] {
		out = append(out, rule{[]match{onPorts(f, list[:mostPorts])}, accept})
	}
	if len(list) > 0 {
		out = append(out, rule{[]match{onPorts(f, list)}, accept})
	}
	return out
}

func onPorts(f field, list []ports) match {
	if len(list) == 1 && list[0].first == list[0].last {
		return onPort(f, list[0].first)
	}
	m := match{exprs: f.load(), key: nftables.TypeInetService, interval: true}
	var words []string
	if list[0].first > 0 {
		m.in = append(m.in, nftables.SetElement{Key: []byte{0, 0}, IntervalEnd: true}) // what is below
	}
	for _, r := range list {
		words = append(words, r.String())
		m.in = append(m.in, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.first)})
		if r.last < 65535 {
			m.in = append(m.in, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.last + 1), IntervalEnd: true})
		}
	}
	m.text = fmt.Sprintf("%s { %s }", f.text, strings.Join(words, ", "))
	return m
}

func fromPrefix(p netip.Prefix) match {
	p = p.Masked()
	if p.Bits() == 0 {
		if p.Addr().Is4() {
			return family(4)
		}
		return family(6)
	}
	word, offset, raw := "ip saddr", uint32(12), p.Addr().AsSlice()
	version, length := 4, uint32(4)
	if p.Addr().Is6() {
		word, offset, version, length = "ip6 saddr", 8, 6, 16
	}
	m := match{exprs: append(isFamily(version), payload(expr.PayloadBaseNetworkHeader, offset, length, 1))}
	text := p.String()
	if p.Bits() == p.Addr().BitLen() {
		text = p.Addr().String()
	} else {
		mask := make([]byte, length)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		m.exprs = append(m.exprs, masked(length, mask))
	}
	m.text = word + " " + text
	m.exprs = append(m.exprs, equals(raw...))
	return m
}

// flows are a set of peers, their ports and ours.
type flows struct {
	name    string
	word    string
	version int
	key     nftables.SetDatatype
	// Of the addresses in the IP header.
	source, destination, length uint32
}

var (
	sent4 = &flows{"sent4", "ip", 4, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService, nftables.TypeInetService), 12, 16, 4}
	sent6 = &flows{"sent6", "ip6", 6, nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService, nftables.TypeInetService), 8, 24, 16}
)

// load puts an address, its port and the other port into consecutive registers.
func (s *flows) load(address, port, other uint32) []expr.Any {
	next := firstWord + s.length/4
	return join(isFamily(s.version), isProtocol(unix.IPPROTO_UDP), []expr.Any{
		payload(expr.PayloadBaseNetworkHeader, address, s.length, 1),
		payload(expr.PayloadBaseTransportHeader, port, 2, next),
		payload(expr.PayloadBaseTransportHeader, other, 2, next+1),
	})
}

// isReply matches what comes from where something was sent, to the port it was sent from.
func isReply(s *flows) match {
	return match{
		text:  fmt.Sprintf("%s saddr . udp sport . udp dport @%s", s.word, s.name),
		exprs: append(s.load(s.source, 0, 2), &expr.Lookup{SourceRegister: 1, SetName: s.name}),
	}
}

// note remembers where something is sent.
func note(s *flows) match {
	return match{
		text: fmt.Sprintf("update @%s { %s daddr . udp dport . udp sport }", s.name, s.word),
		exprs: append(s.load(s.destination, 2, 0),
			&expr.Dynset{SrcRegKey: 1, SetName: s.name, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE)}),
	}
}
