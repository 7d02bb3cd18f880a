// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The body of a reply comes from a file when the configuration is loaded, and what is
// wrong with the file is told at its line. Parse, which has only text, looks at none.
func TestReplyFromFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gateway := []byte("routes:\n  - name: a\n    reply: {file: page.html}\nupstreams: [{name: b, servers: [\"127.0.0.1:1\"]}]\n")
	write("gateway.yaml", gateway)
	load := func(want string) *Config {
		t.Helper()
		c, err := Load(path, nil)
		switch {
		case want == "" && err != nil:
			t.Fatal(err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), path+":3:19: routes[0].reply.file: ") || !strings.Contains(err.Error(), want)):
			t.Fatalf("got %v, want %s", err, want)
		}
		return c
	}
	load("no such file")
	write("page.html", []byte("\x00<p>\xff"))
	if c := load(""); string(c.Routes[0].Reply.Body) != "\x00<p>\xff" {
		t.Errorf("body %q", c.Routes[0].Reply.Body)
	}
	write("page.html", make([]byte, maxReply+1))
	load("longer than 1m")
	write("page.html", make([]byte, maxReply))
	if c := load(""); len(c.Routes[0].Reply.Body) != maxReply {
		t.Errorf("%d bytes", len(c.Routes[0].Reply.Body))
	}
	if err := os.Remove(filepath.Join(dir, "page.html")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "page.html"), 0o700); err != nil {
		t.Fatal(err)
	}
	load("no regular file")
	if c, err := Parse(path, gateway, nil); err != nil || c.Routes[0].Reply.Body != nil {
		t.Errorf("text alone: %v, %v", c, err)
	}
}

// Replies are kept in memory by each worker: all together are bounded.
func TestRepliesAreBounded(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	var text strings.Builder
	text.WriteString("upstreams: [{name: b, servers: [\"127.0.0.1:1\"]}]\nroutes:\n")
	for i := range maxReplies/maxReply + 1 {
		text.WriteString("  - {name: r" + string(rune('a'+i)) + ", path: /" + string(rune('a'+i)) + ", reply: {file: page}}\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "page"), make([]byte, maxReply), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, nil); err == nil || len(faults(t, err)) != 1 || !strings.Contains(err.Error(), "longer than 16m together") {
		t.Errorf("got %v", err)
	}
}

// A thousand routes cost in proportion, up to a factor for caches.
func TestThousandRoutesParse(t *testing.T) {
	measure := func(n int) time.Duration {
		var text strings.Builder
		text.WriteString("upstreams:\n")
		for i := range n / 10 {
			fmt.Fprintf(&text, "  - {name: up%d, servers: [\"127.0.0.1:1\"]}\n", i)
		}
		text.WriteString("routes:\n")
		for i := range n {
			fmt.Fprintf(&text, "  - {name: r%d, host: s%d.example.com, path: /v1/%d, methods: [GET, POST], headers: [{name: X-A, equal: b}], upstream: up%d}\n", i, i/8, i, i%(n/10))
		}
		least := time.Hour
		for range 5 {
			began := time.Now()
			if c, err := Parse("gateway.yaml", []byte(text.String()), nil); err != nil || len(c.Routes) != n {
				t.Fatal(err)
			}
			least = min(least, time.Since(began))
		}
		return least
	}
	var few, many time.Duration
	for range 3 { // what else the machine does may hit either
		if few, many = measure(100), measure(1000); many <= 4*10*few {
			return
		}
	}
	t.Errorf("1,000 routes take %v, 100 take %v: more than in proportion", many, few)
}
