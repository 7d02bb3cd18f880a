// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"

	"github.com/xgw-project/xgw/pkg/mend"
)

func (x *examination) sysctls() {
	blind := true
	for i := range mend.Settings {
		s := &mend.Settings[i]
		now, there := x.now.Files[sysctlFile(s.Name)]
		if !there {
			continue // of another namespace, or a kernel without it
		}
		blind = false
		good, bad := s.Satisfied(now)
		if good {
			continue
		}
		change := s.Change()
		f := Finding{Object: s.Name, Severity: Info, Title: "it is not what a gateway wants", Evidence: fmt.Sprintf("%s, wanted %s", x.now.text(sysctlFile(s.Name)), s.Want), Cause: s.Reason, Fix: &change}
		if s.Bad != "" {
			f.Severity = Warning
		}
		if bad {
			f.Severity = Error
		}
		x.add(f)
	}
	if blind {
		x.cannot("no settings can be read")
	}
}

// counters are the TCP counters of both readings; false where there are none.
func (x *examination) tcp() (rate func(string) float64, ok bool) {
	before, now := x.before.snmp(), x.now.snmp()
	if len(now) == 0 {
		x.cannot("/proc/net/snmp is not there")
		return nil, false
	}
	return func(name string) float64 { return x.rate(before[name], now[name]) }, true
}

func (x *examination) listenQueues() {
	rate, ok := x.tcp()
	if !ok {
		return
	}
	if r := rate("TcpExt.ListenOverflows"); r > 0 {
		f := Finding{Object: "listening sockets", Severity: Error, Title: "the queue of connections that wait for a worker is full: new ones are dropped", Evidence: fmt.Sprintf("%.1f overflows, %.1f drops a second, beside %.1f connections", r, rate("TcpExt.ListenDrops"), rate("Tcp.PassiveOpens")),
			Cause: "workers accept more slowly than clients come, or somaxconn is small; of all listening programs here", Mend: "xgw top --pane cores: a worker at 100 % needs help of others, more cores or a limit by SYNs"}
		if v, ok := x.now.number(sysctlFile("net.core.somaxconn")); ok && v < 4096 {
			f.Fix, f.Mend = &mend.Change{Kind: mend.Sysctl, Object: "net.core.somaxconn", Value: "4096"}, ""
		}
		x.add(f)
	}
	dropped, cookies := rate("TcpExt.TCPReqQFullDrop"), rate("TcpExt.TCPReqQFullDoCookies")
	if dropped+cookies > 0 {
		f := Finding{Object: "handshakes", Severity: Warning, Title: "SYNs find no room: they are answered by cookies", Evidence: fmt.Sprintf("%.1f SYNs dropped, %.1f answered by cookies a second", dropped, cookies),
			Cause: "a flood of SYNs, or a burst beyond tcp_max_syn_backlog", Mend: "packet_limits by syns in gateway.yaml stop a flood at the NIC"}
		if dropped > 0 {
			f.Severity, f.Title = Error, "SYNs find no room and are dropped"
		}
		x.add(f)
	}
}

func (x *examination) retransmits() {
	rate, ok := x.tcp()
	if !ok {
		return
	}
	again, sent := rate("Tcp.RetransSegs"), rate("Tcp.OutSegs")
	if again*x.seconds < 10 || again < 0.01*sent {
		return
	}
	f := Finding{Object: "TCP", Severity: Warning, Title: "segments are sent again and again", Evidence: fmt.Sprintf("%.1f of %.1f segments a second (%.1f %%), %.1f timeouts", again, sent, 100*again/max(sent, again), rate("TcpExt.TCPTimeouts")),
		Cause: "loss on the way to clients or upstreams; or here: see the findings of interfaces", Mend: "ss -ti state established '( retrans > 0 )'  # whom it concerns"}
	if again >= 0.05*sent {
		f.Severity = Error
	}
	x.add(f)
}

// resets tells those before TCP's handshake was done from those after it.
func (x *examination) resets() {
	rate, ok := x.tcp()
	if !ok {
		return
	}
	opened := rate("Tcp.PassiveOpens")
	if r := rate("TcpExt.EmbryonicRsts"); r*x.seconds >= 10 && r > 0.1*opened {
		x.add(Finding{Object: "TCP", Severity: Warning, Title: "clients reset before their handshake is done", Evidence: fmt.Sprintf("%.1f a second beside %.1f connections (EmbryonicRsts)", r, opened),
			Cause: "before TLS: scanners, forged sources whose owners answer, or a middlebox", Mend: "xgw drops INTERFACE; packet_limits by syns for each source"})
	}
	if r := rate("Tcp.AttemptFails") - rate("TcpExt.EmbryonicRsts"); r*x.seconds >= 10 && r > 0.1*rate("Tcp.ActiveOpens") {
		x.add(Finding{Object: "TCP", Severity: Warning, Title: "connections that this machine opens fail", Evidence: fmt.Sprintf("%.1f of %.1f a second (AttemptFails)", r, rate("Tcp.ActiveOpens")),
			Cause: "TCP: upstreams refuse, or cannot be reached", Mend: "xgw top --pane upstreams"})
	}
	if r := rate("TcpExt.TCPAbortOnMemory"); r > 0 {
		x.add(Finding{Object: "TCP", Severity: Error, Title: "the kernel resets connections for want of memory", Evidence: fmt.Sprintf("%.1f a second (TCPAbortOnMemory)", r),
			Cause: "net.ipv4.tcp_mem is used up, or too many orphans", Mend: "cat /proc/net/sockstat /proc/sys/net/ipv4/tcp_mem"})
	}
}

func (x *examination) conntrack() {
	n, ok1 := x.now.number("proc/sys/net/netfilter/nf_conntrack_count")
	most, ok2 := x.now.number("proc/sys/net/netfilter/nf_conntrack_max")
	if !ok1 || !ok2 || most == 0 {
		x.cannot("connections are not tracked here")
		return
	}
	if n < most*8/10 {
		return
	}
	f := Finding{Object: "conntrack", Severity: Warning, Title: "the table of tracked connections is nearly full", Evidence: fmt.Sprintf("%d of %d", n, most),
		Cause: "a firewall tracks each connection; above it new ones are dropped (\"table full\" in dmesg)", Fix: &mend.Change{Kind: mend.Sysctl, Object: "net.netfilter.nf_conntrack_max", Value: fmt.Sprint(2 * most)}}
	if n >= most*95/100 {
		f.Severity = Error
	}
	x.add(f)
}

func (x *examination) timeWait() {
	n, ok := x.now.sockstat("TCP", "tw")
	if !ok {
		x.cannot("/proc/net/sockstat is not there")
		return
	}
	var first, last uint64
	if k, _ := fmt.Sscan(x.now.text(sysctlFile("net.ipv4.ip_local_port_range")), &first, &last); k != 2 || last < first {
		return
	}
	if ports := last - first + 1; n > ports/2 {
		f := Finding{Object: "TIME_WAIT", Severity: Warning, Title: "ended connections hold most of the ports for new ones", Evidence: fmt.Sprintf("%d in TIME_WAIT, %d ports", n, ports),
			Cause: "connections to upstreams are not kept: each request takes a port for a minute", Mend: "let upstreams keep connections (keep-alive), or give them more addresses"}
		if now := x.now.text(sysctlFile("net.ipv4.tcp_tw_reuse")); now == "0" {
			f.Fix, f.Mend = &mend.Change{Kind: mend.Sysctl, Object: "net.ipv4.tcp_tw_reuse", Value: "1"}, ""
		}
		x.add(f)
	}
}
