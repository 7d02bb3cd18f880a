// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Small tables and few packets: each case runs as it says, or its figures would be of
// something else.
func TestEveryCaseRunsAsItSays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
	if found, _ := filepath.Glob(filterPaths[0]); len(found) == 0 {
		t.Skip("needs xdp-filter: package xdp-tools")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b, err := newBench(2*flowCount, 2*flowCount)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	o := options{rounds: 1, packets: 2 * flowCount}
	results, err := b.run(o)
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != len(b.cases) {
		t.Errorf("%d of %d cases were run", len(results), len(b.cases))
	}
	if _, err := b.runSteps(o); err != nil {
		t.Fatal(err)
	}
	// A case that ends otherwise than it says is an error.
	wrong := b.cases[0]
	wrong.want, wrong.action = "pass_tcp", xdpPass
	if err := b.round(&result{testCase: wrong}, 0, o.packets); err == nil {
		t.Error("packets that are dropped were measured as passing")
	}
}

func TestMedianAndSpread(t *testing.T) {
	v := []float64{9, 1, 2, 3, 4, 5, 6, 7, 100}
	if got := median(v); got != 5 {
		t.Errorf("median %v, want 5", got)
	}
	if got := spread(v); got != 2 {
		t.Errorf("spread %v, want half of 7 - 3", got)
	}
}
