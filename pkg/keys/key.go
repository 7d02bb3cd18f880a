// SPDX-License-Identifier: Apache-2.0

// Package keys is API keys: their text, what is kept of them, the stores that keep it (a
// file, or Valkey and Redis), and what a worker remembers.
//
// A key is the text xgw_ID_SECRET. Of the secret only a salted SHA-256 is kept: it is 256
// random bits, which no list of words helps against, so a slow hash would protect nothing
// and give attackers the gateway's time. The ID is no secret: logs and limits have it.
package keys

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Record is what a store keeps of a key.
type Record struct {
	ID       string    `json:"id"`
	Consumer string    `json:"consumer"` // whose it is
	Scopes   []string  `json:"scopes,omitempty"`
	Limit    string    `json:"limit,omitempty"` // a rate such as 100r/s, or the name of a tier
	Created  time.Time `json:"created,omitzero"`
	Expires  time.Time `json:"expires,omitzero"` // zero: never
	Revoked  time.Time `json:"revoked,omitzero"` // zero: it is not
	Secret   Digest    `json:"secret,omitzero"`
	// Old is the secret before the last rotation, while it is still good.
	Old      *Digest   `json:"old,omitempty"`
	OldUntil time.Time `json:"old_until,omitzero"`
}

// Digest is a secret as it is kept.
type Digest struct {
	Salt []byte `json:"salt"` // saltSize
	Hash []byte `json:"hash"` // SHA-256 of salt and secret
}

const (
	prefix      = "xgw_"
	saltSize    = 16
	maxID       = 32
	leastSecret = 16
	maxSecret   = 128
	maxName     = 64 // of a consumer, a scope, a limit
	maxScopes   = 32
)

// IsKey tells whether the text is meant to be a key.
func IsKey(text []byte) bool { return bytes.HasPrefix(text, []byte(prefix)) }

// Split takes a key apart; false: it is none. The parts are in text.
func Split(text []byte) (id, secret []byte, ok bool) {
	if !IsKey(text) {
		return nil, nil, false
	}
	id, secret, ok = bytes.Cut(text[len(prefix):], []byte{'_'})
	return id, secret, ok && ValidID(id) && validSecret(secret)
}

// ValidID: 1 to 32 letters, digits and dashes.
func ValidID[T string | []byte](id T) bool {
	for i := range len(id) {
		if c := id[i]; !letterOrDigit(c) && c != '-' {
			return false
		}
	}
	return len(id) > 0 && len(id) <= maxID
}

func validSecret(s []byte) bool {
	for _, c := range s {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(s) >= leastSecret && len(s) <= maxSecret
}

func letterOrDigit(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func newDigest(secret []byte) Digest {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails
	d := Digest{Salt: salt}
	sum := d.sum(secret)
	d.Hash = sum[:]
	return d
}

func (d *Digest) sum(secret []byte) [sha256.Size]byte {
	var room [saltSize + maxSecret]byte
	n := copy(room[:], d.Salt)
	n += copy(room[n:], secret)
	return sha256.Sum256(room[:n])
}

// matches compares in constant time.
func (d *Digest) matches(secret []byte) bool {
	sum := d.sum(secret)
	return subtle.ConstantTimeCompare(sum[:], d.Hash) == 1
}

func (d *Digest) check() error {
	if len(d.Salt) != saltSize || len(d.Hash) != sha256.Size {
		return fmt.Errorf("want a salt of %d bytes and a hash of %d, both in base64", saltSize, sha256.Size)
	}
	return nil
}

// Check tells what is wrong with a record that is to be kept.
func (r *Record) Check() error {
	switch {
	case !ValidID(r.ID):
		return fmt.Errorf("id %q: want 1 to %d letters, digits and dashes", r.ID, maxID)
	case !validName(r.Consumer):
		return fmt.Errorf("key %s: consumer %q: want 1 to %d letters, digits and any of -_./@+", r.ID, r.Consumer, maxName)
	case len(r.Scopes) > maxScopes:
		return fmt.Errorf("key %s: %d scopes: at most %d", r.ID, len(r.Scopes), maxScopes)
	case r.Limit != "" && !validName(r.Limit):
		return fmt.Errorf("key %s: limit %q: want a rate such as 100r/s, or the name of a tier", r.ID, r.Limit)
	}
	for _, s := range r.Scopes {
		if !validName(strings.ReplaceAll(s, ":", ".")) {
			return fmt.Errorf("key %s: scope %q: want 1 to %d letters, digits and any of :-_./@+", r.ID, s, maxName)
		}
	}
	if strings.Contains(r.Limit, "r/") {
		if _, _, ok := Rate(r.Limit); !ok {
			return fmt.Errorf("key %s: limit %q: want a rate such as 100r/s, 30r/m, 5r/h or 1000r/d", r.ID, r.Limit)
		}
	}
	if err := r.Secret.check(); err != nil {
		return fmt.Errorf("key %s: secret: %w", r.ID, err)
	}
	if r.Old != nil {
		if err := r.Old.check(); err != nil {
			return fmt.Errorf("key %s: old: %w", r.ID, err)
		}
	}
	return nil
}

func validName(s string) bool {
	for i := range len(s) {
		if !letterOrDigit(s[i]) && strings.IndexByte("-_./@+", s[i]) < 0 {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// Rate reads a limit that is a rate: so many requests in each period. false: it is none.
func Rate(limit string) (requests uint64, period time.Duration, ok bool) {
	number, unit, _ := strings.Cut(limit, "r/")
	period = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[unit]
	requests, err := strconv.ParseUint(number, 10, 30)
	return requests, period, err == nil && requests > 0 && period > 0
}

// encoding writes random bytes in letters and digits that survive a phone call.
var encoding = base32.NewEncoding("abcdefghijkmnpqrstuvwxyz23456789").WithPadding(base32.NoPadding)

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return encoding.EncodeToString(b)
}

// New makes a key for the record, which has everything but secret, and an id of its own
// where it has none. The text is nowhere else.
func New(r Record, now time.Time) (text string, out Record, err error) {
	if r.ID == "" {
		r.ID = random(10)
	}
	secret := random(32)
	r.Created, r.Revoked, r.Old = now.UTC().Truncate(time.Second), time.Time{}, nil
	r.Secret = newDigest([]byte(secret))
	return prefix + r.ID + "_" + secret, r, r.Check()
}

// Rotate gives the record a new secret. The old one is good for the time of keep more.
func (r *Record) Rotate(keep time.Duration, now time.Time) (text string, err error) {
	if !r.Revoked.IsZero() {
		return "", fmt.Errorf("key %s: %w: add another", r.ID, ErrRevoked)
	}
	old := r.Secret
	r.Old, r.OldUntil = nil, time.Time{}
	if keep > 0 {
		r.Old, r.OldUntil = &old, now.Add(keep).UTC().Truncate(time.Second)
	}
	secret := random(32)
	r.Secret = newDigest([]byte(secret))
	return prefix + r.ID + "_" + secret, nil
}

// Revoke ends the key for good.
func (r *Record) Revoke(now time.Time) {
	if r.Revoked.IsZero() {
		r.Revoked = now.UTC().Truncate(time.Second)
	}
}

// Imported is a line of what is imported: a record with its digest, or with the key's text in
// its place.
type Imported struct {
	Record
	Key string `json:"key,omitempty"`
}

// Made is the record of an imported line.
func (i *Imported) Made(now time.Time) (Record, error) {
	r := i.Record
	if i.Key != "" {
		id, secret, ok := Split([]byte(i.Key))
		if !ok {
			return r, errors.New("key: want xgw_ID_SECRET, the secret of 16 to 128 visible characters")
		}
		if r.ID != "" && r.ID != string(id) {
			return r, fmt.Errorf("key of another id than %q", r.ID)
		}
		r.ID, r.Secret = string(id), newDigest(secret)
	}
	if r.Created.IsZero() {
		r.Created = now.UTC().Truncate(time.Second)
	}
	return r, r.Check()
}

// Errors, for errors.Is.
var (
	ErrUnknown = errors.New("there is no such key")
	ErrExists  = errors.New("there is such a key already")
	ErrRevoked = errors.New("it is revoked")
	ErrDamaged = errors.New("the store of API keys is damaged")
	// ErrUnanswered: whether there is such a key cannot be told now.
	ErrUnanswered = errors.New("the store of API keys does not answer")
)
