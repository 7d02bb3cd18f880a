// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// blocks encodes with ours and decodes with x/net's, and both must agree after each block.
type blocks struct {
	tb  testing.TB
	enc encoder
	dec *hpack.Decoder
	buf []byte
}

func newBlocks(tb testing.TB) *blocks {
	b := &blocks{tb: tb, dec: hpack.NewDecoder(tableBytes, nil)}
	b.enc.init()
	return b
}

func (b *blocks) send(status int, fields ...string) int {
	b.tb.Helper()
	b.buf = b.enc.status(b.enc.begin(b.buf[:0]), status)
	want := []string{":status", fmt.Sprint(status)}
	for i := 0; i < len(fields); i += 2 {
		b.buf = b.enc.field(b.buf, []byte(fields[i]), []byte(fields[i+1]))
	}
	want = append(want, fields...)
	got, err := b.dec.DecodeFull(b.buf)
	if err != nil {
		b.tb.Fatalf("decode %q: %v", fields, err)
	}
	var flat []string
	for _, f := range got {
		flat = append(flat, f.Name, f.Value)
	}
	if strings.Join(flat, "\x00") != strings.Join(want, "\x00") {
		b.tb.Fatalf("got %q, want %q", flat, want)
	}
	return len(b.buf)
}

func TestEncoderIndexesWhatRepeats(t *testing.T) {
	b := newBlocks(t)
	fields := []string{"content-type", "text/html", "server", "xgw", "x-own", "value", "cache-control", "no-store"}
	first := b.send(200, fields...)
	b.send(200, fields...)
	if third := b.send(200, fields...); third != 1+len(fields)/2 {
		t.Errorf("first block %d bytes, third %d", first, third)
	}
	cookie := b.send(200, "set-cookie", "a=b")
	b.send(200, "set-cookie", "a=b")
	if again := b.send(200, "set-cookie", "a=b"); again != cookie {
		t.Error("set-cookie was indexed")
	}
}

func TestEncoderAgainstDecoder(t *testing.T) {
	b := newBlocks(t)
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"content-type", "date", "x-a", "x-bbbb", "etag", "set-cookie", "server", "vary", "x-long"}
	for range 20_000 {
		var fields []string
		for range r.IntN(10) {
			name := names[r.IntN(len(names))]
			value := fmt.Sprint(r.IntN(20))
			if name == "x-long" {
				value = strings.Repeat(value, r.IntN(900))
			}
			fields = append(fields, name, value)
		}
		switch r.IntN(500) { // as onSettings does it
		case 0:
			size := uint32(r.IntN(6000))
			b.enc.resize(size)
			b.dec.SetAllowedMaxDynamicTableSize(size)
		case 1: // down and up again between two blocks
			b.enc.resize(0)
			b.enc.resize(4096)
			b.dec.SetAllowedMaxDynamicTableSize(4096)
		}
		b.send(100+r.IntN(500), fields...)
	}
}

func TestEncoderDoesNotAllocate(t *testing.T) {
	b := newBlocks(t)
	date := []byte("Mon, 02 Jan 2006 15:04:05 GMT")
	n := 0
	one := func() {
		n++
		date[23], date[24] = byte('0'+n/10%6), byte('0'+n%10)
		b.buf = b.enc.status(b.enc.begin(b.buf[:0]), 200)
		for range 2 { // twice, so that it is indexed
			b.buf = b.enc.field(b.buf, []byte("date"), date)
		}
		b.buf = b.enc.field(b.buf, []byte("server"), []byte("xgw"))
	}
	for range 1000 {
		one()
	}
	if a := testing.AllocsPerRun(1000, one); a != 0 {
		t.Errorf("%v allocations per block", a)
	}
}
