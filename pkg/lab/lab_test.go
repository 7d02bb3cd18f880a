// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The test binary can be a process that makes a lab and is killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "hold" {
		if _, err := New(Options{Name: os.Args[2]}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("made")
		select {}
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

func mustNew(t *testing.T, name string) *Lab {
	t.Helper()
	needRoot(t)
	l, err := New(Options{Name: name, Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// remains lists what a lab of this name has left on the machine.
func remains(t *testing.T, name string) (left []string) {
	t.Helper()
	for _, host := range hosts {
		if h, err := netns.GetFromName(name + "-" + host); err == nil {
			h.Close()
			left = append(left, "namespace of "+host)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" {
			left = append(left, "link "+l.Attrs().Name)
		}
	}
	if _, err := os.Stat(markerRoot + "/" + name); err == nil {
		left = append(left, "marker")
	}
	return left
}

func TestHostsReachEachOther(t *testing.T) {
	l := mustNew(t, "labreach")
	for _, row := range []struct{ from, to, address string }{
		{Client, Gateway, GatewayAddr.String()},
		{Client, Gateway, GatewayAddr6.String()},
		{Attacker, Gateway, GatewayAddr.String()},
		{Gateway, Upstream, UpstreamAddr.String()},
	} {
		ln, err := l.Listen(row.to, "tcp", net.JoinHostPort(row.address, "0"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		c, err := l.DialFrom(row.from)(ctx, "tcp", ln.Addr().String())
		cancel()
		if err != nil {
			t.Errorf("%s to %s: %v", row.from, row.address, err)
		} else {
			c.Close()
		}
		ln.Close()
	}
}

func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	const name = "lableft"
	before := remains(t, name)
	l, err := New(Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	// A process in the lab would keep its namespace alive.
	sleeper := exec.Command("sleep", "1000")
	if err := l.Start(Client, sleeper); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- sleeper.Wait() }()
	for range 2 { // the second has nothing to do
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("a process of the lab goes on")
		_ = sleeper.Process.Kill()
	}
	if after := remains(t, name); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("left: %v", after)
	}
}

func TestLeftoversOfAKilledRunAreRemoved(t *testing.T) {
	needRoot(t)
	const name = "labkilled"
	before := remains(t, name)
	holder := exec.Command("/proc/self/exe", "hold", name)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "made" {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := New(Options{Name: name}); err == nil || !strings.Contains(err.Error(), "uses it") {
		t.Errorf("a lab in use was made again: %v", err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if len(remains(t, name)) <= len(before) {
		t.Fatal("the killed process left nothing: the test shows nothing")
	}
	l, err := New(Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, name); fmt.Sprint(left) != fmt.Sprint(before) {
		t.Errorf("left: %v, before %v", left, before)
	}
}

func TestForeignNamespaceIsNotTaken(t *testing.T) {
	needRoot(t)
	const name = "labforeign"
	if err := onThread(func() error { h, err := netns.NewNamed(name + "-client"); h.Close(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netns.DeleteNamed(name + "-client") }()
	if _, err := New(Options{Name: name}); err == nil || !strings.Contains(err.Error(), "ip netns delete") {
		t.Errorf("a namespace of somebody else was taken: %v", err)
	}
	if h, err := netns.GetFromName(name + "-client"); err != nil {
		t.Error("a namespace of somebody else was removed")
	} else {
		h.Close()
	}
}

// Every frame of a flood arrives, on all queues, and none besides.
func TestFloodIsExact(t *testing.T) {
	l := mustNew(t, "labflood")
	tcp := func() uint64 {
		c, err := l.Counters(Gateway, EdgeInterface)
		if err != nil {
			t.Fatal(err)
		}
		return c.RxBytes
	}
	time.Sleep(100 * time.Millisecond)
	before := tcp()
	sent, err := l.Flood(context.Background(), Flood{
		Sources: netip.MustParsePrefix("10.0.0.0/16"), Target: netip.AddrPortFrom(GatewayAddr, 443), Count: 5000, Rate: 20000,
	})
	if err != nil || sent != 5000 {
		t.Fatalf("sent %d: %v", sent, err)
	}
	for range 100 {
		if tcp()-before >= 5000*synFrame {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	// A multicast report or two of IPv6 may come beside, and no more.
	if got := tcp() - before; got < 5000*synFrame || got > 5000*synFrame+1000 {
		t.Errorf("%d bytes arrived, %d were sent", got, 5000*synFrame)
	}
}

func TestForgedFramesAreValid(t *testing.T) {
	f := Flood{Sources: netip.MustParsePrefix("10.66.0.0/30"), Target: netip.MustParseAddrPort("198.51.100.2:443")}
	frames := f.frames([6]byte{2}, [6]byte{4})
	for n := range 10 {
		b := frames[n][:]
		f.forge(b, n)
		if fold(sum(b[14:34])) != 0xffff {
			t.Errorf("frame %d: IPv4 checksum is wrong", n)
		}
		if fold(sum(b[26:34])+6+20+sum(b[34:])) != 0xffff {
			t.Errorf("frame %d: TCP checksum is wrong", n)
		}
		if want := byte(n % 4); b[29] != want || b[26] != 10 || b[27] != 66 {
			t.Errorf("frame %d: source %v, want 10.66.0.%d", n, b[26:30], want)
		}
	}
}

func TestUpstreamServesWhatItSays(t *testing.T) {
	s := httptest.NewServer(NewUpstream())
	defer s.Close()
	for path, want := range map[string]string{
		"/bytes/5": "\x00\x01\x02\x03\x04", "/bytes/0": "", "/chunked/3": "\x00\x01\x02",
	} {
		r, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	r, err := http.Post(s.URL+"/hash", "", strings.NewReader("\x00\x01\x02"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if got, _ := io.ReadAll(r.Body); string(got) != BodyHash(3)+" 3\n" {
		t.Errorf("/hash: %q", got)
	}
	for _, bad := range []string{"/bytes/-1", "/bytes/x"} {
		r, err := http.Get(s.URL + bad)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != 400 {
			t.Errorf("%s: status %d", bad, r.StatusCode)
		}
	}
}

func TestLoadReportsErrors(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer s.Close()
	good := (&Load{URL: s.URL + "/", Parallel: 2, Duration: 200 * time.Millisecond}).Run(context.Background())
	if good.Errors != 0 || good.Requests == 0 || good.P50 > good.P99 || good.P99 == 0 {
		t.Errorf("good: %+v", good)
	}
	bad := (&Load{URL: s.URL + "/x", Parallel: 2, Duration: 200 * time.Millisecond}).Run(context.Background())
	if bad.Errors != 2 || bad.Requests != 0 || bad.FirstError == nil {
		t.Errorf("bad: %+v", bad)
	}
}

func TestPercentile(t *testing.T) {
	var ms []time.Duration
	for i := 1; i <= 100; i++ {
		ms = append(ms, time.Duration(i)*time.Millisecond)
	}
	if p := percentile(ms, 50); p != 51*time.Millisecond {
		t.Errorf("p50 %v", p)
	}
	if p := percentile(ms, 99); p != 100*time.Millisecond {
		t.Errorf("p99 %v", p)
	}
	if percentile(nil, 50) != 0 {
		t.Error("p50 of nothing")
	}
}
