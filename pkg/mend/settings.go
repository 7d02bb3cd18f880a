// SPDX-License-Identifier: Apache-2.0

package mend

import (
	"strconv"
	"strings"
)

// Setting is a sysctl that a gateway wants.
type Setting struct {
	Name   string // net.core.somaxconn
	Want   string
	Least  bool   // more is as good; else it is to be Want
	Bad    string // what is an error; "" when what is not wanted is never worse than a warning
	Reason string
}

// Settings are all of them. Figures in the reasons are from TestEffectOfSomaxconn and the
// kernel's documentation (Documentation/networking/ip-sysctl.rst).
var Settings = []Setting{
	{Name: "net.core.somaxconn", Want: "4096", Least: true, Bad: "511",
		Reason: "bounds the queue of connections that wait for each worker: of 200 that come at once, 17 get in with 16, all with 4096; sockets take it when they begin to listen, so restart the gateway"},
	{Name: "net.ipv4.tcp_max_syn_backlog", Want: "4096", Least: true, Bad: "127",
		Reason: "bounds the handshakes under way: above it SYNs are dropped, or answered by cookies, which know fewer options"},
	{Name: "net.ipv4.tcp_syncookies", Want: "1", Least: true, Bad: "0",
		Reason: "without cookies a flood of SYNs that no limit stops keeps everybody out"},
	{Name: "net.ipv4.ip_local_port_range", Want: "32768 60999", Least: true, Bad: "4095",
		Reason: "is how many connections to one server of an upstream there can be, those in TIME_WAIT among them"},
	{Name: "net.ipv4.tcp_tw_reuse", Want: "1", Least: false,
		Reason: "lets a new connection to an upstream have the port of one that has been in TIME_WAIT for a second"},
	{Name: "net.ipv4.tcp_max_tw_buckets", Want: "16384", Least: true,
		Reason: "bounds connections in TIME_WAIT: above it they end at once, and a late packet may meet the next one"},
	{Name: "net.ipv4.tcp_slow_start_after_idle", Want: "0", Least: false,
		Reason: "a connection that was idle goes on at the speed it had: replies after a pause need no second slow start"},
	{Name: "net.core.netdev_max_backlog", Want: "4096", Least: true,
		Reason: "bounds the packets that wait for a CPU where RPS or `spread` hands them over"},
	{Name: "net.core.bpf_jit_enable", Want: "1", Least: true, Bad: "0",
		Reason: "without the compiler each packet runs the programs in the kernel's interpreter, several times slower"},
}

// Files are the open files that a worker is to be allowed: a connection of a client and one
// to an upstream each take one.
const Files = 65535

// Change is what makes it so.
func (s *Setting) Change() Change { return Change{Kind: Sysctl, Object: s.Name, Value: s.Want} }

// Satisfied tells whether the present value will do, and whether it is so far off that it is
// an error. A value that cannot be read as numbers will do.
func (s *Setting) Satisfied(now string) (good, bad bool) {
	have, ok1 := size(now)
	want, ok2 := size(s.Want)
	if !ok1 || !ok2 {
		return true, false
	}
	good = have == want || s.Least && have > want
	if limit, ok := size(s.Bad); ok && !good {
		bad = have <= limit
	}
	return good, bad
}

// size is a number, or how many there are in a range of two.
func size(s string) (int, bool) {
	w := strings.Fields(s)
	if len(w) == 0 || len(w) > 2 {
		return 0, false
	}
	first, err := strconv.Atoi(w[0])
	if err != nil || len(w) == 1 {
		return first, err == nil
	}
	last, err := strconv.Atoi(w[1])
	return last - first + 1, err == nil
}
