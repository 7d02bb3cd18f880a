// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"fmt"
	"time"
)

// Store keeps records. Its methods may be used by several goroutines and several processes
// at once.
type Store interface {
	// Lookup reads records, in the order of the ids; nil for what is not there.
	Lookup(ctx context.Context, ids []string) ([]*Record, error)
	// Change reads the records of the ids, nil for what is not there, and keeps what change
	// leaves in the list, whose nils mean nothing to keep. Nobody else changes them meanwhile.
	// change may be called several times, with what is there then.
	Change(ctx context.Context, ids []string, change func([]*Record) error) error
	// List reads up to n records from a place on, "" for the first; next is the place behind
	// them, "" at the end.
	List(ctx context.Context, from string, n int) (list []Record, next string, err error)
	// Watch tells of what others have changed until ctx ends; no ids: it may be anything.
	Watch(ctx context.Context, changed func(ids []string))
	Close() error
}

// Add makes a key and keeps it. The text is told this once.
func Add(ctx context.Context, s Store, r Record, now time.Time) (text string, made Record, err error) {
	if text, made, err = New(r, now); err != nil {
		return "", r, err
	}
	err = s.Change(ctx, []string{made.ID}, func(was []*Record) error {
		if was[0] != nil {
			return fmt.Errorf("key %s: %w", made.ID, ErrExists)
		}
		was[0] = &made
		return nil
	})
	return text, made, err
}

// update changes one record that is there.
func update(ctx context.Context, s Store, id string, change func(*Record) error) (out Record, err error) {
	err = s.Change(ctx, []string{id}, func(was []*Record) error {
		if was[0] == nil {
			return fmt.Errorf("key %s: %w", id, ErrUnknown)
		}
		err := change(was[0])
		out = *was[0]
		return err
	})
	return out, err
}

// Revoke ends a key. One that is revoked already stays so.
func Revoke(ctx context.Context, s Store, id string, now time.Time) (Record, error) {
	return update(ctx, s, id, func(r *Record) error { r.Revoke(now); return nil })
}

// Rotate gives a key a new secret, see Record.Rotate.
func Rotate(ctx context.Context, s Store, id string, keep time.Duration, now time.Time) (text string, r Record, err error) {
	r, err = update(ctx, s, id, func(r *Record) (err error) { text, err = r.Rotate(keep, now); return err })
	return text, r, err
}

// Import keeps records as they are, in the place of those of the same id, which it counts.
// Of a page, all are kept or, with an error, none.
func Import(ctx context.Context, s Store, page []Record) (replaced int, err error) {
	if len(page) > Page {
		return 0, fmt.Errorf("import: %d records at once: at most %d", len(page), Page)
	}
	ids := make([]string, len(page))
	for i := range page {
		if err := page[i].Check(); err != nil {
			return 0, err
		}
		ids[i] = page[i].ID
	}
	err = s.Change(ctx, ids, func(was []*Record) error {
		replaced = 0
		for i := range page {
			if was[i] != nil {
				replaced++
			}
			was[i] = &page[i]
		}
		return nil
	})
	return replaced, err
}
