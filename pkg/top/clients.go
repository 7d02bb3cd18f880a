// SPDX-License-Identifier: Apache-2.0

package top

import (
	"math"
	"net/netip"

	"github.com/xgw-project/xgw/pkg/zone"
)

// busyRates are what the busiest did in the last interval.
type busyRates struct {
	rates
	before map[string]*zone.Busy
}

func (r rates) busy(before []zone.Busy) busyRates {
	b := busyRates{r, make(map[string]*zone.Busy, len(before))}
	for i := range before {
		b.before[before[i].Name] = &before[i]
	}
	return b
}

// of are exchanges, 4xx, 5xx and what limits refused, a second.
func (r *busyRates) of(b *zone.Busy) (all, client, server, limited float64) {
	was := r.before[b.Name]
	if was == nil || !was.Since.Equal(b.Since) { // it is told apart only since then
		was = &zone.Busy{}
	}
	return r.per(b.Requests, was.Requests), r.per(b.ClientFault, was.ClientFault), r.per(b.ServerFault, was.ServerFault), r.per(b.Limited, was.Limited)
}

// sourcesPane joins who sends requests, the samples of dropped frames and the verdicts that are
// held.
func (s *Source) sourcesPane(r rates) Table {
	t := Table{Name: "sources", Columns: []Column{
		{"source", "SOURCE", nil}, {"requests_per_second", "REQ/s", count}, {"limited_per_second", "LIMITED/s", count}, {"samples", "SAMPLES", count},
		{"outcome", "DROPPED AS", nil}, {"ago_seconds", "AGO", since}, {"verdict", "VERDICT", nil}, {"left_seconds", "LEFT", since}, {"interface", "ON", nil},
		{"requests", "REQUESTS", count},
	}}
	rows := map[string][]Cell{}
	row := func(source string) []Cell {
		if rows[source] == nil {
			rows[source] = []Cell{text(source), number(0), number(0), whole(0), text(""), number(math.NaN()), text(""), number(math.NaN()), text(""), whole(0)}
		}
		return rows[source]
	}
	clients := r.busy(s.before.clients)
	for i := range s.now.clients {
		c := &s.now.clients[i]
		all, _, _, limited := clients.of(c)
		cells := row(addressOf(c.Name))
		cells[1], cells[2], cells[9] = number(all), number(limited), whole(c.Requests)
	}
	for source, d := range s.sources {
		cells := row(source.String())
		cells[3], cells[4], cells[5] = whole(d.samples), text(d.outcome), number(s.now.at.Sub(d.last).Seconds())
	}
	for _, v := range s.now.verdicts {
		cells := row(v.Source.String())
		cells[6], cells[7], cells[8] = text(v.Step.String()), number(v.TTL.Seconds()), text(v.Interface)
	}
	for _, cells := range rows {
		t.Rows = append(t.Rows, cells)
	}
	t.Sort(0, false) // maps have no order
	t.Sort(1, false)
	t.Sort(3, false)
	return t
}

// addressOf is a client as verdicts name it: of an IPv6 /64 its first address.
func addressOf(name string) string {
	if p, err := netip.ParsePrefix(name); err == nil {
		return p.Addr().String()
	}
	return name
}

func (s *Source) keysPane(r rates) Table {
	t := Table{Name: "keys", Columns: []Column{
		{"key", "KEY", nil}, {"requests_per_second", "REQ/s", count}, {"limited_per_second", "LIMITED/s", count}, {"source", "LAST FROM", nil},
		{"status_4xx_per_second", "4xx/s", count}, {"status_5xx_per_second", "5xx/s", count}, {"ago_seconds", "AGO", since}, {"requests", "REQUESTS", count},
		{"sent_bytes", "SENT", count},
	}}
	keys := r.busy(s.before.keys)
	for i := range s.now.keys {
		k := &s.now.keys[i]
		all, client, server, limited := keys.of(k)
		t.Rows = append(t.Rows, []Cell{text(k.Name), number(all), number(limited), text(verdictSource(k.From)), number(client), number(server),
			number(s.now.at.Sub(k.Last).Seconds()), whole(k.Requests), whole(k.Sent)})
	}
	t.Sort(0, false)
	t.Sort(1, false)
	return t
}

// verdictSource is whom a verdict on the address would be on: of IPv6 the /64.
func verdictSource(a netip.Addr) string {
	if a.Is6() {
		a = netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a.String()
}
