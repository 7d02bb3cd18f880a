// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// frames is a client that sends what it likes.
type frames struct {
	*h2.Framer
	nc    *tls.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
	dec   *hpack.Decoder
}

func dialFrames(address string, settings ...h2.Setting) (*frames, error) {
	nc, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	f := &frames{Framer: h2.NewFramer(nc, nc), nc: nc, dec: hpack.NewDecoder(4096, nil)}
	f.AllowIllegalWrites = true
	f.enc = hpack.NewEncoder(&f.block)
	if _, err := io.WriteString(nc, h2.ClientPreface); err != nil {
		return nil, err
	}
	return f, errors.Join(f.WriteSettings(settings...), f.WriteSettingsAck())
}

// fields encodes name, value, name, value …
func (f *frames) fields(list ...string) []byte {
	f.block.Reset()
	for i := 0; i < len(list); i += 2 {
		_ = f.enc.WriteField(hpack.HeaderField{Name: list[i], Value: list[i+1]})
	}
	return f.block.Bytes()
}

// request opens a stream.
func (f *frames) request(id uint32, end bool, method, path string, more ...string) error {
	block := f.fields(append([]string{":method", method, ":scheme", "https", ":authority", "localhost", ":path", path}, more...)...)
	return f.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: end, EndHeaders: true})
}

// abuse is something clients do to an HTTP/2 connection: frame writes its i-th frame, or few.
type abuse struct {
	name  string
	kind  zone.Misuse
	code  h2.ErrCode // of the GOAWAY
	frame func(f *frames, i int) error
}

func oddID(i int) uint32 { return uint32(2*i + 1) }

// opened makes a flood on stream 1, which it opens first.
func opened(frame func(f *frames) error) func(f *frames, i int) error {
	return func(f *frames, i int) error {
		if i == 0 {
			return f.request(1, false, "POST", "/hang")
		}
		return frame(f)
	}
}

// abuses are the floods that are known by name, each of a thousand frames or fewer.
var abuses = []abuse{
	{"rapid reset", zone.MisuseResets, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return errors.Join(f.request(oddID(i), true, "GET", "/hang"), f.WriteRSTStream(oddID(i), h2.ErrCodeCancel))
	}},
	{"made you reset by window", zone.MisuseCausedResets, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return errors.Join(f.request(oddID(i), true, "GET", "/hang"), f.WriteRawFrame(h2.FrameWindowUpdate, 0, oddID(i), make([]byte, 4)))
	}},
	{"made you reset by priority", zone.MisuseCausedResets, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return errors.Join(f.request(oddID(i), true, "GET", "/hang"), f.WriteRawFrame(h2.FramePriority, 0, oddID(i), []byte{0}))
	}},
	{"made you reset by data", zone.MisuseCausedResets, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return errors.Join(f.request(oddID(i), true, "GET", "/hang"), f.WriteData(oddID(i), true, []byte("x")))
	}},
	{"malformed requests", zone.MisuseCausedResets, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return f.request(oddID(i), true, "GET", "/", "connection", "close")
	}},
	{"CONTINUATION", zone.MisuseContinuations, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		if i == 0 {
			return f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields(":method", "GET")})
		}
		return f.WriteContinuation(1, false, []byte{0x82})
	}},
	{"large CONTINUATION", zone.MisuseContinuations, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		if i == 0 {
			return f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields(":method", "GET")})
		}
		return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 16<<10))
	}},
	{"SETTINGS", zone.MisuseSettings, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return f.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: uint32(i)})
	}},
	{"PING", zone.MisusePings, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error { return f.WritePing(false, [8]byte{byte(i)}) }},
	{"PRIORITY", zone.MisusePriorities, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return f.WritePriority(oddID(i), h2.PriorityParam{StreamDep: 0, Weight: byte(i)})
	}},
	{"empty DATA", zone.MisuseEmptyData, h2.ErrCodeEnhanceYourCalm, opened(func(f *frames) error { return f.WriteData(1, false, nil) })},
	{"padding for DATA", zone.MisuseEmptyData, h2.ErrCodeEnhanceYourCalm, opened(func(f *frames) error {
		return f.WriteDataPadded(1, false, nil, make([]byte, 40))
	})},
	{"WINDOW_UPDATE", zone.MisuseWindowUpdates, h2.ErrCodeEnhanceYourCalm, func(f *frames, _ int) error { return f.WriteWindowUpdate(0, 1) }},
	{"a reply byte by byte", zone.MisuseWindowUpdates, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		if i == 0 {
			return errors.Join(f.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize}), f.request(1, true, "GET", "/long"))
		}
		return f.WriteWindowUpdate(1, 1)
	}},
	{"hpack bomb", zone.MisuseHeaderFloods, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		// A field of 4,000 bytes, once, and then by its index: 4 MB from a thousand bytes.
		block := f.fields(":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/", "bomb", strings.Repeat("x", 4000))
		block = append(bytes.Clone(block), bytes.Repeat([]byte{0xbe}, 1000)...)
		return f.WriteHeaders(h2.HeadersFrameParam{StreamID: oddID(i), BlockFragment: block, EndStream: true, EndHeaders: true})
	}},
	{"fields of one byte", zone.MisuseHeaderFloods, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		block := append(bytes.Clone(f.fields(":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/")), bytes.Repeat([]byte{0x90}, 16000)...)
		return f.WriteHeaders(h2.HeadersFrameParam{StreamID: oddID(i), BlockFragment: block, EndStream: true, EndHeaders: true})
	}},
	{"streams above the limit", zone.MisuseRefusedStreams, h2.ErrCodeEnhanceYourCalm, func(f *frames, i int) error {
		return f.request(oddID(i), true, "GET", "/hang")
	}},
	{"unknown frames", zone.MisuseUnknownFrames, h2.ErrCodeEnhanceYourCalm, func(f *frames, _ int) error { return f.WriteRawFrame(0xbb, 0, 0, nil) }},
	{"table out of bounds", zone.MisuseProtocol, h2.ErrCodeCompression, func(f *frames, i int) error {
		return f.WriteHeaders(h2.HeadersFrameParam{StreamID: oddID(i), BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0x7f}, EndStream: true, EndHeaders: true})
	}},
}

// run sends up to a thousand frames and returns the code of the GOAWAY that came.
func (a *abuse) run(address string) (h2.ErrCode, error) {
	f, err := dialFrames(address)
	if err != nil {
		return 0, err
	}
	defer f.nc.NetConn().Close()
	code := make(chan h2.ErrCode, 1)
	go func() {
		last := h2.ErrCode(0xff)
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				code <- last
				return
			}
			if g, ok := fr.(*h2.GoAwayFrame); ok {
				last = g.ErrCode
			}
		}
	}()
	for i := range 1000 {
		if a.frame(f, i) != nil {
			break // it was closed
		}
	}
	return <-code, nil
}

// main does so again and again until its input ends, and says how often.
func (a *abuse) main(address string) error {
	var stop atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop.Store(true)
	}()
	fmt.Println("ready")
	n := 0
	for !stop.Load() {
		code, err := a.run(address)
		if err != nil || code != a.code {
			return fmt.Errorf("%s: connection ended with %v, %v; want %v", a.name, code, err, a.code)
		}
		n++
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Println(n)
	return nil
}

// longReply is made once: fifty at a time would have the upstream busy with its own memory.
var longReply = make([]byte, 10<<20)

// abuseUpstream hangs, is long, or answers.
func abuseUpstream(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/hang":
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	case "/long":
		_, _ = w.Write(longReply)
	case "/64k":
		_, _ = w.Write(make([]byte, 64<<10))
	default:
		_, _ = io.WriteString(w, "hello")
	}
}

// good is a client on a connection of its own: n requests, the slowest of which but one in a
// hundred is what it returns.
func good(c *http.Client, url string, n int) (time.Duration, error) {
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		r, err := c.Get(url)
		if err != nil {
			return 0, err
		}
		if b, err := io.ReadAll(r.Body); err != nil || r.StatusCode != 200 || string(b) != "hello" {
			return 0, fmt.Errorf("status %d, body %q, %w", r.StatusCode, b, err)
		}
		r.Body.Close()
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[n-1-n/100], nil
}

// goodMain is a good client in a process of its own: for each number that it reads it makes so many requests, and
// says what good returns. A fresh one has a new connection for each.
func goodMain(address string, h2, fresh bool) error {
	t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols), DisableKeepAlives: fresh}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetHTTP2(h2)
	c := &http.Client{Transport: t}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		n, err := strconv.Atoi(in.Text())
		if err != nil {
			return err
		}
		d, err := good(c, "https://"+address+"/", n)
		if err != nil {
			return fmt.Errorf("good client: %w", err)
		}
		fmt.Println(int64(d))
	}
	return nil
}

// besides measures the good client in turns, alone and beside the abuse, and returns the
// medians of its p99.
func besides(g *gateway, client *process, i int, runs *uint64) (beside, quiet time.Duration) {
	const each, rounds = 200, 3
	var times [2][rounds]time.Duration
	measure := func() time.Duration {
		d, err := strconv.ParseInt(client.ask(strconv.Itoa(each)), 10, 64)
		if err != nil {
			g.Errorf("good client: %v", err)
		}
		return time.Duration(d)
	}
	for round := range rounds {
		times[0][round] = measure()
		_, end := helper(g.TB, fmt.Sprintf("abuse %s %d", g.address, i))
		times[1][round] = measure()
		n, err := strconv.ParseUint(end(), 10, 64)
		if err != nil || n == 0 {
			g.Errorf("%d connections ended, %v", n, err)
		}
		*runs += n
	}
	slices.Sort(times[0][:])
	slices.Sort(times[1][:])
	return times[1][rounds/2], times[0][rounds/2]
}

// Each abuse ends its connection within a thousand frames, is counted and logged by its name,
// and does not touch a good client beside it.
func TestAbuse(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as a worker has it
	up, end := helper(t, "upstream")
	defer end()
	for i := range abuses {
		a := &abuses[i]
		t.Run(a.name, func(t *testing.T) {
			g := newGateway(t, []string{up}, func(s *policy.Snapshot) { s.Upstreams[0].MaxConnections = 512 })
			client := startHelper(t, fmt.Sprintf("good %s %v", g.address, i%2 == 0))
			defer client.end()
			client.ask("50") // warm
			var runs uint64
			g.unharmed(func(int) (beside, quiet time.Duration) { return besides(g, client, i, &runs) })
			eventually(t, "all are counted", func() bool { return g.slab.Load(zone.HTTP2Misuse) >= runs })
			// A flood of two kinds at once is named for the greater: where the machine is busy, streams
			// that were reset are still under way, and a few floods of resets end as streams above the limit.
			if n := g.slab.Load(zone.HTTP2Misuse); n != runs || 2*g.slab.LoadMisuse(a.kind) < runs {
				t.Errorf("%d connections ended, %d counted as %v, %d in all", runs, g.slab.LoadMisuse(a.kind), a.kind, n)
			}
			if want := "kind=" + a.kind.String() + " "; !strings.Contains(g.log.String(), want) || !strings.Contains(g.log.String(), "client=127.0.0.1:") {
				t.Errorf("no %q in the log: %s", want, g.log)
			}
		})
	}
}

// The words of the codec and of the zone are the same.
func TestMisuseWords(t *testing.T) {
	for _, m := range zone.Misuses() {
		if k := http2.MisuseKind(m); m < zone.MisuseProtocol != (k.String() == m.String()) || m >= zone.MisuseProtocol && k.String() != "unknown" {
			t.Errorf("%d is %v and %v", m, k, m)
		}
	}
}

// What one connection can make the gateway hold, and what each of many can.
func TestMemoryUnderAbuse(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	up, end := helper(t, "upstream")
	defer end()
	for _, state := range []string{crowdUploads, crowdSmallUploads, crowdZeroWindow, crowdBlock} {
		for _, row := range []struct{ n, most int64 }{{1, 4 << 20}, {200, 2 << 20}} {
			t.Run(fmt.Sprintf("%s, %d connections", state, row.n), func(t *testing.T) {
				g := newGateway(t, []string{up}, func(s *policy.Snapshot) {
					s.Upstreams[0].MaxConnections, s.Upstreams[0].MaxIdle, s.Upstreams[0].HeaderTimeout = 512, 0, time.Minute
				})
				if _, err := good(g.client(true), g.url("/"), 50); err != nil { // what is made once
					t.Fatal(err)
				}
				before := inUse()
				leave := g.crowd(state, int(row.n))
				time.Sleep(2 * time.Second) // until all that was sent is read
				each := (inUse() - before) / row.n
				t.Logf("%d KiB a connection", each>>10)
				if each > row.most {
					t.Errorf("%d bytes a connection, want at most %d", each, row.most)
				}
				leave()
			})
		}
	}
}
