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
func (c *Conn) waiting() int {
	if c.out == nil {
		return 0
	}
	return len(c.out.b)
}

// appendHeader starts a frame in the output, wakes the flusher and returns where the frame begins.
func (c *Conn) appendHeader(t h2.FrameType, flags h2.Flags, id uint32, length int) int {
	if c.out == nil {
		c.out = c.pool.output()
	}
	if c.flusherIdle {
		c.flusherIdle = false
		c.flush.Signal()
	}
	at := len(c.out.b)
	var header [frameHeader]byte
	putHeader(header[:], t, flags, id, length)
	c.out.b = append(c.out.b, header[:]...)
	return at
}

func (c *Conn) appendFrame(t h2.FrameType, flags h2.Flags, id uint32, payload ...byte) {
	c.appendHeader(t, flags, id, len(payload))
	c.out.b = append(c.out.b, payload...)
}

func (c *Conn) writeReset(id uint32, code h2.ErrCode) {
	c.appendHeader(h2.FrameRSTStream, 0, id, 4)
	c.out.b = binary.BigEndian.AppendUint32(c.out.b, uint32(code))
}

func (c *Conn) writeWindowUpdate(id uint32, n int64) {
	c.appendHeader(h2.FrameWindowUpdate, 0, id, 4)
	c.out.b = binary.BigEndian.AppendUint32(c.out.b, uint32(n))
}

func (c *Conn) writePing(ack bool, data []byte) {
	var flags h2.Flags
	if ack {
		flags = h2.FlagPingAck
	}
	c.appendHeader(h2.FramePing, flags, 0, 8)
	c.out.b = append(c.out.b, data...)
}

func (c *Conn) writeGoAway(last uint32, code h2.ErrCode) {
	c.appendHeader(h2.FrameGoAway, 0, 0, 8)
	c.out.b = binary.BigEndian.AppendUint32(c.out.b, last)
	c.out.b = binary.BigEndian.AppendUint32(c.out.b, uint32(code))
}

func (c *Conn) writeSettings() {
	settings := [...]h2.Setting{
		{ID: h2.SettingMaxConcurrentStreams, Val: c.cfg.MaxStreams},
		{ID: h2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		{ID: h2.SettingMaxHeaderListSize, Val: uint32(c.cfg.MaxHeaderBytes)},
	}
	c.appendHeader(h2.FrameSettings, 0, 0, 6*len(settings))
	for _, s := range settings {
		c.out.b = binary.BigEndian.AppendUint16(c.out.b, uint16(s.ID))
		c.out.b = binary.BigEndian.AppendUint32(c.out.b, s.Val)
	}
	if more := c.cfg.ConnWindow - defaultWindow; more > 0 {
		c.writeWindowUpdate(0, int64(more))
	}
}

// flushLoop writes the output until the connection has ended and nothing is left.
func (c *Conn) flushLoop() {
	defer close(c.flushed)
	for {
		o := c.takeOutput()
		if o == nil {
			return
		}
		err := c.writeOut(o.b)
		c.pool.putOutput(o)
		if err != nil {
			c.end(fmt.Errorf("write connection: %w", err))
			c.runHooks()
			return
		}
	}
}

// takeOutput waits for output and takes it as a whole; nil at the end of the connection.
func (c *Conn) takeOutput() *output {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.out == nil {
		if c.ending {
			return nil
		}
		c.flusherIdle = true
		c.flush.Wait()
		c.flusherIdle = false
	}
	// This is where batching comes from: whoever can run now adds to the output first, so that one write, and one TLS
	// record, carries what many exchanges have to say.
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
	o := c.out
	c.out = nil
	c.wakeBlocked()
	return o
}

// writeBytes is how much is written within one Config.Write: with the default of 60 s a client must take 1 KiB/s.
const writeBytes = 64 << 10

func (c *Conn) writeOut(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), writeBytes)
		// The timer watches this. A deadline on the net.Conn for each write would cost more than the clock.
		c.wrote.Store(c.now())
		_, err := c.nc.Write(b[:n])
		c.wrote.Store(0)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
