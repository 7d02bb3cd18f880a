// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzParse: no text makes the parser panic or run away, each fault has its place,
// and the same text gives the same values.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, path := range files {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		parts := map[string][]byte{}
		for _, file := range a.Files {
			parts[file.Name] = file.Data
		}
		f.Add(parts["gateway.yaml"], parts["buffers.conf"])
	}
	f.Fuzz(func(t *testing.T, text, buffers []byte) {
		c, err := Parse("gateway.yaml", text, buffers)
		again, errAgain := Parse("gateway.yaml", text, buffers)
		if err != nil {
			if c != nil || errAgain == nil || err.Error() != errAgain.Error() {
				t.Fatalf("first %v, then %v", err, errAgain)
			}
			all := faults(t, err)
			if len(all) > 2*(maxFaults+1) {
				t.Fatalf("%d faults", len(all))
			}
			for _, e := range all {
				if e.Line < 1 || e.Column < 1 || e.Msg == "" || strings.ContainsAny(e.Msg, "\n\r\x00") {
					t.Fatalf("fault %+q", e.Error())
				}
			}
			return
		}
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("first %+v, then %+v", c, again)
		}
		if len(c.Listeners) == 0 || len(c.Routes) == 0 || len(c.Upstreams) == 0 || c.Connections < 1 || c.Timeouts.Header <= 0 {
			t.Fatalf("accepted: %+v", c)
		}
	})
}
