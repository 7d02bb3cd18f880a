// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// AccessRecord is one exchange as the access log will have it. Byte slices are
// borrowed: Put copies them, and those that Drain hands out last for the call.
type AccessRecord struct {
	Start            time.Time
	Edge             time.Time     // when its connection was accepted
	Duration         time.Duration // from the request's first byte to the reply's last
	UpstreamDuration time.Duration // until the upstream's reply head; 0 without upstream
	ConnectDuration  time.Duration // of a new upstream connection; 0 for a kept one
	Client           netip.AddrPort
	Generation       uint64
	BytesIn          uint64 // as the client sent them: head and body, without TLS
	BytesOut         uint64
	Worker, Core     int // Core -1: not pinned
	Route, Upstream  int // slots; -1 for none
	Status           int
	Retries          int
	Major, Minor     uint8  // of the HTTP version; 0.0 when the request could not be read
	TLSVersion       uint16 // 0x0304 is TLS 1.3
	NAPI             uint32 // the kernel's number of what polled the connection's receive queue; 0: it does not say
	Resumed          bool
	Sampled          bool // whoever began the trace records it
	Outcome          RequestOutcome
	// The exchange's span of a sampled trace, and the client's that it belongs to.
	Span, Parent [8]byte

	Method, Host, Target, UserAgent, Referer, ID, UpstreamAddr, Trace, Key []byte
}

// Longest strings that are kept; what is longer is cut.
const (
	maxTarget = 1024
	maxText   = 256

	recordTexts = 9
	recordFixed = 9*8 + 16 + 2 + 6*2 + 2 + 2 + 4 + 1 + 1
	recordSpans = 2 * 8 // of those that are sampled
	maxRecord   = recordFixed + recordSpans + 2*recordTexts + maxTarget + (recordTexts-1)*maxText
)

// Flags of an encoded record.
const (
	flagResumed = 1 << iota
	flagIPv4
	flagClient // there is an address
	flagSampled
)

func clip(b []byte, n int) []byte {
	if len(b) > n {
		return b[:n]
	}
	return b
}

// appendTo encodes the record; the layout is private to this file.
func (r *AccessRecord) appendTo(b []byte) []byte {
	le := binary.LittleEndian
	for _, v := range [...]uint64{
		uint64(r.Start.UnixNano()), uint64(r.Duration), uint64(r.UpstreamDuration), uint64(r.ConnectDuration),
		r.Generation, r.BytesIn, r.BytesOut, uint64(r.Outcome), uint64(r.Edge.UnixNano()),
	} {
		b = le.AppendUint64(b, v)
	}
	addr := r.Client.Addr().As16()
	b = append(b, addr[:]...)
	b = le.AppendUint16(b, r.Client.Port())
	for _, v := range [...]int{r.Worker, r.Core, r.Route, r.Upstream, r.Status, r.Retries} {
		b = le.AppendUint16(b, uint16(int16(v)))
	}
	b = append(b, r.Major, r.Minor)
	b = le.AppendUint16(b, r.TLSVersion)
	b = le.AppendUint32(b, r.NAPI)
	flags := byte(0)
	if r.Resumed {
		flags |= flagResumed
	}
	if r.Client.IsValid() {
		flags |= flagClient
	}
	if r.Client.Addr().Is4() || r.Client.Addr().Is4In6() {
		flags |= flagIPv4
	}
	if r.Sampled {
		flags |= flagSampled
	}
	b = append(b, flags, 0)
	if r.Sampled {
		b = append(append(b, r.Span[:]...), r.Parent[:]...)
	}
	for i, s := range [...][]byte{r.Target, r.Method, r.Host, r.UserAgent, r.Referer, r.ID, r.UpstreamAddr, r.Trace, r.Key} {
		limit := maxText
		if i == 0 {
			limit = maxTarget
		}
		s = clip(s, limit)
		b = le.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

var errRecord = errors.New("access record is damaged")

// decode fills r from what appendTo made; strings point into b.
func (r *AccessRecord) decode(b []byte) error {
	if len(b) < recordFixed {
		return errRecord
	}
	le := binary.LittleEndian
	u64 := func() uint64 { v := le.Uint64(b); b = b[8:]; return v }
	u16 := func() uint16 { v := le.Uint16(b); b = b[2:]; return v }
	r.Start = time.Unix(0, int64(u64()))
	r.Duration, r.UpstreamDuration, r.ConnectDuration = time.Duration(u64()), time.Duration(u64()), time.Duration(u64())
	r.Generation, r.BytesIn, r.BytesOut = u64(), u64(), u64()
	outcome := u64()
	if outcome >= uint64(requestOutcomes) {
		return errRecord
	}
	r.Outcome = RequestOutcome(outcome)
	r.Edge = time.Unix(0, int64(u64()))
	addr := netip.AddrFrom16([16]byte(b))
	b = b[16:]
	port := u16()
	for _, dst := range [...]*int{&r.Worker, &r.Core, &r.Route, &r.Upstream, &r.Status, &r.Retries} {
		*dst = int(int16(u16()))
	}
	r.Major, r.Minor = b[0], b[1]
	b = b[2:]
	r.TLSVersion = u16()
	r.NAPI, b = le.Uint32(b), b[4:]
	flags := b[0]
	b = b[2:]
	r.Resumed, r.Sampled = flags&flagResumed != 0, flags&flagSampled != 0
	r.Span, r.Parent = [8]byte{}, [8]byte{}
	if r.Sampled {
		if len(b) < recordSpans {
			return errRecord
		}
		r.Span, r.Parent, b = [8]byte(b), [8]byte(b[8:]), b[recordSpans:]
	}
	if flags&flagIPv4 != 0 {
		addr = addr.Unmap()
	}
	r.Client = netip.AddrPort{}
	if flags&flagClient != 0 {
		r.Client = netip.AddrPortFrom(addr, port)
	}
	for _, dst := range [...]*[]byte{&r.Target, &r.Method, &r.Host, &r.UserAgent, &r.Referer, &r.ID, &r.UpstreamAddr, &r.Trace, &r.Key} {
		if len(b) < 2 {
			return errRecord
		}
		n := int(u16())
		if n > len(b) {
			return errRecord
		}
		*dst, b = b[:n:n], b[n:]
	}
	if len(b) > 0 {
		return errRecord
	}
	return nil
}
