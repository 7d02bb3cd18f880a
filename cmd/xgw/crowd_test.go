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
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// crowd is many users, each with a connection (or a share of one, in HTTP/2) and a time at which it asks,
// whether the last reply took long or not. It costs less than what it asks, so that its own work is not taken for the
// gateway's: requests are made once, and of replies no more is looked at than is asserted.
type crowd struct {
	links  []link
	waits  []time.Time // each user, by when it was told to
	obey   bool        // and does so
	worker int         // whose work is between a request and its reply
}

// link is a connection; ask may be called by several users in HTTP/2, and returns when the reply has ended.
type link interface {
	ask() answer
	close()
}

type answer struct {
	status int
	wait   time.Duration // by Retry-After
	at     time.Time
	work   time.Duration // of the worker, when the reply had been read
	err    error
}

// seen is what became of a crowd's requests.
type seen struct {
	mu      sync.Mutex
	sent    int
	good    int
	served  []time.Duration
	refused []time.Duration // after so much work of the worker; of those sent when it was not too early
	early   int             // refusals of those that did not wait as they were told
	waits   time.Duration   // that all refused were told
	failed  []string
	lastBad time.Time
}

// h2Links is how many connections a crowd shares in HTTP/2.
const h2Links = 48

func newCrowd(t *testing.T, address, path string, body []byte, worker, users int, h2, obey bool) *crowd {
	t.Helper()
	c := &crowd{worker: worker, waits: make([]time.Time, users), obey: obey}
	t.Cleanup(func() {
		for _, l := range c.links {
			if l != nil {
				l.close()
			}
		}
	})
	n := users
	if h2 {
		n = h2Links
	}
	c.links = make([]link, n)
	var all sync.WaitGroup
	const atOnce = 8
	failed := make(chan error, atOnce)
	for part := range atOnce {
		all.Go(func() {
			for i := part; i < n; i += atOnce {
				l, err := newLink(address, path, body, worker, h2)
				if err != nil {
					failed <- err
					return
				}
				c.links[i] = l
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Fatal(err)
	}
	return c
}

func newLink(address, path string, body []byte, worker int, h2 bool) (link, error) {
	conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	if h2 {
		conf.NextProtos = []string{"h2"}
	}
	conn, err := tls.Dial("tcp", address, conf)
	if err != nil {
		return nil, err
	}
	if h2 {
		return newLink2(conn, address, path, body, worker)
	}
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, address)
	if body != nil {
		request = append(fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", path, address, len(body)), body...)
	}
	return &link1{conn: conn, in: bufio.NewReaderSize(conn, 4<<10), request: request, worker: worker}, nil
}

// ask offers rate requests a second for a time; rate 0: as fast as replies come. Replies after
// that time are not counted: of those, nothing new comes any more.
func (c *crowd) ask(rate float64, d time.Duration) *seen {
	s := &seen{}
	end := time.Now().Add(d)
	var all sync.WaitGroup
	for u := range c.waits {
		all.Go(func() {
			var every time.Duration
			if rate > 0 {
				every = time.Duration(float64(len(c.waits)) / rate * float64(time.Second))
			}
			next := time.Now().Add(every * time.Duration(u) / time.Duration(len(c.waits)))
			for {
				for c.obey && next.Before(c.waits[u]) { // at the next of its own times
					next = next.Add(max(every, time.Millisecond))
				}
				if !next.Before(end) {
					return
				}
				time.Sleep(time.Until(next))
				sent, before := time.Now(), workOf(c.worker)
				a := c.links[u%len(c.links)].ask()
				if a.err != nil || a.at.Before(end) {
					s.note(a, a.work-before, sent.Before(c.waits[u]))
				}
				if a.status == http.StatusServiceUnavailable {
					c.waits[u] = a.at.Add(a.wait)
				}
				next = next.Add(every/2 + rand.N(every+1)) // or who waited together would ask together ever after
				if now := time.Now(); next.Before(now) {
					next = now
				}
			}
		})
	}
	all.Wait()
	return s
}

func (s *seen) note(a answer, took time.Duration, early bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent++
	switch {
	case a.err != nil:
		s.failed = append(s.failed, a.err.Error())
	case a.status == http.StatusOK:
		s.good++
		s.served = append(s.served, took)
		return
	case a.status != http.StatusServiceUnavailable || a.wait < time.Second:
		s.failed = append(s.failed, fmt.Sprintf("status %d, to wait %v", a.status, a.wait))
	case early:
		s.early++
	default:
		s.refused = append(s.refused, took)
		s.waits += a.wait
	}
	s.lastBad = a.at
}

// askTime is more than a reply takes, whatever the machine does: whoever never gets one must not wait for ever.
const askTime = time.Minute

// link1 speaks HTTP/1.1.
type link1 struct {
	conn    *tls.Conn
	in      *bufio.Reader
	request []byte
	worker  int
}

func (l *link1) close() { l.conn.Close() }

func (l *link1) ask() (a answer) {
	if a.err = l.conn.SetDeadline(time.Now().Add(askTime)); a.err != nil {
		return a
	}
	if _, a.err = l.conn.Write(l.request); a.err != nil {
		return a
	}
	r, err := http.ReadResponse(l.in, nil)
	if err != nil {
		return answer{err: err}
	}
	_, a.err = io.Copy(io.Discard, r.Body)
	a.status, a.wait = r.StatusCode, seconds(r.Header.Get("Retry-After"))
	a.at, a.work = time.Now(), workOf(l.worker)
	return a
}

func seconds(text string) time.Duration {
	n, _ := strconv.Atoi(text) // what is none is too short
	return time.Duration(n) * time.Second
}

// link2 speaks HTTP/2.
type link2 struct {
	conn   *tls.Conn
	worker int
	block  []byte // the request's header
	body   []byte

	mu      sync.Mutex
	frames  *http2.Framer
	next    uint32
	waiting map[uint32]chan answer
	window  int       // for bodies
	wider   sync.Cond // it is, or somebody waits no more
	failed  error
}

func newLink2(conn *tls.Conn, address, path string, body []byte, worker int) (*link2, error) {
	l := &link2{conn: conn, worker: worker, body: body, frames: http2.NewFramer(conn, bufio.NewReaderSize(conn, 20<<10)), next: 1, waiting: map[uint32]chan answer{}, window: 65_535}
	l.wider.L = &l.mu
	l.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	l.frames.SetReuseFrames()
	method := "GET"
	if body != nil {
		method = "POST"
	}
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":path", path}, {":authority", address}} {
		if err := e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil { // never indexed: the same bytes serve again
			return nil, err
		}
	}
	l.block = block.Bytes()
	_, err := conn.Write([]byte(http2.ClientPreface))
	err = errors.Join(err, l.frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24}), l.frames.WriteWindowUpdate(0, 1<<30))
	go l.read()
	return l, err
}

func (l *link2) close() { l.conn.Close() }

func (l *link2) ask() answer {
	done := make(chan answer, 1)
	if err := l.send(done); err != nil {
		return answer{err: err}
	}
	select {
	case a := <-done:
		return a
	case <-time.After(askTime):
		return answer{err: errors.New("no reply")}
	}
}

func (l *link2) send(done chan answer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	id := l.next
	l.next += 2
	l.waiting[id] = done
	err := l.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: l.block, EndHeaders: true, EndStream: l.body == nil})
	if err != nil || l.body == nil {
		return err
	}
	for l.window < len(l.body) && l.waiting[id] != nil {
		l.wider.Wait()
	}
	if l.waiting[id] == nil {
		return nil // answered before its body went
	}
	l.window -= len(l.body)
	return l.frames.WriteData(id, true, l.body)
}

// read takes replies until the connection ends.
func (l *link2) read() {
	open := map[uint32]answer{} // whose header has come
	credit := 0
	for {
		f, err := l.frames.ReadFrame()
		l.mu.Lock()
		if err == nil {
			err = l.take(f, open, &credit)
		}
		if err != nil {
			l.failed = err
			for id := range l.waiting {
				l.end(id, answer{err: err})
			}
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
	}
}

func (l *link2) take(f http2.Frame, open map[uint32]answer, credit *int) error {
	id := f.Header().StreamID
	ended := false
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return l.frames.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return l.frames.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		if id == 0 {
			l.window += int(f.Increment)
			l.wider.Broadcast()
		}
	case *http2.MetaHeadersFrame:
		var a answer
		a.status, _ = strconv.Atoi(f.PseudoValue("status"))
		for _, field := range f.RegularFields() {
			if field.Name == "retry-after" {
				a.wait = seconds(field.Value)
			}
		}
		open[id], ended = a, f.StreamEnded()
	case *http2.DataFrame:
		ended = f.StreamEnded()
		if *credit += len(f.Data()); *credit >= 1<<24 {
			if err := l.frames.WriteWindowUpdate(0, uint32(*credit)); err != nil {
				return err
			}
			*credit = 0
		}
	case *http2.RSTStreamFrame:
		l.end(id, answer{err: fmt.Errorf("stream reset: %v", f.ErrCode)}) // unless its reply has ended
	case *http2.GoAwayFrame:
		return fmt.Errorf("told to go away: %v", f.ErrCode)
	}
	if ended {
		a := open[id]
		delete(open, id)
		a.at, a.work = time.Now(), workOf(l.worker)
		l.end(id, a)
	}
	return nil
}

func (l *link2) end(id uint32, a answer) {
	if done := l.waiting[id]; done != nil {
		delete(l.waiting, id)
		done <- a
		l.wider.Broadcast()
	}
}

// workOf is the time that a process has had of the CPUs, by its own clock; 0 when it is gone.
func workOf(pid int) time.Duration {
	const sched = 2 // CPUCLOCK_SCHED: see clock_getcpuclockid(3)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
