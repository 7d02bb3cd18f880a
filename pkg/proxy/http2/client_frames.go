// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"errors"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// dispatch does what a server's frame asks for. An error ends the connection. The lock is held.
func (c *ClientConn) dispatch(fh h2.FrameHeader, p []byte) error {
	if !c.settled && (fh.Type != h2.FrameSettings || fh.Flags&h2.FlagSettingsAck != 0) {
		return connError(h2.ErrCodeProtocol, "first frame is not SETTINGS")
	}
	switch fh.Type {
	case h2.FrameData:
		return c.onData(fh, p)
	case h2.FrameHeaders:
		return c.onHeaders(fh, p)
	case h2.FrameContinuation:
		cost := 1
		if len(p) < 64 {
			cost = 8 // nobody cuts a header block into such pieces
		}
		if err := c.charge(Continuations, cost); err != nil {
			return err
		}
		return c.fragment(fh, p)
	case h2.FrameWindowUpdate:
		return c.onWindowUpdate(fh, p)
	case h2.FrameRSTStream:
		return c.onReset(fh, p)
	case h2.FrameSettings:
		return c.onSettings(fh, p)
	case h2.FramePing:
		return c.onPing(fh, p)
	case h2.FrameGoAway:
		return c.onGoAway(fh, p)
	case h2.FramePushPromise:
		return connError(h2.ErrCodeProtocol, "PUSH_PROMISE, which was switched off")
	case h2.FramePriority:
		if fh.StreamID == 0 {
			return connError(h2.ErrCodeProtocol, "PRIORITY on stream 0")
		}
		return c.charge(Priorities, 1)
	}
	return c.charge(UnknownFrames, 1)
}

func (c *ClientConn) charge(kind MisuseKind, cost int) error {
	return c.misuse.charge(kind, cost, timeNow)
}

// isIdle: the stream was not opened yet, or never can be.
func (c *ClientConn) isIdle(id uint32) bool { return id == 0 || id&1 == 0 || id > c.lastID }

func (c *ClientConn) onData(fh h2.FrameHeader, p []byte) error {
	if c.isIdle(fh.StreamID) {
		return connError(h2.ErrCodeProtocol, "DATA on a stream that is not open")
	}
	data, err := unpad(fh, p)
	if err != nil {
		return err
	}
	c.heard()
	size := int64(len(p))
	if c.recvWindow -= size; c.recvWindow < 0 && size > 0 {
		return connError(h2.ErrCodeFlowControl, "more DATA than the connection's window")
	}
	c.giveBack(size)
	end := fh.Flags&h2.FlagDataEndStream != 0
	if len(data) == 0 && !end {
		if err := c.charge(EmptyData, 1); err != nil {
			return err
		}
	}
	s := c.streams[fh.StreamID]
	switch {
	case s == nil:
		if len(data) < usefulFrame {
			return c.charge(ClosedStreams, 1)
		}
		return nil // under way when we reset the stream
	case s.remoteEnd:
		return c.malformed(s, h2.ErrCodeStreamClosed, "DATA after END_STREAM")
	case !s.headed:
		return c.malformed(s, h2.ErrCodeProtocol, "DATA before a final reply")
	}
	if s.recvWindow -= size; s.recvWindow < 0 && size > 0 {
		return c.malformed(s, h2.ErrCodeFlowControl, "more DATA than the stream's window")
	}
	s.got += int64(len(data))
	if !s.fits(end) {
		return c.malformed(s, h2.ErrCodeProtocol, "body is not as long as content-length says")
	}
	s.body.put(c.pool, data)
	if pad := size - int64(len(data)); pad > 0 {
		s.giveBack(pad)
	}
	if end {
		s.endRemote()
	}
	s.readable.Signal()
	return nil
}

// giveBack returns credit of the connection's window to the server, in batches.
func (c *ClientConn) giveBack(n int64) {
	if c.unacked += n; c.unacked >= clientWindow/8 {
		c.writeWindowUpdate(0, c.unacked)
		c.recvWindow += c.unacked
		c.unacked = 0
	}
}

// malformed ends a stream for what the server sent on it.
func (c *ClientConn) malformed(s *ClientStream, code h2.ErrCode, cause string) error {
	c.writeReset(s.id, code)
	c.remove(s)
	s.fail(&ResetError{Code: uint32(code), Cause: cause})
	return c.charge(CausedResets, 4)
}

func (c *ClientConn) remove(s *ClientStream) {
	if s.open {
		s.open = false
		delete(c.streams, s.id)
	}
}

func (c *ClientConn) onWindowUpdate(fh h2.FrameHeader, p []byte) error {
	if len(p) != 4 {
		return connError(h2.ErrCodeFrameSize, "WINDOW_UPDATE is not 4 bytes long")
	}
	if err := c.misuse.chargeAnswer(WindowUpdates, timeNow); err != nil {
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
		return connError(h2.ErrCodeProtocol, "WINDOW_UPDATE on a stream that is not open")
	}
	s := c.streams[fh.StreamID]
	switch {
	case s == nil:
		return nil
	case gain == 0:
		return c.malformed(s, h2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
	}
	if s.sendWindow += gain; s.sendWindow > maxWindow {
		return c.malformed(s, h2.ErrCodeFlowControl, "window of the stream overflows")
	}
	s.writable.Signal()
	return nil
}

func (c *ClientConn) onReset(fh h2.FrameHeader, p []byte) error {
	if c.isIdle(fh.StreamID) {
		return connError(h2.ErrCodeProtocol, "RST_STREAM on a stream that is not open")
	}
	if len(p) != 4 {
		return connError(h2.ErrCodeFrameSize, "RST_STREAM is not 4 bytes long")
	}
	s := c.streams[fh.StreamID]
	if s == nil {
		return c.charge(Resets, 1)
	}
	c.remove(s)
	code := h2.ErrCode(binary.BigEndian.Uint32(p))
	switch {
	case s.remoteEnd: // the reply is whole: the server only wants no more of the request
		s.writable.Broadcast()
	case code == h2.ErrCodeRefusedStream && len(s.heads) == 0:
		s.fail(ErrRefused)
	default:
		s.fail(&ResetError{Code: uint32(code), Remote: true})
	}
	return nil // one for each stream at most
}

func (c *ClientConn) onSettings(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID != 0 {
		return connError(h2.ErrCodeProtocol, "SETTINGS on a stream")
	}
	if len(p)%6 != 0 || fh.Flags&h2.FlagSettingsAck != 0 && len(p) != 0 {
		return connError(h2.ErrCodeFrameSize, "SETTINGS is not a multiple of 6 bytes long, or its acknowledgement not empty")
	}
	if err := c.charge(SettingsFrames, 2+len(p)/60); err != nil || fh.Flags&h2.FlagSettingsAck != 0 {
		return err
	}
	for ; len(p) > 0; p = p[6:] {
		if err := c.onSetting(h2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	if !c.settled {
		c.settled = true
		close(c.ready)
	}
	c.appendFrame(h2.FrameSettings, h2.FlagSettingsAck, 0)
	return nil
}

func (c *ClientConn) onSetting(id h2.SettingID, v uint32) error {
	switch id {
	case h2.SettingHeaderTableSize:
		c.encoder.resize(v)
	case h2.SettingEnablePush:
		if v != 0 {
			return connError(h2.ErrCodeProtocol, "SETTINGS_ENABLE_PUSH from a server")
		}
	case h2.SettingMaxConcurrentStreams:
		c.most = int(min(v, uint32(c.cfg.MaxStreams)))
	case h2.SettingMaxFrameSize:
		if v < maxFrame || v > 1<<24-1 {
			return connError(h2.ErrCodeProtocol, "SETTINGS_MAX_FRAME_SIZE is out of range")
		}
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

func (c *ClientConn) onPing(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID != 0 {
		return connError(h2.ErrCodeProtocol, "PING on a stream")
	}
	if len(p) != 8 {
		return connError(h2.ErrCodeFrameSize, "PING is not 8 bytes long")
	}
	if fh.Flags&h2.FlagPingAck != 0 && string(p) == string(alivePing[:]) && c.alive.pinged != 0 {
		c.onPong()
		return nil
	}
	if err := c.misuse.chargeAnswer(Pings, timeNow); err != nil {
		return err
	}
	if fh.Flags&h2.FlagPingAck == 0 {
		c.writePing(true, p)
	}
	return nil
}

// onGoAway ends streams that the server will not look at, and lets the others come to their end.
func (c *ClientConn) onGoAway(fh h2.FrameHeader, p []byte) error {
	if fh.StreamID != 0 {
		return connError(h2.ErrCodeProtocol, "GOAWAY on a stream")
	}
	if len(p) < 8 {
		return connError(h2.ErrCodeFrameSize, "GOAWAY is too short")
	}
	last := binary.BigEndian.Uint32(p) & maxWindow
	for id, s := range c.streams {
		if id > last {
			c.remove(s)
			s.fail(ErrRefused)
		}
	}
	c.dismissed = true
	c.leave()
	return c.charge(UnknownFrames, 1)
}

// clientBlock is the HEADERS and CONTINUATION frames that are being read.
type clientBlock struct {
	id     uint32
	end    bool
	stream *ClientStream // nil: decoded for the sake of HPACK's state
	frames int
	bytes  int
	bad    error
	status bool // :status was seen
	other  bool // so was a field that is not a pseudo field
}

func (c *ClientConn) onHeaders(fh h2.FrameHeader, p []byte) error {
	if c.isIdle(fh.StreamID) {
		return connError(h2.ErrCodeProtocol, "HEADERS on a stream that is not open")
	}
	p, err := unpad(fh, p)
	if err != nil {
		return err
	}
	if fh.Flags&h2.FlagHeadersPriority != 0 {
		if len(p) < 5 {
			return connError(h2.ErrCodeFrameSize, "HEADERS is too short for its priority")
		}
		p = p[5:]
	}
	c.heard()
	s := c.streams[fh.StreamID]
	c.block = clientBlock{id: fh.StreamID, end: fh.Flags&h2.FlagHeadersEndStream != 0, stream: s}
	if s == nil {
		if err := c.charge(ClosedStreams, 1); err != nil {
			return err
		}
	} else {
		s.beginHead()
	}
	c.decoder.SetEmitEnabled(s != nil)
	return c.fragment(fh, p)
}

func (c *ClientConn) fragment(fh h2.FrameHeader, p []byte) error {
	b := &c.block
	b.frames++
	b.bytes += len(p)
	if b.frames > 1+continuations || b.bytes > 2*c.cfg.MaxHeaderBytes {
		return &Misuse{Kind: Continuations}
	}
	if b.stream != nil && c.streams[b.id] != b.stream {
		b.stream = nil // it was ended meanwhile, and may serve another exchange by now
	}
	if _, err := c.decoder.Write(p); err != nil {
		if errors.Is(err, hpack.ErrStringLength) {
			return &Misuse{Kind: HeaderFloods}
		}
		return connError(h2.ErrCodeCompression, err.Error())
	}
	if fh.Flags&h2.FlagHeadersEndHeaders == 0 {
		return nil
	}
	if err := c.decoder.Close(); err != nil {
		return connError(h2.ErrCodeCompression, err.Error())
	}
	block := *b
	*b = clientBlock{}
	if block.stream == nil {
		return nil
	}
	if block.bad == nil {
		block.bad = block.stream.endHead(&block)
	}
	if block.bad != nil {
		return c.malformed(block.stream, h2.ErrCodeProtocol, block.bad.Error())
	}
	return nil
}

// onField takes one decoded field of the block.
func (c *ClientConn) onField(f hpack.HeaderField) {
	b := &c.block
	if b.stream == nil || b.bad != nil {
		return
	}
	if b.bad = b.stream.addField(b, f.Name, f.Value); b.bad != nil {
		c.decoder.SetEmitEnabled(false)
	}
}
