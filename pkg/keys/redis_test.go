// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/xgw-project/xgw/pkg/lab/redistest"
)

// server is a real Valkey or Redis, which keeps what it is told.
type server struct {
	*redistest.Server
	t *testing.T
}

func startServer(t *testing.T) *server {
	t.Helper()
	return &server{redistest.Start(t, "--appendonly", "yes", "--appendfsync", "no"), t}
}

func (s *server) client() *redis.Client {
	const patience = 1500 * time.Millisecond
	return redis.NewClient(&redis.Options{Addr: s.Address, DialTimeout: patience, ReadTimeout: patience, WriteTimeout: patience, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true})
}

func (s *server) store() *Redis {
	r := NewRedis(s.client(), "test:")
	s.t.Cleanup(func() { r.Close() })
	return r
}

func TestRedisStore(t *testing.T) {
	testStore(t, startServer(t).store())
}

// Another gateway's changes are told at once, and those of the time that one was away when it is
// back: the server stopped, killed, and started again.
func TestRedisStoreIsFollowed(t *testing.T) {
	srv := startServer(t)
	mine, other := srv.store(), srv.store()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	told := map[string]int{}
	var following sync.WaitGroup
	following.Go(func() {
		mine.Watch(ctx, func(ids []string) {
			mu.Lock()
			defer mu.Unlock()
			if ids == nil {
				told["anything"]++
			}
			for _, id := range ids {
				told[id]++
			}
		})
	})
	defer following.Wait()
	defer cancel()
	await := func(id string, n int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			mu.Lock()
			got := told[id]
			mu.Unlock()
			if got >= n {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s was told %d times, want %d", id, got, n)
			}
		}
	}
	// Who follows has found its place when it is told of something.
	n := 0
	for end := time.Now().Add(20 * time.Second); n == 0; time.Sleep(10 * time.Millisecond) {
		mustAdd(t, other, Record{Consumer: "early"})
		mu.Lock()
		n = len(told)
		mu.Unlock()
		if time.Now().After(end) {
			t.Fatal("nothing is told")
		}
	}
	_, r := mustAdd(t, other, Record{ID: "a", Consumer: "a"})
	await("a", 1)
	began := time.Now()
	if _, err := Revoke(ctx, other, r.ID, began); err != nil {
		t.Fatal(err)
	}
	await("a", 2)
	t.Logf("told after %s", time.Since(began))

	srv.Signal(syscall.SIGSTOP)
	began = time.Now()
	if _, err := mine.Lookup(ctx, []string{"a"}); !errors.Is(err, ErrUnanswered) {
		t.Errorf("a server that is stopped: %v", err)
	}
	slow := time.Since(began)
	began = time.Now()
	if _, err := mine.Lookup(ctx, []string{"a"}); !errors.Is(err, ErrUnanswered) || time.Since(began) > slow/2 {
		t.Errorf("asked again at once: %v after %s; the first time took %s", err, time.Since(began), slow)
	}
	srv.Signal(syscall.SIGCONT)
	srv.Kill()
	if _, err := other.Lookup(ctx, []string{"a"}); !errors.Is(err, ErrUnanswered) {
		t.Errorf("a server that is gone: %v", err)
	}
	prefix := mine.prefix
	srv.Again()
	later := NewRedis(srv.client(), prefix)
	t.Cleanup(func() { later.Close() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if list, err := mine.Lookup(ctx, []string{"a"}); err == nil {
			if list[0] == nil || list[0].Revoked.IsZero() {
				t.Errorf("after its restart the server has %+v", list[0])
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("a server that is back is not asked")
		}
	}
	mustAdd(t, later, Record{ID: "b", Consumer: "b"})
	await("b", 1)
	mu.Lock()
	defer mu.Unlock()
	if told["anything"] > 0 {
		t.Errorf("all keys were given up %d times", told["anything"])
	}
}

// A server that lost what it had, changes among it, has all keys asked for again.
func TestRedisStoreThatForgot(t *testing.T) {
	srv := startServer(t)
	s := srv.store()
	ctx := context.Background()
	mustAdd(t, s, Record{Consumer: "a"})
	at, lost, err := s.place(ctx, "")
	if err != nil || lost || at == "0-0" {
		t.Fatalf("at first: %s, %v, %v", at, lost, err)
	}
	if again, lost, err := s.place(ctx, at); again != at || lost || err != nil {
		t.Errorf("where it was: %s, %v, %v", again, lost, err)
	}
	mustAdd(t, s, Record{Consumer: "b"})
	if again, lost, err := s.place(ctx, at); again != at || lost || err != nil {
		t.Errorf("with more behind it: %s, %v, %v", again, lost, err)
	}
	if err := s.client.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond) // places are times in milliseconds: c's must not be a's again
	if again, lost, err := s.place(ctx, at); again != "0-0" || !lost || err != nil {
		t.Errorf("when all is gone: %s, %v, %v", again, lost, err)
	}
	mustAdd(t, s, Record{Consumer: "c"})
	if _, lost, err := s.place(ctx, at); !lost || err != nil {
		t.Errorf("when what followed is gone: %v, %v", lost, err)
	}
}
