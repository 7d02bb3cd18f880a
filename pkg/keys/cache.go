// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/zone"
)

// Times are how long a worker believes what it was told of a key.
type Times struct {
	Known   time.Duration `json:"known"`   // of one that there is; it is asked for again in the background after that, and waited for after twice that
	Unknown time.Duration `json:"unknown"` // of one that there is not
	Stale   time.Duration `json:"stale"`   // of one that there is, while the store does not answer
}

// Key is a record as a worker uses it. It does not change.
type Key struct {
	ID, Consumer []byte
	Tier         string // "": none
	Requests     uint64 // in each Period, a limit of its own; 0: none
	Period       time.Duration
	Burst        uint64 // of them
	Revoked      bool
	Expires      time.Time // zero: never

	scopes   []string
	secret   Digest
	old      *Digest
	oldUntil time.Time
}

// NewKey is the record's.
func NewKey(r *Record) *Key {
	k := &Key{
		ID: []byte(r.ID), Consumer: []byte(r.Consumer), Revoked: !r.Revoked.IsZero(), Expires: r.Expires,
		scopes: r.Scopes, secret: r.Secret, old: r.Old, oldUntil: r.OldUntil,
	}
	if requests, period, ok := Rate(r.Limit); ok {
		// Those of a second may come at once.
		k.Requests, k.Period, k.Burst = requests, period, max(1, requests*uint64(time.Second)/uint64(period))
	} else {
		k.Tier = r.Limit
	}
	return k
}

// Opens tells whether the secret is the key's. It takes the same time for all secrets that
// are not.
func (k *Key) Opens(secret []byte, now time.Time) bool {
	return k.secret.matches(secret) || k.old != nil && k.old.matches(secret) && now.Before(k.oldUntil)
}

// Has tells whether the key has the scope.
func (k *Key) Has(scope string) bool {
	for _, s := range k.scopes {
		if s == scope {
			return true
		}
	}
	return false
}

// Bounds of a worker's memory of keys.
const (
	maxKnown   = 1 << 16
	maxUnknown = 1 << 14
	// maxFlights are ids that are asked for at once; for more there is no answer.
	maxFlights = 1024
	// maxQuestion is how many of them go into one message.
	maxQuestion = 256
	// answerTime is how long an exchange waits for an answer, and after how long a store is
	// asked again that gave none.
	answerTime = time.Second
)

// Cache is what a worker remembers of keys. What it does not know it asks for, once for all
// who wait. Nothing that the fence was raised about is believed. All methods may be used at
// once; now is any clock's in ns, the same at each call.
type Cache struct {
	fence *zone.Fence
	slab  *zone.Slab

	mu        sync.Mutex // of this worker alone
	known     table
	unknown   table
	flights   map[string]*flight
	questions []string      // that were not sent yet
	wake      chan struct{} // there are some
	down      bool          // nobody answers any more
}

// flight is a question under way.
type flight struct {
	fence uint64 // when it was asked
	done  chan struct{}
	key   *Key // settled when done is closed
	ok    bool // there is an answer
}

// Answer is what a store says of an id.
type Answer struct {
	ID     string  `json:"id"`
	Record *Record `json:"record,omitempty"` // nil: there is none, or the store does not answer
	Failed bool    `json:"failed,omitempty"` // it does not
}

// NewCache makes one that counts in the slab.
func NewCache(fence *zone.Fence, slab *zone.Slab) *Cache {
	return &Cache{
		fence: fence, slab: slab, known: newTable(maxKnown), unknown: newTable(maxUnknown),
		flights: map[string]*flight{}, wake: make(chan struct{}, 1),
	}
}

// Find is the key of the id, which may be revoked or expired; nil: there is none. The error is
// ErrUnanswered. It allocates nothing where the worker knows.
func (c *Cache) Find(id []byte, now int64, t *Times) (*Key, error) {
	c.mu.Lock()
	if e := c.remembered(id); e != nil {
		age := now - e.born
		switch {
		case e.key == nil && age < int64(t.Unknown), e.key != nil && age < 2*int64(t.Known):
			e.used = true
			k := e.key
			if k != nil && age >= int64(t.Known) && now >= e.retry {
				c.ask(id) // in the background; where there is no room, the next one does
			}
			c.mu.Unlock()
			c.slab.Add(zone.KeysCached, 1)
			return k, nil
		case e.key != nil && now < e.retry && age < int64(t.Stale):
			e.used = true
			k := e.key
			c.mu.Unlock()
			c.slab.Add(zone.KeysStale, 1)
			return k, nil
		}
	}
	f := c.ask(id)
	c.mu.Unlock()
	if f != nil && f.wait() {
		return f.key, nil
	}
	return c.withoutAnswer(id, now, t)
}

// withoutAnswer goes on with what was known, if it was not too long ago.
func (c *Cache) withoutAnswer(id []byte, now int64, t *Times) (*Key, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.remembered(id); e != nil && e.key != nil && now-e.born < int64(t.Stale) {
		e.retry, e.used = now+int64(answerTime), true
		c.slab.Add(zone.KeysStale, 1)
		return e.key, nil
	}
	c.slab.Add(zone.KeysUnanswered, 1)
	return nil, ErrUnanswered
}

// remembered is what was told of the id, unless the fence was raised about that since. The
// lock is held.
func (c *Cache) remembered(id []byte) *entry {
	t, kind := &c.known, zone.FenceKnown
	e := t.get(id)
	if e == nil {
		t, kind = &c.unknown, zone.FenceUnknown
		if e = t.get(id); e == nil {
			return nil
		}
	}
	if c.fence.Now() == e.fence {
		return e
	}
	now, holds := c.fence.Since(e.fence, zone.FenceID(id), kind)
	if !holds {
		t.drop(id)
		return nil
	}
	e.fence = now
	return e
}

// ask joins or begins a flight; nil: there is no room for one, or nobody to answer. The lock
// is held.
func (c *Cache) ask(id []byte) *flight {
	if f, ok := c.flights[string(id)]; ok {
		return f
	}
	if c.down || len(c.flights) >= maxFlights {
		return nil
	}
	f := &flight{done: make(chan struct{})}
	own := string(id)
	c.flights[own] = f
	c.slab.Add(zone.KeysAsked, 1)
	c.send(own, f)
	return f
}

// send puts the question among those that Run sends. The fence is read before the store is.
func (c *Cache) send(id string, f *flight) {
	f.fence = c.fence.Now()
	c.questions = append(c.questions, id)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// wait is false when no answer came.
func (f *flight) wait() bool {
	late := time.NewTimer(answerTime)
	defer late.Stop()
	select {
	case <-f.done:
		return f.ok
	case <-late.C:
		return false
	}
}

// Answer takes what came of questions.
func (c *Cache) Answer(answers []Answer, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range answers {
		f := c.flights[a.ID]
		if f == nil {
			continue
		}
		kind := zone.FenceKnown
		if a.Record == nil {
			kind = zone.FenceUnknown
		}
		at, holds := c.fence.Since(f.fence, zone.FenceID(a.ID), kind)
		if !holds && !a.Failed {
			c.send(a.ID, f) // it was changed while it was read
			continue
		}
		delete(c.flights, a.ID)
		c.settle(f, &a, at, now)
		close(f.done)
	}
}

// settle ends the flight and keeps the answer.
func (c *Cache) settle(f *flight, a *Answer, fence uint64, now int64) {
	id := []byte(a.ID)
	if a.Failed {
		if e := c.known.get(id); e != nil {
			e.retry = now + int64(answerTime)
		}
		return
	}
	f.ok = true
	keep, other := &c.unknown, &c.known
	if a.Record != nil {
		f.key = NewKey(a.Record)
		keep, other = other, keep
	}
	other.drop(id)
	e, evicted := keep.put(a.ID)
	*e = entry{id: a.ID, key: f.key, fence: fence, born: now}
	if evicted && a.Record != nil {
		c.slab.Add(zone.KeysEvicted, 1)
	}
}

// Run sends questions until sending fails, which ends all that are under way, or stop is
// closed.
func (c *Cache) Run(send func(ids []string) error, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			c.giveUp()
			return
		case <-c.wake:
		}
		for {
			c.mu.Lock()
			n := min(len(c.questions), maxQuestion)
			ids := append([]string(nil), c.questions[:n]...)
			c.questions = append(c.questions[:0], c.questions[n:]...)
			c.mu.Unlock()
			if n == 0 {
				break
			}
			if err := send(ids); err != nil {
				c.giveUp()
				return
			}
		}
	}
}

// giveUp: there will be no more answers.
func (c *Cache) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = true
	for _, f := range c.flights {
		close(f.done)
	}
	clear(c.flights)
}

// table keeps so many entries; one that was not used for a while makes room for another.
type table struct {
	most    int
	places  map[string]int
	entries []entry
	hand    int
}

// entry is what is known of an id.
type entry struct {
	id    string // "": the place is free
	key   *Key   // nil: there is none
	fence uint64 // up to which it holds
	born  int64
	retry int64 // the store did not answer, and is not asked again before
	used  bool  // since the hand came by
}

func newTable(most int) table { return table{most: most, places: map[string]int{}} }

// get is the id's entry until the next put.
func (t *table) get(id []byte) *entry {
	if at, ok := t.places[string(id)]; ok {
		return &t.entries[at]
	}
	return nil
}

func (t *table) drop(id []byte) {
	if at, ok := t.places[string(id)]; ok {
		delete(t.places, string(id))
		t.entries[at] = entry{}
	}
}

// put makes room for the id's entry, or finds it.
func (t *table) put(id string) (e *entry, evicted bool) {
	if at, ok := t.places[id]; ok {
		return &t.entries[at], false
	}
	if len(t.entries) < t.most {
		t.entries = append(t.entries, entry{})
		t.places[id] = len(t.entries) - 1
		return &t.entries[len(t.entries)-1], false
	}
	for ; t.entries[t.hand].used; t.hand = (t.hand + 1) % t.most {
		t.entries[t.hand].used = false
	}
	e = &t.entries[t.hand]
	if e.id != "" {
		delete(t.places, e.id)
		evicted = true
	}
	t.places[id] = t.hand
	t.hand = (t.hand + 1) % t.most
	return e, evicted
}
