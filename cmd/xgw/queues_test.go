// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/lab"
)

// sysfsOf runs the command with a /sys of the namespace that it is started in.
const sysfsOf = `mount --make-rprivate / && mount -t sysfs sysfs /sys && exec "$0" "$@"`

// queues runs `xgw queues` in the gateway's namespace.
func (w *ward) queues(words ...string) (status int, out string) {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	var o bytes.Buffer
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", sysfsOf, self, "--instance", w.instance, "queues"}, words...)...)
	cmd.Stdout, cmd.Stderr = &o, &o
	if err := w.Start(lab.Gateway, cmd); err != nil {
		w.t.Fatal(err)
	}
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), o.String()
}

// queuesScript runs a shell's command with a /sys of the gateway's namespace.
func (w *ward) queuesScript(text string) {
	w.t.Helper()
	cmd := exec.Command("unshare", "-m", "sh", "-c", sysfsOf, "sh", "-c", text)
	if err := w.Start(lab.Gateway, cmd); err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("%s: %v", text, err)
	}
}

func (w *ward) report() (r queueReport) {
	w.t.Helper()
	status, out := w.queues(lab.EdgeInterface, "--json")
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != 0 {
		w.t.Fatalf("status %d, %v\n%s", status, err, out)
	}
	return r
}

// share is what part of 60 new connections the worker of the CPU that received them took.
func (w *ward) share() float64 {
	w.t.Helper()
	count := func() (local, all uint64) {
		for _, s := range w.report().Steering {
			local, all = local+s.Local, all+s.Local+s.Fallback+s.Refused
		}
		return local, all
	}
	local, all := count()
	for range 60 {
		get(w.t, w.client, "https://198.51.100.2/")
	}
	nowLocal, nowAll := count()
	if nowAll-all < 60 {
		w.t.Fatalf("%d connections were counted, of 60", nowAll-all)
	}
	return float64(nowLocal-local) / float64(nowAll-all)
}

// One worker, on the first core, and packets that arrive on all: after --spread the core that
// receives is the worker's, which is measured; what was set is undone.
func TestQueuesSpread(t *testing.T) {
	needRoot(t, "makes a lab")
	cores, err := host.AllowedCores()
	if err != nil || len(cores) < 2 {
		t.Skip("needs two cores")
	}
	w := newWard(t, "")
	// The core that a veth's packets are received on is the sender's: the last one.
	w.client.Transport = &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = w.In(lab.Client, func() error {
				c, err = dialOn(cores[len(cores)-1])(ctx, network, address)
				return err
			})
			return c, err
		},
	}
	before := w.report()
	if len(before.Queues.Queues) < 2 || !before.Running || len(before.Workers) != 1 || before.Workers[0] != cores[0] || before.Queues.Queues[0].RPS != "" {
		t.Fatalf("%+v", before)
	}
	away := w.share()
	status, out := w.queues(lab.EdgeInterface, "--spread")
	if status != 0 || !strings.Contains(out, "rps_cpus") || !strings.Contains(out, "--undo") {
		t.Fatalf("status %d\n%s", status, out)
	}
	for _, q := range w.report().Queues.Queues {
		if q.Receives && q.RPS == "" {
			t.Errorf("queue %+v is spread nowhere", q)
		}
	}
	near := w.share()
	t.Logf("share of connections taken where they were received: %.2f, spread %.2f", away, near)
	if away > 0.5 || near < 0.9 {
		t.Errorf("the share of connections taken where they were received was %.2f, and is %.2f", away, near)
	}
	if status, out := w.queues(lab.EdgeInterface); status != 0 || !strings.Contains(out, "of the CPU that received them") {
		t.Errorf("status %d\n%s", status, out)
	}
	// Somebody takes a queue away: it is seen, and put right.
	if r := w.report(); len(r.Drift) > 0 {
		t.Errorf("drift %v", r.Drift)
	}
	w.queuesScript("echo 0 > /sys/class/net/edge0/queues/rx-0/rps_cpus")
	if r := w.report(); len(r.Drift) != 1 || !strings.Contains(r.Drift[0].Object, "rx-0/rps_cpus") {
		t.Errorf("drift %v", r.Drift)
	}
	if status, out := w.queues(lab.EdgeInterface, "--spread"); status != 0 || len(w.report().Drift) > 0 {
		t.Errorf("status %d, not repaired\n%s", status, out)
	}
	if status, out := w.queues(lab.EdgeInterface, "--undo"); status != 0 {
		t.Errorf("status %d\n%s", status, out)
	}
	after := w.report()
	for i, q := range after.Queues.Queues {
		if was := before.Queues.Queues[i]; q.RPS != was.RPS || q.XPS != was.XPS {
			t.Errorf("queue %d: RPS %q, XPS %q; before %q and %q", i, q.RPS, q.XPS, was.RPS, was.XPS)
		}
	}
	// A /sys of another namespace is refused: it may have an interface of that name.
	if status, _, errs := w.xgw("queues", lab.EdgeInterface, "--spread"); status != exitFailure || !strings.Contains(errs, "another network namespace") {
		t.Errorf("status %d, %s", status, errs)
	}
}
