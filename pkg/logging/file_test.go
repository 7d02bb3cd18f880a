// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func mustRead(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func mustOpen(tb testing.TB, path string) *File {
	tb.Helper()
	f, err := Open(path, os.Stdout)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

func mustWrite(tb testing.TB, f *File, s string) {
	tb.Helper()
	if n, err := f.Write([]byte(s)); n != len(s) || err != nil {
		tb.Fatalf("wrote %d of %d: %v", n, len(s), err)
	}
}

func TestFileRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log", "gateway", "access.log")
	f := mustOpen(t, path)
	mustWrite(t, f, "1\n")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^0o640 != 0 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, f, "2\n") // goes on in the file that was moved
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, f, "3\n")
	if err := f.Reopen(); err != nil { // nothing was moved: appends
		t.Fatal(err)
	}
	mustWrite(t, f, "4\n")
	if old, now := string(mustRead(t, path+".1")), string(mustRead(t, path)); old != "1\n2\n" || now != "3\n4\n" {
		t.Errorf("old file %q, new file %q", old, now)
	}
	// What cannot be opened leaves the old one in use.
	if err := errors.Join(os.Rename(path, path+".2"), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	mustWrite(t, f, "5\n")
	if got := string(mustRead(t, path+".2")); got != "3\n4\n5\n" {
		t.Errorf("file is %q", got)
	}
	if f.Off() {
		t.Error("a file is off")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	mustWrite(t, f, "thrown away\n")
	if err := f.Reopen(); err != nil || !f.Off() {
		t.Error("a closed file was opened again")
	}
}

// No line is lost or doubled while files change under the writer.
func TestFileReopenWhileWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	f := mustOpen(t, path)
	const lines = 2000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range lines {
			mustWrite(t, f, fmt.Sprintln(i))
		}
	})
	var want, got strings.Builder
	const rotations = 50
	for i := range rotations {
		if err := errors.Join(os.Rename(path, fmt.Sprintf("%s.%03d", path, i)), f.Reopen()); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for i := range lines {
		fmt.Fprintln(&want, i)
	}
	for i := range rotations {
		got.Write(mustRead(t, fmt.Sprintf("%s.%03d", path, i)))
	}
	got.Write(mustRead(t, path))
	if got.String() != want.String() {
		t.Errorf("%d bytes were written, %d are there", want.Len(), got.Len())
	}
}

func TestFileStandard(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open("-", w)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, f, "line\n")
	b := make([]byte, 10)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "line\n" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if err := f.Reopen(); err != nil {
		t.Error(err)
	}
	r.Close()
	if _, err := f.Write([]byte("nobody reads\n")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("error %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error("the standard stream was closed: ", err)
	}
}

func TestFileOff(t *testing.T) {
	f := mustOpen(t, "off")
	mustWrite(t, f, "anything")
	if err := f.Reopen(); err != nil || !f.Off() {
		t.Errorf("off is %v, error %v", f.Off(), err)
	}
	if _, err := os.Stat("off"); err == nil {
		t.Error("a file of that name was made")
	}
}

func TestFileErrors(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "file", "access.log"), pipe /* without a reader: must not wait */} {
		if f, err := Open(path, os.Stdout); err == nil || f != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v", path, err)
		}
	}
}
