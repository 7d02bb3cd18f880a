// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/xgw-project/xgw/pkg/config"
)

var update = flag.Bool("update", false, "write what is got into testdata")

// A case is a txtar file: gateway.yaml, and the keys and values of both planes.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d cases, error %v: the folder is not whole", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := config.Parse("gateway.yaml", a.Files[0].Data, nil)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Compile(c, 7)
			if err != nil {
				t.Fatal(err)
			}
			got := []txtar.File{{Name: "tables", Data: append(tables(&p.Tables), fmt.Sprintf("pinholes %v\n", p.Pinholes)...)}, {Name: "snapshot", Data: encode(t, p.Snapshot)}}
			if *update {
				a.Files = append(a.Files[:1], got...)
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for i, f := range got {
				if diff := cmp.Diff(string(a.Files[1+i].Data), string(f.Data)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, diff)
				}
			}
		})
	}
}

// tables renders one entry a line: table, key, value.
func tables(t *Tables) []byte {
	var b bytes.Buffer
	for _, r := range t.Prefixes {
		fmt.Fprintln(&b, r.Action, r.Prefix)
	}
	for _, l := range t.Limits {
		fmt.Fprintf(&b, "limit %s: key %d count %d port %d cost %d tolerance %d dry_run %v\n", l.Name, l.Key, l.Count, l.Port, l.Cost, l.Tolerance, l.DryRun)
	}
	fmt.Fprintf(&b, "guard: mode %d tcp %v udp %v\n", t.PortGuard.Mode, t.PortGuard.TCP, t.PortGuard.UDP)
	fmt.Fprintf(&b, "budgets: essential %d echo %d unclassified %d\n", t.Budgets.Essential, t.Budgets.Echo, t.Budgets.Unclassified)
	fmt.Fprintf(&b, "spread %v, verdicts stale after %s\n", t.Spread, t.StaleAfter)
	return b.Bytes()
}

func encode(t *testing.T, s Snapshot) []byte {
	t.Helper()
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// The workers get a snapshot as JSON: nothing may be lost on the way, and the same
// configuration must give the same bytes.
func TestSnapshotTravels(t *testing.T) {
	c, err := config.Load("../../deploy/gateway.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	first, err := Compile(c, 3)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Compile(c, 3)
	if err != nil {
		t.Fatal(err)
	}
	a, b := encode(t, first.Snapshot), encode(t, second.Snapshot)
	if !bytes.Equal(a, b) {
		t.Errorf("two compilations differ:\n%s\n%s", a, b)
	}
	var got Snapshot
	if err := json.Unmarshal(a, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first.Snapshot, got); diff != "" {
		t.Errorf("(-sent +received):\n%s", diff)
	}
	c.Upstreams[0].Servers[0].Address = "changed:1"
	if first.Snapshot.Upstreams[0].Servers[0].Address == "changed:1" {
		t.Error("the policy shares memory with the configuration")
	}
}

func TestLimitCosts(t *testing.T) {
	for _, c := range []struct{ rate, burst, cost, tolerance uint64 }{
		{1, 1, 1_000_000_000 << 16, 1_000_000_000 << 6},
		{100, 200, 10_000_000 << 16, 2_000_000_000 << 6},
		{1_000_000, 0, 1000 << 16, 1000 << 6},
		{700_000, 1, 93_622_857, 91_428}, // 1428.57 ns
		{1_000_000_000, 5, 1 << 16, 5 << 6},
		{100_000_000_000, 1_000_000_000_000, 655, 655_000_000_000_000 >> 10 * 1000},
	} {
		got, err := compileLimit(config.PacketLimit{Name: "x", Key: "queue", Count: "bytes", Rate: c.rate, Burst: c.burst})
		want := PacketLimit{Name: "x", Key: ByQueue, Count: Bytes, Cost: c.cost, Tolerance: c.tolerance}
		if c.rate == 100_000_000_000 {
			want.Tolerance = c.burst * c.cost >> 10
		}
		if err != nil || got != want {
			t.Errorf("%d/s, burst %d: %+v, %v, want %+v", c.rate, c.burst, got, err, want)
		}
	}
	for _, l := range []config.PacketLimit{
		{Key: "queue", Count: "packets"},
		{Key: "queue", Count: "wishes", Rate: 1},
		{Key: "country", Count: "packets", Rate: 1},
		{Key: "queue", Count: "packets", Rate: 1, Burst: 1_000_000},
		{Rate: 1},
	} {
		if got, err := compileLimit(l); err == nil {
			t.Errorf("%+v: accepted as %+v", l, got)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, change := range map[string]func(*config.Config){
		"unknown upstream": func(c *config.Config) { c.Routes[0].Upstream = "elsewhere" },
		"unknown mirror":   func(c *config.Config) { c.Routes[0].Mirror = "elsewhere" },
		"unknown share":    func(c *config.Config) { c.Routes[0].Split = []config.Share{{Upstream: "elsewhere", Weight: 1}} },
		"zero prefix":      func(c *config.Config) { c.Deny = make([]netip.Prefix, 1) },
		"limit":            func(c *config.Config) { c.PacketLimits = make([]config.PacketLimit, 1) },
	} {
		c, err := config.Load("../../deploy/gateway.yaml", nil)
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		if p, err := Compile(c, 1); err == nil {
			t.Errorf("%s: compiled to %+v", name, p)
		}
	}
}

// Whatever the lists, the result is masked, sorted, without a rule that changes nothing,
// and decides for each address as the longest prefix of the lists does.
func TestNormaliseKeepsDecisions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var in []PrefixRule
		actions := map[netip.Prefix]Action{}
		for range 1 + r.IntN(20) {
			p := unmap(randomPrefix(r)).Masked()
			if actions[p] == 0 {
				actions[p] = Action(1 + r.IntN(2))
			}
			in = append(in, PrefixRule{p, actions[p]})
		}
		before := slices.Clone(in)
		out, err := normalise(in, len(in))
		if err != nil {
			t.Fatal(err)
		}
		checkNormal(t, out)
		for range 50 {
			a := randomAddr(r)
			if got, want := decides(out, a), decides(before, a); got != want {
				t.Fatalf("%s: in tables %v, in the list %v\nlist %v\ntables %v", a, got, want, before, out)
			}
		}
		r.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		if again, err := normalise(in, len(in)); err != nil || !slices.Equal(out, again) {
			t.Fatalf("order matters: %v, then %v (%v)", out, again, err)
		}
	}
}

// decides is the action of the longest rule, an IPv4-mapped address being the IPv4 address
// that it is on a wire.
func decides(list []PrefixRule, a netip.Addr) (action Action) {
	longest := -1
	for _, r := range list {
		if r.Prefix.Contains(a.Unmap()) && r.Prefix.Bits() > longest {
			longest, action = r.Prefix.Bits(), r.Action
		}
	}
	return action
}

func checkNormal(t *testing.T, list []PrefixRule) {
	t.Helper()
	for i, r := range list {
		p := r.Prefix
		if p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
			t.Errorf("%s is not in normal form", p)
		}
		if i > 0 {
			before := list[i-1].Prefix
			if c := before.Addr().Compare(p.Addr()); c > 0 || c == 0 && before.Bits() >= p.Bits() {
				t.Errorf("%s stands before %s", before, p)
			}
		}
		if decides(list[:i], p.Addr()) == r.Action {
			t.Errorf("%v changes nothing", r)
		}
	}
}

func TestRuleForOnePrefixTwice(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.7/32")
	if _, err := normalise([]PrefixRule{{p, Deny}, {p, Allow}}, 2); err == nil || !strings.Contains(err.Error(), "192.0.2.7/32") {
		t.Errorf("denied and allowed: %v", err)
	}
	// An upstream's own address is allowed only where nothing was said about it.
	out, err := normalise([]PrefixRule{{p, Deny}, {p, Allow}}, 1)
	if err != nil || len(out) != 1 || out[0].Action != Deny {
		t.Errorf("denied, and an upstream: %v, %v", out, err)
	}
}

// A narrow world, so that prefixes meet.
func randomAddr(r *rand.Rand) netip.Addr {
	switch r.IntN(3) {
	case 0:
		return netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(4)), byte(r.IntN(8))})
	case 1:
		return netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: 10, 14: byte(r.IntN(4)), 15: byte(r.IntN(8))})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 14: byte(r.IntN(4)), 15: byte(r.IntN(8))})
}

func randomPrefix(r *rand.Rand) netip.Prefix {
	a := randomAddr(r)
	return netip.PrefixFrom(a, a.BitLen()-r.IntN(14))
}

// FuzzCompile: what the parser accepts compiles, into tables in normal form.
func FuzzCompile(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, path := range files {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := config.Parse("gateway.yaml", text, nil)
		if err != nil {
			return
		}
		p, err := Compile(c, 1)
		if err != nil && (strings.Contains(err.Error(), "both denied and allowed") || strings.Contains(err.Error(), "different lengths")) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		checkNormal(t, p.Tables.Prefixes)
		if _, err := NewPrefixTable(p.Tables.Prefixes, 1); err != nil {
			t.Fatal(err)
		}
		for _, l := range p.Tables.Limits {
			if l.Cost < 1 || l.Tolerance < l.Cost>>10 {
				t.Fatalf("%+v", l)
			}
		}
		for _, r := range p.Snapshot.Routes {
			if r.Upstream != Local {
				_ = p.Snapshot.Upstreams[r.Upstream]
			}
			if r.Upstream == Local && r.Split == nil && r.Redirect == nil && r.Reply == nil {
				t.Fatalf("nothing becomes of a request: %+v", r)
			}
		}
	})
}
