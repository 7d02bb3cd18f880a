// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
)

// CPU is how the time of all CPUs was spent since boot, in seconds.
type CPU struct {
	Programs float64 // user and system time of processes
	SoftIRQ  float64 // interrupts and what follows them: XDP and the network stack
	Steal    float64 // taken by the host of a virtual machine
	IOWait   float64 // idle, and waiting for a disk
	Idle     float64 // any other idleness
	// Throttled is the time that cores were slowed down for their heat: of the core that
	// was so the longest. Where the machine does not tell, it is 0.
	Throttled float64
}

// Total is all time of all CPUs.
func (c *CPU) Total() float64 { return c.Programs + c.SoftIRQ + c.Steal + c.IOWait + c.Idle }

// ReadCPU reads it below the root, which is / but in tests.
func ReadCPU(root string) (CPU, error) {
	fs, err := procfs.NewFS(filepath.Join(root, "proc"))
	if err != nil {
		return CPU{}, fmt.Errorf("read CPU times: %w", err)
	}
	stat, err := fs.Stat()
	if err != nil {
		return CPU{}, fmt.Errorf("read CPU times: %w", err)
	}
	t := stat.CPUTotal
	return CPU{
		Programs: t.User + t.Nice + t.System, SoftIRQ: t.IRQ + t.SoftIRQ, Steal: t.Steal, IOWait: t.Iowait, Idle: t.Idle,
		Throttled: throttled(root),
	}, nil
}

// throttled is in seconds.
func throttled(root string) (most float64) {
	files, _ := filepath.Glob(filepath.Join(root, "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_total_time_ms")) // the pattern is well formed
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if ms, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
			most = max(most, float64(ms)/1000)
		}
	}
	return most
}

// ProcessTime is the user and system time of a process in seconds; 0 for one that is gone.
func ProcessTime(root string, pid int) float64 {
	fs, err := procfs.NewFS(filepath.Join(root, "proc"))
	if err != nil {
		return 0
	}
	p, err := fs.Proc(pid)
	if err != nil {
		return 0
	}
	stat, err := p.Stat()
	if err != nil {
		return 0
	}
	return stat.CPUTime()
}
