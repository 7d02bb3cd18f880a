// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var (
	guideCode    = regexp.MustCompile("`([^`\n]+)`")
	guideCommand = regexp.MustCompile(`^(?:sudo )?(?:bin/)?(xgw|gateway-ctl|gateway-top) (.+)$`)
	guideMetric  = regexp.MustCompile(`\bxgw_[a-z0-9_]+`)
	guideKey     = regexp.MustCompile(`^[a-z_]+(\.[a-z0-9_]+)+$`)
)

// Guides name commands, flags, keys and metrics that there are.
func TestGuidesNameWhatThereIs(t *testing.T) {
	metrics, err := os.ReadFile("../../deploy/metrics.md") // held to the code by its own test
	if err != nil {
		t.Fatal(err)
	}
	keys, top := map[string]bool{}, map[string]bool{}
	doc, err := os.ReadFile("../../pkg/config/doc.go") // likewise
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(doc)) {
		row, ok := strings.CutPrefix(line, "//\t")
		name, _, _ := strings.Cut(strings.ReplaceAll(row, "[]", ""), " ")
		for ok && name != "" {
			keys[name] = true
			first, _, _ := strings.Cut(name, ".")
			top[first] = true
			i := strings.LastIndexByte(name, '.')
			name = name[:max(i, 0)]
		}
	}
	files, err := filepath.Glob("../../deploy/guides/*.md")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d guides, error %v", len(files), err)
	}
	commands, named, measured := 0, 0, 0
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var codes []string
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "    ") {
				codes = append(codes, strings.TrimSpace(line))
			}
			for _, m := range guideCode.FindAllStringSubmatch(line, -1) {
				codes = append(codes, m[1])
			}
		}
		for _, code := range codes {
			first, _, _ := strings.Cut(code, ".")
			switch m := guideCommand.FindStringSubmatch(code); {
			case m != nil:
				commands++
				if fault := unknownCommand(m[1], m[2]); fault != "" {
					t.Errorf("%s: %s: %s", path, code, fault)
				}
			case filepath.Base(path) == "containers.md": // Kubernetes has a limits of its own
			case guideKey.MatchString(code) && top[first]:
				if named++; !keys[code] {
					t.Errorf("%s: there is no key %s", path, code)
				}
			}
		}
		for _, name := range guideMetric.FindAllString(string(text), -1) {
			if name == "xgw_scale_out_load" { // what an adapter calls a recorded rule, in Kubernetes
				continue
			}
			measured++
			whole := "| " + strings.TrimSuffix(name, "_bucket") + " |"
			if strings.HasSuffix(name, "_") { // xgw_cluster_*
				whole = "| " + name
			}
			if !strings.Contains(string(metrics), whole) {
				t.Errorf("%s: there is no metric %s", path, name)
			}
		}
	}
	if commands < 30 || named < 60 || measured < 10 {
		t.Errorf("%d commands, %d keys, %d metrics: the test did not read what it claims", commands, named, measured)
	}
}

// unknownCommand says what of a command line there is not; "": all is there.
func unknownCommand(program, rest string) string {
	rest, _, _ = strings.Cut(rest, " #")
	rest, _, _ = strings.Cut(rest, " |")
	var words, flags []string
	for _, w := range strings.Fields(rest) {
		if strings.HasPrefix(w, "-") {
			flags = append(flags, strings.TrimLeft(strings.SplitN(w, "=", 2)[0], "-"))
		} else {
			words = append(words, w)
		}
	}
	root := rootCommand(&env{})
	cmd, left, err := root.Find(byName(append([]string{program}, words...)))
	if err != nil {
		return err.Error()
	}
	if cmd.HasSubCommands() && len(left) > 0 {
		return "there is no command " + left[0]
	}
	if cmd == root {
		return "there is no such command"
	}
	return unknownFlag(cmd, flags)
}

func unknownFlag(cmd *cobra.Command, flags []string) string {
	for _, f := range flags {
		if f == "help" || f == "h" || cmd.Flags().Lookup(f) != nil || cmd.InheritedFlags().Lookup(f) != nil || len(f) == 1 && cmd.Flags().ShorthandLookup(f) != nil {
			continue
		}
		return cmd.CommandPath() + " has no flag " + f
	}
	return ""
}
