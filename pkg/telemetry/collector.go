// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"log/slog"
	"runtime"
	"strconv"
	"sync"

	dto "github.com/prometheus/client_model/go"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// metrics are what is told, made once. The help texts are the reference.
type metrics struct {
	all []*desc

	packets, packetBytes, interfaceInfo, interfaceAttached   *desc
	steered, steeredLocal                                    *desc
	connections, active, rejected, drained, panics           *desc
	handshakes, handshakeDuration, handshakesLeft            *desc
	tlsOffered, tlsAgreed                                    *desc
	requests, protocols, outcomes, duration, inFlight        *desc
	received, sent                                           *desc
	upstreamRequests, upstreamDuration                       *desc
	upstreamConnections, upstreamRetries, misuse, mirrored   *desc
	cancelsHeld                                              *desc
	ejections, serverUp, healthChecks                        *desc
	limited, bucketsEvicted, connectionsLimited, keyFailures *desc
	verdicts, verdictsHeld, offencesUnkeyed, signalsLost     *desc
	keyLookups, keysEvicted                                  *desc
	keyStoreUp, keyStoreFailed, cachePurges                  *desc
	clusterUp, clusterGateways, clusterLeases                *desc
	clusterVerdicts, sharesUntold                            *desc
	workerInfo, workerUp, workerRestarts                     *desc
	recordsDropped, linesLost, syslog, ledger, unexplained   *desc
	sampledOut, errorsLost, pushed                           *desc
	zoneBytes, generation, buildInfo, kernelInfo             *desc
	cpu, throttled, busy, attack, scaleOut                   *desc
}

func newMetrics() *metrics {
	var all []*desc
	desc := func(name, help string, labels ...string) *desc {
		d := newDesc(len(all), "xgw_"+name, help, labels)
		all = append(all, d)
		return d
	}
	m := &metrics{
		packets:             desc("packets_total", "Packets by how they ended. Egress has no queue: it is counted before one is chosen.", "interface", "direction", "queue", "verdict", "reason"),
		packetBytes:         desc("packet_bytes_total", "Bytes of the packets in xgw_packets_total, whole frames without checksum.", "interface", "direction", "queue", "verdict", "reason"),
		interfaceInfo:       desc("interface_info", "How the kernel plane is attached; always 1.", "interface", "mode", "driver", "program_id", "hook"),
		interfaceAttached:   desc("interface_attached", "1 while the interface runs the kernel plane, 0 when somebody took it off.", "interface"),
		steered:             desc("steered_connections_total", "New connections by where they were placed: local is the worker of the CPU that received it.", "listener", "path"),
		steeredLocal:        desc("steered_connections_local_ratio", "Share of a listener's connections, since it was made, that went to the worker of the CPU that received them; absent before the first one.", "listener"),
		connections:         desc("connections_total", "Client connections accepted.", "worker"),
		active:              desc("connections_active", "Client connections open.", "worker"),
		rejected:            desc("connections_rejected_total", "Client connections closed at once: worker_connections are not enough.", "worker"),
		handshakes:          desc("tls_handshakes_total", "TLS handshakes; outcome is full, resumed or failed, cause says why one failed.", "worker", "outcome", "cause"),
		handshakeDuration:   desc("tls_handshake_duration_seconds", "Duration of TLS handshakes, failed ones included."),
		handshakesLeft:      desc("tls_handshakes_left", "Full TLS handshakes that the worker's budget has room for now.", "worker"),
		tlsOffered:          desc("tls_offered_total", "What TLS clients offered: the newest version, the application protocol that the gateway likes best, and whether a certificate is for the name they ask for.", "property", "value"),
		tlsAgreed:           desc("tls_agreed_total", "What successful TLS handshakes agreed on; hybrid is a post-quantum key exchange.", "property", "value"),
		requests:            desc("requests_total", "Exchanges by route and class of the status sent; requests that reach no route are under none.", "route", "code"),
		protocols:           desc("requests_by_protocol_total", "Requests that began, by HTTP version.", "protocol"),
		outcomes:            desc("request_outcomes_total", "Exchanges by why they ended; each has exactly one outcome.", "outcome"),
		duration:            desc("request_duration_seconds", "From the first byte of a request to the last of its reply.", "route"),
		inFlight:            desc("requests_in_flight", "Exchanges under way.", "worker"),
		received:            desc("received_bytes_total", "Bytes of requests, without TLS.", "worker"),
		sent:                desc("sent_bytes_total", "Bytes of replies, without TLS.", "worker"),
		upstreamRequests:    desc("upstream_requests_total", "Tries at an upstream by how they ended.", "upstream", "outcome"),
		upstreamDuration:    desc("upstream_duration_seconds", "From sending a request to the head of its reply.", "upstream"),
		upstreamConnections: desc("upstream_connections_total", "Upstream connections taken for a try, by whether they were opened or reused.", "worker", "kind"),
		upstreamRetries:     desc("upstream_retries_total", "Tries after a first one that failed.", "worker"),
		panics:              desc("panics_total", "Faults of this program, each of which cost one exchange or connection.", "worker"),
		drained:             desc("connections_drained_total", "Idle connections that were closed since worker_connections are nearly used up.", "worker"),
		cancelsHeld:         desc("upstream_cancels_held_total", "Exchanges that were not cancelled at once when their client went away: too many others were.", "worker"),
		misuse:              desc("http2_misuse_total", "HTTP/2 connections ended for what their client did, by kind; the error log says who.", "worker", "kind"),
		mirrored:            desc("mirrored_requests_total", "Copies of requests for a route's mirror; dropped are those for which there was no room.", "worker", "result"),
		ejections:           desc("upstream_ejections_total", "Times a worker took a server out of balance that failed requests.", "worker"),
		serverUp:            desc("upstream_server_up", "1 while the server is in balance, 0 while its health checks say that it is down. Ejections are each worker's own and not in it.", "upstream", "server"),
		healthChecks:        desc("upstream_health_checks_total", "Health checks of servers, by result.", "upstream", "server", "result"),
		limited:             desc("request_limit_requests_total", "Requests, and connections of a limit_conn, that a limit is for, by what it did with them; would_reject is of limits that are tried only, uncounted of a limit_conn without room.", "limit", "outcome"),
		connectionsLimited:  desc("connections_limited_total", "Client connections closed at once for a limit_conn.", "worker"),
		keyFailures:         desc("limit_key_failures_total", "Requests whose limit has a key function that failed, so that the address was the key; cause is budget for too many steps, else fault.", "worker", "cause"),
		bucketsEvicted:      desc("request_limit_buckets_evicted_total", "Buckets of request limits that were given up while they held something: shared_memory_zone has too few.", "worker"),
		verdicts:            desc("verdicts_total", "Steps of verdicts by what became of them: given, capped at thin by the guard, expired, lifted; would_give is of rules that are tried only, exempt of sources that none may be given on.", "outcome", "step", "reason"),
		verdictsHeld:        desc("verdicts_held", "Verdicts that are held now.", "step"),
		offencesUnkeyed:     desc("offences_unkeyed_total", "Offences that lead to no verdict, since they came through a trusted proxy.", "worker"),
		signalsLost:         desc("verdict_signals_dropped_total", "Streaks that the supervisor did not hear of: it was too busy.", "worker"),
		keyLookups:          desc("key_lookups_total", "Look-ups of API keys by a worker: cached ones it knew; asked went to the store, once for all who waited; stale were let by on what it knew too long ago, for the store did not answer; unanswered got 503.", "worker", "result"),
		keysEvicted:         desc("keys_evicted_total", "API keys that a worker forgot since it met too many others.", "worker"),
		keyStoreUp:          desc("key_store_up", "1 while the store of API keys answers."),
		keyStoreFailed:      desc("key_store_failed_lookups_total", "Look-ups of API keys that the store did not answer."),
		clusterUp:           desc("cluster_up", "1 while the redis answers by which gateways hear of each other."),
		clusterGateways:     desc("cluster_gateways", "Gateways that have limits of the cluster and told of it lately, this one among them."),
		clusterLeases:       desc("cluster_leases_total", "Keys under limits of the cluster that were charged within a tenth of a second, by whether the others were told: failed ones got no answer, stale ones were not sent since none came lately. Of both this gateway held the limit by itself.", "outcome"),
		clusterVerdicts:     desc("cluster_verdicts_total", "Messages of verdicts by what became of them: sent and unsent are this gateway's, the rest the others': given, capped by the guard here, exempt here, known for as much is held already, lifted by an operator here, would_give where the rule is tried only here, failed, expired, invalid.", "outcome"),
		sharesUntold:        desc("cluster_untold_requests_total", "Requests under limits of the cluster of which other gateways do not hear: the table has room for no more keys.", "worker"),
		cachePurges:         desc("cache_purges_total", "Times workers were told to forget what they keep of a kind.", "kind"),
		workerInfo:          desc("worker_info", "A worker's process, 0 before its first start, and core; always 1.", "worker", "core", "pid"),
		workerUp:            desc("worker_up", "1 while the worker serves.", "worker"),
		workerRestarts:      desc("worker_restarts_total", "Times a worker was started again.", "worker"),
		recordsDropped:      desc("access_records_dropped_total", "Access records that a worker dropped, never waiting: ring_full is access_ring too small for the log writer's pace.", "worker", "cause"),
		syslog:              desc("syslog_messages_total", "Messages for syslog: sent, or dropped by cause; queue_full is a receiver that is slower than what is logged.", "result"),
		pushed:              desc("otlp_pushed_total", "What went to the Collector: readings of all metrics, and spans of sampled traces; failed ones it did not take within 5 s, queue_full are spans that waited for it in vain.", "signal", "result"),
		linesLost:           desc("access_lines_lost_total", "Access log lines that could not be written.", "cause"),
		sampledOut:          desc("access_records_sampled_out_total", "Access records that log.sampling leaves out of the access log and syslog."),
		errorsLost:          desc("error_lines_lost_total", "Error log lines that were not written, never waiting: queue_full is a reader of the log that is too slow, worker_queue_full a supervisor that was.", "cause"),
		ledger:              desc("ledger_total", "All hops as one table, over all interfaces, queues and workers: nic, xdp, backlog (a CPU's queue of packets, of all network namespaces), tcp (queues of all listening sockets here), connection, handshake, request (by outcome) and status: errors by who decided.", "hop", "verdict", "reason"),
		unexplained:         desc("unexplained", "Counts that should agree and do not; 0 at rest. packets: received by interfaces in native mode, less those counted by outcome; requests: begun, neither ended nor under way, and connections: accepted, neither closed nor open, both as those of a worker that died; statuses: by status less by outcome.", "kind"),
		zoneBytes:           desc("zone_bytes", "Size of the shared zone."),
		generation:          desc("generation", "Generation of the configuration in force."),
	}
	m.ofMachine(desc)
	m.all = all
	return m
}

// ofMachine are those of program and machine.
func (m *metrics) ofMachine(desc func(name, help string, labels ...string) *desc) {
	m.cpu = desc("cpu_seconds_total", "Time of all CPUs of the machine by what it went to, each 5 s: softirq is XDP and the network stack below sockets; handshakes, lua and garbage_collection are workers' by their own clock, proxying the rest of workers; others are other programs; io_wait and idle are no load.", "cause")
	m.throttled = desc("cpu_throttled_seconds_total", "Time that a core was slowed down for its heat: of the core that was so the longest; 0 where the machine does not tell.")
	m.busy = desc("cpu_busy_ratio", "Mean share of the machine's CPUs in use over the last 5 minutes, waits for disks left out.")
	m.attack = desc("cpu_attack_ratio", "Share of the machine's CPUs that went to packets that were dropped and requests that were refused over the last 5 minutes, at most: it counts a refusal as dear as a service.")
	m.scaleOut = desc("scale_out", "1 for whether another node would help: helps; or enough, attack, throttled, steal, others or io_wait, which say why not; unknown in the first 5 minutes.", "verdict")
	m.buildInfo = desc("build_info", "The program; always 1.", "version", "revision", "goversion")
	m.kernelInfo = desc("kernel_info", "The running kernel; always 1.", "release", "machine")
}

// collector turns a ledger snapshot into metrics at each reading.
type collector struct {
	metrics  *metrics
	log      *slog.Logger
	revision string
	gate     *gate
	// exemplars may be nil.
	exemplars *Exemplars

	mu       sync.Mutex // scrapes take turns with the snapshot's buffers
	ledger   *ledger.Ledger
	snapshot ledger.Snapshot
	rows     []ledger.Row
}

// tell copies all it tells: the snapshot is for the next reading when it returns.
func (c *collector) tell(e emitter, s *ledger.Snapshot) {
	c.kernelPlane(e, s)
	c.workers(e, s)
	c.exchanges(e, s)
	m := c.metrics
	src := c.ledger.Sources()
	e.counter(m.linesLost, s.LostFull, "disk_full")
	e.counter(m.linesLost, s.LostOther, "other")
	e.counter(m.sampledOut, s.SampledOut)
	var unheard uint64
	for i := range s.Workers {
		unheard += s.Workers[i].Counter(zone.ErrorLinesDropped)
	}
	e.counter(m.errorsLost, s.ErrorsFull, "disk_full")
	e.counter(m.errorsLost, s.ErrorsQueueFull, "queue_full")
	e.counter(m.errorsLost, unheard, "worker_queue_full")
	e.counter(m.errorsLost, s.ErrorsOther, "other")
	e.counter(m.syslog, s.SyslogSent, "sent")
	e.counter(m.syslog, s.SyslogFull, "queue_full")
	e.counter(m.syslog, s.SyslogUnreachable, "unreachable")
	if s.Pushed.On {
		e.counter(m.pushed, s.Pushed.MetricsSent, "metrics", "sent")
		e.counter(m.pushed, s.Pushed.MetricsFailed, "metrics", "failed")
		e.counter(m.pushed, s.Pushed.SpansSent, "spans", "sent")
		e.counter(m.pushed, s.Pushed.SpansFailed, "spans", "failed")
		e.counter(m.pushed, s.Pushed.SpansDropped, "spans", "queue_full")
	}
	c.table(e, s)
	e.gauge(m.unexplained, float64(s.Unexplained.Packets), "packets")
	e.gauge(m.unexplained, float64(s.Unexplained.Requests), "requests")
	e.gauge(m.unexplained, float64(s.Unexplained.Statuses), "statuses")
	e.gauge(m.unexplained, float64(s.Unexplained.Connections), "connections")
	e.gauge(m.zoneBytes, float64(s.ZoneBytes))
	e.gauge(m.generation, float64(s.Generation))
	if src.Capacity != nil {
		c.capacity(e, &s.Capacity)
	}
	e.gauge(m.buildInfo, 1, src.Version, c.revision, runtime.Version())
	e.gauge(m.kernelInfo, 1, src.Kernel.Release, src.Kernel.Machine)
}

// read takes the snapshot; false when the server is shut down.
func (c *collector) read(s *ledger.Snapshot) bool {
	if !c.gate.enter() {
		return false
	}
	defer c.gate.leave()
	if err := c.ledger.Snapshot(s); err != nil {
		c.log.Warn("scrape lacks a part", "error", err)
	}
	return true
}

// table sums the ledger's rows over where they were counted, in the order of hops.
func (c *collector) table(e emitter, s *ledger.Snapshot) {
	c.rows = s.Rows(c.rows[:0])
	places := make(map[ledger.Row]int, len(c.rows))
	sums := c.rows[:0] // behind what is read
	for _, r := range c.rows {
		n := r.Count
		r.Where, r.Count = "", 0
		at, known := places[r]
		if !known {
			at = len(sums)
			places[r] = at
			sums = append(sums, r)
		}
		sums[at].Count += n
	}
	for i := range sums {
		e.counter(c.metrics.ledger, sums[i].Count, sums[i].Hop, sums[i].Verdict, sums[i].Reason)
	}
}

func (c *collector) kernelPlane(e emitter, s *ledger.Snapshot) {
	m := c.metrics
	for i := range s.Interfaces {
		in := &s.Interfaces[i]
		e.gauge(m.interfaceInfo, 1, in.Name, string(in.Status.Mode), in.Driver, strconv.FormatUint(uint64(in.Status.Program), 10), in.Status.Hook)
		attached := 0.0
		if in.Status.Attached {
			attached = 1
		}
		e.gauge(m.interfaceAttached, attached, in.Name)
		for _, q := range in.Counters.Ingress {
			e.counter(m.packets, q.Packets, in.Name, "ingress", q.QueueName(), q.Verdict, q.Reason)
			e.counter(m.packetBytes, q.Bytes, in.Name, "ingress", q.QueueName(), q.Verdict, q.Reason)
		}
		for _, q := range in.Counters.Egress {
			if q.Verdict == "drop" {
				continue // nothing is dropped on its way out
			}
			e.counter(m.packets, q.Packets, in.Name, "egress", q.QueueName(), q.Verdict, q.Reason)
			e.counter(m.packetBytes, q.Bytes, in.Name, "egress", q.QueueName(), q.Verdict, q.Reason)
		}
	}
	for _, l := range s.Listeners {
		if !l.Steered {
			continue
		}
		e.counter(m.steered, l.Local, l.Address, "local")
		e.counter(m.steered, l.Fallback, l.Address, "fallback")
		e.counter(m.steered, l.Refused, l.Address, "refused")
		if all := l.Local + l.Fallback + l.Refused; all > 0 {
			e.gauge(m.steeredLocal, float64(l.Local)/float64(all), l.Address)
		}
	}
}

func (c *collector) workers(e emitter, s *ledger.Snapshot) {
	m := c.metrics
	var http1, http2 uint64
	for i := range s.Workers {
		w := &s.Workers[i]
		c.worker(e, strconv.Itoa(i), w)
		http1 += w.Counter(zone.RequestsHTTP1)
		http2 += w.Counter(zone.RequestsHTTP2)
	}
	e.counter(m.protocols, http1, "http1")
	e.counter(m.protocols, http2, "http2")
	e.histogram(m.handshakeDuration, &s.Handshakes)
	for _, p := range tlsProperties {
		var n uint64
		for i := range s.Workers {
			n += s.Workers[i].Counter(p.counter)
		}
		d := m.tlsAgreed
		if p.counter < zone.AgreedTLS13 {
			d = m.tlsOffered
		}
		e.counter(d, n, p.property, p.value)
	}
}

// tlsProperties are the counters of what TLS clients offered and agreed on, as labels.
var tlsProperties = [...]struct {
	counter         zone.Counter
	property, value string
}{
	{zone.OfferedTLS13, "version", "1.3"},
	{zone.OfferedTLS12, "version", "1.2"},
	{zone.OfferedOlder, "version", "older"},
	{zone.OfferedHTTP2, "protocol", "h2"},
	{zone.OfferedHTTP1, "protocol", "http1"},
	{zone.OfferedNoProtocol, "protocol", "none"},
	{zone.OfferedOtherProtocol, "protocol", "other"},
	{zone.ServerNameKnown, "server_name", "known"},
	{zone.ServerNameUnknown, "server_name", "unknown"},
	{zone.ServerNameAbsent, "server_name", "absent"},
	{zone.AgreedTLS13, "version", "1.3"},
	{zone.AgreedTLS12, "version", "1.2"},
	{zone.AgreedHTTP2, "protocol", "h2"},
	{zone.AgreedHTTP1, "protocol", "http1"},
	{zone.AgreedHybrid, "key_exchange", "hybrid"},
	{zone.AgreedClassical, "key_exchange", "classical"},
}

func (c *collector) worker(e emitter, id string, w *ledger.WorkerCounts) {
	m := c.metrics
	core := "any"
	if w.Core >= 0 {
		core = strconv.Itoa(w.Core)
	}
	up := 0.0
	if w.State == zone.StateReady {
		up = 1
	}
	e.gauge(m.workerInfo, 1, id, core, strconv.Itoa(w.PID))
	e.gauge(m.workerUp, up, id)
	e.counter(m.workerRestarts, w.Restarts, id)
	e.counter(m.connections, w.Counter(zone.ConnectionsAccepted), id)
	e.gauge(m.active, float64(w.Connections), id)
	e.counter(m.rejected, w.Counter(zone.ConnectionsRejected), id)
	for o, n := range w.Handshakes {
		switch outcome := zone.HandshakeOutcome(o); {
		case outcome.Failed():
			e.counter(m.handshakes, n, id, "failed", outcome.String())
		default:
			e.counter(m.handshakes, n, id, outcome.String(), "none")
		}
	}
	e.gauge(m.handshakesLeft, float64(w.HandshakesLeft), id)
	e.gauge(m.inFlight, float64(w.InFlight), id)
	e.counter(m.received, w.Counter(zone.BytesReceived), id)
	e.counter(m.sent, w.Counter(zone.BytesSent), id)
	e.counter(m.upstreamConnections, w.Counter(zone.UpstreamConnectionsOpened), id, "opened")
	e.counter(m.upstreamConnections, w.Counter(zone.UpstreamConnectionsReused), id, "reused")
	e.counter(m.upstreamRetries, w.Counter(zone.UpstreamRetries), id)
	e.counter(m.ejections, w.Counter(zone.UpstreamEjections), id)
	e.counter(m.panics, w.Counter(zone.Panics), id)
	e.counter(m.drained, w.Counter(zone.ConnectionsDrained), id)
	e.counter(m.cancelsHeld, w.Counter(zone.CancelsHeld), id)
	for k, n := range w.Misuses {
		e.counter(m.misuse, n, id, zone.Misuse(k).String())
	}
	e.counter(m.mirrored, w.Counter(zone.Mirrored), id, "sent")
	e.counter(m.mirrored, w.Counter(zone.MirrorDropped), id, "dropped")
	e.counter(m.bucketsEvicted, w.Counter(zone.LimitBucketsEvicted), id)
	e.counter(m.keyFailures, w.Counter(zone.KeyBudgets), id, "budget")
	e.counter(m.keyFailures, w.Counter(zone.KeyFaults), id, "fault")
	e.counter(m.connectionsLimited, w.Counter(zone.ConnectionsLimited), id)
	e.counter(m.offencesUnkeyed, w.Counter(zone.OffencesUnkeyed), id)
	e.counter(m.signalsLost, w.Counter(zone.SignalsDropped), id)
	e.counter(m.keyLookups, w.Counter(zone.KeysCached), id, "cached")
	e.counter(m.keyLookups, w.Counter(zone.KeysAsked), id, "asked")
	e.counter(m.keyLookups, w.Counter(zone.KeysStale), id, "stale")
	e.counter(m.keyLookups, w.Counter(zone.KeysUnanswered), id, "unanswered")
	e.counter(m.keysEvicted, w.Counter(zone.KeysEvicted), id)
	e.counter(m.sharesUntold, w.Counter(zone.SharesUntold), id)
	e.counter(m.recordsDropped, w.Counter(zone.AccessRecordsDropped), id, "ring_full")
}

// classes of a status, as labels.
var classes = [...]string{"1xx", "2xx", "3xx", "4xx", "5xx"}

func (c *collector) exchanges(e emitter, s *ledger.Snapshot) {
	m := c.metrics
	for i := range s.Routes {
		r := &s.Routes[i]
		for class, n := range r.Classes {
			e.counter(m.requests, n, r.Name, classes[class])
		}
		slot := i
		if i == len(s.Routes)-1 {
			slot = overflowSlot
		}
		e.withExemplars(m.duration, &r.Duration, c.exemplars.of(slot), r.Name)
	}
	for o, n := range s.Requests {
		e.counter(m.outcomes, n, zone.RequestOutcome(o).String())
	}
	for i := range s.Upstreams {
		u := &s.Upstreams[i]
		for o, n := range u.Outcomes {
			e.counter(m.upstreamRequests, n, u.Name, zone.UpstreamOutcome(o).String())
		}
		e.histogram(m.upstreamDuration, &u.Duration, u.Name)
	}
	for i := range s.Servers {
		v := &s.Servers[i]
		up := 0.0
		if v.Up {
			up = 1
		}
		e.gauge(m.serverUp, up, v.Upstream, v.Address)
		if v.Checked {
			e.counter(m.healthChecks, v.Good, v.Upstream, v.Address, "good")
			e.counter(m.healthChecks, v.Bad, v.Upstream, v.Address, "bad")
		}
	}
	for _, v := range s.Verdicts {
		e.counter(m.verdicts, v.Count, v.Fate, v.Step, v.Reason)
	}
	for i, n := range s.Held {
		e.gauge(m.verdictsHeld, float64(n), policy.Steps()[i].String())
	}
	if s.Keys.Purges != nil {
		up := 0.0
		if s.Keys.Answers {
			up = 1
		}
		e.gauge(m.keyStoreUp, up)
		e.counter(m.keyStoreFailed, s.Keys.Failed)
		for kind, n := range s.Keys.Purges {
			e.counter(m.cachePurges, n, kind)
		}
	}
	c.cluster(e, &s.Cluster)
	for i := range s.Limits {
		l := &s.Limits[i]
		for o, n := range l.Outcomes {
			e.counter(m.limited, n, l.Name, zone.LimitOutcome(o).String())
		}
	}
}

func (c *collector) capacity(e emitter, s *ledger.Capacity) {
	m := c.metrics
	for _, cause := range ledger.Causes() {
		e.value(m.cpu, dto.MetricType_COUNTER, s.Seconds[cause], []string{cause.String()})
	}
	e.value(m.throttled, dto.MetricType_COUNTER, s.Throttled, nil)
	e.gauge(m.busy, s.Busy)
	e.gauge(m.attack, s.Attack)
	for _, v := range ledger.Scales() {
		holds := 0.0
		if v == s.Scale {
			holds = 1
		}
		e.gauge(m.scaleOut, holds, v.String())
	}
}

func (c *collector) cluster(e emitter, s *ledger.Cluster) {
	m := c.metrics
	if s.Leases == nil {
		return
	}
	up := 0.0
	if s.Answers {
		up = 1
	}
	e.gauge(m.clusterUp, up)
	e.gauge(m.clusterGateways, float64(s.Gateways))
	for outcome, n := range s.Leases {
		e.counter(m.clusterLeases, n, outcome)
	}
	for outcome, n := range s.Verdicts {
		e.counter(m.clusterVerdicts, n, outcome)
	}
}
