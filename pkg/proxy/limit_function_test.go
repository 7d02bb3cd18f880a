// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// keysOf are key functions in Go.
type keysOf map[string]func(KeyRequest) (string, error)

var errTooMuch = errors.New("too much")

func (k keysOf) Has(limit string) bool { return k[limit] != nil }

func (k keysOf) Key(limit string, r KeyRequest, dst []byte) ([]byte, bool, error) {
	key, err := k[limit](r)
	return append(dst, key...), errors.Is(err, errTooMuch), err
}

var byFunction = policy.KeyPart{Kind: "function"}

// What a key function sees of a request, and what becomes of what it says: a key, no limit,
// or, where it fails, the address.
func TestLimitByFunction(t *testing.T) {
	g := newStoppedGateway(t, []string{httpUpstream(t, func(http.ResponseWriter, *http.Request) {})})
	var seen []string
	g.worker.functions = func(s *policy.KeyScript) (KeyFunctions, error) {
		if string(s.Source) != "text" {
			return nil, errors.New("another text")
		}
		return keysOf{"f": func(r KeyRequest) (string, error) {
			field := func(name string) string { return string(r.AppendField(nil, name)) }
			seen = append(seen, strings.Join([]string{field("method"), field("path"), field("ip"), field("route"), field("key"), string(r.AppendHeader(nil, "x-token")), string(r.AppendHeader(nil, "X-None"))}, " "))
			switch token := string(r.AppendHeader(nil, "X-Token")); token {
			case "fault":
				return "", errors.New("broken")
			case "budget":
				return "", errTooMuch
			default:
				return token, nil
			}
		}}, nil
	}
	g.snapshot.KeyScript = &policy.KeyScript{Source: []byte("text")}
	g.snapshot.RequestLimits = []policy.RequestLimit{hourly("f", 1, byFunction)}
	g.start()
	began := time.Now()
	for i, step := range []struct {
		asking
		want int
	}{
		{asking{token: "one", path: "a/b?c=d"}, 200}, {asking{token: "two", method: "HEAD"}, 200}, {asking{token: "one"}, 429},
		{asking{}, 200}, {asking{}, 200}, // it says nothing: no limit
		{asking{token: "fault"}, 200}, {asking{token: "budget"}, 429}, {asking{token: "fault"}, 429}, // all of one address
	} {
		if got := g.try(g.client(i%2 == 1), step.asking).StatusCode; got != step.want {
			t.Errorf("request %d, %+v: %d, want %d", i, step.asking, got, step.want)
		}
	}
	if seen[0] != "GET /a/b 127.0.0.1 all  one " || seen[1] != "HEAD / 127.0.0.1 all  two " {
		t.Errorf("it saw %q", seen[:2])
	}
	if b, f := g.slab.Load(zone.KeyBudgets), g.slab.Load(zone.KeyFaults); b != 1 || f != 2 {
		t.Errorf("counted %d over budget and %d faults: want 1 and 2", b, f)
	}
	if n := strings.Count(g.log.String(), "key function failed"); n < 1 || n > 1+int(time.Since(began)/time.Second) {
		t.Errorf("said %d times, want once a second:\n%s", n, g.log)
	}
	for name, spoil := range map[string]func(*policy.Snapshot){
		"another text": func(s *policy.Snapshot) { s.KeyScript = &policy.KeyScript{Source: []byte("x")} },
		"no text":      func(s *policy.Snapshot) { s.KeyScript = nil },
		"another name": func(s *policy.Snapshot) { s.RequestLimits = []policy.RequestLimit{hourly("g", 1, byFunction)} },
	} {
		s := g.snapshot
		spoil(&s)
		if err := g.worker.Apply(&s, g.certs); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
}
