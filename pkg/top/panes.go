// SPDX-License-Identifier: Apache-2.0

package top

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// PaneNames are the panes of every frame.
var PaneNames = []string{"queues", "cores", "routes", "upstreams", "limits", "requests", "drops", "sources", "keys", "ledger"}

// fill makes the panes out of the two last samples.
func (s *Source) fill(f *Frame) {
	span := f.Interval.Seconds()
	if span == 0 {
		// The first frame: since counting began.
		span = max(f.Gateway.Uptime.Seconds(), 1)
	}
	r := rates{now: &s.now, before: &s.before, span: span}
	r.totals(&f.Totals)
	f.Panes = []Table{ // in the order of PaneNames
		r.queues(), r.cores(), r.routes(), r.upstreams(), r.limits(), r.requests(), r.drops(), s.sourcesPane(r), s.keysPane(r), r.table(),
	}
}

// rates are differences of two samples a second.
type rates struct {
	now, before *sample
	span        float64
}

// per is a counter's rate. One that went down began anew.
func (r *rates) per(now, before uint64) float64 {
	if now < before {
		before = 0
	}
	return float64(now-before) / r.span
}

// old is the element of the sample before at the same place, or an empty one.
func old[T any](before []T, i int) *T {
	if i < len(before) {
		return &before[i]
	}
	return new(T)
}

// at is a count of a list that may be shorter in the sample before.
func at(counts []uint64, i int) uint64 {
	if i < len(counts) {
		return counts[i]
	}
	return 0
}

// interfaceBefore finds an interface by its name: they come and go. One that was not there
// before has no rates yet, for nobody knows since when it counts.
func (r *rates) interfaceBefore(i int) *ledger.InterfaceCounts {
	now := &r.now.ledger.Interfaces[i]
	for b := range r.before.ledger.Interfaces {
		if before := &r.before.ledger.Interfaces[b]; before.Name == now.Name && len(before.Counters.Ingress) == len(now.Counters.Ingress) {
			return before
		}
	}
	return now
}

func (r *rates) totals(t *Totals) {
	n, b := &r.now.ledger, &r.before.ledger
	for i := range n.Interfaces {
		before := r.interfaceBefore(i)
		for q := range n.Interfaces[i].Counters.Ingress {
			c := &n.Interfaces[i].Counters.Ingress[q]
			rate := r.per(c.Packets, before.Counters.Ingress[q].Packets)
			if c.Verdict == "drop" {
				t.Dropped += rate
			} else {
				t.Passed += rate
			}
		}
	}
	t.Requests = r.per(n.Sums.Statuses, b.Sums.Statuses)
	for i := range n.Routes {
		t.ClientFault += r.per(n.Routes[i].Classes[3], old(b.Routes, i).Classes[3])
		t.ServerFault += r.per(n.Routes[i].Classes[4], old(b.Routes, i).Classes[4])
	}
	t.Handshakes = r.per(n.Handshakes.Count, b.Handshakes.Count)
	t.Connections, t.UnderWay = n.Sums.Open, n.Sums.UnderWay
	t.Unexplained = n.Unexplained.Packets + n.Unexplained.Requests + n.Unexplained.Statuses + n.Unexplained.Connections
}

func text(s string) Cell     { return Cell{Text: s} }
func number(v float64) Cell  { return Cell{Number: v} }
func whole(v uint64) Cell    { return Cell{Number: float64(v)} }
func plain(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
func bits(v float64) string  { return count(v) + "b" }
func since(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	return time.Duration(v * float64(time.Second)).Round(time.Second).String()
}
func share(of, all float64) float64 {
	if all == 0 {
		return math.NaN()
	}
	return 100 * of / all
}

// queueRow sums the outcomes of one queue.
type queueRow struct {
	passed, dropped, bits float64
	reason                string
	most                  float64
}

func (r *rates) queues() Table {
	t := Table{Name: "queues", Columns: []Column{
		{"interface", "INTERFACE", nil}, {"queue", "QUEUE", nil}, {"passed_per_second", "PASS/s", count}, {"dropped_per_second", "DROP/s", count},
		{"dropped_percent", "DROP", percent}, {"bits_per_second", "RECEIVED/s", bits}, {"reason", "MOST DROPPED FOR", nil},
	}}
	for i := range r.now.ledger.Interfaces {
		in, before := &r.now.ledger.Interfaces[i], r.interfaceBefore(i)
		var row queueRow
		rows := in.Counters.Ingress
		for q := range rows {
			n, b := &rows[q], &before.Counters.Ingress[q]
			row.add(n, r.per(n.Packets, b.Packets), 8*r.per(n.Bytes, b.Bytes))
			if q+1 < len(rows) && rows[q+1].Queue == n.Queue {
				continue
			}
			if row.passed+row.dropped > 0 || n.Queue != datapath.Other {
				t.Rows = append(t.Rows, []Cell{text(in.Name), text(n.QueueName()), number(row.passed), number(row.dropped),
					number(share(row.dropped, row.passed+row.dropped)), number(row.bits), text(row.reason)})
			}
			row = queueRow{}
		}
	}
	return t
}

func (q *queueRow) add(c *datapath.QueueCount, packets, bits float64) {
	q.bits += bits
	if c.Verdict != "drop" {
		q.passed += packets
		return
	}
	q.dropped += packets
	if packets > q.most {
		q.most, q.reason = packets, c.Reason
	}
}

func (r *rates) cores() Table {
	t := Table{Name: "cores", Columns: []Column{
		{"worker", "WORKER", nil}, {"core", "CORE", nil}, {"pid", "PID", plain}, {"state", "STATE", nil}, {"cpu_percent", "CPU", percent},
		{"requests_per_second", "REQ/s", count}, {"under_way", "NOW", count}, {"connections", "CONNS", count}, {"accepted_per_second", "ACC/s", count},
		{"handshakes_per_second", "TLS/s", count}, {"received_bits_per_second", "IN/s", bits}, {"sent_bits_per_second", "OUT/s", bits}, {"restarts", "RESTARTS", count},
	}}
	for i := range r.now.ledger.Workers {
		w, b := &r.now.ledger.Workers[i], old(r.before.ledger.Workers, i)
		rate := func(c zone.Counter) float64 { return r.per(w.Counter(c), at(b.Counters, int(c))) }
		core, cpu := "any", math.NaN()
		if w.Core >= 0 {
			core = strconv.Itoa(w.Core)
		}
		state := w.State.String()
		if w.State == zone.StateReady && !ledger.Runs(w.PID) {
			state = "gone"
		}
		if b.PID == w.PID && i < len(r.before.cpu) && i < len(r.now.cpu) {
			cpu = 100 * (r.now.cpu[i] - r.before.cpu[i]) / r.span
		}
		t.Rows = append(t.Rows, []Cell{text(strconv.Itoa(i)), text(core), whole(uint64(w.PID)), text(state), number(cpu),
			number(rate(zone.RequestsHTTP1) + rate(zone.RequestsHTTP2)), whole(w.InFlight), whole(w.Connections), number(rate(zone.ConnectionsAccepted)),
			number(r.per(w.HandshakeDuration.Count, b.HandshakeDuration.Count)), number(8 * rate(zone.BytesReceived)), number(8 * rate(zone.BytesSent)), whole(w.Restarts)})
	}
	return t
}

func (r *rates) routes() Table {
	t := Table{Name: "routes", Columns: []Column{
		{"route", "ROUTE", nil}, {"requests_per_second", "REQ/s", count}, {"status_2xx_per_second", "2xx/s", count}, {"status_3xx_per_second", "3xx/s", count},
		{"status_4xx_per_second", "4xx/s", count}, {"status_5xx_per_second", "5xx/s", count}, {"p50_seconds", "P50", seconds}, {"p99_seconds", "P99", seconds}, {"requests", "TOTAL", count},
	}}
	for i := range r.now.ledger.Routes {
		n, b := &r.now.ledger.Routes[i], old(r.before.ledger.Routes, i)
		var c [5]float64
		var all, total float64
		for class := range c {
			c[class] = r.per(n.Classes[class], b.Classes[class])
			all += c[class]
			total += float64(n.Classes[class])
		}
		if total == 0 && (n.Name == "overflow" || n.Name == "none") {
			continue
		}
		p50, p99 := ledger.Quantile(&n.Duration, &b.Duration, 0.5), ledger.Quantile(&n.Duration, &b.Duration, 0.99)
		t.Rows = append(t.Rows, []Cell{text(n.Name), number(all), number(c[1]), number(c[2]), number(c[3]), number(c[4]), number(p50), number(p99), number(total)})
	}
	return t
}

func (r *rates) upstreams() Table {
	t := Table{Name: "upstreams", Columns: []Column{
		{"upstream", "UPSTREAM", nil}, {"ok_per_second", "OK/s", count}, {"failed_per_second", "FAILED/s", count}, {"most_failed", "MOST FAILED BY", nil},
		{"p50_seconds", "P50", seconds}, {"p99_seconds", "P99", seconds}, {"tries", "TOTAL", count},
	}}
	for i := range r.now.ledger.Upstreams {
		n, b := &r.now.ledger.Upstreams[i], old(r.before.ledger.Upstreams, i)
		var failed, most float64
		var total uint64
		cause := ""
		for o, v := range n.Outcomes {
			total += v
			if rate := r.per(v, at(b.Outcomes, o)); zone.UpstreamOutcome(o) != zone.UpstreamOK {
				failed += rate
				if rate > most {
					most, cause = rate, zone.UpstreamOutcome(o).String()
				}
			}
		}
		if total == 0 && n.Name == "overflow" {
			continue
		}
		p50, p99 := ledger.Quantile(&n.Duration, &b.Duration, 0.5), ledger.Quantile(&n.Duration, &b.Duration, 0.99)
		ok := r.per(at(n.Outcomes, int(zone.UpstreamOK)), at(b.Outcomes, int(zone.UpstreamOK)))
		t.Rows = append(t.Rows, []Cell{text(n.Name), number(ok), number(failed), text(cause), number(p50), number(p99), whole(total)})
	}
	return t
}

func (r *rates) limits() Table {
	t := Table{Name: "limits", Columns: []Column{{"limit", "LIMIT", nil}}}
	outcomes := zone.LimitOutcomes()
	for _, o := range outcomes {
		t.Columns = append(t.Columns, Column{o.String() + "_per_second", strings.ToUpper(o.String()) + "/s", count})
	}
	for i := range r.now.ledger.Limits {
		n, b := &r.now.ledger.Limits[i], old(r.before.ledger.Limits, i)
		row, total := []Cell{text(n.Name)}, uint64(0)
		for o := range outcomes {
			row = append(row, number(r.per(at(n.Outcomes, o), at(b.Outcomes, o))))
			total += at(n.Outcomes, o)
		}
		if total > 0 || n.Name != "overflow" {
			t.Rows = append(t.Rows, row)
		}
	}
	return t
}

func (r *rates) requests() Table {
	t := Table{Name: "requests", Columns: []Column{{"outcome", "OUTCOME", nil}, {"per_second", "REQ/s", count}, {"requests", "TOTAL", count}}}
	for o, n := range r.now.ledger.Requests {
		if n > 0 {
			t.Rows = append(t.Rows, []Cell{text(zone.RequestOutcome(o).String()), number(r.per(n, at(r.before.ledger.Requests, o))), whole(n)})
		}
	}
	return t
}

func (r *rates) drops() Table {
	t := Table{Name: "drops", Columns: []Column{
		{"interface", "INTERFACE", nil}, {"queue", "QUEUE", nil}, {"reason", "REASON", nil}, {"packets_per_second", "PACKETS/s", count},
		{"bits_per_second", "RECEIVED/s", bits}, {"packets", "TOTAL", count},
	}}
	for i := range r.now.ledger.Interfaces {
		in, before := &r.now.ledger.Interfaces[i], r.interfaceBefore(i)
		for q := range in.Counters.Ingress {
			n, b := &in.Counters.Ingress[q], &before.Counters.Ingress[q]
			if n.Verdict == "drop" && n.Packets > 0 {
				t.Rows = append(t.Rows, []Cell{text(in.Name), text(n.QueueName()), text(n.Reason), number(r.per(n.Packets, b.Packets)),
					number(8 * r.per(n.Bytes, b.Bytes)), whole(n.Packets)})
			}
		}
	}
	return t
}

// table is the ledger: every hop at which something was counted, and what nobody explains.
func (r *rates) table() Table {
	t := Table{Name: "ledger", Columns: []Column{
		{"hop", "HOP", nil}, {"where", "WHERE", nil}, {"verdict", "VERDICT", nil}, {"reason", "REASON", nil}, {"per_second", "/s", count}, {"count", "TOTAL", count},
	}}
	before := map[ledger.Row]uint64{}
	for _, row := range r.before.ledger.Rows(nil) {
		n := row.Count
		row.Count = 0
		before[row] = n
	}
	for _, row := range r.now.ledger.Rows(nil) {
		if n := row.Count; n > 0 {
			row.Count = 0
			was, known := before[row]
			if !known {
				was = n // nobody knows since when it counts
			}
			t.Rows = append(t.Rows, []Cell{text(row.Hop), text(row.Where), text(row.Verdict), text(row.Reason), number(r.per(n, was)), whole(n)})
		}
	}
	u := &r.now.ledger.Unexplained
	for _, rest := range []struct {
		of string
		n  int64
	}{{"packets", u.Packets}, {"requests", u.Requests}, {"statuses", u.Statuses}, {"connections", u.Connections}} {
		t.Rows = append(t.Rows, []Cell{text("unexplained"), text(""), text(""), text(rest.of), number(math.NaN()), number(float64(rest.n))})
	}
	return t
}
