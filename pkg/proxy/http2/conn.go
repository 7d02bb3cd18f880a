// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"
)

// Conn is the server side of one HTTP/2 connection. It is made by NewConn and lives while Serve runs.
type Conn struct {
	wire
	cfg     Config
	handler Handler
	ownPool bool
	run     func(func())
	turn    int // bytes since others had theirs; the reader's

	// All that follows is guarded by the wire's lock.

	// Input.
	window     int64  // what the client may send ahead; widens to Config.ConnWindow
	recvWindow int64  // of it, what the client may still send
	unacked    int64  // read or discarded, not yet given back
	lastID     uint32 // the highest stream the client began
	served     uint32 // the highest that we took up
	closed     closedStreams
	block      headerBlock
	settings   settingsState
	partial    int64 // since when a frame or header block is incomplete, 0 when none is

	streams map[uint32]*Stream // open by RFC 9113
	running int                // exchanges whose handler has not returned
	idle    sync.Cond          // signalled when running falls to 0
	idleAt  int64              // when running fell to 0

	// What is to be done by the reader when it has let go of the lock.
	starting *Stream   // its handler is to be started
	refused  *Stream   // Config.Refused is to be told of it
	hooks    []*Stream // their cancel hooks are to be called

	misuse   budget
	timer    *time.Timer
	shortest time.Duration // that any stream set in place of Config.Body; 0: none
	draining drainStep
	drainAt  int64
	drainIn  time.Duration // after drainAt, the next step
}

type settingsState struct {
	received bool // the client's first SETTINGS
	acked    bool // our SETTINGS
}

// drainStep is how far Shutdown has come. Streams that the client began before it knew are still served: it is told
// first that an end is near, and which stream was the last only when it has answered a PING.
type drainStep int

const (
	drainNot  drainStep = iota
	drainSoon           // GOAWAY without a last stream, and PING, are sent
	drainLast           // GOAWAY with the last stream is sent; the connection ends with its last exchange
)

// drainPing marks the PING whose answer ends drainSoon.
var drainPing = [8]byte{'x', 'g', 'w', 'd', 'r', 'a', 'i', 'n'}

// drainWait bounds the wait for that answer, and drainGrace is the wait after it: clients
// answer on one thread and may be about to send, on another, a stream that they opened before.
const (
	drainWait  = 2 * time.Second
	drainGrace = 250 * time.Millisecond
)

// NewConn makes a connection from c, on which nothing was read or written yet (after a TLS handshake). Serve must be
// called, also to release what the connection holds.
func NewConn(c net.Conn, cfg Config, h Handler) *Conn {
	cfg = cfg.withDefaults()
	conn := &Conn{
		cfg: cfg, handler: h, run: cfg.Run,
		window:  int64(min(cfg.ConnWindow, firstConnWindow)),
		streams: make(map[uint32]*Stream),
	}
	conn.recvWindow = conn.window
	pool := cfg.Pool
	if pool == nil {
		pool, conn.ownPool = NewPool(), true
	}
	if conn.run == nil {
		conn.run = pool.Run
	}
	conn.wire.init(c, pool, cfg.OutputBytes, 2*cfg.MaxHeaderBytes, conn.onField, conn.writeFailed)
	conn.idle.L = &conn.mu
	conn.idleAt, conn.partial = conn.began, conn.began
	conn.misuse = budget{left: misuseBudget, filled: conn.base}
	conn.mu.Lock()
	conn.writeSettings() // the flusher begins at once
	conn.mu.Unlock()
	return conn
}

// LastActive is when the client last sent a byte, in unix nanoseconds.
func (c *Conn) LastActive() int64 { return c.lastActive.Load() }

// Serve serves the connection and blocks until it is over and all its handlers have returned. It returns nil when it
// ended as it should (the client closed it with no stream open, it was idle, Shutdown), and otherwise the cause: a
// *Misuse, a *ConnError, ErrClosed, or an error of the net.Conn. The net.Conn is closed by then.
func (c *Conn) Serve() error {
	c.mu.Lock()
	c.timer = time.AfterFunc(c.period(), c.tick)
	c.mu.Unlock()

	err := c.readLoop()
	c.end(err)
	c.runHooks()
	if c.cfg.Ending != nil {
		c.cfg.Ending(c.cause(nil))
	}
	c.awaitFlush()
	c.linger(err)
	c.nc.Close()

	c.mu.Lock()
	for c.running > 0 {
		c.idle.Wait()
	}
	c.timer.Stop()
	err = c.err
	c.mu.Unlock()
	c.in.release()
	if c.ownPool {
		c.pool.Close()
	}
	return err
}

// writeFailed ends a connection that cannot be written to.
func (c *Conn) writeFailed(err error) {
	var p *panicError
	if errors.As(err, &p) && c.cfg.Panic != nil {
		c.cfg.Panic(p.value)
	}
	c.end(err)
	c.runHooks()
}

// IdleSince is when the last exchange was over, or the connection began; zero while there is one under way.
func (c *Conn) IdleSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending || c.running > 0 || len(c.streams) > 0 {
		return time.Time{}
	}
	return c.base.Add(time.Duration(c.idleAt - c.began))
}

// Shutdown asks the client to open no more streams and lets those that are open come to their end. It returns at once;
// Serve returns when the last exchange is over. Use Close to end the wait.
func (c *Conn) Shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending || c.draining != drainNot {
		return
	}
	c.draining = drainSoon
	c.drainAt, c.drainIn = c.now(), drainWait
	c.writeGoAway(maxWindow, h2.ErrCodeNo)
	c.writePing(false, drainPing[:])
	if c.timer != nil {
		c.timer.Reset(c.period())
	}
}

// Close ends the connection at once. Handlers see ErrGone; Serve returns ErrClosed.
func (c *Conn) Close() error {
	c.end(ErrClosed)
	err := c.nc.Close()
	c.runHooks()
	return err
}

// end makes the connection come to its end for the given cause, the first of which counts, and may be called by any
// goroutine without the lock. Cancel hooks are left to be run.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(err)
}

func (c *Conn) endLocked(err error) {
	if c.ending {
		return
	}
	c.ending = true
	c.err = err
	var ce *ConnError
	var mu *Misuse
	switch {
	case errors.As(err, &ce):
		c.writeGoAway(c.served, h2.ErrCode(ce.Code))
	case errors.As(err, &mu):
		c.writeGoAway(c.served, h2.ErrCodeEnhanceYourCalm)
	case err == nil && c.draining != drainLast:
		c.writeGoAway(c.served, h2.ErrCodeNo)
	}
	for _, s := range c.streams {
		s.open = false
		c.abort(s, ErrGone)
	}
	clear(c.streams)
	// The reader may wait for the client: wake it. What is left to write must not keep us long, other than the end of
	// the last response of a connection that ends well.
	now := time.Now()
	limit := c.cfg.Write
	if err != nil {
		limit = time.Second
	}
	if c.nc.SetReadDeadline(now) != nil || c.nc.SetWriteDeadline(now.Add(limit)) != nil {
		c.nc.Close() // which wakes them as well
	}
}

// linger lets the client read our GOAWAY: closing a socket with unread input makes the kernel send a reset, which can
// destroy what was sent before.
func (c *Conn) linger(err error) {
	var ce *ConnError
	var mu *Misuse
	if err != nil && !errors.As(err, &ce) && !errors.As(err, &mu) {
		return
	}
	if w, ok := c.nc.(interface{ CloseWrite() error }); ok && w.CloseWrite() != nil {
		return
	}
	if c.nc.SetReadDeadline(time.Now().Add(300*time.Millisecond)) != nil {
		return
	}
	var scrap [512]byte
	for left := 64 << 10; left > 0; {
		n, err := c.nc.Read(scrap[:])
		if err != nil {
			return
		}
		left -= n
	}
}

// readLoop reads frames until the connection ends, and says why it did.
func (c *Conn) readLoop() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read connection: panic: %v", p)
			if c.cfg.Panic != nil {
				c.cfg.Panic(p)
			}
		}
	}()
	if err := c.readPreface(); err != nil {
		return c.cause(err)
	}
	for {
		if err := c.readFrame(); err != nil {
			return c.cause(err)
		}
	}
}

// cause finds what a failed read means.
func (c *Conn) cause(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return c.err
	}
	switch {
	case errors.Is(err, errDone):
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		if c.running == 0 && c.partial == 0 {
			return nil
		}
		return fmt.Errorf("read connection: client closed it with %d streams open: %w", len(c.streams), io.ErrUnexpectedEOF)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("read connection: %w", err)
	}
	return err
}

// runHooks calls the cancel hooks that are due. The caller must not hold the lock.
func (c *Conn) runHooks() {
	c.mu.Lock()
	for len(c.hooks) > 0 {
		s := c.hooks[len(c.hooks)-1]
		c.hooks = c.hooks[:len(c.hooks)-1]
		cancel := s.cancel
		s.cancel = nil
		c.mu.Unlock()
		c.runHook(cancel)
		c.mu.Lock()
		s.cancelling = false
		s.calm.Broadcast()
	}
	c.mu.Unlock()
}

func (c *Conn) runHook(cancel func()) {
	defer func() {
		if p := recover(); p != nil && c.cfg.Panic != nil {
			c.cfg.Panic(p)
		}
	}()
	if cancel != nil {
		cancel()
	}
}

// errDone ends the read loop of a connection that has nothing left to do.
var errDone = errors.New("connection is done")
