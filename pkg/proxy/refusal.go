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
	retryAfter int           // seconds; 0: the client is told none
	fields     []http1.Field // further ones
}

// refuse answers in place of an upstream. In an overload it is most of what is done: it allocates nothing.
func (ex *Exchange) refuse(r *refusal) {
	ex.outcome = r.outcome
	ex.client.dropBody()
	if ex.isGRPC() {
		ex.refuseGRPC(r)
		return
	}
	// Nothing is sent to an upstream any more, so that there is room for text.
	text := ex.request[:0]
	if cap(text) > inputSize {
		text = nil // that may be given up while the reply is sent
	}
	text = append(strconv.AppendInt(text, int64(r.status), 10), ' ')
	text = append(append(text, r.text...), '\n')
	n := len(text)
	text = time.Now().UTC().AppendFormat(text, http.TimeFormat)
	ex.request = text
	body, date := text[:n], text[n:]
	reply := &ex.reply
	*reply = http1.Response{Status: r.status, Body: http1.Body{Length: int64(n)}, Fields: append(reply.Fields[:0],
		http1.Field{Name: nameDate, Value: date}, http1.Field{Name: nameContentType, Value: typeText})}
	if r.retryAfter > 0 {
		reply.Fields = append(reply.Fields, http1.Field{Name: nameRetryAfter, Value: seconds[min(r.retryAfter, len(seconds)-1)]})
	}
	reply.Fields = append(reply.Fields, r.fields...)
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

var nameContentType, typeText = []byte("Content-Type"), []byte("text/plain; charset=utf-8")

// seconds are values of Retry-After.
var seconds = func() (texts [int(longestWait/time.Second) + 2][]byte) {
	for i := range texts {
		texts[i] = strconv.AppendInt(nil, int64(i), 10)
	}
	return texts
}()

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
