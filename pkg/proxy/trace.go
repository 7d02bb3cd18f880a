// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/hex"

	"github.com/xgw-project/xgw/pkg/proxy/http1"
)

// trace is where an exchange stands in a distributed trace: W3C Trace Context, level 1.
type trace struct {
	id        [32]byte // of the whole trace
	flags     [2]byte  // 01: whoever began it records it
	parent    [16]byte // the client's span
	continued bool     // the client began it: its tracestate goes on, too
}

// sampled tells whether the trace is recorded.
func (t *trace) sampled() bool {
	c := t.flags[1]
	return (c&1 != 0) == (c <= '9') // hexadecimal: 1 3 5 7 9 b d f
}

// newTrace is one that the exchange begins, under its own id.
func (ex *Exchange) newTrace() trace {
	t := trace{id: ex.id, flags: [2]byte{'0', '0'}}
	if n := ex.snap.policy.TraceOneIn; n > 0 && ex.worker.traceCounter.Add(1)%uint64(n) == 0 {
		t.flags[1] = '1'
	}
	return t
}

// parentLength is that of a traceparent of version 00; later versions may be longer.
const parentLength = 2 + 1 + 32 + 1 + 16 + 1 + 2

// traceContext continues the client's trace. Without one, or with one that is not well
// formed or comes twice, the exchange's own id is a new trace's.
func traceContext(ex *Exchange) *refusal {
	ex.trace = trace{}
	found := 0
	for i := range ex.fields {
		f := &ex.fields[i]
		if f.Kind != http1.TraceParent {
			continue
		}
		if found++; found > 1 || !validParent(f.Value) {
			ex.trace = ex.newTrace()
			return nil
		}
		copy(ex.trace.id[:], f.Value[3:])
		copy(ex.trace.parent[:], f.Value[36:])
		copy(ex.trace.flags[:], f.Value[53:])
		ex.trace.continued = true
	}
	if found == 0 {
		ex.trace = ex.newTrace()
	}
	return nil
}

func validParent(v []byte) bool {
	if len(v) < parentLength || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return false
	}
	version := string(v[:2])
	switch {
	case version == "ff", version == "00" && len(v) != parentLength, len(v) > parentLength && v[parentLength] != '-':
		return false
	}
	return isHex(v[:2]) && isHex(v[3:35]) && isHex(v[36:52]) && isHex(v[53:55]) && !isZero(v[3:35]) && !isZero(v[36:52])
}

func isHex(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != '0' {
			return false
		}
	}
	return true
}

// span is the exchange's: the last half of its id, with the worker's own half mixed in.
func (ex *Exchange) span() (s [8]byte) {
	var raw [16]byte
	_, _ = hex.Decode(raw[:], ex.id[:])
	copy(s[:], raw[8:])
	for i := range 7 {
		s[i] ^= raw[i]
	}
	s[0] |= 1 // not zero
	return s
}

// appendTrace writes the fields for the upstream, whose parent is this exchange.
func (ex *Exchange) appendTrace(b []byte) []byte {
	b = append(b, "\r\nTraceparent: 00-"...)
	b = append(b, ex.trace.id[:]...)
	b = append(b, '-')
	span := ex.span()
	b = hex.AppendEncode(b, span[:])
	b = append(b, '-')
	b = append(b, ex.trace.flags[:]...)
	if ex.trace.continued {
		for i := range ex.fields {
			if f := &ex.fields[i]; f.Kind == http1.TraceState {
				b = append(b, "\r\nTracestate: "...)
				b = append(b, f.Value...)
			}
		}
	}
	return b
}
