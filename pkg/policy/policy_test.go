// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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
			got := []txtar.File{{Name: "tables", Data: tables(&p.Tables)}, {Name: "snapshot", Data: encode(t, p.Snapshot)}}
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
	for _, p := range t.Deny {
		family := "deny4"
		if p.Addr().Is6() {
			family = "deny6"
		}
		fmt.Fprintln(&b, family, p)
	}
	for _, l := range t.Limits {
		fmt.Fprintf(&b, "limit %s: %s interval %d tolerance %d\n", l.Kind, l.Name, l.Interval, l.Tolerance)
	}
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
	c, err := config.Load("../../deploy/gateway.yaml")
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
	c.Upstreams[0].Servers[0] = "changed:1"
	if first.Snapshot.Upstreams[0].Servers[0] == "changed:1" {
		t.Error("the policy shares memory with the configuration")
	}
}

func TestLimit(t *testing.T) {
	for _, c := range []struct {
		rate, burst         uint64
		interval, tolerance time.Duration
	}{
		{1, 1, time.Second, time.Second},
		{1, 0, time.Second, time.Second},
		{3, 2, 333333333, 666666666},
		{1000, 50, time.Millisecond, 50 * time.Millisecond},
		{700_000, 1, 1429, 1429}, // 1428.57
		{600_000_000, 10, 2, 20}, // 1.67
		{1_000_000_000, 5, 1, 5},
		{1, 1_000_000_000, time.Second, 1_000_000_000 * time.Second},
	} {
		got, err := compileLimit(config.PacketLimit{Name: "x", Key: "queue", Count: "packets", Rate: c.rate, Burst: c.burst})
		want := PacketLimit{Name: "x", Kind: QueuePackets, Interval: c.interval, Tolerance: c.tolerance}
		if err != nil || got != want {
			t.Errorf("%d/s, burst %d: %+v, %v, want %+v", c.rate, c.burst, got, err, want)
		}
		off := math.Abs(float64(time.Second)/float64(got.Interval)-float64(c.rate)) / float64(c.rate)
		if stated := float64(c.rate) / 2e9; off > stated && float64(c.rate) <= 1e8 {
			t.Errorf("%d/s: off by %g of itself, stated is %g", c.rate, off, stated)
		}
	}
	for _, l := range []config.PacketLimit{
		{Key: "queue", Count: "packets"},
		{Key: "queue", Count: "packets", Rate: 1_000_000_001},
		{Key: "queue", Count: "syns", Rate: 1},
		{Key: "source", Count: "packets", Rate: 1},
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
		"zero prefix":      func(c *config.Config) { c.Deny = make([]netip.Prefix, 1) },
		"limit":            func(c *config.Config) { c.PacketLimits = make([]config.PacketLimit, 1) },
	} {
		c, err := config.Load("../../deploy/gateway.yaml")
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		if p, err := Compile(c, 1); err == nil {
			t.Errorf("%s: compiled to %+v", name, p)
		}
	}
}

// Whatever the list, the result is masked, sorted, free of containment, and
// contains the same addresses.
func TestNormaliseKeepsMembership(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var in []netip.Prefix
		for range 1 + r.IntN(20) {
			in = append(in, randomPrefix(r))
		}
		out, err := normalise(in)
		if err != nil {
			t.Fatal(err)
		}
		checkNormal(t, out)
		for range 50 {
			a := randomAddr(r)
			if got, want := contains(out, a), contains(in, a); got != want {
				t.Fatalf("%s: in tables %v, in the list %v\nlist %v\ntables %v", a, got, want, in, out)
			}
		}
		r.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		if again, err := normalise(in); err != nil || !slices.Equal(out, again) {
			t.Fatalf("order matters: %v, then %v (%v)", out, again, err)
		}
	}
}

func checkNormal(t *testing.T, list []netip.Prefix) {
	t.Helper()
	for i, p := range list {
		if p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
			t.Errorf("%s is not in normal form", p)
		}
		if i > 0 && list[i-1].Addr().Compare(p.Addr()) >= 0 {
			t.Errorf("%s stands before %s", list[i-1], p)
		}
		for _, q := range list[:i] {
			if q.Overlaps(p) {
				t.Errorf("%s and %s overlap", q, p)
			}
		}
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

// contains takes an IPv4-mapped address for the IPv4 address that it is on a wire.
func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		return p.Contains(a.Unmap())
	})
}

func TestLimitKindNames(t *testing.T) {
	for k, want := range map[LimitKind]string{QueuePackets: "queue packets", SourceSyns: "source syns", 9: "kind 9"} {
		if got := k.String(); got != want {
			t.Errorf("%d: %q, want %q", int(k), got, want)
		}
	}
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
		if err != nil {
			t.Fatal(err)
		}
		checkNormal(t, p.Tables.Deny)
		for _, l := range p.Tables.Limits {
			if l.Interval < 1 || l.Tolerance < l.Interval {
				t.Fatalf("%+v", l)
			}
		}
		for _, r := range p.Snapshot.Routes {
			_ = p.Snapshot.Upstreams[r.Upstream]
		}
	})
}
