// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
)

// keyed is a gateway of two workers whose route wants an API key.
func keyed(t *testing.T, instance, more string) *running {
	t.Helper()
	dir := t.TempDir()
	text := gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 2\n"+more)
	return startGateway(t, startHere, instance, dir, strings.Replace(text, "upstream: back}", "upstream: back, keys: {}}", 1))
}

// mustRun runs a command line and returns what it printed.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	status, out, errs := inProcess(args...)
	if status != 0 {
		t.Fatalf("xgw %s: status %d, %s", strings.Join(args, " "), status, errs)
	}
	return strings.TrimSpace(out)
}

// holder sends requests with a key over connections to both workers.
type holder struct {
	address string
	key     atomic.Value
	clients []*http.Client
	dials   atomic.Int64
	failed  atomic.Int64
}

func newHolder(address, key string) *holder {
	h := &holder{address: address}
	h.key.Store(key)
	for i := range 4 {
		c := client(i < 2)
		dial := dialOn(i % 2)
		c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			h.dials.Add(1)
			return dial(ctx, network, address)
		}
		h.clients = append(h.clients, c)
	}
	return h
}

func (h *holder) ask(c *http.Client) int {
	req, _ := http.NewRequest("GET", "https://"+h.address+"/", nil)
	req.Header.Set("Authorization", "Bearer "+h.key.Load().(string))
	r, err := c.Do(req)
	if err != nil {
		h.failed.Add(1)
		return 0
	}
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r.StatusCode
}

// all is the status that each worker, over each protocol, answers.
func (h *holder) all(t *testing.T, when string, want int) {
	t.Helper()
	for i, c := range h.clients {
		if got := h.ask(c); got != want {
			t.Errorf("%s, client %d: %d, want %d", when, i, got, want)
		}
	}
}

// load asks from all clients until the function returns; each(begun, status) is told of each
// request.
func (h *holder) load(during func(), each func(begun time.Time, status int)) {
	var loops sync.WaitGroup
	var over atomic.Bool
	for _, c := range h.clients {
		loops.Go(func() {
			for !over.Load() {
				begun := time.Now()
				each(begun, h.ask(c))
			}
		})
	}
	during()
	over.Store(true)
	loops.Wait()
}

// Keys are made, listed, given another secret and revoked while the gateway runs, under load:
// from when the command returns no worker takes a key that is revoked.
func TestKeys(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	const instance = "keys"
	g := keyed(t, instance, "")
	xgw := func(args ...string) string { return mustRun(t, append([]string{"--instance", instance}, args...)...) }
	h := newHolder(g.address, "xgw_nobody_0123456789abcdef")
	h.all(t, "before there is a key", 401)
	h.key.Store(xgw("keys", "add", "--id", "nobody", "--consumer", "alice", "--scope", "read", "--limit", "gold"))
	h.all(t, "as soon as there is one", 200)

	first := h.key.Load().(string)
	second := xgw("keys", "rotate", "nobody", "--keep", "1h")
	h.all(t, "with the old secret, which is kept", 200)
	h.key.Store(second)
	h.all(t, "with the new one", 200)
	h.key.Store(xgw("keys", "rotate", "nobody"))
	h.all(t, "with another", 200)
	for _, old := range []string{first, second} {
		other := newHolder(g.address, old)
		other.all(t, "with the old secret", 401)
	}

	var revoked atomic.Int64 // when the command had returned
	var before, late, after atomic.Int64
	h.load(func() {
		eventually(t, "the key is taken", func() bool { return before.Load() >= 20 })
		began := time.Now()
		xgw("keys", "revoke", "nobody")
		revoked.Store(time.Now().UnixNano())
		t.Logf("revoked after %s", time.Since(began))
		eventually(t, "the key is refused", func() bool { return after.Load() >= 20 })
	}, func(begun time.Time, status int) {
		at := revoked.Load()
		switch {
		case status == 200 && at != 0 && begun.UnixNano() > at:
			late.Add(1)
		case status == 200:
			before.Add(1)
		case status == 401:
			after.Add(1)
		}
	})
	if late.Load() > 0 || before.Load() == 0 || after.Load() == 0 || h.failed.Load() > 0 {
		t.Errorf("%d requests passed before, %d after the key was revoked; %d were refused, %d failed", before.Load(), late.Load(), after.Load(), h.failed.Load())
	}
	if n := h.dials.Load(); n > 4 {
		t.Errorf("4 clients made %d connections", n)
	}

	var listed keys.Record
	if err := json.Unmarshal([]byte(xgw("keys", "list", "--json")), &listed); err != nil || listed.Consumer != "alice" || listed.Limit != "gold" || listed.Revoked.IsZero() || listed.Secret.Hash != nil {
		t.Errorf("listed %+v, %v", listed, err)
	}
	if status, _, errs := inProcess("--instance", instance, "keys", "add", "--id", "nobody", "--consumer", "eve"); status != 1 || !strings.Contains(errs, "already") {
		t.Errorf("an id twice: %d, %s", status, errs)
	}
	if status, _, errs := inProcess("--instance", instance, "keys", "revoke", "none"); status != 1 || !strings.Contains(errs, "no such key") {
		t.Errorf("revoked a key that is none: %d, %s", status, errs)
	}
	text := g.scrape(t)
	for _, want := range []string{`xgw_key_store_up 1`, `outcome="key_refused"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	eventuallyLogged(t, filepath.Join(g.dir, "access.log"), " key=nobody")
	if text, _ := os.ReadFile(filepath.Join(g.dir, "access.log")); bytes.Contains(text, []byte(first[len("xgw_nobody_"):])) {
		t.Error("a secret is in the access log")
	}
}

func eventuallyLogged(t *testing.T, path, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil && bytes.Contains(text, []byte(want)) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s never has %q: %v", path, want, err)
		}
	}
}

// Purges under load: every request is answered as before, no connection ends, and each purge
// has keys asked for again.
func TestCachePurge(t *testing.T) {
	needRoot(t, "steers connections with BPF")
	const instance = "purges"
	g := keyed(t, instance, "")
	h := newHolder(g.address, mustRun(t, "--instance", instance, "keys", "add", "--consumer", "alice"))
	h.all(t, "at first", 200)
	dials := h.dials.Load()
	asked := func() int { return sumSeries(t, g.scrape(t), `xgw_key_lookups_total{result="asked"`) }
	before, other := asked(), atomic.Int64{}
	h.load(func() {
		for i := range 20 {
			mustRun(t, "--instance", instance, "ctl", "cache", "purge", []string{"--all", "--kind=keys", "--kind=unknown_keys"}[i%3])
			time.Sleep(10 * time.Millisecond)
		}
	}, func(_ time.Time, status int) {
		if status != 200 {
			other.Add(1)
		}
	})
	h.all(t, "after it", 200)
	if other.Load() > 0 || h.dials.Load() != dials {
		t.Errorf("%d requests were not answered by 200; %d connections were made anew", other.Load(), h.dials.Load()-dials)
	}
	if n := asked() - before; n < 4 || n > 2*14+2 { // of two workers; not each meets a request between two purges
		t.Errorf("%d keys were asked for again after 14 purges", n)
	}
	text := g.scrape(t)
	for kind, n := range map[string]int{"keys": 14, "unknown_keys": 13} {
		if want := fmt.Sprintf("xgw_cache_purges_total{kind=%q} %d", kind, n); !strings.Contains(text, want) {
			t.Errorf("want %s, got\n%s", want, grep(text, "cache_purges"))
		}
	}
	for says, args := range map[string][]string{"--all": {}, "keys or": {"--kind", "certificates"}, "want --all, or": {"--all", "--kind", "keys"}} {
		status, _, errs := inProcess(append([]string{"--instance", instance, "ctl", "cache", "purge"}, args...)...)
		if status != 2 || !strings.Contains(errs, says) {
			t.Errorf("%v: status %d, %s", args, status, errs)
		}
	}
}

// sumSeries adds up what the series that begin so have.
func sumSeries(t *testing.T, text, prefix string) (sum int) {
	t.Helper()
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			var n int
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &n); err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// Without a gateway the commands change the store themselves, and a gateway that starts, or runs
// without a control socket of that name, follows.
func TestKeysWithoutGateway(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	text := strings.Replace(gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"), "upstream: back}", "upstream: back, keys: {}}", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	xgw := func(args ...string) string {
		return mustRun(t, append([]string{"--instance", "nokeys", "keys", "-c", path}, args...)...)
	}
	alice := xgw("add", "--consumer", "alice", "--expires", "1h")
	lines := filepath.Join(dir, "import")
	const bob = "xgw_bob-1_0123456789abcdef"
	if err := os.WriteFile(lines, []byte(`{"key":"`+bob+`","consumer":"bob","scopes":["read"]}`+"\n\n"+`{"key":"xgw_carol_0123456789abcdef","consumer":"carol"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := xgw("import", lines); out != "2 keys, 0 of them in the place of others" {
		t.Errorf("import says %q", out)
	}
	if out := xgw("import", filepath.Join(dir, "keys")); out != "3 keys, 3 of them in the place of others" { // a store's own file
		t.Errorf("import says %q", out)
	}
	g := startGateway(t, startHere, "keysfile", dir, text)
	c := client(false)
	ask := func(key string) int { h := holder{address: g.address}; h.key.Store(key); return h.ask(c) }
	for _, key := range []string{alice, bob} {
		if got := ask(key); got != 200 {
			t.Errorf("%s: %d", key, got)
		}
	}
	began := time.Now()
	xgw("revoke", "bob-1") // straight into the file
	for ask(bob) != 401 {
		if time.Since(began) > 5*time.Second { // five times what is promised
			t.Fatal("a key that was revoked in the file is still taken")
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("revoked in the file, refused %s later", time.Since(began))
	if got := ask(alice); got != 200 {
		t.Errorf("another key: %d", got)
	}
	for says, args := range map[string][]string{
		"consumer": {"add", "--consumer", "a b"}, "time to come": {"add", "--consumer", "a", "--expires", "2020-01-01"},
		"import:1": {"import", filepath.Join(dir, "gateway.yaml")}, "scope": {"add", "--consumer", "a", "--scope", "a b"},
	} {
		status, _, errs := inProcess(append([]string{"--instance", "nokeys", "keys", "-c", path}, args...)...)
		if status != 2 || !strings.Contains(errs, strings.Replace(says, "import:1", "gateway.yaml:1", 1)) {
			t.Errorf("%v: status %d, %s", args, status, errs)
		}
	}
}
