// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"crypto/tls"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// What upstreams are told of the client, by what it said and whom it is.
func TestClientAddress(t *testing.T) {
	here := netip.MustParsePrefix("127.0.0.0/8")
	near := netip.MustParsePrefix("10.0.0.0/8")
	xff, rfc := "X-Forwarded-For", "Forwarded"
	for _, row := range []struct {
		name    string
		trusted []netip.Prefix
		header  string
		send    http.Header
		want    string // X-Forwarded-For of the request upstream
	}{
		{"nobody is trusted", nil, "", http.Header{xff: {"192.0.2.1"}}, "127.0.0.1"},
		{"another is trusted", []netip.Prefix{near}, xff, http.Header{xff: {"192.0.2.1"}}, "127.0.0.1"},
		{"trusted, and says nothing", []netip.Prefix{here}, xff, nil, "127.0.0.1"},
		{"trusted", []netip.Prefix{here}, xff, http.Header{xff: {"192.0.2.1"}}, "192.0.2.1, 127.0.0.1"},
		{"the wrong field", []netip.Prefix{here}, xff, http.Header{"X-Real-Ip": {"192.0.2.1"}, rfc: {"for=192.0.2.2"}}, "127.0.0.1"},
		{"forged before a real one", []netip.Prefix{here}, xff, http.Header{xff: {"10.9.9.9, 198.51.100.4, 192.0.2.1"}}, "192.0.2.1, 127.0.0.1"},
		{"through two", []netip.Prefix{here, near}, xff, http.Header{xff: {"198.51.100.4, 192.0.2.1, 10.0.0.3"}}, "192.0.2.1, 10.0.0.3, 127.0.0.1"},
		{"in two fields", []netip.Prefix{here, near}, xff, http.Header{xff: {"192.0.2.1", "10.0.0.3"}}, "192.0.2.1, 10.0.0.3, 127.0.0.1"},
		{"all of them trusted", []netip.Prefix{here, near}, xff, http.Header{xff: {"10.0.0.3"}}, "10.0.0.3, 127.0.0.1"},
		{"no address", []netip.Prefix{here}, xff, http.Header{xff: {"unknown"}}, "127.0.0.1"},
		{"no address further back", []netip.Prefix{here, near}, xff, http.Header{xff: {"192.0.2.1, _x, 10.0.0.3"}}, "10.0.0.3, 127.0.0.1"},
		{"with a port", []netip.Prefix{here}, xff, http.Header{xff: {"192.0.2.1:4711"}}, "192.0.2.1, 127.0.0.1"},
		{"IPv6", []netip.Prefix{here}, xff, http.Header{xff: {"2001:db8::1"}}, "2001:db8::1, 127.0.0.1"},
		{"IPv6 in brackets", []netip.Prefix{here}, xff, http.Header{xff: {"[2001:db8::1]:443"}}, "2001:db8::1, 127.0.0.1"},
		{"IPv6 with a zone", []netip.Prefix{here}, xff, http.Header{xff: {"fe80::1%eth0"}}, "127.0.0.1"},
		{"mapped", []netip.Prefix{here}, xff, http.Header{xff: {"::ffff:192.0.2.1"}}, "192.0.2.1, 127.0.0.1"},
		{"RFC 7239", []netip.Prefix{here}, rfc, http.Header{rfc: {"for=192.0.2.1;proto=https"}}, "192.0.2.1, 127.0.0.1"},
		{"RFC 7239, quoted", []netip.Prefix{here}, rfc, http.Header{rfc: {`proto=http; For="[2001:db8::1]:80"`}}, "2001:db8::1, 127.0.0.1"},
		{"RFC 7239, a comma in quotes", []netip.Prefix{here, near}, rfc, http.Header{rfc: {`for=192.0.2.1, for=10.0.0.3;by="a,b"`}}, "192.0.2.1, 10.0.0.3, 127.0.0.1"},
		{"RFC 7239, hidden", []netip.Prefix{here}, rfc, http.Header{rfc: {"for=_hidden"}}, "127.0.0.1"},
		{"more than anybody has", []netip.Prefix{here, near}, xff, http.Header{xff: {strings.Repeat("10.0.0.1, ", 40) + "10.0.0.2"}}, "10.0.0.1" + strings.Repeat(", 10.0.0.1", 14) + ", 10.0.0.2, 127.0.0.1"},
	} {
		for _, h2 := range []bool{false, true} {
			var got http.Header
			up := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header })}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go up.Serve(l)
			g := newGateway(t, []string{l.Addr().String()}, func(s *policy.Snapshot) {
				s.Client = policy.ClientAddress{Trusted: row.trusted, Header: row.header}
			})
			r, _ := http.NewRequest("GET", g.url("/"), nil)
			r.Header = row.send.Clone()
			resp, err := g.client(h2).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if v := got.Values("X-Forwarded-For"); len(v) != 1 || v[0] != row.want {
				t.Errorf("%s, h2 %t: upstream is told %q, want %q", row.name, h2, v, row.want)
			}
			if got.Get("Forwarded") != "" || got.Get("X-Real-Ip") != "" {
				t.Errorf("%s, h2 %t: the client's own word went upstream: %v", row.name, h2, got)
			}
			g.stop()
			up.Close()
		}
	}
}

// proxyV2 is a header of version 2.
func proxyV2(command, family byte, body []byte) string {
	b := append([]byte{}, proxyV2Signature...)
	b = append(b, 0x20|command, family)
	return string(append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...))
}

var proxyRows = []struct {
	name, header string
	want         string // address, "" for none, - for a fault
}{
	{"version 1", "PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n", "192.0.2.1:4711"},
	{"version 1, IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "[2001:db8::1]:4711"},
	{"version 1, unknown", "PROXY UNKNOWN\r\n", ""},
	{"version 1, unknown and more", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", ""},
	{"version 1 without carriage return", "PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\n", "-"},
	{"version 1, wrong family", "PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n", "-"},
	{"version 1, port out of range", "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n", "-"},
	{"version 1, port with zeros", "PROXY TCP4 192.0.2.1 198.51.100.1 0443 443\r\n", "-"},
	{"version 1, no ports", "PROXY TCP4 192.0.2.1 198.51.100.1\r\n", "-"},
	{"version 1, two spaces", "PROXY TCP4  192.0.2.1 198.51.100.1 4711 443\r\n", "-"},
	{"version 1 without end", "PROXY TCP4 " + strings.Repeat("1", 200), "-"},
	{"version 2", proxyV2(1, 0x11, []byte{192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x67, 1, 0xbb}), "192.0.2.1:4711"},
	{"version 2 with more behind", proxyV2(1, 0x11, append([]byte{192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x67, 1, 0xbb}, make([]byte, 300)...)), "192.0.2.1:4711"},
	{"version 2, IPv6", proxyV2(1, 0x21, append(append(netip.MustParseAddr("2001:db8::1").AsSlice(), make([]byte, 16)...), 0x12, 0x67, 1, 0xbb)), "[2001:db8::1]:4711"},
	{"version 2, local", proxyV2(0, 0, nil), ""},
	{"version 2, unspecified", proxyV2(1, 0, []byte{1, 2, 3}), ""},
	{"version 2, too short", proxyV2(1, 0x11, []byte{192, 0, 2, 1}), "-"},
	{"version 2, datagrams", proxyV2(1, 0x12, make([]byte, 12)), "-"},
	{"version 2, too long", proxyV2(1, 0x11, make([]byte, 5000)), "-"},
	{"version 3", strings.Replace(proxyV2(1, 0x11, make([]byte, 12)), "\n\x21", "\n\x31", 1), "-"},
	{"none", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00", "-"},
}

func TestProxyHeader(t *testing.T) {
	for _, row := range proxyRows {
		r := strings.NewReader(row.header + "the rest")
		got, err := readProxyHeader(r)
		switch {
		case row.want == "-":
			if err == nil {
				t.Errorf("%s: taken for %s", row.name, got)
			}
			continue
		case err != nil:
			t.Errorf("%s: %v", row.name, err)
			continue
		case row.want == "" && got.IsValid(), row.want != "" && got.String() != row.want:
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "the rest" {
			t.Errorf("%s: left %q", row.name, rest)
		}
		for cut := range row.header {
			if got, err := readProxyHeader(strings.NewReader(row.header[:cut])); err == nil {
				t.Errorf("%s, cut at %d: taken for %s", row.name, cut, got)
			}
		}
	}
}

func FuzzProxyHeader(f *testing.F) {
	for _, row := range proxyRows {
		f.Add([]byte(row.header))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		a, err := readProxyHeader(r)
		if err == nil && a.IsValid() && a.Addr().Zone() != "" {
			t.Errorf("an address with a zone: %s", a)
		}
		if used := len(b) - r.Len(); used > proxyV2Longest+16 {
			t.Errorf("%d bytes were read", used)
		}
	})
}

// A trusted proxy's header names the client; anybody else's is no TLS; and a trusted one
// that sends none is refused, since whose connection it is nobody knows.
func TestProxyProtocol(t *testing.T) {
	var told string
	up := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { told = r.Header.Get("X-Forwarded-For") })}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go up.Serve(l)
	defer up.Close()
	for _, row := range []struct {
		name, header string
		trusted      string
		want         string // "" when the connection is refused
		outcome      zone.HandshakeOutcome
	}{
		{"trusted", "PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n", "127.0.0.1/32", "192.0.2.1", 0},
		{"trusted, local", proxyV2(0, 0, nil), "127.0.0.1/32", "127.0.0.1", 0},
		{"trusted, without", "", "127.0.0.1/32", "", zone.HandshakeProxy},
		{"not trusted", "PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n", "10.0.0.0/8", "", zone.HandshakeNotTLS},
		{"not trusted, without", "", "10.0.0.0/8", "127.0.0.1", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, []string{l.Addr().String()}, func(s *policy.Snapshot) {
				s.Client = policy.ClientAddress{Trusted: []netip.Prefix{netip.MustParsePrefix(row.trusted)}, ProxyProtocol: true}
			})
			told = ""
			nc, err := net.Dial("tcp", g.address)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.WriteString(nc, row.header); err != nil {
				t.Fatal(err)
			}
			tc := tls.Client(nc, g.tlsConfig("http/1.1"))
			err = tc.Handshake()
			if row.want == "" {
				if err == nil {
					t.Error("the handshake went well")
				}
				eventually(t, "counted as "+row.outcome.String(), func() bool { return g.slab.LoadHandshake(row.outcome) == 1 })
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := &raw{Conn: tc, t: t}
			c.send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			if b, err := io.ReadAll(tc); err != nil && !errors.Is(err, io.EOF) || !bytes.HasPrefix(b, []byte("HTTP/1.1 200")) {
				t.Fatalf("%q, %v", b, err)
			}
			if told != row.want {
				t.Errorf("upstream is told %q, want %q", told, row.want)
			}
		})
	}
}
