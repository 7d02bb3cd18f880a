// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"
)

// Busiest are those who made the most exchanges lately: addresses, or API keys. The
// supervisor counts them out of the access records, so that no worker does anything for it;
// what a full ring dropped is missing. The table has a fixed size, whatever the traffic: when
// a set is full, who was the least busy goes. It outlives its writer, and a reader beside it
// gets whole rows or none.
type Busiest struct {
	mem       words
	buckets   *LimitBuckets // its hash is keyed: nobody can choose whom to push out
	addresses bool          // else of API keys
}

// Busy is one of them. Its counts are since then, and at least so many.
type Busy struct {
	Name        string     // an IPv4 address, an IPv6 /64, or the id of an API key
	From        netip.Addr // of the last exchange
	PerSecond   float64    // lately: what was a minute ago counts half
	Requests    uint64
	ClientFault uint64 // 4xx
	ServerFault uint64 // 5xx
	Limited     uint64 // of these, refused by a limit
	Sent        uint64 // bytes
	Since, Last time.Time
}

// BusyPlaces is how many of a kind are told apart at most.
const BusyPlaces = 512

// A set is eight places of two cache lines. The sequence is odd while a row is written.
const (
	busyWays  = 8
	busyWords = 2 * lineWords
	busyBytes = BusyPlaces * busyWords * 8

	busySeq    = 0
	busyName   = 1 // length byte, then up to 39 bytes; no name: a free place
	busyRank   = 6 // float64: exchanges, halved each busyHalf before busyLast
	busyCounts = 7 // requests, 4xx, 5xx, limited, bytes
	busySince  = 12
	busyLast   = 13
	busyFrom   = 14

	busyNameWords = busyRank - busyName
	busyHalf      = time.Minute
	// busyHash tells keys of these tables from those of limits.
	busyHash = 0x79737562
)

// busyLookups is how often a reader tries a row that is being written.
const busyLookups = 3

// Note counts an exchange of its client, of IPv6 of the /64; or of its API key, where it has one.
func (t *Busiest) Note(r *AccessRecord) {
	a := r.Client.Addr()
	switch sixteen := a.As16(); {
	case !t.addresses && len(r.Key) > 0:
		t.note(clip(r.Key, busyNameWords*8-1), r)
	case !t.addresses || !a.IsValid():
	case a.Is4():
		t.note(sixteen[12:], r)
	default:
		t.note(sixteen[:8], r)
	}
}

func (t *Busiest) note(name []byte, r *AccessRecord) {
	var room [busyNameWords * 8]byte
	room[0] = byte(len(name))
	copy(room[1:], name)
	var text [busyNameWords]uint64
	for i := range text {
		text[i] = binary.LittleEndian.Uint64(room[8*i:])
	}
	last := r.Start.Add(r.Duration).UnixNano()
	set := int(t.buckets.Key(busyHash, name)%(BusyPlaces/busyWays)) * busyWays * busyWords
	at, found := t.place(set, &text, last)
	t.mem.store(at+busySeq, t.mem.load(at+busySeq)|1)
	rank := 1.0
	if found {
		rank += t.rank(at, last)
		last = max(last, int64(t.mem.load(at+busyLast)))
	} else {
		for i, w := range text {
			t.mem.store(at+busyName+i, w)
		}
		for i := busyCounts; i < busySince; i++ {
			t.mem.store(at+i, 0)
		}
		t.mem.store(at+busySince, uint64(last))
	}
	t.mem.store(at+busyRank, math.Float64bits(rank))
	t.count(at, r)
	t.mem.store(at+busyLast, uint64(last))
	from := r.Client.Addr().As16()
	t.mem.store(at+busyFrom, binary.LittleEndian.Uint64(from[:]))
	t.mem.store(at+busyFrom+1, binary.LittleEndian.Uint64(from[8:]))
	t.mem.store(at+busySeq, t.mem.load(at+busySeq)+1)
}

func (t *Busiest) count(at int, r *AccessRecord) {
	add := func(i int, n uint64) { t.mem.store(at+busyCounts+i, t.mem.load(at+busyCounts+i)+n) }
	add(0, 1)
	switch {
	case r.Status >= 400 && r.Status < 500:
		add(1, 1)
	case r.Status >= 500:
		add(2, 1)
	}
	if r.Outcome == RequestLimited || r.Outcome == RequestConcurrencyLimited {
		add(3, 1)
	}
	add(4, r.BytesOut)
}

// rank is the place's at the time.
func (t *Busiest) rank(at int, now int64) float64 {
	age := max(now-int64(t.mem.load(at+busyLast)), 0)
	return math.Float64frombits(t.mem.load(at+busyRank)) * math.Exp2(-float64(age)/float64(busyHalf))
}

// place is where the name is in its set, or where it may go.
func (t *Busiest) place(set int, text *[busyNameWords]uint64, now int64) (at int, found bool) {
	least, victim := math.Inf(1), set
	for at := set; at < set+busyWays*busyWords; at += busyWords {
		same := true
		for i, w := range text {
			same = same && t.mem.load(at+busyName+i) == w
		}
		if same {
			return at, true
		}
		if least > 0 && t.mem.load(at+busyName) == 0 {
			least, victim = 0, at
		} else if least > 0 {
			if rank := t.rank(at, now); rank < least {
				least, victim = rank, at
			}
		}
	}
	return victim, false
}

// All appends all rows to dst, in no order.
func (t *Busiest) All(dst []Busy, now time.Time) []Busy {
	for at := 0; at < BusyPlaces*busyWords; at += busyWords {
		for range busyLookups {
			seq := t.mem.load(at + busySeq)
			if seq&1 != 0 {
				continue // its writer is at it, or died of it
			}
			b, there := t.read(at, now)
			if t.mem.load(at+busySeq) != seq {
				continue
			}
			if there {
				dst = append(dst, b)
			}
			break
		}
	}
	return dst
}

func (t *Busiest) read(at int, now time.Time) (Busy, bool) {
	var room [busyNameWords * 8]byte
	for i := range busyNameWords {
		binary.LittleEndian.PutUint64(room[8*i:], t.mem.load(at+busyName+i))
	}
	n := min(int(room[0]), len(room)-1)
	if n == 0 {
		return Busy{}, false
	}
	var from [16]byte
	binary.LittleEndian.PutUint64(from[:], t.mem.load(at+busyFrom))
	binary.LittleEndian.PutUint64(from[8:], t.mem.load(at+busyFrom+1))
	count := func(i int) uint64 { return t.mem.load(at + busyCounts + i) }
	return Busy{
		Name: t.text(room[1 : 1+n]), From: netip.AddrFrom16(from).Unmap(),
		// So many a second, and for ever, have a rank of busyHalf / ln 2 of that.
		PerSecond: t.rank(at, now.UnixNano()) * math.Ln2 / busyHalf.Seconds(),
		Requests:  count(0), ClientFault: count(1), ServerFault: count(2), Limited: count(3), Sent: count(4),
		Since: time.Unix(0, int64(t.mem.load(at+busySince))), Last: time.Unix(0, int64(t.mem.load(at+busyLast))),
	}, true
}

func (t *Busiest) text(name []byte) string {
	switch {
	case !t.addresses:
		return string(name)
	case len(name) == 4:
		return netip.AddrFrom4([4]byte(name)).String()
	}
	var sixteen [16]byte
	copy(sixteen[:8], name)
	return netip.PrefixFrom(netip.AddrFrom16(sixteen), 64).String()
}

// BusyAddresses are the clients that made the most exchanges.
func (z *Zone) BusyAddresses() *Busiest { return z.busy[0] }

// BusyKeys are the API keys that made the most.
func (z *Zone) BusyKeys() *Busiest { return z.busy[1] }
