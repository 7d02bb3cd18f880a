// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xgw-project/xgw/pkg/policy"
)

func example(tcp ...uint16) *policy.Policy {
	return &policy.Policy{
		Tables: policy.Tables{PortGuard: policy.PortGuard{TCP: tcp, UDP: []uint16{53}}},
		Pinholes: []policy.Pinhole{
			{Source: netip.MustParsePrefix("192.0.2.0/28"), Port: 22}, {Source: netip.MustParsePrefix("2001:db8::7/128"), Port: 22},
			{Source: netip.MustParsePrefix("0.0.0.0/0"), Port: 2222}, {Source: netip.MustParsePrefix("::/0"), Port: 2223},
		},
	}
}

func TestText(t *testing.T) {
	f := New("blue", example(25, 443, 8000, 8001, 8002, 65535))
	text := f.Text()
	for _, line := range []string{
		"table inet xgw-blue {",
		"tcp dport { 25, 443, 8000-8002, 65535 } accept",
		"udp dport 53 accept",
		"ip saddr 192.0.2.0/28 tcp dport 22 accept",
		"ip6 saddr 2001:db8::7 tcp dport 22 accept",
		"meta nfproto ipv4 tcp dport 2222 accept",
		"meta nfproto ipv6 tcp dport 2223 accept",
		`counter name "dropped" drop`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
	if !strings.HasPrefix(text, "table inet xgw-blue\ndelete table inet xgw-blue\n") {
		t.Errorf("it does not replace what there was:\n%s", text)
	}
	if again := New("blue", example(25, 443, 8000, 8001, 8002, 65535)).Text(); again != text {
		t.Error("the same policy is another text")
	}
	if New("blue", example(25)).digest == f.digest {
		t.Error("another policy has the same digest")
	}
}

func TestAdmits(t *testing.T) {
	f := New("", example(0, 443, 8000, 8001, 8002, 65535))
	for _, row := range []struct {
		source string
		port   uint16
		want   bool
	}{
		{"198.51.100.9", 443, true}, {"198.51.100.9", 442, false}, {"198.51.100.9", 8001, true}, {"198.51.100.9", 8003, false},
		{"198.51.100.9", 65535, true}, {"198.51.100.9", 22, false}, {"192.0.2.15", 22, true}, {"192.0.2.16", 22, false},
		{"::ffff:192.0.2.1", 22, true}, {"2001:db8::7", 22, true}, {"2001:db8::8", 22, false}, {"fe80::1%eth0", 2223, true},
		{"198.51.100.9", 2222, true}, {"198.51.100.9", 2223, false}, {"127.0.0.1", 22, true}, {"198.51.100.9", 53, false},
	} {
		if got := f.Admits(netip.MustParseAddr(row.source), row.port); got != row.want {
			t.Errorf("%s to %d: %v", row.source, row.port, got)
		}
	}
}

// Ranges end where the set of the kernel says so, and long lists are several rules.
func TestPorts(t *testing.T) {
	var odd []uint16
	for p := 1; p < 4*mostPorts; p += 2 {
		odd = append(odd, uint16(p))
	}
	rules := served(tcpDestination, ranges(odd))
	if len(rules) != 2 || len(rules[0].matches[0].in) != 2*mostPorts+1 {
		t.Errorf("%d rules, %d elements", len(rules), len(rules[0].matches[0].in))
	}
	m := onPorts(udpDestination, ranges([]uint16{0, 1, 5, 65534, 65535}))
	var got []string
	for _, e := range m.in {
		s := string(e.Key)
		if e.IntervalEnd {
			s += " end"
		}
		got = append(got, s)
	}
	if diff := cmp.Diff([]string{"\x00\x00", "\x00\x02 end", "\x00\x05", "\x00\x06 end", "\xff\xfe"}, got); diff != "" {
		t.Error(diff)
	}
	if m.text != "udp dport { 0-1, 5, 65534-65535 }" {
		t.Error(m.text)
	}
}
