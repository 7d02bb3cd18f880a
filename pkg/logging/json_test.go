// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/xgw-project/xgw/pkg/zone"
)

func TestAppendJSON(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*zone.AccessRecord)
		want   string
	}{
		{"all", func(*zone.AccessRecord) {},
			`{"time":"2026-03-04T05:06:07.000Z","client":"192.0.2.1","method":"GET","target":"/a?b=c","protocol":"HTTP/2.0","status":200,"bytes":20,` +
				`"referer":"https://example.com/","user_agent":"Mozilla/5.0 (X11)","request_time":1.234,"upstream_response_time":0.007,` +
				`"id":"id1","host":"api.example.com","route":"route2","upstream":"up0","addr":"192.0.2.9:80","connect":0.000,"in":10,"retries":1,"worker":1,"core":-1,"gen":3,` +
				`"tls":"1.3","resumed":true,"outcome":"ok","trace":null,"edge":0.000,"queue":null,"key":null}`},
		{"nothing", func(r *zone.AccessRecord) {
			*r = zone.AccessRecord{Start: r.Start, Route: -1, Upstream: -1, Status: 400, Outcome: zone.RequestBad, Target: []byte("x")}
		},
			`{"time":"2026-03-04T05:06:07.000Z","client":null,"method":null,"target":null,"protocol":null,"status":400,"bytes":0,` +
				`"referer":null,"user_agent":null,"request_time":0.000,"upstream_response_time":null,` +
				`"id":null,"host":null,"route":null,"upstream":null,"addr":null,"connect":0.000,"in":0,"retries":0,"worker":0,"core":0,"gen":0,` +
				`"tls":null,"resumed":false,"outcome":"bad_request","trace":null,"edge":0.000,"queue":null,"key":null}`},
		{"hostile", func(r *zone.AccessRecord) {
			r.Client = netip.MustParseAddrPort("[2001:db8::1]:1")
			r.Target, r.UserAgent, r.Referer = []byte("/\"\n\\"), []byte("é\x00\x7f\u2028\u202e\U0001F600"), []byte("\xff\xc3(\xed\xa0\x80\U000E0001")
			r.Start = r.Start.Add(89 * time.Millisecond)
		},
			`{"time":"2026-03-04T05:06:07.089Z","client":"2001:db8::1","method":"GET","target":"/\"\u000a\\","protocol":"HTTP/2.0","status":200,"bytes":20,` +
				"\"referer\":\"\uFFFD\uFFFD(\uFFFD\uFFFD\uFFFD" + `\udb40\udc01","user_agent":"é\u0000\u007f\u2028\u202e` + "\U0001F600" + `","request_time":1.234,"upstream_response_time":0.007,` +
				`"id":"id1","host":"api.example.com","route":"route2","upstream":"up0","addr":"192.0.2.9:80","connect":0.000,"in":10,"retries":1,"worker":1,"core":-1,"gen":3,` +
				`"tls":"1.3","resumed":true,"outcome":"ok","trace":null,"edge":0.000,"queue":null,"key":null}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := record()
			tt.change(&r)
			if got := string(NewAccess(testNames()).AppendJSON(nil, &r)); got != tt.want+"\n" {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

// The names are those of the line, in its order.
func TestJSONHasTheNamesOfTheLine(t *testing.T) {
	r := record()
	a := NewAccess(testNames())
	names := func(expression, line string) (all []string) {
		for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(line, -1) {
			all = append(all, m[1])
		}
		return all
	}
	inLine := names(` ([a-z]+)=`, string(a.AppendLine(nil, &r)))
	inJSON := names(`[{,]"([a-z_]+)":`, string(a.AppendJSON(nil, &r)))
	first := []string{"time", "client", "method", "target", "protocol", "status", "bytes", "referer", "user_agent", "request_time", "upstream_response_time"}
	if !reflect.DeepEqual(inJSON, append(first, inLine...)) {
		t.Errorf("JSON has %q, the line %q", inJSON, inLine)
	}
	text, _, _ := strings.Cut(string(mustRead(t, "access.go")), "package logging")
	for _, name := range inJSON {
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(text) {
			t.Errorf("%s is not documented", name)
		}
	}
}

// Whatever clients send, it is one line, an object, of valid UTF-8 without anything that a
// terminal obeys, and any reader of JSON finds in it what they sent.
func FuzzAppendJSON(f *testing.F) {
	f.Add([]byte("/"), []byte("curl/8"))
	f.Add([]byte("\r\n\"\\\x00"), []byte("\xff\xc3\u2028\U0001F600\u0085"))
	f.Fuzz(func(t *testing.T, target, agent []byte) {
		r := record()
		r.Target, r.UserAgent = target, agent
		line := NewAccess(testNames()).AppendJSON(nil, &r)
		if !utf8.Valid(line) || bytes.ContainsFunc(line[:len(line)-1], func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 || c == 0x2028 || c == 0x2029 }) {
			t.Fatalf("%q", line)
		}
		var got struct {
			Target    string `json:"target"`
			UserAgent string `json:"user_agent"`
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		want := func(s []byte) string { return string([]rune(string(s))) } // each broken byte becomes U+FFFD
		if got.Target != want(target) || got.UserAgent != want(agent) {
			t.Fatalf("%q and %q of %q and %q", got.Target, got.UserAgent, target, agent)
		}
	})
}

func TestAppendJSONAllocatesNothing(t *testing.T) {
	a := NewAccess(testNames())
	r := record()
	r.UserAgent = []byte("é\u2028\xff")
	b := a.AppendJSON(make([]byte, 0, 4096), &r)
	if n := testing.AllocsPerRun(200, func() { b = a.AppendJSON(b[:0], &r) }); n != 0 {
		t.Errorf("a line allocates %v times", n)
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	a := NewAccess(testNames())
	r := record()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = a.AppendJSON(buf[:0], &r)
	}
	if !json.Valid(buf) {
		b.Fatalf("wrote %q", buf)
	}
}

// Lines that follow have their own time, before 1970 too.
func TestJSONTimes(t *testing.T) {
	a := NewAccess(testNames())
	for _, want := range []string{"2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.999Z", "2026-01-01T00:00:01.000Z", "2025-12-31T23:59:59.001Z", "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00.010Z"} {
		at, err := time.Parse(time.RFC3339, want)
		if err != nil {
			t.Fatal(err)
		}
		r := record()
		r.Start = at
		if line := string(a.AppendJSON(nil, &r)); !strings.HasPrefix(line, `{"time":"`+want+`",`) {
			t.Errorf("%s: %s", want, line)
		}
	}
}
