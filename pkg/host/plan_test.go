// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what is got into testdata/plan")

// A case is a machine: a txtar file with machine.json, interface.json, and the text
// of a plan for each mode, "plan MODE [frags] [own=ID]".
func TestPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.txtar")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d cases, error %v: the folder is not whole", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var m Machine
			var i Interface
			plans := 0
			for n, f := range a.Files {
				switch f.Name {
				case "machine.json":
					mustDecode(t, f.Data, &m)
				case "interface.json":
					mustDecode(t, f.Data, &i)
				default:
					plans++
					p := MakePlan(i, m, wantedBy(t, f.Name))
					checkPlan(t, p)
					var got strings.Builder
					if err := p.WriteText(&got); err != nil {
						t.Fatal(err)
					}
					if *update {
						a.Files[n].Data = []byte(got.String())
					} else if diff := cmp.Diff(string(f.Data), got.String()); diff != "" {
						t.Errorf("%s (-want +got):\n%s", f.Name, diff)
					}
				}
			}
			if plans == 0 {
				t.Error("no plan in the file")
			}
			if *update {
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func mustDecode(t *testing.T, data []byte, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}

func wantedBy(t *testing.T, name string) Wanted {
	t.Helper()
	words := strings.Fields(name)
	if len(words) < 2 || words[0] != "plan" {
		t.Fatalf("section %q: want plan MODE [frags] [own=ID]", name)
	}
	w := Wanted{Mode: words[1]}
	for _, x := range words[2:] {
		if x == "frags" {
			w.Frags = true
		} else if n, err := fmt.Sscanf(x, "own=%d", &w.Own); n != 1 {
			t.Fatalf("section %q: %v", name, err)
		}
	}
	return w
}

// checkPlan holds what is so for every plan.
func checkPlan(t *testing.T, p Plan) {
	t.Helper()
	worst := 0
	for _, f := range p.Findings {
		if r := rank(f.Severity); r < worst {
			t.Errorf("%s in %s mode: %q is not in its place", p.Interface, p.Wanted, f.Title)
		} else {
			worst = r
		}
	}
	if refused := p.Mode == ""; refused != blocked(p.Findings) || refused != (p.Flap == "") {
		t.Errorf("%s in %s mode: mode %q, flap %q, blocked %v", p.Interface, p.Wanted, p.Mode, p.Flap, blocked(p.Findings))
	}
	switch {
	case p.Mode == "" || p.Mode == p.Wanted:
	case p.Wanted == ModeAuto && (p.Mode == ModeNative || p.Mode == ModeTC):
	default:
		t.Errorf("%s: wanted %s mode, would attach in %s", p.Interface, p.Wanted, p.Mode)
	}
}

func TestVersions(t *testing.T) {
	for release, want := range map[string]version{
		"6.12.57+deb13-amd64": {6, 12}, "5.4.0-150-generic": {5, 4}, "4.18.0-553.el8.x86_64": {4, 18}, "7.2-rc1": {7, 2},
		"": {}, "custom": {}, "6": {}, "6.x": {},
	} {
		if got := parseVersion(release); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
	if v := (version{5, 10}); !v.before(version{5, 11}) || !v.before(version{6, 1}) || v.before(v) || v.before(version{5, 9}) || v.before(version{4, 19}) {
		t.Error("5.10 is not between 5.9 and 5.11")
	}
}
