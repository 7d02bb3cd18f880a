// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

// A flood of SYNs from ten million forged addresses, as fast as the machine sends, and a
// client beside it that opens a new connection for each request: it keeps 99 of 100, every
// packet is counted once, and no table grows, for they cannot.
func TestClientBesideTenMillionSources(t *testing.T) {
	needRoot(t, "makes a lab")
	sources := 10_000_000
	if testing.Short() {
		sources = 300_000
	}
	l := mustLab(t, "xgwflood")
	ln, err := l.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: lab.NewUpstream()}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	dir := t.TempDir()
	startGateway(t, func(cmd *exec.Cmd) error { return l.Start(lab.Gateway, cmd) }, "flood", dir,
		gatewayYAML(dir, ":443", "203.0.113.2:8080", `workers: 1
interfaces: [{name: edge0, mode: native}]
packet_limits:
  - {name: syns, key: source, count: syns, rate: 100, burst: 200}
  - {name: nets, key: prefix, count: syns, rate: 1k}
  - {name: queue, key: queue, count: syns, rate: 2k, burst: 1k}
`))
	c := newClientIn(l)
	c.Timeout = 5 * time.Second
	url := "https://" + lab.GatewayAddr.String() + "/"
	for range 3 { // a known good client: it has completed handshakes
		get(t, c, url)
		c.CloseIdleConnections()
	}
	before := statusOf(t, l, "flood")
	check := countsAgree(t, l, "flood")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	good, bad := make(chan int, 1), make(chan int, 1)
	go func() {
		ok, failed := 0, 0
		for ctx.Err() == nil {
			r, err := c.Get(url)
			switch {
			case ctx.Err() != nil:
			case err != nil || r.StatusCode != http.StatusOK:
				failed++
			default:
				ok++
			}
			if err == nil {
				r.Body.Close()
			}
			c.CloseIdleConnections()
			time.Sleep(20 * time.Millisecond)
		}
		good <- ok
		bad <- failed
	}()
	started := time.Now()
	sent, err := l.Flood(context.Background(), lab.Flood{
		Sources: netip.MustParsePrefix("10.0.0.0/8"), Target: netip.AddrPortFrom(lab.GatewayAddr, 443), Count: sources,
	})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(started)
	cancel()
	ok, failed := <-good, <-bad
	check()
	after := statusOf(t, l, "flood")
	t.Logf("%d SYNs sent in %s, %d of them dropped; the client: %d answers, %d failures; %+v",
		sent, took.Round(time.Millisecond), after.drops("queue_limit")-before.drops("queue_limit"), ok, failed, after.Tables)
	if failed*100 > ok+failed || ok < 10 {
		t.Errorf("the client beside the flood: %d answers, %d failures", ok, failed)
	}
	if dropped := after.drops("queue_limit") - before.drops("queue_limit"); dropped < uint64(sent)/2 {
		t.Errorf("%d of %d SYNs dropped by the queue's limit: the flood was none", dropped, sent)
	}
	if after.Tables.VerifiedLive != 0 || after.Tables.VerifiedAdded > 3 {
		t.Errorf("strangers were taken for verified: %+v", after.Tables)
	}
}

func statusOf(t *testing.T, l *lab.Lab, instance string) *interfaceStatus {
	t.Helper()
	var all []interfaceStatus
	if err := json.Unmarshal([]byte(mustXGW(t, l, "--instance", instance, "status", "edge0", "--json")), &all); err != nil || len(all) != 1 {
		t.Fatalf("status: %v", err)
	}
	return &all[0]
}

func (s *interfaceStatus) drops(reason string) (n uint64) {
	for _, c := range s.Counts {
		if c.Verdict == "drop" && c.Reason == reason {
			n += c.Packets
		}
	}
	return n
}

func (s *interfaceStatus) ingress() (n uint64) {
	for _, c := range s.Counts {
		if c.QueueName() != "all" {
			n += c.Packets
		}
	}
	return n
}
