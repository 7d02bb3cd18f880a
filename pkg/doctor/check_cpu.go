// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xgw-project/xgw/pkg/mend"
)

// interrupts finds one core that serves the interrupts of all, and is full of it.
func (x *examination) interrupts() {
	before, now := x.before.cpus(), x.now.cpus()
	if len(now) < 2 {
		x.cannot("there is one core")
		return
	}
	const most, others = 60, 20 // per cent of a core: full, and idle
	var shares []string
	var busiest float64
	var hot, cold int
	for _, cpu := range ordered(now) {
		n, b := now[cpu], before[cpu]
		all := float64(n.all() - min(b.all(), n.all()))
		if all == 0 {
			continue
		}
		share := 100 * float64(n.irq+n.softirq-min(b.irq+b.softirq, n.irq+n.softirq)) / all
		shares = append(shares, fmt.Sprintf("%.0f", share))
		if share > busiest {
			busiest, hot = share, cpu
		}
		if share < others {
			cold++
		}
	}
	if busiest < most || cold < len(now)/2 {
		return
	}
	f := Finding{Object: fmt.Sprintf("core %d", hot), Severity: Error, Title: "one core serves the interrupts of all and is full", Evidence: fmt.Sprintf("per cent of each core in interrupts: %s", strings.Join(shares, " ")),
		Cause: "all queues' interrupts go to it, or the NIC has one queue", Mend: "spread: auto in gateway.yaml and xgw ctl reload, where the NIC has fewer queues than cores"}
	for _, n := range x.now.NICs {
		served, queues := x.served(&n)
		if queues > 1 && len(served) == 1 && served[0] == hot {
			f.Object, f.Cause = n.Name, fmt.Sprintf("the interrupts of its %d queues all go to core %d", queues, hot)
			f.Mend = "xgw queues " + n.Name + " --spread"
		}
	}
	x.add(f)
}

// served are the cores that took the interface's interrupts between the readings, and how many
// of its interrupts came.
func (x *examination) served(n *NIC) (cores []int, queues int) {
	cpus, now := x.now.interrupts()
	_, before := x.before.interrupts()
	old := map[int]interrupt{}
	for _, b := range before {
		old[b.number] = b
	}
	for _, i := range now {
		if !slices.Contains(n.IRQs, i.number) {
			continue
		}
		came := false
		for at, c := range i.counts {
			b := old[i.number]
			if at < len(b.counts) && c > b.counts[at] {
				came = true
				if !slices.Contains(cores, cpus[at]) {
					cores = append(cores, cpus[at])
				}
			}
		}
		if came {
			queues++
		}
	}
	return cores, queues
}

func (x *examination) softnet() {
	before, now := x.before.softnet(), x.now.softnet()
	if len(now) == 0 {
		x.cannot("/proc/net/softnet_stat is not there")
		return
	}
	old := map[int]softnetRow{}
	for _, b := range before {
		old[b.cpu] = b
	}
	for _, n := range now {
		b, known := old[n.cpu]
		if !known {
			continue // it has just come online
		}
		processed := x.rate(b.processed, n.processed)
		if r := x.rate(b.dropped, n.dropped); r > 0 {
			f := Finding{Object: fmt.Sprintf("core %d", n.cpu), Severity: Error, Title: "packets are dropped before it takes them", Evidence: fmt.Sprintf("%.1f a second of %.0f (softnet_stat, dropped)", r, processed),
				Cause: "its queue of packets that RPS or `spread` hands it is full", Mend: "xgw tune --apply"}
			if v, ok := x.now.number(sysctlFile("net.core.netdev_max_backlog")); ok && v < 16384 {
				f.Fix, f.Mend = &mend.Change{Kind: mend.Sysctl, Object: "net.core.netdev_max_backlog", Value: fmt.Sprint(max(4096, 2*v))}, ""
			}
			x.add(f)
		}
		if r := x.rate(b.squeezed, n.squeezed); r >= 10 && processed > 0 {
			f := Finding{Object: fmt.Sprintf("core %d", n.cpu), Severity: Warning, Title: "it stops receiving while packets wait", Evidence: fmt.Sprintf("%.1f times a second of %.0f packets (softnet_stat, squeezed)", r, processed),
				Cause: "more packets than netdev_budget allows in a round"}
			if v, ok := x.now.number(sysctlFile("net.core.netdev_budget")); ok && v < 1200 {
				f.Fix = &mend.Change{Kind: mend.Sysctl, Object: "net.core.netdev_budget", Value: fmt.Sprint(2 * v)}
			}
			x.add(f)
		}
	}
}

// irqbalance moves interrupts that were pinned, unless it was told not to.
func (x *examination) irqbalance() {
	line, runs := x.now.Files[balancer]
	if !runs {
		x.cannot("irqbalance does not run")
		return
	}
	for _, n := range x.now.NICs {
		var free []string
		for _, irq := range n.IRQs {
			if !slices.Contains(mend.Banned(line), irq) {
				free = append(free, fmt.Sprint(irq))
			}
		}
		if len(free) < 2 { // nothing to balance
			continue
		}
		f := Finding{Object: n.Name, Severity: Warning, Title: "irqbalance moves its interrupts from core to core", Evidence: fmt.Sprintf("irqbalance runs, and may move %s", strings.Join(free, ", ")),
			Cause: "connections move with them, away from the worker that has them in its cache", Mend: "xgw queues " + n.Name + " --spread # prints what to give irqbalance"}
		if moved := x.moved(&n); moved > 0 {
			f.Evidence += fmt.Sprintf("; %d moved between the readings", moved)
		}
		x.add(f)
	}
}

// moved counts the interrupts whose cores changed between the readings.
func (x *examination) moved(n *NIC) (moved int) {
	for _, irq := range n.IRQs {
		path := irqFile(irq, "effective_affinity_list")
		if was, is := x.before.text(path), x.now.text(path); was != is {
			moved++
		}
	}
	return moved
}

// drift finds what was spread once and is not so any more.
func (x *examination) drift() {
	f := x.now.Facts
	if f.Spread == 0 {
		x.cannot("no queues were spread")
		return
	}
	if n := len(f.Drift); n > 0 {
		x.add(Finding{Object: "queues", Severity: Warning, Title: "what xgw queues --spread has set is not so any more", Evidence: fmt.Sprintf("%d of %d settings: %s", n, f.Spread, strings.Join(f.Drift, ", ")),
			Cause: "irqbalance, or a driver that made its queues anew", Mend: "xgw queues INTERFACE --spread # once more"})
	}
}
