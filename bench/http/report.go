// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ours = "xgw"
	// logged is the end of the name of a peer that writes an access log.
	logged = "-log"
)

// unit of a case's figures.
func (c *benchCase) unit() string {
	switch {
	case c.paced:
		return "us"
	case c.idle:
		return "KiB/connection"
	}
	return "us/request"
}

// record is a case as it is kept.
type record struct {
	Name  string             `json:"name"`
	Unit  string             `json:"unit"`
	Ours  float64            `json:"ours"`
	Peers map[string]float64 `json:"peers"`
	Ratio float64            `json:"ratio"` // ours to the best peer's that writes no access log
	// The same with those that write one, as ours does; 0: there was none.
	RatioLogged float64 `json:"ratio_logged,omitempty"`
}

func (r *result) record() record {
	out := record{Name: r.name, Unit: r.unit, Peers: map[string]float64{}}
	best := map[bool]float64{} // by whether it logs
	for name, figures := range r.figures {
		m := hundredths(median(figures))
		if name == ours {
			out.Ours = m
			continue
		}
		out.Peers[name] = m
		logs := strings.HasSuffix(name, logged)
		if best[logs] == 0 || m < best[logs] {
			best[logs] = m
		}
	}
	if best[false] > 0 {
		out.Ratio = hundredths(out.Ours / best[false])
	}
	if best[true] > 0 {
		out.RatioLogged = hundredths(out.Ours / best[true])
	}
	return out
}

func hundredths(v float64) float64 { return math.Round(v*100) / 100 }

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// spread is half of what lies between the least and the greatest.
func spread(v []float64) float64 { return (slices.Max(v) - slices.Min(v)) / 2 }

// heading says what is compared with what, and on what.
func heading(w io.Writer, b *bench, cores [2]int) {
	fmt.Fprintf(w, "CPU time per request, all processes of each gateway: median of %d rounds of %s, ± half the range.\n", b.options.rounds, b.options.duration)
	for _, g := range b.gateways {
		note := "no access log, no XDP"
		switch {
		case g.name == ours:
			note = "access log on, native XDP program on its link"
		case strings.HasSuffix(g.name, logged):
			note = "access log on, no XDP"
		}
		fmt.Fprintf(w, "  %-11s %s (%s)\n", g.name, g.version, note)
	}
	fmt.Fprintf(w, "  load        %s; %s; upstream %s\n", versionOf("wrk", ""), versionOf("h2load", ""), versionOf("nginx", ""))
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		fmt.Fprintf(w, "  kernel      %s %s\n", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	}
	fmt.Fprintf(w, "  cores       gateway %d, client and upstream %d; %s\n\n", cores[0], cores[1], processor())
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

func table(w io.Writer, gateways []*gateway, results []result) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	names := make([]string, 0, len(gateways))
	for _, g := range gateways {
		names = append(names, g.name)
	}
	withOurs := slices.Contains(names, ours)
	fmt.Fprintf(t, "\t%s", strings.Join(names, "\t"))
	if withOurs {
		fmt.Fprint(t, "\txgw / best peer\twith its log")
	}
	fmt.Fprintln(t)
	for _, r := range results {
		fmt.Fprintf(t, "%s, %s", r.name, r.unit)
		for _, name := range names {
			fmt.Fprintf(t, "\t%.1f ±%.1f", median(r.figures[name]), spread(r.figures[name]))
		}
		if withOurs {
			fmt.Fprintf(t, "\t%.2f\t%.2f", r.record().Ratio, r.record().RatioLogged)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

// remarks are what a reader of the table must know besides.
func remarks(w io.Writer, b *bench) error {
	fmt.Fprintln(w)
	if b.answered > 0 {
		time.Sleep(time.Second) // the log is written behind the requests
		lines, err := countLines(b.place.file(accessLog))
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "xgw wrote %d lines of access log for %d requests (%.1f %%).\n", lines, b.answered, 100*float64(lines)/float64(b.answered))
	}
	if b.noisy > 0 {
		fmt.Fprintf(w, "Beside %d of %d measurements other work took more than %d %% of the gateway's core: run it again when the machine is quiet.\n",
			b.noisy, b.measured, noise)
	}
	return nil
}

func countLines(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("count access log: %w", err)
	}
	defer f.Close()
	var lines int64
	for chunk := make([]byte, 1<<20); ; {
		n, err := f.Read(chunk)
		lines += int64(bytes.Count(chunk[:n], []byte{'\n'}))
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return 0, fmt.Errorf("count access log: %w", err)
		}
	}
}

// write keeps what the file says of cases that were not measured now, if merge says so.
func write(path string, results []result, merge bool) error {
	var records []record
	if merge {
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &records)
		}
		if err != nil {
			return fmt.Errorf("merge results: %w", err)
		}
	}
	for i := range results {
		r := results[i].record()
		at := slices.IndexFunc(records, func(old record) bool { return old.Name == r.Name })
		if at < 0 {
			records = append(records, r)
		} else {
			records[at] = r
		}
	}
	return writeRecords(path, records)
}

func writeRecords(path string, records []record) error { return writeJSON(path, records) }

func writeJSON(path string, records any) error {
	text, err := json.MarshalIndent(records, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
