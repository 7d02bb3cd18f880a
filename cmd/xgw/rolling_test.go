// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

// fleet is three gateways behind an HAProxy in TCP mode, each in a namespace of its own; the
// HAProxy is on the clients' host.
type fleet struct {
	*lab.Lab
	nodes []*fleetNode
	stats string // HAProxy's socket
}

type fleetNode struct {
	*upgrader
	name, host, address, dir, text string
}

const fleetAddress = "192.0.2.2:8443"

const fleetHAProxy = `global
	stats socket %s
defaults
	mode tcp
	timeout connect 5s
	timeout check 5s
	timeout client 1m
	timeout server 1m
listen edge
	bind %s
	balance roundrobin
	option redispatch
	option httpchk
	http-check send meth GET uri /readyz
	http-check expect status 200
	source 192.0.2.4
	default-server check port 9090 inter 200ms fall 1 rise 1 send-proxy-v2
`

func newFleet(t *testing.T) *fleet {
	needRoot(t, "makes a lab")
	program := tool(t, "haproxy")
	f := &fleet{Lab: mustLab(t, "xgwfleet")}
	for host, args := range map[string]string{lab.Router: "route add 203.0.113.0/24 via 198.51.100.2", lab.Client: "address add 192.0.2.4/28 dev net0"} {
		if err := f.In(host, func() error { return exec.Command("ip", strings.Fields(args)...).Run() }); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := f.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	dir := t.TempDir()
	keys := filepath.Join(dir, "tickets.keys")
	rewrite(t, keys, strings.Repeat("5e", 32)+"\n")
	f.stats = filepath.Join(dir, "stats")
	text := fmt.Sprintf(fleetHAProxy, f.stats, fleetAddress)
	for _, n := range []*fleetNode{
		{name: "fleet1", host: lab.Gateway, address: "198.51.100.2"}, {name: "fleet2", host: lab.Router, address: "192.0.2.1"},
		{name: "fleet3", host: lab.Attacker, address: "192.0.2.18"},
	} {
		n.dir = t.TempDir()
		n.text = gatewayYAML(n.dir, ":443", "203.0.113.2:8080", fmt.Sprintf("workers: 1\npin: false\ntimeouts: {drain: 3s}\nsession_tickets: {file: %s}\nclient_address: {proxy_protocol: true, trusted: [192.0.2.4/32]}\n", keys))
		n.text = strings.Replace(n.text, `"127.0.0.1:0"`, `"`+n.address+`:9090"`, 1)
		n.start(t, f)
		f.nodes = append(f.nodes, n)
		text += fmt.Sprintf("\tserver %s %s:443\n", n.name, n.address)
	}
	path := filepath.Join(dir, "haproxy.cfg")
	rewrite(t, path, text)
	cmd, said := exec.Command(program, "-db", "-f", path), &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := f.Start(lab.Client, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said)
		}
	})
	for _, n := range f.nodes {
		f.await(t, n, "UP")
	}
	t.Cleanup(func() {
		for _, n := range f.nodes { // all at once, before each is waited for
			_ = syscall.Kill(n.pid, syscall.SIGTERM)
		}
	})
	return f
}

func (n *fleetNode) start(t *testing.T, f *fleet) {
	n.upgrader = newUpgrader(t, startGateway(t, inHost(f.Lab, n.host), n.name, n.dir, n.text), n.name)
}

// seen is what HAProxy says of the node: its state, and how many connections it was sent.
func (f *fleet) seen(n *fleetNode) (state string, sessions int) {
	c, err := net.Dial("unix", f.stats)
	if err != nil {
		return "", 0 // it is yet to start
	}
	defer c.Close()
	fmt.Fprintln(c, "show stat")
	text, _ := io.ReadAll(c)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(line, ","); len(fields) > 17 && fields[1] == n.name {
			sessions, _ = strconv.Atoi(fields[7])
			return fields[17], sessions
		}
	}
	return "", 0
}

func (f *fleet) await(t *testing.T, n *fleetNode, state string) (sessions int) {
	t.Helper()
	eventually(t, n.name+" is "+state+" for HAProxy", func() bool {
		var now string
		now, sessions = f.seen(n)
		return now == state
	})
	return sessions
}

// awaitAccepted waits until the node has taken what HAProxy sent it: what waits in the queue of a
// socket is lost with it.
func (f *fleet) awaitAccepted(t *testing.T, n *fleetNode, sessions int) {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DialContext: f.DialFrom(n.host), DisableKeepAlives: true}, Timeout: 20 * time.Second}
	eventually(t, n.name+" has accepted all connections", func() bool {
		return sumSeries(t, bodyOf(t, hc, n.metrics), "xgw_connections_total{") >= sessions
	})
}

// Three gateways behind an HAProxy are upgraded one after the other, each drained before: in
// the one way and in the other. No request is lost, nor sent twice, and sessions of one gateway
// are resumed by the next.
func TestRollingUpgrade(t *testing.T) {
	f := newFleet(t)
	l := startLoad(t, f.Lab, fleetAddress)
	began := time.Now()
	for i, n := range f.nodes {
		byFile := i == 1
		file := filepath.Join(n.dir, n.name+".drain")
		if byFile {
			rewrite(t, file, "")
		} else if err := n.ctl.SetDrained(true); err != nil {
			t.Fatal(err)
		}
		before := f.await(t, n, "DOWN")
		if byFile {
			f.awaitAccepted(t, n, before)
			n.end(t)
			n.start(t, f)
		} else {
			n.upgrade(t)
		}
		if state, now := f.seen(n); state != "DOWN" || now != before {
			t.Errorf("%s: HAProxy has it %s and sent it %d connections since it was drained", n.name, state, now-before)
		}
		if byFile {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		} else if err := n.ctl.SetDrained(false); err != nil {
			t.Fatal(err)
		}
		f.await(t, n, "UP")
		eventually(t, n.name+" is sent connections again", func() bool { _, now := f.seen(n); return now > before })
	}
	took := time.Since(began)
	f.resumes(t)
	l.end()
	if l.failed.Load() > 0 || l.served.Load() < 100 {
		t.Errorf("%d of %d requests failed", l.failed.Load(), l.served.Load())
	}
	eventually(t, "every request is logged, by one gateway", func() bool {
		lines := 0
		for _, n := range f.nodes {
			text, _ := os.ReadFile(filepath.Join(n.dir, "access.log"))
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, "192.0.2.2 ") && strings.Contains(line, "POST / ") { // the client, by HAProxy's word
					lines++
				}
			}
		}
		return int64(lines) == l.served.Load()
	})
	t.Logf("three gateways in %v, %d requests", took, l.served.Load())
}

// resumes holds every gateway to resuming the session that another one made.
func (f *fleet) resumes(t *testing.T) {
	t.Helper()
	for _, h2 := range []bool{false, true} {
		c := client(h2)
		tr := c.Transport.(*http.Transport)
		tr.DialContext = f.DialFrom(lab.Client)
		tr.TLSClientConfig.ServerName, tr.TLSClientConfig.ClientSessionCache = "gateway.example", tls.NewLRUClientSessionCache(1)
		for i, n := range f.nodes {
			r, err := c.Get("https://" + n.address + "/")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, r.Body) // the ticket comes with it
			r.Body.Close()
			if want := i > 0; r.TLS.DidResume != want {
				t.Errorf("%s: resumed is %v, want %v", n.name, r.TLS.DidResume, want)
			}
			c.CloseIdleConnections()
		}
	}
}
