// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever the bytes are, decode ends, and what it accepts is what would be
// encoded: the same record comes back.
func FuzzRecord(f *testing.F) {
	full, empty, sampled := fullRecord(), AccessRecord{}, fullRecord()
	sampled.Sampled = true
	for _, rec := range []*AccessRecord{&full, &empty, &sampled} {
		b := rec.appendTo(nil)
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(b[:recordFixed])
		f.Add(append(bytes.Clone(b), 0))
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, maxRecord))
	f.Fuzz(func(t *testing.T, b []byte) {
		var first, second AccessRecord
		if first.decode(b) != nil {
			return
		}
		if len(first.Target) > maxTarget {
			first.Target = first.Target[:maxTarget]
		}
		for _, s := range []*[]byte{&first.Method, &first.Host, &first.UserAgent, &first.Referer, &first.ID, &first.UpstreamAddr, &first.Trace, &first.Key} {
			*s = clip(*s, maxText)
		}
		again := first.appendTo(nil)
		if len(again) > maxRecord {
			t.Fatalf("%d bytes are encoded, %d at most", len(again), maxRecord)
		}
		if err := second.decode(again); err != nil {
			t.Fatalf("what was decoded does not decode: %v", err)
		}
		// An address that claims to be IPv4 and is not stays IPv6 and loses the claim.
		if diff := cmp.Diff(first, second, compareRecords); diff != "" {
			t.Fatal(diff)
		}
	})
}

// Whatever stands in a ring, Drain ends, empties it, and the ring can be used again.
func FuzzDrain(f *testing.F) {
	r := heapRing()
	rec := fullRecord()
	for range 3 {
		r.Put(&rec)
	}
	head := r.header.load(ringHead)
	f.Add(head, uint64(0), r.data[:head])
	f.Add(head-1, uint64(0), r.data[:head])
	f.Add(head+1, uint64(1), r.data[:head])
	f.Add(^uint64(0), uint64(0), []byte{})
	f.Add(uint64(minAccessRing+5), uint64(5), bytes.Repeat([]byte{200, 0, 0, 0}, 1000))
	f.Fuzz(func(t *testing.T, head, tail uint64, data []byte) {
		r := heapRing()
		r.header.store(ringHead, head)
		r.header.store(ringTail, tail)
		copy(r.data, data)
		n := r.Drain(func(got *AccessRecord) {
			if len(got.Target) > maxRecord {
				t.Fatal("a record beyond its size")
			}
		})
		if n > minAccessRing/recordFixed || r.header.load(ringTail) != head {
			t.Fatalf("drained %d, tail %d of %d", n, r.header.load(ringTail), head)
		}
		if !r.Put(&rec) || r.Drain(func(*AccessRecord) {}) != 1 {
			t.Fatal("the ring does not go on")
		}
	})
}

// A header of any content is refused, or leads to nothing outside of the file.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "xgw.zone")
	z, err := Create(path, small())
	if err != nil {
		f.Fatal(err)
	}
	z.RouteSlot("api")
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	z.Close()
	header := whole[:(headTable+4*sectionWords)*8]
	f.Add(header, int64(len(whole)))
	f.Add(header, int64(len(whole)-1))
	f.Add(header, int64(pageSize))
	f.Add(header[:8], int64(len(whole)))
	f.Add([]byte{}, int64(0))
	for _, word := range []int{headVersion, headSize, headWorkers, headRoutes, headUpstreams, headAccessRing, headSections, headTable + 1} {
		b := bytes.Clone(header)
		copy(b[word*8:], []byte{2, 1, 1, 0, 0, 0, 0, 0x80})
		f.Add(b, int64(len(whole)))
	}
	f.Fuzz(func(t *testing.T, header []byte, size int64) {
		if size < 0 || size > 1<<20 {
			return
		}
		path := filepath.Join(t.TempDir(), "xgw.zone")
		b := make([]byte, size)
		copy(b, whole)
		copy(b, header[:min(len(header), pageSize)])
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		z, err := Open(path)
		if err != nil {
			return
		}
		defer z.Close()
		if z.Size() != size || z.Layout().Need() > size {
			t.Fatalf("opened %d bytes as %+v", size, z.Layout())
		}
		readAll(t, z)
	})
}

// readAll touches the first and last word of everything.
func readAll(t *testing.T, z *Zone) {
	var h Histogram
	l := z.Layout()
	z.Alive()
	z.Created()
	for i := range z.Workers() {
		s := z.Worker(i)
		s.LoadGauge(gaugeCount - 1)
		s.HandshakeDuration(&h)
		for _, slot := range []int{0, l.Routes - 1, l.Routes} {
			s.RouteRequests(slot)
			s.RouteDuration(slot, &h)
		}
		for _, slot := range []int{0, l.Upstreams - 1, l.Upstreams} {
			s.LoadUpstream(slot, upstreamOutcomes-1)
			s.UpstreamDuration(slot, &h)
		}
		var last [1]byte
		s.Access.copyBytes(last[:], uint64(l.AccessRing-1))
	}
	for _, names := range [][]string{z.Routes(), z.Upstreams()} {
		for _, name := range names {
			if len(name) >= nameSize {
				t.Fatalf("name of %d bytes", len(name))
			}
		}
	}
}
