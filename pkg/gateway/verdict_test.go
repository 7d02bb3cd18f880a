// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Of what operators type after `verdicts add`, which is taken, and for whom.
func TestParseVerdict(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8::7": "2001:db8::/64", "2001:db8:0:0:1::/64": "2001:db8::/64", "fe80::1": "fe80::/64",
		"": "", "x": "", "127.0.0.1": "", "::1": "", "::ffff:127.0.0.1": "", "0.0.0.0": "", "::": "", "224.0.0.1": "", "ff02::1": "", "255.255.255.255": "",
		"::ffff:224.0.0.1": "", "::ffff:0.0.0.0": "", "fe80::1%eth0": "", "192.0.2.7/64": "", "::ffff:192.0.2.7/64": "", "192.0.2.0/24": "", "2001:db8::/48": "", "2001:db8::/64/64": "", "192.0.2.7:80": "", " 192.0.2.7": "",
		"::2": "", "0:ffff:c000:207::1": "", "64:ff9b::7": "64:ff9b::/64",
	} {
		a, step, err := parseVerdict(admin.AddVerdict{Source: text, Step: "all", TTL: time.Minute})
		if want == "" {
			if !errors.Is(err, admin.ErrInvalid) {
				t.Errorf("%q is taken for %v, %v", text, a, err)
			}
			continue
		}
		if err != nil || source(policy.KeyAddress(policy.AddressKey(a))) != want || step != policy.DropAll {
			t.Errorf("%q: %v, %v, %v: want %s", text, a, step, err, want)
		}
	}
	for name, ask := range map[string]admin.AddVerdict{
		"no step": {TTL: time.Minute}, "short": {Step: "thin", TTL: time.Second - 1}, "long": {Step: "thin", TTL: 720*time.Hour + 1},
		"backwards": {Step: "thin", TTL: -time.Minute}, "much text": {Step: "thin", TTL: time.Minute, Note: strings.Repeat("x", 201)},
	} {
		ask.Source = "192.0.2.7"
		if _, _, err := parseVerdict(ask); !errors.Is(err, admin.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever is typed: it is refused as invalid, or it names a client's address that list prints
// and del takes again.
func FuzzParseVerdict(f *testing.F) {
	for _, text := range []string{"192.0.2.7", "2001:db8::7", "2001:db8::/64", "::ffff:192.0.2.7", "fe80::1%eth0", "127.0.0.1", "224.0.0.1", "", "192.0.2.0/24", "x"} {
		f.Add(text, "all", int64(10*time.Minute), "scrapes\nthe shop")
	}
	f.Add("192.0.2.7", "thin", int64(time.Second), "")
	f.Add("192.0.2.7", "new", int64(-1), strings.Repeat("x", 201))
	f.Fuzz(func(t *testing.T, text, step string, ttl int64, note string) {
		a, s, err := parseVerdict(admin.AddVerdict{Source: text, Step: step, TTL: time.Duration(ttl), Note: note})
		if err != nil {
			if !errors.Is(err, admin.ErrInvalid) {
				t.Errorf("refused, but not as invalid: %v", err)
			}
			return
		}
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			t.Errorf("%q is taken for %v", text, a)
		}
		if s.String() != step || ttl < int64(time.Second) || ttl > int64(720*time.Hour) || len(note) > 200 {
			t.Errorf("%q for %v with %d bytes is taken as %v", step, time.Duration(ttl), len(note), s)
		}
		shown := source(policy.KeyAddress(policy.AddressKey(a)))
		again, err := parseSource(shown)
		if err != nil || policy.AddressKey(again) != policy.AddressKey(a) {
			t.Errorf("%v is printed as %s, and that is %v, %v", a, shown, again, err)
		}
	})
}
