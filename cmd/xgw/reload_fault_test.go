// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

// A reload that fails, at whichever of its steps, leaves the generation before whole on both
// planes: rules at each interface, limits of packets and of requests, routes and listeners.
func TestReloadThatFailsAtAStep(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwstep")
	const instance = "reloadstep"
	dir := t.TempDir()
	fault := filepath.Join(dir, "fault")
	t.Setenv("XGW_TEST_FAULT", fault)
	write := func(denied, limited string, generation int) string {
		text := gatewayYAML(dir, ":443", "203.0.113.2:8080", fmt.Sprintf("workers: 2\ninterfaces: [{name: edge0, mode: native}, {name: back0, mode: native}]\ndeny: [%s]\n", denied))
		text = strings.Replace(text, "routes:\n", fmt.Sprintf("routes:\n  - {name: said, path: /, reply: {status: 200, body: \"%d\"}}\n", generation), 1)
		text = strings.Replace(text, "  - {name: all, path: /,", "  - {name: all, path: /back,", 1)
		rewrite(t, filepath.Join(dir, "gateway.yaml"), text)
		rewrite(t, filepath.Join(dir, "ratelimit.lua"), fmt.Sprintf(`limit_req{name = "each", key = function(r) return r:header(%q) end, rate = "1r/h"}
packet_limit{name = "flood", key = "queue", count = "packets", rate = %d}`, limited, 1_000_000+generation))
		return text
	}
	rewrite(t, fault, "")
	g := startGateway(t, inHost(l, lab.Gateway), instance, dir, write("192.0.2.96/32", "X-Old", 1))
	c := newClientIn(l)
	ask := func(header, value string) (int, string) {
		req, _ := http.NewRequest("GET", "https://"+strings.Replace(g.address, "[::]", "198.51.100.2", 1)+"/", nil)
		req.Header.Set(header, value)
		r, err := c.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(body)
	}
	denies := func(when, source string) {
		t.Helper()
		for _, nic := range []string{"edge0", "back0"} {
			if out := mustXGW(t, l, "--instance", instance, "explain", nic, "--from", source, "--to", "443"); !strings.Contains(out, "drop_deny") {
				t.Errorf("%s: %s of %s is not denied\n%s", when, nic, source, out)
			}
		}
	}
	holds := func(when, limited string, generation int) {
		t.Helper()
		if status, body := ask("X-None", "x"); status != 200 || body != fmt.Sprint(generation) {
			t.Errorf("%s: %d %q: want the reply of generation %d", when, status, body, generation)
		}
		for i, want := range []int{200, 429} {
			if status, _ := ask(limited, when); status != want {
				t.Errorf("%s: request %d by %s: %d, want %d", when, i, limited, status, want)
			}
		}
	}
	holds("at first", "X-Old", 1)
	write("192.0.2.97/32", "X-New", 2)
	for _, step := range []string{"listeners", "secrets", "prepared", "pinholes edge0", "tables edge0", "tables back0", "tables back0 --confirm 60s"} {
		at, confirm, confirmed := strings.Cut(step, " --confirm ")
		args := []string{"--instance", instance, "ctl", "reload"}
		if confirmed {
			args = append(args, "--confirm", confirm)
		}
		rewrite(t, fault, at)
		if out, err := xgwIn(t, l, args...); err == nil || !strings.Contains(out, "made to fail at "+at) {
			t.Errorf("%s: %v\n%s", step, err, out)
		}
		holds(step, "X-Old", 1)
		if strings.Contains(step, " ") { // the kernel plane was touched
			denies(step, "192.0.2.96")
		}
	}
	rewrite(t, fault, "")
	mustXGW(t, l, "--instance", instance, "ctl", "reload", "--confirm", "8s")
	holds("with nothing in the way", "X-New", 2)
	// It was not confirmed: limits of the script go back with all the rest.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, body := ask("X-None", "x"); body == "1" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the workers did not go back")
		}
	}
	holds("not confirmed", "X-Old", 1)
	denies("not confirmed", "192.0.2.96")
}
