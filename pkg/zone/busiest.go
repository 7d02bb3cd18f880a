// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync"
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

	mu        sync.Mutex // among the goroutines of the writing process
	rows      []busyRow  // the writer's own, for stores that others see cost ten times as much
	changed   []int      // of these, since they were published
	published time.Time
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

// busyRow is two cache lines, a set eight rows.
type busyRow [busyWords]uint64

// Words of a row. In the zone the sequence is odd while the row is written.
const (
	busyWays  = 8
	busyWords = 2 * lineWords
	busyBytes = BusyPlaces * busyWords * 8

	busySeq    = 0 // of the writer's own: whether it waits to be published
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
	// busyInterval is between two times that rows are published, while there are exchanges.
	busyInterval = 100 * time.Millisecond
	// busyLookups is how often a reader tries a row that is being written.
	busyLookups = 3
)

// Note counts an exchange of its client, of IPv6 of the /64; or of its API key, where it has one.
// Readers see it within a tenth of a second, or when Publish is called.
func (t *Busiest) Note(r *AccessRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
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
	if t.rows == nil {
		t.rows = make([]busyRow, BusyPlaces)
	}
	var room [busyNameWords * 8]byte
	room[0] = byte(len(name))
	copy(room[1:], name)
	var text [busyNameWords]uint64
	for i := range text {
		text[i] = binary.LittleEndian.Uint64(room[8*i:])
	}
	end := r.Start.Add(r.Duration)
	last := end.UnixNano()
	set := int(t.buckets.Key(busyHash, name)%(BusyPlaces/busyWays)) * busyWays
	at, found := t.place(set, &text, last)
	row := &t.rows[at]
	if found {
		row[busyRank] = math.Float64bits(row.rank(last) + 1)
		row[busyLast] = uint64(max(last, int64(row[busyLast])))
	} else {
		*row = busyRow{busySeq: row[busySeq], busyRank: math.Float64bits(1), busySince: uint64(last), busyLast: uint64(last)}
		copy(row[busyName:], text[:])
	}
	row.count(r)
	from := r.Client.Addr().As16()
	row[busyFrom], row[busyFrom+1] = binary.LittleEndian.Uint64(from[:]), binary.LittleEndian.Uint64(from[8:])
	if row[busySeq] == 0 {
		row[busySeq] = 1
		t.changed = append(t.changed, at)
	}
	if since := end.Sub(t.published); since >= busyInterval || since < -busyInterval {
		t.publish(end)
	}
}

func (r *busyRow) count(x *AccessRecord) {
	r[busyCounts]++
	switch {
	case x.Status >= 400 && x.Status < 500:
		r[busyCounts+1]++
	case x.Status >= 500:
		r[busyCounts+2]++
	}
	if x.Outcome == RequestLimited || x.Outcome == RequestConcurrencyLimited {
		r[busyCounts+3]++
	}
	r[busyCounts+4] += x.BytesOut
}

// rank is the row's at the time.
func (r *busyRow) rank(now int64) float64 {
	rank, age := math.Float64frombits(r[busyRank]), now-int64(r[busyLast])
	if age <= 0 {
		return rank
	}
	return rank * math.Exp2(-float64(age)/float64(busyHalf))
}

// place is where the name is in its set, or where it may go.
func (t *Busiest) place(set int, text *[busyNameWords]uint64, now int64) (at int, found bool) {
	for i := range busyWays {
		if [busyNameWords]uint64(t.rows[set+i][busyName:busyRank]) == *text {
			return set + i, true
		}
	}
	least := math.Inf(1)
	for i := range busyWays {
		rank := t.rows[set+i].rank(now) // of a free place 0
		if rank < least {
			least, at = rank, set+i
		}
	}
	return at, false
}

// Publish lets readers see all that was noted.
func (t *Busiest) Publish() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.publish(t.published)
}

func (t *Busiest) publish(now time.Time) {
	for _, i := range t.changed {
		at := i * busyWords
		seq := t.mem.load(at + busySeq)
		t.mem.store(at+busySeq, seq+1)
		for w := busyName; w < busyWords; w++ {
			t.mem.store(at+w, t.rows[i][w])
		}
		t.mem.store(at+busySeq, seq+2)
		t.rows[i][busySeq] = 0
	}
	t.changed, t.published = t.changed[:0], now
}

// All appends all rows to dst, in no order.
func (t *Busiest) All(dst []Busy, now time.Time) []Busy {
	for place := range BusyPlaces {
		if row := t.read(place * busyWords); row[busyName] != 0 {
			dst = append(dst, t.decode(&row, now))
		}
	}
	return dst
}

// read is a whole row, or an empty one: its writer is at it, or died of it.
func (t *Busiest) read(at int) (row busyRow) {
	for range busyLookups {
		seq := t.mem.load(at + busySeq)
		for w := busyName; w < busyWords; w++ {
			row[w] = t.mem.load(at + w)
		}
		if seq&1 == 0 && t.mem.load(at+busySeq) == seq {
			return row
		}
	}
	return busyRow{}
}

func (t *Busiest) decode(r *busyRow, now time.Time) Busy {
	var room [busyNameWords * 8]byte
	for i, w := range r[busyName:busyRank] {
		binary.LittleEndian.PutUint64(room[8*i:], w)
	}
	var from [16]byte
	binary.LittleEndian.PutUint64(from[:], r[busyFrom])
	binary.LittleEndian.PutUint64(from[8:], r[busyFrom+1])
	return Busy{
		Name: t.text(room[1 : 1+min(int(room[0]), len(room)-1)]), From: netip.AddrFrom16(from).Unmap(),
		// So many a second, and for ever, have a rank of busyHalf / ln 2 of that.
		PerSecond: r.rank(now.UnixNano()) * math.Ln2 / busyHalf.Seconds(),
		Requests:  r[busyCounts], ClientFault: r[busyCounts+1], ServerFault: r[busyCounts+2], Limited: r[busyCounts+3], Sent: r[busyCounts+4],
		Since: time.Unix(0, int64(r[busySince])), Last: time.Unix(0, int64(r[busyLast])),
	}
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
