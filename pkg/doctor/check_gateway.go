// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/mend"
)

// gateways are the two readings of the gateway; false where there are none.
func (x *examination) gateways() (before, now *Gateway, ok bool) {
	before, now = x.before.Gateway, x.now.Gateway
	if before == nil || now == nil {
		x.cannot("no gateway runs here")
		return nil, nil, false
	}
	return before, now, true
}

func (x *examination) supervisor() {
	_, g, ok := x.gateways()
	if !ok {
		return
	}
	beat := fmt.Sprintf("last sign of life %s ago", g.Beat.Round(100*time.Millisecond))
	switch g.Supervisor {
	case "gone":
		x.add(Finding{Object: "supervisor", Severity: Error, Title: "it died; workers serve on for 20 seconds and then end", Evidence: beat,
			Cause: "killed, or out of memory: the error log and `dmesg` say which", Mend: "systemctl restart gateway-engine"})
	case "hanging":
		x.add(Finding{Object: "supervisor", Severity: Error, Title: "it is there, but gives no sign of life", Evidence: beat,
			Cause: "stopped, or waiting for a disk or device that does not answer", Mend: "systemctl restart gateway-engine"})
	}
}

func (x *examination) workers() {
	before, now, ok := x.gateways()
	if !ok {
		return
	}
	for i, w := range now.Workers {
		name := fmt.Sprintf("worker %d", i)
		switch {
		case i < len(before.Workers) && w.Restarts > before.Workers[i].Restarts:
			x.add(Finding{Object: name, Severity: Error, Title: "it dies and is started again", Evidence: fmt.Sprintf("%d restarts, %d in the last %.1f s", w.Restarts, w.Restarts-before.Workers[i].Restarts, x.seconds),
				Cause: "a fault, or killed: the error log says how it ended", Mend: "journalctl -u gateway-engine"})
		case w.State != "ready" && w.State != "draining":
			x.add(Finding{Object: name, Severity: Error, Title: "it does not serve", Evidence: fmt.Sprintf("state %s, %d restarts", w.State, w.Restarts), Cause: "it ended, and the supervisor has not started another one", Mend: "journalctl -u gateway-engine"})
		}
	}
}

func (x *examination) configuration() {
	_, g, ok := x.gateways()
	if !ok {
		return
	}
	c := g.Configuration
	switch {
	case c.Path == "":
		x.cannot("the gateway's configuration file is not known")
	case c.Error != "":
		x.add(Finding{Object: c.Path, Severity: Error, Title: "it would not be taken: a reload changes nothing, and a restart fails", Evidence: c.Error, Cause: "it was changed after it was loaded", Mend: "xgw config check -c " + c.Path})
	case !c.Loaded.IsZero() && c.Changed.After(c.Loaded):
		x.add(Finding{Object: c.Path, Severity: Warning, Title: "what is in force is not what the files say", Evidence: fmt.Sprintf("changed %s after it was loaded", c.Changed.Sub(c.Loaded).Round(time.Second)),
			Cause: "it, buffers.conf or ratelimit.lua was changed and not reloaded", Mend: "xgw ctl reload"})
	}
}

// Times before a certificate ends.
const (
	soon     = 21 * 24 * time.Hour
	verySoon = 3 * 24 * time.Hour
)

func (x *examination) certificates() {
	_, g, ok := x.gateways()
	if !ok {
		return
	}
	if len(g.Certificates) == 0 {
		x.cannot("no listener speaks TLS")
	}
	for _, c := range g.Certificates {
		left := c.Expires.Sub(x.now.At)
		f := Finding{Object: c.File, Severity: Warning, Cause: "nobody has renewed it", Mend: "put a new one in its place: it is taken within seconds, without a reload"}
		f.Evidence = fmt.Sprintf("until %s", c.Expires.UTC().Format(time.RFC3339))
		if c.Made {
			f.Mend = "systemctl restart gateway-engine"
		}
		switch {
		case c.Error != "":
			f.Severity, f.Title, f.Evidence, f.Cause = Error, "it cannot be used: the one before stays in force until a restart", c.Error, "the file is not what it was"
		case left <= 0:
			f.Severity, f.Title = Error, fmt.Sprintf("it has expired %.0f days ago: clients refuse it", -left.Hours()/24)
		case left < verySoon:
			f.Severity, f.Title = Error, fmt.Sprintf("it expires in %.0f hours", left.Hours())
		case left < soon:
			f.Title = fmt.Sprintf("it expires in %.0f days", left.Hours()/24)
		default:
			continue
		}
		x.add(f)
	}
}

func (x *examination) logDisk() {
	before, now, ok := x.gateways()
	if !ok {
		return
	}
	d := now.Log
	if d.Path == "" || d.Size == 0 {
		x.cannot("no access log is written to a file")
		return
	}
	f := Finding{Object: d.Path, Severity: Error, Cause: "logs that nobody rotates, or something else on the same disk", Mend: "du -xh --max-depth 2 $(df --output=target " + d.Path + " | tail -1) | sort -h | tail; logrotate -f /etc/logrotate.d/gateway"}
	f.Evidence = fmt.Sprintf("%s of %s free", bytesOf(d.Free), bytesOf(d.Size))
	lost := x.rate(before.Log.LostFull, d.LostFull)
	const full, nearly = 1 << 20, 20 // bytes; a 20th
	switch {
	case lost > 0 || d.Free < full && d.Free < d.Size/100:
		f.Title = "the disk of the access log is full: lines are lost, requests are not"
		if lost > 0 {
			f.Evidence += fmt.Sprintf(", %.0f lines lost a second", lost)
		}
	case d.Free < d.Size/nearly:
		f.Severity, f.Title = Warning, "the disk of the access log is nearly full"
	default:
		return
	}
	x.add(f)
}

func bytesOf(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	return fmt.Sprintf("%.3g %s", v, units[i])
}

// layers of how a try at an upstream can fail: what the client gets, and where the fault lies.
var layers = []struct{ outcome, title, cause, mend string }{
	{"refused", "no connection to it: clients get 502", "TCP: nobody listens there, or a firewall says no", "start the server, or see who answers: ss -tlnp on it; curl -v http://%s/"},
	{"connect_timeout", "connecting to it takes too long: clients get 504", "IP or TCP: packets to it are lost, or its listening queue is full", "ip route get and ping its address; on it: nstat -az TcpExtListenOverflows"},
	{"timeout", "it takes longer for a reply than its route allows: clients get 504", "HTTP: the server is slow, the network is not", "look at the server; or raise the route's timeouts: {header: …} in gateway.yaml and xgw ctl reload"},
	{"reset", "it breaks connections off: clients get 502", "TCP: the server crashes, or closes idle connections earlier than idle_timeout", "look at the server's log; or lower the upstream's idle_timeout below the server's"},
	{"invalid", "it does not speak HTTP: clients get 502", "HTTP: a wrong port, or TLS where none is expected", "curl -v http://%s/"},
	{"saturated", "all of its connections are in use: clients get 503", "the upstream's max_connections, or servers that are too slow for what comes", "raise max_connections of the upstream in gateway.yaml, or add servers, and xgw ctl reload"},
}

func (x *examination) upstreams() {
	before, now, ok := x.gateways()
	if !ok {
		return
	}
	if len(now.Upstreams) == 0 {
		x.cannot("there are no upstreams")
	}
	for i, u := range now.Upstreams {
		old := map[string]uint64{}
		if i < len(before.Upstreams) && before.Upstreams[i].Name == u.Name {
			old = before.Upstreams[i].Outcomes
		}
		var all float64
		for o, n := range u.Outcomes {
			all += x.rate(old[o], n)
		}
		for _, l := range layers {
			failed := x.rate(old[l.outcome], u.Outcomes[l.outcome])
			if failed == 0 || failed/all < 0.01 {
				continue
			}
			f := Finding{Object: "upstream " + u.Name, Severity: Warning, Title: l.title, Cause: l.cause, Mend: l.mend,
				Evidence: fmt.Sprintf("%.1f of %.1f tries a second: %s", failed, all, l.outcome)}
			if failed/all >= 0.05 {
				f.Severity = Error
			}
			if strings.Contains(f.Mend, "%s") {
				at := "ADDRESS"
				if len(u.Servers) > 0 {
					at = u.Servers[0]
				}
				f.Mend = fmt.Sprintf(f.Mend, at)
			}
			x.add(f)
		}
	}
}

func (x *examination) servers() {
	_, g, ok := x.gateways()
	if !ok {
		return
	}
	if len(g.Servers) == 0 {
		x.cannot("the supervisor does not tell how servers are")
		return
	}
	all, down := map[string]int{}, map[string]int{}
	for _, s := range g.Servers {
		all[s.Upstream]++
		if s.State == "down" || s.Drained {
			down[s.Upstream]++
		}
	}
	for _, s := range g.Servers {
		if s.State != "down" {
			continue
		}
		f := Finding{Object: s.Upstream + " " + s.Address, Severity: Warning, Title: "its health checks fail: the other servers take its requests", Evidence: fmt.Sprintf("%d of %d servers of %s are out", down[s.Upstream], all[s.Upstream], s.Upstream),
			Cause: s.Cause, Mend: "start it; meanwhile, to spare it: xgw ctl upstreams drain " + s.Upstream + " " + s.Address}
		if down[s.Upstream] == all[s.Upstream] {
			f.Severity, f.Title = Error, "its health checks fail, and no other server is up"
		}
		x.add(f)
	}
}

func (x *examination) overload() {
	before, now, ok := x.gateways()
	if !ok {
		return
	}
	if refused := x.rate(before.Requests["overload"], now.Requests["overload"]); refused > 0 {
		x.add(Finding{Object: "workers", Severity: Error, Title: "they have more to do than they can: clients get 503", Evidence: fmt.Sprintf("%.1f requests refused a second (outcome overload)", refused),
			Cause: "requests wait longer than overload_delay for their worker's core", Mend: "add cores or gateways; `xgw top --pane cores` shows which are full, limits in ratelimit.lua who it is"})
	}
	if rejected := x.rate(before.Counters["connections_rejected"], now.Counters["connections_rejected"]); rejected > 0 {
		x.add(Finding{Object: "workers", Severity: Error, Title: "worker_connections are not enough: connections are closed at once", Evidence: fmt.Sprintf("%.1f a second, %d each", rejected, now.Configuration.Connections),
			Cause: "more clients at once than configured", Mend: "raise worker_connections and worker_rlimit_nofile in gateway.yaml, and restart"})
	}
}

// handshakeLayers say where a failed TLS handshake failed.
var handshakeLayers = map[string]struct{ cause, mend string }{
	"timeout":            {"after TCP's handshake: clients say nothing, as scanners do, or their packets are lost", "nstat -z TcpRetransSegs; limit_conn in ratelimit.lua bounds who holds many"},
	"eof":                {"after TCP's handshake: clients close before TLS is done, as port checks of a load balancer do", "point health checks at /readyz of telemetry.address, or at a listener in the clear"},
	"version":            {"TLS: clients speak none of the versions", "set min_version: \"1.2\" of the listener, if old clients are to be served"},
	"cipher":             {"TLS: clients have no cipher or curve in common", "old clients: nothing in xgw's power"},
	"protocol":           {"TLS: clients want another application protocol than h2 and http/1.1", "see that http2: is on where clients want it"},
	"not_tls":            {"clients speak HTTP in the clear to a port of TLS", "give them a listener with tls: off that redirects"},
	"alert":              {"TLS: clients refuse the certificate", "openssl s_client -connect HOST:443 -servername NAME: is the chain whole, the name in it?"},
	"handshake_budget":   {"handshakes.per_second or .concurrent is used up: a flood of handshakes, or too small a budget", "xgw top --pane cores; raise handshakes: in gateway.yaml, or limit SYNs by packet_limits"},
	"client_certificate": {"TLS: clients show no certificate, or one that nobody known vouches for", "see client_ca of the listener"},
	"proxy_header":       {"before TLS: trusted proxies send no PROXY header", "set it on the load balancer, or client_address.proxy_protocol: off"},
	"other":              {"TLS", "the error log says more"},
}

func (x *examination) handshakes() {
	before, now, ok := x.gateways()
	if !ok {
		return
	}
	var all, failed, most float64
	worst := ""
	for outcome, n := range now.Handshakes {
		r := x.rate(before.Handshakes[outcome], n)
		all += r
		if outcome == "full" || outcome == "resumed" {
			continue
		}
		failed += r
		if r > most || r == most && r > 0 && outcome < worst {
			most, worst = r, outcome
		}
	}
	if failed*x.seconds < 5 || failed/all < 0.1 {
		return
	}
	f := Finding{Object: "TLS", Severity: Warning, Title: "handshakes fail", Evidence: fmt.Sprintf("%.1f of %.1f a second, most by %s", failed, all, worst)}
	f.Cause, f.Mend = handshakeLayers[worst].cause, handshakeLayers[worst].mend
	if failed/all >= 0.5 || worst == "handshake_budget" {
		f.Severity = Error
	}
	x.add(f)
}

// clients finds requests that ended by what clients did.
func (x *examination) clients() {
	before, now, ok := x.gateways()
	if !ok {
		return
	}
	var all float64
	for outcome, n := range now.Requests {
		all += x.rate(before.Requests[outcome], n)
	}
	for _, c := range []struct{ outcome, title, cause, mend string }{
		{"client_reset", "clients go away before their reply is whole", "after the handshake: clients lose patience, mostly with a slow upstream; or a middlebox cuts long connections", "xgw top --pane upstreams: is P99 near the clients' own timeout?"},
		{"client_timeout", "clients are too slow with their requests", "loss on the way to them, or slow attacks", "nstat -z TcpRetransSegs; limit_conn in ratelimit.lua bounds how many one may hold"},
	} {
		if r := x.rate(before.Requests[c.outcome], now.Requests[c.outcome]); r*x.seconds >= 5 && r/all >= 0.05 {
			x.add(Finding{Object: "clients", Severity: Warning, Title: c.title, Evidence: fmt.Sprintf("%.1f of %.1f requests a second: %s", r, all, c.outcome), Cause: c.cause, Mend: c.mend})
		}
	}
}

func (x *examination) zone() {
	before, now, ok := x.gateways()
	if !ok {
		return
	}
	for _, c := range []struct{ counter, title, cause, mend string }{
		{"access_records_dropped", "access records are dropped: requests that the log does not have", "the writer of the log is slower than the requests: a slow disk, or too small a ring", "raise access_ring in buffers.conf, or use a faster disk for the log"},
		{"limit_buckets_evicted", "buckets of request limits are given up while they hold something", "more keys at once than the zone has buckets", "raise shared_memory_zone in buffers.conf"},
		{"signals_dropped", "offences did not reach the supervisor", "the supervisor gets too little CPU", "xgw top: is it hanging?"},
		{"keys_evicted", "workers forget API keys that are in use", "more keys at once than a worker remembers", "nothing is lost but time: each costs a question to the store"},
	} {
		if r := x.rate(before.Counters[c.counter], now.Counters[c.counter]); r > 0 {
			x.add(Finding{Object: "zone", Severity: Warning, Title: c.title, Evidence: fmt.Sprintf("%.1f a second (%s)", r, c.counter), Cause: c.cause, Mend: c.mend})
		}
	}
	for _, kind := range now.Overflow {
		x.add(Finding{Object: "zone", Severity: Warning, Title: "some " + kind + " share the slot overflow: their counts cannot be told apart", Evidence: "all slots have a name", Cause: "more names than the zone has slots; those of before a reload keep theirs", Mend: "raise shared_memory_zone in buffers.conf, and restart"})
	}
}

// maps looks at what the kernel plane itself counts of its tables: to walk a map of a million
// entries would stall the CPU that does.
func (x *examination) maps() {
	if len(x.now.NICs) == 0 {
		x.cannot("no interface was looked at")
	}
	for _, n := range x.now.NICs {
		b := x.earlier(n.Name)
		if b == nil {
			continue
		}
		for _, c := range []struct {
			before, now  uint64
			title, cause string
		}{
			{b.Tables.SourceBypass, n.Tables.SourceBypass, "strangers are let by to the wider limits, unjudged", "a flood of forged sources has filled the sketch of sources"},
			{b.Tables.PrefixBypass, n.Tables.PrefixBypass, "prefixes are let by to the wider limits, unjudged", "a flood of forged sources has filled the sketch of prefixes"},
			{b.Tables.VerifiedLive, n.Tables.VerifiedLive, "known sources are given up for others before their time", "more clients than the table of known sources has room for"},
			{b.Tables.HandshakeLost, n.Tables.HandshakeLost, "handshakes cannot be followed: their sources stay strangers", "more handshakes at once than the table has room for"},
		} {
			if r := x.rate(c.before, c.now); r > 0 {
				x.add(Finding{Object: n.Name, Severity: Warning, Title: c.title, Evidence: fmt.Sprintf("%.1f a second", r), Cause: c.cause,
					Mend: "xgw drops " + n.Name + "; limits by prefix, queue and interface hold meanwhile"})
			}
		}
	}
}

func (x *examination) openFiles() {
	_, g, ok := x.gateways()
	if !ok {
		return
	}
	for i, w := range g.Workers {
		if w.FileLimit == 0 {
			continue
		}
		f := Finding{Object: fmt.Sprintf("worker %d", i), Severity: Warning, Evidence: fmt.Sprintf("%d open of %d allowed, hard limit %d", w.Files, w.FileLimit, w.FileLimits), Mend: fmt.Sprintf("set LimitNOFILE=%d in the unit, and restart", mend.Files)}
		need := 2 * g.Configuration.Connections
		switch {
		case w.Files > w.FileLimit*9/10:
			f.Severity, f.Title, f.Cause = Error, "its open files are nearly used up: connections wait in their queue", "more connections than files"
		case w.FileLimit < min(need, mend.Files):
			f.Title, f.Cause = "worker_connections need more open files than are allowed", fmt.Sprintf("%d connections of clients, and as many to upstreams", g.Configuration.Connections)
		default:
			continue
		}
		if w.FileLimits > w.FileLimit && w.Start != "" {
			f.Fix, f.Mend = &mend.Change{Kind: mend.Limit, Object: fmt.Sprintf("%d/%s", w.PID, w.Start), Value: fmt.Sprintf("%d:%d", min(w.FileLimits, max(mend.Files, need)), w.FileLimits)}, ""
		}
		x.add(f)
	}
}

// earlier is the interface in the first reading; nil when it was not there.
func (x *examination) earlier(name string) *NIC {
	i := slices.IndexFunc(x.before.NICs, func(n NIC) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &x.before.NICs[i]
}
