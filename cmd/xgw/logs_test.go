// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leodido/go-syslog/v4/rfc5424"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// syslogReceiver keeps every datagram.
type syslogReceiver struct {
	conn *net.UDPConn

	mu       sync.Mutex
	messages []string
}

func startSyslogReceiver(t *testing.T) *syslogReceiver {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Room for all that is sent at a time: datagrams have no flow control.
	_ = raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			t.Errorf("room for datagrams: %v", err)
		}
	})
	s := &syslogReceiver{conn: conn}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 64<<10)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.messages = append(s.messages, string(b[:n]))
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() { conn.Close(); <-ended })
	return s
}

func (s *syslogReceiver) address() string { return s.conn.LocalAddr().String() }

func (s *syslogReceiver) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messages[:len(s.messages):len(s.messages)]
}

// count is how many came of a kind: access or error.
func (s *syslogReceiver) count(kind string) (n int) {
	for _, m := range s.all() {
		if kindOf.MatchString(m) && kindOf.FindStringSubmatch(m)[1] == kind {
			n++
		}
	}
	return n
}

var kindOf = regexp.MustCompile(`^<\d+>1 \S+ \S+ xgw \d+ (\S+) `)

// hostileTexts are what an attacker would have in a log: ends of lines and of fields, whole
// lines and messages of his own, what a terminal obeys, broken UTF-8, and far too much.
func hostileTexts() []string {
	texts := []string{
		"\r\n", "\n", "\r", "\x00", "\t", "\x7f", "\x1b[2J\x1b]0;owned\x07", `"`, `\`, `\"`, `]`, `"]`, `\]`, "[", "'", "%0d%0a", "%00", "\u2028", "\u202e", "é",
		"\xff\xfe", "\xc3", "\xc3(", "\xed\xa0\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xe2\x82", "%s%n%x", "${jndi:ldap://x/}", "\x80\x9b2J", " ", "  x=y ",
		`" 200 0 "-" "-" 0.000 -`, `"] forged [xgw@32473 status="200"]`, "\r\n<134>1 2026-01-01T00:00:00Z h xgw 1 access - forged",
		"\r\n127.0.0.1 - - [01/Jan/2026:00:00:00 +0000] \"GET /forged HTTP/1.1\" 200 0 \"-\" \"-\" 0.000 - id=forged",
		"\n2026/01/01 00:00:00 [crit] 1#0: forged", "\x00\r\nX-Forged: 1", "*** ***", "id=forged outcome=ok",
		strings.Repeat("A", 64<<10), strings.Repeat("é", 32<<10), strings.Repeat(`\"]`, 300), strings.Repeat("\xff", 700), strings.Repeat("%00", 400),
	}
	for c := range 33 {
		texts = append(texts, "a"+string([]byte{byte(c)})+"b")
	}
	return texts
}

// hostileRequest is one request of HTTP/1.1, after which the connection ends whatever comes.
func hostileRequest(random *rand.Rand, texts []string) string {
	text := func(usual string) string {
		if random.IntN(3) > 0 {
			return usual
		}
		s := texts[random.IntN(len(texts))]
		if len(s) > 16<<10 && random.IntN(8) > 0 { // not too often
			s = texts[random.IntN(30)]
		}
		return usual + s
	}
	return text("GET") + " " + text("/keyed/a?token=") + " HTTP/1.1\r\nConnection: close\r\nHost: " + text("gateway.example") +
		"\r\nUser-Agent: " + text("curl/8") + "\r\nReferer: " + text("https://example.com/?a=b") + "\r\nX-Request-Id: " + text("id") +
		"\r\nTraceparent: " + text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") + "\r\nX-Api-Key: " + text("xgw_nobody_") +
		"\r\nCookie: " + text("session=") + "\r\n" + text("X-Other") + ": 1\r\n\r\n"
}

// sendAlone makes the request on a connection of its own and waits for the end of it.
func sendAlone(address, request string, secure bool) error {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	}
	_, _ = io.WriteString(c, request) // it may be cut off before it is through
	_, err = io.Copy(io.Discard, c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return fmt.Errorf("no end of %.200q", request)
	}
	return nil
}

// sendStreams makes requests of HTTP/2 as a hostile client writes them, until the gateway has
// enough of the connection.
func sendStreams(t *testing.T, address string, random *rand.Rand, texts []string, most int) (streams int) {
	t.Helper()
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(c, http2.ClientPreface)
	out, in := bufio.NewWriter(c), bufio.NewReader(c)
	framer := http2.NewFramer(out, in)
	_ = framer.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	text := func(usual string) string {
		if random.IntN(3) > 0 {
			return usual
		}
		return usual + texts[random.IntN(30)]
	}
	for id := uint32(1); streams < most; id += 2 {
		block.Reset()
		for _, f := range []hpack.HeaderField{
			{Name: ":method", Value: text("GET")}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: text("gateway.example")},
			{Name: ":path", Value: text("/a?token=")}, {Name: "user-agent", Value: text("h2")}, {Name: "referer", Value: text("r")},
			{Name: "x-request-id", Value: text("id")}, {Name: text("x-other"), Value: text("1")},
		} {
			_ = encoder.WriteField(f)
		}
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
		if out.Flush() != nil {
			return streams
		}
		streams++
		for ended := false; !ended; {
			f, err := framer.ReadFrame()
			if err != nil {
				return streams
			}
			if _, ok := f.(*http2.GoAwayFrame); ok {
				return streams
			}
			_, reset := f.(*http2.RSTStreamFrame)
			ended = f.Header().StreamID == id && (reset || f.Header().Flags.Has(http2.FlagDataEndStream))
		}
	}
	return streams
}

var (
	accessLine = regexp.MustCompile(`^127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "(?:[!-~]+ [!-~]* HTTP/\d\.\d)?" \d{3} \d+ "[^"]*" "[^"]*" \d+\.\d{3} (?:\d+\.\d{3}|-)` +
		` id=([!-~]+) host="[^"]*" route=[!-~]+ upstream=[!-~]+ addr=[!-~]+ connect=\d+\.\d{3} in=\d+ retries=\d+ worker=\d core=-?\d+ gen=\d+ tls=[!-~]+ resumed=[01] outcome=[a-z0-9_]+ trace=[!-~]+ edge=\d+\.\d{3} queue=[!-~]+ key=[!-~]+$`)
	errorLine = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(?:debug|info|warn|error|crit)\] \d+#0: ([ -~]*)$`)
	// RFC 5424, 6, as far as this gateway uses it.
	syslogMessage = regexp.MustCompile(`^<(?:134|135|132|131|130)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z [!-~]{1,255} xgw \d{1,10} (?:error - [ -~]*|access \[xgw@32473(?: [a-z_]{1,32}="(?:[ !#-Z^-~[]|\\["\\\]])*")*\] [ -~]*)$`)
)

// Whatever 10,000 hostile requests carry, each is one line of the access log and one datagram
// that any receiver takes, and neither log has a line that the gateway did not write.
func TestHostileRequestsInTheLogs(t *testing.T) {
	needRoot(t, "room for as many datagrams")
	const requests, batch = 10_000, 1000
	receiver := startSyslogReceiver(t)
	dir := t.TempDir()
	yaml := strings.Replace(gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"), "telemetry: {",
		"  - {address: \"127.0.0.2:0\", tls: off}\ntelemetry: {", 1)
	yaml = strings.Replace(yaml, "  - {name: all,", "  - {name: keyed, path: /keyed, upstream: back, keys: {}}\n  - {name: all,", 1)
	yaml = strings.Replace(yaml, "log: {", fmt.Sprintf("log: {error: %s/error.log, level: debug, syslog: {address: %q}, ", dir, receiver.address()), 1)
	g := startGateway(t, startHere, "hostile", dir, yaml)
	texts := hostileTexts()
	random := rand.New(rand.NewPCG(6, 4))
	events := func() int { return sumSeries(t, g.scrape(t), "xgw_request_outcomes_total{") }
	arrived := func() bool { return receiver.count("access") >= events() }
	sent, streams := 0, 0
	for sent+streams < requests {
		var wg sync.WaitGroup
		next := make(chan string, batch)
		for range batch {
			next <- hostileRequest(random, texts)
		}
		close(next)
		for range 8 {
			wg.Go(func() {
				secure := false
				for request := range next {
					at := g.listeners[1]
					if secure = !secure && len(next)%20 == 0; secure {
						at = g.listeners[0]
					}
					if err := sendAlone(at, request, secure); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		sent += batch
		for range 3 {
			streams += sendStreams(t, g.listeners[0], random, texts, 30)
		}
		eventually(t, "each event is a datagram", arrived)
		if t.Failed() {
			return
		}
	}
	before := seriesOf(g.scrape(t))
	of := sumSeries(t, g.scrape(t), "xgw_requests_by_protocol_total{protocol=\"http1\"}")
	total := events()
	g.stop(t)
	t.Logf("%d requests of HTTP/1.1 (%d counted), %d streams: %d events, %d datagrams, %d series", sent, of, streams, total, len(receiver.all()), len(before))
	if total < sent || total > sent+streams {
		t.Errorf("%d requests and %d streams are %d events", sent, streams, total)
	}
	checkLogs(t, g.dir, receiver.all(), total)
}

// checkLogs holds access log, error log and datagrams to so many events.
func checkLogs(t *testing.T, dir string, datagrams []string, events int) {
	t.Helper()
	logged, errors := map[string]bool{}, map[string]bool{}
	for i, line := range linesOf(t, filepath.Join(dir, "access.log")) {
		m := accessLine.FindStringSubmatch(line)
		if m == nil || logged[m[1]] {
			t.Fatalf("line %d is no line of the access log, or is there twice: %q", i+1, line)
		}
		logged[m[1]] = true
	}
	for i, line := range linesOf(t, filepath.Join(dir, "error.log")) {
		m := errorLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line %d is no line of the error log: %q", i+1, line)
		}
		errors[m[1]] = true
	}
	if len(logged) != events {
		t.Errorf("%d lines of the access log, %d events", len(logged), events)
	}
	told := map[string]bool{}
	for _, d := range datagrams {
		parsed, err := rfc5424.NewParser().Parse([]byte(d))
		if err != nil || len(d) > 2048 || !syslogMessage.MatchString(d) {
			t.Fatalf("%d bytes, %v: %q", len(d), err, d)
		}
		m := parsed.(*rfc5424.SyslogMessage)
		if *m.MsgID == "error" {
			if !errors[*m.Message] {
				t.Errorf("no line of the error log is %q", *m.Message)
			}
			continue
		}
		id := (*m.StructuredData)["xgw@32473"]["id"]
		if len(*m.StructuredData) != 1 || told[id] {
			t.Fatalf("forged, or sent twice: %q", d)
		}
		if told[id] = true; !logged[strings.ReplaceAll(id, " ", `\x20`)] {
			t.Errorf("no line of the access log has the id %q", id)
		}
	}
	if len(told) != events {
		t.Errorf("%d datagrams, %d events", len(told), events)
	}
}

// linesOf are the lines of a file, each with its end.
func linesOf(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(text), "\n") {
		t.Fatalf("%s: %d bytes, %v", path, len(text), err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}
