// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

func jwt(claims string) string {
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func TestClaim(t *testing.T) {
	for claims, want := range map[string]string{
		`{"sub":"alice"}`:                             "alice",
		` { "iss" : "x" , "sub" : "bob" } `:           "bob",
		`{"a":{"sub":"no"},"b":["sub",{"x":"}"}]}`:    "",
		`{"a":{"sub":"no"},"sub":17}`:                 "17",
		`{"sub":true,"x":null}`:                       "true",
		`{"sub":null}`:                                "",
		`{"sub":["alice"]}`:                           "",
		`{"sub":{"x":1}}`:                             "",
		`{"sub":"one","sub":"two"}`:                   "two",
		`{"x":"\"sub\":\"no\"","sub":"a\"b"}`:         `a\"b`,
		`{"subject":"no"}`:                            "",
		`{}`:                                          "",
		`["sub","no"]`:                                "",
		`{"sub":"alice"`:                              "",
		`{"sub":"alice"}x`:                            "",
		`{"sub":}`:                                    "",
		`{"sub":"` + strings.Repeat("a", 7000) + `"}`: "",
	} {
		if got := string(appendClaim([]byte("before"), []byte(jwt(claims)), []byte("sub"))); got != "before"+want {
			t.Errorf("%.60s: %.80q, want %q", claims, got, want)
		}
	}
	for _, token := range []string{"", "a", "a.b", "a.b.c.d", "a.?.c", "..", jwt(`{"sub":"x"}`) + ".more"} {
		if got := appendClaim(nil, []byte(token), []byte("sub")); len(got) > 0 {
			t.Errorf("%q has %q", token, got)
		}
	}
	room, token, name := make([]byte, 0, 1000), []byte(jwt(`{"iss":"x","sub":"alice"}`)), []byte("sub")
	if n := testing.AllocsPerRun(100, func() { room = appendClaim(room[:0], token, name) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// In what encoding/json takes for an object, the same value is found.
func FuzzClaim(f *testing.F) {
	for _, seed := range []string{`{"sub":"a","x":[1,{"sub":2}]}`, `{"sub":-1.5e3}`, `{"x":"\\","sub":"y"}`, `{"sub":{}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got := claimIn(text, []byte("sub"))
		var object map[string]json.RawMessage
		if json.Unmarshal(text, &object) != nil || strings.Contains(string(text), `\u`) {
			return // any answer will do, as long as it comes
		}
		want := strings.TrimSpace(string(object["sub"]))
		switch {
		case want == "" || want == "null" || want[0] == '{' || want[0] == '[':
			want = ""
		case want[0] == '"':
			want = want[1 : len(want)-1]
		}
		if string(got) != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	})
}
