// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/zone"
)

func TestRedaction(t *testing.T) {
	x := newRedaction(config.Defaults().Log.Redact)
	for _, tt := range []struct{ sent, want string }{
		{"/", "/"},
		{"/a?b=c", "/a?b=c"},
		{"/a?token=s3cret", "/a?token=***"},
		{"/a?b=c&token=s3cret&d=e", "/a?b=c&token=***&d=e"},
		{"/a?TOKEN=s3cret&Api-Key=s3cret&apikey=s3cret&access_token=s3cret", "/a?TOKEN=***&Api-Key=***&apikey=***&access_token=***"},
		{"/a?tokens=kept&mytoken=kept&monkey=kept", "/a?tokens=kept&mytoken=kept&monkey=kept"},
		{"/a?token=", "/a?token="},
		{"/a?token", "/a?token"},
		{"/a?token=s3cret?s3cret;s3cret#s3cret/s3cret=s3cret", "/a?token=***"},
		{"/a?token=s3cret%26s3cret&b=c", "/a?token=***&b=c"},
		{"/a?%74oken=s3cret&t%4Fken=s3cret", "/a?%74oken=***&t%4Fken=***"},
		{"/a?user[password]=s3cret&user%5Bpassword%5D=s3cret&auth.token=s3cret&token[]=s3cret", "/a?user[password]=***&user%5Bpassword%5D=***&auth.token=***&token[]=***"},
		{"/a?next=https%3A%2F%2Fb%2F%3Ftoken%3Ds3cret%26c%3Dd&e=f", "/a?next=https%3A%2F%2Fb%2F%3Ftoken%3D***%26c%3Dd&e=f"},
		{"/a;token=s3cret/b", "/a;token=***"},
		{"/a?b=c;token=s3cret", "/a?b=c;token=***"},
		{"/a#access_token=s3cret&b=c", "/a#access_token=***&b=c"},
		{"https://user:s3cret@example.com/a?b=c", "https://***@example.com/a?b=c"},
		{"https://site.example/x?next=https://user:s3cret@h/&email=a@b", "https://site.example/x?next=https://***@h/&email=a@b"},
		{"/x?next=https%3A%2F%2Fuser%3As3cret%40h%2F", "/x?next=https%3A%2F%2F***%40h%2F"},
		{"https://user:s3cret&s3cret@example.com/", "https://***@example.com/"},
		{"https://user:s3cret@s3cret@example.com/?token=s3cret", "https://***@example.com/?token=***"},
		{"https://example.com/a@b", "https://example.com/a@b"},
		{"//s3cret@example.com", "//***@example.com"},
		{"/xgw_alice_s3crets3crets3cret", "/xgw_alice_***"},
		{"/a?q=xgw_alice_s3cret/s3cret&b=c", "/a?q=xgw_alice_***&b=c"},
		{"/xgw_/xgw_a", "/xgw_/xgw_a"},
		{"/a?token=s3cret&token=s3cret", "/a?token=***&token=***"},
		{"/a?%&token=s3cret%", "/a?%&token=***"},
		{"/a?%zz%3=c&=x&==", "/a?%zz%3=c&=x&=="},
	} {
		r := zone.AccessRecord{Target: []byte(tt.sent), Referer: []byte(tt.sent)}
		sent := bytes.Clone(r.Target)
		x.apply(&r)
		if string(r.Target) != tt.want || string(r.Referer) != tt.want {
			t.Errorf("%s: got %s and %s, want %s", tt.sent, r.Target, r.Referer, tt.want)
		}
		again := zone.AccessRecord{Target: sent}
		if none := newRedaction(nil); !strings.ContainsAny(tt.want, "@") && !strings.Contains(tt.want, "%40") && !strings.Contains(tt.want, "xgw_") {
			if none.apply(&again); string(again.Target) != tt.sent {
				t.Errorf("%s: without a list it is %s", tt.sent, again.Target)
			}
		}
	}
}

// What is left is what was sent but for values, and no value of the list's is left.
func FuzzRedaction(f *testing.F) {
	for _, s := range []string{"/a?token=s", "/?a=b&user%5Btoken%5D=c%26", "https://a:b@c/", "/%3Ftoken%3Dx%26", "/xgw_a_b", "%", "/?%3", "//@"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		if bytes.Contains(s, []byte(redacted)) {
			t.Skip()
		}
		x := newRedaction([]string{"token"})
		r := zone.AccessRecord{Target: bytes.Clone(s)}
		x.apply(&r)
		rest := s
		for i, part := range bytes.Split(r.Target, []byte(redacted)) {
			at := bytes.Index(rest, part)
			if at < 0 || i == 0 && at > 0 {
				t.Fatalf("%q of %q", r.Target, s)
			}
			rest = rest[at+len(part):]
		}
		for i, part := range bytes.Split(r.Target, []byte("&")) {
			if v, ok := bytes.CutPrefix(part, []byte("token=")); ok && i > 0 && len(v) > 0 && string(v) != redacted {
				t.Fatalf("%q of %q", r.Target, s)
			}
		}
	})
}

func TestRedactionAllocatesNothing(t *testing.T) {
	x := newRedaction([]string{"token"})
	target := []byte("/a?b=c&token=s3cret&user%5Btoken%5D=s3cret&d=e")
	r := zone.AccessRecord{Target: target}
	x.apply(&r)
	if n := testing.AllocsPerRun(200, func() { r.Target = target; x.apply(&r) }); n != 0 {
		t.Errorf("a record allocates %v times", n)
	}
}
