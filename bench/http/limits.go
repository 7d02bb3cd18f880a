// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// limitsCases are those that -limits measures.
const limitsCases = `^h[12] GET 100 B$`

// variants of xgw: what limits cost is told by the second and the third, beside what the
// first differs by from itself.
var variants = []struct{ name, lua string }{
	{ours, ""},
	{"again", ""},
	{"limit", `limit_req{name = "clients", rate = "1000000r/s", burst = 1000000, nodelay = true}`},
	{"function", `limit_req{name = "clients", rate = "1000000r/s", burst = 1000000, nodelay = true, key = function(r)
  if r.method == "GET" then return r.ip .. r:header("X-Tenant") end
  return r.ip
end}`},
}

// startVariants starts all, without a kernel plane, as startGateways does.
func startVariants(ctx context.Context, l *lab, p *place, _ options) (all []*gateway, stop func() error, err error) {
	stop = func() error {
		for _, g := range all {
			g.process.stop()
		}
		return nil
	}
	if err := writeCertificate(p, addrPeers, addrXGW); err != nil {
		return nil, stop, err
	}
	_, text, _ := strings.Cut(xgwConfig, "mode: native\n")
	for i, v := range variants {
		dir := p.file("limits-" + v.name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return all, stop, err
		}
		address := fmt.Sprintf("%s:%d", addrXGW, 9443+i)
		text := fmt.Sprintf(text, p.dir, address, addrUpstream+":"+upstreamPort)
		text = strings.NewReplacer("127.0.0.1:9090", fmt.Sprintf("127.0.0.1:%d", 9190+i), p.file(accessLog), filepath.Join(dir, accessLog)).Replace(text)
		file := filepath.Join(dir, "gateway.yaml")
		for path, text := range map[string]string{file: text, filepath.Join(dir, "ratelimit.lua"): v.lua} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				return all, stop, err
			}
		}
		proc, err := l.gateway.start(ours, filepath.Join(dir, "log"), []string{xgwBinary, "run", "-c", file, "--instance", instance + "-" + v.name}, "")
		if err != nil {
			return all, stop, err
		}
		all = append(all, &gateway{name: v.name, address: address, process: proc, version: versionOf(ours, "")})
	}
	for _, g := range all {
		if err == nil {
			err = g.await(ctx, l, p)
		}
	}
	if err == nil {
		err = rest(all)
	}
	return all, stop, err
}

// reportLimits prints what each variant costs beside the first of its round, by rounds: the
// median, and half of the range. It writes the same with the first as the peer.
func reportLimits(w io.Writer, path string, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	var records []record
	for _, r := range results {
		for _, v := range variants {
			var more []float64
			for round, f := range r.figures[v.name] {
				more = append(more, f/r.figures[ours][round]-1)
			}
			figure, plain := hundredths(median(r.figures[v.name])), hundredths(median(r.figures[ours]))
			fmt.Fprintf(t, "%s\t%s\t%.1f us\t%+.1f %% ±%.1f\n", r.name, v.name, figure, 100*median(more), 100*spread(more))
			if v.name != ours {
				records = append(records, record{
					Name: r.name + ", " + v.name, Unit: "us/request", Ours: figure, Peers: map[string]float64{ours: plain}, Ratio: 1 + hundredths(median(more)),
				})
			}
		}
	}
	t.Flush()
	return writeRecords(path, records)
}
