// SPDX-License-Identifier: Apache-2.0

// Package firewall is the port guard once more, for the kernel's own packet filter: an nftables
// table that admits what the guard of the kernel plane lets pass, on all interfaces, with or
// without XDP. Rules are a pure function of a policy; apply.go alone talks to the kernel.
//
// There is no connection tracking: a table of all connections is the first thing that a flood
// fills. As for the guard, TCP that opens no connection passes, since nothing comes of it without
// one; replies over UDP are those to a packet that this host has sent in the last half minute.
package firewall

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/xgw-project/xgw/pkg/policy"
)

// Names within the table. Rules are in two chains whose names have a digest of what they say, so
// that others can be put beside them, and base chains say which hold.
const (
	inputChain  = "input"
	outputChain = "output"
	rulesPrefix = "rules-"
	sentPrefix  = "sent-"
	unconfirmed = "unconfirmed" // a set: not empty while rules that wait to be confirmed hold
	dropped     = "dropped"     // the counter
)

// Firewall is the rules that a policy comes to.
type Firewall struct {
	Table    string // of family inet
	tcp, udp []ports
	pinholes []policy.Pinhole
	digest   string
}

// TableName is that of an instance's table.
func TableName(instance string) string {
	if instance == "" {
		return "xgw"
	}
	return "xgw-" + instance
}

// New is the firewall of a policy: the ports of its port guard, whatever the guard's mode, for
// everybody, and those of its pinholes for whom they name.
func New(instance string, p *policy.Policy) *Firewall {
	f := &Firewall{
		Table: TableName(instance), tcp: ranges(p.Tables.PortGuard.TCP), udp: ranges(p.Tables.PortGuard.UDP),
		pinholes: p.Pinholes,
	}
	h := fnv.New32a()
	for _, r := range append(f.rules(), f.sent()...) {
		h.Write([]byte(r.text() + "\n"))
	}
	f.digest = fmt.Sprintf("%08x", h.Sum32())
	return f
}

// Admits tells whether a source may open a connection of TCP to the port.
func (f *Firewall) Admits(source netip.Addr, port uint16) bool {
	if has(f.tcp, port) {
		return true
	}
	for _, h := range f.pinholes {
		if h.Port == port && h.Source.Contains(source.Unmap().WithZone("")) {
			return true
		}
	}
	return source.IsLoopback()
}

// AdmitsUDP tells whether anybody may send to the port unasked, or for those of DHCP's clients,
// their servers.
func (f *Firewall) AdmitsUDP(port uint16) bool { return has(f.udp, port) || port == 68 || port == 546 }

func has(list []ports, port uint16) bool {
	return slices.ContainsFunc(list, func(r ports) bool { return r.first <= port && port <= r.last })
}

// ports are consecutive ones.
type ports struct{ first, last uint16 }

func (p ports) String() string {
	if p.first == p.last {
		return fmt.Sprint(p.first)
	}
	return fmt.Sprintf("%d-%d", p.first, p.last)
}

// ranges joins consecutive ports of a sorted list.
func ranges(list []uint16) (out []ports) {
	for _, p := range list {
		if n := len(out); n > 0 && (out[n-1].last == p || out[n-1].last+1 == p) {
			out[n-1].last = p
			continue
		}
		out = append(out, ports{p, p})
	}
	return out
}

// rules say what this host is to receive; the first that matches decides.
func (f *Firewall) rules() []rule {
	all := []rule{
		{[]match{loopback}, accept},
		{[]match{opensNothing}, accept},
	}
	all = append(all, served(tcpDestination, f.tcp)...)
	all = append(all, served(udpDestination, f.udp)...)
	for _, h := range f.pinholes {
		all = append(all, rule{[]match{fromPrefix(h.Source), onPort(tcpDestination, h.Port)}, accept})
	}
	return append(all,
		rule{[]match{isReply(sent4)}, accept},
		rule{[]match{isReply(sent6)}, accept},
		rule{[]match{icmp}, accept},
		rule{[]match{icmp6}, accept},
		rule{[]match{onLink, neighbours}, accept},
		rule{[]match{family(4), onPort(udpSource, 67), onPort(udpDestination, 68)}, accept},
		rule{[]match{family(6), onPort(udpSource, 547), onPort(udpDestination, 546)}, accept},
		rule{[]match{laterFragment}, accept}, // of IPv6; those of IPv4 have been put together by now
		rule{nil, countAndDrop},
	)
}

// sent notes what this host asks others over UDP. Its own replies from ports that are served
// are no questions: they would fill the table with strangers.
func (f *Firewall) sent() []rule {
	all := served(udpSource, f.udp)
	return append(all, rule{nil, note(sent4)}, rule{nil, note(sent6)})
}

// Text is the table as `nft -f` takes it, in the place of what there was of it.
func (f *Firewall) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n\tcounter %s {\n\t\tpackets 0 bytes 0\n\t}\n", f.Table, f.Table, f.Table, dropped)
	for _, s := range []*flows{sent4, sent6} {
		fmt.Fprintf(&b, "\n\tset %s {\n\t\ttype %s\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %ds\n\t}\n", s.name, s.key.Name, mostFlows, int(flowTime.Seconds()))
	}
	for _, base := range []struct{ name, to string }{{inputChain, rulesPrefix}, {outputChain, sentPrefix}} {
		fmt.Fprintf(&b, "\n\tchain %s {\n\t\ttype filter hook %s priority filter; policy accept;\n\t\tgoto %s\n\t}\n", base.name, base.name, base.to+f.digest)
	}
	for _, c := range []struct {
		name  string
		rules []rule
	}{{rulesPrefix, f.rules()}, {sentPrefix, f.sent()}} {
		fmt.Fprintf(&b, "\n\tchain %s {\n", c.name+f.digest)
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r.text())
		}
		b.WriteString("\t}\n")
	}
	return b.String() + "}\n"
}
