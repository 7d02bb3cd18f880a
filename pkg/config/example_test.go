// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"
)

const examplePath = "../../deploy/gateway.yaml"

func readExample(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExampleHoldsTheDefaults(t *testing.T) {
	got, err := Load(examplePath, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.Path = examplePath
	want.Routes = []Route{{Name: "api", Path: "/", Upstream: "app"}}
	want.Upstreams = []Upstream{{
		Name: "app", Servers: []Server{{"127.0.0.1:8080", 1}},
		Protocol: "http1", ConnectTimeout: 2 * time.Second, HeaderTimeout: 5 * time.Second, IdleTimeout: 60 * time.Second,
		MaxConnections: 512, MaxIdle: 256, Balance: "round_robin", HashBy: "address", Retries: 1, MaxFails: 3,
		FailTime: 5 * time.Second, MaxPending: 128, PendingTimeout: time.Second, MaxRequests: 4096, SlowStart: 10 * time.Second, Resolve: 10 * time.Second,
	}}
	compare := cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Errorf("deploy/gateway.yaml and buffers.conf (-defaults +example):\n%s", diff)
	}
}

func TestDefaults(t *testing.T) {
	d := Defaults()
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"keepalive", d.Timeouts.Keepalive, 75 * time.Second},
		{"zone", d.Buffers.SharedMemoryZone, int64(128 << 20)},
		{"access ring", d.Buffers.AccessRing, int64(1 << 20)},
		{"connections", d.Connections, 16384},
		{"pin", d.Pin, true},
		{"workers", d.Workers, 0},
		{"telemetry", d.Telemetry.Address, "127.0.0.1:9090"},
		{"access log", d.Log.Access, "-"},
		{"header bytes", d.Limits.HeaderBytes, 32 << 10},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	if diff := cmp.Diff([]Listener{{Address: ":443", TLS: true, HTTP2: true, MinVersion: "1.3", ClientCertificates: "off"}}, d.Listeners); diff != "" {
		t.Errorf("listeners: %s", diff)
	}
}

// The examples in comments begin with # and no blank, or with the indentation of
// what they would be: with those marks gone they must parse, and nothing be left
// out that there is.
func TestExampleHasEveryKey(t *testing.T) {
	text := regexp.MustCompile(`(?m)^#([a-z]|  +-? ?[a-z_0-9]+(: |$|\.))`).ReplaceAllString(readExample(t), "$1")
	text = regexp.MustCompile(`(?m)^#(  - )`).ReplaceAllString(text, "$1")
	text = regexp.MustCompile(`(?m)^ +key: (source|queue) +with`).ReplaceAllString(text, "# $0")
	c, err := Parse(examplePath, []byte(text), nil)
	if err != nil {
		t.Fatalf("with the examples taken out of their comments: %v", err)
	}
	if len(c.Interfaces) != 1 || len(c.Deny) != 3 || len(c.PacketLimits) != 3 || len(c.Allow) != 1 || len(c.Admin) != 1 || len(c.Routes) != 6 || len(c.Listeners[0].ServerNames) != 3 {
		t.Errorf("examples are not all read: %+v", c)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	paths(got, doc.Content[0], "")
	for _, row := range reference(gateway(&Config{}), "") {
		if key, _, _ := strings.Cut(row, " "); !got[key] {
			t.Errorf("deploy/gateway.yaml does not show %s", key)
		}
	}
}

func paths(out map[string]bool, n *yaml.Node, at string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			paths(out, n.Content[i+1], join(at, n.Content[i].Value))
		}
	case yaml.SequenceNode:
		for _, v := range n.Content {
			paths(out, v, at+"[]")
		}
	default:
		out[at] = true
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/gateway.yaml"
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(path, nil); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("no file: %v", err)
	}
	write("gateway.yaml", "routes: [{name: a, upstream: b}]\nupstreams: [{name: b, servers: [\"127.0.0.1:1\"]}]\nlisteners: [{certificate: a.pem, key: b.pem}]\n")
	c, err := Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listeners[0].Certificates[0].Chain != dir+"/a.pem" || c.Buffers.AccessRing != 1<<20 || c.Path != path {
		t.Errorf("got %+v", c)
	}
	write("buffers.conf", "access_ring 2m\nshared_memory_zon 1m\n")
	_, err = Load(path, nil)
	if want := dir + "/buffers.conf:2:1: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s…", err, want)
	}
	write("buffers.conf", "access_ring 2m\n")
	if c, err = Load(path, nil); err != nil || c.Buffers.AccessRing != 2<<20 {
		t.Errorf("buffers.conf beside it: %v, %v", c, err)
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || os.IsNotExist(err) {
			return err
		}
		err = u.Unwrap()
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"same", "same", 0},
		{"upstrem", "upstream", 1}, {"dney", "deny", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 1},
	} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "64k": 64 << 10, "128m": 128 << 20, "2G": 2 << 30, "9223372036854775807": 1<<63 - 1,
		"8589934592g": -1, "": -1, "k": -1, "-1": -1, "+1": -1, "1.5m": -1, "1kb": -1, "1 k": -1, "0x10": -1, "1_000": -1, "9223372036854775808": -1,
	} {
		got, ok := parseSize(s)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 256: "256", 8 << 10: "8k", 1 << 30: "1g", 1<<20 + 1: "1048577", 1 << 40: "1024g"} {
		if got := SizeText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// A file of the greatest faults and the most entries stays cheap to read.
func TestLongLists(t *testing.T) {
	const n = 20_000
	var b strings.Builder
	b.WriteString("routes: [{name: a, upstream: b}]\nupstreams: [{name: b, servers: [\"127.0.0.1:1\"]}]\ndeny:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - 10.%d.%d.0/24\n", i/256, i%256)
	}
	c, err := Parse("gateway.yaml", []byte(b.String()), nil)
	if err != nil || len(c.Deny) != n {
		t.Fatalf("%v", err)
	}
	_, err = Parse("gateway.yaml", []byte(strings.ReplaceAll(b.String(), "/24", "/8")), nil)
	if got := len(faults(t, err)); got != maxFaults+1 {
		t.Errorf("%d faults, want the first %d and one that says so", got, maxFaults)
	}
	if _, err = Parse("gateway.yaml", slices.Repeat([]byte("#"), maxText+1), nil); err == nil {
		t.Error("a file longer than maxText is read")
	}
}
