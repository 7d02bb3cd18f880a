// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab/redistest"
)

// Two gateways share a store: what one revokes the other refuses within a second. While the store
// is stopped known keys go on at both, unknown ones get 503, and when it goes on, so do they.
func TestKeysInRedis(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	server := redistest.Start(t)
	more := "keys: {store: redis, known_time: 1s}\nredis: {address: \"" + server.Address + "\"}\n"
	first, second := keyed(t, "redis1", more), keyed(t, "redis2", more)
	xgw := func(args ...string) string {
		return mustRun(t, append([]string{"--instance", "redis1", "keys"}, args...)...)
	}
	alice, bob, carol := xgw("add", "--consumer", "alice", "--id", "alice"), xgw("add", "--consumer", "bob"), xgw("add", "--consumer", "carol")
	for _, g := range []*running{first, second} {
		newHolder(g.address, alice).all(t, "a key that one of them made", 200)
		newHolder(g.address, bob).all(t, "another", 200)
	}
	began := time.Now()
	xgw("revoke", "alice")
	newHolder(first.address, alice).all(t, "revoked here", 401)
	there := newHolder(second.address, alice)
	for there.ask(there.clients[0]) != 401 {
		if time.Since(began) > 5*time.Second { // five times what is promised
			t.Fatal("the other gateway still takes a revoked key")
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Logf("refused by the other gateway %s after the command began", time.Since(began))
	there.all(t, "revoked there", 401)

	server.Signal(syscall.SIGSTOP)
	time.Sleep(2100 * time.Millisecond) // workers have to ask again
	for _, g := range []*running{first, second} {
		newHolder(g.address, bob).all(t, "a known key while the store is stopped", 200)
		newHolder(g.address, carol).all(t, "an unknown key while the store is stopped", 503)
	}
	text := first.scrape(t)
	if !strings.Contains(text, "xgw_key_store_up 0") || sumSeries(t, text, `xgw_key_lookups_total{result="stale"`) == 0 {
		t.Errorf("the metrics do not tell of it:\n%s", grep(text, "xgw_key_"))
	}
	if status, _, errs := inProcess("--instance", "redis1", "keys", "list"); status != 1 {
		t.Errorf("listed without a store: status %d, %s", status, errs)
	}
	server.Signal(syscall.SIGCONT)
	h := newHolder(second.address, carol)
	for end := time.Now().Add(20 * time.Second); h.ask(h.clients[0]) != 200; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a store that goes on is not asked")
		}
	}
	h.all(t, "when the store goes on", 200)
}
