// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events []string
		ok     bool
		last   string
		has    []string
		hasNot []string
	}{
		{
			name: "one passes, one is skipped",
			events: []string{
				`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}`,
				`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}`,
				`{"Action":"run","Package":"p","Test":"TestB"}`,
				`{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}`,
				`{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:12: needs root: it makes links\n"}`,
				`{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}`,
				`{"Action":"skip","Package":"p","Test":"TestB","Elapsed":0}`,
				`{"Action":"pass","Package":"p","Elapsed":1.5}`,
			},
			ok:     true,
			last:   "1 passed, 0 failed, 1 skipped",
			has:    []string{"skipped: p TestB: needs root: it makes links\n", "ok       1.50s p\n"},
			hasNot: []string{"chatter", "no test passed"},
		},
		{
			name: "all skipped is a failure",
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestB"}`,
				`{"Action":"skip","Package":"p","Test":"TestB"}`,
				`{"Action":"pass","Package":"p"}`,
			},
			last: "0 passed, 0 failed, 1 skipped",
			has:  []string{"skipped: p TestB: no reason given", "no test passed"},
		},
		{name: "nothing at all is a failure", last: "0 passed, 0 failed, 0 skipped"},
		{
			name: "rows count, their frame does not",
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestT"}`,
				`{"Action":"run","Package":"p","Test":"TestT/a"}`,
				`{"Action":"pass","Package":"p","Test":"TestT/a"}`,
				`{"Action":"run","Package":"p","Test":"TestT/b"}`,
				`{"Action":"output","Package":"p","Test":"TestT/b","Output":"    t_test.go:9: got 1, want 2\n"}`,
				`{"Action":"fail","Package":"p","Test":"TestT/b"}`,
				`{"Action":"fail","Package":"p","Test":"TestT"}`,
				`{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			hasNot: []string{"failed package"},
			last:   "1 passed, 1 failed, 0 skipped",
			has:    []string{"--- failed: p TestT/b\n    t_test.go:9: got 1, want 2\n", "FAIL"},
		},
		{
			name: "a frame that fails by itself counts",
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestT"}`,
				`{"Action":"run","Package":"p","Test":"TestT/a"}`,
				`{"Action":"pass","Package":"p","Test":"TestT/a"}`,
				`{"Action":"fail","Package":"p","Test":"TestT"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			last: "1 passed, 1 failed, 0 skipped",
		},
		{
			name: "a test cut short has failed",
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p","Test":"TestA"}`,
				`{"Action":"run","Package":"p","Test":"TestB"}`,
				`{"Action":"output","Package":"p","Test":"TestB","Output":"panic: boom\n"}`,
			},
			last: "1 passed, 1 failed, 0 skipped",
			has:  []string{"--- failed: p TestB\npanic: boom\n"},
		},
		{
			name: "a package that does not compile",
			events: []string{
				`{"ImportPath":"q [q.test]","Action":"build-output","Output":"q.go:3:1: syntax error\n"}`,
				`{"ImportPath":"q [q.test]","Action":"build-fail"}`,
				`{"Action":"start","Package":"q"}`,
				`{"Action":"output","Package":"q","Output":"FAIL\tq [build failed]\n"}`,
				`{"Action":"fail","Package":"q","FailedBuild":"q [q.test]"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p"}`,
			},
			last: "1 passed, 1 failed, 0 skipped",
			has:  []string{"--- does not compile: q [q.test]\nq.go:3:1: syntax error\n"},
		},
		{
			name: "a package without tests is nothing",
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p"}`,
				`{"Action":"output","Package":"r","Output":"?   \tr\t[no test files]\n"}`,
				`{"Action":"skip","Package":"r"}`,
			},
			ok:     true,
			last:   "1 passed, 0 failed, 0 skipped",
			hasNot: []string{" r\n"},
		},
		{
			name: "a package that fails outside of its tests",
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Output":"goroutines leaked\n"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			last: "1 passed, 1 failed, 0 skipped",
			has:  []string{"--- failed package: p\ngoroutines leaked\n"},
		},
		{
			name:   "lines that are no events are shown",
			events: []string{`go: cannot find main module`, `{"Action":"run","Package":"p","Test":"TestA"}`, `{"Action":"pass","Package":"p","Test":"TestA"}`},
			ok:     true,
			last:   "1 passed, 0 failed, 0 skipped",
			has:    []string{"go: cannot find main module\n"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := read(strings.NewReader(strings.Join(tt.events, "\n")))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if ok := s.report(&out); ok != tt.ok {
				t.Errorf("success is %v, want %v", ok, tt.ok)
			}
			got := out.String()
			if lines := strings.Split(strings.TrimSpace(got), "\n"); lines[len(lines)-1] != tt.last {
				t.Errorf("closes with %q, want %q", lines[len(lines)-1], tt.last)
			}
			for _, s := range tt.has {
				if !strings.Contains(got, s) {
					t.Errorf("lacks %q in:\n%s", s, got)
				}
			}
			for _, s := range tt.hasNot {
				if strings.Contains(got, s) {
					t.Errorf("has %q in:\n%s", s, got)
				}
			}
		})
	}
}
