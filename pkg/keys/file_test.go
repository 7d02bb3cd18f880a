// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// writerVariable has a process of this test add keys to a store until it is killed.
const writerVariable = "XGW_TEST_KEYS_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerVariable); path != "" {
		s, err := OpenFile(path)
		for err == nil {
			var r Record
			if _, r, err = Add(context.Background(), s, Record{Consumer: "writer"}, time.Now()); err == nil {
				fmt.Println(r.ID)
			}
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func mustOpen(t testing.TB, path string) *File {
	t.Helper()
	s, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustAdd(t testing.TB, s Store, r Record) (string, Record) {
	t.Helper()
	text, r, err := Add(context.Background(), s, r, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return text, r
}

// one is what the store has of an id.
func one(t testing.TB, s Store, id string) *Record {
	t.Helper()
	list, err := s.Lookup(context.Background(), []string{id})
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

func all(t testing.TB, s Store, page int) map[string]Record {
	t.Helper()
	out := map[string]Record{}
	for from := ""; ; {
		list, next, err := s.List(context.Background(), from, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if _, twice := out[r.ID]; twice {
				t.Errorf("%s is listed twice", r.ID)
			}
			out[r.ID] = r
		}
		if next == "" {
			return out
		}
		from = next
	}
}

// What every store does; name is of a fresh one.
func testStore(t *testing.T, s Store) {
	ctx := context.Background()
	if len(all(t, s, 10)) != 0 || one(t, s, "nobody") != nil {
		t.Error("a new store is not empty")
	}
	expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	text, made := mustAdd(t, s, Record{Consumer: "alice", Scopes: []string{"a", "b"}, Limit: "5r/m", Expires: expires})
	_, secret, _ := Split([]byte(text))
	got := one(t, s, made.ID)
	if got == nil || got.Consumer != "alice" || len(got.Scopes) != 2 || got.Limit != "5r/m" || !got.Expires.Equal(expires) || !NewKey(got).Opens(secret, time.Now()) {
		t.Fatalf("kept %+v of %+v", got, made)
	}
	if _, _, err := Add(ctx, s, Record{ID: made.ID, Consumer: "eve"}, time.Now()); !errors.Is(err, ErrExists) {
		t.Errorf("a second key of one id: %v", err)
	}
	if _, err := Revoke(ctx, s, "nobody", time.Now()); !errors.Is(err, ErrUnknown) {
		t.Errorf("revoked what is not there: %v", err)
	}
	rotated, _, err := Rotate(ctx, s, made.ID, 0, time.Now())
	if _, next, _ := Split([]byte(rotated)); err != nil || !NewKey(one(t, s, made.ID)).Opens(next, time.Now()) || NewKey(one(t, s, made.ID)).Opens(secret, time.Now()) {
		t.Errorf("rotated: %v", err)
	}
	first, err := Revoke(ctx, s, made.ID, time.Now())
	if err != nil || !NewKey(one(t, s, made.ID)).Revoked {
		t.Errorf("revoked: %v", err)
	}
	if again, err := Revoke(ctx, s, made.ID, time.Now().Add(time.Hour)); err != nil || !again.Revoked.Equal(first.Revoked) {
		t.Errorf("revoked again: %v, %v", again.Revoked, err)
	}
	var page []Record
	for i := range 25 {
		_, r, _ := New(Record{ID: fmt.Sprintf("n-%d", i), Consumer: "many"}, time.Now())
		page = append(page, r)
	}
	if n, err := Import(ctx, s, page[:20]); n != 0 || err != nil {
		t.Errorf("imported, of them replaced %d: %v", n, err)
	}
	if n, err := Import(ctx, s, page[10:]); n != 10 || err != nil {
		t.Errorf("imported, of them replaced %d: %v", n, err)
	}
	bad := append([]Record(nil), page...)
	bad[24].Consumer = ""
	bad[0].Consumer = "changed"
	if _, err := Import(ctx, s, bad); err == nil || one(t, s, "n-0").Consumer != "many" {
		t.Errorf("a page with a fault was taken, or a part of it: %v", err)
	}
	if got := all(t, s, 7); len(got) != 26 || got[made.ID].Revoked.IsZero() {
		t.Errorf("%d records are listed", len(got))
	}
}

func TestFileStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	s := mustOpen(t, path)
	testStore(t, s)
	again := mustOpen(t, path)
	if len(all(t, again, 100)) != 26 || one(t, again, "n-3") == nil {
		t.Error("the file opened again has other records")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// Two who write, as two processes would: nothing is lost, and each sees what the other did.
func TestFileStoreOfTwoWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	stores := []*File{mustOpen(t, path), mustOpen(t, path)}
	var writers sync.WaitGroup
	for i, s := range stores {
		for range 2 {
			writers.Go(func() {
				for n := range 30 {
					_, r := mustAdd(t, s, Record{Consumer: fmt.Sprint(i)})
					if n%3 == 0 {
						if _, err := Revoke(context.Background(), stores[1-i], r.ID, time.Now()); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
	}
	writers.Wait()
	revoked := 0
	for _, r := range all(t, mustOpen(t, path), 1000) {
		if !r.Revoked.IsZero() {
			revoked++
		}
	}
	if n := len(all(t, mustOpen(t, path), 1000)); n != 120 || revoked != 40 {
		t.Errorf("%d keys, %d of them revoked", n, revoked)
	}
}

// A store that somebody else changes tells of it; readers go on meanwhile.
func TestFileStoreIsWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	s, other := mustOpen(t, path), mustOpen(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	news := make(chan []string, 100)
	var watching sync.WaitGroup
	watching.Go(func() { s.Watch(ctx, func(ids []string) { news <- ids }) })
	defer watching.Wait()
	defer cancel()
	next := func() []string {
		select {
		case ids := <-news:
			return ids
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is told")
			return nil
		}
	}
	_, first := mustAdd(t, other, Record{Consumer: "a"})
	if ids := next(); ids != nil { // there was no file
		t.Errorf("told of %v", ids)
	}
	// Who looks between the file's making and the line in it is told of that, too.
	mine := func(ids []string) bool { return len(ids) == 1 && ids[0] == first.ID }
	for one(t, s, first.ID) == nil {
		if ids := next(); !mine(ids) {
			t.Fatalf("told of %v", ids)
		}
	}
	if _, err := Revoke(ctx, other, first.ID, time.Now()); err != nil {
		t.Fatal(err)
	}
	for told := false; !told || one(t, s, first.ID).Revoked.IsZero(); told = true {
		if ids := next(); !mine(ids) {
			t.Fatalf("told of %v", ids)
		}
	}
	// An editor puts another file in its place.
	text, _ := os.ReadFile(path)
	lines := strings.SplitAfter(string(text), "\n")
	if err := errors.Join(os.WriteFile(path+"~", []byte(lines[0]), 0o600), os.Rename(path+"~", path)); err != nil {
		t.Fatal(err)
	}
	ids := next()
	for mine(ids) { // of what was there twice
		ids = next()
	}
	if ids != nil || !one(t, s, first.ID).Revoked.IsZero() {
		t.Errorf("told of %v", ids)
	}
}

// Lines that count no more are left out in time, and what counts stays. Where root does it, all
// files are the directory's owner's, who is to change them next.
func TestFileStoreIsWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	path, owner := filepath.Join(dir, "keys"), os.Getuid()
	if owner == 0 {
		owner = 61234
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	ownerHolds := func(when string) {
		t.Helper()
		for _, name := range []string{path, path + ".lock"} {
			if info, err := os.Stat(name); err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != owner {
				t.Errorf("%s is not the directory's owner's %s: %v", name, when, err)
			}
		}
	}
	s := mustOpen(t, path)
	_, keep := mustAdd(t, s, Record{Consumer: "keep"})
	ownerHolds("when it is made")
	var page []Record
	for i := range 400 {
		_, r, _ := New(Record{ID: fmt.Sprintf("n-%d", i), Consumer: "many"}, time.Now())
		page = append(page, r)
	}
	reader := mustOpen(t, path) // of the file that goes
	for range 5 {
		for part := range slices.Chunk(page, Page) {
			if _, err := Import(context.Background(), s, part); err != nil {
				t.Fatal(err)
			}
		}
	}
	text, err := os.ReadFile(path)
	if n := strings.Count(string(text), "\n"); err != nil || n > fewLines {
		t.Errorf("%d lines, %v", n, err)
	}
	ownerHolds("when it is written anew")
	for _, s := range []*File{s, mustOpen(t, path)} {
		if n := len(all(t, s, 1000)); n != 401 || one(t, s, keep.ID) == nil || one(t, s, "n-399") == nil {
			t.Errorf("%d records", n)
		}
	}
	if one(t, reader, keep.ID) == nil {
		t.Error("a reader lost what was in the file before")
	}
	if _, err := Revoke(context.Background(), reader, "n-7", time.Now()); err != nil || one(t, mustOpen(t, path), "n-7").Revoked.IsZero() {
		t.Errorf("a writer goes on in the file before: %v", err)
	}
}

// A line without an end was never acknowledged: the next writer takes its place.
func TestFileStoreWithTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	_, whole := mustAdd(t, mustOpen(t, path), Record{Consumer: "a"})
	text, _ := os.ReadFile(path)
	for _, torn := range []string{"{", string(text[:len(text)/2]), string(text[:len(text)-1])} {
		if err := os.WriteFile(path, append(append([]byte(nil), text...), torn...), 0o600); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, path)
		if n := len(all(t, s, 10)); n != 1 {
			t.Errorf("%d records with %q behind them", n, torn)
		}
		_, more := mustAdd(t, s, Record{Consumer: "b"})
		if s := mustOpen(t, path); len(all(t, s, 10)) != 2 || one(t, s, more.ID) == nil || one(t, s, whole.ID) == nil {
			t.Errorf("with %q behind it the file has %v", torn, all(t, s, 10))
		}
	}
}

func TestFileStoreRefusals(t *testing.T) {
	for says, make := range map[string]func(path string) error{
		"chmod 600": func(path string) error { return os.WriteFile(path, nil, 0o640) },
		"line 1":    func(path string) error { return os.WriteFile(path, []byte("# keys\n"), 0o600) },
		"line 2":    func(path string) error { return os.WriteFile(path, []byte(`{"id":"a"}`+"\nx\n"), 0o600) },
		"regular":   func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		path := filepath.Join(t.TempDir(), "keys")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		s, err := OpenFile(path)
		if err == nil {
			s.Close()
			t.Errorf("opened; it should say %q", says)
		} else if says != "regular" && !strings.Contains(err.Error(), says) {
			t.Errorf("%v: it should say %q", err, says)
		}
	}
}

// A line that is damaged behind its id is no unknown key.
func TestFileStoreDamagedRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(`{"id":"a","consumer":"x","secret":{}}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mustOpen(t, path).Lookup(context.Background(), []string{"a"}); err == nil {
		t.Error("a damaged record was read")
	}
}

// Writers that are killed at any moment: what they have told of is there.
func TestFileStoreSurvivesKills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	told := map[string]bool{}
	for range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerVariable+"="+path)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := len(told) + 5; len(told) < n && lines.Scan(); {
			told[lines.Text()] = true
		}
		_ = cmd.Process.Kill()
		for lines.Scan() { // a line without an end may be half an id
			if len(lines.Text()) == 16 {
				told[lines.Text()] = true
			}
		}
		_ = cmd.Wait()
	}
	s := mustOpen(t, path)
	for id := range told {
		if one(t, s, id) == nil {
			t.Errorf("%s is gone", id)
		}
	}
	if len(told) < 40 {
		t.Errorf("only %d keys were made", len(told))
	}
	mustAdd(t, s, Record{Consumer: "after"})
}

// What a million keys cost.
func BenchmarkFileStoreOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "keys")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(f)
	_, r, _ := New(Record{Consumer: "someone", Scopes: []string{"read"}}, time.Now())
	const n = 1_000_000
	for i := range n {
		r.ID = fmt.Sprintf("k%015d", i)
		line, _ := json.Marshal(&r)
		_, _ = w.Write(append(line, '\n'))
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := OpenFile(path)
		if err != nil || len(s.index) != n {
			b.Fatal(len(s.index), err)
		}
		s.Close()
	}
}

func BenchmarkFileStoreLookup(b *testing.B) {
	s := mustOpen(b, filepath.Join(b.TempDir(), "keys"))
	_, r := mustAdd(b, s, Record{Consumer: "someone"})
	for b.Loop() {
		if list, err := s.Lookup(context.Background(), []string{r.ID}); err != nil || list[0] == nil {
			b.Fatal(err)
		}
	}
}
