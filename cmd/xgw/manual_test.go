// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Manual pages and completions for all commands and all names of the binary.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if status, out, said := inProcess("manual", dir, "../../deploy/gateway.yaml"); status != 0 {
		t.Fatalf("status %d: %s%s", status, out, said)
	}
	for path, want := range map[string][]string{
		"man/man8/xgw.8":                          {".SH COMMANDS", "gateway.yaml (5)", `xgw\-ctl (8)`, "Exit status"},
		"man/man8/xgw-attach.8":                   {`.SH NAME` + "\n" + `xgw\-attach \- Attach`, `\-\-confirm duration`, ".SH EXAMPLES", ".SH EXIT STATUS"},
		"man/man8/xgw-ctl-reload.8":               {`.BR xgw\-ctl (8)`},
		"man/man8/gateway-engine.8":               {".so man8/xgw-run.8"},
		"man/man8/gateway-ctl.8":                  {".so man8/xgw-ctl.8"},
		"man/man8/gateway-top.8":                  {".so man8/xgw-top.8"},
		"man/man5/gateway.yaml.5":                 {"#interfaces:\n", "worker_connections: 16384"},
		"zsh/vendor-completions/_xgw":             {"#compdef xgw"},
		"fish/vendor_completions.d/xgw.fish":      {"complete -c xgw"},
		"bash-completion/completions/gateway-ctl": {"gateway-ctl"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Error(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s lacks %q:\n%.2000s", path, w, text)
			}
		}
	}
	pages, _ := filepath.Glob(dir + "/man/man?/*")
	for _, page := range pages {
		if strings.Contains(page, "worker") || strings.Contains(page, "completion") {
			t.Errorf("%s is not for people", page)
		}
	}
	if len(pages) < 30 {
		t.Errorf("%d pages: %q", len(pages), pages)
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("needs groff: pages were not set")
	}
	pages = slices.DeleteFunc(pages, func(page string) bool { return strings.Contains(page, "/gateway-") }) // those lead to others
	// All warnings but that a line of an example cannot be broken.
	out, err := exec.Command(groff, append([]string{"-man", "-ww", "-Wbreak", "-z", "-Tutf8"}, pages...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

// Shells ask the binary by the name that was typed.
func TestCompletionByName(t *testing.T) {
	for name, want := range map[string][]string{"xgw": {"ctl", "doctor"}, "gateway-ctl": {"reload", "verdicts"}, "gateway-engine": {"--confirm"}} {
		ask := []string{name, "__complete", ""}
		if name == "gateway-engine" {
			ask[2] = "--con"
		}
		var out strings.Builder
		if status := run(t.Context(), ask, &env{out: &out, err: &strings.Builder{}}); status != 0 {
			t.Errorf("%s: status %d", name, status)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s completes to %q, without %s", name, out.String(), w)
			}
		}
	}
}
