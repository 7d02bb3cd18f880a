// SPDX-License-Identifier: Apache-2.0

// Package doctor says what is wrong with a machine and the gateway on it. Two readings an
// interval apart are taken, of files in /proc and /sys, of interfaces, and of the gateway's
// own counts; each check is a function of the two, so that another machine can be a file of a
// test. What has been counted since boot says nothing: checks look at rates.
package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/xgw-project/xgw/pkg/mend"
)

// Severity orders findings.
type Severity string

// Severities. An error costs packets, connections or requests now, or will at the next
// restart; a warning may under load; an info is for those who look for more.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, Info}, s) }

// Finding is one thing that is wrong.
type Finding struct {
	Check    string       `json:"check"`
	Object   string       `json:"object"` // what it is about: an interface, a core, a setting, an upstream
	Severity Severity     `json:"severity"`
	Title    string       `json:"title"`
	Evidence string       `json:"evidence"` // the numbers
	Cause    string       `json:"cause,omitempty"`
	Mend     string       `json:"mend,omitempty"` // a command, or what to do by hand
	Fix      *mend.Change `json:"fix,omitempty"`  // what --fix does about it; it can be undone
}

// Report is what was found, the worst first.
type Report struct {
	Findings []Finding `json:"findings"`
	// Blind are checks that could not look, and why.
	Blind map[string]string `json:"not_looked_at,omitempty"`
	Looks int               `json:"checks"` // that could
}

// Worst is the severity of the first finding; "" for none.
func (r *Report) Worst() Severity {
	if len(r.Findings) == 0 {
		return ""
	}
	return r.Findings[0].Severity
}

// Fixes are the changes that mend what can be mended and undone; where two findings want a
// setting differently, the worse one's.
func (r *Report) Fixes() []mend.Change {
	var all []mend.Change
	for i := range r.Findings {
		f := r.Findings[i].Fix
		if f != nil && !slices.ContainsFunc(all, f.Same) {
			all = append(all, *f)
		}
	}
	return all
}

// check is one of the checks. Of findings of one severity, those of an earlier check come
// first: what stops the gateway goes before what slows it.
type check struct {
	name string
	run  func(*examination)
}

// checks are all there are.
var checks = []check{
	// The gateway, from its process to its upstreams.
	{"supervisor", (*examination).supervisor},
	{"workers", (*examination).workers},
	{"configuration", (*examination).configuration},
	{"certificates", (*examination).certificates},
	{"log-disk", (*examination).logDisk},
	{"upstreams", (*examination).upstreams},
	{"servers", (*examination).servers},
	{"overload", (*examination).overload},
	{"handshakes", (*examination).handshakes},
	{"clients", (*examination).clients},
	{"zone", (*examination).zone},
	{"maps", (*examination).maps},
	{"open-files", (*examination).openFiles},
	// Interfaces.
	{"link", (*examination).link},
	{"xdp-mode", (*examination).xdpMode},
	{"native-xdp", (*examination).nativeXDP},
	{"nic-errors", (*examination).nicErrors},
	{"rings", (*examination).rings},
	{"channels", (*examination).channels},
	{"rss", (*examination).rss},
	{"xps", (*examination).xps},
	// The CPUs that receive.
	{"interrupts", (*examination).interrupts},
	{"softnet", (*examination).softnet},
	{"irqbalance", (*examination).irqbalance},
	{"drift", (*examination).drift},
	// TCP.
	{"sysctls", (*examination).sysctls},
	{"listen-queues", (*examination).listenQueues},
	{"retransmits", (*examination).retransmits},
	{"resets", (*examination).resets},
	{"conntrack", (*examination).conntrack},
	{"time-wait", (*examination).timeWait},
	// The machine.
	{"memory", (*examination).memory},
	{"pressure", (*examination).pressure},
	{"disk-latency", (*examination).diskLatency},
	{"file-table", (*examination).fileTable},
	{"cpu-frequency", (*examination).cpuFrequency},
	{"throttling", (*examination).throttling},
	{"steal", (*examination).steal},
	{"clock", (*examination).clock},
	{"kernel", (*examination).kernel},
}

// examination is what a check works on.
type examination struct {
	before, now *Reading
	seconds     float64 // between the two

	check string
	blind string
	found []Finding
}

// Examine runs all checks on two readings, the earlier one first.
func Examine(before, now *Reading) *Report {
	x := &examination{before: before, now: now, seconds: max(now.At.Sub(before.At).Seconds(), 1e-3)}
	r := &Report{Blind: map[string]string{}}
	for _, c := range checks {
		x.check, x.blind = c.name, ""
		n := len(x.found)
		c.run(x)
		if x.blind != "" && len(x.found) == n {
			r.Blind[c.name] = x.blind
		} else {
			r.Looks++
		}
	}
	r.Findings = x.found
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(a.Severity.rank(), b.Severity.rank()) })
	return r
}

// add notes a finding. One that can be fixed tells the fix's command as its mend.
func (x *examination) add(f Finding) {
	f.Check = x.check
	if f.Fix != nil && f.Mend == "" {
		f.Mend = f.Fix.Command()
	}
	x.found = append(x.found, f)
}

// cannot notes that the check has nothing to look at.
func (x *examination) cannot(why string, a ...any) { x.blind = fmt.Sprintf(why, a...) }

// rate is a counter's change a second. One that went down began anew.
func (x *examination) rate(before, now uint64) float64 {
	if now < before {
		return 0
	}
	return float64(now-before) / x.seconds
}

// WriteText writes the report for an operator.
func (r *Report) WriteText() string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-8s%s: %s\n", f.Severity, f.Object, f.Title)
		for _, line := range []struct{ name, text string }{{"seen", f.Evidence}, {"cause", f.Cause}, {"mend", f.Mend}} {
			if line.text != "" {
				fmt.Fprintf(&b, "        %-6s %s\n", line.name+":", line.text)
			}
		}
	}
	if len(r.Findings) == 0 {
		b.WriteString("nothing is wrong\n")
	}
	fmt.Fprintf(&b, "%d checks", r.Looks)
	if len(r.Blind) > 0 {
		fmt.Fprintf(&b, "; %d had nothing to look at here:", len(r.Blind))
	}
	b.WriteByte('\n')
	for _, c := range checks {
		if why, blind := r.Blind[c.name]; blind {
			fmt.Fprintf(&b, "        %-14s %s\n", c.name, why)
		}
	}
	return b.String()
}
