// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xgw-project/xgw/pkg/config"
)

// Everything that a route can hold travels to the workers, and stays what it was
// when the configuration is changed behind the policy's back.
func TestRoutesTravel(t *testing.T) {
	text, err := os.ReadFile("testdata/routes_actions.txtar")
	if err != nil {
		t.Fatal(err)
	}
	yaml, _, _ := strings.Cut(strings.TrimPrefix(string(text), "-- gateway.yaml --\n"), "-- tables --")
	c, err := config.Parse("gateway.yaml", []byte(yaml), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(c, 1)
	if err != nil {
		t.Fatal(err)
	}
	sent := encode(t, p.Snapshot)
	var got Snapshot
	if err := json.Unmarshal(sent, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Snapshot, got); diff != "" {
		t.Errorf("(-sent +received):\n%s", diff)
	}
	r := &c.Routes[0]
	r.RequestHeaders.Set[0].Value, r.ReplyHeaders.Remove[0], r.Rewrite.AddPrefix, *r.BodyBytes = "x", "x", "/x", 9
	r.CORS.AllowOrigins[0], r.Timeouts.Header = "x", 1
	for i := range c.Routes {
		if c.Routes[i].Reply != nil && len(c.Routes[i].Reply.Body) > 0 {
			c.Routes[i].Reply.Body[0]++
		}
	}
	if again := encode(t, p.Snapshot); string(again) != string(sent) {
		t.Errorf("the policy shares memory with the configuration: (-before +after)\n%s", cmp.Diff(string(sent), string(again)))
	}
}

// Maintenance that is not enabled is not told to the workers.
func TestMaintenanceIsSwitched(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		c, err := config.Load("../../deploy/gateway.yaml", nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Routes[0].Maintenance = &config.Maintenance{Enabled: enabled}
		p, err := Compile(c, 1)
		if err != nil || (p.Snapshot.Routes[0].Maintenance != nil) != enabled {
			t.Errorf("enabled %v: %+v, %v", enabled, p.Snapshot.Routes[0], err)
		}
	}
}
