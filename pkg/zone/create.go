// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Create makes the file anew and maps it for writing; this process is then its
// supervisor. A zone whose supervisor is alive is ErrInUse, and a file that is no
// zone is ErrNotZone: neither is touched. One left by a dead supervisor is replaced,
// see Replaced: its history goes on in the new one; processes that still map it keep the old one.
//
// The file appears whole, by rename. All its memory is taken at once, so a full
// /dev/shm shows here and not later as a fault.
func Create(path string, l Layout) (*Zone, error) { return makeZone(path, l, 0) }

func makeZone(path string, l Layout, agreed int) (*Zone, error) {
	l, err := l.Complete()
	if err != nil {
		return nil, fmt.Errorf("create zone %s: %w", path, err)
	}
	f, err := openNew(path + ".new")
	if err != nil {
		return nil, fmt.Errorf("create zone %s: %w", path, err)
	}
	z, err := create(f, path, l, agreed)
	if err != nil {
		// Still ours under that name: the rename is the last that can fail.
		err = errors.Join(err, os.Remove(f.Name()), f.Close())
		return nil, fmt.Errorf("create zone %s: %w", path, err)
	}
	return z, nil
}

// openNew opens the file that will become the zone, and locks it, so that of two
// supervisors starting at once only one goes on. What one that was killed here left
// is used again.
func openNew(path string) (*os.File, error) {
	for range 10 {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		opened, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		// /dev/shm is open to all: a stranger's file would stay the stranger's.
		if stat, ok := opened.Sys().(*syscall.Stat_t); !opened.Mode().IsRegular() || ok && int(stat.Uid) != os.Geteuid() {
			f.Close()
			return nil, fmt.Errorf("%s belongs to another user: remove it", path)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("%w: another supervisor is just starting: %w", ErrInUse, err)
		}
		if named, err := os.Lstat(path); err == nil && os.SameFile(opened, named) {
			return f, nil
		}
		f.Close() // renamed or removed before the lock was ours
	}
	return nil, fmt.Errorf("%w: other supervisors keep starting", ErrInUse)
}

// create makes a zone of the locked file and puts it in its place, from which the process
// that has agreed may be ousted.
func create(f *os.File, path string, l Layout, agreed int) (*Zone, error) {
	replaced, err := occupant(path, agreed)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(0), f.Chmod(0o640)); err != nil {
		return nil, err
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, l.Size); err != nil {
		return nil, fmt.Errorf("take %d bytes: %w: `df %s` shows what is free, shared_memory_zone in buffers.conf sets the size", l.Size, err, path)
	}
	var secret [16]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, err
	}
	z, err := mapFile(f, l, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, err
	}
	z.file, z.path, z.replaced = f, path, replaced
	writeHeader(z.header, l)
	z.keyBuckets(binary.NativeEndian.Uint64(secret[:]), binary.NativeEndian.Uint64(secret[8:]))
	z.Own()
	z.header.store(headCreated, uint64(time.Now().UnixNano()))
	z.setName(NoRoute, noRoute)
	z.setName(l.Routes-1, overflow)
	z.setName(l.Routes+l.Upstreams-1, overflow)
	z.setName(l.Routes+l.Upstreams+l.Limits-1, overflow)
	if replaced != 0 {
		z.takeHistory(path)
	}
	if z.info, err = f.Stat(); err == nil {
		err = os.Rename(f.Name(), path) // readers find the zone from here on
	}
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(z.mem))
	}
	return z, nil
}
