// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"strconv"
	"strings"
)

func (x *examination) memory() {
	m := x.now.keyed("proc/meminfo")
	total, free := m["MemTotal"], m["MemAvailable"]
	if total == 0 {
		x.cannot("/proc/meminfo is not there")
		return
	}
	seen := fmt.Sprintf("%s of %s available", bytesOf(free<<10), bytesOf(total<<10))
	if r := x.rate(x.before.keyed("proc/vmstat")["oom_kill"], x.now.keyed("proc/vmstat")["oom_kill"]); r > 0 {
		x.add(Finding{Object: "memory", Severity: Error, Title: "the kernel kills processes for want of memory", Evidence: seen, Cause: "more is in use than there is", Mend: "dmesg | grep -i oom; worker_memory in gateway.yaml bounds the workers"})
	} else if free < total/20 {
		x.add(Finding{Object: "memory", Severity: Warning, Title: "little memory is left", Evidence: seen, Cause: "processes, or the shared zone and its maps", Mend: "ps -eo rss,comm --sort -rss | head; worker_memory in gateway.yaml bounds the workers"})
	}
}

// pressure looks at how long tasks waited between the readings.
func (x *examination) pressure() {
	if _, ok := x.now.stalled("io", "some"); !ok {
		x.cannot("the kernel does not tell pressure (psi=1)")
		return
	}
	for _, c := range []struct{ resource, who, title, cause, mend string }{
		{"io", "full", "everything waits for disks", "the log's disk, or swapping", "put access.log on another disk: `log: {access: …}`"},
		{"memory", "full", "everything waits for memory", "pages are taken away and read back", "see memory"},
		{"cpu", "some", "tasks wait for a core", "more to do than there are cores", "xgw top --pane cores"},
	} {
		before, ok1 := x.before.stalled(c.resource, c.who)
		now, ok2 := x.now.stalled(c.resource, c.who)
		most := 10.0
		if c.resource == "cpu" {
			most = 60
		}
		if share := x.rate(before, now) / 1e6 * 100; ok1 && ok2 && share > most {
			x.add(Finding{Object: c.resource, Severity: Warning, Title: c.title, Evidence: fmt.Sprintf("%.0f %% of the time (/proc/pressure/%s, %s)", share, c.resource, c.who), Cause: c.cause, Mend: c.mend})
		}
	}
}

func (x *examination) diskLatency() {
	g := x.now.Gateway
	if g == nil || g.Log.Device == "" {
		x.cannot("the disk of the access log is not known")
		return
	}
	n, ms, ok1 := x.now.writes(g.Log.Device)
	oldN, oldMS, ok2 := x.before.writes(g.Log.Device)
	if !ok1 || !ok2 {
		x.cannot("/proc/diskstats has no %s", g.Log.Device)
		return
	}
	if writes := n - min(oldN, n); writes >= 5 {
		if each := float64(ms-min(oldMS, ms)) / float64(writes); each > 100 {
			x.add(Finding{Object: g.Log.Device, Severity: Warning, Title: "the access log's disk is slow", Evidence: fmt.Sprintf("%.0f ms for each of %d writes", each, writes),
				Cause: "a disk that is worn, shared or full; requests do not wait for it, log lines are dropped", Mend: "iostat -x 1; put access.log on another disk"})
		}
	}
}

func (x *examination) fileTable() {
	var used, free, most uint64
	if n, _ := fmt.Sscan(x.now.text("proc/sys/fs/file-nr"), &used, &free, &most); n != 3 || most == 0 {
		x.cannot("/proc/sys/fs/file-nr is not there")
		return
	}
	if used > most/10*9 {
		x.add(Finding{Object: "fs.file-max", Severity: Error, Title: "the machine's open files are nearly used up", Evidence: fmt.Sprintf("%d of %d", used, most), Cause: "some program leaks them, or the bound is small", Mend: fmt.Sprintf("sysctl -w fs.file-max=%d", 2*most)})
	}
}

func (x *examination) cpuFrequency() {
	now, most, governor := x.now.perCPU("cpufreq/scaling_cur_freq"), x.now.perCPU("cpufreq/cpuinfo_max_freq"), x.now.perCPU("cpufreq/scaling_governor")
	if len(now) == 0 {
		x.cannot("frequencies are not this machine's to choose, as in most virtual ones")
		return
	}
	var slow []string
	for _, cpu := range ordered(now) {
		f, _ := strconv.Atoi(now[cpu])
		m, _ := strconv.Atoi(most[cpu])
		if f > 0 && f < m/2 && governor[cpu] == "powersave" {
			slow = append(slow, fmt.Sprintf("core %d %d of %d MHz", cpu, f/1000, m/1000))
		}
	}
	if len(slow) > 0 {
		x.add(Finding{Object: "CPU frequency", Severity: Warning, Title: "cores are slow to save power: each packet waits for them to speed up", Evidence: strings.Join(slow, ", "), Cause: "governor powersave", Mend: "cpupower frequency-set -g performance"})
	}
}

func (x *examination) throttling() {
	now, before := x.now.perCPU("thermal_throttle/core_throttle_count"), x.before.perCPU("thermal_throttle/core_throttle_count")
	if len(now) == 0 {
		x.cannot("the CPUs do not tell")
		return
	}
	for _, cpu := range ordered(now) {
		n, _ := strconv.ParseUint(now[cpu], 10, 64)
		b, _ := strconv.ParseUint(before[cpu], 10, 64)
		if r := x.rate(b, n); before[cpu] != "" && r > 0 {
			x.add(Finding{Object: fmt.Sprintf("core %d", cpu), Severity: Error, Title: "it is too hot and slows down", Evidence: fmt.Sprintf("throttled %.1f times a second", r), Cause: "cooling", Mend: "sensors; clean the fans, or move the machine"})
			return
		}
	}
}

func (x *examination) steal() {
	now, before := x.now.cpus(), x.before.cpus()
	var stolen, all uint64
	for cpu, n := range now {
		b := before[cpu]
		stolen += n.steal - min(b.steal, n.steal)
		all += n.all() - min(b.all(), n.all())
	}
	if all == 0 {
		x.cannot("no time has passed in /proc/stat")
		return
	}
	if share := 100 * float64(stolen) / float64(all); share > 5 {
		x.add(Finding{Object: "virtual CPUs", Severity: Warning, Title: "the hypervisor gives their time to others", Evidence: fmt.Sprintf("%.0f %% stolen", share), Cause: "an overbooked host, or credits that are used up", Mend: "another size of instance, or dedicated cores"})
	}
}

func (x *examination) clock() {
	source := x.now.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
	if source == "" {
		x.cannot("the kernel does not tell its clock")
	}
	if source == "hpet" || source == "acpi_pm" || source == "jiffies" {
		x.add(Finding{Object: "clock", Severity: Warning, Title: "each look at the clock is a slow access to a device", Evidence: fmt.Sprintf("clock source %s; there are %s", source, x.now.text("sys/devices/system/clocksource/clocksource0/available_clocksource")),
			Cause: "the kernel did not trust the CPU's own clock", Mend: "dmesg | grep -i tsc; echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"})
	}
	if x.now.Facts.Unsynchronised {
		x.add(Finding{Object: "clock", Severity: Info, Title: "nobody sets the clock: certificates, keys and logs go by it", Evidence: "adjtimex says unsynchronised", Cause: "no NTP client runs, or it reaches nobody; containers may not see that their host does it", Mend: "timedatectl set-ntp true"})
	}
}

// features that the kernel plane has a way around, and what the way costs.
var features = []struct {
	since [2]int
	name  string
	cost  string
}{
	{[2]int{5, 4}, "the base that the programs need", "the kernel plane does not load"},
	{[2]int{5, 9}, "XDP links", "attached by netlink: another program may replace it"},
	{[2]int{5, 10}, "inner maps of any size", "room for some 200,000 prefixes, chosen at attach"},
	{[2]int{5, 18}, "XDP for packets of several buffers", "an MTU above 3,500 bytes rules native mode out"},
	{[2]int{6, 6}, "tcx", "tc mode and egress go by clsact, which others may take off"},
	{[2]int{6, 8}, "queues by NAPI instance", "the access log has no receive queues"},
}

func (x *examination) kernel() {
	var v [2]int
	if n, _ := fmt.Sscanf(x.now.Facts.Kernel, "%d.%d", &v[0], &v[1]); n != 2 {
		x.cannot("the release %q is not understood", x.now.Facts.Kernel)
		return
	}
	for _, f := range features {
		if v[0] > f.since[0] || v[0] == f.since[0] && v[1] >= f.since[1] {
			continue
		}
		severity := Info
		if f.since == [2]int{5, 4} {
			severity = Error
		}
		x.add(Finding{Object: "kernel", Severity: severity, Title: "it lacks " + f.name + ": " + f.cost, Evidence: fmt.Sprintf("Linux %s; from %d.%d on", x.now.Facts.Kernel, f.since[0], f.since[1]), Cause: "its age", Mend: "a newer kernel"})
	}
}
