// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestNewKey(t *testing.T) {
	now := time.Now()
	text, r, err := New(Record{Consumer: "alice", Scopes: []string{"read", "orders:write"}, Limit: "gold"}, now)
	if err != nil {
		t.Fatal(err)
	}
	id, secret, ok := Split([]byte(text))
	if !ok || string(id) != r.ID || len(secret) < 43 {
		t.Fatalf("%s is not a key of %s with 256 bits", text, r.ID)
	}
	if bytes.Contains(append(r.Secret.Salt, r.Secret.Hash...), secret) {
		t.Error("the secret is in the record")
	}
	k := NewKey(&r)
	if !k.Opens(secret, now) || k.Opens(secret[1:], now) || k.Opens(append([]byte("!"), secret[1:]...), now) {
		t.Error("other secrets open the key, or its own does not")
	}
	if !k.Has("read") || k.Has("write") || k.Has("") {
		t.Error("scopes are mixed up")
	}
	if k.Tier != "gold" || k.Requests != 0 {
		t.Errorf("limit: %+v", k)
	}
	other, _, _ := New(Record{Consumer: "alice"}, now)
	if other == text {
		t.Error("the same key twice")
	}
	if n := testing.AllocsPerRun(100, func() { k.Opens(secret, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRotate(t *testing.T) {
	now := time.Now()
	first, r, _ := New(Record{Consumer: "alice"}, now)
	_, old, _ := Split([]byte(first))
	second, err := r.Rotate(time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	_, secret, _ := Split([]byte(second))
	k := NewKey(&r)
	for _, tt := range []struct {
		secret []byte
		at     time.Duration
		opens  bool
	}{{secret, 0, true}, {secret, 2 * time.Hour, true}, {old, 59 * time.Minute, true}, {old, time.Hour, false}} {
		if k.Opens(tt.secret, now.Add(tt.at)) != tt.opens {
			t.Errorf("%s after %s: should open: %v", tt.secret, tt.at, tt.opens)
		}
	}
	if _, err := r.Rotate(0, now); err != nil || NewKey(&r).Opens(secret, now) {
		t.Errorf("without keeping it the old secret opens: %v", err)
	}
	r.Revoke(now)
	if _, err := r.Rotate(0, now); !errors.Is(err, ErrRevoked) {
		t.Errorf("a revoked key was rotated: %v", err)
	}
}

func TestCheck(t *testing.T) {
	_, good, err := New(Record{ID: "A-1", Consumer: "a@b.example", Scopes: []string{"x:y"}, Limit: "30r/m"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for says, change := range map[string]func(*Record){
		"id":       func(r *Record) { r.ID = "a_b" },
		"consumer": func(r *Record) { r.Consumer = "a\r\nX: y" },
		"scope":    func(r *Record) { r.Scopes = []string{"a b"} },
		"scopes":   func(r *Record) { r.Scopes = make([]string, maxScopes+1) },
		"rate":     func(r *Record) { r.Limit = "0r/s" },
		"tier":     func(r *Record) { r.Limit = "a b" },
		"salt":     func(r *Record) { r.Secret.Salt = nil },
		"hash":     func(r *Record) { r.Secret.Hash = r.Secret.Hash[1:] },
		"old":      func(r *Record) { r.Old = &Digest{} },
	} {
		bad := good
		change(&bad)
		if err := bad.Check(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

func TestRate(t *testing.T) {
	for limit, want := range map[string]time.Duration{"100r/s": time.Second, "1r/d": 24 * time.Hour, "0r/s": 0, "gold": 0, "5r/": 0, "-1r/s": 0, "r/s": 0} {
		n, period, ok := Rate(limit)
		if ok != (want > 0) || ok && (period != want || n == 0) {
			t.Errorf("%s: %d in %s, %v", limit, n, period, ok)
		}
	}
}

func FuzzSplit(f *testing.F) {
	for _, seed := range []string{"xgw_id_0123456789abcdef", "xgw__0123456789abcdef", "xgw_a_b_0123456789abcdef", "xgw_", "Basic xgw_", "xgw_a_0123456789abcde\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		id, secret, ok := Split(text)
		if !ok {
			return
		}
		if !ValidID(id) || len(secret) < leastSecret || len(secret) > maxSecret || bytes.ContainsAny(secret, " \r\n\x00") {
			t.Errorf("%q: id %q, secret %q", text, id, secret)
		}
		if whole := "xgw_" + string(id) + "_" + string(secret); whole != string(text) {
			t.Errorf("%q was read as %q", text, whole)
		}
	})
}
