// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Verdict is one that a gateway gave, as the others hear of it.
type Verdict struct {
	From   string        `json:"from"` // the gateway
	Source netip.Addr    `json:"source"`
	Step   string        `json:"step"` // that was asked for: each gateway has a guard of its own
	Reason string        `json:"reason"`
	Rule   string        `json:"rule,omitempty"`
	Note   string        `json:"note,omitempty"`
	Who    uint64        `json:"who,omitempty"` // the identity that offended
	TTL    time.Duration `json:"ttl"`           // of the step; where it is received, what is left of it
	// Mark is the message's place among all of them: later ones have greater ones, never 0.
	Mark uint64 `json:"-"`
}

// What becomes of messages, beside what a Judge says.
const (
	Sent    = "sent"
	Unsent  = "unsent"  // no answer while it mattered, or too many at once
	Expired = "expired" // it was over when it came
	Invalid = "invalid" // no gateway of this release writes that
	Known   = "known"   // as much is held here already
)

var verdictFates = []string{Sent, Unsent, Expired, Invalid, Known, "given", "capped", "exempt", "lifted", "would_give", "failed"}

const (
	keptVerdicts  = 16384 // messages in the server
	queueVerdicts = 256   // that wait to be sent
	tellTime      = 5 * time.Second
	followTime    = time.Second
	longest       = 30 * 24 * time.Hour // that a verdict holds
	maxText       = 256                 // bytes of each text in a message
)

// Bulletin carries verdicts to the other gateways and theirs here, by a stream in the server:
// who comes later reads what is still in force.
type Bulletin struct {
	node *Node
	// judge gives a verdict of another gateway and says what became of it, in a word of a few.
	judge func(Verdict) string
	on    atomic.Bool
	queue chan queued
}

type queued struct {
	Verdict
	until time.Time
}

// NewBulletin makes one that is off.
func NewBulletin(n *Node, judge func(Verdict) string) *Bulletin {
	return &Bulletin{node: n, judge: judge, queue: make(chan queued, queueVerdicts)}
}

// Set turns it on or off.
func (b *Bulletin) Set(on bool) { b.on.Store(on) }

// Tell sends the verdict on its way. It waits for nothing.
func (b *Bulletin) Tell(v Verdict) {
	if !b.on.Load() {
		return
	}
	v.From = b.node.name
	select {
	case b.queue <- queued{v, time.Now().Add(v.TTL)}:
	default:
		b.count(Unsent)
	}
}

func (b *Bulletin) count(fate string) {
	b.node.mu.Lock()
	defer b.node.mu.Unlock()
	b.node.stats.Verdicts[fate]++
}

func (b *Bulletin) stream() string { return b.node.prefix + "verdicts" }

// Send carries what Tell was given, until ctx ends.
func (b *Bulletin) Send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-b.queue:
			b.count(b.send(ctx, q))
		}
	}
}

// send tries for a while: a server that changes over is away for a moment.
func (b *Bulletin) send(ctx context.Context, q queued) string {
	for began := time.Now(); ctx.Err() == nil && time.Since(began) < tellTime; pause(ctx, retryTime) {
		if q.TTL = time.Until(q.until); q.TTL <= 0 {
			break
		}
		text, err := json.Marshal(q.Verdict)
		if err != nil {
			return Invalid
		}
		try, cancel := context.WithTimeout(ctx, patience)
		_, err = b.node.client.Pipelined(try, func(p redis.Pipeliner) error {
			p.XAdd(try, &redis.XAddArgs{Stream: b.stream(), MaxLen: keptVerdicts, Approx: true, Values: []string{"verdict", string(text)}})
			p.Expire(try, b.stream(), longest)
			return nil
		})
		cancel()
		if err == nil {
			return Sent // twice, where only the answer was lost: the second is known
		}
	}
	return Unsent
}

// Follow gives judge what other gateways tell, until ctx ends.
func (b *Bulletin) Follow(ctx context.Context) {
	last, ahead := "0-0", time.Duration(0) // of the server's clock
	for whole := false; ctx.Err() == nil; {
		if !b.on.Load() {
			whole = false
			pause(ctx, retryTime)
			continue
		}
		if !whole {
			at, by, err := b.place(ctx, last)
			b.node.note(err)
			if err != nil {
				pause(ctx, retryTime)
				continue
			}
			last, ahead, whole = at, by, true
		}
		streams, err := b.node.client.XRead(ctx, &redis.XReadArgs{Streams: []string{b.stream(), last}, Count: 1000, Block: followTime}).Result()
		switch {
		case errors.Is(err, redis.Nil): // nothing came
		case err != nil:
			whole = false
			pause(ctx, retryTime)
		default:
			for _, m := range streams[0].Messages {
				last = m.ID
				b.receive(m, time.Now().Add(ahead))
			}
		}
	}
}

// place is where to follow from: behind what was read last, unless the server has lost that. ahead
// is what its clock is before this one's.
func (b *Bulletin) place(ctx context.Context, last string) (at string, ahead time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	now, err := b.node.client.Time(ctx).Result()
	if err != nil {
		return "", 0, err
	}
	newest, err := b.node.client.XRevRangeN(ctx, b.stream(), "+", "-", 1).Result()
	if err != nil {
		return "", 0, err
	}
	if len(newest) == 0 || mark(newest[0].ID) < mark(last) {
		last = "0-0"
	}
	return last, time.Until(now), nil
}

// receive looks at a message; now is by the server's clock.
func (b *Bulletin) receive(m redis.XMessage, now time.Time) {
	text, _ := m.Values["verdict"].(string)
	v, ok := parse(text)
	if v.From == b.node.name {
		return
	}
	v.Mark = mark(m.ID)
	v.TTL -= now.Sub(time.UnixMilli(int64(v.Mark >> markBits)))
	switch {
	case !ok || v.TTL > longest:
		b.count(Invalid)
	case v.TTL <= 0:
		b.count(Expired)
	default:
		b.count(b.judge(v))
	}
}

// parse reads what a gateway wrote. Whether step and source are such is for the judge to say.
func parse(text string) (v Verdict, ok bool) {
	if len(text) > 4*maxText+512 || json.Unmarshal([]byte(text), &v) != nil {
		return Verdict{}, false
	}
	for _, s := range []string{v.From, v.Step, v.Reason, v.Rule, v.Note} {
		if len(s) > maxText {
			return v, false
		}
	}
	return v, v.Source.IsValid() && v.Source.Zone() == "" && v.TTL > 0 && v.TTL <= longest
}

// mark is a place in a stream, milliseconds and a number, as one number.
func mark(id string) uint64 {
	x, y, _ := strings.Cut(id, "-")
	ms, _ := strconv.ParseUint(x, 10, 64)
	n, _ := strconv.ParseUint(y, 10, 64)
	return min(ms, 1<<(64-markBits)-1)<<markBits | min(n, 1<<markBits-1)
}

// markBits are those of the number.
const markBits = 16

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
