// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strconv"
	"time"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// refusal is a reply of this gateway's own.
type refusal struct {
	status     int
	outcome    zone.RequestOutcome
	text       string
	retryAfter bool
	fields     []http1.Field // further ones
}

// refuse answers in place of an upstream.
func (ex *Exchange) refuse(r *refusal) {
	ex.outcome = r.outcome
	ex.client.dropBody()
	if ex.isGRPC() {
		ex.refuseGRPC(r)
		return
	}
	body := append(strconv.AppendInt(nil, int64(r.status), 10), ' ')
	body = append(body, r.text...)
	body = append(body, '\n')
	fields := []http1.Field{
		{Name: []byte("Date"), Value: time.Now().UTC().AppendFormat(nil, http.TimeFormat)},
		{Name: []byte("Content-Type"), Value: []byte("text/plain; charset=utf-8")},
	}
	if r.retryAfter {
		fields = append(fields, http1.Field{Name: []byte("Retry-After"), Value: []byte("1")})
	}
	fields = append(fields, r.fields...)
	reply := &http1.Response{
		Status: r.status, Reason: []byte(http.StatusText(r.status)), Fields: fields, Body: http1.Body{Length: int64(len(body))},
	}
	ex.dress(reply)
	err := ex.client.begin(ex, reply)
	if err == nil && string(ex.method) != "HEAD" {
		err = ex.client.write(ex, body)
	}
	if err == nil {
		err = ex.client.end(ex)
	}
	if err != nil {
		ex.client.abort() // the outcome stays: it is why there was nothing better to send
	}
}

// outcomeOf maps a fault of a request's head.
func outcomeOf(f *http1.Fault) zone.RequestOutcome {
	switch f.Status {
	case 414:
		return zone.RequestURITooLong
	case 431:
		return zone.RequestHeaderTooLarge
	case 501:
		return zone.RequestMethodRefused
	}
	return zone.RequestBad
}
