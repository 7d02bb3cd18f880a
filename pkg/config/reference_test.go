// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// reference lists every key with its default and what may stand there.
func reference(m mapping, at string) []string {
	var out []string
	for _, r := range m.rows {
		name := join(at, r.key)
		value := r.value
		if l, ok := value.(list); ok {
			name += "[]"
			value = l.item()
			if m, ok := value.(mapping); ok {
				out = append(out, reference(m, name)...)
				continue
			}
		}
		if o, ok := value.(oneOrMore); ok {
			s := o.item().(scalar)
			s.want += ", or a list of those"
			name, value, r.initial = name+"[]", s, o.initial
		}
		switch v := value.(type) {
		case mapping:
			out = append(out, reference(v, name)...)
		case scalar:
			initial := r.initial
			if initial == none {
				initial = "none"
			}
			out = append(out, fmt.Sprintf("%-30s %-15s %s", name, initial, v.want))
		}
	}
	return out
}

func TestPackageCommentHasEveryKey(t *testing.T) {
	source, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(source)) {
		if row, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "//\t"); ok {
			got = append(got, row)
		}
	}
	c := &Config{}
	want := append([]string{fmt.Sprintf("%-30s %-15s %s", "key", "default", "value")}, reference(gateway(c), "")...)
	want = append(append(want, fmt.Sprintf("%-30s %-15s %s", "buffers.conf", "", "")), reference(buffers(&c.Buffers), "")...)
	want = append(append(want, "ratelimit.lua"), reference(requestLimit(c, false), "limit_req")...)
	want = append(want, reference(connectionLimit(c, false), "limit_conn")...)
	want = append(want, reference(packetLimit(c), "packet_limit")...)
	want = append(want, reference(escalation(c), "escalate")...)
	for i := range want {
		want[i] = strings.TrimRight(want[i], " ")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("package comment differs from the tables (-want +got):\n%s\nwant:\n//\t%s", diff, strings.Join(want, "\n//\t"))
	}
}
