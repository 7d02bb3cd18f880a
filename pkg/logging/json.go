// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/xgw-project/xgw/pkg/zone"
)

// AppendJSON formats one record as a line of JSON, newline included, and allocates nothing
// once b and the names have grown.
func (a *Access) AppendJSON(b []byte, r *zone.AccessRecord) []byte {
	b = append(b, `{"time":"`...)
	b = a.appendTime(b, r.Start)
	b = append(b, `","client":`...)
	if r.Client.IsValid() {
		b = append(b, '"')
		b = r.Client.Addr().AppendTo(b)
		b = append(b, '"')
	} else {
		b = append(b, "null"...)
	}
	b = jsonText(b, "method", r.Method)
	target := r.Target
	if len(r.Method) == 0 {
		target = nil // what could not be read has no request line
	}
	b = jsonText(b, "target", target)
	if len(r.Method) == 0 {
		b = append(b, `,"protocol":null`...)
	} else {
		b = append(b, `,"protocol":"HTTP/`...)
		b = strconv.AppendUint(b, uint64(r.Major), 10)
		b = append(b, '.')
		b = strconv.AppendUint(b, uint64(r.Minor), 10)
		b = append(b, '"')
	}
	b = jsonNumber(b, "status", int64(r.Status))
	b = jsonCount(b, "bytes", r.BytesOut)
	b = jsonText(b, "referer", r.Referer)
	b = jsonText(b, "user_agent", r.UserAgent)
	b = jsonSeconds(b, "request_time", r.Duration)
	if r.Upstream >= 0 {
		b = jsonSeconds(b, "upstream_response_time", r.UpstreamDuration)
	} else {
		b = append(b, `,"upstream_response_time":null`...)
	}
	b = a.appendNamedJSON(b, r)
	return append(b, '}', '\n')
}

// appendTime formats a second once, as appendStamp does.
func (a *Access) appendTime(b []byte, t time.Time) []byte {
	if second := t.Unix(); second != a.secondJSON {
		a.secondJSON, a.stampJSON = second, t.UTC().AppendFormat(a.stampJSON[:0], "2006-01-02T15:04:05.")
	}
	ms := t.Nanosecond() / int(time.Millisecond)
	b = append(b, a.stampJSON...)
	return append(b, '0'+byte(ms/100), '0'+byte(ms/10%10), '0'+byte(ms%10), 'Z')
}

func (a *Access) appendNamedJSON(b []byte, r *zone.AccessRecord) []byte {
	b = jsonText(b, "id", r.ID)
	b = jsonText(b, "host", r.Host)
	b = jsonText(b, "route", a.routes.name(r.Route))
	b = jsonText(b, "upstream", a.upstreams.name(r.Upstream))
	b = jsonText(b, "addr", r.UpstreamAddr)
	b = jsonSeconds(b, "connect", r.ConnectDuration)
	b = jsonCount(b, "in", r.BytesIn)
	b = jsonNumber(b, "retries", int64(r.Retries))
	b = jsonNumber(b, "worker", int64(r.Worker))
	b = jsonNumber(b, "core", int64(r.Core))
	b = jsonCount(b, "gen", r.Generation)
	version := tlsName(r.TLSVersion)
	if version == "-" {
		version = ""
	}
	b = jsonText(b, "tls", version)
	b = append(b, `,"resumed":`...)
	b = strconv.AppendBool(b, r.Resumed)
	b = jsonText(b, "outcome", r.Outcome.String())
	b = jsonText(b, "trace", r.Trace)
	b = jsonSeconds(b, "edge", time.Duration(r.Edge.UnixNano()))
	b = jsonText(b, "queue", a.queueName(r.NAPI))
	return jsonText(b, "key", r.Key)
}

func jsonName(b []byte, name string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	return append(b, '"', ':')
}

func jsonNumber(b []byte, name string, v int64) []byte {
	return strconv.AppendInt(jsonName(b, name), v, 10)
}

func jsonCount(b []byte, name string, v uint64) []byte {
	return strconv.AppendUint(jsonName(b, name), v, 10)
}

func jsonSeconds(b []byte, name string, d time.Duration) []byte {
	return appendSeconds(jsonName(b, name), d)
}

// jsonText is a string, or null for an empty one.
func jsonText[T string | []byte](b []byte, name string, s T) []byte {
	b = jsonName(b, name)
	if len(s) == 0 {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = appendQuoted(b, s)
	return append(b, '"')
}

// appendQuoted is what stands within the quotes of a string of JSON (RFC 8259): what is not
// UTF-8 becomes U+FFFD, and what is no printable character is \uXXXX, so that no terminal
// takes it for anything else.
func appendQuoted[T string | []byte](b []byte, s T) []byte {
	at := len(b)
	b = append(b, s...)
	if clean(b[at:], quoted) { // as most are
		return b
	}
	b = b[:at]
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < ' ' || c == 0x7f:
				b = appendUnit(b, uint16(c))
			default:
				b = append(b, c)
			}
			i++
			continue
		}
		end := min(len(s), i+utf8.UTFMax)
		r, n := utf8.DecodeRuneInString(string(s[i:end])) // at most four bytes: on the stack
		i += n
		switch {
		case unicode.IsPrint(r): // U+FFFD among them
			b = utf8.AppendRune(b, r)
		case r >= 0x10000:
			b = appendUnit(b, uint16(0xd800+(r-0x10000)>>10))
			b = appendUnit(b, uint16(0xdc00+(r-0x10000)&0x3ff))
		default:
			b = appendUnit(b, uint16(r))
		}
	}
	return b
}

func appendUnit(b []byte, u uint16) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[u>>12], hex[u>>8&15], hex[u>>4&15], hex[u&15])
}
