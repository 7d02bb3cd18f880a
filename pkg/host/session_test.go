// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAdminSession(t *testing.T) {
	for _, c := range []struct {
		variable string
		source   string
		port     uint16
	}{
		{"198.51.100.7 54321 192.0.2.10 22", "198.51.100.7", 22},
		{"2001:db8:1::7 54321 2001:db8::1 2222", "2001:db8:1::7", 2222},
		{"::ffff:198.51.100.7 1 ::ffff:192.0.2.10 22", "198.51.100.7", 22},
		{"fe80::7%eth0 1 fe80::1%eth0 22", "fe80::7", 22},
		{"", "", 0},
		{"198.51.100.7 54321 192.0.2.10", "", 0},
		{"198.51.100.7 54321 192.0.2.10 0", "", 0},
		{"198.51.100.7 54321 192.0.2.10 65536", "", 0},
		{"client 54321 192.0.2.10 22", "", 0},
	} {
		source, port, ok := AdminSession(c.variable)
		if ok != (c.source != "") || ok && source != netip.MustParseAddr(c.source) || port != c.port {
			t.Errorf("%q: %v, %d, %v", c.variable, source, port, ok)
		}
	}
}

// The sockets of the fixtures are written as a little-endian machine has them.
func TestPinholes(t *testing.T) {
	for _, c := range []struct {
		what, root, variable string
		want                 []string
	}{
		{"sshd on 2222", "sshd", "198.51.100.7 54321 192.0.2.10 2222", []string{
			"198.51.100.7/32 2222 this session", // once, though its socket is seen too
			"198.51.100.8/32 2222 a connection to sshd",
			"2001:db8:1::7/128 2222 a connection to sshd",
			"198.51.100.11/32 2222 a connection to sshd",
		}},
		{"systemd listens", "activated", "", []string{"198.51.100.9/32 22 a connection to sshd"}},
		{"broken lines", "broken", "", nil},
		{"no proc", "nowhere", "203.0.113.5 1 192.0.2.10 22", []string{"203.0.113.5/32 22 this session"}},
		{"over loopback", "nowhere", "127.0.0.1 1 127.0.0.1 22", nil},
	} {
		var got []string
		for _, p := range Pinholes("testdata/sessions/"+c.root, c.variable) {
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s %d %s", p.Source, p.Port, p.Why)))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}
