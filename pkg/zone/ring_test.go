// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// heapRing is a ring without a file.
func heapRing() *Ring { return newRing(bytesOf(make(words, (ringHeader+minAccessRing)/8))) }

// fullRecord has something in each field.
func fullRecord() AccessRecord {
	return AccessRecord{
		Start: time.Unix(1_700_000_000, 123_456_789), Edge: time.Unix(1_699_999_999, 1), NAPI: 8193, Key: []byte("k"), Duration: time.Second, UpstreamDuration: 2 * time.Millisecond, ConnectDuration: 3,
		Client: netip.MustParseAddrPort("[2001:db8::1]:443"), Generation: 9, BytesIn: 10, BytesOut: math.MaxUint64,
		Worker: 1, Core: -1, Route: 2, Upstream: -1, Status: 503, Retries: 4, Major: 1, Minor: 1, TLSVersion: 0x0304, Resumed: true,
		Outcome: RequestUpstreamSaturated, Method: []byte("GET"), Host: []byte("h"), Target: []byte("/x?y"), UserAgent: []byte("u a"),
		Referer: []byte("r"), ID: []byte("id"), UpstreamAddr: []byte("192.0.2.1:80"), Trace: []byte("t"),
	}
}

var compareRecords = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}

func drainOne(t *testing.T, r *Ring) *AccessRecord {
	t.Helper()
	var got *AccessRecord
	if n := r.Drain(func(rec *AccessRecord) { c := *rec; got = &c }); n != 1 {
		t.Fatalf("drained %d records, want 1", n)
	}
	return got
}

func TestRingRoundTrip(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 200)
	for name, change := range map[string]func(in, want *AccessRecord){
		"all fields": func(in, want *AccessRecord) {},
		"empty": func(in, want *AccessRecord) {
			*in = AccessRecord{Start: time.Unix(0, 0), Edge: time.Unix(0, 0)}
			*want = *in
		},
		"IPv4": func(in, want *AccessRecord) {
			in.Client = netip.MustParseAddrPort("192.0.2.7:65535")
			want.Client = in.Client
		},
		"mapped IPv4 is IPv4": func(in, want *AccessRecord) {
			in.Client = netip.MustParseAddrPort("[::ffff:192.0.2.7]:1")
			want.Client = netip.MustParseAddrPort("192.0.2.7:1")
		},
		"no client": func(in, want *AccessRecord) { in.Client = netip.AddrPort{}; want.Client = in.Client },
		"sampled": func(in, want *AccessRecord) {
			in.Sampled, in.Span, in.Parent = true, [8]byte{1, 2}, [8]byte{3}
			want.Sampled, want.Span, want.Parent = true, in.Span, in.Parent
		},
		"highest":   func(in, want *AccessRecord) { in.Route = maxSlots - 1; want.Route = in.Route },
		"any bytes": func(in, want *AccessRecord) { in.UserAgent = []byte("\x00\xff\"\r\n"); want.UserAgent = in.UserAgent },
		"long ones are cut": func(in, want *AccessRecord) {
			in.Target, in.Method, in.Host, in.UserAgent, in.Referer, in.ID, in.UpstreamAddr = long, long, long, long, long, long, long
			want.Target = long[:maxTarget]
			want.Method, want.Host, want.UserAgent, want.Referer, want.ID, want.UpstreamAddr = long[:256], long[:256], long[:256], long[:256], long[:256], long[:256]
		},
	} {
		t.Run(name, func(t *testing.T) {
			in, want := fullRecord(), fullRecord()
			change(&in, &want)
			r := heapRing()
			if !r.Put(&in) {
				t.Fatal("an empty ring is full")
			}
			if diff := cmp.Diff(&want, drainOne(t, r), compareRecords); diff != "" {
				t.Error(diff)
			}
			if n := r.Drain(func(*AccessRecord) { t.Error("drained twice") }); n != 0 || r.Damaged() != 0 {
				t.Errorf("second drain: %d records, %d damaged", n, r.Damaged())
			}
		})
	}
}

// A record has one encoding: nothing before, between or after its parts.
func TestRecordOfAnyOtherLength(t *testing.T) {
	in, out := fullRecord(), AccessRecord{}
	in.Sampled = true
	b := in.appendTo(nil)
	if err := out.decode(b); err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if out.decode(b[:n]) == nil {
			t.Errorf("decodes from %d of %d bytes", n, len(b))
		}
	}
	if out.decode(append(b, 0)) == nil {
		t.Error("decodes with a byte behind it")
	}
}

func TestRingDrainUpTo(t *testing.T) {
	r := heapRing()
	for i := range uint64(10) {
		r.Put(&AccessRecord{Generation: i})
	}
	next := uint64(0)
	for _, want := range []int{0, 4, 4, 2, 0} {
		limit := 4
		if next == 0 && want == 0 {
			limit = 0
		}
		got := r.DrainUpTo(limit, func(rec *AccessRecord) {
			if rec.Generation != next {
				t.Errorf("record %d, want %d", rec.Generation, next)
			}
			next++
		})
		if got != want {
			t.Errorf("drained %d, want %d", got, want)
		}
	}
}

// A record's strings do not reach into the one before, nor does what it lacks.
func TestRingReusesItsRecord(t *testing.T) {
	r := heapRing()
	first, second := fullRecord(), AccessRecord{Start: time.Unix(0, 0), Edge: time.Unix(0, 0)}
	r.Put(&first)
	r.Put(&second)
	var last AccessRecord
	if n := r.Drain(func(rec *AccessRecord) { last = *rec }); n != 2 {
		t.Fatalf("drained %d", n)
	}
	if diff := cmp.Diff(second, last, compareRecords); diff != "" {
		t.Error(diff)
	}
}

func TestRingFullAndWrap(t *testing.T) {
	r := heapRing()
	rec := AccessRecord{}
	next, want := 0, 0
	drain := func() {
		r.Drain(func(got *AccessRecord) {
			if string(got.Target) != target(want) || got.Generation != uint64(want) {
				t.Fatalf("record %d is %d with %q", want, got.Generation, got.Target)
			}
			want++
		})
	}
	for range 50 {
		put := 0
		for {
			rec.Generation, rec.Target = uint64(next), []byte(target(next))
			if !r.Put(&rec) {
				break
			}
			next++
			put++
		}
		if put < minAccessRing/maxRecord {
			t.Fatalf("only %d records fit", put)
		}
		if r.Put(&rec) {
			t.Fatal("a full ring took a record")
		}
		drain()
		if want != next {
			t.Fatalf("drained %d of %d", want, next)
		}
	}
	if r.Damaged() != 0 || r.header.load(ringHead) < 10*minAccessRing {
		t.Errorf("%d damaged, head %d", r.Damaged(), r.header.load(ringHead))
	}
}

// target has a length of its own for each number, so records cross the end of the
// ring everywhere.
func target(n int) string { return fmt.Sprintf("/%0*d", n*31%1000, n) }

// What a writer has left halfway is nothing, and the next one writes over it.
func TestRingUnpublishedBytes(t *testing.T) {
	mem := bytesOf(make(words, (ringHeader+minAccessRing)/8))
	rec := fullRecord()
	size := len(rec.appendTo(make([]byte, recordLength)))
	for n := range size + 1 {
		r := newRing(mem) // a new writer and reader
		at := int(r.header.load(ringHead)) & (len(r.data) - 1)
		b := bytes.Repeat([]byte{0xff}, n)
		copy(r.data, b[copy(r.data[at:], b):])
		if got := r.Drain(func(*AccessRecord) {}); got != 0 {
			t.Fatalf("%d bytes became %d records", n, got)
		}
		if !r.Put(&rec) {
			t.Fatal("no room")
		}
		if diff := cmp.Diff(&rec, drainOne(t, r), compareRecords); diff != "" {
			t.Fatal(diff)
		}
	}
}

// A reader survives what a hostile writer leaves, counts it, and goes on with what
// is good.
func TestRingHostileWriter(t *testing.T) {
	rec := fullRecord()
	size := uint64(len(rec.appendTo(make([]byte, recordLength))))
	for _, tt := range []struct {
		name    string
		spoil   func(r *Ring)
		good    int
		damaged uint64
	}{
		{"nothing", func(r *Ring) {}, 3, 0},
		{"head beyond the ring", func(r *Ring) { r.header.store(ringHead, minAccessRing+1) }, 0, 1},
		{"head behind tail", func(r *Ring) { r.header.store(ringTail, 3*size+1) }, 0, 1},
		{"head at the far end", func(r *Ring) { r.header.store(ringHead, math.MaxUint64) }, 0, 1},
		{"head within a record", func(r *Ring) { r.header.store(ringHead, size+1) }, 1, 1},
		{"head within the fixed part", func(r *Ring) { r.header.store(ringHead, size+50) }, 1, 1},
		{"length 0", func(r *Ring) { copy(r.data, []byte{0, 0, 0, 0}) }, 0, 1},
		{"length too small", func(r *Ring) { copy(r.data, []byte{recordFixed, 0, 0, 0}) }, 0, 1},
		{"length too large", func(r *Ring) { copy(r.data, []byte{0xff, 0xff, 0xff, 0xff}) }, 0, 1},
		{"unknown outcome", func(r *Ring) { r.data[recordLength+7*8] = 0xff }, 2, 1},
		{"text too long", func(r *Ring) { r.data[recordLength+recordFixed+1] = 0xff }, 2, 1},
		{"text too short", func(r *Ring) { r.data[recordLength+recordFixed] = 0 }, 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := heapRing()
			for range 3 {
				r.Put(&rec)
			}
			tt.spoil(r)
			if got := r.Drain(func(*AccessRecord) {}); got != tt.good || r.Damaged() != tt.damaged {
				t.Errorf("drained %d, damaged %d, want %d and %d", got, r.Damaged(), tt.good, tt.damaged)
			}
			if !r.Put(&rec) {
				t.Fatal("the ring stays full")
			}
			if diff := cmp.Diff(&rec, drainOne(t, r), compareRecords); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A writer does not believe a tail that cannot be.
func TestRingHostileReader(t *testing.T) {
	rec := fullRecord()
	for _, tail := range []uint64{1, 5, 1 << 63} {
		r := heapRing()
		r.header.store(ringTail, tail)
		if r.Put(&rec) {
			t.Errorf("tail %d: put", tail)
		}
	}
}

func TestRingConcurrent(t *testing.T) {
	r := heapRing()
	const writers, each = 3, 3000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rec := fullRecord()
			rec.Worker = w
			for i := 0; i < each; {
				rec.Generation, rec.Target = uint64(i), []byte(target(i))
				if r.Put(&rec) {
					i++
				}
			}
		})
	}
	next := make([]int, writers)
	for total := 0; total < writers*each; {
		total += r.Drain(func(got *AccessRecord) {
			if want := next[got.Worker]; got.Generation != uint64(want) || string(got.Target) != target(want) {
				t.Fatalf("writer %d: got %d, want %d", got.Worker, got.Generation, want)
			}
			next[got.Worker]++
		})
	}
	wg.Wait()
}

func TestRingAllocatesNothing(t *testing.T) {
	r := heapRing()
	rec := fullRecord()
	n := 0
	count := func(*AccessRecord) { n++ }
	if allocs := testing.AllocsPerRun(200, func() { r.Put(&rec); r.Drain(count) }); allocs != 0 {
		t.Errorf("put and drain allocate %v times", allocs)
	}
	for r.Put(&rec) {
	}
	if allocs := testing.AllocsPerRun(200, func() { r.Put(&rec) }); allocs != 0 {
		t.Errorf("put into a full ring allocates %v times", allocs)
	}
	if n == 0 {
		t.Error("nothing was drained")
	}
}

func BenchmarkRingPut(b *testing.B) {
	r := newRing(bytesOf(make(words, (ringHeader+DefaultAccessRing)/8)))
	rec := fullRecord()
	rec.UserAgent = bytes.Repeat([]byte("Mozilla/5.0 "), 9)
	b.ReportAllocs()
	drained := 0
	for i := range b.N {
		if i%1000 == 0 {
			drained += r.Drain(func(*AccessRecord) {})
		}
		if !r.Put(&rec) {
			b.Fatal("full")
		}
	}
	if drained += r.Drain(func(*AccessRecord) {}); drained != b.N {
		b.Fatalf("drained %d of %d", drained, b.N)
	}
}

func BenchmarkRingPutDrain(b *testing.B) {
	r := heapRing()
	rec := fullRecord()
	b.ReportAllocs()
	for b.Loop() {
		r.Put(&rec)
		if r.Drain(func(*AccessRecord) {}) != 1 {
			b.Fatal("not one record")
		}
	}
}
