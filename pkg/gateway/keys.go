// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// storeTime is how long a look-up of API keys may take: workers wait for a second.
const storeTime = 500 * time.Millisecond

// fewIDs are raised one by one; for more, all keys are.
const fewIDs = 8

// keyring answers workers for API keys, and raises the fence when they change.
type keyring struct {
	store keys.Store
	fence *zone.Fence
	log   *slog.Logger
	stop  context.CancelFunc
	watch sync.WaitGroup

	mu     sync.Mutex // of what is below, and of raising
	silent bool       // the store did not answer the last time
	failed uint64     // look-ups
	purges map[string]uint64
}

// OpenKeys opens the store that the configuration names.
func OpenKeys(c *config.Config) (keys.Store, error) {
	if c.Keys.Store == "file" {
		return keys.OpenFile(c.Keys.File)
	}
	client, err := newRedis(&c.Redis)
	if err != nil {
		return nil, fmt.Errorf("open API keys: %w", err)
	}
	return keys.NewRedis(client, c.Redis.Prefix), nil
}

func newKeyring(c *config.Config, fence *zone.Fence, log *slog.Logger) (*keyring, error) {
	store, err := OpenKeys(c)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	k := &keyring{store: store, fence: fence, log: log, stop: stop, purges: map[string]uint64{}}
	k.watch.Go(func() { store.Watch(ctx, k.raise) })
	return k, nil
}

func (k *keyring) close() error {
	k.stop()
	k.watch.Wait()
	return k.store.Close()
}

// lookup asks the store; it is called for all workers at once.
func (k *keyring) lookup(ids []string) []keys.Answer {
	ctx, cancel := context.WithTimeout(context.Background(), storeTime)
	defer cancel()
	records, err := k.store.Lookup(ctx, ids)
	k.note(err, len(ids))
	out := make([]keys.Answer, len(ids))
	for i, id := range ids {
		out[i] = keys.Answer{ID: id, Failed: err != nil}
		switch {
		case err == nil:
			out[i].Record = records[i]
		case errors.Is(err, keys.ErrDamaged) && len(ids) > 1: // one of them is; the others are good
			out[i] = k.lookup([]string{id})[0]
		}
	}
	return out
}

// note says when a store stops answering, and when it is back.
func (k *keyring) note(err error, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.failed += uint64(n)
	}
	if was := k.silent; was != (err != nil) {
		k.silent = !was
		if err != nil {
			k.log.Error("API keys cannot be looked up: those that workers know go on, others get 503", "error", err)
		} else {
			k.log.Info("API keys can be looked up again")
		}
	}
}

// raise has workers ask again for keys; without ids for all of them.
func (k *keyring) raise(ids []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(ids) == 0 || len(ids) > fewIDs {
		k.fence.Raise(zone.FenceAll)
		return
	}
	for _, id := range ids {
		k.fence.Raise(zone.FenceID(id))
	}
}

// counts tells the ledger.
func (k *keyring) counts() ledger.KeyStore {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := ledger.KeyStore{Answers: !k.silent, Failed: k.failed, Purges: map[string]uint64{}}
	for _, kind := range admin.Caches {
		out.Purges[kind] = k.purges[kind]
	}
	return out
}

// Keys carries out what an operator wants of API keys.
func (s *supervisor) Keys(ctx context.Context, r *keys.Request) (keys.Reply, error) {
	reply, changed, err := keys.Do(ctx, s.keys.store, r, time.Now())
	if len(changed) > 0 {
		s.keys.raise(changed) // with an error, too: nobody knows how far it came
	}
	if err != nil {
		return reply, err
	}
	if r.Op != "list" {
		s.log.Info("API keys changed", "how", r.Op, "ids", strings.Join(changed[:min(len(changed), fewIDs)], " "), "count", len(changed))
	}
	return reply, nil
}

// Purge has workers forget what they know of keys.
func (s *supervisor) Purge(kind string) error {
	about := map[string]uint64{"all": zone.FenceAll, "keys": zone.FenceKnown, "unknown_keys": zone.FenceUnknown}
	if about[kind] == 0 {
		return fmt.Errorf("purge: %w: %q: want all, %s", admin.ErrInvalid, kind, strings.Join(admin.Caches, " or "))
	}
	k := s.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fence.Raise(about[kind])
	for _, c := range admin.Caches {
		if kind == "all" || kind == c {
			k.purges[c]++
		}
	}
	s.log.Info("workers forget", "kind", kind)
	return nil
}
