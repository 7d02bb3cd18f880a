// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what is got into testdata")

var moment = time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)

// machines reads a case and what it stands on: the two readings. A file under before/ is of
// the earlier one alone, and from then on one of that name without it is of the later one
// alone; JSON is laid over that of the case beneath; an empty file is one that is not there.
func machines(t *testing.T, name string, before, now *Reading) *txtar.Archive {
	t.Helper()
	a, _ := beneath(t, name, before, now)
	return a
}

// beneath also returns the paths of which the earlier reading has files of its own.
func beneath(t *testing.T, name string, before, now *Reading) (*txtar.Archive, map[string]bool) {
	t.Helper()
	own := map[string]bool{}
	a, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	if words := strings.Fields(strings.ReplaceAll(string(a.Comment), ":", " ")); words[0] == "on" {
		_, own = beneath(t, words[1], before, now)
	}
	for _, f := range a.Files {
		path, early := strings.CutPrefix(f.Name, "before/")
		if early || !own[path] {
			lay(t, before, path, f.Data)
		}
		if early {
			own[path] = true
		} else {
			lay(t, now, path, f.Data)
		}
	}
	return a, own
}

// lay puts a file into a reading.
func lay(t *testing.T, r *Reading, path string, data []byte) {
	t.Helper()
	var into any
	switch path {
	case "report":
		return
	case "facts.json":
		r.Facts, into = Facts{}, &r.Facts
	case "nic.json":
		into = &r.NICs[0]
	case "gateway.json":
		into = &r.Gateway
	}
	switch {
	case into != nil:
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	case len(data) == 0:
		delete(r.Files, path)
	default:
		r.Files[path] = string(data)
	}
}

func examine(t *testing.T, name string) (*Report, *txtar.Archive) {
	t.Helper()
	readings := [2]*Reading{}
	for i := range readings {
		readings[i] = &Reading{At: moment.Add(time.Duration(2*i) * time.Second), Files: map[string]string{}, NICs: make([]NIC, 1), Gateway: &Gateway{}}
	}
	a := machines(t, name, readings[0], readings[1])
	return Examine(readings[0], readings[1]), a
}

func names(t *testing.T) (all []string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d machines, error %v: the folder is not whole", len(files), err)
	}
	for _, f := range files {
		all = append(all, strings.TrimSuffix(filepath.Base(f), ".txtar"))
	}
	return all
}

func TestMachines(t *testing.T) {
	for _, name := range names(t) {
		t.Run(name, func(t *testing.T) {
			r, a := examine(t, name)
			got := r.WriteText()
			i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == "report" })
			switch {
			case *update:
				if i < 0 {
					a.Files, i = append(a.Files, txtar.File{Name: "report"}), len(a.Files)
				}
				a.Files[i].Data = []byte(got)
				if err := os.WriteFile(filepath.Join("testdata", name+".txtar"), txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			case i < 0:
				t.Errorf("no report in the file; got\n%s", got)
			default:
				if diff := cmp.Diff(string(a.Files[i].Data), got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
			for _, f := range r.Findings {
				if f.Object == "" || f.Title == "" || f.Evidence == "" || f.Cause == "" || f.Mend == "" || f.Severity.rank() < 0 {
					t.Errorf("half a finding: %+v", f)
				}
			}
		})
	}
}

// Machines with nothing but one fault, and what is said first.
func TestFirstFinding(t *testing.T) {
	for name, want := range map[string][2]string{
		"healthy-metal": {"", ""}, "ring-small": {"nic-errors", "ethtool -G eth0 rx 4096"}, "irqs-one-core": {"interrupts", "xgw queues eth0 --spread"},
		"sysctls": {"sysctls", `sysctl -w net.core.somaxconn="4096"`}, "upstreams": {"upstreams", "203.0.113.2:8080"}, "gateway-dead": {"supervisor", "restart"},
		"disk-full": {"log-disk", "logrotate"}, "unplugged": {"link", "ethtool eth0"}, "hot-and-old": {"throttling", "fans"}, "oom": {"workers", "journalctl"},
		"too-old": {"kernel", "newer"},
	} {
		r, _ := examine(t, name)
		var got Finding
		if len(r.Findings) > 0 {
			got = r.Findings[0]
		}
		if got.Check != want[0] || !strings.Contains(got.Mend, want[1]) {
			t.Errorf("%s: first is %q, mend %q; want %q, %q", name, got.Check, got.Mend, want[0], want[1])
		}
	}
}

// Each check finds something on one of the machines, and on another looks and finds nothing.
func TestEachCheckBothWays(t *testing.T) {
	found, quiet := map[string]bool{}, map[string]bool{}
	for _, name := range names(t) {
		r, _ := examine(t, name)
		mine := map[string]bool{}
		for _, f := range r.Findings {
			mine[f.Check] = true
		}
		for _, c := range checks {
			_, blind := r.Blind[c.name]
			found[c.name] = found[c.name] || mine[c.name]
			quiet[c.name] = quiet[c.name] || !mine[c.name] && !blind
		}
	}
	for _, c := range checks {
		if !found[c.name] || !quiet[c.name] {
			t.Errorf("%s: triggered %t, looked and found nothing %t", c.name, found[c.name], quiet[c.name])
		}
	}
}

// What was counted before the first reading is no finding, nor is a counter that began anew.
func TestTotalsAreNoFindings(t *testing.T) {
	for _, name := range names(t) {
		for _, backwards := range []bool{false, true} {
			readings := [2]*Reading{}
			for i := range readings {
				readings[i] = &Reading{At: moment.Add(time.Duration(2*i) * time.Second), Files: map[string]string{}, NICs: make([]NIC, 1), Gateway: &Gateway{}}
			}
			machines(t, name, readings[0], readings[1])
			before, now := readings[1], readings[1]
			if backwards {
				before, now = readings[1], readings[0]
				now.At = before.At.Add(2 * time.Second)
			}
			for _, f := range Examine(before, now).Findings {
				if slices.Contains([]string{"nic-errors", "softnet", "listen-queues", "retransmits", "resets", "upstreams", "overload", "handshakes", "clients", "maps", "throttling", "interrupts"}, f.Check) {
					t.Errorf("%s, backwards %t: %s: %s", name, backwards, f.Check, f.Evidence)
				}
			}
		}
	}
}
