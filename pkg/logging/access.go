// SPDX-License-Identifier: Apache-2.0

// Package logging writes what workers leave in the zone's rings.
//
// The access log has one line for each exchange, a superset of nginx's combined:
//
//	CLIENT - - [TIME] "METHOD TARGET PROTOCOL" STATUS BYTES "REFERER" "USER AGENT" REQUEST_TIME UPSTREAM_TIME NAME=VALUE...
//
// Times are seconds with three decimals ("-" for no upstream). Bytes outside of
// printable ASCII, quotes and backslashes in what the client sent are written as
// \xHH, so a line is always one line and quotes always pair: cut at quotes, the
// seventh field begins with the two times. Requests slower than 0.500 s:
//
//	awk -F'"' '{ split($7, t, " "); if (t[1] > 0.500) print }' access.log
//
// Named values follow: id, host, route, upstream, addr (the upstream's server),
// connect (time of a new upstream connection), in (bytes received), retries,
// worker, core, gen (generation), tls, resumed, outcome.
package logging

import (
	"strconv"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Names turn slots into names.
type Names struct {
	Route, Upstream func(slot int) string
}

// AppendLine formats one record, newline included.
func (n *Names) AppendLine(b []byte, r *zone.AccessRecord) []byte {
	if r.Client.IsValid() {
		b = r.Client.Addr().AppendTo(b)
	} else {
		b = append(b, '-')
	}
	b = append(b, " - - ["...)
	b = r.Start.AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `] "`...)
	if len(r.Method) > 0 {
		b = appendEscaped(b, r.Method)
		b = append(b, ' ')
		b = appendEscaped(b, r.Target)
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
	b = appendOrDash(b, r.Referer)
	b = append(b, `" "`...)
	b = appendOrDash(b, r.UserAgent)
	b = append(b, `" `...)
	b = appendSeconds(b, r.Duration)
	b = append(b, ' ')
	if r.Upstream >= 0 {
		b = appendSeconds(b, r.UpstreamDuration)
	} else {
		b = append(b, '-')
	}
	b = n.appendNamed(b, r)
	return append(b, '\n')
}

func (n *Names) appendNamed(b []byte, r *zone.AccessRecord) []byte {
	b = append(b, " id="...)
	b = appendOrDash(b, r.ID)
	b = append(b, ` host="`...)
	b = appendOrDash(b, r.Host)
	b = append(b, `" route=`...)
	b = appendName(b, n.Route, r.Route)
	b = append(b, " upstream="...)
	b = appendName(b, n.Upstream, r.Upstream)
	b = append(b, " addr="...)
	b = appendOrDash(b, r.UpstreamAddr)
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
	b = append(b, '0'+byte(boolToInt(r.Resumed)))
	b = append(b, " outcome="...)
	return append(b, r.Outcome.String()...)
}

func boolToInt(v bool) int {
	if v {
		return 1
	}
	return 0
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

func appendName(b []byte, name func(int) string, slot int) []byte {
	if slot < 0 {
		return append(b, '-')
	}
	return append(b, name(slot)...)
}

func appendOrDash(b, s []byte) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	return appendEscaped(b, s)
}

// appendEscaped lets through what cannot end a field or a line.
func appendEscaped(b, s []byte) []byte {
	const hex = "0123456789ABCDEF"
	for _, c := range s {
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
			continue
		}
		b = append(b, c)
	}
	return b
}

// appendSeconds writes milliseconds exactly, as 1.234.
func appendSeconds(b []byte, d time.Duration) []byte {
	ms := max(d, 0).Milliseconds()
	b = strconv.AppendInt(b, ms/1000, 10)
	return append(b, '.', '0'+byte(ms/100%10), '0'+byte(ms/10%10), '0'+byte(ms%10))
}
