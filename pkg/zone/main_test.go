// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Tests of what processes do to each other start the test binary again, in a role.
const (
	roleVariable   = "XGW_ZONE_TEST_ROLE"
	roleSupervisor = "supervisor" // creates the zone in its argument and waits
	roleOwner      = "owner"      // creates the zone in its argument and writes all of it until killed
	roleWriter     = "writer"     // writes to slab 0 of the zone on descriptor 3 until killed
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleSupervisor:
		beSupervisor()
	case roleOwner:
		beOwner()
	case roleWriter:
		beWriter()
	}
	os.Exit(m.Run())
}

func beSupervisor() {
	if _, err := Create(os.Args[1], small()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("created")
	time.Sleep(time.Minute) // killed long before
	os.Exit(0)
}

// role starts this binary in a role; it is killed with the test at the latest.
func role(tb testing.TB, name string, files []*os.File, args ...string) (*exec.Cmd, *bufio.Reader) {
	tb.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+name)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, bufio.NewReader(out)
}

// mustSupervisor is another process that has created a zone at path.
func mustSupervisor(tb testing.TB, path string) *exec.Cmd {
	tb.Helper()
	cmd, out := role(tb, roleSupervisor, nil, path)
	if line, err := out.ReadString('\n'); err != nil || line != "created\n" {
		tb.Fatalf("supervisor says %q, %v", line, err)
	}
	return cmd
}

// small is a layout that costs little to make.
func small() Layout {
	l := Layout{Workers: 2, Routes: 4, Upstreams: 3, Limits: 3, AccessRing: minAccessRing, Buckets: minBuckets, Sessions: minSessions, Holds: minHolds, Shares: minShares}
	l.Size = l.Need()
	return l
}

func zonePath(tb testing.TB) string { return filepath.Join(tb.TempDir(), "xgw.zone") }

func mustCreate(tb testing.TB, path string, l Layout) *Zone {
	tb.Helper()
	z, err := Create(path, l)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { z.Close() })
	return z
}

func mustOpen(tb testing.TB, path string) *Zone {
	tb.Helper()
	z, err := Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { z.Close() })
	return z
}

// mustOpenWriter maps the zone as a worker does.
func mustOpenWriter(tb testing.TB, path string) *Zone {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	z, err := OpenFile(f)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { z.Close() })
	return z
}

// mustPatch writes a word of the file's header.
func mustPatch(tb testing.TB, path string, word int, v uint64) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytesOf(words{v}), int64(word)*8); err != nil {
		tb.Fatal(err)
	}
}

// files lists a directory, for comparing before and after.
func files(tb testing.TB, dir string) string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func wantContains(tb testing.TB, err error, parts ...string) {
	tb.Helper()
	if err == nil {
		tb.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			tb.Errorf("error %q does not say %q", err, p)
		}
	}
}

func text[T int | int64](n T) string { return strconv.FormatInt(int64(n), 10) }

// dup is the descriptor that a worker would be handed.
func dup(tb testing.TB, z *Zone) *os.File {
	tb.Helper()
	fd, err := unix.Dup(int(z.File().Fd()))
	if err != nil {
		tb.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "zone")
}
