// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// maxTicketKeys of a file are read.
const maxTicketKeys = 16

// ticketRing is the keys that session tickets are encrypted with, the same for all workers.
//
// Made ones change at an interval. A key is known to all workers for one interval before
// it encrypts, so that none of them meets a ticket of a key that it lacks, and for one
// after: a ticket lives between one interval and two. The seven days that crypto/tls tells
// clients of TLS 1.3 are too long then, and cost them a full handshake.
//
// Those of a file change with it. Each of its lines is a key, 64 hex digits; the first
// one encrypts.
type ticketRing struct {
	log     *slog.Logger
	every   time.Duration
	path    string
	ring    [][32]byte // the first encrypts
	rotated time.Time
	watch   fileWatch
}

// newTicketRing makes or reads the first keys.
func newTicketRing(c config.SessionTickets, log *slog.Logger) (*ticketRing, error) {
	t := &ticketRing{log: log, every: c.Rotate, path: c.File, rotated: time.Now()}
	if t.path != "" {
		t.watch.using(stamps([]string{t.path}))
		var err error
		t.ring, err = readTicketKeys(t.path)
		return t, err
	}
	t.ring = [][32]byte{newTicketKey(), newTicketKey()}
	return t, nil
}

func newTicketKey() (k [32]byte) {
	_, _ = rand.Read(k[:]) // never fails
	return k
}

func (t *ticketRing) keys() [][32]byte { return slices.Clone(t.ring) }

// renew tells whether the keys are others now. Keys of a file that cannot be read stay.
func (t *ticketRing) renew(now time.Time) bool {
	if t.path == "" {
		if now.Sub(t.rotated) < t.every {
			return false
		}
		t.rotated = now
		t.ring = [][32]byte{t.ring[1], newTicketKey(), t.ring[0]}
		return true
	}
	s := stamps([]string{t.path})
	if !t.watch.changed(s) {
		return false
	}
	t.watch.using(s)
	keys, err := readTicketKeys(t.path)
	if err != nil {
		t.log.Error("ticket keys stay as they were", "error", err)
		return false
	}
	if slices.Equal(keys, t.ring) {
		return false
	}
	t.ring = keys
	t.log.Info("ticket keys read anew", "file", t.path, "keys", len(keys))
	return true
}

// configured is the ring of a changed configuration. Made keys are kept.
func (t *ticketRing) configured(c config.SessionTickets) (*ticketRing, error) {
	if c.File != t.path {
		return newTicketRing(c, t.log)
	}
	next := *t
	next.every = c.Rotate
	return &next, nil
}

func readTicketKeys(path string) ([][32]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read ticket keys: %w", err)
	}
	keys, err := parseTicketKeys(text)
	if err != nil {
		return nil, fmt.Errorf("read ticket keys %s: %w", path, err)
	}
	return keys, nil
}

// parseTicketKeys reads a key of 64 hex digits from each line; # begins a comment.
func parseTicketKeys(text []byte) (keys [][32]byte, err error) {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line, _, _ = bytes.Cut(line, []byte("#"))
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var k [32]byte
		if len(line) != 64 {
			return nil, fmt.Errorf("line %d has %d characters: a key is 64 hex digits, as `openssl rand -hex 32` makes them", n, len(line))
		}
		if _, err := hex.Decode(k[:], line); err != nil {
			return nil, fmt.Errorf("line %d is no key of 64 hex digits", n) // without its text: it may be most of a key
		}
		if slices.Contains(keys, k) {
			return nil, fmt.Errorf("line %d has a key for the second time", n)
		}
		if keys = append(keys, k); len(keys) > maxTicketKeys {
			return nil, fmt.Errorf("more than %d keys: old ones can go", maxTicketKeys)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no key in it: `openssl rand -hex 32` makes one")
	}
	return keys, nil
}
