// SPDX-License-Identifier: Apache-2.0

// Package logging writes the access log, from what workers leave in the zone's
// rings, and the error log.
//
// The access log has one line for each exchange, a superset of nginx's combined:
//
//	CLIENT - - [TIME] "METHOD TARGET PROTOCOL" STATUS BYTES "REFERER" "USER AGENT" REQUEST_TIME UPSTREAM_TIME NAME=VALUE...
//
// Times are seconds with three decimals ("-" for no upstream). In what clients and
// upstreams sent, bytes outside of printable ASCII, quotes and backslashes are
// written as \xHH, and spaces too except within referer, user agent and host. So
// an exchange is always one line, quotes always pair, and cut at quotes the seventh
// field begins with the two times. Requests slower than 0.500 s:
//
//	awk -F'"' '{ split($7, t, " "); if (t[1] > 0.500) print }' access.log
//
// Named values follow: id, host (quoted), route, upstream, addr (the upstream's
// server), connect (time of a new upstream connection, 0.000 for one that was
// kept), in (bytes received), retries, worker, core (-1 for none of its own), gen
// (generation), tls (version), resumed, outcome, trace (the id of its W3C trace), edge (when its connection was accepted,
// seconds since 1970), queue (the NIC's receive queue that the connection came by, where
// the kernel says: Linux 6.8 and drivers that support it), key (the API key's id). New
// ones go to the end.
//
// A request that could not be read has an empty request line. TIME is when its
// first byte came. Strings are cut: the target at 1024 bytes, others at 256.
//
// As JSON (log.format) a line is an object with the same values: time (of UTC, with
// milliseconds), client, method, target, protocol, status, bytes, referer, user_agent, request_time,
// upstream_response_time, and then those above by their names. Seconds and counts are
// numbers, resumed is true or false, and what a line has as "-" is null. Strings are what was
// sent, with U+FFFD for what is not UTF-8.
//
// In both, and in syslog, *** stands for the values of query parameters that the
// configuration's list names, for what stands before the @ of a URL and for secrets of API keys, in
// target and referer. Authorization and cookies are not recorded at all.
//
// The error log has one line for each event, in nginx's manner:
//
//	2006/01/02 15:04:05 [error] PID#0: message name=value name="quoted value"
package logging

import (
	"strconv"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Names turn slots into names: a zone's RouteName and UpstreamName. Queue turns a NAPI
// instance's number into that of a receive queue, "" for none.
type Names struct {
	Route, Upstream func(slot int) string
	Queue           func(napi uint32) string
}

// Access formats access records. It is not safe for concurrent use.
type Access struct {
	routes, upstreams nameCache
	second            int64 // that stamp is for
	stamp             []byte
	secondJSON        int64 // that stampJSON is for
	stampJSON         []byte
	queue             func(napi uint32) string
	queues            map[uint32]string
}

// NewAccess makes a formatter. A slot keeps its name, so each is asked for once.
func NewAccess(names Names) *Access {
	return &Access{
		routes: nameCache{lookup: names.Route}, upstreams: nameCache{lookup: names.Upstream},
		second: -1 << 63, secondJSON: -1 << 63, stamp: make([]byte, 0, len(stampLayout)+8),
		queue: names.Queue, queues: map[uint32]string{},
	}
}

const stampLayout = "[02/Jan/2006:15:04:05 -0700]"

// AppendLine formats one record, newline included, and allocates nothing once b
// and the names have grown.
func (a *Access) AppendLine(b []byte, r *zone.AccessRecord) []byte {
	if r.Client.IsValid() {
		b = r.Client.Addr().AppendTo(b)
	} else {
		b = append(b, '-')
	}
	b = append(b, " - - "...)
	b = a.appendStamp(b, r.Start)
	b = append(b, ` "`...)
	if len(r.Method) > 0 {
		b = appendWord(b, r.Method)
		b = append(b, ' ')
		b = appendWord(b, r.Target)
		b = append(b, " HTTP/"...)
		b = strconv.AppendUint(b, uint64(r.Major), 10)
		b = append(b, '.')
		b = strconv.AppendUint(b, uint64(r.Minor), 10)
	}
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, r.BytesOut, 10)
	b = append(b, ` "`...)
	b = appendText(b, r.Referer)
	b = append(b, `" "`...)
	b = appendText(b, r.UserAgent)
	b = append(b, `" `...)
	b = appendSeconds(b, r.Duration)
	b = append(b, ' ')
	if r.Upstream >= 0 {
		b = appendSeconds(b, r.UpstreamDuration)
	} else {
		b = append(b, '-')
	}
	b = a.appendNamed(b, r)
	return append(b, '\n')
}

func (a *Access) appendNamed(b []byte, r *zone.AccessRecord) []byte {
	b = append(b, " id="...)
	b = appendField(b, r.ID)
	b = append(b, ` host="`...)
	b = appendText(b, r.Host)
	b = append(b, `" route=`...)
	b = appendField(b, a.routes.name(r.Route))
	b = append(b, " upstream="...)
	b = appendField(b, a.upstreams.name(r.Upstream))
	b = append(b, " addr="...)
	b = appendField(b, r.UpstreamAddr)
	b = append(b, " connect="...)
	b = appendSeconds(b, r.ConnectDuration)
	b = append(b, " in="...)
	b = strconv.AppendUint(b, r.BytesIn, 10)
	b = append(b, " retries="...)
	b = strconv.AppendInt(b, int64(r.Retries), 10)
	b = append(b, " worker="...)
	b = strconv.AppendInt(b, int64(r.Worker), 10)
	b = append(b, " core="...)
	b = strconv.AppendInt(b, int64(r.Core), 10)
	b = append(b, " gen="...)
	b = strconv.AppendUint(b, r.Generation, 10)
	b = append(b, " tls="...)
	b = append(b, tlsName(r.TLSVersion)...)
	b = append(b, " resumed="...)
	if r.Resumed {
		b = append(b, '1')
	} else {
		b = append(b, '0')
	}
	b = append(b, " outcome="...)
	b = append(b, r.Outcome.String()...)
	b = append(b, " trace="...)
	b = appendField(b, r.Trace)
	b = append(b, " edge="...)
	b = appendSeconds(b, time.Duration(r.Edge.UnixNano()))
	b = append(b, " queue="...)
	b = appendField(b, a.queueName(r.NAPI))
	b = append(b, " key="...)
	return appendField(b, r.Key)
}

// queueName asks once for each NAPI instance. Numbers come from workers: too many are not
// to be believed, and none is remembered from there on.
func (a *Access) queueName(napi uint32) string {
	const most = 4096
	if napi == 0 || a.queue == nil {
		return ""
	}
	name, known := a.queues[napi]
	if !known && len(a.queues) < most {
		name = a.queue(napi)
		a.queues[napi] = name
	}
	return name
}

// appendStamp formats a second once; most lines have that of the line before.
func (a *Access) appendStamp(b []byte, t time.Time) []byte {
	if second := t.Unix(); second != a.second {
		a.second, a.stamp = second, t.AppendFormat(a.stamp[:0], stampLayout)
	}
	return append(b, a.stamp...)
}

func tlsName(version uint16) string {
	switch version {
	case 0x0303:
		return "1.2"
	case 0x0304:
		return "1.3"
	}
	return "-"
}

// appendText is a quotable string, or "-".
func appendText(b, s []byte) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	return appendQuotable(b, s)
}

// appendField is one without spaces, or "-".
func appendField[T string | []byte](b []byte, s T) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	return appendWord(b, s)
}

// appendSeconds writes whole milliseconds, as 1.234.
func appendSeconds(b []byte, d time.Duration) []byte {
	ms := max(d, 0).Milliseconds()
	b = strconv.AppendInt(b, ms/1000, 10)
	return append(b, '.', '0'+byte(ms/100%10), '0'+byte(ms/10%10), '0'+byte(ms%10))
}

// nameCache remembers names by slot. Slots come from workers: what is no slot is
// not remembered.
type nameCache struct {
	lookup func(slot int) string
	known  []string
}

const maxCachedSlot = 1 << 15 // as many as a record can tell apart

func (c *nameCache) name(slot int) string {
	if slot < 0 {
		return ""
	}
	if slot < len(c.known) && c.known[slot] != "" {
		return c.known[slot]
	}
	name := c.lookup(slot)
	if slot < maxCachedSlot && name != "" {
		for len(c.known) <= slot {
			c.known = append(c.known, "")
		}
		c.known[slot] = name
	}
	return name
}
