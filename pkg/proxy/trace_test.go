// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
)

// A trace that the client began goes on, with this exchange as the parent; anything else
// begins a new one, and then the client's tracestate belongs to nothing.
func TestTraceContext(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	good := "00-" + id + "-" + parent + "-01"
	for _, row := range []struct {
		name   string
		send   []string
		flags  string // "" when a new trace is begun
		states int
	}{
		{"a trace", []string{good}, "01", 1},
		{"not recorded", []string{"00-" + id + "-" + parent + "-00"}, "00", 1},
		{"a later version", []string{"cc-" + id + "-" + parent + "-01-what-comes-then"}, "01", 1},
		{"none", nil, "", 0},
		{"twice", []string{good, good}, "", 0},
		{"version ff", []string{"ff" + good[2:]}, "", 0},
		{"longer than version 00 is", []string{good + "-x"}, "", 0},
		{"cut", []string{good[:len(good)-1]}, "", 0},
		{"no trace", []string{"00-" + strings.Repeat("0", 32) + "-" + parent + "-01"}, "", 0},
		{"no parent", []string{"00-" + id + "-" + strings.Repeat("0", 16) + "-01"}, "", 0},
		{"upper case", []string{strings.ToUpper(good)}, "", 0},
		{"no hexadecimal", []string{strings.Replace(good, "4bf", "4bg", 1)}, "", 0},
		{"empty", []string{""}, "", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			bothProtocols(t, func(t *testing.T, h2 bool) {
				seen := make(chan http.Header, 1)
				g := newGateway(t, []string{httpUpstream(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header })}, nil)
				req, _ := http.NewRequest("GET", g.url("/"), nil)
				req.Header["Traceparent"] = row.send
				req.Header["Tracestate"] = []string{"a=1,b=2"}
				resp, err := g.client(h2).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				h := <-seen
				got := h.Values("Traceparent")
				if len(got) != 1 || !validParent([]byte(got[0])) {
					t.Fatalf("upstream got traceparent %q", got)
				}
				p := strings.Split(got[0], "-")
				want, flags := id, row.flags
				if flags == "" {
					want, flags = h.Get("X-Request-Id"), "00"
				}
				if p[1] != want || p[3] != flags || p[2] == parent {
					t.Errorf("upstream got traceparent %s, want trace %s, flags %s, and a parent of our own", got[0], want, flags)
				}
				if n := len(h.Values("Tracestate")); n != row.states {
					t.Errorf("upstream got %d fields of tracestate, want %d", n, row.states)
				}
				rec := g.records(1)[0]
				if string(rec.Trace) != want {
					t.Errorf("recorded trace %s, want %s", rec.Trace, want)
				}
				if rec.Sampled != (row.flags == "01") || rec.Sampled && (hex.EncodeToString(rec.Span[:]) != p[2] || hex.EncodeToString(rec.Parent[:]) != parent) {
					t.Errorf("recorded as sampled: %t, span %x of %x, want %s of %s", rec.Sampled, rec.Span, rec.Parent, p[2], parent)
				}
			})
		})
	}
}
