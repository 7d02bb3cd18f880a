// SPDX-License-Identifier: Apache-2.0

package mend

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Queue is one queue pair of an interface, and the cores that serve it.
type Queue struct {
	Number   int    `json:"queue"`
	Receives bool   `json:"receives"`
	Sends    bool   `json:"sends"`
	IRQs     []int  `json:"irqs,omitempty"`
	Cores    []int  `json:"cores,omitempty"`     // that its interrupts may go to
	Served   []int  `json:"served_by,omitempty"` // that they do go to; nil where the kernel does not tell
	RPS      string `json:"rps,omitempty"`       // cores that packets are handed to, a mask; "": none
	XPS      string `json:"xps,omitempty"`       // cores that send here, a mask; "": none
}

// Queues are those of an interface.
type Queues struct {
	Interface string  `json:"interface"`
	Queues    []Queue `json:"queues"`
	RSS       string  `json:"rss,omitempty"` // the queue of each entry of its table; "" for no table
}

// ReadQueues reads them below the machine's root. irqs are the interface's interrupts; which
// queue's one is, its name in /proc/interrupts tells.
func (m *Machine) ReadQueues(name string, irqs []int) (*Queues, error) {
	dir := filepath.Join(m.Root, "sys/class/net", name, "queues")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read queues of %s: %w", name, err)
	}
	q := &Queues{Interface: name}
	for _, e := range entries {
		kind, number, _ := strings.Cut(e.Name(), "-")
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > 1<<12 {
			continue
		}
		row := q.at(n)
		switch kind {
		case "rx":
			row.Receives, row.RPS = true, mask(filepath.Join(dir, e.Name(), "rps_cpus"))
		case "tx":
			row.Sends, row.XPS = true, mask(filepath.Join(dir, e.Name(), "xps_cpus"))
		}
	}
	names := m.interruptNames()
	for _, irq := range irqs {
		n, ok := queueOf(names[irq])
		if !ok || n >= len(q.Queues) {
			continue
		}
		row := q.at(n)
		row.IRQs = append(row.IRQs, irq)
		row.Cores = union(row.Cores, m.cores(irq, "smp_affinity_list"))
		row.Served = union(row.Served, m.cores(irq, "effective_affinity_list"))
	}
	if m.Device != nil {
		q.RSS, _ = m.Device.Read(Change{Kind: RSS, Object: name}) // most virtual ones have none
	}
	return q, nil
}

// at is the queue of that number, made if it is not there.
func (q *Queues) at(n int) *Queue {
	for len(q.Queues) <= n {
		q.Queues = append(q.Queues, Queue{Number: len(q.Queues)})
	}
	return &q.Queues[n]
}

// mask reads a mask of CPUs; "" for an empty one.
func mask(path string) string {
	text, err := os.ReadFile(path)
	if s := strings.TrimSpace(string(text)); err == nil && !Equal(s, "0") {
		return s
	}
	return ""
}

func union(a, b []int) []int {
	a = append(a, b...)
	slices.Sort(a)
	return slices.Compact(a)
}

func irqPath(irq int, file string) string { return fmt.Sprintf("/proc/irq/%d/%s", irq, file) }

// cores reads a list such as 0-3,8.
func (m *Machine) cores(irq int, file string) []int {
	text, err := os.ReadFile(filepath.Join(m.Root, irqPath(irq, file)))
	if err != nil {
		return nil
	}
	return ParseCores(strings.TrimSpace(string(text)))
}

// ParseCores reads a list of CPUs as the kernel writes it, 0-3,8; what is no number is left out.
func ParseCores(list string) (all []int) {
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		b := a
		if isRange && err == nil {
			b, err = strconv.Atoi(last)
		}
		if err != nil || a < 0 || b-a > 1<<13 {
			continue
		}
		for ; a <= b; a++ {
			all = append(all, a)
		}
	}
	return all
}

// interruptNames are the last words of the lines of /proc/interrupts, by number.
func (m *Machine) interruptNames() map[int]string {
	out := map[int]string{}
	text, _ := os.ReadFile(filepath.Join(m.Root, "proc/interrupts"))
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSuffix(f[0], ":")); err == nil {
			out[n] = f[len(f)-1]
		}
	}
	return out
}

var (
	lastNumber = regexp.MustCompile(`(\d+)$`)
	noQueue    = regexp.MustCompile(`(?i)config|control|mgmnt|misc|async|mbx|mailbox|fdir|event|link|pages|cmd`)
)

// queueOf reads the queue out of an interrupt's name: virtio2-input.0, i40e-eth0-TxRx-3,
// mlx5_comp3@pci:0000:01:00.0, ens5-Tx-Rx-2. False for one that is no queue's.
func queueOf(name string) (int, bool) {
	name, _, _ = strings.Cut(name, "@")
	digits := lastNumber.FindString(name)
	n, err := strconv.Atoi(digits)
	return n, err == nil && !noQueue.MatchString(strings.TrimSuffix(name, digits))
}

// CPUMask is one core as sysfs takes masks: groups of 32 bits, the highest first.
func CPUMask(cores ...int) string {
	groups := make([]uint32, slices.Max(cores)/32+1)
	for _, c := range cores {
		groups[c/32] |= 1 << (c % 32)
	}
	words := make([]string, len(groups))
	for i, g := range groups {
		words[len(groups)-1-i] = fmt.Sprintf("%08x", g)
	}
	words[0] = strconv.FormatUint(uint64(groups[len(groups)-1]), 16)
	return strings.Join(words, ",")
}

// Spread is what gives each queue one of the workers' cores, in turn: its interrupts, and the
// packets that this core sends. Where the queue has no interrupt of its own, as on a veth, RPS
// hands its packets to the core. Cores beyond the queues get none of their own; the flows go
// over all queues alike.
func (q *Queues) Spread(cores []int) []Change {
	if len(cores) == 0 || len(q.Queues) == 0 {
		return nil
	}
	var all []Change
	set := func(path, value string) { all = append(all, Change{Kind: File, Object: path, Value: value}) }
	senders := map[int][]int{} // transmit queue -> cores: each core sends on one
	var sends []int
	receive := 0
	for _, row := range q.Queues {
		if row.Sends {
			sends = append(sends, row.Number)
		}
		if row.Receives {
			receive++
		}
	}
	for i, core := range cores {
		if len(sends) > 0 {
			to := sends[i%len(sends)]
			senders[to] = append(senders[to], core)
		}
	}
	for _, row := range q.Queues {
		core := cores[row.Number%len(cores)]
		for _, irq := range row.IRQs {
			set(irqPath(irq, "smp_affinity_list"), strconv.Itoa(core))
		}
		queue := filepath.Join("/sys/class/net", q.Interface, "queues")
		if row.Receives {
			switch {
			case len(row.IRQs) == 0:
				set(filepath.Join(queue, fmt.Sprintf("rx-%d", row.Number), "rps_cpus"), CPUMask(core))
			case row.RPS != "": // it would move packets away from the interrupt's core
				set(filepath.Join(queue, fmt.Sprintf("rx-%d", row.Number), "rps_cpus"), "0")
			}
		}
		if own := senders[row.Number]; len(sends) > 1 && len(own) > 0 {
			set(filepath.Join(queue, fmt.Sprintf("tx-%d", row.Number), "xps_cpus"), CPUMask(own...))
		}
	}
	if n := len(strings.Fields(q.RSS)); n > 0 && receive > 0 {
		all = append(all, Change{Kind: RSS, Object: q.Interface, Value: EqualTable(n, receive)})
	}
	return all
}

// ByQueues is who spreads the queues of an interface, in the journal.
func ByQueues(name string) string { return byQueues + name }

const byQueues = "queues "

// Drift lists what spreading queues has set, and of that what is not so any more, as somebody
// (irqbalance) has changed it since; of all interfaces, or of one.
func (m *Machine) Drift(name string) (set, drifted []Change, err error) {
	changes, err := m.Changes()
	here := namespace()
	for _, c := range changes {
		of, spread := strings.CutPrefix(c.By, byQueues)
		if !spread || name != "" && of != name || c.Namespace != here {
			continue
		}
		set = append(set, c)
		if now, err := m.Read(c); err == nil && !Equal(now, c.Value) {
			drifted = append(drifted, c)
		}
	}
	return set, drifted, err
}

// IRQs are the interrupts of all queues.
func (q *Queues) IRQs() (all []int) {
	for _, row := range q.Queues {
		all = append(all, row.IRQs...)
	}
	return all
}

// Balancer finds irqbalance, which moves interrupts about: its process and command line. "" for
// none. root is that of /proc.
func Balancer(root fs.FS) (pid, commandLine string) {
	names, _ := fs.Glob(root, "proc/[0-9]*/comm") // the pattern is right
	for _, name := range names {
		if text, err := fs.ReadFile(root, name); err != nil || strings.TrimSpace(string(text)) != "irqbalance" {
			continue
		}
		line, _ := fs.ReadFile(root, path.Join(path.Dir(name), "cmdline"))
		return path.Base(path.Dir(name)), strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	}
	return "", ""
}

// Banned are the interrupts that irqbalance's command line says it leaves alone.
func Banned(commandLine string) (all []int) {
	w := strings.Fields(commandLine)
	for i := range w {
		n, ok := strings.CutPrefix(w[i], "--banirq=")
		if !ok && (w[i] == "-i" || w[i] == "--banirq") && i+1 < len(w) {
			n, ok = w[i+1], true
		}
		if irq, err := strconv.Atoi(n); ok && err == nil {
			all = append(all, irq)
		}
	}
	return all
}

// Ban tells the irqbalance at the socket which interrupts to leave alone, and nothing else; it
// forgets that when it is started anew. It believes root only.
func Ban(socket string, irqs []int) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("tell irqbalance: %w", err)
	}
	defer c.Close()
	words := []string{"settings ban irqs"}
	for _, n := range irqs {
		words = append(words, strconv.Itoa(n))
	}
	if len(irqs) == 0 {
		words = append(words, "NONE")
	}
	who := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
	if _, _, err := c.WriteMsgUnix([]byte(strings.Join(words, " ")), who, nil); err != nil {
		return fmt.Errorf("tell irqbalance: %w", err)
	}
	return nil
}

// BalancerSocket is where that process of irqbalance listens.
func BalancerSocket(root, pid string) string {
	return filepath.Join(root, "run/irqbalance", "irqbalance"+pid+".sock")
}
