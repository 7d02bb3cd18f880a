// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemory(t *testing.T) {
	for _, row := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"nothing known", nil, 0},
		{"machine", map[string]string{"proc/meminfo": "MemTotal:       2048 kB\nMemFree: 1 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 2 << 20},
		{"container", map[string]string{"proc/meminfo": "MemTotal:       2048 kB\n", "sys/fs/cgroup/memory.max": "1000000\n"}, 1000000},
		{"container of old", map[string]string{"proc/meminfo": "MemTotal:       2048 kB\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000\n"}, 1000000},
		{"no bound of old", map[string]string{"proc/meminfo": "MemTotal:       2048 kB\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 2 << 20},
	} {
		root := t.TempDir()
		for name, text := range row.files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := Memory(root); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}
	if n := Memory("/"); n < 1<<20 {
		t.Errorf("this machine has %d bytes", n)
	}
}
