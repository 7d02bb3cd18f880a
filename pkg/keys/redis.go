// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis is a store in a Valkey or Redis server that several gateways share. Under its prefix
// are key:ID, a record each; ids, all ids in order; and changes, a stream of what was changed,
// which gateways follow from where they are, so that none misses a revocation for having been
// away.
type Redis struct {
	client *redis.Client // the store's own
	prefix string
	silent atomic.Int64 // until when, in ns since 1970, it is not asked, since it did not answer
}

var _ Store = (*Redis)(nil)

const (
	// keptChanges are so many that a gateway may miss.
	keptChanges = 10_000
	// patience of who follows changes, with the server and after a failure.
	followTime = time.Second
	retryTime  = 200 * time.Millisecond
	// mostConflicts are others who change the same keys at the same moment.
	mostConflicts = 20
)

// NewRedis makes a store of the client, which it closes. The server need not answer yet.
func NewRedis(client *redis.Client, prefix string) *Redis {
	return &Redis{client: client, prefix: prefix}
}

// Close lets go of the connections.
func (s *Redis) Close() error { return s.client.Close() }

func (s *Redis) names(ids []string) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = s.prefix + "key:" + id
	}
	return out
}

// decode reads what MGET found.
func (s *Redis) decode(found []any) ([]*Record, error) {
	out := make([]*Record, len(found))
	for i, v := range found {
		text, ok := v.(string)
		if !ok {
			continue
		}
		r := &Record{}
		err := json.Unmarshal([]byte(text), r)
		if err == nil {
			err = r.Check()
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		out[i] = r
	}
	return out, nil
}

// Lookup asks the server. For a while after it did not answer nobody waits for it.
func (s *Redis) Lookup(ctx context.Context, ids []string) ([]*Record, error) {
	if time.Now().UnixNano() < s.silent.Load() {
		return nil, ErrUnanswered
	}
	found, err := s.client.MGet(ctx, s.names(ids)...).Result()
	if err != nil {
		s.silent.Store(time.Now().Add(retryTime).UnixNano())
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return s.decode(found)
}

// Change is a transaction that is tried again when somebody else was faster.
func (s *Redis) Change(ctx context.Context, ids []string, change func([]*Record) error) error {
	names := s.names(ids)
	var err error = redis.TxFailedErr
	for n := 0; n < mostConflicts && errors.Is(err, redis.TxFailedErr); n++ {
		err = s.client.Watch(ctx, func(tx *redis.Tx) error {
			found, err := tx.MGet(ctx, names...).Result()
			if err != nil {
				return err
			}
			records, err := s.decode(found)
			if err != nil {
				return err
			}
			if err := change(records); err != nil {
				return err
			}
			_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return s.write(ctx, p, names, records) })
			return err
		}, names...)
	}
	if err != nil {
		return fmt.Errorf("change API keys: %w", err)
	}
	return nil
}

func (s *Redis) write(ctx context.Context, p redis.Pipeliner, names []string, records []*Record) error {
	var changed []string
	var members []redis.Z
	for i, r := range records {
		if r == nil {
			continue
		}
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		p.Set(ctx, names[i], text, 0)
		members = append(members, redis.Z{Member: r.ID})
		changed = append(changed, r.ID)
	}
	if len(changed) == 0 {
		return nil
	}
	p.ZAdd(ctx, s.prefix+"ids", members...)
	p.XAdd(ctx, &redis.XAddArgs{Stream: s.prefix + "changes", MaxLen: keptChanges, Approx: true, Values: []string{"ids", strings.Join(changed, " ")}})
	return nil
}

// List goes by the order of ids; a place is the id before it.
func (s *Redis) List(ctx context.Context, from string, n int) (list []Record, next string, err error) {
	low := "-"
	if from != "" {
		low = "(" + from
	}
	ids, err := s.client.ZRangeArgs(ctx, redis.ZRangeArgs{Key: s.prefix + "ids", Start: low, Stop: "+", ByLex: true, Count: int64(n)}).Result()
	if err != nil || len(ids) == 0 {
		return nil, "", err
	}
	found, err := s.client.MGet(ctx, s.names(ids)...).Result()
	if err != nil {
		return nil, "", fmt.Errorf("list API keys: %w", err)
	}
	records, err := s.decode(found)
	if err != nil {
		return nil, "", fmt.Errorf("list API keys: %w", err)
	}
	for _, r := range records {
		if r != nil {
			list = append(list, *r)
		}
	}
	if len(ids) == n {
		next = ids[n-1]
	}
	return list, next, nil
}

// Watch follows the stream of changes.
func (s *Redis) Watch(ctx context.Context, changed func(ids []string)) {
	last, whole := "", false // whole: nothing can have been missed since last
	for ctx.Err() == nil {
		if !whole {
			at, lost, err := s.place(ctx, last)
			if err != nil {
				pause(ctx, retryTime)
				continue
			}
			if lost {
				changed(nil)
			}
			last, whole = at, true
		}
		streams, err := s.client.XRead(ctx, &redis.XReadArgs{Streams: []string{s.prefix + "changes", last}, Count: 1000, Block: followTime}).Result()
		switch {
		case errors.Is(err, redis.Nil): // nothing came
		case err != nil:
			whole = false
			pause(ctx, retryTime)
		default:
			for _, m := range streams[0].Messages {
				last = m.ID
				if ids, ok := m.Values["ids"].(string); ok && ids != "" {
					changed(strings.Split(ids, " "))
				}
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// place is where to follow from: behind what was read last, or for "" at the end. lost tells that
// the stream no longer has all that followed.
func (s *Redis) place(ctx context.Context, last string) (at string, lost bool, err error) {
	stream := s.prefix + "changes"
	if last == "" {
		newest, err := s.client.XRevRangeN(ctx, stream, "+", "-", 1).Result()
		if err != nil || len(newest) == 0 {
			return "0-0", false, err
		}
		return newest[0].ID, false, nil
	}
	oldest, err := s.client.XRangeN(ctx, stream, "-", "+", 1).Result()
	switch {
	case err != nil:
		return last, false, err
	case len(oldest) == 0:
		return "0-0", last != "0-0", nil
	}
	return last, last != "0-0" && later(oldest[0].ID, last), nil
}

// later compares places in a stream: milliseconds and a number.
func later(a, b string) bool {
	split := func(s string) (ms, n uint64) {
		x, y, _ := strings.Cut(s, "-")
		ms, _ = strconv.ParseUint(x, 10, 64)
		n, _ = strconv.ParseUint(y, 10, 64)
		return ms, n
	}
	am, an := split(a)
	bm, bn := split(b)
	return am > bm || am == bm && an > bn
}
