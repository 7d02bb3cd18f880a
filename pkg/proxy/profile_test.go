// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// BenchmarkMix is there to be profiled (-benchtime 1x -cpuprofile FILE): a worker's work, with
// clients and upstream in other processes. A round is 20 s.
func BenchmarkMix(b *testing.B) {
	for _, tool := range []string{"wrk", "h2load"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skip(err)
		}
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as a worker has it
	up, end := helper(b, "upstream")
	defer end()
	g := newGateway(b, []string{up}, func(s *policy.Snapshot) {
		s.Upstreams[0].MaxConnections, s.Upstreams[0].MaxIdle = 512, 256
	})
	post := filepath.Join(b.TempDir(), "post.lua")
	if err := os.WriteFile(post, []byte("wrk.method = 'POST'\nwrk.body = string.rep('z', 16384)\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	body := filepath.Join(b.TempDir(), "body")
	if err := os.WriteFile(body, make([]byte, 16<<10), 0o600); err != nil {
		b.Fatal(err)
	}
	fresh := startHelper(b, "good "+g.address+" fresh")
	defer fresh.end()
	over := make(chan struct{})
	defer close(over)
	go func() { // in a gateway it is the supervisor who takes them
		for t := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-t.C:
				g.slab.Access.Drain(func(*zone.AccessRecord) {})
			case <-over:
				return
			}
		}
	}()
	for b.Loop() {
		for _, load := range [][]string{
			{"wrk", "-t1", "-c64", "-d5s", g.url("/")},
			{"wrk", "-t1", "-c64", "-d2s", g.url("/64k")},
			{"wrk", "-t1", "-c64", "-d2s", "-s", post, g.url("/")},
			{"h2load", "-t1", "-c16", "-m16", "-D5", g.url("/")},
			{"h2load", "-t1", "-c16", "-m16", "-D2", g.url("/64k")},
			{"h2load", "-t1", "-c16", "-m16", "-D2", "-d", body, g.url("/")},
		} {
			if out, err := exec.Command(load[0], load[1:]...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %v: %s", load, err, out)
			}
		}
		fresh.ask("2000")
	}
}
