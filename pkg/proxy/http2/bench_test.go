// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// benchClient writes requests made beforehand, so that it costs little itself, and counts END_STREAM.
type benchClient struct {
	nc   net.Conn
	buf  []byte
	have int
}

// ended reads until n streams have ended.
func (bc *benchClient) ended(tb testing.TB, n int) {
	for n > 0 {
		for bc.have >= frameHeader {
			length := int(bc.buf[0])<<16 | int(bc.buf[1])<<8 | int(bc.buf[2])
			if bc.have < frameHeader+length {
				break
			}
			t, flags := h2.FrameType(bc.buf[3]), h2.Flags(bc.buf[4])
			if t == h2.FrameGoAway || t == h2.FrameRSTStream {
				tb.Fatalf("server sent %v", t)
			}
			if (t == h2.FrameData || t == h2.FrameHeaders) && flags&h2.FlagDataEndStream != 0 {
				n--
			}
			bc.have = copy(bc.buf, bc.buf[frameHeader+length:bc.have])
		}
		if n == 0 {
			return
		}
		m, err := bc.nc.Read(bc.buf[bc.have:])
		if err != nil {
			tb.Fatal(err)
		}
		bc.have += m
	}
}

// benchmark sends requests in batches of as many streams and waits for their answers.
func benchmark(b *testing.B, batch int, h func(*Stream), body int) {
	s := startServer(b, "127.0.0.1:0", Config{}, handlerFunc(h), nil)
	nc, err := net.Dial("tcp", s.addr())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(time.Minute))
	bc := &benchClient{nc: nc, buf: make([]byte, 1<<20)}
	var out, hb bytes.Buffer
	fr := h2.NewFramer(&out, nil)
	enc := hpack.NewEncoder(&hb)
	out.WriteString(h2.ClientPreface)
	fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 30})
	fr.WriteSettingsAck()
	fr.WriteWindowUpdate(0, 1<<30)
	id := uint32(1)
	payload := make([]byte, body)
	round := func(n int) {
		for range n {
			hb.Reset()
			for _, f := range benchFields {
				enc.WriteField(f)
			}
			fr.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: hb.Bytes(), EndHeaders: true, EndStream: body == 0})
			if body > 0 {
				fr.WriteData(id, true, payload)
			}
			id += 2
		}
		if _, err := nc.Write(out.Bytes()); err != nil {
			b.Fatal(err)
		}
		out.Reset()
		bc.ended(b, n)
	}
	for range 50 {
		round(batch)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= batch {
		round(min(batch, left))
	}
}

var benchFields = []hpack.HeaderField{
	{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"},
	{Name: ":path", Value: "/index.html"}, {Name: "user-agent", Value: "bench/1"}, {Name: "accept", Value: "*/*"},
	{Name: "accept-encoding", Value: "gzip"}, {Name: "cookie", Value: "session=0123456789abcdef"},
}

func benchAnswer(s *Stream) {
	var buf [2048]byte
	if !s.EndStream() {
		for {
			if _, err := s.Read(buf[:]); err == io.EOF {
				break
			} else if err != nil {
				return
			}
		}
	}
	s.BeginHeaders(200)
	s.AddHeader([]byte("Server"), []byte("xgw"))
	s.AddHeader([]byte("Date"), []byte("Mon, 02 Jan 2006 15:04:05 GMT"))
	s.AddHeader([]byte("Content-Type"), []byte("text/plain"))
	s.AddHeader([]byte("Content-Length"), []byte("612"))
	if s.EndHeaders(false) == nil {
		s.Write(buf[:612], true)
	}
}

func BenchmarkOneStream(b *testing.B)  { benchmark(b, 1, benchAnswer, 0) }
func Benchmark16Streams(b *testing.B)  { benchmark(b, 16, benchAnswer, 0) }
func Benchmark100Streams(b *testing.B) { benchmark(b, 100, benchAnswer, 0) }
func BenchmarkPost4K(b *testing.B)     { benchmark(b, 16, benchAnswer, 4096) }

// The steady state allocates nothing of ours: the client of the benchmark does not allocate either.
func TestAllocations(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("the race detector allocates")
	}
	r := testing.Benchmark(Benchmark16Streams)
	if r.N == 0 {
		t.Fatal("the benchmark failed")
	}
	if r.AllocsPerOp() > 1 {
		t.Errorf("%v", r.MemString())
	}
	t.Log(r.String(), r.MemString())
}
