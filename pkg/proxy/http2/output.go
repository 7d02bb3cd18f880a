// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"fmt"
	"runtime"

	h2 "golang.org/x/net/http2"
)

// The methods of this file that append to the output are called with the lock held.

// waiting is how many bytes wait to be written.
func (w *wire) waiting() int {
	if w.out == nil {
		return 0
	}
	return len(w.out.b)
}

// appendHeader starts a frame in the output, starts the flusher and returns where the frame begins.
func (w *wire) appendHeader(t h2.FrameType, flags h2.Flags, id uint32, length int) int {
	if w.out == nil {
		w.out = w.pool.output()
	}
	if !w.flushing {
		w.flushing = true
		w.pool.Run(w.flush)
	}
	at := len(w.out.b)
	var header [frameHeader]byte
	putHeader(header[:], t, flags, id, length)
	w.out.b = append(w.out.b, header[:]...)
	return at
}

func (w *wire) appendFrame(t h2.FrameType, flags h2.Flags, id uint32, payload ...byte) {
	w.appendHeader(t, flags, id, len(payload))
	w.out.b = append(w.out.b, payload...)
}

func (w *wire) writeReset(id uint32, code h2.ErrCode) {
	w.appendHeader(h2.FrameRSTStream, 0, id, 4)
	w.out.b = binary.BigEndian.AppendUint32(w.out.b, uint32(code))
}

func (w *wire) writeWindowUpdate(id uint32, n int64) {
	w.appendHeader(h2.FrameWindowUpdate, 0, id, 4)
	w.out.b = binary.BigEndian.AppendUint32(w.out.b, uint32(n))
}

func (w *wire) writePing(ack bool, data []byte) {
	var flags h2.Flags
	if ack {
		flags = h2.FlagPingAck
	}
	w.appendHeader(h2.FramePing, flags, 0, 8)
	w.out.b = append(w.out.b, data...)
}

func (w *wire) writeGoAway(last uint32, code h2.ErrCode) {
	w.appendHeader(h2.FrameGoAway, 0, 0, 8)
	w.out.b = binary.BigEndian.AppendUint32(w.out.b, last)
	w.out.b = binary.BigEndian.AppendUint32(w.out.b, uint32(code))
}

func (c *Conn) writeSettings() {
	settings := []h2.Setting{
		{ID: h2.SettingMaxConcurrentStreams, Val: c.cfg.MaxStreams},
		{ID: h2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		{ID: h2.SettingMaxHeaderListSize, Val: uint32(c.cfg.MaxHeaderBytes)},
	}
	if c.cfg.Protocols {
		settings = append(settings, h2.Setting{ID: h2.SettingEnableConnectProtocol, Val: 1})
	}
	c.appendHeader(h2.FrameSettings, 0, 0, 6*len(settings))
	for _, s := range settings {
		c.out.b = binary.BigEndian.AppendUint16(c.out.b, uint16(s.ID))
		c.out.b = binary.BigEndian.AppendUint32(c.out.b, s.Val)
	}
	if more := c.window - defaultWindow; more > 0 {
		c.writeWindowUpdate(0, more)
	}
}

// endBlock makes frames of the header block that was written after the frame header at at.
func (w *wire) endBlock(at int, id uint32, end bool) {
	flags := h2.FlagHeadersEndHeaders
	if end {
		flags |= h2.FlagHeadersEndStream
	}
	block := w.out.b[at+frameHeader:]
	if len(block) <= maxFrame {
		putHeader(w.out.b[at:], h2.FrameHeaders, flags, id, len(block))
		return
	}
	putHeader(w.out.b[at:], h2.FrameHeaders, flags&^h2.FlagHeadersEndHeaders, id, maxFrame)
	rest := append([]byte(nil), block[maxFrame:]...) // so large a header is rare: it may cost a copy
	w.out.b = w.out.b[:at+frameHeader+maxFrame]
	for len(rest) > 0 {
		n := min(len(rest), maxFrame)
		var f h2.Flags
		if n == len(rest) {
			f = h2.FlagContinuationEndHeaders
		}
		w.appendHeader(h2.FrameContinuation, f, id, n)
		w.out.b = append(w.out.b, rest[:n]...)
		rest = rest[n:]
	}
}

func putHeader(b []byte, t h2.FrameType, flags h2.Flags, id uint32, length int) {
	_ = b[8]
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
	b[3], b[4] = byte(t), byte(flags)
	binary.BigEndian.PutUint32(b[5:], id)
}

// panicError is a panic at the root of a goroutine: it ends the connection.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// flushLoop writes the output until nothing is left. It runs on a goroutine of the pool, so that a connection which has
// nothing to say has none for it.
func (w *wire) flushLoop() {
	defer func() {
		if p := recover(); p != nil {
			w.mu.Lock()
			w.flushing, w.out = false, nil
			w.flushed.Broadcast()
			w.mu.Unlock()
			w.failed(&panicError{p})
		}
	}()
	for {
		o := w.takeOutput()
		if o == nil {
			return
		}
		err := w.writeOut(o.b)
		w.pool.putOutput(o)
		if err != nil {
			w.failed(fmt.Errorf("write connection: %w", err))
		}
	}
}

// takeOutput takes the output as a whole; nil when there is none, with which the flusher's work is done.
func (w *wire) takeOutput() *output {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out == nil {
		w.flushing = false
		w.flushed.Broadcast()
		return nil
	}
	// This is where batching comes from: whoever can run now adds to the output first, so that one write, and one TLS
	// record, carries what many exchanges have to say.
	w.mu.Unlock()
	runtime.Gosched()
	w.mu.Lock()
	o := w.out
	w.out = nil
	w.wakeBlocked()
	return o
}

// writeBytes is how much is written within one Config.Write: with the default of 60 s a client must take 1 KiB/s.
const writeBytes = 64 << 10

func (w *wire) writeOut(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), writeBytes)
		// The timer watches this. A deadline on the net.Conn for each write would cost more than the clock.
		w.wrote.Store(w.now())
		_, err := w.nc.Write(b[:n])
		w.wrote.Store(0)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// awaitFlush waits until nothing is being written or waits to be.
func (w *wire) awaitFlush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.flushing {
		w.flushed.Wait()
	}
}
