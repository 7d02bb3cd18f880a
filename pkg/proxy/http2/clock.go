// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"errors"
	"fmt"
	"time"

	h2 "golang.org/x/net/http2"
)

// All time limits of a connection are watched by one timer, which looks a few times within the shortest of them. So a
// limit is exceeded by up to half before it acts, and no request touches a timer.

// ErrWriteTimeout is what Serve returns, wrapped, when the client did not take what was written.
var ErrWriteTimeout = errors.New("client does not read")

// ErrHeaderTimeout is what Serve returns, wrapped, when the client did not send the preface, or the rest of a header
// block or control frame, in time.
var ErrHeaderTimeout = errors.New("client does not end what it began")

func (c *Conn) period() time.Duration {
	least := min(c.cfg.Header, c.cfg.Body, c.cfg.Write, c.cfg.Idle, 2*drainWait)
	if c.shortest > 0 {
		least = min(least, c.shortest)
	}
	return max(least/2, time.Millisecond)
}

// restPeriod is used while there is nothing but idleness to watch.
func (c *Conn) restPeriod() time.Duration {
	return max(min(c.cfg.Header, c.cfg.Body, c.cfg.Write)/2, time.Millisecond)
}

// tick is the timer.
func (c *Conn) tick() {
	defer func() {
		if p := recover(); p != nil {
			c.writeFailed(&panicError{p})
			c.nc.Close()
		}
	}()
	if err, over := c.watch(c.now()); over {
		c.end(err)
		if err != nil && !isProtocol(err) {
			c.nc.Close() // a writer may hang in it
		}
	}
	c.runHooks()
}

func isProtocol(err error) bool {
	var ce *ConnError
	return errors.As(err, &ce)
}

// watch looks after all limits at time now, and sets the timer again unless the connection is over.
func (c *Conn) watch(now int64) (err error, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	past := func(since int64, limit time.Duration) bool { return since != 0 && now-since > int64(limit) }
	switch {
	case past(c.wrote.Load(), c.cfg.Write):
		return fmt.Errorf("write connection: %w", ErrWriteTimeout), true
	case c.ending: // the net.Conn has deadlines now
		return nil, false
	case past(c.partial, c.cfg.Header):
		return fmt.Errorf("read connection: %w", ErrHeaderTimeout), true
	case !c.settings.acked && past(c.began, c.cfg.Header):
		return connError(h2.ErrCodeSettingsTimeout, "SETTINGS were not acknowledged"), true
	case c.running == 0 && past(c.idleAt, c.cfg.Idle):
		return nil, true
	case c.draining == drainSoon && past(c.drainAt, c.drainIn):
		c.drainLast()
		if c.finished() {
			return nil, true
		}
	}
	for _, s := range c.streams {
		c.watchStream(s, past)
	}
	next := c.period()
	if c.running == 0 && c.draining == drainNot && c.settings.acked {
		left := time.Duration(c.idleAt+int64(c.cfg.Idle)-now) + time.Millisecond
		next = max(min(c.restPeriod(), left), time.Millisecond)
	}
	c.timer.Reset(next)
	return nil, false
}

func (c *Conn) watchStream(s *Stream, past func(int64, time.Duration) bool) {
	limit := c.cfg.Body
	if s.bodyTime > 0 {
		limit = s.bodyTime
	}
	if past(s.readSince, limit) && s.readErr == nil {
		s.readErr = fmt.Errorf("read body: %w", ErrTimeout)
		s.readable.Broadcast()
	}
	if past(s.writeSince, c.cfg.Write) {
		c.writeReset(s.id, h2.ErrCodeCancel)
		c.remove(s, closedByUs)
		c.abort(s, fmt.Errorf("write body: %w", ErrTimeout))
	}
}
