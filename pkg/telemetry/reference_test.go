// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

var update = flag.Bool("update", false, "write deploy/metrics.md")

const reference = "../../deploy/metrics.md"

// exemplary are all metrics of this product, of sources that have something of everything.
func exemplary(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	all := families(t, mustServe(t, fill(mustZone(t, 2, 16))))
	for name := range all {
		if !strings.HasPrefix(name, "xgw_") {
			delete(all, name)
		}
	}
	return all
}

// The reference in deploy/ is what the code says; `go test ./pkg/telemetry -run Reference
// -update` writes it.
func TestReference(t *testing.T) {
	all := exemplary(t)
	var b strings.Builder
	b.WriteString(`# Metrics

What 9090 tells, made from the code by ` + "`go test ./pkg/telemetry -run Reference -update`" + `. Names of routes, upstreams, servers,
limits and interfaces come from the configuration; no label is anything that clients choose. Histograms are native ones for who
reads protobuf. Beside these there are go_* and process_*, of the supervisor alone.

| metric | kind | labels | meaning |
|---|---|---|---|
`)
	told := 0
	for _, d := range newMetrics().all {
		name := d.name
		f := all[name]
		if f == nil {
			t.Errorf("%s is declared, and sources that have something of everything do not show it", name)
			continue
		}
		told++
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), strings.Join(labels, " "), f.GetHelp())
	}
	if told != len(all) {
		t.Errorf("%d metrics are declared and %d are there", told, len(all))
	}
	if *update {
		if err := os.WriteFile(reference, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(reference); err != nil || string(text) != b.String() {
		t.Errorf("deploy/metrics.md is not what the code says (%v): run this test with -update", err)
	}
}
