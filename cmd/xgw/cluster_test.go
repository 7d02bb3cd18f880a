// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/cluster"
	"github.com/xgw-project/xgw/pkg/lab"
	"github.com/xgw-project/xgw/pkg/lab/redistest"
)

// Limit of the cluster in these tests.
const clusterRate, clusterBurst = 100, 20

const clusterLua = `limit_req{name = "together", key = "header:X-Key", rate = "100r/s", burst = 20, nodelay = true, scope = "cluster"}
escalate{name = "guessers", on = "401", count = 5, step = "all", ttl = "2m"}`

// clusterLab is three gateways, each in a namespace of its own, with a kernel plane; a redis and
// an upstream are on a fourth host, the clients on a fifth.
type clusterLab struct {
	*lab.Lab
	gateways []*clusterGateway
	redis    *exec.Cmd
	dir      string
	cleanup  func(func()) // when all is over
}

type clusterGateway struct {
	*running
	host, instance, url string
	ctl                 *admin.Client
}

const redisAddress = "203.0.113.2:6379"

func newClusterLab(t *testing.T) *clusterLab {
	needRoot(t, "makes a lab")
	c := &clusterLab{Lab: mustLab(t, "xgwcluster"), dir: t.TempDir(), cleanup: t.Cleanup}
	c.mustIn(t, lab.Router, "ip route add 203.0.113.0/24 via 198.51.100.2")
	c.mustIn(t, lab.Client, "for i in 3 4 5; do ip address add 192.0.2.$i/28 dev net0; done")
	c.startRedis(t, t.Cleanup)
	ln, err := c.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: lab.NewUpstream()}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	for _, g := range []*clusterGateway{
		{host: lab.Gateway, instance: "cluster1", url: "198.51.100.2"},
		{host: lab.Router, instance: "cluster2", url: "192.0.2.1"},
		{host: lab.Attacker, instance: "cluster3", url: "192.0.2.18"},
	} {
		dir := t.TempDir()
		rewrite(t, filepath.Join(dir, "ratelimit.lua"), clusterLua)
		device := map[string]string{lab.Gateway: lab.EdgeInterface, lab.Router: "client0", lab.Attacker: "net0"}[g.host]
		more := fmt.Sprintf("workers: 1\npin: false\ninterfaces: [{name: %s, mode: native}]\nredis: {address: %q}\nverdicts: {share: true}\n", device, redisAddress)
		if g.host == lab.Attacker {
			more += "allow: [192.0.2.3]\n"
		}
		g.running = startGateway(t, inHost(c.Lab, g.host), g.instance, dir,
			strings.Replace(gatewayYAML(dir, ":443", "203.0.113.2:8080", more), "upstream: back}", "upstream: back, keys: {mode: optional}}", 1))
		g.ctl = admin.NewClient(admin.SocketPath(g.instance))
		c.gateways = append(c.gateways, g)
	}
	return c
}

func (c *clusterLab) mustIn(t *testing.T, host, script string) {
	t.Helper()
	if err := c.In(host, func() error {
		out, err := exec.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// startRedis starts one without anything in it, and waits until it answers.
func (c *clusterLab) startRedis(t *testing.T, cleanup func(func())) {
	t.Helper()
	host, port, _ := net.SplitHostPort(redisAddress)
	c.redis = exec.Command(redistest.Program(t), "--port", port, "--bind", host, "--protected-mode", "no", "--save", "", "--dir", c.dir)
	if err := c.Start(lab.Upstream, c.redis); err != nil {
		t.Fatal(err)
	}
	cmd := c.redis
	cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := redis.NewClient(&redis.Options{Addr: redisAddress, Dialer: c.DialFrom(lab.Client)})
	defer r.Close()
	eventually(t, "redis answers", func() bool { return r.Ping(context.Background()).Err() == nil })
}

// scrape reads a gateway's metrics in its namespace.
func (c *clusterLab) scrape(t *testing.T, g *clusterGateway) string {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DialContext: c.DialFrom(g.host), DisableKeepAlives: true}, Timeout: 20 * time.Second}
	return bodyOf(t, hc, g.metrics)
}

// client speaks from the client's host.
func (c *clusterLab) client(h2 bool) *http.Client {
	hc := client(h2)
	hc.Transport.(*http.Transport).DialContext = c.DialFrom(lab.Client)
	return hc
}

// pace sends requests under a key at a steady rate to the gateways in turn, for so long.
type pace struct {
	key                     string
	perSecond               float64
	gateways                []*clusterGateway
	passed, refused, failed atomic.Int64
	sent                    atomic.Int64
}

func (c *clusterLab) run(o *pace, until func() bool) (took time.Duration) {
	const parallel = 6
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range parallel {
		all.Go(func() {
			hc := c.client(i%2 == 0)
			defer hc.CloseIdleConnections()
			for {
				k := next.Add(1) - 1
				time.Sleep(time.Until(began.Add(time.Duration(float64(k) / o.perSecond * 1e9))))
				if until() {
					return
				}
				o.sent.Add(1)
				switch asks(hc, o.gateways[int(k)%len(o.gateways)].url, o.key) {
				case 200:
					o.passed.Add(1)
				case 429:
					o.refused.Add(1)
				default:
					o.failed.Add(1)
				}
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

// Three gateways, a real redis: a limit of the cluster holds over all of them, within the bound
// that `xgw config check` prints; without the redis each goes on by itself and nobody is refused
// for it; verdicts travel.
func TestCluster(t *testing.T) {
	c := newClusterLab(t)
	t.Cleanup(func() {
		if t.Failed() {
			for _, g := range c.gateways {
				list, _ := g.ctl.Verdicts()
				t.Logf("%s: %s\nverdicts %+v\n%s", g.instance, grep(c.scrape(t, g), "xgw_cluster"), list, g.log)
			}
		}
	})
	eventually(t, "they know of each other", func() bool {
		return strings.Contains(c.scrape(t, c.gateways[0]), "xgw_cluster_gateways 3")
	})
	t.Run("accuracy", c.accuracy)
	t.Run("redis", c.redisComesAndGoes)
	t.Run("verdicts", c.verdicts)
}

func (c *clusterLab) accuracy(t *testing.T) {
	var faults []string
	for round := range 3 { // a machine that stands still for a moment forfeits what would have passed
		if faults = c.measure(t, round); len(faults) == 0 {
			break
		}
	}
	for _, fault := range faults {
		t.Error(fault)
	}
	for _, g := range c.gateways {
		if text := c.scrape(t, g); sumSeries(t, text, `xgw_cluster_leases_total{outcome="ok"}`) == 0 || !strings.Contains(text, "xgw_cluster_up 1") {
			t.Errorf("%s does not tell of leases:\n%s", g.instance, grep(text, "xgw_cluster"))
		}
	}
}

// measure offers keys of their own 1, 1.5 and 3 times the limit's rate, at one gateway and at all
// three, and says what passed that may not, or did not pass that should.
func (c *clusterLab) measure(t *testing.T, round int) (faults []string) {
	bound := float64(cluster.Bound(clusterRate, time.Second, clusterBurst))
	var mu sync.Mutex
	var rows []string
	var all sync.WaitGroup
	for _, n := range []int{1, 3} {
		for _, times := range []float64{1, 1.5, 3} {
			all.Go(func() {
				o := &pace{key: fmt.Sprintf("%d-%v-%d", n, times, round), perSecond: times * clusterRate, gateways: c.gateways[:n]}
				end := time.Now().Add(4 * time.Second)
				took := c.run(o, func() bool { return time.Now().After(end) }).Seconds()
				passed, sent := float64(o.passed.Load()), float64(o.sent.Load())
				most := clusterRate*took + clusterBurst
				may := float64(n-1) * bound
				if o.failed.Load() > 0 || passed+float64(o.refused.Load()) != sent {
					t.Errorf("%s: %d failed of %.0f", o.key, o.failed.Load(), sent)
				}
				mu.Lock()
				defer mu.Unlock()
				rows = append(rows, fmt.Sprintf("%d gateways, %3v x the rate: offered %.0f/s, passed %.0f/s: %+.0f beyond rate x t + burst, of %.0f that may",
					n, times, sent/took, passed/took, passed-most, may))
				if passed > most+may {
					faults = append(faults, fmt.Sprintf("%s: %.0f passed, rate x t + burst is %.0f, and %.0f more may", o.key, passed, most, may))
				}
				if least := min(sent, most); passed < 0.9*least {
					faults = append(faults, fmt.Sprintf("%s: %.0f passed of the %.0f that the limit allows", o.key, passed, least))
				}
			})
		}
	}
	all.Wait()
	slices.Sort(rows)
	t.Log("\n" + strings.Join(rows, "\n"))
	return faults
}

// redisComesAndGoes: who keeps to the limit never notices that redis is stopped or killed; who does
// not is held to it by the gateway that it speaks to.
func (c *clusterLab) redisComesAndGoes(t *testing.T) {
	calm := &pace{key: "calm", perSecond: 45, gateways: c.gateways}
	loud := &pace{key: "loud", perSecond: 3 * clusterRate, gateways: c.gateways[1:2]}
	var over atomic.Bool
	var all sync.WaitGroup
	var took time.Duration
	all.Go(func() { c.run(calm, over.Load) })
	all.Go(func() { took = c.run(loud, over.Load) })
	g := c.gateways[1]
	leases := func(outcome string) int {
		return sumSeries(t, c.scrape(t, g), fmt.Sprintf("xgw_cluster_leases_total{outcome=%q}", outcome))
	}
	for _, trouble := range []struct {
		name        string
		begin, over func() error
	}{
		{"stopped", func() error { return c.redis.Process.Signal(syscall.SIGSTOP) }, func() error { return c.redis.Process.Signal(syscall.SIGCONT) }},
		{"dead", func() error { return c.redis.Process.Kill() }, func() error { _ = c.redis.Wait(); c.startRedis(t, c.cleanup); return nil }},
	} {
		failed, stale := leases("failed"), leases("stale")
		if err := trouble.begin(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "redis is "+trouble.name+": counters tell", func() bool {
			return leases("failed") > failed && leases("stale") > stale && strings.Contains(c.scrape(t, g), "xgw_cluster_up 0")
		})
		if err := trouble.over(); err != nil {
			t.Fatal(err)
		}
		ok, began := leases("ok"), time.Now()
		eventually(t, "after redis was "+trouble.name+": leases are good again", func() bool {
			return leases("ok") > ok && strings.Contains(c.scrape(t, g), "xgw_cluster_up 1")
		})
		t.Logf("after redis was %s, leases are good again within %s", trouble.name, time.Since(began).Round(time.Millisecond))
	}
	over.Store(true)
	all.Wait()
	if calm.refused.Load() > 0 || calm.failed.Load() > 0 || calm.passed.Load() == 0 {
		t.Errorf("within the limit: %d passed, %d were refused, %d failed", calm.passed.Load(), calm.refused.Load(), calm.failed.Load())
	}
	most := clusterRate*took.Seconds() + clusterBurst
	if p := float64(loud.passed.Load()); p > most || p < 0.5*min(most, float64(loud.sent.Load())) || loud.failed.Load() > 0 {
		t.Errorf("beyond the limit at one gateway: %.0f passed of %.0f that may, %d failed", p, most, loud.failed.Load())
	}
}

// from makes requests from another address of the client.
func (c *clusterLab) from(address string) *http.Client {
	hc := client(false)
	hc.Timeout = time.Second
	hc.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, to string) (conn net.Conn, err error) {
		err = c.In(lab.Client, func() error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
			conn, err = d.DialContext(ctx, network, to)
			return err
		})
		return conn, err
	}
	return hc
}

// offend guesses API keys until the gateway drops what comes from the address.
func (c *clusterLab) offend(t *testing.T, g *clusterGateway, address string) {
	t.Helper()
	hc := c.from(address)
	defer hc.CloseIdleConnections()
	eventually(t, address+" is held at "+g.instance, func() bool {
		req, _ := http.NewRequest("GET", "https://"+g.url+"/", nil)
		req.Header.Set("X-API-Key", "xgw_nobody_"+strings.Repeat("A", 43))
		if r, err := hc.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			r.Body.Close()
		}
		return g.holds(t, address) != nil
	})
}

// holds is the verdict on the address; nil for none.
func (g *clusterGateway) holds(t *testing.T, address string) *admin.Verdict {
	t.Helper()
	list, err := g.ctl.Verdicts()
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		if list[i].Source == address {
			return &list[i]
		}
	}
	return nil
}

func (c *clusterLab) counted(t *testing.T, g *clusterGateway, outcome string) int {
	t.Helper()
	return sumSeries(t, c.scrape(t, g), fmt.Sprintf("xgw_cluster_verdicts_total{outcome=%q}", outcome))
}

// verdicts: who offends at one gateway is dropped at the NIC of the others, unless it is exempt
// there, and no further than thin beside somebody good; what is ended at one stays ended there.
func (c *clusterLab) verdicts(t *testing.T) {
	first, second, third := c.gateways[0], c.gateways[1], c.gateways[2]
	// Somebody good at the second one's, at an address from which somebody will offend at the first.
	good := c.from("192.0.2.4")
	defer good.CloseIdleConnections()
	for i := range 30 {
		if got := asks(good, second.url, ""); got != 200 {
			t.Fatalf("request %d of a good one: %d", i, got)
		}
	}
	c.offend(t, first, "192.0.2.3")
	eventually(t, "the second gateway holds it, too", func() bool {
		v := second.holds(t, "192.0.2.3")
		return v != nil && v.Step == "all" && v.Reason == "401"
	})
	eventually(t, "it is exempt at the third", func() bool { return c.counted(t, third, "exempt") > 0 })
	if third.holds(t, "192.0.2.3") != nil {
		t.Error("the third gateway holds what is allowed there")
	}
	dropped := func() int {
		return sumSeries(t, c.scrape(t, second), `xgw_packets_total{direction="ingress",interface="client0",queue="0",reason="verdict_all",verdict="drop"}`) +
			sumSeries(t, c.scrape(t, second), `xgw_packets_total{direction="ingress",interface="client0",queue="1",reason="verdict_all",verdict="drop"}`)
	}
	before := dropped()
	if got := asks(c.from("192.0.2.3"), second.url, ""); got != 0 || dropped() == before {
		t.Errorf("at the second gateway, where it never offended: %d, %d packets dropped", got, dropped()-before)
	}
	if err := second.ctl.RemoveVerdict("192.0.2.3"); err != nil {
		t.Fatal(err)
	}
	c.offend(t, first, "192.0.2.4")
	eventually(t, "the second gateway's guard caps it", func() bool {
		v := second.holds(t, "192.0.2.4")
		return v != nil && v.Step == "thin" && v.Capped && c.counted(t, second, "capped") > 0
	})
	if v := first.holds(t, "192.0.2.4"); v == nil || v.Capped || v.Step == "thin" {
		t.Errorf("at the first, where nobody good shares the address: %+v", v)
	}
	if got := asks(good, second.url, ""); got != 200 {
		t.Errorf("the good one: %d", got)
	}
	if _, err := first.ctl.AddVerdict(admin.AddVerdict{Source: "192.0.2.5", Step: "syns", TTL: 2 * time.Minute, Note: "by hand"}); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*clusterGateway{second, third} {
		eventually(t, "an operator's verdict is held at "+g.instance, func() bool {
			v := g.holds(t, "192.0.2.5")
			return v != nil && v.Step == "syns" && v.Note == "by hand" && v.Reason == "operator"
		})
	}
	// What came later has been heard, and what was ended here is still ended.
	if second.holds(t, "192.0.2.3") != nil || first.holds(t, "192.0.2.3") == nil {
		t.Error("what was ended at the second gateway is held there, or ended at the first as well")
	}
	if c.counted(t, first, "sent") < 3 || c.counted(t, second, "given") < 2 {
		t.Errorf("not counted:\n%s\n%s", grep(c.scrape(t, first), "cluster_verdicts"), grep(c.scrape(t, second), "cluster_verdicts"))
	}
}
