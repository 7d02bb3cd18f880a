// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"strings"
	"testing"
)

// told lists the keys of what Effective has made, as the reference writes them.
func told(v any, at string, out map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			out[join(at, key)] = true
			told(inner, join(at, key), out)
		}
	case []any:
		for _, inner := range v {
			out[at+"[]"] = true
			told(inner, at+"[]", out)
		}
	}
}

// Each key of the file is told under its own name, and what may be a secret is not.
func TestEffective(t *testing.T) {
	const more = `
routes:
  - name: a
    headers: [{name: X-Want, equal: SECRET1}, {name: X-Begin, prefix: SECRET2}]
    upstream: app
    request_headers: {set: [{name: Authorization, value: SECRET3}], add: [{name: X-More, value: SECRET4}], remove: [X-Gone]}
    reply_headers: {set: [{name: X-Reply, value: SECRET5}], add: [{name: X-Add, value: SECRET6}], remove: [Server]}
    timeouts: {header: 1s, body: 1s, total: 2s}
    body_bytes: 10k
    mirror: app
    cors: {allow_origins: ["https://a.example"], allow_methods: [GET], allow_headers: [X-A], expose_headers: [X-B]}
    keys: {scopes: [read], headers: [X-Key]}
  - {name: b, path: /b, maintenance: {enabled: true, body: "SECRET7"}, reply: {body: "SECRET8"}}
  - {name: c, path_exact: /c, redirect: {location: /d}}
  - {name: d, path_regex: "/d[0-9]", methods: [GET], listeners: [":1"], split: [{upstream: app}]}
  - {name: e, path: /e, upstream: app, rewrite: {host: x.example, strip_prefix: /e, add_prefix: /f}}
  - {name: f, path: /f, upstream: app, rewrite: {regex: "/f(.*)", replacement: "/g$1"}}
upstreams:
  - {name: app, servers: ["127.0.0.1:1"], health: {host: a.example}, tls: {server_name: a.example}}
listeners:
  - {address: ":1", certificates: [{certificate: a, key: b, ocsp: c}], client_certificates: {mode: require, ca: d}}
  - {address: ":2", server_names: [a.example]}
interfaces: [{name: eth0}]
allow: [192.0.2.1]
deny: [192.0.2.2]
admin: [{source: 192.0.2.3}]
port_guard: {tcp: [22], udp: [53]}
packet_limits: [{name: p, key: port, count: syns, port: 443, rate: 5}]
client_address: {trusted: [192.0.2.4]}
admin_api: {server_names: [a.example], certificate: a, key: b, client_ca: c, clients: [{subject: alice, role: admin}]}
telemetry: {certificate: a, key: b}
session_tickets: {file: k}
log: {sampling: [{routes: [a], share: 0.5, slow: 1s}], redact: [token]}
redis: {address: "127.0.0.1:6379", user: u, password_file: p}
`
	c, err := Parse("gateway.yaml", []byte(more), nil)
	if err != nil {
		t.Fatal(err)
	}
	shown := c.Effective()
	asJSON, err := json.Marshal(shown)
	if err != nil {
		t.Fatal(err)
	}
	if at := strings.Index(string(asJSON), "SECRET"); at >= 0 && !strings.HasPrefix(string(asJSON[at:]), "SECRET7") {
		t.Errorf("a secret is told: %s", asJSON[max(at-80, 0):at+20])
	}
	if shown["worker_connections"] != 16384 || shown["timeouts"].(map[string]any)["keepalive"] != "1m15s" || shown["overload_delay"] != "5ms" {
		t.Errorf("%s", asJSON)
	}
	keys := map[string]bool{}
	told(shown, "", keys)
	// Told in another way: by what they come to, or with a scalar's parts apart.
	other := map[string]bool{"routes[].keys.mode": true, "upstreams[].health.status": true, "upstreams[].health.service": true,
		"listeners[].certificate": true, "listeners[].key": true} // the first of certificates
	for _, row := range reference(gateway(&Config{}), "") {
		key, _, _ := strings.Cut(row, " ")
		if !keys[key] && !other[key] {
			t.Errorf("%s is not told", key)
		}
	}
	for _, row := range reference(buffers(&Buffers{}), "buffers.conf") {
		key, _, _ := strings.Cut(row, " ")
		if !keys[key] {
			t.Errorf("%s is not told", key)
		}
	}
}
