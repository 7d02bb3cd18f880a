// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// Event is something that happened to a gateway.
type Event struct {
	ID    uint64    `json:"id"` // from 1, without gaps
	Time  time.Time `json:"time"`
	Kind  string    `json:"kind"`  // one of EventKinds
	About string    `json:"about"` // the generation, source, server or worker
	What  string    `json:"what"`
	Note  string    `json:"note,omitempty"` // why, or of what
}

// EventKinds are all.
var EventKinds = []string{"generation", "verdict", "server", "worker", "drain", "log_level"}

// Bounds of those who listen.
const (
	maxListeners  = 16  // at once
	maxOfOne      = 6   // of them of one token, or of the control socket
	listenerQueue = 128 // events that wait for one
	// listenerTime is how long a listener may take for what it is sent, and listenerBeat how long
	// it hears nothing at most.
	listenerTime = 10 * time.Second
	listenerBeat = 15 * time.Second
)

// ErrListeners: so many listen that there is no room.
var ErrListeners = errors.New("too many listen to events already")

// Events hands what happens to all who listen. Nobody who tells of an event waits for one who
// listens: who does not take them in time is dropped, and counted.
type Events struct {
	mu        sync.Mutex
	last      uint64
	listeners map[*listening]struct{}
	dropped   uint64
}

type listening struct {
	who    string
	events chan Event // closed when it is dropped
}

// NewEvents makes one that nobody listens to yet.
func NewEvents() *Events { return &Events{listeners: map[*listening]struct{}{}} }

// Tell hands an event on; its ID and Time are filled in. It is safe on a nil Events.
func (e *Events) Tell(v Event) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	v.ID, v.Time = e.last, time.Now()
	for l := range e.listeners {
		select {
		case l.events <- v:
		default:
			e.dropped++
			delete(e.listeners, l)
			close(l.events)
		}
	}
}

// Counts are how many listen, and how many were dropped for being slow.
func (e *Events) Counts() (listeners int, dropped uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.listeners), e.dropped
}

// listen is for one more, who is a token's ID, or empty on the control socket.
func (e *Events) listen(who string) (*listening, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.listeners) >= maxListeners {
		return nil, fmt.Errorf("%w: %d", ErrListeners, maxListeners)
	}
	same := 0
	for l := range e.listeners {
		if l.who == who {
			same++
		}
	}
	if same >= maxOfOne {
		return nil, fmt.Errorf("%w: %d of them you", ErrListeners, maxOfOne)
	}
	l := &listening{who, make(chan Event, listenerQueue)}
	e.listeners[l] = struct{}{}
	return l, nil
}

func (e *Events) leave(l *listening) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.listeners, l)
}

// events sends them as they happen, as text/event-stream (HTML Living Standard, 9.2).
func (a *api) events(w http.ResponseWriter, r *http.Request) {
	hub := a.control.Events()
	who, _ := r.Context().Value(whoKey{}).(Token) // none on the control socket
	l, err := hub.listen(who.ID)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	defer hub.leave(l)
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	c := http.NewResponseController(w)
	still, _ := r.Context().Value(stillKey{}).(func() bool) // nil on the control socket
	beat := time.NewTicker(listenerBeat)
	defer beat.Stop()
	text := []byte(": xgw\n\n")
	for {
		_ = c.SetReadDeadline(time.Time{}) // those of one request do not hold here
		err := errors.Join(c.SetWriteDeadline(time.Now().Add(listenerTime)), writeAll(w, text), c.Flush())
		if err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
			if still != nil && !still() {
				return // the token was revoked
			}
			text = []byte(":\n\n")
		case v, ok := <-l.events:
			if !ok {
				_ = writeAll(w, []byte(": dropped: events came faster than they were taken\n\n"))
				return
			}
			if text, err = appendEvent(text[:0], v); err != nil {
				return
			}
		}
	}
}

func writeAll(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

func appendEvent(b []byte, v Event) ([]byte, error) {
	text, err := json.Marshal(v) // on one line, whatever it holds
	return fmt.Appendf(b, "id: %d\nevent: %s\ndata: %s\n\n", v.ID, v.Kind, text), err
}

// readEvents reads what appendEvent has written.
func readEvents(r io.Reader, tell func(Event)) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		text, is := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !is {
			continue
		}
		var v Event
		if err := json.Unmarshal(text, &v); err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		tell(v)
	}
	return lines.Err()
}
