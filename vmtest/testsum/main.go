// SPDX-License-Identifier: Apache-2.0

// Testsum reads what `go test -json` prints and says what matters of it: each
// failure in full, each skipped test by name with its reason, the time of each
// package, and the closing line
//
//	N passed, N failed, N skipped
//
// It ends with status 1 when something failed and also when nothing passed: a
// run in which everything was skipped has shown nothing. Tests without
// subtests of their own are counted, so that a table's rows count and their
// frame does not.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	counts := flag.String("counts", "", "a `file` that gets the three numbers, for a script to read")
	flag.Parse()
	s, err := read(os.Stdin)
	if err != nil {
		fmt.Fprintf(os.Stderr, "testsum: %v\n", err)
		os.Exit(2)
	}
	ok := s.report(os.Stdout)
	if *counts != "" {
		line := fmt.Sprintf("%d %d %d\n", s.passed, s.failed, s.skipped)
		if err := os.WriteFile(*counts, []byte(line), 0o644); err != nil {
			fmt.Fprintf(os.Stderr, "testsum: write counts: %v\n", err)
			os.Exit(2)
		}
	}
	if !ok {
		os.Exit(1)
	}
}

// event is a line of `go test -json`; see go doc test2json.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events
	Test        string
	Output      string
	Elapsed     float64 // seconds
	FailedBuild string
}

type key struct{ pkg, test string }

// result is one test or, with an empty test name, one package.
type result struct {
	key
	action  string // pass, fail, skip, or empty while it runs
	output  strings.Builder
	elapsed time.Duration
	parent  bool // it has subtests
}

type sum struct {
	results                 []*result // in the order of their start
	builds                  map[string]*strings.Builder
	brokenBuilds            []string
	stray                   []string // lines that are no events
	passed, failed, skipped int
}

// read collects the events of r. Lines that are no JSON are kept: they tell of
// what went wrong outside of the tests.
func read(r io.Reader) (*sum, error) {
	s := &sum{builds: map[string]*strings.Builder{}}
	index := map[key]*result{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
				s.stray = append(s.stray, strings.TrimRight(line, "\n"))
			} else {
				s.add(&e, index)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
	}
	s.count()
	return s, nil
}

func (s *sum) add(e *event, index map[key]*result) {
	switch e.Action {
	case "build-output":
		b := s.builds[e.ImportPath]
		if b == nil {
			b = &strings.Builder{}
			s.builds[e.ImportPath] = b
		}
		b.WriteString(e.Output)
		return
	case "build-fail":
		s.brokenBuilds = append(s.brokenBuilds, e.ImportPath)
		return
	}
	k := key{e.Package, e.Test}
	r := index[k]
	if r == nil {
		r = &result{key: k}
		index[k] = r
		s.results = append(s.results, r)
		if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
			if p := index[key{e.Package, e.Test[:i]}]; p != nil {
				p.parent = true
			}
		}
	}
	switch e.Action {
	case "output":
		r.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		r.action = e.Action
		r.elapsed = time.Duration(e.Elapsed * float64(time.Second))
	}
}

// count sums up. A test without an end (a panic, a time limit) has failed. A
// package that failed while none of its tests did (it does not compile, or its
// TestMain failed) counts as one failure.
func (s *sum) count() {
	failedIn := map[string]bool{}
	for _, r := range s.results {
		if r.test == "" {
			continue
		}
		if r.action == "" {
			r.action = "fail"
		}
		if r.parent && r.action != "fail" {
			continue
		}
		switch r.action {
		case "pass":
			s.passed++
		case "skip":
			s.skipped++
		case "fail":
			failedIn[r.pkg] = true
			// A frame fails with its rows; alone it fails by itself.
			if !r.parent || !s.rowFailed(r) {
				s.failed++
			}
		}
	}
	for _, r := range s.results {
		if r.test == "" && r.action != "pass" && r.action != "skip" && !failedIn[r.pkg] {
			s.failed++
		}
	}
}

func (s *sum) rowFailed(parent *result) bool {
	return slices.ContainsFunc(s.results, func(r *result) bool {
		return r.pkg == parent.pkg && strings.HasPrefix(r.test, parent.test+"/") && (r.action == "fail" || r.action == "")
	})
}

// report writes the summary and tells whether the run was a success.
func (s *sum) report(w io.Writer) bool {
	for _, line := range s.stray {
		fmt.Fprintln(w, line)
	}
	for _, path := range s.brokenBuilds {
		fmt.Fprintf(w, "--- does not compile: %s\n", path)
		if b := s.builds[path]; b != nil {
			fmt.Fprint(w, b.String())
		}
	}
	for _, r := range s.results {
		if r.test != "" && r.action == "fail" {
			fmt.Fprintf(w, "--- failed: %s %s\n%s", r.pkg, r.test, ended(r.output.String()))
		}
		if r.test == "" && r.action != "pass" && r.action != "skip" {
			if said := saidOutside(r); said != "" {
				fmt.Fprintf(w, "--- failed package: %s\n%s", r.pkg, said)
			}
		}
	}
	for _, r := range s.results {
		if r.test != "" && r.action == "skip" && !r.parent {
			fmt.Fprintf(w, "skipped: %s %s: %s\n", r.pkg, r.test, reason(r))
		}
	}
	for _, r := range s.results {
		if r.test != "" {
			continue
		}
		word := r.action
		switch word {
		case "skip":
			continue // no test files
		case "pass":
			word = "ok"
		default:
			word = "FAIL"
		}
		fmt.Fprintf(w, "%-4s %8.2fs %s\n", word, r.elapsed.Seconds(), r.pkg)
	}
	if s.passed == 0 {
		fmt.Fprintln(w, "testsum: no test passed: such a run shows nothing and counts as failed")
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	return s.failed == 0 && s.passed > 0
}

// reason is what a test gave to t.Skip: the indented lines before its end, less
// file and line.
func reason(r *result) string {
	var said []string
	for line := range strings.Lines(r.output.String()) {
		text := strings.TrimSpace(line)
		if text == "" || strings.HasPrefix(text, "=== ") || strings.HasPrefix(text, "--- ") {
			continue
		}
		if place, rest, ok := strings.Cut(text, ": "); ok && strings.Contains(place, ".go:") {
			text = rest
		}
		said = append(said, text)
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

// saidOutside is what a package printed outside of its tests (a panic, a time
// limit, the words of TestMain), less the line that only says that it failed.
func saidOutside(r *result) string {
	var b strings.Builder
	for line := range strings.Lines(ended(r.output.String())) {
		if !strings.HasPrefix(line, "FAIL") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func ended(text string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		return text + "\n"
	}
	return text
}
