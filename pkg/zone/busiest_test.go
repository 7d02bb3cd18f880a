// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// exchangeOf is a record of a client, with an API key.
func exchangeOf(client, key string, status int, at time.Time) *AccessRecord {
	return &AccessRecord{
		Start: at, Client: netip.AddrPortFrom(netip.MustParseAddr(client), 40000), Key: []byte(key), Status: status, BytesOut: 100,
	}
}

func byRate(all []Busy) []Busy {
	slices.SortFunc(all, func(a, b Busy) int { return cmp.Compare(b.PerSecond, a.PerSecond) })
	return all
}

func TestBusiest(t *testing.T) {
	path := zonePath(t)
	z := mustCreate(t, path, small())
	now := time.Unix(1_700_000_000, 0)
	note := func(r *AccessRecord) {
		z.BusyAddresses().Note(r)
		z.BusyKeys().Note(r)
	}
	for i := range 90 {
		r := exchangeOf("192.0.2.7", "alice", 200, now)
		if i < 10 {
			r.Status, r.Outcome = 429, RequestLimited
		}
		note(r)
	}
	note(exchangeOf("2001:db8:0:1::5", "a-key-of-32-letters-and-digits-x", 502, now))
	note(exchangeOf("2001:db8:0:1::6", "", 404, now))
	note(&AccessRecord{Status: 400}) // nobody knows whose
	z.BusyAddresses().Publish()
	z.BusyKeys().Publish()
	reader := mustOpen(t, path)
	got := byRate(reader.BusyAddresses().All(nil, now))
	if len(got) != 2 || got[0].Name != "192.0.2.7" || got[1].Name != "2001:db8:0:1::/64" {
		t.Fatalf("%+v", got)
	}
	if b := got[0]; b.Requests != 90 || b.ClientFault != 10 || b.Limited != 10 || b.ServerFault != 0 || b.Sent != 9000 || !b.Since.Equal(now) || !b.Last.Equal(now) {
		t.Errorf("%+v", b)
	}
	if b := got[1]; b.Requests != 2 || b.ClientFault != 1 || b.ServerFault != 1 || b.From != netip.MustParseAddr("2001:db8:0:1::6") {
		t.Errorf("%+v", b)
	}
	keys := byRate(reader.BusyKeys().All(nil, now))
	if len(keys) != 2 || keys[0].Name != "alice" || keys[0].Requests != 90 || keys[0].From != netip.MustParseAddr("192.0.2.7") || keys[1].Name != "a-key-of-32-letters-and-digits-x" {
		t.Errorf("%+v", keys)
	}
	// A minute later, half as busy.
	later := byRate(reader.BusyAddresses().All(nil, now.Add(time.Minute)))[0].PerSecond
	if half := got[0].PerSecond / 2; later < 0.99*half || later > 1.01*half {
		t.Errorf("%v a second, a minute later %v", got[0].PerSecond, later)
	}
}

// What steady clients do is told as a rate, and crowds of others do not push them out.
func TestBusiestInACrowd(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	at := time.Unix(1_700_000_000, 0)
	crowd := uint32(0)
	const seconds, loud, strangers = 300, 20, 200
	for range seconds {
		for range loud {
			z.BusyAddresses().Note(exchangeOf("192.0.2.7", "", 200, at))
		}
		for range strangers {
			crowd++
			a := netip.AddrFrom4([4]byte{10, byte(crowd >> 16), byte(crowd >> 8), byte(crowd)})
			z.BusyAddresses().Note(&AccessRecord{Start: at, Client: netip.AddrPortFrom(a, 1), Status: 200})
		}
		at = at.Add(time.Second)
	}
	z.BusyAddresses().Publish()
	all := byRate(z.BusyAddresses().All(nil, at))
	if len(all) > BusyPlaces || all[0].Name != "192.0.2.7" || all[0].Requests != seconds*loud {
		t.Fatalf("%d rows, first %+v", len(all), all[0])
	}
	if r := all[0].PerSecond; r < 0.9*loud || r > 1.1*loud {
		t.Errorf("%v a second, want about %d", r, loud)
	}
	if all[1].Requests > 100 {
		t.Errorf("a stranger who came once is told as %+v", all[1])
	}
}

// A reader beside the writer sees rows of one name only, and a row left half written is none.
func TestBusiestIsNeverTorn(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	now := time.Unix(1_700_000_000, 0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// The length of the name and the status say the same.
			r := exchangeOf("192.0.2.7", fmt.Sprintf("%0*d", 1+i%30, i%10), 400, now)
			r.BytesOut = uint64(1 + i%30)
			z.BusyKeys().Note(r)
			z.BusyKeys().Publish()
		}
	}()
	var rows []Busy
	for range 2000 {
		rows = z.BusyKeys().All(rows[:0], now)
		for _, b := range rows {
			if b.Sent != b.Requests*uint64(len(b.Name)) || b.ClientFault != b.Requests {
				t.Fatalf("torn: %+v", b)
			}
		}
	}
	close(stop)
	<-done
	before := len(z.BusyKeys().All(nil, now))
	for at := 0; at < BusyPlaces*busyWords; at += busyWords {
		if z.BusyKeys().mem.load(at+busyName) != 0 {
			z.BusyKeys().mem.add(at+busySeq, 1) // its writer died here
			break
		}
	}
	if after := len(z.BusyKeys().All(nil, now)); after != before-1 {
		t.Errorf("%d rows, one of them half written: %d", before, after)
	}
}

func BenchmarkBusiest(b *testing.B) {
	z := mustCreate(b, zonePath(b), small())
	now := time.Unix(1_700_000_000, 0)
	b.Run("known", func(b *testing.B) {
		r := exchangeOf("192.0.2.7", "alice", 200, now)
		for b.Loop() {
			z.BusyAddresses().Note(r)
			z.BusyKeys().Note(r)
		}
	})
	b.Run("strangers", func(b *testing.B) {
		r, n := exchangeOf("192.0.2.7", "", 200, now), uint32(0)
		for b.Loop() {
			n++
			r.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 1)
			z.BusyAddresses().Note(r)
		}
	})
}
