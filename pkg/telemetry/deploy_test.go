// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var (
	metricName = regexp.MustCompile(`(?:^|[^a-zA-Z0-9_:])(xgw_[a-z0-9_]+)`)
	recorded   = regexp.MustCompile(`[a-z_]+:xgw_[a-z0-9_]+:[a-z0-9_]+`)
)

// What rules, dashboards and examples name is there.
func TestDeployedNamesExist(t *testing.T) {
	all := exemplary(t)
	rules := mustRead(t, "prometheus/rules.yml")
	for _, file := range []string{"prometheus/rules.yml", "prometheus/rules_test.yml", "grafana/xgw.json"} {
		text := mustRead(t, file)
		names := metricName.FindAllStringSubmatch(text, -1)
		if len(names) < 5 {
			t.Errorf("%s names %d metrics: the test did not read what it claims", file, len(names))
		}
		for _, m := range names {
			name := m[1]
			if all[name] == nil && all[strings.TrimSuffix(name, "_bucket")] == nil {
				t.Errorf("%s: no metric %s", file, name)
			}
		}
		for _, name := range recorded.FindAllString(text, -1) {
			if !strings.Contains(rules, "record: "+name+"\n") {
				t.Errorf("%s: no rule records %s", file, name)
			}
		}
	}
}

func mustRead(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Labels that queries select by or group by are those that the metric has.
func TestDeployedLabelsExist(t *testing.T) {
	all := exemplary(t)
	selector := regexp.MustCompile(`(xgw_[a-z0-9_]+)\{([^}]*)\}`)
	label := regexp.MustCompile(`([a-z_]+)=~?|([a-z_]+)!=`)
	seen := 0
	for _, file := range []string{"prometheus/rules.yml", "prometheus/rules_test.yml", "grafana/xgw.json"} {
		text := strings.ReplaceAll(mustRead(t, file), `\"`, `"`)
		for _, m := range selector.FindAllStringSubmatch(text, -1) {
			f := all[strings.TrimSuffix(m[1], "_bucket")]
			if f == nil {
				continue // TestDeployedNamesExist says so, or it is a recording
			}
			has := map[string]bool{"job": true, "instance": true}
			for _, l := range f.GetMetric()[0].GetLabel() {
				has[l.GetName()] = true
			}
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				seen++
				if name := l[1] + l[2]; !has[name] {
					t.Errorf("%s: %s has no label %s", file, m[1], name)
				}
			}
		}
	}
	if seen < 30 {
		t.Errorf("%d labels: the test did not read what it claims", seen)
	}
}

func TestDeployedRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("needs promtool: the distribution's package is called prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}, {"check", "config", "scrape.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "../../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// The dashboard's queries are PromQL, as promtool sees rules of them, and its panels lie side
// by side.
func TestDashboard(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("needs promtool: the distribution's package is called prometheus")
	}
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(mustRead(t, "grafana/xgw.json")), &d); err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(q.Expr)
			rules = append(rules, rule{"dashboard:query", expr})
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
					t.Fatalf("%s lies over %s", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	if len(rules) < 20 {
		t.Fatalf("%d queries", len(rules))
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "x", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", "--lint=none", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The Collector's example is YAML whose pipelines have parts that are there; no Collector is
// at hand to try it.
func TestCollectorExample(t *testing.T) {
	var c struct {
		Receivers, Processors, Exporters map[string]any
		Service                          struct {
			Pipelines map[string]struct{ Receivers, Processors, Exporters []string }
		}
	}
	if err := yaml.Unmarshal([]byte(mustRead(t, "otel-collector.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Service.Pipelines) == 0 {
		t.Fatal("no pipelines")
	}
	for name, p := range c.Service.Pipelines {
		for _, part := range []struct {
			names []string
			of    map[string]any
		}{{p.Receivers, c.Receivers}, {p.Processors, c.Processors}, {p.Exporters, c.Exporters}} {
			for _, n := range part.names {
				if _, ok := part.of[n]; !ok {
					t.Errorf("pipeline %s: no %s", name, n)
				}
			}
		}
	}
}
