// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
)

// Routes of the file as a client of the program meets them: the body of a reply comes
// from a file that workers, users of their own, could not read.
func TestRoutesOfTheFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page.html"), []byte("<p>\xff\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := gatewayYAML(dir, "127.0.0.1:0", upstream(t), "")
	routes := `routes:
  - {name: page, path_exact: /page, reply: {file: page.html, content_type: text/html}}
  - {name: away, host: "*.example.com", redirect: {location: "https://example.com$path$query"}}
  - {name: old, path_regex: "/old/[0-9]+", rewrite: {regex: "/old/([0-9]+)", replacement: /bytes/$1}, reply_headers: {set: [{name: X-Old, value: "yes"}]}, upstream: back}
  - {name: soon, path: /soon, upstream: back, maintenance: {enabled: true, retry_after: 2m}}
`
	if !strings.Contains(text, "routes:\n") {
		t.Fatalf("no routes in\n%s", text)
	}
	g := startGateway(t, startHere, "routes", dir, strings.Replace(text, "routes:\n", routes, 1))
	for _, h2 := range []bool{false, true} {
		c := client(h2)
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, row := range []struct {
			host, path string
			status     int
			field      string
			value      string
			body       string
		}{
			{"", "/page", 200, "Content-Type", "text/html", "<p>\xff\x00"},
			{"www.example.com", "/x?y", 307, "Location", "https://example.com/x?y", ""},
			{"", "/old/5", 200, "X-Old", "yes", "*"},
			{"", "/soon", 503, "Retry-After", "120", "*"},
		} {
			req, _ := http.NewRequest("GET", "https://"+g.address+row.path, nil)
			if row.host != "" {
				req.Host = row.host
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != row.status || resp.Header.Get(row.field) != row.value || row.body != "*" && string(body) != row.body {
				t.Errorf("%s%s: %d %v %q", row.host, row.path, resp.StatusCode, resp.Header, body)
			}
		}
	}
}

// A thousand routes: reading, sending, compiling and changing over, with the answer that it
// is done.
func TestReloadOfThousandRoutes(t *testing.T) {
	const instance, most = "routes1000", 200 * time.Millisecond
	dir := t.TempDir()
	one := named(t, "one")
	text := func(generation int) string {
		var routes strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&routes, "  - {name: r%d, host: s%d.example.com, path: /v%d/things/%d, methods: [GET, POST], upstream: back}\n", i, i/8, generation, i)
		}
		return strings.Replace(gatewayYAML(dir, "127.0.0.1:0", one, "workers: 2\npin: false\n"), "routes:\n", "routes:\n"+routes.String(), 1)
	}
	startGateway(t, startHere, instance, dir, text(0))
	ctl := admin.NewClient(admin.SocketPath(instance))
	least := time.Hour
	for generation := range 10 {
		rewrite(t, filepath.Join(dir, "gateway.yaml"), text(generation+1))
		began := time.Now()
		if _, err := ctl.Reload(0); err != nil {
			t.Fatal(err)
		}
		least = min(least, time.Since(began))
	}
	t.Logf("1,000 routes in %s", least)
	if least > 5*most { // of a machine with nothing else to do
		t.Errorf("a reload of 1,000 routes takes %s, five times %s is too long", least, most)
	}
}
