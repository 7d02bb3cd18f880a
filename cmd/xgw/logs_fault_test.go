// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stallingReceiver takes syslog over TCP, until it is told to take nothing more.
type stallingReceiver struct {
	listener net.Listener
	reading  sync.Mutex // held: nothing is read
	gone     atomic.Bool
	all      sync.WaitGroup
}

func startStallingReceiver(t *testing.T) *stallingReceiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &stallingReceiver{listener: l}
	r.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*net.TCPConn).SetReadBuffer(64 << 10)
			r.all.Go(func() { r.read(c) })
		}
	})
	t.Cleanup(r.close)
	return r
}

func (r *stallingReceiver) read(c net.Conn) {
	defer c.Close()
	b := make([]byte, 64<<10)
	for !r.gone.Load() {
		r.reading.Lock()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := c.Read(b)
		r.reading.Unlock()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// close ends it, with all of its connections.
func (r *stallingReceiver) close() {
	r.gone.Store(true)
	r.listener.Close()
	r.all.Wait()
}

// burst makes so many requests as fast as the gateway answers, with a long path each.
func burst(t *testing.T, address string, requests int) {
	t.Helper()
	const batch = 200
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(conn)
	text := strings.Repeat("GET /"+strings.Repeat("a", 1000)+" HTTP/1.1\r\nHost: gateway.example\r\n\r\n", batch)
	for range requests / batch {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		for range batch {
			r, err := http.ReadResponse(in, nil)
			if err != nil || r.StatusCode != http.StatusOK {
				t.Fatalf("%v, %v", r, err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}
}

// steady makes requests well below what the gateway can and returns the time that 99 of 100
// take at most. None may fail.
func steady(t *testing.T, address, path string) time.Duration {
	t.Helper()
	const clients, each = 4, 100
	took := make([]time.Duration, clients*each)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			c := client(false)
			defer c.CloseIdleConnections()
			for j := range each {
				began := time.Now()
				r, err := c.Get("http://" + address + path)
				if err != nil || r.StatusCode != http.StatusOK {
					t.Errorf("a request is lost: %v, %v", r, err)
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				r.Body.Close()
				took[i*each+j] = time.Since(began)
				time.Sleep(4 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took[len(took)*99/100]
}

// A full disk, a receiver of syslog that stops reading, one that is gone: no request is lost or
// slower by it, what is not logged is counted by cause, and when all is well again logs go on.
func TestLogFaults(t *testing.T) {
	needRoot(t, "mounts a small file system")
	disk := t.TempDir()
	if err := unix.Mount("xgw-test", disk, "tmpfs", 0, "size=32m"); err != nil {
		t.Skip("needs the right to mount: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	receiver := startStallingReceiver(t)
	dir := t.TempDir()
	yaml := strings.Replace(gatewayYAML(dir, "127.0.0.1:0", upstream(t), "workers: 1\npin: false\n"), "server_names: [localhost, \"127.0.0.1\", gateway.example]", "tls: off", 1)
	yaml = strings.Replace(yaml, "log: {access: "+dir+"/access.log}", fmt.Sprintf("log: {access: %s/access.log, error: %[1]s/error.log, syslog: {address: %q, transport: tcp}}", disk, receiver.listener.Addr()), 1)
	g := startGateway(t, startHere, "logfaults", dir, yaml)
	count := func(series string) int { return sumSeries(t, g.scrape(t), series) }
	quiet := max(steady(t, g.address, "/quiet"), steady(t, g.address, "/quiet"), 5*time.Millisecond)
	under := func(fault string) {
		t.Helper()
		var slow time.Duration
		for range 5 { // the machine may be busy with something else
			if slow = steady(t, g.address, "/"+fault); slow <= 3*quiet {
				t.Logf("%s: 99 of 100 requests within %s, %s when all is well", fault, slow, quiet)
				return
			}
		}
		t.Errorf("%s: 99 of 100 requests within %s, %s when all is well", fault, slow, quiet)
	}
	eventually(t, "what is logged is sent", func() bool { return count(`xgw_syslog_messages_total{result="sent"}`) >= 400 })

	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	burst(t, g.address, 5000) // whatever is left of the last page
	under("full")
	eventually(t, "lines are lost to the full disk", func() bool { return count(`xgw_access_lines_lost_total{cause="disk_full"}`) > 400 })
	eventually(t, "and lines of the error log", func() bool {
		_ = g.cmd.Process.Signal(syscall.SIGHUP) // a reload says so
		return count(`xgw_error_lines_lost_total{cause="disk_full"}`) > 0
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	quiet = max(quiet, steady(t, g.address, "/again")) // the machine's noise changes
	eventuallyLogged(t, filepath.Join(disk, "access.log"), `"GET /again HTTP/1.1" 200`)
	_ = g.cmd.Process.Signal(syscall.SIGHUP)
	eventuallyLogged(t, filepath.Join(disk, "error.log"), " reloaded generation=")

	receiver.reading.Lock()
	eventually(t, "the receiver takes nothing more", func() bool {
		burst(t, g.address, 2000)
		return count(`xgw_syslog_messages_total{result="queue_full"}`) > 0
	})
	under("stalled")
	receiver.reading.Unlock()
	receiver.close()
	eventually(t, "the receiver is gone", func() bool {
		steady(t, g.address, "/going")
		return count(`xgw_syslog_messages_total{result="unreachable"}`) > 0
	})
	under("gone")
	whole, parts := 0, 0
	g.stop(t)
	for _, line := range linesOf(t, filepath.Join(disk, "access.log")) {
		if accessLine.MatchString(line) {
			whole++
		} else {
			parts++
		}
	}
	if parts > 2 || whole < 1000 {
		t.Errorf("%d lines of the access log are whole, %d are not", whole, parts)
	}
}

// fill takes all the room that is left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{1 << 20, 4096, 1} {
		b := make([]byte, n)
		for err = nil; err == nil; {
			_, err = f.Write(b)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
}
