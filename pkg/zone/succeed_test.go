// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// handed is a descriptor as another process would get it.
func handed(t *testing.T, z *Zone) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(z.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "zone")
}

// A zone that is handed over goes on with what was counted; workers of both supervisors have
// slabs of their own, and who lets go of it takes nothing away.
func TestAdopt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	l := Layout{Workers: 2, Size: 16 << 20}
	old, err := Create(path, l)
	if err != nil {
		t.Fatal(err)
	}
	old.Worker(old.Shift()).Add(ConnectionsAccepted, 7)
	z, err := Adopt(handed(t, old), path, l)
	if err != nil {
		t.Fatal(err)
	}
	if z.Slots() != 4 || z.OtherShift() != 2 {
		t.Fatalf("%d slots, the other shift from %d; want 4 and 2", z.Slots(), z.OtherShift())
	}
	z.Worker(z.OtherShift()).Add(ConnectionsAccepted, 1)
	if a, b := z.Worker(0).Load(ConnectionsAccepted), old.Worker(2).Load(ConnectionsAccepted); a != 7 || b != 1 {
		t.Errorf("counted %d and %d, want 7 and 1", a, b)
	}
	z.SetShift(z.OtherShift())
	if old.Shift() != 2 || old.OtherShift() != 0 {
		t.Errorf("the shift is %d for the old one, want 2", old.Shift())
	}
	// As in another process: this one's end must not look like the other's.
	old.header.store(headPID, uint64(os.Getppid()))
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if got := z.PID(); got != os.Getppid() {
		t.Errorf("the zone is of process %d", got)
	}
	z.Own()
	if z.PID() != os.Getpid() {
		t.Errorf("the zone is of process %d after Own", z.PID())
	}
	if err := errors.Join(z.Remove(), z.Close()); err != nil {
		t.Fatal(err)
	}
}

// What the configuration would make otherwise is not adopted; one in its place is made only
// with the consent of who lives.
func TestAdoptOtherLayout(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	old, err := Create(path, Layout{Workers: 2, Size: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	other := Layout{Workers: 2, Size: 24 << 20}
	if _, err := Adopt(handed(t, old), path, other); !errors.Is(err, ErrLayout) {
		t.Errorf("adopt: %v, want ErrLayout", err)
	}
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(nothing, path, other); !errors.Is(err, ErrNotZone) {
		t.Errorf("adopt what is no zone: %v", err)
	}
	if _, err := Supersede(path, other, os.Getppid()); !errors.Is(err, ErrInUse) {
		t.Errorf("supersede without consent: %v, want ErrInUse", err)
	}
	z, err := Supersede(path, other, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if old.InPlace() || !z.InPlace() {
		t.Error("the new zone is not in the place of the old one")
	}
}
