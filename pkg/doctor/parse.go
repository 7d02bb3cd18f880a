// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/xgw-project/xgw/pkg/mend"
)

func irqFile(n int, name string) string { return fmt.Sprintf("proc/irq/%d/%s", n, name) }

func sysctlFile(name string) string { return "proc/sys/" + strings.ReplaceAll(name, ".", "/") }

func settingFiles() []string {
	var all []string
	for i := range mend.Settings {
		all = append(all, sysctlFile(mend.Settings[i].Name))
	}
	return all
}

// text is a file's content without space around it; "" for none.
func (r *Reading) text(path string) string { return strings.TrimSpace(r.Files[path]) }

// number is a file's only number.
func (r *Reading) number(path string) (uint64, bool) {
	n, err := strconv.ParseUint(r.text(path), 10, 64)
	return n, err == nil
}

// times of a CPU in /proc/stat, in ticks.
type times struct{ user, nice, system, idle, wait, irq, softirq, steal uint64 }

func (t times) all() uint64 {
	return t.user + t.nice + t.system + t.idle + t.wait + t.irq + t.softirq + t.steal
}

// cpus reads /proc/stat by CPU.
func (r *Reading) cpus() map[int]times {
	out := map[int]times{}
	for _, line := range strings.Split(r.Files["proc/stat"], "\n") {
		var cpu int
		var t times
		if n, _ := fmt.Sscanf(line, "cpu%d %d %d %d %d %d %d %d %d", &cpu, &t.user, &t.nice, &t.system, &t.idle, &t.wait, &t.irq, &t.softirq, &t.steal); n == 9 {
			out[cpu] = t
		}
	}
	return out
}

// interrupt is a line of /proc/interrupts.
type interrupt struct {
	number int
	name   string // of the last words
	line   string
	counts []uint64 // by place of the CPU in the first line
}

// interrupts reads the numbered ones, and which CPUs the columns are.
func (r *Reading) interrupts() (cpus []int, all []interrupt) {
	for i, line := range strings.Split(r.Files["proc/interrupts"], "\n") {
		f := strings.Fields(line)
		if i == 0 {
			for _, w := range f {
				n, _ := strconv.Atoi(strings.TrimPrefix(w, "CPU"))
				cpus = append(cpus, n)
			}
			continue
		}
		if len(f) < len(cpus)+2 {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSuffix(f[0], ":"))
		if err != nil {
			continue
		}
		x := interrupt{number: n, name: f[len(f)-1], line: line}
		for _, w := range f[1 : 1+len(cpus)] {
			c, _ := strconv.ParseUint(w, 10, 64)
			x.counts = append(x.counts, c)
		}
		all = append(all, x)
	}
	return cpus, all
}

// softnetRow is a CPU in /proc/net/softnet_stat.
type softnetRow struct {
	cpu                          int
	processed, dropped, squeezed uint64
}

func (r *Reading) softnet() []softnetRow {
	var out []softnetRow
	for i, line := range strings.Split(r.text("proc/net/softnet_stat"), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		row := softnetRow{cpu: i}
		for n, into := range []*uint64{&row.processed, &row.dropped, &row.squeezed} {
			*into, _ = strconv.ParseUint(f[n], 16, 64)
		}
		if len(f) > 12 { // since Linux 5.14: offline CPUs have no line
			cpu, _ := strconv.ParseUint(f[12], 16, 32)
			row.cpu = int(cpu)
		}
		out = append(out, row)
	}
	return out
}

// snmp reads /proc/net/snmp and netstat: pairs of lines, names and values, by "Tcp.OutSegs".
func (r *Reading) snmp() map[string]uint64 {
	out := map[string]uint64{}
	for _, file := range []string{"proc/net/snmp", "proc/net/netstat"} {
		lines := strings.Split(r.Files[file], "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for n := 1; n < len(names) && n < len(values); n++ {
				if v, err := strconv.ParseUint(values[n], 10, 64); err == nil {
					out[strings.TrimSuffix(names[0], ":")+"."+names[n]] = v
				}
			}
		}
	}
	return out
}

// keyed reads a file of lines "name value" or "name: value unit".
func (r *Reading) keyed(path string) map[string]uint64 {
	out := map[string]uint64{}
	for _, line := range strings.Split(r.Files[path], "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if v, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			out[strings.TrimSuffix(f[0], ":")] = v
		}
	}
	return out
}

// stalled is a line of /proc/pressure: µs in which some or all tasks waited.
func (r *Reading) stalled(resource, who string) (uint64, bool) {
	for _, line := range strings.Split(r.Files["proc/pressure/"+resource], "\n") {
		if !strings.HasPrefix(line, who+" ") {
			continue
		}
		_, total, _ := strings.Cut(line, "total=")
		v, err := strconv.ParseUint(strings.TrimSpace(total), 10, 64)
		return v, err == nil
	}
	return 0, false
}

// sockstat is a value of /proc/net/sockstat: of TCP, its tw.
func (r *Reading) sockstat(protocol, name string) (uint64, bool) {
	for _, line := range strings.Split(r.Files["proc/net/sockstat"], "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != protocol+":" {
			continue
		}
		if i := slices.Index(f, name); i > 0 && i+1 < len(f) {
			v, err := strconv.ParseUint(f[i+1], 10, 64)
			return v, err == nil
		}
	}
	return 0, false
}

// writes of a disk: how many ended, and the ms that they took together.
func (r *Reading) writes(device string) (n, ms uint64, ok bool) {
	for _, line := range strings.Split(r.Files["proc/diskstats"], "\n") {
		f := strings.Fields(line)
		if len(f) < 11 || f[2] != device {
			continue
		}
		n, err1 := strconv.ParseUint(f[7], 10, 64)
		ms, err2 := strconv.ParseUint(f[10], 10, 64)
		return n, ms, err1 == nil && err2 == nil
	}
	return 0, 0, false
}

var cpuPath = regexp.MustCompile(`^sys/devices/system/cpu/cpu(\d+)/(.*)$`)

// perCPU are the files of that name of each CPU.
func (r *Reading) perCPU(name string) map[int]string {
	out := map[int]string{}
	for path, text := range r.Files {
		if m := cpuPath.FindStringSubmatch(path); m != nil && m[2] == name {
			cpu, _ := strconv.Atoi(m[1])
			out[cpu] = strings.TrimSpace(text)
		}
	}
	return out
}

func ordered[V any](m map[int]V) []int {
	var keys []int
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
