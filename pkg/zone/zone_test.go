// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCreateOpen(t *testing.T) {
	path := zonePath(t)
	mask := unix.Umask(0o077)
	began := time.Now()
	z := mustCreate(t, path, small())
	unix.Umask(mask)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o640 || info.Size() != small().Size {
		t.Errorf("file has mode %v and %d bytes", info.Mode(), info.Size())
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil || stat.Blocks*512 < small().Size {
		t.Errorf("file has %d blocks (%v): its memory is not taken", stat.Blocks, err)
	}
	if got := files(t, filepath.Dir(path)); got != "xgw.zone" {
		t.Errorf("directory has %s", got)
	}
	reader := mustOpen(t, path)
	for _, v := range []*Zone{z, reader} {
		if v.Layout() != small() || v.Workers() != 2 || v.Size() != small().Size || v.PID() != os.Getpid() || !v.Alive() || v.Replaced() != 0 {
			t.Errorf("layout %+v, pid %d, alive %v, replaced %d", v.Layout(), v.PID(), v.Alive(), v.Replaced())
		}
		if c := v.Created(); c.Before(began) || c.After(time.Now()) {
			t.Errorf("created %v", c)
		}
	}
	if reader.File() != nil || z.File() == nil {
		t.Error("the supervisor alone has the descriptor")
	}
	if reader.Heartbeat() != 0 || reader.Generation() != 0 {
		t.Error("a new zone has a heartbeat or a generation")
	}
	z.Beat(math.MaxInt64)
	z.SetGeneration(7)
	z.Worker(1).Add(BytesSent, 3)
	if reader.Heartbeat() != math.MaxInt64 || reader.Generation() != 7 || reader.Worker(1).Load(BytesSent) != 3 || reader.Worker(0).Load(BytesSent) != 0 {
		t.Error("what the supervisor writes is not what readers read")
	}
}

func TestWorkerCountsOn(t *testing.T) {
	path := zonePath(t)
	z := mustCreate(t, path, small())
	for want := uint64(1); want <= 3; want++ {
		// A worker has no way to the file but the descriptor that it is handed.
		f := dup(t, z)
		fd := f.Fd()
		w, err := OpenFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(fd, unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("the worker kept descriptor %d: %v", fd, err)
		}
		w.Worker(0).Add(ConnectionsAccepted, 1)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := z.Worker(0).Load(ConnectionsAccepted); got != want {
			t.Errorf("supervisor reads %d, want %d", got, want)
		}
		if z.PID() != os.Getpid() {
			t.Error("a worker's close ended the zone")
		}
	}
}

// Words of workers' slabs lie on different pages: the same counter of each, and of
// each its ring.
func TestWorkersAreApart(t *testing.T) {
	z := mustCreate(t, zonePath(t), small())
	z.Worker(0).Request(1, 200, time.Second, RequestOK)
	z.Worker(0).Access.Put(&AccessRecord{})
	if n := nonZero(z.Worker(1).mem) + nonZero(z.Worker(1).Access.header); n != 0 {
		t.Errorf("worker 0 wrote %d words of worker 1", n)
	}
	if n := nonZero(z.Worker(0).mem); n != 4 {
		t.Errorf("a request is %d words, want class, sum, bucket and outcome", n)
	}
}

func TestOpenIsReadOnly(t *testing.T) {
	path := zonePath(t)
	mustCreate(t, path, small())
	reader := mustOpen(t, path)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() == nil {
			t.Error("a reader wrote into the zone")
		}
	}()
	reader.mem[pageSize] = 1
}

func TestRemoveAndClose(t *testing.T) {
	path := zonePath(t)
	first := mustCreate(t, path, small())
	reader := mustOpen(t, path)
	first.Worker(0).Add(BytesSent, 5)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	// Closed and there: readable, nobody's.
	if z := mustOpen(t, path); z.PID() != 0 || z.Alive() || z.Worker(0).Load(BytesSent) != 5 {
		t.Errorf("closed zone has pid %d, alive %v, %d bytes sent", z.PID(), z.Alive(), z.Worker(0).Load(BytesSent))
	}
	second := mustCreate(t, path, small())
	if second.Replaced() != 0 || second.Worker(0).Load(BytesSent) != 0 {
		t.Errorf("second zone: replaced %d, %d bytes sent", second.Replaced(), second.Worker(0).Load(BytesSent))
	}
	if reader.Worker(0).Load(BytesSent) != 5 {
		t.Error("the reader of the first lost it")
	}
	// A zone in another's place is not removed by it.
	if err := reader.Remove(); err != nil {
		t.Error(err)
	}
	mustOpen(t, path)
	for range 2 {
		if err := second.Remove(); err != nil {
			t.Error(err)
		}
		if got := files(t, filepath.Dir(path)); got != "" {
			t.Errorf("directory has %s", got)
		}
	}
}

func TestCreateRefusesLiveZone(t *testing.T) {
	path := zonePath(t)
	other := mustSupervisor(t, path)
	for range 2 {
		_, err := Create(path, small())
		if !errors.Is(err, ErrInUse) {
			t.Errorf("error %v", err)
		}
		wantContains(t, err, path, "process "+text(other.Process.Pid), "--instance")
		if got := files(t, filepath.Dir(path)); got != "xgw.zone" {
			t.Errorf("directory has %s", got)
		}
	}
	if z := mustOpen(t, path); z.PID() != other.Process.Pid || !z.Alive() {
		t.Error("the other's zone was touched")
	}
}

func TestCreateRefusesOwnZone(t *testing.T) {
	path := zonePath(t)
	mustCreate(t, path, small())
	if _, err := Create(path, small()); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v", err)
	}
}

func TestCreateReplacesStaleZone(t *testing.T) {
	path := zonePath(t)
	other := mustSupervisor(t, path)
	old := mustOpenWriter(t, path)
	old.AppendHistory(Past{Time: 7, Passed: 70})
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Dead and not yet reaped by its parent: it holds its process id, and is gone.
	for i := 0; old.Alive(); i++ {
		if i == 1000 {
			t.Fatal("a killed supervisor stays alive")
		}
		time.Sleep(time.Millisecond)
	}
	z := mustCreate(t, path, small())
	if z.Replaced() != other.Process.Pid || z.PID() != os.Getpid() {
		t.Errorf("replaced %d, want %d", z.Replaced(), other.Process.Pid)
	}
	old.Worker(0).Add(BytesSent, 1) // an orphaned worker goes on in the old one
	if z.Worker(0).Load(BytesSent) != 0 || mustOpen(t, path).PID() != os.Getpid() {
		t.Error("old and new zone share something")
	}
	if past := mustOpen(t, path).History(nil); len(past) != 1 || past[0] != (Past{Time: 7, Passed: 70}) {
		t.Errorf("the history of a dead supervisor is lost: %+v", past)
	}
	_ = other.Wait()
}

func TestCreateTellsAProcessFromItsSuccessor(t *testing.T) {
	path := zonePath(t)
	other := mustSupervisor(t, path)
	mustPatch(t, path, headStart, 1) // the id was given out again since
	if z := mustCreate(t, path, small()); z.Replaced() != other.Process.Pid {
		t.Errorf("replaced %d", z.Replaced())
	}
}

func TestCreateOverOtherVersion(t *testing.T) {
	path := zonePath(t)
	mustSupervisor(t, path)
	mustPatch(t, path, headVersion, 99)
	if _, err := Create(path, small()); !errors.Is(err, ErrInUse) {
		t.Errorf("alive: %v", err)
	}
	mustPatch(t, path, headPID, 1<<22+1) // no process has such an id
	mustCreate(t, path, small())
}

func TestCreateRefusesForeignFiles(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"text": func(path string) error {
			return os.WriteFile(path, []byte(strings.Repeat("root:x:0:0\n", 1000)), 0o600)
		},
		"short":     func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"empty":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":      func(path string) error { return os.Symlink("/etc/passwd", path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := zonePath(t)
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			_, err := Create(path, small())
			if !errors.Is(err, ErrNotZone) {
				t.Errorf("error %v", err)
			}
			wantContains(t, err, path)
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) || before.Size() != after.Size() || before.ModTime() != after.ModTime() {
				t.Errorf("the file was touched: %v", err)
			}
			if got := files(t, filepath.Dir(path)); got != "xgw.zone" {
				t.Errorf("directory has %s", got)
			}
		})
	}
}

func TestCreateUsesLeftovers(t *testing.T) {
	path := zonePath(t)
	if err := os.WriteFile(path+".new", []byte(strings.Repeat("left by one that was killed", 9000)), 0o600); err != nil {
		t.Fatal(err)
	}
	z := mustCreate(t, path, small())
	if got := files(t, filepath.Dir(path)); got != "xgw.zone" {
		t.Errorf("directory has %s", got)
	}
	for i := range z.Workers() {
		if n := nonZero(z.Worker(i).mem) + nonZero(z.Worker(i).Access.header); n != 0 {
			t.Errorf("slab %d begins with %d words that are not 0", i, n)
		}
	}
}

func TestCreateRefusesPlantedFiles(t *testing.T) {
	path := zonePath(t)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, path+".new"); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, small()); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link in the place of the new file: %v", err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "precious" {
		t.Errorf("the link's target is now %q", b)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: the file of another user")
	}
	if err := errors.Join(os.Remove(path+".new"), os.WriteFile(path+".new", nil, 0o666), os.Chown(path+".new", 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	_, err := Create(path, small())
	wantContains(t, err, path+".new", "another user", "remove it")
}

func TestCreateWithoutSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("needs the right to mount: ", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "xgw.zone")
	_, err := Create(path, small())
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
	wantContains(t, err, path, text(small().Size)+" bytes", "shared_memory_zone")
	if got := files(t, dir); got != "" {
		t.Errorf("directory has %s", got)
	}
}

func TestCreateErrors(t *testing.T) {
	dir := t.TempDir()
	_, err := Create(filepath.Join(dir, "no", "xgw.zone"), small())
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	l := small()
	l.Size--
	_, err = Create(filepath.Join(dir, "xgw.zone"), l)
	wantContains(t, err, "create zone "+dir, "at least "+text(small().Size))
	if got := files(t, dir); got != "" {
		t.Errorf("directory has %s", got)
	}
}

// Of several that start at once, one gets the zone, also over a stale one.
func TestCreateAtOnce(t *testing.T) {
	for round := range 60 {
		path := zonePath(t)
		if round%2 == 0 {
			mustCreate(t, path, small()).Close()
		}
		const n = 8
		zones := make([]*Zone, n)
		errs := make([]error, n)
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { <-begin; zones[i], errs[i] = Create(path, small()) })
		}
		close(begin)
		wg.Wait()
		won := 0
		for i, err := range errs {
			if err == nil {
				won++
				zones[i].Worker(0).Add(BytesSent, 1)
				defer zones[i].Close()
			} else if !errors.Is(err, ErrInUse) {
				t.Errorf("error %v", err)
			}
		}
		if won != 1 || mustOpen(t, path).Worker(0).Load(BytesSent) != 1 {
			t.Fatalf("round %d: %d zones were made", round, won)
		}
		if got := files(t, filepath.Dir(path)); got != "xgw.zone" {
			t.Errorf("directory has %s", got)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	patch := func(word int, v uint64) func(*testing.T, string) {
		return func(t *testing.T, path string) { mustPatch(t, path, word, v) }
	}
	size := func(delta int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, small().Size+delta); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(make func(path string) error) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), make(path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	table := headTable
	for _, tt := range []struct {
		name string
		spot func(*testing.T, string)
		want error
	}{
		{"missing", replace(func(string) error { return nil }), fs.ErrNotExist},
		{"empty", replace(func(p string) error { return os.WriteFile(p, nil, 0o600) }), ErrNotZone},
		{"directory", replace(func(p string) error { return os.Mkdir(p, 0o700) }), ErrNotZone},
		{"pipe", replace(func(p string) error { return unix.Mkfifo(p, 0o600) }), ErrNotZone},
		{"device", replace(func(p string) error { return os.Symlink("/dev/zero", p) }), ErrNotZone},
		{"only a header", size(pageSize - small().Size), ErrDamaged},
		{"less than a header", size(pageSize - 1 - small().Size), ErrNotZone},
		{"a byte short", size(-1), ErrDamaged},
		{"a byte long", size(1), ErrDamaged},
		{"other magic", patch(headMagic, magic+1), ErrNotZone},
		{"newer", patch(headVersion, layoutVersion+1), ErrVersion},
		{"older", patch(headVersion, layoutVersion-1), ErrVersion},
		{"no workers", patch(headWorkers, 0), ErrDamaged},
		{"more workers than fit", patch(headWorkers, 3), ErrDamaged},
		{"fewer workers", patch(headWorkers, 1), ErrDamaged},
		{"workers beyond reason", patch(headWorkers, math.MaxUint64), ErrDamaged},
		{"more routes than fit", patch(headRoutes, 4096), ErrDamaged},
		{"routes beyond reason", patch(headRoutes, 1<<63), ErrDamaged},
		{"no upstreams", patch(headUpstreams, 0), ErrDamaged},
		{"odd ring", patch(headAccessRing, minAccessRing+8), ErrDamaged},
		{"larger ring", patch(headAccessRing, minAccessRing*2), ErrDamaged},
		{"ring beyond reason", patch(headAccessRing, 1<<62), ErrDamaged},
		{"other size", patch(headSize, uint64(small().Size)+pageSize), ErrDamaged},
		{"size beyond reason", patch(headSize, math.MaxUint64), ErrDamaged},
		{"no sections", patch(headSections, 0), ErrDamaged},
		{"sections beyond reason", patch(headSections, math.MaxUint64), ErrDamaged},
		{"names elsewhere", patch(table+1, 0), ErrDamaged},
		{"slabs longer", patch(table+sectionWords+2, 1<<40), ErrDamaged},
		{"a whole header of a larger zone", func(t *testing.T, path string) {
			l := small()
			l.Workers++ // all but the file agrees
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			h := make(words, pageSize/8)
			writeHeader(h, l)
			if _, err := f.WriteAt(bytesOf(h), 0); err != nil {
				t.Fatal(err)
			}
		}, ErrDamaged},
		{"empty section outside", func(t *testing.T, path string) {
			mustPatch(t, path, headSections, 4)
			mustPatch(t, path, table+3*sectionWords+1, uint64(small().Size)+cacheLine)
		}, ErrDamaged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := zonePath(t)
			mustCreate(t, path, small()).Close()
			tt.spot(t, path)
			z, err := Open(path)
			if !errors.Is(err, tt.want) || z != nil {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			wantContains(t, err, "open zone", path)
			if f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
				if _, err := OpenFile(f); err == nil {
					t.Error("a worker opens it")
				}
			}
		})
	}
}

// A section that a later release adds does not keep this one from reading.
func TestOpenPassesOverUnknownSections(t *testing.T) {
	path := zonePath(t)
	l := small()
	l.Size += pageSize
	mustCreate(t, path, l).Worker(0).Add(BytesSent, 9)
	known := len(l.offsets().sections())
	mustPatch(t, path, headSections, uint64(known+1))
	at := headTable + known*sectionWords
	mustPatch(t, path, at, 77)
	mustPatch(t, path, at+1, uint64(l.Need()))
	mustPatch(t, path, at+2, pageSize)
	if got := mustOpen(t, path).Worker(0).Load(BytesSent); got != 9 {
		t.Errorf("read %d", got)
	}
	mustPatch(t, path, at+2, pageSize+1)
	if _, err := Open(path); !errors.Is(err, ErrDamaged) {
		t.Errorf("a section over the end: %v", err)
	}
}

func TestGuard(t *testing.T) {
	path := zonePath(t)
	mustCreate(t, path, small()).Worker(1).Add(BytesSent, 2)
	z := mustOpen(t, path)
	var got uint64
	// A plain read, not Load: with the race detector atomics are C code, out of which
	// no fault becomes a panic.
	read := func() { got = z.Worker(1).mem[slabCounters+int(BytesSent)] }
	if err := z.Guard(read); err != nil || got != 2 {
		t.Errorf("whole file: %d, %v", got, err)
	}
	if err := os.Truncate(path, pageSize); err != nil {
		t.Fatal(err)
	}
	err := z.Guard(read)
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("cut file: %v", err)
	}
	wantContains(t, err, path)
	for name, f := range map[string]func(){
		"panic": func() { panic("mine") },
		"index": func() { z.Worker(len(z.slabs)) },
		"nil":   func() { (*Zone)(nil).PID() },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("a panic that is no fault of the file was swallowed")
				}
			}()
			_ = z.Guard(f)
		})
	}
}

// A fault in one zone is not taken for one in another.
func TestGuardIsOfItsZone(t *testing.T) {
	path := zonePath(t)
	mustCreate(t, path, small())
	cut, whole := mustOpen(t, path), mustCreate(t, zonePath(t), small())
	if err := os.Truncate(path, pageSize); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("the fault was swallowed")
		}
	}()
	var got uint64
	err := whole.Guard(func() { got = cut.Worker(1).mem[slabCounters] })
	t.Errorf("read %d, %v", got, err)
}

func TestParseStat(t *testing.T) {
	tail := " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n"
	for _, tt := range []struct {
		in    string
		state byte
		start uint64
		fails bool
	}{
		{"12 (xgw) S" + tail, 'S', 4711, false},
		{"12 (a) b) (c) Z" + tail, 'Z', 4711, false},
		{"12 () R" + tail, 'R', 4711, false},
		{"", 0, 0, true},
		{"12 (xgw", 0, 0, true},
		{"12 (xgw) S 1 2 3", 0, 0, true},
		{"12 (xgw) S" + strings.Replace(tail, "4711", "-1", 1), 0, 0, true},
	} {
		state, start, err := parseStat([]byte(tt.in))
		if (err != nil) != tt.fails || !tt.fails && (state != tt.state || start != tt.start) {
			t.Errorf("%q: %c, %d, %v", tt.in, state, start, err)
		}
	}
	if o := self(); o.start == 0 || !o.alive() {
		t.Errorf("this process is %+v", o)
	}
	for _, o := range []owner{{}, {pid: -1}, {pid: os.Getpid(), start: 1}, {pid: 1<<22 + 1}} {
		if o.alive() {
			t.Errorf("%+v is alive", o)
		}
	}
	if o := (owner{pid: os.Getpid()}); !o.alive() {
		t.Error("a process without start time is dead")
	}
}
