// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// What limits and API keys add to an exchange: their filters alone, over and over on one that
// passes. bench/http -limits measures whole requests, whose noise is more than that.
func BenchmarkLimitFilters(b *testing.B) {
	wide := func(name string, key ...policy.KeyPart) []policy.RequestLimit {
		return []policy.RequestLimit{{Name: name, ID: 7, Key: key, Requests: 1e9, Period: time.Second, Burst: 1e9, Delay: 1e9, Status: 429}}
	}
	for _, tt := range []struct {
		name   string
		keys   *policy.RouteKeys
		limits []policy.RequestLimit
	}{
		{name: "nothing"},
		{name: "limit", limits: wide("l", byAddress)},
		{name: "key", keys: &policy.RouteKeys{}},
		{name: "key and limit", keys: &policy.RouteKeys{}, limits: wide("k", policy.KeyPart{Kind: "api_key"})},
	} {
		b.Run(tt.name, func(b *testing.B) {
			g := newStoppedGateway(b, []string{plainUpstream(b)})
			s := g.keyed()
			g.snapshot.Routes = []policy.Route{keyRoute(g, "", tt.keys)}
			g.snapshot.RequestLimits = tt.limits
			g.start()
			text := s.add(b, keys.Record{ID: "bench", Consumer: "bench"})
			ex := &Exchange{worker: g.worker, snap: g.worker.current.Load(), peer: netip.MustParseAddrPort("192.0.2.1:4000"), method: []byte("GET"), target: []byte("/"), host: []byte("a"), start: g.worker.now()}
			fields := []http1.Field{{Name: []byte("User-Agent"), Value: []byte("x")}, {Name: []byte("Authorization"), Value: []byte("Bearer " + text), Kind: http1.Other}}
			if r := chooseRoute(ex); r != nil {
				b.Fatal(r.text)
			}
			b.ReportAllocs()
			for b.Loop() {
				ex.fields, ex.limiting = fields, ex.limiting.cleared()
				if apiKey(ex) != nil || limitConcurrency(ex) != nil || limitRequests(ex) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
}
