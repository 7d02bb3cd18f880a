// SPDX-License-Identifier: Apache-2.0

// Package host reads the machine and changes nothing: kernel, cores, limits, and
// what a network interface is. Where something is read from /proc or /sys, the root
// of the tree is a parameter, so that another machine can be a folder of a test.
package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxCPUs is as many as a unix.CPUSet can hold.
const maxCPUs = 1024

// Kernel is what uname says.
type Kernel struct {
	Release string // such as 6.12.0-1-amd64
	Machine string // such as x86_64
}

// ReadKernel asks the running kernel.
func ReadKernel() (Kernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Kernel{}, fmt.Errorf("read kernel version: %w", err)
	}
	return Kernel{Release: unix.ByteSliceToString(u.Release[:]), Machine: unix.ByteSliceToString(u.Machine[:])}, nil
}

// AllowedCores lists the CPUs that this thread may run on, in order: those of the
// process unless somebody pinned the thread. CPUs from 1024 on are not seen.
func AllowedCores() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read allowed cores: %w", err)
	}
	var cores []int
	for cpu := range maxCPUs {
		if set.IsSet(cpu) {
			cores = append(cores, cpu)
		}
	}
	return cores, nil
}

// Backlog reads net.core.somaxconn, the bound of each listening queue, in
// connections. root is / on a real machine.
func Backlog(root string) (int, error) {
	n, err := readNumber(filepath.Join(root, "proc/sys/net/core/somaxconn"))
	if err != nil {
		return 0, fmt.Errorf("read backlog limit: %w", err)
	}
	return n, nil
}

// FastOpenServers is the bit of FastOpen that lets servers take data of a SYN.
const FastOpenServers = 2

// FastOpen reads net.ipv4.tcp_fastopen. root is / on a real machine.
func FastOpen(root string) (int, error) {
	n, err := readNumber(filepath.Join(root, "proc/sys/net/ipv4/tcp_fastopen"))
	if err != nil {
		return 0, fmt.Errorf("read TCP Fast Open: %w", err)
	}
	return n, nil
}

// readNumber reads a file that holds one whole number, not below 0.
func readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%s holds %.20q: want a number", path, text)
	}
	return int(n), nil
}

// OpenFiles is the limit of descriptors of this process, RLIMIT_NOFILE.
type OpenFiles struct{ Soft, Hard uint64 }

// ReadOpenFiles asks the running kernel. A Go program's soft limit is its hard one
// from the start on: the runtime raises it.
func ReadOpenFiles() (OpenFiles, error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return OpenFiles{}, fmt.Errorf("read limit of open files: %w", err)
	}
	return OpenFiles{Soft: r.Cur, Hard: r.Max}, nil
}

// RaiseOpenFiles allows this process and those it starts so many open files, or as many as
// the hard limit allows; then it says what to change.
func RaiseOpenFiles(n uint64) (lack string) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Max >= n && r.Cur >= n {
		return ""
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: max(n, r.Max)}); err == nil {
		return ""
	}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: r.Max, Max: r.Max})
	return fmt.Sprintf("worker_rlimit_nofile is %d, and the hard limit is %d: set LimitNOFILE=%d in the unit, or lower it", n, r.Max, n)
}

// reservedFiles are those a worker needs besides its connections: the zone, sockets,
// logs, the runtime's own.
const reservedFiles = 64

// Lack says what to change when the limit is too low for so many connections, of
// clients and to upstreams together; "" when it is enough. It is no reason not to
// start: connections that find no descriptor wait in the listening queue.
func (o OpenFiles) Lack(connections uint64) string {
	need := connections + reservedFiles
	switch {
	case o.Soft >= need:
		return ""
	case o.Hard >= need:
		return fmt.Sprintf("%d open files are allowed, %d connections may need %d: raise the soft limit, the hard one of %d allows it: `ulimit -n %d`",
			o.Soft, connections, need, o.Hard, need)
	}
	return fmt.Sprintf("%d open files are allowed, %d connections may need %d: set LimitNOFILE=%d in the unit, or lower worker_connections",
		o.Soft, connections, need, need)
}

// ReadMachine asks the running kernel; what it does not tell is left 0.
func ReadMachine(root string) (Machine, error) {
	k, err := ReadKernel()
	if err != nil {
		return Machine{}, err
	}
	m := Machine{Kernel: k.Release, PageSize: os.Getpagesize()}
	// Such as 0-3: drivers reckon with every CPU that there can be.
	if text, err := os.ReadFile(filepath.Join(root, "sys/devices/system/cpu/possible")); err == nil {
		ranges := strings.FieldsFunc(strings.TrimSpace(string(text)), func(r rune) bool { return r == '-' || r == ',' })
		if len(ranges) > 0 {
			if last, err := strconv.Atoi(ranges[len(ranges)-1]); err == nil {
				m.CPUs = last + 1
			}
		}
	}
	return m, nil
}
