// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/lab"
)

// offer is what one sender offers of a limit, in percent of its rate.
type offer struct {
	percent int
	from    string // an address of the client's
	port    int
}

// An offer for each source, prefix and port at once, so that none waits for another.
var offers = []offer{{50, "10.9.1.1", 9001}, {100, "10.9.2.1", 9002}, {150, "10.9.3.1", 9003}, {300, "10.9.4.1", 9004}}

// Limits hold for real sockets: offered half of the rate, the rate, half as much again and
// three times the rate, what arrives is what was offered, or the rate and once the burst.
func TestLimitsForSockets(t *testing.T) {
	needRoot(t, "makes a lab")
	const rate, burst, seconds, payload = 1000, 100, 3, 958 // a frame of 1000 bytes
	l := labOfSources(t)
	for _, row := range []struct {
		name, limits string
		alone        bool // the offers share the limit: one at a time
		shared       bool // strangers share the burst: a quarter of it is not for them
	}{
		{"source packets", "{name: x, key: source, count: packets, rate: 1000, burst: 100}", false, false},
		{"source bytes", "{name: x, key: source, count: bytes, rate: 1m, burst: 100k}", false, false},
		{"prefix packets", "{name: x, key: prefix, count: packets, rate: 1000, burst: 100}", false, true},
		{"port packets", `{name: a, key: port, port: 9001, count: packets, rate: 1000, burst: 100}
  - {name: b, key: port, port: 9002, count: packets, rate: 1000, burst: 100}
  - {name: c, key: port, port: 9003, count: packets, rate: 1000, burst: 100}
  - {name: d, key: port, port: 9004, count: packets, rate: 1000, burst: 100}`, false, true},
		{"interface bytes", "{name: x, key: interface, count: bytes, rate: 1m, burst: 100k}", true, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			g := startGateway(t, inHost(l, lab.Gateway), "limits", dir, gatewayYAML(dir, ":443", "203.0.113.2:8080",
				"workers: 1\ninterfaces: [{name: edge0, mode: native}]\npacket_limits:\n  - "+row.limits+"\n"))
			defer g.stop(t)
			check := countsAgree(t, l, "limits")
			judge := func(o offer) {
				// Never more; less where a machine that stands still for a while forfeits what it could have sent.
				for round := range 3 {
					sink := listenUDP(t, l, o.port)
					n := rate * seconds * o.percent / 100
					took := sendUDP(t, l, o, payload, n, time.Second*100/time.Duration(rate*o.percent))
					got := sink.count()
					most := rate*took.Seconds() + burst
					least := most
					if row.shared {
						least -= burst / 4
					}
					if float64(n) < most {
						most, least = float64(n), min(least, float64(n))
					}
					t.Logf("%d%% of the rate: %d of %d in %s, %.3f of what the limit says", o.percent, got, n, took.Round(time.Millisecond), float64(got)/most)
					enough := float64(got) >= least*0.98
					if float64(got) > most*1.02 || round == 2 && !enough {
						t.Errorf("%d%% of the rate: %d packets of %d arrived in %s, want %.0f to %.0f", o.percent, got, n, took, least, most)
					}
					if enough {
						return
					}
					time.Sleep(time.Second * burst / rate) // the burst is whole again
				}
			}
			var all sync.WaitGroup
			for _, o := range offers {
				if row.alone {
					judge(o)
					continue
				}
				all.Go(func() { judge(o) })
			}
			all.Wait()
			check()
		})
	}
}

// A source's limit of SYNs holds for its connection attempts, and never touches what it has
// established.
func TestSYNLimitForSockets(t *testing.T) {
	needRoot(t, "makes a lab")
	const rate, burst, seconds = 100, 20, 3
	l := labOfSources(t)
	dir := t.TempDir()
	startGateway(t, inHost(l, lab.Gateway), "synlimit", dir, gatewayYAML(dir, ":443", "203.0.113.2:8080",
		"workers: 1\ninterfaces: [{name: edge0, mode: native}]\npacket_limits: [{name: syns, key: source, count: syns, rate: 100, burst: 20}]\n"))
	echo, err := l.Listen(lab.Gateway, "tcp", "198.51.100.2:9000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	check := countsAgree(t, l, "synlimit")
	var all sync.WaitGroup
	for _, o := range offers {
		all.Go(func() {
			accepted := acceptTCP(t, l, o.port)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan int)
			go func() { done <- converse(t, l, ctx, o.from) }()
			time.Sleep(100 * time.Millisecond)
			n := rate * seconds * o.percent / 100
			for round := range 3 {
				before := accepted.Load()
				took, again := connectTCP(t, l, o, n, time.Second*100/time.Duration(rate*o.percent))
				// One SYN of the burst was the conversation's.
				got, want := float64(accepted.Load()-before), min(float64(n), rate*took.Seconds()+burst-1)
				t.Logf("%d%% of the rate: %.0f of %d connections in %s", o.percent, got, n, took.Round(time.Millisecond))
				most := want*1.02 + 2
				if again { // for as long as these were tried
					most += rate * patience.Seconds()
				}
				// Never more. Less where a machine stands still, and forfeits what it could have sent, or is
				// too slow to connect so often.
				enough, kept := got >= want*0.9-2, took < seconds*time.Second*21/20 && !again
				if got > most || round == 2 && kept && !enough {
					t.Errorf("%d%% of the rate: %.0f connections of %d in %s, want %.0f", o.percent, got, n, took, want)
				}
				if enough {
					break
				}
				time.Sleep(time.Second * burst / rate) // the burst is whole again
			}
			cancel()
			// Of some two thousand a round. One or two may be sent again for an answer that a busy machine was late with.
			if retransmitted := <-done; retransmitted > 5 {
				t.Errorf("%d%% of the rate: the connection that was there lost %d segments", o.percent, retransmitted)
			}
		})
	}
	all.Wait()
	check()
}

// Port guard, pinhole, deny rules and their confirmation, as clients see them.
func TestRulesForSockets(t *testing.T) {
	needRoot(t, "makes a lab")
	l := mustLab(t, "xgwrules")
	for _, port := range []int{22, 9001, 9002} {
		acceptTCP(t, l, port)
	}
	// Silence is believed at once where it is wanted.
	reach := func(host string, port int, want bool) bool {
		t.Helper()
		patience := 400 * time.Millisecond
		if want {
			patience = 10 * time.Second
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := l.DialFrom(host)(ctx, "tcp", fmt.Sprintf("198.51.100.2:%d", port))
		if err == nil {
			c.Close()
		} else if !errors.Is(err, context.DeadlineExceeded) && !os.IsTimeout(err) {
			t.Errorf("%s to port %d: %v, want silence or a connection", host, port, err)
		}
		return err == nil
	}
	type reached struct {
		host string
		port int
		want bool
	}
	start := func(t *testing.T, rules string, more ...string) *running {
		dir := t.TempDir()
		return startGateway(t, inHost(l, lab.Gateway), "rules", dir, gatewayYAML(dir, ":443", "203.0.113.2:8080",
			"workers: 1\ninterfaces: [{name: edge0, mode: native}]\n"+rules), more...)
	}
	for _, row := range []struct {
		name, rules string
		want        []reached
		counts      string // what was dropped, or would have been
	}{
		{"no rules", "port_guard: {mode: off}\n", []reached{{lab.Client, 443, true}, {lab.Client, 9002, true}, {lab.Client, 22, true}}, ""},
		{"port guard", "port_guard: {mode: enforce, tcp: [9001]}\n",
			[]reached{{lab.Client, 443, true}, {lab.Client, 9001, true}, {lab.Client, 9002, false}, {lab.Client, 22, false}}, "drop port_guard"},
		{"port guard and pinhole", "port_guard: {mode: enforce}\nadmin: [{source: 192.0.2.2, port: 22}]\n",
			[]reached{{lab.Client, 22, true}, {lab.Client, 443, true}, {lab.Attacker, 443, true}, {lab.Attacker, 22, false}}, "drop port_guard"},
		{"port guard that counts", "port_guard: {mode: count, tcp: [9001]}\n",
			[]reached{{lab.Client, 443, true}, {lab.Client, 9001, true}, {lab.Client, 9002, true}}, "dry run of port guard"},
		{"pinhole", "port_guard: {mode: enforce}\ndeny: [0.0.0.0/0]\nadmin: [{source: 192.0.2.2, port: 22}]\n",
			[]reached{{lab.Client, 22, true}, {lab.Client, 443, false}, {lab.Attacker, 22, false}, {lab.Attacker, 443, false}}, "drop deny"},
		{"deny and allow", "port_guard: {mode: off}\ndeny: [192.0.2.0/24]\nallow: [192.0.2.2]\n",
			[]reached{{lab.Client, 443, true}, {lab.Client, 9002, true}, {lab.Attacker, 443, false}}, "drop deny"},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := start(t, row.rules)
			defer g.stop(t)
			check := countsAgree(t, l, "rules")
			for _, r := range row.want {
				if got := reach(r.host, r.port, r.want); got != r.want {
					t.Errorf("%s reaches port %d: %t, want %t", r.host, r.port, got, r.want)
				}
			}
			// What the gateway itself connects to answers, whatever the rules.
			if !reachFromGateway(t, l) {
				t.Error("the gateway's own connection gets no answer")
			}
			var counted []string
			status := statusOf(t, l, "rules")
			for _, c := range status.Counts {
				if c.Verdict == "drop" {
					counted = append(counted, "drop "+c.Reason)
				}
			}
			for _, c := range status.Limits {
				if c.DryRun > 0 {
					counted = append(counted, "dry run of "+c.Name)
				}
			}
			if got := strings.Join(slices.Compact(counted), ", "); got != row.counts {
				t.Errorf("counted: %q, want %q", got, row.counts)
			}
			check()
		})
	}
	const deny = "deny: [192.0.2.0/24]\n"
	t.Run("not confirmed", func(t *testing.T) {
		g := start(t, deny, "--confirm", "8s")
		defer g.stop(t)
		check := countsAgree(t, l, "rules")
		if reach(lab.Client, 443, false) {
			t.Error("reached in spite of the rule")
		}
		time.Sleep(8 * time.Second)
		if !reach(lab.Client, 443, true) {
			t.Error("not reached, though the rule was never confirmed")
		}
		if out, err := xgwIn(t, l, "--instance", "rules", "confirm", "edge0"); err == nil || !strings.Contains(out, "nothing waits") {
			t.Errorf("confirmed when it was undone: %v, %s", err, out)
		}
		check()
		for range 100 { // the supervisor looks once a second
			if strings.Contains(g.log.String(), "not confirmed in time") {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("the log does not tell: %s", g.log)
	})
	t.Run("confirmed", func(t *testing.T) {
		g := start(t, deny, "--confirm", "5s")
		defer g.stop(t)
		mustXGW(t, l, "--instance", "rules", "confirm", "edge0")
		check := countsAgree(t, l, "rules")
		time.Sleep(5500 * time.Millisecond)
		if reach(lab.Client, 443, false) {
			t.Error("reached in spite of a confirmed rule")
		}
		check()
		if strings.Contains(g.log.String(), "not confirmed in time") {
			t.Errorf("the log tells of an undone rule: %s", g.log)
		}
	})
}

// reachFromGateway connects out through the edge and waits for a byte.
func reachFromGateway(t *testing.T, l *lab.Lab) bool {
	t.Helper()
	ln, err := l.Listen(lab.Client, "tcp", "192.0.2.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = c.Write([]byte{1})
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := l.DialFrom(lab.Gateway)(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = io.ReadFull(c, make([]byte, 1))
	return err == nil
}

func inHost(l *lab.Lab, host string) starter {
	return func(cmd *exec.Cmd) error { return l.Start(host, cmd) }
}

// labOfSources is a lab whose client also has the offers' addresses.
func labOfSources(t *testing.T) *lab.Lab {
	t.Helper()
	l := mustLab(t, "xgwsock")
	script := map[string]string{lab.Client: "", lab.Router: "ip route add 10.9.0.0/16 via 192.0.2.2\n"}
	for _, o := range offers {
		script[lab.Client] += "ip address add " + o.from + "/32 dev net0\n"
	}
	for host, text := range script {
		if err := l.In(host, func() error {
			out, err := exec.Command("sh", "-ec", text).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// countsAgree returns what checks that every packet received since is counted once.
func countsAgree(t *testing.T, l *lab.Lab, instance string) func() {
	t.Helper()
	// Nothing arrives between two looks that see the same.
	read := func() (counted, received uint64) {
		for range 50 {
			c, err := l.Counters(lab.Gateway, lab.EdgeInterface)
			if err != nil {
				t.Fatal(err)
			}
			now := statusOf(t, l, instance).ingress()
			if now == counted && c.RxPackets == received {
				break
			}
			counted, received = now, c.RxPackets
			time.Sleep(50 * time.Millisecond)
		}
		return counted, received
	}
	counted, received := read()
	return func() {
		t.Helper()
		nowCounted, nowReceived := read()
		if got, want := nowCounted-counted, nowReceived-received; got != want {
			t.Errorf("%d packets counted, %d received", got, want)
		}
	}
}

// udpSink counts the datagrams that arrive.
type udpSink struct {
	conn net.PacketConn
	n    atomic.Int64
	done chan struct{}
}

func listenUDP(t *testing.T, l *lab.Lab, port int) *udpSink {
	t.Helper()
	s := &udpSink{done: make(chan struct{})}
	err := l.In(lab.Gateway, func() (err error) {
		s.conn, err = net.ListenPacket("udp4", fmt.Sprintf("198.51.100.2:%d", port))
		return err
	})
	if err != nil {
		t.Error(err)
		return s
	}
	_ = s.conn.(*net.UDPConn).SetReadBuffer(4 << 20)
	go func() {
		defer close(s.done)
		b := make([]byte, 2048)
		for {
			if _, _, err := s.conn.ReadFrom(b); err != nil {
				return
			}
			s.n.Add(1)
		}
	}()
	return s
}

// count waits for what is under way, and ends the sink.
func (s *udpSink) count() int64 {
	if s.conn == nil {
		return 0
	}
	time.Sleep(200 * time.Millisecond)
	s.conn.Close()
	<-s.done
	return s.n.Load()
}

// sendUDP sends n datagrams, one each interval, and returns how long it took.
func sendUDP(t *testing.T, l *lab.Lab, o offer, payload, n int, interval time.Duration) time.Duration {
	t.Helper()
	var c net.Conn
	err := l.In(lab.Client, func() (err error) {
		c, err = (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(o.from)}}).Dial("udp4", fmt.Sprintf("198.51.100.2:%d", o.port))
		return err
	})
	if err != nil {
		t.Error(err)
		return time.Second
	}
	defer c.Close()
	b := make([]byte, payload)
	return paced(n, interval, func(i int) {
		binary.BigEndian.PutUint32(b, uint32(i))
		if _, err := c.Write(b); err != nil {
			t.Error(err)
		}
	})
}

// paced calls fn n times, at its times from the beginning, however late one was.
func paced(n int, interval time.Duration, fn func(int)) time.Duration {
	started := time.Now()
	for i := range n {
		time.Sleep(time.Until(started.Add(time.Duration(i) * interval)))
		fn(i)
	}
	return time.Since(started)
}

// acceptTCP takes connections at a port of the gateway's host for as long as the test runs.
func acceptTCP(t *testing.T, l *lab.Lab, port int) *atomic.Int64 {
	t.Helper()
	n := &atomic.Int64{}
	ln, err := l.Listen(lab.Gateway, "tcp", fmt.Sprintf("198.51.100.2:%d", port))
	if err != nil {
		t.Error(err)
		return n
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			c.Close()
		}
	}()
	return n
}

// patience is how long connectTCP waits; a SYN is sent again after a second.
const patience = 500 * time.Millisecond

// connectTCP makes n attempts to connect, one each interval; each is given up before its
// SYN would be sent again, or else it says so.
func connectTCP(t *testing.T, l *lab.Lab, o offer, n int, interval time.Duration) (took time.Duration, again bool) {
	t.Helper()
	var late atomic.Bool
	var from, to unix.SockaddrInet4
	from.Addr, to.Addr, to.Port = netip.MustParseAddr(o.from).As4(), lab.GatewayAddr.As4(), o.port
	err := l.In(lab.Client, func() error {
		var given sync.WaitGroup
		took = paced(n, interval, func(int) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			if err := unix.Bind(fd, &from); err != nil {
				t.Error(err)
			}
			if err := unix.Connect(fd, &to); err != unix.EINPROGRESS {
				t.Errorf("connect: %v", err)
			}
			given.Add(1)
			began := time.Now()
			time.AfterFunc(patience, func() {
				unix.Close(fd)
				if time.Since(began) > time.Second*9/10 {
					late.Store(true)
				}
				given.Done()
			})
		})
		given.Wait()
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return took, late.Load()
}

// converse sends and gets back a byte over one connection until ctx ends, and returns how
// many segments had to be sent again.
func converse(t *testing.T, l *lab.Lab, ctx context.Context, from string) int {
	var c net.Conn
	err := l.In(lab.Client, func() (err error) {
		c, err = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}).Dial("tcp4", "198.51.100.2:9000")
		return err
	})
	if err != nil {
		t.Error(err)
		return 0
	}
	defer c.Close()
	b := []byte{1}
	for ctx.Err() == nil {
		_, err := c.Write(b)
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		if err != nil {
			t.Error(err)
			return 0
		}
		time.Sleep(time.Millisecond)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Error(err)
		return 0
	}
	var info *unix.TCPInfo
	_ = raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err != nil {
		t.Error(err)
		return 0
	}
	return int(info.Total_retrans)
}
