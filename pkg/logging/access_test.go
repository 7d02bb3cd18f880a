// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

func testNames() Names {
	name := func(kind string) func(int) string {
		return func(slot int) string { return kind + strconv.Itoa(slot) }
	}
	return Names{Route: name("route"), Upstream: name("up")}
}

func record() zone.AccessRecord {
	return zone.AccessRecord{
		Start: time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC), Duration: 1234567 * time.Microsecond, UpstreamDuration: 7 * time.Millisecond,
		ConnectDuration: 999 * time.Microsecond, Client: netip.MustParseAddrPort("192.0.2.1:5000"), Generation: 3, BytesIn: 10, BytesOut: 20,
		Worker: 1, Core: -1, Route: 2, Upstream: 0, Status: 200, Retries: 1, Major: 2, TLSVersion: 0x0304, Resumed: true,
		Method: []byte("GET"), Host: []byte("api.example.com"), Target: []byte("/a?b=c"), UserAgent: []byte("Mozilla/5.0 (X11)"),
		Referer: []byte("https://example.com/"), ID: []byte("id1"), UpstreamAddr: []byte("192.0.2.9:80"),
	}
}

func TestAppendLine(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*zone.AccessRecord)
		want   string
	}{
		{"all", func(*zone.AccessRecord) {},
			`192.0.2.1 - - [04/Mar/2026:05:06:07 +0000] "GET /a?b=c HTTP/2.0" 200 20 "https://example.com/" "Mozilla/5.0 (X11)" 1.234 0.007` +
				` id=id1 host="api.example.com" route=route2 upstream=up0 addr=192.0.2.9:80 connect=0.000 in=10 retries=1 worker=1 core=-1 gen=3 tls=1.3 resumed=1 outcome=ok trace=- edge=0.000 queue=- key=-`},
		{"nothing", func(r *zone.AccessRecord) {
			*r = zone.AccessRecord{Start: r.Start, Route: -1, Upstream: -1, Status: 400, Outcome: zone.RequestBad}
		},
			`- - - [04/Mar/2026:05:06:07 +0000] "" 400 0 "-" "-" 0.000 -` +
				` id=- host="-" route=- upstream=- addr=- connect=0.000 in=0 retries=0 worker=0 core=0 gen=0 tls=- resumed=0 outcome=bad_request trace=- edge=0.000 queue=- key=-`},
		{"hostile", func(r *zone.AccessRecord) {
			r.Client = netip.MustParseAddrPort("[2001:db8::1]:1")
			r.Method, r.Target = []byte("G T"), []byte("/\" 200 0 \"\n")
			r.UserAgent, r.Referer = []byte("\" 9.999 9.999 \"x\r\ny"), []byte("\\x22\x00\xff\xc3\xa9")
			r.Host, r.ID, r.UpstreamAddr = []byte("a b\"c"), []byte("x outcome=ok"), []byte("a b")
			r.TLSVersion, r.Duration = 0x0303, -time.Second
		},
			`2001:db8::1 - - [04/Mar/2026:05:06:07 +0000] "G\x20T /\x22\x20200\x200\x20\x22\x0A HTTP/2.0" 200 20 "\x5Cx22\x00\xFF\xC3\xA9" "\x22 9.999 9.999 \x22x\x0D\x0Ay" 0.000 0.007` +
				` id=x\x20outcome=ok host="a b\x22c" route=route2 upstream=up0 addr=a\x20b connect=0.000 in=10 retries=1 worker=1 core=-1 gen=3 tls=1.2 resumed=1 outcome=ok trace=- edge=0.000 queue=- key=-`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := record()
			tt.change(&r)
			if got := string(NewAccess(testNames()).AppendLine(nil, &r)); got != tt.want+"\n" {
				t.Errorf("got  %swant %s", got, tt.want)
			}
		})
	}
}

// Every byte at every place is escaped or not as its class says.
func TestClean(t *testing.T) {
	for _, upTo := range []byte{plain, quoted} {
		for n := 1; n < 20; n++ {
			for at := range n {
				for c := range 256 {
					p := bytes.Repeat([]byte("~"), n)
					p[at] = byte(c)
					if got, want := clean(p, upTo), classes[c] <= upTo; got != want {
						t.Fatalf("%q, up to class %d: %v, want %v", p, upTo, got, want)
					}
				}
			}
		}
	}
}

// Lines that follow have their own second and names.
func TestAppendLineCaches(t *testing.T) {
	asked := map[int]int{}
	a := NewAccess(Names{
		Route:    func(slot int) string { asked[slot]++; return map[int]string{1: "one", 2: "two"}[slot] },
		Upstream: func(int) string { return "evil name\n" },
	})
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, want := range []string{
		"00:00:00 +0000] one", "00:00:00 +0000] two", "00:00:01 +0000] one", "00:00:01 +0000] -", "00:00:00 +0000] -", "23:59:59 +0000] two",
	} {
		r := record()
		r.Start = start.Add(time.Duration([]int{0, 999, 1000, 1999, 500, -1}[i]) * time.Millisecond)
		r.Route = []int{1, 2, 1, 1 << 20, 5, 2}[i]
		line := string(a.AppendLine(nil, &r))
		parts := regexp.MustCompile(`:(\d\d:\d\d:\d\d \+0000\]).* route=(\S+) upstream=evil\\x20name\\x0A addr`).FindStringSubmatch(line)
		if parts == nil || parts[1]+" "+parts[2] != want {
			t.Errorf("line %d is %s", i, line)
		}
	}
	if asked[1] != 1 || asked[2] != 1 || asked[5] != 1 || len(a.routes.known) > 10 {
		t.Errorf("asked for %v, %d are remembered", asked, len(a.routes.known))
	}
}

// The awk line of the package comment, run by awk, finds the slow requests and no
// other, whatever clients send.
func TestDocumentedAwk(t *testing.T) {
	awk, err := exec.LookPath("awk")
	if err != nil {
		t.Fatal("awk is a base utility and is not here: ", err)
	}
	source := mustRead(t, "access.go")
	found := regexp.MustCompile(`(?m)^//\tawk -F'"' '(.*)' access\.log$`).FindSubmatch(source)
	if found == nil {
		t.Fatal("the package comment has no awk line")
	}
	hostile := []string{
		"", "-", "curl/8.0", "Mozilla/5.0 (X11; Linux x86_64) Gecko", `"`, `""`, `" 9.999 9.999 "`, `a" "b" 9.999 "`, "a\nb 9.999", "\r\n", "\x00\x22", `\`, `\"`, `\x22 9.999`,
		strings.Repeat(`" `, 120), "\xff\xfe\"", " ", "9.999 9.999", "%s%n", "'; print \"x",
	}
	a := NewAccess(testNames())
	var log []byte
	want := 0
	for i, text := range hostile {
		for j, d := range []time.Duration{0, 499 * time.Millisecond, 500 * time.Millisecond, 501 * time.Millisecond, 9 * time.Second, time.Hour} {
			r := record()
			r.UserAgent = []byte(text)
			r.Referer = []byte(hostile[(i+j)%len(hostile)])
			r.Target = []byte(hostile[(i+2*j)%len(hostile)])
			r.Host, r.Method = []byte(hostile[(i+3*j)%len(hostile)]), []byte(hostile[(i+4*j)%len(hostile)])
			r.ID = fmt.Appendf(nil, "n%d", len(log))
			r.Duration, r.UpstreamDuration = d, time.Hour-d
			line := a.AppendLine(nil, &r)
			log = append(log, line...)
			if d > 500*time.Millisecond {
				want++
			}
		}
	}
	// In the C locale and in one with multi-byte characters.
	for _, locale := range []string{"C", "C.UTF-8"} {
		cmd := exec.Command(awk, "-F\"", string(found[1]))
		cmd.Env = []string{"LC_ALL=" + locale}
		cmd.Stdin = bytes.NewReader(log)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		if len(got) != want {
			t.Errorf("awk printed %d lines, want %d", len(got), want)
		}
		for _, line := range got {
			if !bytes.Contains(log, []byte(line+"\n")) || !regexp.MustCompile(`" (0\.501|9\.000|3600\.000) \S+ id=n\d+ `).MatchString(line) {
				t.Errorf("awk printed %q", line)
			}
		}
	}
}

var lineShape = regexp.MustCompile(`^(\S+) - - \[\d\d/[A-Z][a-z]{2}/\d+:\d\d:\d\d:\d\d [+-]\d{4}\] "(?:(\S+) (\S*) HTTP/\d+\.\d+)?" -?\d+ \d+ "([^"]*)" "([^"]*)" \d+\.\d{3} (?:\d+\.\d{3}|-)` +
	` id=(\S+) host="([^"]*)" route=\S+ upstream=\S+ addr=(\S+) connect=\d+\.\d{3} in=\d+ retries=-?\d+ worker=-?\d+ core=-?\d+ gen=\d+ tls=\S+ resumed=[01] outcome=[a-z0-9_]+ trace=\S+ edge=\d+\.\d{3} queue=\S+ key=\S+\n$`)

// unescape turns \xHH back.
func unescape(s string) string {
	return regexp.MustCompile(`\\x[0-9A-F]{2}`).ReplaceAllStringFunc(s, func(e string) string {
		n, _ := strconv.ParseUint(e[2:], 16, 8)
		return string([]byte{byte(n)})
	})
}

// Whatever clients send, it is one line of one shape, in printable ASCII, and says
// what they sent.
func FuzzAppendLine(f *testing.F) {
	f.Add([]byte("GET"), []byte("/"), []byte("-"), []byte("curl/8"), []byte("h"), []byte("id"), []byte("a:1"), int64(0), int64(0), 200)
	f.Add([]byte("\r\n"), []byte("\" \\"), []byte("\x00\xff"), []byte("\" 9.9 \"\n"), []byte("é\u2028"), []byte(" x=y"), []byte("\x7f\x80"), int64(math.MaxInt64), int64(math.MinInt64), -1)
	f.Add([]byte("\\x22"), []byte(""), []byte("\""), []byte(" "), []byte("[]"), []byte("="), []byte("\t"), int64(-1), int64(1)<<62, 99999)
	f.Fuzz(func(t *testing.T, method, target, referer, agent, host, id, addr []byte, start, took int64, status int) {
		r := record()
		r.Method, r.Target, r.Referer, r.UserAgent, r.Host, r.ID, r.UpstreamAddr = method, target, referer, agent, host, id, addr
		r.Start, r.Duration, r.Status = time.Unix(0, start), time.Duration(took), status
		line := string(NewAccess(testNames()).AppendLine(nil, &r))
		for _, c := range []byte(line[:len(line)-1]) {
			if c < ' ' || c > '~' {
				t.Fatalf("byte %#x in %q", c, line)
			}
		}
		m := lineShape.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line has another shape: %q", line)
		}
		if len(method) == 0 {
			target = nil // the request line is empty
		}
		for i, sent := range map[int][]byte{2: method, 3: target, 4: referer, 5: agent, 6: id, 7: host, 8: addr} {
			if i > 3 && len(sent) == 0 {
				sent = []byte("-")
			}
			if got := unescape(m[i]); got != string(sent) {
				t.Fatalf("field %d reads %q, sent %q", i, got, sent)
			}
		}
	})
}

func TestAppendLineAllocatesNothing(t *testing.T) {
	a := NewAccess(testNames())
	r := record()
	b := make([]byte, 0, 4096)
	i := 0
	if n := testing.AllocsPerRun(200, func() {
		r.Start = r.Start.Add(300 * time.Millisecond)
		r.Route, i = i%4, i+1
		b = a.AppendLine(b[:0], &r)
	}); n != 0 {
		t.Errorf("a line allocates %v times", n)
	}
}

func BenchmarkAppendLine(b *testing.B) {
	a := NewAccess(testNames())
	r := record()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = a.AppendLine(buf[:0], &r)
	}
	if !lineShape.Match(buf) {
		b.Fatalf("wrote %q", buf)
	}
}
