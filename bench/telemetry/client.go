// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

const connections = 16

// load makes requests over connections that it keeps, each connection by itself, of all routes in turn.
type load struct {
	conns []*tls.Conn
}

func dialLoad(address string) (*load, error) {
	l := new(load)
	for range connections {
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.conns = append(l.conns, c)
	}
	return l, nil
}

func (l *load) Close() error {
	var err error
	for _, c := range l.conns {
		err = errors.Join(err, c.Close())
	}
	return err
}

// run makes requests for so many windows of a second, with pauses of half to one and a half of the
// one given between those of a connection, and counts how long they took by the window in which they began: from when
// one was due, if the one before was late, else from when it was sent. A pause of 0 is as fast as it goes.
func (l *load) run(windows int, pause time.Duration) ([]times, error) {
	all := make([]times, windows)
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	for i, c := range l.conns {
		wg.Go(func() {
			own := make([]times, windows)
			err := exchanges(c, i, began, own, pause)
			mu.Lock()
			defer mu.Unlock()
			for w := range own {
				all[w].add(&own[w])
			}
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	return all, failed
}

// exchanges are those of one connection.
func exchanges(c *tls.Conn, number int, began time.Time, windows []times, pause time.Duration) error {
	end := began.Add(time.Duration(len(windows)) * time.Second)
	if err := c.SetDeadline(end.Add(20 * time.Second)); err != nil {
		return err
	}
	request, answer, size := []byte(nil), make([]byte, 4096), 0
	due := began.Add(pause * time.Duration(number) / connections)
	for n := number * routes / connections; ; n++ {
		from := time.Now()
		if wait := due.Sub(from); wait > 0 {
			time.Sleep(wait)
			from = time.Now()
		} else if pause > 0 {
			from = due
		}
		if !from.Before(end) {
			return nil
		}
		request = fmt.Appendf(request[:0], "GET /r%d/ HTTP/1.1\r\nHost: bench\r\n\r\n", n%routes)
		if _, err := c.Write(request); err != nil {
			return err
		}
		var err error
		if size, err = readAnswer(c, answer, size); err != nil {
			return err
		}
		windows[from.Sub(began)/time.Second].note(time.Since(from))
		due = due.Add(pause/2 + rand.N(pause+1))
	}
}

// readAnswer reads an answer of the size that the one before had; 0: there was none.
func readAnswer(c io.Reader, b []byte, size int) (int, error) {
	for n := 0; ; {
		m, err := c.Read(b[n:])
		if n += m; err != nil {
			return 0, err
		}
		if size == 0 {
			if size, err = answerSize(b[:n]); err != nil {
				return 0, err
			}
		}
		if n == size && bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) {
			return size, nil
		}
		if n >= size {
			return 0, fmt.Errorf("answer of %d bytes, want %d: %q", n, size, b[:n])
		}
	}
}

// answerSize is what head and body have together.
func answerSize(b []byte) (int, error) {
	r := bufio.NewReader(bytes.NewReader(b))
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	if answer.ContentLength != smallBody {
		return 0, fmt.Errorf("a body of %d bytes, want %d", answer.ContentLength, smallBody)
	}
	return len(b) - r.Buffered() + smallBody, nil
}
