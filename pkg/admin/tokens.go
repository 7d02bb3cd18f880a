// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Token is a right to use the admin API. Of its secret only a salted hash is kept.
type Token struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"` // whose it is
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// good tells whether its time is not over.
func (t *Token) good() bool { return t.Expires.IsZero() || time.Now().Before(t.Expires) }

type storedToken struct {
	Token
	Salt []byte `json:"salt"`
	Hash []byte `json:"hash"` // SHA-256 over salt and secret: the secret has 160 random bits, so a slow hash would add nothing
}

// Errors of Tokens.
var (
	ErrToken     = errors.New("no such token")
	ErrLastAdmin = errors.New("it is the last one with the role admin")
	ErrTokenName = errors.New("a token's name is 1 to 63 letters, digits, - _ . or @")
)

const (
	tokensFile = "admin-tokens.json"
	firstFile  = "admin-token"
	maxTokens  = 1000
)

var tokenName = regexp.MustCompile(`^[A-Za-z0-9._@-]{1,63}$`)

// Tokens are those of one gateway, in a file of mode 0600 in its state directory. It is safe
// for concurrent use by one process.
type Tokens struct {
	dir string

	mu  sync.RWMutex
	all []storedToken
}

// OpenTokens reads the file. Where there is none it makes a first token with the role admin,
// writes it to admin-token in the same directory, mode 0600, and says where by first.
func OpenTokens(dir string) (t *Tokens, first string, err error) {
	t = &Tokens{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, tokensFile))
	switch {
	case err == nil:
		if err := json.Unmarshal(text, &t.all); err != nil {
			return nil, "", fmt.Errorf("read admin tokens: %s: %w: remove it, and a first token is made anew", filepath.Join(dir, tokensFile), err)
		}
		return t, "", nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, "", fmt.Errorf("read admin tokens: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("make admin tokens: %w", err)
	}
	_, text2, err := t.Add("first", Admin, time.Time{})
	if err != nil {
		return nil, "", err
	}
	first = filepath.Join(dir, firstFile)
	if err := writeFile(first, []byte(text2+"\n")); err != nil {
		return nil, "", fmt.Errorf("write first admin token: %w", err)
	}
	return t, first, nil
}

// Add makes a token, good until expires or for ever, and returns its text, which nobody can tell
// again.
func (t *Tokens) Add(name string, role Role, expires time.Time) (Token, string, error) {
	if !tokenName.MatchString(name) {
		return Token{}, "", ErrTokenName
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= maxTokens {
		return Token{}, "", fmt.Errorf("there are %d tokens: revoke some", len(t.all))
	}
	s := storedToken{Token: Token{ID: random(5), Name: name, Role: role, Created: time.Now().UTC().Truncate(time.Second), Expires: expires}, Salt: make([]byte, 16)}
	_, _ = rand.Read(s.Salt) // never fails
	secret := random(20)
	s.Hash = hashSecret(s.Salt, secret)
	if err := t.store(append(slices.Clone(t.all), s)); err != nil {
		return Token{}, "", err
	}
	return s.Token, "xgwadm_" + s.ID + "_" + secret, nil
}

// Revoke makes a token void at once. The last one of the role admin stays.
func (t *Tokens) Revoke(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(t.all), func(s storedToken) bool { return s.ID == id })
	if len(left) == len(t.all) {
		return fmt.Errorf("revoke %s: %w", id, ErrToken)
	}
	if !slices.ContainsFunc(left, func(s storedToken) bool { return s.Role == Admin && s.Expires.IsZero() }) {
		return fmt.Errorf("revoke %s: %w: make another first", id, ErrLastAdmin)
	}
	return t.store(left)
}

// List is all, the oldest first.
func (t *Tokens) List() []Token {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]Token, len(t.all))
	for i := range t.all {
		out[i] = t.all[i].Token
	}
	return out
}

// Check finds the token of a text. It takes as long for a wrong secret as for the right one.
func (t *Tokens) Check(text string) (Token, bool) {
	rest, ok := strings.CutPrefix(text, "xgwadm_")
	id, secret, both := strings.Cut(rest, "_")
	t.mu.RLock()
	defer t.mu.RUnlock()
	var found storedToken // of no ID: its hash is empty, which nothing equals
	for i := range t.all {
		if t.all[i].ID == id {
			found = t.all[i]
		}
	}
	right := subtle.ConstantTimeCompare(found.Hash, hashSecret(found.Salt, secret)) == 1
	return found.Token, ok && both && right && found.good()
}

// valid tells whether a token is still there, and good.
func (t *Tokens) valid(id string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.ContainsFunc(t.all, func(s storedToken) bool { return s.ID == id && s.good() })
}

// store makes the list hold, once it is on disk. The caller has the lock.
func (t *Tokens) store(all []storedToken) error {
	text, err := json.MarshalIndent(all, "", " ")
	if err == nil {
		err = writeFile(filepath.Join(t.dir, tokensFile), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write admin tokens: %w", err)
	}
	t.all = all
	return nil
}

func hashSecret(salt []byte, secret string) []byte {
	h := sha256.New()
	h.Write(salt)
	h.Write([]byte(secret))
	return h.Sum(nil)
}

// random is text of n random bytes.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

// writeFile writes a file that only its owner may read, whole or not at all. It follows no link:
// the directory may be another user's than the writer.
func writeFile(path string, text []byte) error {
	next := path + ".new"
	_ = os.Remove(next) // of one that died
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close(), os.Rename(next, path))
}

// MarshalText and UnmarshalText are the role in words.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is as MarshalText.
func (r *Role) UnmarshalText(text []byte) error {
	for i, name := range roleNames {
		if name == string(text) {
			*r = Role(i)
			return nil
		}
	}
	return fmt.Errorf("role %q: want viewer, operator or admin", text)
}
