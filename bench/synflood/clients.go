// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/lab"
)

// clients are honest ones: each connects, asks for a byte, gets it and goes.
type clients struct {
	l            *lab.Lab
	rate         int // exchanges per second
	mu           sync.Mutex
	good, failed int
	slowest      time.Duration
	first        error
}

// serve answers each connection's byte with one.
func serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var b [1]byte
			if _, err := io.ReadFull(c, b[:]); err == nil {
				_, _ = c.Write(b[:])
			}
		}()
	}
}

// run begins exchanges at the rate until ctx ends, then waits for all.
func (c *clients) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	every := time.NewTicker(time.Second / time.Duration(c.rate))
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			wg.Go(func() { c.note(c.exchange()) })
		}
	}
}

func (c *clients) exchange() (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	began := time.Now()
	conn, err := c.l.DialFrom(lab.Client)(ctx, "tcp4", target.String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	b := [1]byte{'x'}
	_, err = conn.Write(b[:])
	if err == nil {
		err = conn.SetReadDeadline(began.Add(10 * time.Second))
	}
	if err == nil {
		_, err = io.ReadFull(conn, b[:])
	}
	return time.Since(began), err
}

func (c *clients) note(took time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed++
		c.first = errors.Join(c.first, err)
		return
	}
	c.good++
	c.slowest = max(c.slowest, took)
}

func (c *clients) result() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed > 0 || c.good == 0 {
		return fmt.Errorf("%d exchanges of honest clients failed, %d succeeded: %w", c.failed, c.good, c.first)
	}
	return nil
}
