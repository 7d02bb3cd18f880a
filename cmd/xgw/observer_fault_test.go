// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/telemetry/telemetrypb"
)

// traffic is steady requests, each after a pause, and one of ten over a connection of its own.
type traffic struct {
	url  string
	stop chan struct{}
	wg   sync.WaitGroup

	mu    sync.Mutex
	took  []time.Duration
	fault error
}

func startTraffic(url string) *traffic {
	r := &traffic{url: url, stop: make(chan struct{})}
	for i := range 4 {
		kept := client(i%2 == 0)
		r.wg.Go(func() {
			defer kept.CloseIdleConnections()
			for n := 0; ; n++ {
				select {
				case <-r.stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				c := kept
				if n%10 == 9 {
					c = client(i%2 == 0)
				}
				began := time.Now()
				err := ok(c, r.url)
				r.note(time.Since(began), err)
				if c != kept {
					c.CloseIdleConnections()
				}
			}
		})
	}
	return r
}

func ok(c *http.Client, url string) error {
	r, err := c.Get(url)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", r.StatusCode)
	}
	return err
}

func (r *traffic) note(took time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.took = append(r.took, took)
	r.fault = errors.Join(r.fault, err)
}

// during is the 99th percentile of what ended since the last call, after so long.
func (r *traffic) during(t *testing.T, d time.Duration) time.Duration {
	t.Helper()
	r.mu.Lock()
	r.took = r.took[:0]
	r.mu.Unlock()
	time.Sleep(d)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil {
		t.Fatalf("requests were lost: %v", r.fault)
	}
	if len(r.took) < 10 {
		t.Fatalf("%d requests in %s: that is no traffic", len(r.took), d)
	}
	slices.Sort(r.took)
	return r.took[len(r.took)*99/100]
}

func (r *traffic) end() { close(r.stop); r.wg.Wait() }

// least is a 99th percentile below which nothing is told apart from the machine's own noise.
const least = 5 * time.Millisecond

// beside wants the traffic's 99th percentile beside a fault within three times that without, in
// one of three rounds.
func (r *traffic) beside(t *testing.T, what string, d time.Duration, fault func() (undo func())) {
	t.Helper()
	var quiet, loud time.Duration
	for range 3 {
		quiet = r.during(t, time.Second)
		undo := fault()
		loud = r.during(t, d)
		undo()
		t.Logf("%s: p99 %s, %s without", what, loud.Round(10*time.Microsecond), quiet.Round(10*time.Microsecond))
		if loud <= 3*max(quiet, least) {
			return
		}
	}
	t.Errorf("%s: p99 %s, more than three times the %s without", what, loud, quiet)
}

// hangingScrapers ask for the metrics and do not take them: as many as the listener has room
// for, and as many watchers by gRPC.
func hangingScrapers(t *testing.T, address string) (undo func()) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var open []io.Closer
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	for range 64 {
		c, err := small.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	for range 16 {
		c, err := grpc.NewClient(u.Host, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(1<<16))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		watch, err := telemetrypb.NewTelemetryClient(c).Watch(t.Context(), &telemetrypb.WatchRequest{Interval: durationpb.New(100 * time.Millisecond)})
		if err != nil {
			t.Fatal(err)
		}
		_ = watch // nobody receives
	}
	// Who does not hang is served beside them.
	eventually(t, "a further scraper is served", func() bool { return ok(http.DefaultClient, address) == nil })
	if err := ok(http.DefaultClient, "http://"+u.Host+"/healthz"); err != nil {
		t.Errorf("beside scrapers that hang: %v", err)
	}
	return func() {
		for _, c := range open {
			c.Close()
		}
	}
}

// Who looks, or should, does not slow who is served: scrapers that hang in the middle, and a
// supervisor that is stopped. Meanwhile a terminal shows what there is, and says what is wrong.
func TestHangingObservers(t *testing.T) {
	stopped := 10 * time.Second
	if os.Getenv("XGW_LONG") != "" {
		stopped = 30 * time.Second
	}
	dir := t.TempDir()
	var routes strings.Builder
	for i := range 1000 { // a scrape is longer than any socket's buffer
		fmt.Fprintf(&routes, "  - {name: route%d, path: /%d/, reply: {status: 200}}\n", i, i)
	}
	yaml := strings.Replace(gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 2\npin: false\n"), "routes:\n", "routes:\n"+routes.String(), 1)
	const instance = "observers"
	g := startGateway(t, startHere, instance, dir, yaml)
	if n := len(g.scrape(t)); n < 1<<20 {
		t.Fatalf("a scrape has %d bytes: nobody hangs in it", n)
	}
	r := startTraffic("https://" + g.address + "/bytes/1000")
	defer r.end()
	r.during(t, time.Second) // connections are there

	r.beside(t, "80 scrapers that hang", 3*time.Second, func() func() { return hangingScrapers(t, g.metrics) })
	eventually(t, "a scraper that does not hang is served", func() bool { return strings.Contains(g.scrape(t), "\nxgw_generation 1\n") })

	before := sumSeries(t, g.scrape(t), "xgw_request_outcomes_total")
	pause := stopped
	r.beside(t, "a supervisor that is stopped", stopped, func() func() {
		if err := g.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		shown := make(chan error, 1)
		go func() { shown <- saysHanging(instance, pause) }()
		return func() {
			if err := g.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if err := <-shown; err != nil {
				t.Error(err)
			}
		}
	})
	eventually(t, "the supervisor is back, and has missed no request", func() bool {
		text := g.scrape(t)
		return sumSeries(t, text, "xgw_request_outcomes_total") > before+100 && strings.Contains(text, `xgw_request_outcomes_total{outcome="panic"} 0`)
	})
}

// saysHanging wants top to work, and to say that the supervisor hangs, within the time.
func saysHanging(instance string, within time.Duration) error {
	var f shownFrame
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		status, out, errs := inProcess("--instance", instance, "top", "--once", "--json", "--interval", "100ms")
		if status != 0 {
			return fmt.Errorf("top: status %d: %s", status, errs)
		}
		f = shownFrame{}
		if err := json.Unmarshal([]byte(out), &f); err != nil {
			return err
		}
		if f.Gateway.Ready != 2 {
			return fmt.Errorf("top shows %d workers, of 2", f.Gateway.Ready)
		}
		if f.Gateway.Supervisor == ledger.Hanging {
			return nil
		}
	}
	return fmt.Errorf("the supervisor is %s for top", f.Gateway.Supervisor)
}
