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

// FuzzServerFrames feeds bytes after the preface to a connection. It must neither panic nor hang, whatever comes.
func FuzzServerFrames(f *testing.F) {
	for _, seed := range fuzzSeeds() {
		f.Add(seed)
	}
	pool := NewPool()
	f.Cleanup(pool.Close)
	f.Fuzz(func(t *testing.T, in []byte) {
		client, server := net.Pipe()
		panics := make(chan any, 1)
		cfg := Config{Pool: pool, Idle: 5 * time.Second, Header: 5 * time.Second, MaxStreams: 10, Panic: func(v any) {
			select {
			case panics <- v:
			default:
			}
		}}
		c := NewConn(server, cfg, handlerFunc(fuzzHandler))
		served := make(chan error, 1)
		go func() { served <- c.Serve() }()
		go io.Copy(io.Discard, client)
		deadline := time.Now().Add(10 * time.Second)
		client.SetDeadline(deadline)
		client.Write([]byte(h2.ClientPreface))
		client.Write(in)
		client.Close()
		select {
		case <-served:
		case <-time.After(time.Until(deadline)):
			t.Fatal("Serve hangs")
		}
		select {
		case v := <-panics:
			t.Fatalf("panic: %v", v)
		default:
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.running != 0 || len(c.streams) != 0 || len(c.hooks) != 0 {
			t.Fatalf("left over: %d handlers, %d streams, %d hooks", c.running, len(c.streams), len(c.hooks))
		}
	})
}

// fuzzHandler uses all of a stream, by the length of its path.
func fuzzHandler(s *Stream) {
	s.SetCancel(func() {})
	switch len(s.Path()) % 4 {
	case 0:
		echo(s)
	case 1:
		answer(s, 200, "hello")
	case 2:
		s.Reset(8)
	case 3:
		count(s)
	}
}

func fuzzSeeds() (seeds [][]byte) {
	seed := func(f func(fr *h2.Framer, block func(fields ...string) []byte)) {
		var b, hb bytes.Buffer
		fr := h2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		enc := hpack.NewEncoder(&hb)
		fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 100})
		fr.WriteSettingsAck()
		f(fr, func(fields ...string) []byte {
			hb.Reset()
			for i := 0; i+1 < len(fields); i += 2 {
				enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
			}
			return bytes.Clone(hb.Bytes())
		})
		seeds = append(seeds, b.Bytes())
	}
	seed(func(*h2.Framer, func(...string) []byte) {})
	for _, path := range []string{"/", "/a", "/ab", "/abc"} {
		seed(func(fr *h2.Framer, block func(...string) []byte) {
			fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block(get(path)...), EndHeaders: true, EndStream: true})
			fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 3, BlockFragment: block(post(path, "cookie", "a", "cookie", "b")...), EndHeaders: true})
			fr.WriteData(3, false, []byte("data"))
			fr.WriteDataPadded(3, false, []byte("data"), make([]byte, 5))
			fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 3, BlockFragment: block("x", "trailer")[:2], EndStream: true})
			fr.WriteContinuation(3, true, block("x", "trailer"))
			fr.WriteRSTStream(3, h2.ErrCodeCancel)
			fr.WritePing(false, [8]byte{1})
			fr.WriteWindowUpdate(0, 100)
			fr.WriteWindowUpdate(1, 100)
			fr.WritePriority(5, h2.PriorityParam{StreamDep: 1})
			fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 5}, h2.Setting{ID: h2.SettingHeaderTableSize, Val: 0})
			fr.WriteGoAway(3, h2.ErrCodeNo, nil)
			fr.WriteRawFrame(0x33, 1, 5, []byte("unknown"))
		})
	}
	seed(func(fr *h2.Framer, block func(...string) []byte) {
		fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block(with("te", "gzip")...), EndHeaders: true})
		fr.WriteData(1, true, []byte("late"))
		fr.WritePushPromise(h2.PushPromiseParam{StreamID: 1, PromiseID: 2})
	})
	return seeds
}

// FuzzFields feeds fields to the checks of a request: what is let through must keep the promises of the accessors.
func FuzzFields(f *testing.F) {
	f.Add("/a", "localhost", "x", "y")
	f.Add("*", "a@b", "host", "a")
	f.Add("/#", "[::1]:1", "content-length", "5")
	f.Add("/", "", "cookie", "a\r\n")
	cfg := Config{}.withDefaults()
	f.Fuzz(func(t *testing.T, path, authority, name, value string) {
		s := &Stream{length: -1}
		for _, kv := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":path", path}, {":authority", authority}, {name, value}} {
			s.addField(&cfg, kv[0], kv[1])
		}
		if s.bad == nil {
			s.finishFields(true)
		}
		if s.bad != nil || s.tooLarge {
			return
		}
		if s.path[0] != '/' || bytes.ContainsAny(s.path, " #\r\n\t\x00") || len(s.authority) == 0 ||
			bytes.ContainsAny(s.authority, "@/ \r\n\x00?#") {
			t.Errorf("let through: path %q, authority %q", s.path, s.authority)
		}
		for _, fd := range s.fields {
			if bytes.ContainsAny(fd.Name, ": \r\n\x00ABCDEFGHIJKLMNOPQRSTUVWXYZ") || bytes.ContainsAny(fd.Value, "\r\n\x00") {
				t.Errorf("let through: %q: %q", fd.Name, fd.Value)
			}
		}
	})
}
