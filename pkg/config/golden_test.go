// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what is got into testdata")

// A case is a txtar file: gateway.yaml, perhaps buffers.conf, and what comes of
// them: errors, or the values that differ from the defaults.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d cases, error %v: the folder is not whole", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range a.Files {
				parts[f.Name] = string(f.Data)
			}
			name, got := outcome(t, parts["gateway.yaml"], parts["buffers.conf"])
			if *update {
				i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == "errors" || f.Name == "values" })
				if i >= 0 {
					a.Files = slices.Delete(a.Files, i, i+1)
				}
				a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(got)})
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, ok := parts[name]
			if !ok {
				t.Fatalf("want %v, got %s:\n%s", keys(parts), name, got)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		})
	}
}

func keys(m map[string]string) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// outcome parses and renders: the errors line by line, or the values.
func outcome(t *testing.T, text, buffers string) (name, body string) {
	t.Helper()
	c, err := Parse("gateway.yaml", []byte(text), []byte(buffers))
	if err != nil {
		for _, fault := range faults(t, err) {
			if fault.Line < 1 || fault.Column < 1 {
				t.Errorf("fault without its place: %v", fault)
			}
		}
		return "errors", err.Error() + "\n"
	}
	initial := flat(t, Defaults())
	var lines []string
	for k, v := range flat(t, c) {
		if initial[k] != v && k != ".Path" {
			lines = append(lines, fmt.Sprintf("%s = %s\n", k[1:], v))
		}
	}
	slices.Sort(lines)
	return "values", strings.Join(lines, "")
}

// faults takes the joined error apart; each part must be an *Error.
func faults(t *testing.T, err error) []*Error {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is no joined error: %v", err, err)
	}
	var out []*Error
	for _, e := range joined.Unwrap() {
		var fault *Error
		if !errors.As(e, &fault) {
			t.Fatalf("%T is no *Error: %v", e, e)
		}
		out = append(out, fault)
	}
	return out
}

// flat is the configuration as path -> JSON of each scalar.
func flat(t *testing.T, c *Config) map[string]string {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	flatten(out, "", v)
	return out
}

func flatten(out map[string]string, at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			flatten(out, at+"."+k, x)
		}
	case []any:
		for i, x := range v {
			flatten(out, fmt.Sprintf("%s[%d]", at, i), x)
		}
	case nil:
	default:
		b, _ := json.Marshal(v)
		out[at] = string(b)
	}
}
