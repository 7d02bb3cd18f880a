// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// corsOf renders the CORS fields of a reply.
func corsOf(h interface{ Values(string) []string }) string {
	out := ""
	for _, name := range []string{"Allow-Origin", "Allow-Credentials", "Allow-Methods", "Allow-Headers", "Max-Age", "Expose-Headers"} {
		for _, v := range h.Values("Access-Control-" + name) {
			out += fmt.Sprintf("%s=%s;", name, v)
		}
	}
	return out
}

// Preflights are answered without the upstream; on other requests the upstream's own
// fields give way to those of the route.
func TestCORS(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		up := newWitness(t, "up") // says Access-Control-Allow-Origin: https://upstream.example
		named := &policy.CORS{
			AllowOrigins: []string{"https://app.test", "https://*.many.test:8443"}, AllowMethods: []string{"PUT", "DELETE"},
			AllowHeaders: []string{"X-Token", "Content-Type"}, ExposeHeaders: []string{"X-Twice"}, Credentials: true, MaxAge: 5 * time.Minute,
		}
		g := routed(t, []*witness{up},
			policy.Route{PathPrefix: "/named", CORS: named},
			policy.Route{PathPrefix: "/any", CORS: &policy.CORS{AllowOrigins: []string{"*"}}},
			policy.Route{PathPrefix: "/posts", Methods: []string{"POST"}, Headers: []policy.HeaderMatch{{Name: "X-Token"}}, CORS: &policy.CORS{AllowOrigins: []string{"*"}}},
			policy.Route{PathPrefix: "/posts"},
			policy.Route{PathPrefix: "/none"},
			policy.Route{PathPrefix: "/closed", CORS: named, Maintenance: &policy.Maintenance{}},
			policy.Route{PathPrefix: "/down", CORS: named, Reply: &policy.Reply{Status: 502}},
		)
		client := g.client(h2)
		const asked, origin = "Access-Control-Request-Method", "Origin"
		named200 := "Allow-Origin=https://app.test;Allow-Credentials=true;Expose-Headers=X-Twice;"
		for _, row := range []struct {
			name, method, target string
			fields               []string
			status, forwarded    int
			cors, vary           string
		}{
			{"preflight", "OPTIONS", "/named", []string{origin, "https://app.test", asked, "PUT"}, 204, 0,
				"Allow-Origin=https://app.test;Allow-Credentials=true;Allow-Methods=PUT, DELETE;Allow-Headers=X-Token, Content-Type;Max-Age=300;Expose-Headers=X-Twice;", "[Origin]"},
			{"preflight below", "OPTIONS", "/named", []string{origin, "https://a.b.many.test:8443", asked, "DELETE"}, 204, 0,
				"Allow-Origin=https://a.b.many.test:8443;Allow-Credentials=true;Allow-Methods=PUT, DELETE;Allow-Headers=X-Token, Content-Type;Max-Age=300;Expose-Headers=X-Twice;", "[Origin]"},
			{"another origin", "OPTIONS", "/named", []string{origin, "https://evil.test", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"another scheme", "OPTIONS", "/named", []string{origin, "http://app.test", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"origin as prefix", "OPTIONS", "/named", []string{origin, "https://app.test.evil.test", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"the domain itself", "OPTIONS", "/named", []string{origin, "https://many.test:8443", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"forged below", "OPTIONS", "/named", []string{origin, "https://evil.test/.many.test:8443", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"forged user", "OPTIONS", "/named", []string{origin, "https://evil.test:1@x.many.test:8443", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"null", "OPTIONS", "/named", []string{origin, "null", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"two origins", "GET", "/named", []string{origin, "https://app.test", origin, "https://evil.test"}, 200, 1, "", "[Origin]"},
			{"another method", "OPTIONS", "/named", []string{origin, "https://app.test", asked, "GET"}, 403, 0, named200, "[Origin]"},
			{"no preflight", "OPTIONS", "/named", []string{origin, "https://app.test"}, 200, 1, named200, "[Origin]"},
			{"request", "PUT", "/named", []string{origin, "https://app.test"}, 200, 1, named200, "[Origin]"},
			{"request of another", "PUT", "/named", []string{origin, "https://evil.test"}, 200, 1, "", "[Origin]"},
			{"request without origin", "GET", "/named", nil, 200, 1, "", "[Origin]"},
			{"any preflight", "OPTIONS", "/any", []string{origin, "https://x.test", asked, "POST"}, 204, 0, "Allow-Origin=*;Allow-Methods=GET, HEAD, POST;Max-Age=0;", "[]"},
			{"any", "GET", "/any", []string{origin, "https://x.test"}, 200, 1, "Allow-Origin=*;", "[]"},
			{"preflight for the route's method", "OPTIONS", "/posts", []string{origin, "https://x.test", asked, "POST"}, 204, 0, "Allow-Origin=*;Allow-Methods=POST;Max-Age=0;", "[]"},
			{"preflight for another route", "OPTIONS", "/posts", []string{origin, "https://x.test", asked, "PUT"}, 200, 1, "Allow-Origin=https://upstream.example;", "[]"},
			{"no CORS", "OPTIONS", "/none", []string{origin, "https://x.test", asked, "PUT"}, 200, 1, "Allow-Origin=https://upstream.example;", "[]"},
			{"a page can see maintenance", "PUT", "/closed", []string{origin, "https://app.test"}, 503, 0, named200, "[Origin]"},
			{"and ask before", "OPTIONS", "/closed", []string{origin, "https://evil.test", asked, "PUT"}, 403, 0, "", "[Origin]"},
			{"and other replies", "PUT", "/down", []string{origin, "https://app.test"}, 502, 0, named200, "[Origin]"},
		} {
			resp, _ := g.ask(client, row.method, "", row.target, row.fields...)
			if got := corsOf(resp.Header); resp.StatusCode != row.status || got != row.cors || fmt.Sprint(resp.Header.Values("Vary")) != row.vary {
				t.Errorf("%s: %d, %q, vary %v; want %d, %q, %s", row.name, resp.StatusCode, got, resp.Header.Values("Vary"), row.status, row.cors, row.vary)
			}
			if n := len(up.taken()); n != row.forwarded {
				t.Errorf("%s: the upstream got %d requests, want %d", row.name, n, row.forwarded)
			}
		}
		if n := g.slab.LoadRequest(zone.RequestRouteReply); n == 0 {
			t.Error("preflights are not counted")
		}
	})
}
