// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

const unit = "ns above bare XDP_DROP"

// record is a case as it is kept.
type record struct {
	Name  string             `json:"name"`
	Unit  string             `json:"unit"`
	Ours  float64            `json:"ours"`
	Peers map[string]float64 `json:"peers"`
	Ratio float64            `json:"ratio"` // ours to the peer's
}

func (c *testCase) title() string { return c.name + ", " + string(c.setup) }

// ratio is the median of the rounds' own, so that what slows a round slows both sides.
func (r *result) ratio() float64 {
	ratios := make([]float64, len(r.ours))
	for i := range ratios {
		ratios[i] = r.ours[i] / r.filter[i]
	}
	return median(ratios)
}

func (r *result) record() record {
	return record{
		Name: r.title(), Unit: unit, Ours: hundredths(median(r.ours)),
		Peers: map[string]float64{filterName: hundredths(median(r.filter))}, Ratio: hundredths(r.ratio()),
	}
}

func hundredths(v float64) float64 { return math.Round(v*100) / 100 }

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// spread is half of what lies between the quartiles: on a machine with other work the
// greatest figure says nothing.
func spread(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[len(s)*3/4] - s[len(s)/4]) / 2
}

func heading(w io.Writer, b *bench, o options, core int) {
	fmt.Fprintf(w, "Nanoseconds of CPU time per packet above a bare XDP_DROP: median of %d rounds of %d packets of %d sources,\n± half of what lies between the quartiles.\n",
		o.rounds, o.packets, flowCount)
	fmt.Fprintf(w, "  %-10s %s; %d addresses\n", filterName, packageVersion("xdp-tools"), len(b.traffic.single))
	ingress, _ := b.gateways[allFeatures].datapath.Programs()
	if info, err := ingress.Info(); err == nil {
		verified, _ := info.VerifiedInstructions()
		fmt.Fprintf(w, "  %-10s xdp_ingress: the verifier walked %d instructions; %d denied prefixes, %d sources completed a handshake\n",
			ours, verified, len(b.traffic.rules), len(b.traffic.live))
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		fmt.Fprintf(w, "  %-10s %s %s\n", "kernel", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	}
	fmt.Fprintf(w, "  %-10s %d; %s\n\n", "core", core, processor())
}

func packageVersion(name string) string {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
	if err != nil {
		return "of unknown version"
	}
	return string(out)
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func table(w io.Writer, results []result) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "ns\tbare drop itself\t%s\t%s\t%s / %s\n", filterName, ours, ours, filterName)
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%.1f ±%.1f\t%.1f ±%.1f\t%.1f ±%.1f\t%.2f\n", r.title(), median(r.bare), spread(r.bare),
			median(r.filter), spread(r.filter), median(r.ours), spread(r.ours), r.ratio())
	}
	t.Flush()
}

// stepTable shows what each feature adds to those before it.
func stepTable(w io.Writer, steps []step) {
	fmt.Fprintf(w, "\n%s with features switched on one after the other, and what each adds:\n", ours)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(t, "ns\testablished\t\tSYN of a new source\t\n")
	before := step{established: []float64{0}, syn: []float64{0}}
	for _, s := range steps {
		fmt.Fprintf(t, "%s\t%.1f\t%+.1f\t%.1f\t%+.1f\n", s.name, median(s.established), median(s.established)-median(before.established),
			median(s.syn), median(s.syn)-median(before.syn))
		before = s
	}
	t.Flush()
}

func write(path string, results []result) error {
	records := make([]record, 0, len(results))
	for _, r := range results {
		records = append(records, r.record())
	}
	text, err := json.MarshalIndent(records, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
