// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/xgw-project/xgw/pkg/lab"
)

// demoInstance names all that the demonstration makes: namespaces, pins, zone.
const demoInstance = "demo"

// The flood comes from 256 forged addresses, each far over the limit of its SYNs.
const (
	demoSources  = "10.66.0.0/24"
	demoRate     = 40_000
	demoSynLimit = 20
)

const demoConfig = `interfaces:
  - name: edge0
packet_limits:
  - name: syns
    key: source
    count: syns
    rate: %d
    burst: 40
listeners:
  - address: ":443"
    server_names: [demo.example]
telemetry:
  address: "127.0.0.1:9090"
routes:
  - name: hello
    path: /
    upstream: hello
upstreams:
  - name: hello
    servers: ["203.0.113.2:8080"]
log:
  access: %s/access.log
state: %s
`

func demoCommand(e *env) *cobra.Command {
	var keep bool
	var seconds int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show all of it in a lab of network namespaces",
		Long: `Makes four hosts out of network namespaces, attaches the kernel plane to the
gateway's interface there, runs the gateway, sends HTTPS traffic through it, and
floods it with SYNs meanwhile. Then an API client goes on beyond its limit, is dropped
at the NIC, and forgiven. No interface of this machine is touched, and
nothing is left afterwards, however it ends.`,
		Example: `  sudo xgw demo
  sudo xgw demo --keep # stays up, and prints what to try`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if seconds < 1 || seconds > 600 {
				return usageError{fmt.Errorf("--seconds %d: want 1 to 600", seconds)}
			}
			d := &demo{env: e, keep: keep, phase: time.Duration(seconds) * time.Second}
			err := d.run(cmd.Context())
			if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
				return errors.New("demo: interrupted; everything it made is gone")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "stay up until interrupted")
	cmd.Flags().IntVar(&seconds, "seconds", 4, "length of each phase of traffic")
	return cmd
}

type demo struct {
	env   *env
	keep  bool
	phase time.Duration
	lab   *lab.Lab
	dir   string
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.env.out, format+"\n", args...) }

func (d *demo) run(ctx context.Context) (err error) {
	d.say("1. A lab: client, attacker, router, gateway and upstream are network namespaces.")
	if d.lab, err = lab.New(lab.Options{Name: demoInstance}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }()
	if err := d.makeDir(); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	stopUpstream, err := d.startUpstream()
	if err != nil {
		return err
	}
	defer stopUpstream()
	gateway, err := d.startGateway(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stopGateway(gateway)) }()
	if err := d.traffic(ctx); err != nil {
		return err
	}
	if !d.keep {
		return nil
	}
	d.invite()
	<-ctx.Done()
	d.say("stopping")
	return nil
}

// makeDir makes the directory of configuration and logs. The lab is ours alone by
// now, so what is there of the name is of a run that was killed.
func (d *demo) makeDir() (err error) {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "xgw-demo-*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Getuid()) {
			continue // another user's
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what an earlier run left: %w", err)
		}
	}
	d.dir, err = os.MkdirTemp("", "xgw-demo-")
	return err
}

func (d *demo) startUpstream() (stop func(), err error) {
	l, err := d.lab.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		return nil, fmt.Errorf("start upstream: %w", err)
	}
	s := &http.Server{Handler: lab.NewUpstream(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(l) }()
	return func() { _ = s.Close() }, nil
}

// startGateway runs this very program in the gateway's namespace.
func (d *demo) startGateway(ctx context.Context) (*exec.Cmd, error) {
	path := filepath.Join(d.dir, "gateway.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, demoConfig, demoSynLimit, d.dir, d.dir), 0o600); err != nil {
		return nil, err
	}
	script := filepath.Join(d.dir, "ratelimit.lua")
	if err := os.WriteFile(script, fmt.Appendf(nil, demoLua, demoKeyRate), 0o600); err != nil {
		return nil, err
	}
	// What an earlier run that was killed left of the kernel plane.
	_ = d.inGateway("detach", lab.EdgeInterface).Run()
	log, err := os.Create(filepath.Join(d.dir, "gateway.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "--instance", demoInstance, "run", "-c", path)
	cmd.Stdout, cmd.Stderr = log, log
	// A ^C at the terminal is for this process, which then ends the gateway in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.lab.Start(lab.Gateway, cmd); err != nil {
		return nil, fmt.Errorf("start gateway: %w", err)
	}
	if err := d.waitReady(ctx, log.Name()); err != nil {
		return nil, errors.Join(err, d.stopGateway(cmd))
	}
	return cmd, nil
}

func (d *demo) waitReady(ctx context.Context, log string) error {
	for range 200 {
		text, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		if bytes.Contains(text, []byte("xgw: serving on")) {
			return nil
		}
		if bytes.Contains(text, []byte("xgw: start gateway")) {
			return fmt.Errorf("the gateway did not start:\n%s", text)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	text, _ := os.ReadFile(log)
	return fmt.Errorf("the gateway was not ready in 10 s:\n%s", text)
}

func (d *demo) stopGateway(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	late := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		text, _ := os.ReadFile(filepath.Join(d.dir, "gateway.log"))
		return fmt.Errorf("the gateway ended with %w:\n%s", err, text)
	}
	return nil
}

// inGateway is a command of this program in the gateway's namespace.
func (d *demo) inGateway(args ...string) *inNamespace {
	cmd := exec.Command("/proc/self/exe", append([]string{"--instance", demoInstance}, args...)...)
	return &inNamespace{d.lab, cmd}
}

type inNamespace struct {
	lab *lab.Lab
	cmd *exec.Cmd
}

func (c *inNamespace) Run() error {
	if err := c.lab.Start(lab.Gateway, c.cmd); err != nil {
		return err
	}
	return c.cmd.Wait()
}

func (c *inNamespace) Output() ([]byte, error) {
	var out bytes.Buffer
	c.cmd.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// traffic is the story: quiet, then a flood with the client going on, then an abuser.
func (d *demo) traffic(ctx context.Context) error {
	before, err := d.counts()
	if err != nil {
		return err
	}
	d.say("2. The gateway runs: XDP on %s in %s mode by %s, %d receive queues, a worker on each core.",
		before.Interface, before.Mode, before.Hook, before.Queues)
	d.say("3. Honest traffic, HTTPS from the client:")
	for _, h2 := range []bool{false, true} {
		if err := d.honest(ctx, h2, "quiet"); err != nil {
			return err
		}
	}
	d.say("4. The attacker sends %d SYNs a second from %s; each source may send %d.", demoRate, demoSources, demoSynLimit)
	flood, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan int, 1)
	failed := make(chan error, 1)
	go func() {
		n, err := d.lab.Flood(flood, lab.Flood{
			Sources: netip.MustParsePrefix(demoSources), Target: netip.AddrPortFrom(lab.GatewayAddr, 443), Rate: demoRate,
		})
		failed <- err
		sent <- n
	}()
	for _, h2 := range []bool{false, true} {
		if err := d.honest(ctx, h2, "flood"); err != nil {
			return err
		}
	}
	stop()
	if err := <-failed; err != nil {
		return err
	}
	if err := d.escalation(ctx); err != nil {
		return err
	}
	return d.report(before, <-sent)
}

func (d *demo) honest(ctx context.Context, h2 bool, when string) error {
	load := lab.Load{
		URL: "https://" + lab.GatewayAddr.String() + "/", HTTP2: h2, Parallel: 16, Duration: d.phase,
		Dial: d.lab.DialFrom(lab.Client),
	}
	r := load.Run(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	name := "HTTP/1.1"
	if h2 {
		name = "HTTP/2  "
	}
	d.say("   %s %s %7.0f requests/s   p50 %-9s p99 %-9s errors %d", name, when, r.Rate(),
		r.P50.Round(10*time.Microsecond), r.P99.Round(10*time.Microsecond), r.Errors)
	if r.Requests == 0 {
		return fmt.Errorf("no request went through: %w", r.FirstError)
	}
	return nil
}

func (d *demo) counts() (*interfaceStatus, error) {
	out, err := d.inGateway("status", lab.EdgeInterface, "--json").Output()
	if err != nil {
		return nil, fmt.Errorf("read counts: %w", err)
	}
	s := parseStatus(out)
	if s == nil {
		return nil, fmt.Errorf("read counts: %q", out)
	}
	return s, nil
}

// parseStatus reads what `xgw status INTERFACE --json` prints.
func parseStatus(out []byte) *interfaceStatus {
	var all []interfaceStatus
	if json.Unmarshal(out, &all) != nil || len(all) != 1 {
		return nil
	}
	return &all[0]
}

// dropped counts packets whose reason begins like that.
func (s *interfaceStatus) dropped(reason string) (n uint64) {
	for _, c := range s.Counts {
		if c.Verdict == "drop" && strings.HasPrefix(c.Reason, reason) {
			n += c.Packets
		}
	}
	return n
}

func (d *demo) report(before *interfaceStatus, sent int) error {
	after, err := d.counts()
	if err != nil {
		return err
	}
	d.say("6. What XDP counted on %s:", after.Interface)
	writeStatus(d.env, *after)
	dropped := after.dropped("source_limit")
	d.say("   Of %d SYNs the attacker sent, %d were dropped at the queue: %.1f %%.", sent, dropped, 100*float64(dropped)/float64(max(sent, 1)))
	if dropped == 0 {
		return errors.New("nothing of the flood was dropped")
	}
	return d.showMetrics()
}

var interesting = regexp.MustCompile(`^xgw_(packets_total\{.*ingress.*(source_limit|"tcp").*|requests_total\{.*route="hello".*|verdicts_total\{.*|request_limit_requests_total\{.*"keys".*|tls_handshakes_total\{.*(full|resumed).*|worker_info.*|steered.*)`)

func (d *demo) showMetrics() error {
	client := &http.Client{Transport: &http.Transport{DialContext: d.lab.DialFrom(lab.Gateway), DisableKeepAlives: true}, Timeout: 5 * time.Second}
	r, err := client.Get("http://127.0.0.1:9090/metrics")
	if err != nil {
		return fmt.Errorf("read metrics: %w", err)
	}
	defer r.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(r.Body); err != nil {
		return fmt.Errorf("read metrics: %w", err)
	}
	d.say("7. Some of :9090/metrics:")
	for _, line := range strings.Split(text.String(), "\n") {
		if interesting.MatchString(line) && !strings.HasSuffix(line, " 0") {
			d.say("   %s", line)
		}
	}
	return nil
}

func (d *demo) invite() {
	d.say(`
It stays up until ^C. In another terminal, as root:
   ip netns exec demo-client curl -sk https://198.51.100.2/headers
   ip netns exec demo-client curl -sk --http1.1 -o /dev/null -w '%%{http_code}\n' https://198.51.100.2/bytes/1000000
   ip netns exec demo-gateway curl -s http://127.0.0.1:9090/metrics
   bpftool map dump pinned /sys/fs/bpf/xgw-demo/edge0/ingress_counts
   tail -f %s/access.log`, d.dir)
}
