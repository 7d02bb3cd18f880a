// SPDX-License-Identifier: Apache-2.0

package mend

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// Devices are the interfaces and processes of this machine.
type Devices struct{}

var _ Device = Devices{}

// kernelNames are the kernel's for ethtool's short names of features.
var kernelNames = map[string]string{"lro": "rx-lro", "rx-gro-hw": "rx-gro-hw", "gro": "rx-gro", "rxvlan": "rx-vlan-hw-parse"}

// Read asks the driver, or the kernel about a process.
func (Devices) Read(c Change) (string, error) {
	if c.Kind == Limit {
		return readLimit(c.Object)
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return "", err
	}
	defer e.Close()
	switch c.Kind {
	case Ring:
		r, err := e.GetRing(c.Object)
		return strconv.Itoa(int(r.RxPending)), err
	case Feature:
		all, err := e.Features(c.Object)
		if err != nil {
			return "", err
		}
		on, known := all[kernelNames[c.Name]]
		if !known {
			return "", fmt.Errorf("%s has no feature %s", c.Object, c.Name)
		}
		if on {
			return "on", nil
		}
		return "off", nil
	case RSS:
		table, err := readTable(e, c.Object)
		return formatTable(table), err
	}
	return "", fmt.Errorf("%s is no setting of a device", c.Kind)
}

// Write tells the driver, or the kernel about a process.
func (Devices) Write(c Change, value string) error {
	if c.Kind == Limit {
		return writeLimit(c.Object, value)
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer e.Close()
	switch c.Kind {
	case Ring:
		r, err := e.GetRing(c.Object)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return err
		}
		r.RxPending = uint32(n)
		_, err = e.SetRing(c.Object, r)
		return err
	case Feature:
		return e.Change(c.Object, map[string]bool{kernelNames[c.Name]: value == "on"})
	case RSS:
		if _, err := readTable(e, c.Object); err != nil { // writing reads it, too
			return err
		}
		return writeTable(e, c.Object, value)
	}
	return fmt.Errorf("%s is no setting of a device", c.Kind)
}

// formatTable writes an indirection table: the queue of each entry.
func formatTable(entries []uint32) string {
	words := make([]string, len(entries))
	for i, q := range entries {
		words[i] = strconv.Itoa(int(q))
	}
	return strings.Join(words, " ")
}

// queuesOf is how many queues a table names.
func queuesOf(table string) int {
	words := strings.Fields(table)
	slices.Sort(words)
	return len(slices.Compact(words))
}

// EqualTable spreads n entries over the first queues.
func EqualTable(n, queues int) string {
	entries := make([]uint32, n)
	for i := range entries {
		entries[i] = uint32(i % queues)
	}
	return formatTable(entries)
}

// writeTable sets the table by weights where each queue has as many entries as another, give
// or take one, since the library knows no other way; any other table it refuses.
func writeTable(e *ethtool.Ethtool, name, table string) error {
	words := strings.Fields(table)
	n := queuesOf(table)
	if n == 0 {
		return errors.New("the table is empty")
	}
	if table == EqualTable(len(words), n) {
		_, err := e.SetIndir(name, ethtool.SetIndir{Equal: uint8(n)})
		return err
	}
	weights := make([]uint32, n)
	for _, w := range words {
		q, err := strconv.Atoi(w)
		if err != nil || q >= n {
			return fmt.Errorf("the table before can only be set by hand: %s", table)
		}
		weights[q]++
	}
	_, err := e.SetIndir(name, ethtool.SetIndir{Weight: weights})
	return err
}

// processOf splits "PID/START" and tells whether that process still runs.
func processOf(object string) (int, error) {
	id, start, _ := strings.Cut(object, "/")
	pid, err := strconv.Atoi(id)
	if err != nil {
		return 0, err
	}
	now, err := StartOf(pid)
	if err != nil {
		return 0, err
	}
	if now != start {
		return 0, fmt.Errorf("process %d is another now: %w", pid, os.ErrNotExist)
	}
	return pid, nil
}

// StartOf is when a process was started, in the kernel's ticks since boot: with its id it
// names a process for good.
func StartOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The name, in brackets, may hold anything; the start is field 22.
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("process %d: its stat is cut short", pid)
	}
	return f[19], nil
}

func readLimit(object string) (string, error) {
	pid, err := processOf(object)
	if err != nil {
		return "", err
	}
	var r unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &r); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", r.Cur, r.Max), nil
}

func writeLimit(object, value string) error {
	pid, err := processOf(object)
	if err != nil {
		return err
	}
	var r unix.Rlimit
	if _, err := fmt.Sscanf(value, "%d:%d", &r.Cur, &r.Max); err != nil {
		return fmt.Errorf("limit %q: %w", value, err)
	}
	return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &r, nil)
}
