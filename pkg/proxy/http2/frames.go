// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"time"

	h2 "golang.org/x/net/http2"
)

// dispatch does what a frame asks for. An error ends the connection; stream errors are dealt with here. The lock is held.
func (c *Conn) dispatch(fh h2.FrameHeader, p []byte) error {
	if !c.settings.received && fh.Type != h2.FrameSettings {
		return connError(h2.ErrCodeProtocol, "first frame is not SETTINGS")
	}
	switch fh.Type {
	case h2.FrameData:
		return c.onData(fh, p)
	case h2.FrameHeaders:
		return c.onHeaders(fh, p)
	case h2.FrameContinuation:
		return c.onContinuation(fh, p)
	case h2.FrameWindowUpdate:
		return c.onWindowUpdate(fh, p)
	case h2.FrameRSTStream:
		return c.onReset(fh, p)
	case h2.FrameSettings:
		return c.onSettings(fh, p)
	case h2.FramePing:
		return c.onPing(fh, p)
	case h2.FramePriority:
		return c.onPriority(fh, p)
	case h2.FrameGoAway:
		if fh.StreamID != 0 {
			return connError(h2.ErrCodeProtocol, "GOAWAY on a stream")
		}
		if len(p) < 8 {
			return connError(h2.ErrCodeFrameSize, "GOAWAY is too short")
		}
		return c.charge(UnknownFrames, 1) // the client will close when it has its answers
	case h2.FramePushPromise:
		return connError(h2.ErrCodeProtocol, "PUSH_PROMISE from a client")
	}
	return c.charge(UnknownFrames, 1)
}

func (c *Conn) charge(kind MisuseKind, cost int) error {
	return c.misuse.charge(kind, cost, time.Now)
}

// unpad takes the padding off DATA and HEADERS.
func unpad(fh h2.FrameHeader, p []byte) ([]byte, error) {
	if fh.Flags&h2.FlagDataPadded == 0 {
		return p, nil
	}
	if len(p) == 0 {
		return nil, connError(h2.ErrCodeFrameSize, "padded frame without length of padding")
	}
	pad := int(p[0])
	if pad >= len(p) {
		return nil, connError(h2.ErrCodeProtocol, "padding is longer than the frame")
	}
	return p[1 : len(p)-pad], nil
}

func (c *Conn) onData(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID == 0 {
		return connError(h2.ErrCodeProtocol, "DATA on stream 0")
	}
	if c.isIdle(fh.StreamID) {
		return connError(h2.ErrCodeProtocol, "DATA on an idle stream")
	}
	data, err := unpad(fh, p)
	if err != nil {
		return err
	}
	size := int64(len(p)) // padding counts for flow control
	c.recvWindow -= size
	if c.recvWindow < 0 {
		return connError(h2.ErrCodeFlowControl, "more DATA than the connection's window")
	}
	s := c.streams[fh.StreamID]
	if s == nil {
		c.giveBack(size)
		return c.onClosed(fh.StreamID, size)
	}
	if s.remoteEnd {
		c.giveBack(size)
		return c.streamError(s, h2.ErrCodeStreamClosed, "DATA after END_STREAM")
	}
	s.recvWindow -= size
	if s.recvWindow < 0 && size > 0 { // below 0 without a fault: the window was made smaller, see onSettingsAck
		c.giveBack(size)
		return c.streamError(s, h2.ErrCodeFlowControl, "more DATA than the stream's window")
	}
	end := fh.Flags&h2.FlagDataEndStream != 0
	if len(data) == 0 && !end {
		if err := c.charge(EmptyData, 1); err != nil {
			return err
		}
	}
	s.got += int64(len(data))
	if s.length >= 0 && (s.got > s.length || end && s.got != s.length) {
		c.giveBack(size)
		return c.streamError(s, h2.ErrCodeProtocol, "body is not as long as content-length says")
	}
	if s.discards {
		c.giveBack(int64(len(data)))
	} else {
		s.body.put(c.pool, data)
	}
	if pad := size - int64(len(data)); pad > 0 {
		c.giveBack(pad)
		s.giveBack(pad)
	}
	if end {
		s.endRemote()
	}
	s.readable.Signal()
	return nil
}

// giveBack returns credit of the connection's window to the client, in batches.
func (c *Conn) giveBack(n int64) {
	c.unacked += n
	if c.unacked >= c.window/4 && !c.ending {
		c.writeWindowUpdate(0, c.unacked)
		c.recvWindow += c.unacked
		c.unacked = 0
	}
}

// widen opens the connection's window by what a handler has read, up to Config.ConnWindow: who sends what nobody takes
// makes us hold no more than firstConnWindow. It returns the credit that comes of it.
func (c *Conn) widen(read int64) int64 {
	n := min(read, int64(c.cfg.ConnWindow)-c.window)
	c.window += n
	return n
}

func (c *Conn) isIdle(id uint32) bool { return id > c.lastID || id&1 == 0 }

// onClosed judges DATA on a stream that is over.
func (c *Conn) onClosed(id uint32, size int64) error {
	switch c.closed.how(id) {
	case closedByEnd:
		return connError(h2.ErrCodeStreamClosed, "frame on a stream that is closed")
	case closedByUs, closedUnknown: // it may have been under way when we reset the stream
	}
	return c.misuse.chargeLate(size, time.Now)
}

func (c *Conn) onWindowUpdate(fh h2.FrameHeader, p []byte) error {
	if len(p) != 4 {
		return connError(h2.ErrCodeFrameSize, "WINDOW_UPDATE is not 4 bytes long")
	}
	if err := c.misuse.chargeAnswer(WindowUpdates, time.Now); err != nil {
		return err
	}
	gain := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if fh.StreamID == 0 {
		if gain == 0 {
			return connError(h2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
		}
		if c.sendWindow += gain; c.sendWindow > maxWindow {
			return connError(h2.ErrCodeFlowControl, "window of the connection overflows")
		}
		c.wakeBlocked()
		return nil
	}
	if c.isIdle(fh.StreamID) {
		return connError(h2.ErrCodeProtocol, "WINDOW_UPDATE on an idle stream")
	}
	s := c.streams[fh.StreamID]
	switch {
	case s == nil:
		return nil
	case gain == 0:
		return c.streamError(s, h2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
	}
	if s.sendWindow += gain; s.sendWindow > maxWindow {
		return c.streamError(s, h2.ErrCodeFlowControl, "window of the stream overflows")
	}
	s.writable.Signal()
	return nil
}

func (c *Conn) onReset(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID == 0 || c.isIdle(fh.StreamID) {
		return connError(h2.ErrCodeProtocol, "RST_STREAM on an idle stream")
	}
	if len(p) != 4 {
		return connError(h2.ErrCodeFrameSize, "RST_STREAM is not 4 bytes long")
	}
	s := c.streams[fh.StreamID]
	if s == nil {
		return c.charge(Resets, 1)
	}
	c.remove(s, closedByEnd)
	c.abort(s, &ResetError{Code: binary.BigEndian.Uint32(p), Remote: true})
	if !s.headed && c.lastActive.Load()-s.began < int64(earlyReset) {
		return c.charge(Resets, costEarlyReset)
	}
	return c.charge(Resets, costReset)
}

func (c *Conn) onSettings(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID != 0 {
		return connError(h2.ErrCodeProtocol, "SETTINGS on a stream")
	}
	if fh.Flags&h2.FlagSettingsAck != 0 {
		return c.onSettingsAck(p)
	}
	if len(p)%6 != 0 {
		return connError(h2.ErrCodeFrameSize, "SETTINGS is not a multiple of 6 bytes long")
	}
	// Each entry may cost a walk over all streams.
	if err := c.charge(SettingsFrames, 2+len(p)/60); err != nil {
		return err
	}
	for ; len(p) > 0; p = p[6:] {
		id, v := h2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])
		if err := c.onSetting(id, v); err != nil {
			return err
		}
	}
	c.settings.received = true
	c.appendFrame(h2.FrameSettings, h2.FlagSettingsAck, 0)
	return nil
}

func (c *Conn) onSetting(id h2.SettingID, v uint32) error {
	switch id {
	case h2.SettingHeaderTableSize:
		c.encoder.resize(v)
	case h2.SettingEnablePush:
		if v > 1 {
			return connError(h2.ErrCodeProtocol, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")
		}
	case h2.SettingMaxFrameSize:
		if v < maxFrame || v > 1<<24-1 {
			return connError(h2.ErrCodeProtocol, "SETTINGS_MAX_FRAME_SIZE is out of range")
		}
		// We send no more than the smallest limit there is: larger frames would only make streams wait for each other.
	case h2.SettingInitialWindowSize:
		if v > maxWindow {
			return connError(h2.ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE is out of range")
		}
		change := int64(v) - c.peerWindow
		c.peerWindow = int64(v)
		for _, s := range c.streams {
			if s.sendWindow += change; s.sendWindow > maxWindow {
				return connError(h2.ErrCodeFlowControl, "window of a stream overflows")
			}
			s.writable.Signal()
		}
	}
	return nil
}

// onSettingsAck takes our own window for streams into force: until then the client may use the default.
func (c *Conn) onSettingsAck(p []byte) error {
	if len(p) != 0 {
		return connError(h2.ErrCodeFrameSize, "acknowledgement of SETTINGS is not empty")
	}
	if c.settings.acked {
		return connError(h2.ErrCodeProtocol, "acknowledgement of SETTINGS that were not sent")
	}
	c.settings.acked = true
	if less := c.initialWindow() - max(c.initialWindow(), defaultWindow); less < 0 {
		for _, s := range c.streams {
			s.recvWindow += less
		}
	}
	return nil
}

func (c *Conn) initialWindow() int64 { return int64(c.cfg.StreamWindow) }

func (c *Conn) onPing(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID != 0 {
		return connError(h2.ErrCodeProtocol, "PING on a stream")
	}
	if len(p) != 8 {
		return connError(h2.ErrCodeFrameSize, "PING is not 8 bytes long")
	}
	if fh.Flags&h2.FlagPingAck != 0 && c.draining == drainSoon && c.drainIn == drainWait && string(p) == string(drainPing[:]) {
		c.drainAt, c.drainIn = c.now(), drainGrace
		if c.timer != nil {
			c.timer.Reset(drainGrace + time.Millisecond)
		}
		return nil
	}
	if err := c.misuse.chargeAnswer(Pings, time.Now); err != nil {
		return err
	}
	if fh.Flags&h2.FlagPingAck == 0 {
		c.writePing(true, p)
	}
	return nil
}

// drainLast is the second step of Shutdown.
func (c *Conn) drainLast() {
	c.draining = drainLast
	c.writeGoAway(c.served, h2.ErrCodeNo)
}

func (c *Conn) onPriority(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID == 0 {
		return connError(h2.ErrCodeProtocol, "PRIORITY on stream 0")
	}
	if err := c.charge(Priorities, 1); err != nil {
		return err
	}
	var code h2.ErrCode
	var cause string
	switch {
	case len(p) != 5:
		code, cause = h2.ErrCodeFrameSize, "PRIORITY is not 5 bytes long"
	case binary.BigEndian.Uint32(p)&maxWindow == fh.StreamID:
		code, cause = h2.ErrCodeProtocol, "stream depends on itself"
	default:
		return nil
	}
	if s := c.streams[fh.StreamID]; s != nil {
		return c.streamError(s, code, cause)
	}
	c.writeReset(fh.StreamID, code)
	return c.charge(CausedResets, 3)
}

// streamError resets an open stream for what the client did.
func (c *Conn) streamError(s *Stream, code h2.ErrCode, cause string) error {
	c.writeReset(s.id, code)
	c.remove(s, closedByUs)
	c.abort(s, &ResetError{Code: uint32(code), Cause: cause})
	return c.charge(CausedResets, costCaused)
}

// remove takes a stream out of those that are open. The handler may still hold it.
func (c *Conn) remove(s *Stream, how closing) {
	if s.open {
		s.open = false
		delete(c.streams, s.id)
		c.closed.add(s.id, how)
	}
}

// abort tells the handler of a stream that the exchange is over, and makes its cancel hook due.
func (c *Conn) abort(s *Stream, err error) {
	if s.err != nil || s.done {
		return
	}
	s.err = err
	s.cancelled.Store(true)
	s.readable.Broadcast()
	s.writable.Broadcast()
	if s.cancel != nil {
		s.cancelling = true
		c.hooks = append(c.hooks, s)
	}
}

// closing is how a stream came to its end.
type closing int

const (
	closedUnknown closing = iota // too long ago, or never opened because a higher one was
	closedByEnd                  // by END_STREAM of both sides, or by the client's RST_STREAM
	closedByUs                   // by our RST_STREAM
)

// closedStreams remembers how the latest streams ended. What came long before is not told apart.
type closedStreams struct {
	ids  [128]uint32 // the high bit is set for closedByUs
	next int
}

func (c *closedStreams) add(id uint32, how closing) {
	if how == closedByUs {
		id |= 1 << 31
	}
	c.ids[c.next] = id
	c.next = (c.next + 1) % len(c.ids)
}

func (c *closedStreams) how(id uint32) closing {
	for _, v := range c.ids {
		switch v {
		case id:
			return closedByEnd
		case id | 1<<31:
			return closedByUs
		}
	}
	return closedUnknown
}
