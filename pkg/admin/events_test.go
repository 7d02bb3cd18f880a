// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"
)

// listen takes events in until the context ends.
func (s *served) listen(t *testing.T, ctx context.Context, token string) <-chan Event {
	t.Helper()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+token)
	r, err := s.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", r.StatusCode, r.Header)
	}
	out := make(chan Event, 100)
	go func() {
		defer close(out)
		defer r.Body.Close()
		_ = readEvents(r.Body, func(v Event) { out <- v })
	}()
	return out
}

// Events come as they happen, in order, to all who listen, whatever is in them.
func TestEvents(t *testing.T) {
	s := serveRemote(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, second := s.listen(t, ctx, s.viewer), s.listen(t, ctx, s.boss)
	for i := range 50 {
		s.gateway.events.Tell(Event{Kind: "server", About: "back 127.0.0.1:1", What: "down", Note: "forged\n\nevent: x\ndata: " + strconv.Itoa(i)})
	}
	for _, events := range []<-chan Event{first, second} {
		for i := range 50 {
			v := wait(t, events)
			if v.ID != uint64(i+1) || v.Kind != "server" || v.Note != "forged\n\nevent: x\ndata: "+strconv.Itoa(i) || v.Time.IsZero() {
				t.Fatalf("event %d: %+v", i, v)
			}
		}
	}
	if n, dropped := s.gateway.events.Counts(); n != 2 || dropped != 0 {
		t.Errorf("%d listen, %d dropped", n, dropped)
	}
	cancel()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n, _ := s.gateway.events.Counts(); n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("who has gone still listens")
		}
	}
}

func wait(t *testing.T, events <-chan Event) Event {
	t.Helper()
	select {
	case v, ok := <-events:
		if !ok {
			t.Fatal("the stream ended")
		}
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("no event comes")
	}
	return Event{}
}

// Who does not take events is dropped and counted; whoever tells waits for nobody, and others
// get all.
func TestSlowListenerIsDropped(t *testing.T) {
	e := NewEvents()
	slow, err := e.listen("slow")
	if err != nil {
		t.Fatal(err)
	}
	quick, err := e.listen("quick")
	if err != nil {
		t.Fatal(err)
	}
	for i := range listenerQueue + 1 {
		e.Tell(Event{Kind: "worker"})
		if v := <-quick.events; v.ID != uint64(i+1) {
			t.Fatalf("event %d: %+v", i, v)
		}
	}
	if n, dropped := e.Counts(); n != 1 || dropped != 1 {
		t.Errorf("%d listen, %d dropped", n, dropped)
	}
	got := 0
	for range slow.events { // what was queued, then its end
		got++
	}
	if got != listenerQueue {
		t.Errorf("it got %d events", got)
	}
	e.leave(slow) // again is harmless
	for i := range maxListeners - 1 {
		if _, err := e.listen(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.listen("late"); !errors.Is(err, ErrListeners) {
		t.Errorf("listener %d: %v", maxListeners+1, err)
	}
	e.leave(quick)
	if _, err := e.listen("late"); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	var none *Events
	none.Tell(Event{}) // nobody can listen
}

// One token listens often, and leaves room for others.
func TestListenersOfOne(t *testing.T) {
	e := NewEvents()
	var last *listening
	for range maxOfOne {
		l, err := e.listen("a")
		if err != nil {
			t.Fatal(err)
		}
		last = l
	}
	if _, err := e.listen("a"); !errors.Is(err, ErrListeners) {
		t.Errorf("listener %d of one: %v", maxOfOne+1, err)
	}
	for range maxOfOne {
		if _, err := e.listen(""); err != nil {
			t.Errorf("another one: %v", err)
		}
	}
	e.leave(last)
	if _, err := e.listen("a"); err != nil {
		t.Errorf("after one has left: %v", err)
	}
}
