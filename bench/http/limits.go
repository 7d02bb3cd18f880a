// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
)

// variants of the configuration of one running xgw: what limits cost is told by the others
// beside the first, and by the second, which is the same as the first, what telling is worth.
var variants = []struct{ name, keys, lua string }{
	{ours, "", ""},
	{"again", "", "-- as before\n"},
	{"limit", "", `limit_req{name = "clients", rate = "1000000r/s", burst = 1000000, nodelay = true}`},
	{"key", "keys: {}", ""},
	{"key and limit", "keys: {}", `limit_req{name = "holders", key = "api_key", rate = "1000000r/s", burst = 1000000, nodelay = true}`},
	{"function", "", `limit_req{name = "tenants", rate = "1000000r/s", burst = 1000000, nodelay = true, key = function(r)
  if r.method == "GET" then return r.ip .. r:header("X-Tenant") end
  return r.ip
end}`},
	{"Lua function", "", `limit_req{name = "owners", rate = "1000000r/s", burst = 1000000, nodelay = true, key = function(r)
  local tenant = r:header("X-Tenant")
  if tenant then return string.lower(tenant) end
  return r.ip
end}`},
}

// The gateway is measured for slices of this length, after a pause in which what a change of
// the configuration costs is over.
const (
	slice    = 400 * time.Millisecond
	settling = 100 * time.Millisecond
)

// variantInstance is the one gateway's.
const variantInstance = instance + "-limits"

// alternation is one gateway that is given each variant in turn while a load runs.
type alternation struct {
	*bench
	dir, text string // of the configuration
	key       string // an API key
	control   *admin.Client
}

// startAlternation starts the gateway, without a kernel plane. stop is never nil.
func startAlternation(ctx context.Context, l *lab, p *place) (a *alternation, stop func() error, err error) {
	stop = func() error { return nil }
	if err := writeCertificate(p, addrPeers, addrXGW); err != nil {
		return nil, stop, err
	}
	_, text, _ := strings.Cut(xgwConfig, "mode: native\n")
	address := addrXGW + ":9443"
	a = &alternation{dir: p.file("limits"), text: fmt.Sprintf(text, p.dir, address, addrUpstream+":"+upstreamPort), control: admin.NewClient(admin.SocketPath(variantInstance))}
	if err := os.Mkdir(a.dir, 0o755); err != nil {
		return nil, stop, err
	}
	if err := a.write(0); err != nil {
		return nil, stop, err
	}
	proc, err := l.gateway.start(ours, p.file("limits.log"), []string{xgwBinary, "run", "-c", filepath.Join(a.dir, "gateway.yaml"), "--instance", variantInstance}, "")
	if err != nil {
		return nil, stop, err
	}
	stop = func() error { proc.stop(); return nil }
	g := &gateway{name: ours, address: address, process: proc}
	a.bench = &bench{gateways: []*gateway{g}}
	if err := g.await(ctx, l, p); err != nil {
		return nil, stop, err
	}
	out, err := l.gateway.output(ctx, xgwBinary, "--instance", variantInstance, "keys", "add", "-c", filepath.Join(a.dir, "gateway.yaml"), "--consumer", "bench")
	if err != nil {
		return nil, stop, err
	}
	if a.key = strings.TrimSpace(out); !strings.HasPrefix(a.key, "xgw_") || strings.ContainsAny(a.key, " \n") {
		return nil, stop, fmt.Errorf("keys add printed %q", out)
	}
	return a, stop, nil
}

// write writes the files of a variant.
func (a *alternation) write(v int) error {
	text := strings.Replace(a.text, "    upstream: backend\n", "    upstream: backend\n    "+variants[v].keys+"\n", 1)
	return errors.Join(os.WriteFile(filepath.Join(a.dir, "gateway.yaml"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(a.dir, "ratelimit.lua"), []byte(variants[v].lua), 0o644))
}

// alternationCase is what came of a case, by variant: the ratio of each slice to the mean of
// those of the first variant just before and after it, and µs of the gateway's CPU for each
// request.
type alternationCase struct {
	name         string
	ratios, cost [][]float64
}

// runLimits is the bench of -limits.
func runLimits(ctx context.Context, o options, l *lab, p *place, up *upstream, w io.Writer) (err error) {
	a, stop, err := startAlternation(ctx, l, p)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	a.options, a.lab, a.place, a.upstream = o, l, p, up
	results, err := a.run(ctx)
	if err == nil {
		err = a.checkUsed(ctx)
	}
	if err != nil {
		return err
	}
	return reportLimits(w, "bench/results/limits.json", results)
}

// run measures the cases that -only names.
func (a *alternation) run(ctx context.Context) ([]alternationCase, error) {
	only, err := regexp.Compile(a.options.only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	var out []alternationCase
	for i := range cases {
		c := &cases[i]
		if c.name != "h1 GET 100 B" && c.name != "h2 GET 100 B" || !only.MatchString(c.name) {
			continue
		}
		r, err := a.alternate(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		out = append(out, *r)
	}
	return out, nil
}

// alternate runs one load, and meanwhile first, variant, first, variant and so on.
func (a *alternation) alternate(ctx context.Context, c *benchCase) (*alternationCase, error) {
	r := &alternationCase{name: c.name, ratios: make([][]float64, len(variants)), cost: make([][]float64, len(variants))}
	g := a.gateways[0]
	slices := a.options.rounds*2*(len(variants)-1) + 1
	// A reload beside the load takes up to a tenth of a second; if that was too little, the load's end is an error.
	last := time.Duration(slices)*(slice+settling+200*time.Millisecond) + 3*time.Second
	argv := c.load(c, g.url(c), a.place, last.Round(time.Second), 0)
	argv = append(argv[:len(argv)-1:len(argv)-1], "-H", "X-Tenant: acme", "-H", "Authorization: Bearer "+a.key, argv[len(argv)-1])
	var text string
	var loadErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, loadErr = a.lab.client.output(ctx, argv...)
	}()
	time.Sleep(warmUp)
	before, err := a.slice(0)
	for round := 0; err == nil && round < a.options.rounds; round++ {
		for k := 1; err == nil && k < len(variants); k++ {
			v := 1 + (k+round)%(len(variants)-1)
			var cost, after float64
			if cost, err = a.slice(v); err == nil {
				after, err = a.slice(0)
			}
			r.ratios[v] = append(r.ratios[v], 2*cost/(before+after))
			r.cost[v], r.cost[0] = append(r.cost[v], cost), append(r.cost[0], after)
			before = after
		}
	}
	select {
	case <-done:
		err = errors.Join(err, errors.New("the load ended before the measurement"))
	default:
	}
	<-done
	if err = errors.Join(err, loadErr, g.process.alive()); err != nil {
		return nil, err
	}
	_, err = c.parse(text, c) // each request got its reply, whatever the variant
	return r, err
}

// slice gives the gateway the variant and measures for a while: µs for each request.
func (a *alternation) slice(v int) (float64, error) {
	if err := a.write(v); err != nil {
		return 0, err
	}
	if _, err := a.control.Reload(0); err != nil {
		return 0, err
	}
	time.Sleep(settling)
	pids, err := processTree("/proc", a.gateways[0].process.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	first, err := a.clocks(pids)
	if err != nil {
		return 0, err
	}
	time.Sleep(slice)
	last, err := a.clocks(pids)
	if err != nil {
		return 0, err
	}
	if last.requests-first.requests < 100 {
		return 0, fmt.Errorf("variant %s: %d requests", variants[v].name, last.requests-first.requests)
	}
	return float64(last.cpu-first.cpu) / 1e3 / float64(last.requests-first.requests), nil
}

type clocks struct {
	cpu      int64 // ns, of all processes
	requests int64 // that the upstream has seen
}

// clocks reads CPU clocks in ns, for ticks would be too coarse: clock_getcpuclockid(3).
func (a *alternation) clocks(pids []int) (c clocks, err error) {
	s, err := a.upstream.seen()
	c.requests = s.requests
	for _, pid := range pids {
		var ts unix.Timespec
		if clockErr := unix.ClockGettime(int32(^pid<<3|2), &ts); clockErr != nil {
			err = errors.Join(err, fmt.Errorf("read CPU clock of process %d: %w", pid, clockErr))
		}
		c.cpu += ts.Nano()
	}
	return c, err
}

// checkUsed fails unless the variants did what they say: limits have seen their share of the
// requests, and so have keys.
func (a *alternation) checkUsed(ctx context.Context) error {
	text, err := a.lab.gateway.output(ctx, "curl", "--silent", "--max-time", "5", "--noproxy", "*", "http://127.0.0.1:9090/metrics")
	if err != nil {
		return err
	}
	for _, want := range []string{
		`xgw_request_limit_requests_total{limit="clients",outcome="passed"} `, `xgw_request_limit_requests_total{limit="holders",outcome="passed"} `,
		`xgw_request_limit_requests_total{limit="tenants",outcome="passed"} `, `xgw_request_limit_requests_total{limit="owners",outcome="passed"} `, `xgw_key_lookups_total{result="cached"`,
	} {
		if !strings.Contains(text, want) {
			return fmt.Errorf("the metrics have no %s", want)
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "xgw_limit_key_failures_total{") && !strings.HasSuffix(line, " 0\n") {
			return fmt.Errorf("a key function failed: %s", line)
		}
	}
	return nil
}

// interval is about where the true median is: with 95 % or more it lies between two of the
// figures, by the binomial distribution of how many are below it.
func interval(v []float64) (low, high float64) {
	s := slices.Sorted(slices.Values(v))
	n, k, below := len(s), 0, 0.0
	for p := math.Pow(0.5, float64(len(s))); ; k++ {
		if below += p; below > 0.025 || k >= n/2 {
			break
		}
		p = p * float64(n-k) / float64(k+1)
	}
	k = max(k-1, 0)
	return s[k], s[n-1-k]
}

// limitRecord is a record with where the ratio lies.
type limitRecord struct {
	record
	Low  float64 `json:"ratio_low"` // 95 %
	High float64 `json:"ratio_high"`
}

// reportLimits prints what each variant costs beside the first, and puts the same into the
// file, with the first as the peer; what is there of other cases stays.
func reportLimits(w io.Writer, path string, results []alternationCase) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "case\tvariant\tmedian\tbeside xgw\t95 % between\tpairs")
	thousandths := func(x float64) float64 { return math.Round(x*1000) / 1000 }
	var records []limitRecord
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &records)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("merge results: %w", err)
	}
	put := func(r limitRecord) {
		at := slices.IndexFunc(records, func(old limitRecord) bool { return old.Name == r.Name })
		if at < 0 {
			records = append(records, r)
		} else {
			records[at] = r
		}
	}
	for _, r := range results {
		plain := hundredths(median(r.cost[0]))
		fmt.Fprintf(t, "%s\t%s\t%.2f us\n", r.name, ours, plain)
		for v := 1; v < len(variants); v++ {
			figure, ratio := hundredths(median(r.cost[v])), median(r.ratios[v])
			low, high := interval(r.ratios[v])
			fmt.Fprintf(t, "%s\t%s\t%.2f us\t%+.1f %%\t%+.1f to %+.1f %%\t%d\n", r.name, variants[v].name, figure, 100*(ratio-1), 100*(low-1), 100*(high-1), len(r.ratios[v]))
			put(limitRecord{
				record: record{Name: r.name + ", " + variants[v].name, Unit: "us/request", Ours: figure, Peers: map[string]float64{ours: plain}, Ratio: thousandths(ratio)},
				Low:    thousandths(low), High: thousandths(high),
			})
		}
	}
	t.Flush()
	return writeJSON(path, records)
}
