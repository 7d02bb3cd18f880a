// SPDX-License-Identifier: Apache-2.0

// Package host reads the machine and changes nothing: kernel, cores, and what a
// network interface is.
package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/safchain/ethtool"
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

// AllowedCores lists the CPUs that this process may run on, in order.
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

// Backlog reads net.core.somaxconn, which bounds each listening queue. root is /.
func Backlog(root string) (int, error) {
	path := filepath.Join(root, "proc/sys/net/core/somaxconn")
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read backlog limit: %w", err)
	}
	var n int
	if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "%d", &n); err != nil {
		return 0, fmt.Errorf("read backlog limit: %s holds %q: %w", path, text, err)
	}
	return n, nil
}

// Driver is the name of an interface's driver; "" when it does not say.
func Driver(name string) string {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return ""
	}
	defer e.Close()
	driver, err := e.DriverName(name)
	if err != nil {
		return ""
	}
	return driver
}
