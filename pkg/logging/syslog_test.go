// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leodido/go-syslog/v4"
	"github.com/leodido/go-syslog/v4/octetcounting"
	"github.com/leodido/go-syslog/v4/rfc5424"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/zone"
)

var plainNames = Names{Route: func(int) string { return "api" }, Upstream: func(int) string { return "back" }}

func exampleRecord() *zone.AccessRecord {
	return &zone.AccessRecord{
		Start: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC), Duration: 250 * time.Millisecond, UpstreamDuration: 200 * time.Millisecond,
		Client: netip.MustParseAddrPort("192.0.2.7:4711"), Status: 200, Outcome: zone.RequestOK, Generation: 3, Worker: 1,
		Major: 2, BytesIn: 100, BytesOut: 2000, Method: []byte("GET"), Host: []byte("gateway.example"), Target: []byte("/a?b=c"), ID: []byte("0af7651916cd43dd"),
	}
}

// formatted is a Syslog that formats and sends to nobody.
func formatted(size int) *Syslog {
	return &Syslog{options: SyslogOptions{Facility: 16, Size: size}, head: " gateway xgw 4711 ", format: NewAccess(plainNames)}
}

func parse(t testing.TB, message []byte) *rfc5424.SyslogMessage {
	t.Helper()
	m, err := rfc5424.NewParser().Parse(message)
	if err != nil {
		t.Fatalf("%q: %v", message, err)
	}
	return m.(*rfc5424.SyslogMessage)
}

func TestSyslogOfAnExchange(t *testing.T) {
	got := string(formatted(SyslogSize).appendRecord(nil, exampleRecord()))
	want := `<134>1 2026-01-02T03:04:05.928901Z gateway xgw 4711 access [xgw@32473 id="0af7651916cd43dd" status="200" outcome="ok" client="192.0.2.7" time="0.250"` +
		` route="api" upstream="back" upstream_time="0.200" in="100" out="2000" gen="3" worker="1" host="gateway.example"] GET /a?b=c HTTP/2.0 200`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r := exampleRecord()
	r.Status, r.Outcome, r.Upstream = 503, zone.RequestOverload, -1
	m := parse(t, formatted(SyslogSize).appendRecord(nil, r))
	if *m.Severity != severityWarning || (*m.StructuredData)[syslogElement]["upstream"] != "" || (*m.StructuredData)[syslogElement]["outcome"] != "overload" {
		t.Errorf("%+v", m)
	}
}

// Whatever clients send, a message is one, whole, not too long, and its values are theirs.
func TestSyslogOfHostileExchanges(t *testing.T) {
	for _, size := range []int{LeastSyslogSize, SyslogSize} {
		s := formatted(size)
		for i, text := range hostileTexts() {
			r := exampleRecord()
			r.Target, r.Host, r.UserAgent, r.ID, r.Key, r.Trace, r.UpstreamAddr = text, text, text, text, text, text, text
			checkMessage(t, s, r, size)
			if t.Failed() {
				t.Fatalf("text %d: %q", i, text)
			}
		}
	}
}

func hostileTexts() [][]byte {
	texts := [][]byte{
		nil, []byte("]"), []byte(`"`), []byte(`\`), []byte(`\]`), []byte(`"] forged [xgw@32473 status="200"]`), []byte("\r\n<134>1 - - - - - -"),
		[]byte("\x00"), []byte("é\xff\xfe"), bytes.Repeat([]byte("]"), 300), bytes.Repeat([]byte("\xff"), 64<<10), bytes.Repeat([]byte("é"), 700),
		bytes.Repeat([]byte(`\"]`), 1000),
	}
	for c := range 256 {
		texts = append(texts, []byte{'a', byte(c), 'b'})
	}
	return texts
}

func checkMessage(t testing.TB, s *Syslog, r *zone.AccessRecord, size int) {
	t.Helper()
	message := s.appendRecord(nil, r)
	if len(message) > size {
		t.Errorf("%d bytes: %q", len(message), message)
	}
	if i := bytes.IndexFunc(message, func(c rune) bool { return c < ' ' || c > '~' }); i >= 0 {
		t.Errorf("byte %d is not printable ASCII: %q", i, message)
	}
	m := parse(t, message)
	if m.StructuredData == nil || len(*m.StructuredData) != 1 || (*m.StructuredData)[syslogElement]["status"] != fmt.Sprint(r.Status) {
		t.Errorf("structured data %v of %q", m.StructuredData, message)
	}
	if host := (*m.StructuredData)[syslogElement]["host"]; host != "" && host != string(appendQuotable(nil, r.Host)) {
		t.Errorf("host %q of %q", host, r.Host)
	}
}

func FuzzSyslog(f *testing.F) {
	for _, text := range hostileTexts()[:16] {
		f.Add(text, text, 200)
	}
	f.Fuzz(func(t *testing.T, target, host []byte, status int) {
		r := exampleRecord()
		r.Target, r.Host, r.Status = target, host, status
		checkMessage(t, formatted(LeastSyslogSize), r, LeastSyslogSize)
	})
}

// Text is cut between characters.
func TestSyslogCutsWholeCharacters(t *testing.T) {
	if got := string(appendFitting([]byte("1234"), []byte("aéb"), 6)); got != "1234a" {
		t.Errorf("%q", got)
	}
	if got := string(appendFitting([]byte("1234"), []byte("aéb"), 7)); got != "1234aé" {
		t.Errorf("%q", got)
	}
}

// Lines of the error log go to syslog as well, with their level, and no longer when that ends.
func TestErrorLogGoesToSyslog(t *testing.T) {
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	s := NewSyslog(SyslogOptions{Transport: "udp", Address: in.LocalAddr().String(), Facility: 3, Size: SyslogSize, Names: plainNames})
	h := NewHandler(io.Discard, nil)
	log := slog.New(h).With("worker", 1)
	h.Also(s)
	log.Error("upstream timed out", "upstream", "back]")
	log.Debug("nobody wants this")
	h.Also(nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	log.Error("after the end")
	_ = in.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4096)
	n, _, err := in.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	m := parse(t, b[:n])
	if *m.Severity != severityError || *m.Facility != 3 || *m.MsgID != "error" || *m.Message != "upstream timed out worker=1 upstream=back]" {
		t.Errorf("%q", b[:n])
	}
	if sent, full, unreachable := s.Counts(); sent != 1 || full+unreachable != 0 {
		t.Errorf("%d sent, %d and %d dropped", sent, full, unreachable)
	}
}

// blackhole is an address that answers no SYN: its queue is full and nobody accepts.
func blackhole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprint("127.0.0.1:", name.(*unix.SockaddrInet4).Port)
	for silent, dials := 0, 0; silent < 2; dials++ { // twice: the machine may be slow once
		if dials == 20 {
			t.Skip("this kernel takes connections that nobody accepts, without end")
		}
		if c, err := net.DialTimeout("tcp", address, 300*time.Millisecond); err != nil {
			silent++
		} else {
			silent = 0
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	return address
}

// Nobody there, or somebody who takes nothing, or does not even answer: records are dropped and counted, by cause, and
// who logs never waits.
func TestSyslogWaitsForNobody(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for name, address := range map[string]string{"silent": silent.Addr().String(), "gone": gone.Addr().String(), "blackhole": blackhole(t)} {
		s := NewSyslog(SyslogOptions{Transport: "tcp", Address: address, Facility: 16, Size: SyslogSize, Names: plainNames})
		r := exampleRecord()
		r.Target = bytes.Repeat([]byte("x"), 1024)
		var longest time.Duration
		const records = 20000
		for range records {
			began := time.Now()
			s.Record(r)
			longest = max(longest, time.Since(began))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		sent, full, unreachable := s.Counts()
		if sent+full+unreachable != records || full+unreachable == 0 || name != "silent" && sent > 0 {
			t.Errorf("%s: %d sent, %d dropped for the queue, %d for the receiver", name, sent, full, unreachable)
		}
		if longest > syslogWrite/2 {
			t.Errorf("%s: a record waited %s", name, longest)
		}
	}
}

// Datagrams that nobody listens to are not counted as sent, and when somebody does again, each
// arrives.
func TestSyslogDatagramsNobodyHears(t *testing.T) {
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := in.LocalAddr().String()
	s := NewSyslog(SyslogOptions{Transport: "udp", Address: address, Facility: 16, Size: SyslogSize, Names: plainNames})
	settled := func(n uint64) func() bool {
		return func() bool { sent, full, unreachable := s.Counts(); return sent+full+unreachable >= n }
	}
	in.Close()
	const lost = 200
	for range lost {
		s.Record(exampleRecord())
	}
	waitFor(t, settled(lost-1)) // of the last one nothing is known yet
	if sent, _, unreachable := s.Counts(); sent > 0 || unreachable < lost-1 {
		t.Errorf("nobody listens: %d sent, %d unreachable", sent, unreachable)
	}
	if in, err = net.ListenPacket("udp", address); err != nil {
		t.Skip("the port is somebody else's by now: ", err)
	}
	defer in.Close()
	const heard = 20
	for range heard {
		s.Record(exampleRecord())
	}
	_ = in.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 4096)
	for i := range heard {
		if _, _, err := in.ReadFrom(b); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if sent, full, unreachable := s.Counts(); sent != heard || unreachable != lost || full != 0 {
		t.Errorf("%d sent, %d unreachable, %d full", sent, unreachable, full)
	}
}

// A real receiver gets each message, and reads in it what was sent.
func TestRsyslogReceives(t *testing.T) {
	program, err := exec.LookPath("rsyslogd")
	if err != nil {
		if program = "/usr/sbin/rsyslogd"; !exists(program) {
			t.Skip("needs rsyslogd: deploy/setup.sh test installs it")
		}
	}
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) { receive(t, program, transport) })
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func receive(t *testing.T, program, transport string) {
	address, out, said := startRsyslog(t, program, transport)
	s := NewSyslog(SyslogOptions{Transport: transport, Address: address, Facility: 16, Size: SyslogSize, Names: plainNames})
	const messages = 10000
	r := exampleRecord()
	hostile := hostileTexts()
	for i := range messages {
		r.ID = fmt.Appendf(nil, "m%d", i)
		r.Host, r.Key, r.Target = hostile[i%len(hostile)], hostile[i/7%len(hostile)], append([]byte("/"), hostile[i/3%len(hostile)]...)
		s.Record(r)
		// Datagrams have no flow control: the receiver's buffer must not run over.
		if i%100 == 99 && !arrived(out, i+1) {
			break
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	arrived(out, messages)
	text, _ := os.ReadFile(out)
	good := regexp.MustCompile(`(?m)^6\|xgw\|access\|\[xgw@32473 id="m(\d+)" status="200" outcome="ok"(?: [a-z_]+="(?:[ !#-Z^-~[]|\\["\\\]])*")*\]\| ?GET /[ -~]*$`)
	seen := map[string]bool{}
	for _, m := range good.FindAllStringSubmatch(string(text), -1) {
		seen[m[1]] = true
	}
	if lines := bytes.Count(text, []byte("|access|")); len(seen) != messages || lines != messages {
		sent, full, unreachable := s.Counts()
		first, _, _ := strings.Cut(string(text), "\n")
		t.Errorf("%d of %d messages arrived and parse; %d sent, %d and %d dropped; the first line: %s\n%s", len(seen), messages, sent, full, unreachable, first, said.String())
	}
}

// startRsyslog gives the address of a receiver that receives, its file, and what it says. The
// port may be taken between the look and the start: then another one is tried.
func startRsyslog(t *testing.T, program, transport string) (address, out string, said *bytes.Buffer) {
	t.Helper()
	for range 3 {
		dir := t.TempDir()
		port := freePort(t, transport)
		address, out, said = fmt.Sprintf("127.0.0.1:%d", port), filepath.Join(dir, "received"), new(bytes.Buffer)
		conf := fmt.Sprintf(`global(workDirectory=%q maxMessageSize="8k")
module(load="im%[2]s")
input(type="im%[2]s" port="%[3]d" address="127.0.0.1" ruleset="all")
template(name="fields" type="string" string="%%syslogseverity%%|%%app-name%%|%%msgid%%|%%structured-data%%|%%msg%%\n")
ruleset(name="all") { action(type="omfile" file=%[4]q template="fields") }
`, dir, transport, port, out)
		path := filepath.Join(dir, "rsyslog.conf")
		if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "-n", "-f", path, "-i", filepath.Join(dir, "pid"))
		cmd.Stdout, cmd.Stderr = said, said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
		if receives(transport, address, out) {
			t.Cleanup(stop)
			return address, out, said
		}
		stop()
	}
	t.Fatalf("rsyslogd does not receive: %s", said)
	return "", "", nil
}

func freePort(t *testing.T, transport string) int {
	t.Helper()
	if transport == "udp" {
		probe, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer probe.Close()
		return probe.LocalAddr().(*net.UDPAddr).Port
	}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	return probe.Addr().(*net.TCPAddr).Port
}

// arrived waits until there are so many lines of exchanges.
func arrived(out string, n int) bool {
	for range 6000 {
		text, _ := os.ReadFile(out)
		if bytes.Count(text, []byte("|access|")) >= n {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// receives waits until the receiver writes what it gets.
func receives(transport, address, out string) bool {
	for range 400 {
		if c, err := (&net.Dialer{}).DialContext(context.Background(), transport, address); err == nil {
			fmt.Fprint(c, "<13>1 - - - - - - ready\n")
			c.Close()
		}
		time.Sleep(50 * time.Millisecond)
		if text, err := os.ReadFile(out); err == nil && len(text) > 0 {
			return true
		}
	}
	return false
}

// Over TLS messages are counted in octets (RFC 5425), and go to nobody else than the receiver
// that the authorities vouch for.
func TestSyslogOverTLS(t *testing.T) {
	chain, authorities := testCertificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{chain}})
	if err != nil {
		t.Fatal(err)
	}
	const messages = 1000
	received := make(chan int, 1)
	go func() {
		n := 0
		defer func() { received <- n }()
		for { // one that does not trust us ends its connection
			c, err := l.Accept()
			if err != nil {
				return
			}
			octetcounting.NewParser(syslog.WithListener(func(r *syslog.Result) {
				if r.Error == nil && r.Message != nil {
					n++
				}
			})).Parse(c)
			c.Close()
		}
	}()
	to := func(roots *x509.CertPool) *Syslog {
		return NewSyslog(SyslogOptions{
			Transport: "tls", Address: l.Addr().String(), Facility: 16, Size: SyslogSize, Names: plainNames,
			TLS: &tls.Config{ServerName: "127.0.0.1", RootCAs: roots, MinVersion: tls.VersionTLS12},
		})
	}
	strict := to(x509.NewCertPool())
	strict.Record(exampleRecord())
	if err := strict.Close(); err != nil {
		t.Fatal(err)
	}
	if sent, _, unreachable := strict.Counts(); sent != 0 || unreachable != 1 {
		t.Errorf("to somebody unknown %d went, %d did not", sent, unreachable)
	}
	s := to(authorities)
	hostile := hostileTexts()
	for i := range messages {
		r := exampleRecord()
		r.Host = hostile[i%len(hostile)]
		s.Record(r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if n := <-received; n != messages {
		sent, full, unreachable := s.Counts()
		t.Errorf("%d of %d messages came; %d sent, %d and %d dropped", n, messages, sent, full, unreachable)
	}
}

// testCertificate is one for 127.0.0.1, and the pool that vouches for it.
func testCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
