// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory is what there is to use, in bytes: the machine's, or what a container (the cgroup
// that is mounted as the root of all) leaves of it. 0: unknown. root is / on a real machine.
func Memory(root string) int64 {
	var kib, least int64
	if text, err := os.ReadFile(filepath.Join(root, "proc/meminfo")); err == nil {
		_, _ = fmt.Sscanf(string(text), "MemTotal: %d kB", &kib)
		least = kib << 10
	}
	for _, name := range []string{"sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 && (n < least || least == 0) {
			least = n
		}
	}
	return least
}
