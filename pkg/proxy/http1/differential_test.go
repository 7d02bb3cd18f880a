// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What this package accepts, net/http reads in the same way, up to where the next message
// begins. The other way round there are differences: what it refuses though net/http reads
// it. Each has its reason here, and holds only for messages that are of that kind, as
// judged without the parser.

type difference struct {
	clause string
	faults []*Fault
	holds  func(m message) bool
}

// message is a naive reading of a head: lines as they come, of which nothing is checked.
type message struct {
	raw   string // all there is
	first string
	lines []string // fields
	bytes int
}

func naively(b []byte) message {
	var latin strings.Builder // a rune for each byte, for the expressions
	for _, c := range bytes.TrimPrefix(b, []byte("\r\n")) {
		latin.WriteRune(rune(c))
	}
	raw := latin.String()
	m := message{raw: raw, bytes: len(b)}
	for i, text := range strings.SplitAfter(raw, "\n") {
		text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
		switch {
		case i == 0:
			m.first = text
		case text == "":
			return m
		default:
			m.lines = append(m.lines, text)
		}
	}
	return m
}

// values are those of a field, white space around them taken away.
func (m message) values(name string) (all []string) {
	for _, text := range m.lines {
		if n, v, ok := strings.Cut(text, ":"); ok && strings.EqualFold(strings.TrimSpace(n), name) {
			all = append(all, strings.Trim(v, " \t"))
		}
	}
	return all
}

func (m message) part(i int) string {
	if parts := strings.Split(m.first, " "); i < len(parts) {
		return parts[i]
	}
	return ""
}

func (m message) version(re string) bool {
	return regexp.MustCompile(re).MatchString(m.part(2))
}

var (
	goodField  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\\t\\x20-\\x7e\\x80-\\xff]*$")
	goodLine   = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^ ]+ HTTP/[0-9]\\.[0-9]$")
	goodTarget = regexp.MustCompile(`^/([^?#\\%\x00-\x20\x7f-\xff]|%([1-9A-Fa-f][0-9A-Fa-f]|0[1-9A-Fa-f]))*(\?[^#\x00-\x20\x7f-\xff]*)?$`)
	goodHost   = regexp.MustCompile(`^([0-9A-Za-z_~-]+(\.[0-9A-Za-z_~-]+)*\.?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	goodLength = regexp.MustCompile(`^[0-9]{1,18}$`)
)

func bareLF(m message) bool { return regexp.MustCompile(`(^|[^\r])\n`).MatchString(m.raw) }

func badCoding(m message) bool {
	codings := m.values("Transfer-Encoding")
	return len(codings) > 1 || len(codings) == 1 && (!strings.EqualFold(codings[0], "chunked") || strings.Contains(m.first, "HTTP/1.0"))
}

func badFields(m message) bool {
	return slices.ContainsFunc(m.lines, func(l string) bool { return !goodField.MatchString(l) })
}

func folded(m message) bool {
	return slices.ContainsFunc(m.lines, func(l string) bool { return l[0] == ' ' || l[0] == '\t' })
}

func badLength(m message) bool {
	lengths := m.values("Content-Length")
	return len(lengths) > 1 || len(lengths) == 1 && !goodLength.MatchString(lengths[0])
}

func tooLarge(m message) bool {
	return m.bytes > testLimits.HeaderBytes || len(m.lines) > testLimits.Fields || len(m.first) > testLimits.LineBytes
}

func bothLengths(m message) bool {
	return len(m.values("Content-Length")) > 0 && len(m.values("Transfer-Encoding")) > 0
}

func badConnection(m message) bool {
	for _, name := range strings.Split(strings.ToLower(strings.Join(m.values("Connection"), ",")), ",") {
		name = strings.Trim(name, " \t")
		if slices.Contains([]string{"host", "content-length", "transfer-encoding", "expect"}, name) || name != "" && !isToken([]byte(name)) {
			return true
		}
	}
	return false
}

func badHost(m message) bool {
	hosts := m.values("Host")
	return len(hosts) != 1 || !goodHost.MatchString(hosts[0]) || len(hosts[0]) > MaxHost || !ValidHost([]byte(hosts[0]))
}

func badTarget(m message) bool {
	target := m.part(1)
	if target == "*" {
		return m.part(0) != "OPTIONS"
	}
	if scheme, rest, ok := strings.Cut(target, "://"); ok && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")) {
		slash := strings.IndexByte(rest, '/')
		hosts := m.values("Host")
		if slash < 0 || len(hosts) == 0 || !strings.EqualFold(rest[:slash], hosts[0]) {
			return true
		}
		target = rest[slash:]
	}
	return !goodTarget.MatchString(target)
}

func badTrailer(m message) bool {
	for _, name := range strings.Split(strings.ToLower(strings.Join(m.values("Trailer"), ",")), ",") {
		name = strings.Trim(name, " \t")
		if slices.Contains([]string{"host", "content-length", "transfer-encoding", "expect", "connection", "trailer"}, name) || name != "" && !isToken([]byte(name)) {
			return true
		}
	}
	return false
}

func badExpect(m message) bool {
	return slices.ContainsFunc(m.values("Expect"), func(v string) bool { return !strings.EqualFold(v, "100-continue") })
}

// Of requests. net/http's ReadRequest leaves some of it to its server, which refuses then.
var requestDifferences = []difference{
	{"RFC 9110, 9.1: a method that is not known is answered 501", []*Fault{FaultMethod}, func(m message) bool { return !known([]byte(m.part(0))) }},
	{"RFC 9110, 2.5: another version than 1.0 and 1.1", []*Fault{FaultVersion}, func(m message) bool { return !m.version(`^HTTP/1\.[01]$`) }},
	{"RFC 9110, 5.4 and RFC 9112, 3: limits", []*Fault{FaultTooLarge, FaultTooMany, FaultTargetLong}, tooLarge},
	{"RFC 9112, 2.2: a bare LF may be taken for a line's end", []*Fault{FaultLineEnd}, bareLF},
	{"RFC 9112, 5.2: a folded field is to be refused or unfolded", []*Fault{FaultFolded}, folded},
	{"RFC 9110, 5.1 and 5.5: names are tokens, values have no control bytes", []*Fault{FaultField}, badFields},
	{"RFC 9112, 3: method, target and version are apart by one space each", []*Fault{FaultLine}, func(m message) bool { return !goodLine.MatchString(m.first) }},
	{"RFC 9112, 3.2 and RFC 3986, 3: forms of a target; of absolute-form only what says the same as Host", []*Fault{FaultTarget}, badTarget},
	{"RFC 9112, 3.2: one Host, which is a name or an address", []*Fault{FaultHost}, badHost},
	{"RFC 9112, 6.3: Content-Length that is repeated, though equal, or not a number", []*Fault{FaultLength}, badLength},
	{"RFC 9112, 6.1: both lengths may be refused", []*Fault{FaultBoth}, bothLengths},
	{"RFC 9112, 6.1: a coding in HTTP/1.0, or one that is not known", []*Fault{FaultCoding, FaultCodingOther}, badCoding},
	{"RFC 9110, 7.6.1: Connection names no field that all recipients need", []*Fault{FaultConnection}, badConnection},
	{"RFC 9110, 6.5.1: no trailer frames, routes or connects", []*Fault{FaultTrailer}, badTrailer},
	{"RFC 9110, 10.1.1: an expectation that is not known is answered 417", []*Fault{FaultExpect}, badExpect},
}

// Of replies.
var responseDifferences = []difference{
	{"RFC 9110, 5.4: limits", []*Fault{FaultTooLarge, FaultTooMany}, func(m message) bool { return m.bytes > testLimits.HeaderBytes || len(m.lines) > testLimits.Fields }},
	{"RFC 9112, 2.2: a bare LF may be taken for a line's end", []*Fault{FaultLineEnd}, bareLF},
	{"RFC 9112, 5.2: a folded field may be unfolded", []*Fault{FaultFolded}, folded},
	{"RFC 9110, 5.1 and 5.5: names are tokens, values have no control bytes", []*Fault{FaultField}, badFields},
	{"RFC 9112, 4: version 1.0 or 1.1, status of 100 to 599, reason of text", []*Fault{FaultStatusLine}, func(m message) bool {
		return !regexp.MustCompile(`^HTTP/1\.[01] [1-5][0-9][0-9]( [\t\x20-\x7e\x80-\xff]*)?$`).MatchString(m.first)
	}},
	{"RFC 9112, 6.3: Content-Length that is repeated, though equal, or not a number", []*Fault{FaultLength}, badLength},
	{"RFC 9112, 6.1: both lengths may be refused", []*Fault{FaultBoth}, bothLengths},
	{"RFC 9112, 6.1: a coding in HTTP/1.0, or one that is not known", []*Fault{FaultCoding, FaultCodingOther}, badCoding},
	{"RFC 9110, 7.6.1: Connection names no field that all recipients need", []*Fault{FaultConnection}, badConnection},
	{"RFC 9110, 6.5.1: no trailer frames, routes or connects", []*Fault{FaultTrailer}, badTrailer},
}

// Of chunked bodies, judged by what is behind the head.
var chunkDifferences = []difference{
	{"RFC 9112, 7.1: lines end with CR LF", []*Fault{FaultChunk}, bareLF},
	{"RFC 9112, 7.1.1: limits of extensions, and no white space before them", []*Fault{FaultChunk}, func(m message) bool {
		return regexp.MustCompile(`[0-9A-Fa-f][ \t]+(;|\r)|;`).MatchString(m.raw) || regexp.MustCompile(`[^\n]{255}`).MatchString(m.raw)
	}},
	{"RFC 9112, 7.1: sizes of up to 15 digits", []*Fault{FaultChunk}, func(m message) bool { return regexp.MustCompile(`[0-9A-Fa-f]{16}`).MatchString(m.raw) }},
	{"RFC 9110, 6.5.1: trailers do not frame, route or connect; RFC 9110, 5.1 and 5.5", []*Fault{FaultTrailer, FaultTooLarge, FaultTooMany}, func(m message) bool {
		_, trailer, _ := strings.Cut("\n"+m.raw, "\n0")
		return strings.Contains(trailer, "\n")
	}},
}

func excused(list []difference, f *Fault, m message) bool {
	return slices.ContainsFunc(list, func(d difference) bool { return slices.Contains(d.faults, f) && d.holds(m) })
}

// sameFields: all that we read net/http has, with the same value; and no more.
func sameFields(fields []Field, theirs http.Header, hidden ...Kind) error {
	ours := map[string][]string{}
	for _, f := range fields {
		if !slices.Contains(hidden, f.Kind) {
			name := http.CanonicalHeaderKey(string(f.Name))
			ours[name] = append(ours[name], string(f.Value))
		}
	}
	if ours["Cache-Control"] == nil && len(ours["Pragma"]) > 0 {
		theirs.Del("Cache-Control") // net/http makes one
	}
	for name, values := range theirs {
		if slices.Contains(hidden, kindOf([]byte(name))) {
			continue
		}
		if !slices.Equal(values, ours[name]) {
			return fmt.Errorf("%s: %q, net/http has %q", name, ours[name], values)
		}
		delete(ours, name)
	}
	if len(ours) > 0 {
		return fmt.Errorf("net/http has no %q", ours)
	}
	return nil
}

// body reads a message's body from b in our way.
func readBody(as Body, b []byte) (body []byte, used int, err error) {
	switch {
	case as.Chunked:
		return decode(b, len(b)+1)
	case as.UntilClose():
		return b, len(b), nil
	case as.Length > int64(len(b)):
		return b, len(b), io.ErrUnexpectedEOF
	}
	return b[:as.Length], int(as.Length), nil
}

// sameBody compares the body that begins at b with what net/http reads, and where it ends.
// used is -1 when it does not end.
func sameBody(as Body, b []byte, theirs io.Reader, left func() int) (used int, err error) {
	body, used, err := readBody(as, b)
	ref, refErr := io.ReadAll(theirs)
	if err != nil {
		f, _ := err.(*Fault)
		if refErr == nil && (f == nil || !excused(chunkDifferences, f, naively(b))) {
			return -1, fmt.Errorf("body %q: %w, net/http reads %q", b, err, ref)
		}
		return -1, nil
	}
	if refErr != nil || !bytes.Equal(body, ref) {
		return -1, fmt.Errorf("body %q, net/http reads %q: %w", body, ref, refErr)
	}
	if left() != len(b)-used {
		return -1, fmt.Errorf("body of %q uses %d bytes, net/http leaves %d", b, used, left())
	}
	return used, nil
}

// withRoom holds all of it: net/http takes no trailers that are longer than the
// reader's buffer.
func withRoom(theirs *bytes.Reader) *bufio.Reader {
	return bufio.NewReaderSize(theirs, theirs.Len()+1)
}

// differ reads the requests of a connection in both ways.
func differ(raw []byte) error {
	for len(raw) > 0 {
		var r Request
		n, fault := r.Parse(raw, 0, &testLimits)
		if n == 0 && fault == nil {
			return nil
		}
		theirs := bytes.NewReader(bytes.TrimPrefix(raw, []byte("\r\n")))
		br := withRoom(theirs)
		ref, err := http.ReadRequest(br)
		if fault != nil {
			if err == nil && !excused(requestDifferences, fault, naively(raw)) {
				return fmt.Errorf("refused (%w), net/http reads it", fault)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepted, net/http refuses: %w", err)
		}
		if err := sameRequest(&r, ref); err != nil {
			return err
		}
		used, err := sameBody(r.Body, raw[n:], ref.Body, func() int { return br.Buffered() + theirs.Len() })
		if err != nil || used < 0 {
			return err
		}
		raw = raw[n+used:]
	}
	return nil
}

func sameRequest(r *Request, ref *http.Request) error {
	body := Body{Length: max(ref.ContentLength, 0)}
	if len(ref.TransferEncoding) > 0 {
		body = Body{Chunked: true, Length: -1}
	}
	target := ref.RequestURI
	if i := strings.Index(target, "://"); i >= 0 && target[0] != '/' {
		target = target[i+3:]
		target = target[strings.IndexByte(target, '/'):]
	}
	switch {
	case ref.Method != string(r.Method), target != string(r.Target), !strings.EqualFold(ref.Host, string(r.Host)), body != r.Body, ref.ProtoMinor != int(r.Minor):
		return fmt.Errorf("%s %s 1.%d host %s %+v; net/http: %s %s %s host %s %+v",
			r.Method, r.Target, r.Minor, r.Host, r.Body, ref.Method, ref.RequestURI, ref.Proto, ref.Host, body)
	case ref.Close && r.KeepAlive:
		return fmt.Errorf("net/http does not keep the connection")
	}
	return sameFields(r.Fields, ref.Header, Host, TransferEncoding, Trailer) // net/http takes these out
}

// differReply reads the replies on a connection in both ways; all are to requests of one
// method.
func differReply(raw []byte, method string) error {
	for len(raw) > 0 {
		var r Response
		n, fault := r.Parse(raw, 0, &testLimits, []byte(method))
		if n == 0 && fault == nil {
			return nil
		}
		theirs := bytes.NewReader(raw)
		br := withRoom(theirs)
		ref, err := http.ReadResponse(br, &http.Request{Method: method})
		if fault != nil {
			if err == nil && !excused(responseDifferences, fault, naively(raw)) {
				return fmt.Errorf("refused (%w), net/http reads it", fault)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepted, net/http refuses: %w", err)
		}
		switch {
		case ref.StatusCode != r.Status, ref.ProtoMinor != int(r.Minor):
			return fmt.Errorf("1.%d %d; net/http %s %s", r.Minor, r.Status, ref.Proto, ref.Status)
		case ref.Close && r.KeepAlive:
			return fmt.Errorf("net/http does not keep the connection")
		}
		hidden := []Kind{TransferEncoding, Trailer} // net/http takes these out
		if ref.Close {
			hidden = append(hidden, Connection)
		}
		if err := sameFields(r.Fields, ref.Header, hidden...); err != nil {
			return err
		}
		used, err := sameBody(r.Body, raw[n:], ref.Body, func() int { return br.Buffered() + theirs.Len() })
		if err != nil || used < 0 {
			return err
		}
		raw = raw[n+used:]
	}
	return nil
}

func TestDifferential(t *testing.T) {
	for _, row := range requestRows {
		for _, raw := range []string{row.request, row.request + "hi" + valid + "hi", strings.Replace(row.request, "\r\n\r\n", "\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 1) + valid} {
			if err := differ([]byte(raw)); err != nil {
				t.Errorf("%s: %q: %v", row.name, raw, err)
			}
		}
	}
	for _, raw := range replySeeds {
		for _, method := range []string{"GET", "HEAD"} {
			if err := differReply([]byte(raw), method); err != nil {
				t.Errorf("%s: %q: %v", method, raw, err)
			}
		}
	}
}

func FuzzRequestHead(f *testing.F) {
	for _, row := range requestRows {
		f.Add([]byte(row.request))
		f.Add([]byte(row.request + "hi" + valid))
	}
	f.Add([]byte(edit("Content-Length: 2", "Transfer-Encoding: chunked") + "2;x=\"y\"\r\nhi\r\n0\r\nX: y\r\n\r\n" + valid))
	f.Add(lineOf(testLimits.LineBytes, 2*testLimits.LineBytes+2))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := differ(b); err != nil {
			t.Fatal(err)
		}
		// In two pieces the verdict is the same, and an early refusal is not taken back.
		var whole, split Request
		n, fault := whole.Parse(b, 0, &testLimits)
		half := len(b) / 2
		if n1, f1 := split.Parse(b[:half], 0, &testLimits); f1 != nil {
			if fault == nil {
				t.Fatalf("refused early (%v), accepted whole", f1)
			}
		} else if n1 == 0 {
			if n2, f2 := split.Parse(b, half, &testLimits); n2 != n || f2 != fault {
				t.Fatalf("in two pieces: %d %v; whole: %d %v", n2, f2, n, fault)
			}
		}
	})
}

func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\nmore", "a\r\n0123456789\r\n", "0\r\n\r\n", "-1\r\n", "5\nhello", "ffffffffffffffff\r\n",
		"1\r\nx\r\n0;x\r\n\r\n", "1 \r\nx\r\n0\r\n\r\n", "0\r\nHost: x\r\n\r\n", "0\r\nX: y\n\r\n", "00000000000000001\r\nx\r\n0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Add([]byte("0\r\nX: " + strings.Repeat("y", 5000) + "\r\n\r\n"))
	head := []byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	f.Fuzz(func(t *testing.T, b []byte) {
		body, used, err := decode(b, len(b)+1)
		slow, usedSlow, errSlow := decode(b, 1)
		if (err == nil) != (errSlow == nil) || err == nil && (!bytes.Equal(body, slow) || used != usedSlow) {
			t.Fatalf("whole: %q %v; byte by byte: %q %v", body, err, slow, errSlow)
		}
		if err := differ(append(head[:len(head):len(head)], b...)); err != nil {
			t.Fatal(err)
		}
	})
}

var replySeeds = []string{
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "HTTP/1.0 304 \r\n\r\n",
	"HTTP/1.1 204 No\r\nConnection: x, close\r\nX: y\r\n\r\n", "HTTP/1.1 200\r\n\r\n", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 \r\n\r\n", "HTTP/1.1 200 OK\nX: y\n\n", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "HTTP/2.0 200 OK\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "HTTP/1.1 304 N\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
}

func FuzzResponseHead(f *testing.F) {
	for _, s := range replySeeds {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, head bool) {
		method := map[bool]string{false: "GET", true: "HEAD"}[head]
		if err := differReply(b, method); err != nil {
			t.Fatal(err)
		}
	})
}
