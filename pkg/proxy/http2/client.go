// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"time"

	h2 "golang.org/x/net/http2"
)

// ClientConn is the client side of a connection: to a server, for requests that are passed on. Streams of many exchanges
// share it. One goroutine reads it, in Serve, another one writes what streams append. A stream that is not read from
// stalls no other: the connection's window is given back as DATA comes in, and what is kept is bounded by the window of
// each stream.
type ClientConn struct {
	wire
	cfg ClientConfig

	// All that follows is guarded by the wire's lock.
	streams    map[uint32]*ClientStream // open by RFC 9113
	lastID     uint32                   // the highest stream that was opened
	most       int                      // streams at once: the server's limit, or ours
	places     int                      // of those that are taken: see Reserve
	recvWindow int64                    // what the server may still send
	unacked    int64                    // read, not yet given back
	block      clientBlock
	settled    bool          // the server's SETTINGS are here
	ready      chan struct{} // closed then, or at the end
	leaving    bool          // no more places: GOAWAY, Shutdown, or no more numbers
	dismissed  bool          // the server has sent GOAWAY: it would not look at another stream
	blamed     bool
	misuse     budget
	alive      liveness
}

// ClientConfig holds the bounds of one connection. The zero value of each field means its default.
type ClientConfig struct {
	MaxStreams     int           // at once, if the server allows as many; default 256
	MaxHeaderBytes int           // of a reply: names, values and 32 bytes per field, trailers included; default 64 KiB
	MaxFields      int           // the same in fields; default 256
	StreamWindow   int           // bytes of body that are kept for a stream; default and least 64 KiB
	OutputBytes    int           // bytes that may wait to be written; default 256 KiB
	Write          time.Duration // without progress of a write: the connection ends; default 30 s
	Pool           *Pool         // of the worker
	Panic          func(any)     // is told what the reader panicked with
}

// clientWindow is the connection's window. It bounds nothing but what is under way.
const clientWindow = 4 << 20

// ErrRefused is why a stream ended that the server has not looked at, and says so: it may be repeated whatever it was.
var ErrRefused = errors.New("stream was refused")

// errSilent ends a connection whose server does not answer a PING.
var errSilent = errors.New("server does not answer")

// NewClientConn makes a connection from nc, on which nothing was read or written yet (after a TLS handshake). Serve must
// be called, also to release what the connection holds.
func NewClientConn(nc net.Conn, cfg ClientConfig) *ClientConn {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&cfg.MaxStreams, 256)
	def(&cfg.MaxHeaderBytes, 64<<10)
	def(&cfg.MaxFields, 256)
	def(&cfg.OutputBytes, 256<<10)
	cfg.StreamWindow = min(max(cfg.StreamWindow, 64<<10), maxWindow)
	if cfg.Write <= 0 {
		cfg.Write = 30 * time.Second
	}
	c := &ClientConn{
		cfg: cfg, streams: map[uint32]*ClientStream{}, most: cfg.MaxStreams, recvWindow: clientWindow, ready: make(chan struct{}),
	}
	c.wire.init(nc, cfg.Pool, cfg.OutputBytes, cfg.MaxHeaderBytes, c.onField, c.end)
	c.misuse = budget{left: misuseBudget, filled: c.base}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = c.pool.output()
	c.out.b = append(c.out.b, h2.ClientPreface...)
	settings := [...]h2.Setting{
		{ID: h2.SettingEnablePush, Val: 0},
		{ID: h2.SettingInitialWindowSize, Val: uint32(cfg.StreamWindow)},
		{ID: h2.SettingMaxHeaderListSize, Val: uint32(cfg.MaxHeaderBytes)},
	}
	c.appendHeader(h2.FrameSettings, 0, 0, 6*len(settings))
	for _, s := range settings {
		c.out.b = binary.BigEndian.AppendUint16(c.out.b, uint16(s.ID))
		c.out.b = binary.BigEndian.AppendUint32(c.out.b, s.Val)
	}
	c.writeWindowUpdate(0, clientWindow-defaultWindow)
	return c
}

// Serve reads the connection until it is over and says why: nil when it ended as it should. The net.Conn is closed then.
func (c *ClientConn) Serve() error {
	c.end(c.readLoop())
	c.awaitFlush()
	c.nc.Close()
	c.in.release()
	return c.err
}

func (c *ClientConn) readLoop() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read connection: panic: %v", p)
			if c.cfg.Panic != nil {
				c.cfg.Panic(p)
			}
		}
	}()
	for {
		fh, err := c.framer.ReadFrameHeader()
		if err != nil {
			return c.framerError(err)
		}
		if err := c.in.need(int(fh.Length)); err != nil {
			return err
		}
		if err := c.handle(fh, c.in.next(int(fh.Length))); err != nil {
			return err
		}
	}
}

func (c *ClientConn) handle(fh h2.FrameHeader, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return errDone
	}
	err := c.dispatch(fh, payload)
	if err == nil && c.waiting() > c.cfg.OutputBytes+controlBytes {
		err = &Misuse{Kind: ControlQueue}
	}
	return err
}

// Ready waits until the server's SETTINGS are here: it speaks HTTP/2, and how many streams it takes is known.
func (c *ClientConn) Ready(by time.Time) error {
	t := time.NewTimer(time.Until(by))
	defer t.Stop()
	select {
	case <-c.ready:
	case <-t.C:
		return &net.OpError{Op: "read", Net: "tcp", Err: errNoSettings}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.settled {
		return fmt.Errorf("server does not speak HTTP/2: %w", c.err)
	}
	return nil
}

// noSettings is a timeout by the rules of package net.
type noSettings struct{}

func (noSettings) Error() string { return "no SETTINGS from the server in time: does it speak HTTP/2?" }
func (noSettings) Timeout() bool { return true }

var errNoSettings = noSettings{}

// Reserve takes a place for a stream, which Finish gives back; false: there is none, or there will be no more.
func (c *ClientConn) Reserve() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending || c.leaving || !c.settled || c.places+c.alive.held >= c.most {
		return false
	}
	c.places++
	return true
}

// Leaving says that the connection takes no more streams, now and later.
func (c *ClientConn) Leaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving || c.ending
}

// Most is how many streams there may be at once.
func (c *ClientConn) Most() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// Blame is true the first time: of all streams that a lost connection takes with it, one tells of it.
func (c *ClientConn) Blame() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.blamed
	c.blamed = true
	return first
}

// Shutdown takes no more streams; the connection ends with the last one.
func (c *ClientConn) Shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
}

// Close ends the connection at once.
func (c *ClientConn) Close() {
	c.end(ErrClosed)
	c.nc.Close()
}

// leave makes the connection end with its last stream. The lock is held.
func (c *ClientConn) leave() {
	c.leaving = true
	if c.places == 0 {
		c.endLocked(nil)
	}
}

func (c *ClientConn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(err)
}

// endLocked makes the connection come to its end for the given cause, the first of which counts.
func (c *ClientConn) endLocked(err error) {
	if c.ending {
		return
	}
	c.ending = true
	if errors.Is(err, errDone) || errors.Is(err, io.EOF) && len(c.streams) == 0 && c.settled {
		err = nil
	}
	c.err = err
	var ce *ConnError
	var mu *Misuse
	switch {
	case errors.As(err, &ce):
		c.writeGoAway(0, h2.ErrCode(ce.Code))
	case errors.As(err, &mu):
		c.writeGoAway(0, h2.ErrCodeEnhanceYourCalm)
	case err == nil:
		c.writeGoAway(0, h2.ErrCodeNo)
	}
	lost := fmt.Errorf("%w: %w", ErrGone, err)
	if err == nil {
		lost = ErrGone
	}
	for _, s := range c.streams {
		s.open = false
		s.fail(lost)
	}
	clear(c.streams)
	if !c.settled {
		close(c.ready)
	}
	now := time.Now() // the reader waits for the server: wake it
	if c.nc.SetReadDeadline(now) != nil || c.nc.SetWriteDeadline(now.Add(time.Second)) != nil {
		c.nc.Close()
	}
}

// liveness finds out whether the server is still there. A PING is sent with a stream's cancellation, and when streams are
// open and the server has long been silent; no more often than servers that count PINGs put up with: one, until there
// are HEADERS or DATA again.
type liveness struct {
	held    int   // cancelled streams that the server may not know of yet: they keep their places
	asked   int   // of them, those that the PING under way was sent after
	pinged  int64 // when that was sent; 0: none is under way
	blocked bool  // a PING was answered, and neither HEADERS nor DATA came since
	next    int64 // no PING for silence before this
	heldAt  int64
}

const (
	pingAfter  = 15 * time.Second // of silence
	pingWait   = 5 * time.Second  // for its answer
	pingRarely = 5 * time.Minute  // between those for silence, when nothing else comes
	heldMost   = time.Second      // a cancelled stream keeps its place when no PING may be sent
)

var alivePing = [8]byte{'x', 'g', 'w', 'a', 'l', 'i', 'v', 'e'}

func (c *ClientConn) ping() {
	c.alive.pinged, c.alive.asked = c.now(), c.alive.held
	c.writePing(false, alivePing[:])
}

// cancelled holds a stream's place until the server can be taken to know that it is over: a client that begins requests
// and cancels them, again and again, costs the server no more at once than its limit of streams. The lock is held.
func (c *ClientConn) cancelled() {
	a := &c.alive
	a.held++
	a.heldAt = c.now()
	c.misuse.useful(4) // of what is under way for the stream, frames still come
	if a.pinged == 0 && !a.blocked {
		c.ping()
	}
}

func (c *ClientConn) onPong() {
	a := &c.alive
	if a.pinged == 0 {
		return
	}
	a.held = max(a.held-a.asked, 0)
	a.pinged, a.asked, a.blocked = 0, 0, true
}

// heard notes HEADERS or DATA.
func (c *ClientConn) heard() {
	a := &c.alive
	a.blocked, a.next = false, 0
	if a.held > 0 && a.pinged == 0 {
		c.ping()
	}
}

// Tick looks after the time. It is to be called a few times a second.
func (c *ClientConn) Tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	past := func(since int64, limit time.Duration) bool { return since != 0 && now-since > int64(limit) }
	a := &c.alive
	quiet := c.lastActive.Load()
	switch {
	case past(c.wrote.Load(), c.cfg.Write):
		c.endLocked(fmt.Errorf("write connection: %w", ErrWriteTimeout))
		c.nc.Close() // the writer hangs in it
	case c.ending:
	case past(a.pinged, pingWait) && past(quiet, pingWait):
		c.endLocked(errSilent)
	case a.pinged == 0 && a.held > 0 && past(a.heldAt, heldMost):
		a.held = 0
	case a.pinged == 0 && len(c.streams) > 0 && past(quiet, pingAfter) && now > a.next:
		a.next = now + int64(pingRarely)
		c.ping()
	}
}
