// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/lab"
)

// ledgerLab is a gateway in a lab on which traffic of all kinds comes together.
type ledgerLab struct {
	*lab.Lab
	g   *running
	key string
}

const ledgerInstance = "ledger"

func newLedgerLab(t *testing.T) *ledgerLab {
	needRoot(t, "makes a lab")
	l := &ledgerLab{Lab: mustLab(t, "xgwledger")}
	ln, err := l.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: lab.NewUpstream()}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	dir := t.TempDir()
	rewrite(t, filepath.Join(dir, "ratelimit.lua"), `limit_req{name = "few", match = {route = "limited"}, rate = "1r/m", burst = 2, nodelay = true}`)
	text := gatewayYAML(dir, ":443", "203.0.113.2:8080", `workers: 1
interfaces: [{name: edge0, mode: native}]
deny: [10.66.0.0/16]
port_guard: {mode: enforce}
packet_limits:
  - {name: syns, key: source, count: syns, rate: 100, burst: 200}
`)
	text = strings.Replace(text, "  - {name: all, path: /, upstream: back}\n", `  - {name: keyed, path: /keyed, upstream: back, keys: {}}
  - {name: gone, path: /gone, upstream: gone}
  - {name: own, path: /own, reply: {status: 200}}
  - {name: bytes, path: /bytes, upstream: back}
  - {name: limited, path: /limited, upstream: back}
  - {name: status, path: /status, upstream: back}
`, 1)
	text = strings.Replace(text, "upstreams:\n", "upstreams:\n  - {name: gone, servers: [\"203.0.113.2:9\"]}\n", 1)
	l.g = startGateway(t, inHost(l.Lab, lab.Gateway), ledgerInstance, dir, text)
	for _, word := range strings.Fields(mustXGW(t, l.Lab, "--instance", ledgerInstance, "keys", "add", "--consumer", "alice")) {
		if strings.HasPrefix(word, "xgw_") {
			l.key = word
		}
	}
	return l
}

// ledgerRow is a line of the table, as the pane of top and /v1/live have it.
type ledgerRow struct{ Hop, Verdict, Reason string }

func (r ledgerRow) String() string { return r.Hop + " " + r.Verdict + " " + r.Reason }

// shown is the ledger's pane: what was counted by row, over all places; without what others on
// this machine may have a part in.
func (l *ledgerLab) shown(t *testing.T) map[ledgerRow]int {
	t.Helper()
	var f shownFrame
	out := mustXGW(t, l.Lab, "--instance", ledgerInstance, "top", "--once", "--json", "--pane", "ledger", "--interval", "100ms")
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	all := map[ledgerRow]int{}
	for _, p := range f.Panes {
		for _, row := range p.Rows {
			if p.Name == "ledger" && row["hop"] != "backlog" {
				n, _ := row["count"].(float64)
				all[ledgerRow{fmt.Sprint(row["hop"]), fmt.Sprint(row["verdict"]), fmt.Sprint(row["reason"])}] += int(n)
			}
		}
	}
	if len(all) < 5 {
		t.Fatalf("the pane has %d rows: %s", len(all), out)
	}
	return all
}

// frames sends bytes as they are from the router, on the wire of the gateway's interface.
func (l *ledgerLab) frames(t *testing.T, all ...[]byte) {
	t.Helper()
	err := l.In(lab.Router, func() error {
		link, err := netlink.LinkByName("edge1")
		if err != nil {
			return err
		}
		neighbours, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		if err != nil || len(neighbours) == 0 {
			return errors.Join(err, errors.New("no neighbour"))
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, rest := range all {
			frame := append(append(slices.Clone(neighbours[0].HardwareAddr), link.Attrs().HardwareAddr...), rest...)
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ipv4 is an Ethernet type and a header that is of TCP and says so many bytes, and what follows.
func ipv4(length byte, rest ...byte) []byte {
	return append([]byte{
		0x08, 0x00, 0x45, 0, 0, length, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2,
	}, rest...)
}

func tcpHeader(offset, flags byte) []byte {
	return []byte{0x30, 0x39, 1, 187, 0, 0, 0, 1, 0, 0, 0, 0, offset << 4, flags, 0xff, 0xff, 0, 0, 0, 0}
}

// ask makes one request and wants the status.
func (l *ledgerLab) ask(t *testing.T, c *http.Client, path string, want int, fields ...string) {
	t.Helper()
	q, _ := http.NewRequest("GET", "https://"+lab.GatewayAddr.String()+path, nil)
	for i := 0; i+1 < len(fields); i += 2 {
		q.Header.Set(fields[i], fields[i+1])
	}
	r, err := c.Do(q)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	if r.StatusCode != want {
		t.Fatalf("%s: status %d, want %d", path, r.StatusCode, want)
	}
}

// dial is a plain connection of the client's.
func (l *ledgerLab) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := l.DialFrom(lab.Client)(t.Context(), "tcp", lab.GatewayAddr.String()+":443")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// secure is a TLS connection of the client's, for what no client would send.
func (l *ledgerLab) secure(t *testing.T, o *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c := tls.Client(l.dial(t), o)
	return c, c.Handshake()
}

// Good and bad traffic of many kinds, all at once on the interface: each packet, connection,
// handshake and request is in the ledger under its reason, and nothing is left over.
func TestLedger(t *testing.T) {
	l := newLedgerLab(t)
	agree := countsAgree(t, l.Lab, ledgerInstance)
	before := l.shown(t)

	// What is for the kernel plane alone, with exact counts.
	send := func(from string, port uint16, n int) {
		t.Helper()
		sent, err := l.Flood(context.Background(), lab.Flood{
			Sources: netip.MustParsePrefix(from), Target: netip.AddrPortFrom(lab.GatewayAddr, port), Count: n, Rate: 20_000,
		})
		if err != nil || sent != n {
			t.Fatalf("%d of %d frames sent: %v", sent, n, err)
		}
	}
	const flood, denied, closed = 5000, 50, 40
	send("10.65.0.1/32", 443, flood)
	send("10.66.0.0/24", 443, denied)
	send("10.67.0.0/24", 9999, closed)
	l.frames(t,
		ipv4(40)[:14],                         // a header cut short
		ipv4(40, tcpHeader(5, 2)[:10]...),     // TCP's cut short
		ipv4(60, tcpHeader(10, 2)...),         // options that are not there
		ipv4(40, tcpHeader(3, 2)...),          // a header shorter than itself
		ipv4(40, tcpHeader(5, 0)...),          // no flags
		ipv4(40, tcpHeader(5, 0x3f)...),       // all of them
		append([]byte{0x88, 0xb5}, "junk"...), // no IP
	)

	// Requests, by clients that keep their connections.
	h1, h2 := newClientIn(l.Lab), newClientIn(l.Lab)
	h1.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	h1.Transport.(*http.Transport).TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	defer h1.CloseIdleConnections()
	defer h2.CloseIdleConnections()
	for range 20 {
		l.ask(t, h1, "/bytes/1000", 200)
		l.ask(t, h2, "/bytes/1000", 200)
	}
	for range 3 {
		l.ask(t, h1, "/own", 200)
		l.ask(t, h1, "/nowhere", 404)                                     // no route
		l.ask(t, h2, "/gone", 502)                                        // nobody listens there
		l.ask(t, h1, "/status/404", 404)                                  // the upstream's own word
		l.ask(t, h2, "/status/503", 503)                                  // likewise
		l.ask(t, h1, "/keyed", 401)                                       // no API key
		l.ask(t, h2, "/keyed", 401, "Authorization", "Bearer "+l.key+"x") // a wrong one
	}
	l.ask(t, h1, "/keyed", 200, "Authorization", "Bearer "+l.key)
	l.ask(t, h1, "/limited", 200)
	l.ask(t, h1, "/limited", 200)
	for range 4 {
		l.ask(t, h1, "/limited", 429)
	}
	insecure := &tls.Config{InsecureSkipVerify: true}
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "G\x00T / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"} {
		c, err := l.secure(t, insecure)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		if answer, _ := io.ReadAll(c); !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
			t.Errorf("%q is answered %q", request, answer)
		}
		c.Close()
	}

	// TLS that fails, each in its way.
	for range 2 {
		c := l.dial(t)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
		c.Close()
		l.dial(t).Close() // not a word
		if c, err := l.secure(t, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
			t.Errorf("TLS 1.2 is agreed on: %v", c.ConnectionState().Version)
		}
		if _, err := l.secure(t, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"nosuch"}}); err == nil {
			t.Error("a protocol that nobody speaks is agreed on")
		}
		if _, err := l.secure(t, &tls.Config{ServerName: "gateway.example"}); err == nil {
			t.Error("a certificate that nobody vouches for is taken")
		}
	}

	want := map[ledgerRow]int{
		{"xdp", "drop", "deny"}: denied, {"xdp", "drop", "port_guard"}: closed, {"xdp", "drop", "truncated"}: 3,
		{"xdp", "drop", "malformed"}: 1, {"xdp", "drop", "tcp_flags"}: 2, {"xdp", "pass", "not_ip"}: 1,
		{"connection", "pass", "accepted"}: 2 + 3 + 10,
		{"handshake", "pass", "full"}:      2 + 3, {"handshake", "drop", "not_tls"}: 2, {"handshake", "drop", "eof"}: 2,
		{"handshake", "drop", "version"}: 2, {"handshake", "drop", "protocol"}: 2, {"handshake", "drop", "alert"}: 2,
		{"request", "pass", "ok"}: 40 + 6 + 1 + 2, {"request", "pass", "route_reply"}: 3,
		{"request", "drop", "no_route"}: 3, {"request", "drop", "upstream_refused"}: 3, {"request", "drop", "key_missing"}: 3,
		{"request", "drop", "key_refused"}: 3, {"request", "drop", "limited"}: 4, {"request", "drop", "bad_request"}: 3,
		{"status", "pass", "2xx"}: 40 + 3 + 1 + 2, {"status", "drop", "4xx_client"}: 3, {"status", "drop", "4xx_upstream"}: 3,
		{"status", "drop", "4xx_gateway"}: 3 + 3 + 3 + 4, {"status", "drop", "5xx_upstream"}: 3 + 3,
	}
	l.settle(t, before, want, flood)
	agree()
	l.metricsAgree(t)
}

// settle waits until the ledger has grown by what is wanted, and by nothing else but packets
// of connections that are good; what nobody explains is 0.
func (l *ledgerLab) settle(t *testing.T, before, want map[ledgerRow]int, flood int) {
	t.Helper()
	var wrong []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		now := l.shown(t)
		grown := map[ledgerRow]int{}
		for row, n := range now {
			if row.Hop == "unexplained" {
				grown[row] = n
			} else if n != before[row] {
				grown[row] = n - before[row]
			}
		}
		wrong = nil
		for row, n := range want {
			if grown[row] != n {
				wrong = append(wrong, fmt.Sprintf("%s: %d, want %d", row, grown[row], n))
			}
		}
		packets := 0
		for row, n := range grown {
			switch {
			case row.Hop == "xdp":
				packets += n
			case row.Hop == "unexplained" && n != 0, row.Hop == "tcp" && row.Verdict == "drop":
				wrong = append(wrong, fmt.Sprintf("%s: %d", row, n))
			case row.Hop == "unexplained", row.Hop == "nic", row.Hop == "tcp":
			default:
				if _, wanted := want[row]; !wanted {
					wrong = append(wrong, fmt.Sprintf("%s: %d, want none", row, n))
				}
			}
		}
		// The burst of 200, and 100 a second for as long as a slow machine takes to send, at most.
		if n := grown[ledgerRow{"xdp", "drop", "source_limit"}]; n < flood/2 || n > flood-200 {
			wrong = append(wrong, fmt.Sprintf("of %d SYNs %d are over their source's limit", flood, n))
		}
		if received := grown[ledgerRow{"nic", "pass", "received"}]; received != packets {
			wrong = append(wrong, fmt.Sprintf("%d packets came, %d are accounted for", received, packets))
		}
		if len(wrong) == 0 {
			return
		}
	}
	slices.Sort(wrong)
	t.Errorf("the ledger is not what was sent:\n%s", strings.Join(wrong, "\n"))
}

// metricsAgree wants the same table on 9090, with nothing unexplained there either.
func (l *ledgerLab) metricsAgree(t *testing.T) {
	t.Helper()
	c := newClientIn(l.Lab)
	c.Transport.(*http.Transport).DialContext = l.DialFrom(lab.Gateway)
	defer c.CloseIdleConnections()
	var said string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		text := bodyOf(t, c, l.g.metrics)
		got := map[ledgerRow]int{}
		for line := range strings.Lines(text) {
			var row ledgerRow
			var n float64
			if rest, ok := strings.CutPrefix(line, "xgw_ledger_total{"); ok {
				labels, value, _ := strings.Cut(rest, "} ")
				for _, pair := range strings.Split(labels, ",") {
					name, v, _ := strings.Cut(pair, "=")
					*map[string]*string{"hop": &row.Hop, "verdict": &row.Verdict, "reason": &row.Reason}[name] = strings.Trim(v, `"`)
				}
				if _, err := fmt.Sscan(value, &n); err != nil {
					t.Fatal(err)
				}
				if n > 0 && row.Hop != "backlog" {
					got[row] = int(n)
				}
			}
		}
		table := l.shown(t)
		maps.DeleteFunc(table, func(r ledgerRow, _ int) bool { return r.Hop == "unexplained" })
		if said = grep(text, "xgw_unexplained{"); maps.Equal(got, table) && strings.Count(said, "} 0\n") == 4 {
			return
		}
		said += fmt.Sprintf("%v\nbeside the pane's\n%v", got, table)
	}
	t.Errorf("the metrics have\n%s", said)
}
