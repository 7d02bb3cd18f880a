// SPDX-License-Identifier: Apache-2.0

package http2

import "time"

// MisuseKind names what a client did too much of.
type MisuseKind int

// The kinds of misuse. Their words are stable: they end up in logs and metrics.
const (
	EmptyData      MisuseKind = iota // DATA frames without data that do not end the stream
	Pings                            // PING, other than the answers to ours
	SettingsFrames                   // SETTINGS
	Priorities                       // PRIORITY
	WindowUpdates                    // WINDOW_UPDATE beyond what our DATA frames make reasonable
	Resets                           // RST_STREAM by the client (rapid reset)
	CausedResets                     // requests and frames that make us reset (made you reset, malformed requests)
	Continuations                    // CONTINUATION frames or header blocks without an end
	HeaderFloods                     // requests with more header than allowed, again and again
	ClosedStreams                    // frames on streams that are over
	RefusedStreams                   // streams above the limit, or after GOAWAY
	UnknownFrames                    // frames of a type that is not defined
	ControlQueue                     // the client makes us answer but does not read the answers
	misuseKinds
)

func (k MisuseKind) String() string {
	switch k {
	case EmptyData:
		return "empty_data"
	case Pings:
		return "pings"
	case SettingsFrames:
		return "settings"
	case Priorities:
		return "priorities"
	case WindowUpdates:
		return "window_updates"
	case Resets:
		return "resets"
	case CausedResets:
		return "caused_resets"
	case Continuations:
		return "continuations"
	case HeaderFloods:
		return "header_floods"
	case ClosedStreams:
		return "closed_streams"
	case RefusedStreams:
		return "refused_streams"
	case UnknownFrames:
		return "unknown_frames"
	case ControlQueue:
		return "control_queue"
	}
	return "unknown"
}

// Misuse ends a connection whose client sends frames that cost us work and do none for it. Each connection has a budget
// for them, which useful work (an exchange that ends well, a DATA frame we send) and time fill up again. The client gets
// GOAWAY with ENHANCE_YOUR_CALM.
type Misuse struct {
	Kind MisuseKind // what most of the budget went to
}

func (m *Misuse) Error() string {
	return "http2 peer misuses the connection: " + m.Kind.String()
}

const (
	misuseBudget  = 500     // what a browser does in a burst is within: 100 streams that were just begun, cancelled
	misuseRefill  = 50      // per second
	usefulFrame   = 1 << 10 // bytes from which DATA counts as work that was cut short by a window: tiny windows are no use
	continuations = 64      // CONTINUATION frames in a block: 32 KiB in pieces of 512 bytes
	controlBytes  = 64 << 10
	answersMost   = 4096 // what a client with a window of 2 MiB may owe
	lateMost      = 4 << 20

	// A stream that is reset costs an exchange, and one that has reached its server a connection to that as well. Who does it
	// for the harm does it again and again, to streams that it began a moment ago.
	costReset      = 2
	costEarlyReset = 3 // before a reply, within earlyReset
	costRefused    = 4
	costCaused     = 8 // who makes us reset streams is broken, or pretends to be
	earlyReset     = 100 * time.Millisecond
)

// budget is what is left for frames that do no work. It is guarded by the connection's lock.
type budget struct {
	left    int
	filled  time.Time // when time was last counted as refill
	answers int       // WINDOW_UPDATE and PING frames that DATA we sent gives reason for
	late    int64     // bytes of DATA that may be under way to streams that we answered before their end
	charged [misuseKinds]uint32
}

// charge takes cost from the budget and returns a *Misuse when nothing is left. The clock is read only then.
func (b *budget) charge(kind MisuseKind, cost int, now func() time.Time) error {
	b.charged[kind] += uint32(cost)
	b.left -= cost
	if b.left >= 0 {
		return nil
	}
	t := now()
	gained := int(t.Sub(b.filled).Seconds() * misuseRefill)
	if gained > 0 {
		b.filled = t
		b.left = min(b.left+gained, misuseBudget-cost)
		clear(b.charged[:]) // so that the name is of what happens now
		b.charged[kind] = uint32(cost)
	}
	if b.left >= 0 {
		return nil
	}
	worst := kind
	for k, n := range b.charged {
		if n > b.charged[worst] {
			worst = MisuseKind(k)
		}
	}
	return &Misuse{Kind: worst}
}

// chargeAnswer is charge for frames that clients send because they got DATA. Having got a lot must not pay for misuse of
// any other kind, so this is apart from the budget.
func (b *budget) chargeAnswer(kind MisuseKind, now func() time.Time) error {
	if b.answers > 0 {
		b.answers--
		return nil
	}
	return b.charge(kind, 1, now)
}

// early notes that a stream was answered before the client had sent its body, of which so much may be under way.
func (b *budget) early(window int64) { b.late = min(b.late+max(window, 0), lateMost) }

// chargeLate is charge for DATA on a stream that is over.
func (b *budget) chargeLate(size int64, now func() time.Time) error {
	if size = max(size, usefulFrame); b.late >= size {
		b.late -= size
		return nil
	}
	return b.charge(ClosedStreams, 1, now)
}

// sent notes a DATA frame of n bytes. The client may give both windows back for it, in pieces of 1 KiB.
func (b *budget) sent(n int) { b.answers = min(b.answers+2+n>>9, answersMost) }

// useful puts back what an exchange that ended well earns.
func (b *budget) useful(n int) { b.left = min(b.left+n, misuseBudget) }
