// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Allowed tells why this process may not load and attach programs, whatever its user: nil where
// it has the rights.
func Allowed() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	// CAP_BPF is known from Linux 5.8 on; before, and beside it, CAP_SYS_ADMIN is all.
	if has(unix.CAP_NET_ADMIN) && (has(unix.CAP_SYS_ADMIN) || has(unix.CAP_BPF) && has(unix.CAP_PERFMON)) {
		return nil
	}
	return errors.New("not root, and without CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: run it with sudo")
}

// Give makes the instance's pins another user's, for a gateway that does not run as root: the
// directory that will hold them, made if need be, and all that is there. It needs root. ErrNoPins
// where there can be none, as in a container: a gateway without interfaces needs none.
func Give(o Options, uid, gid int) error {
	if o.BPFFS == "" {
		o.BPFFS = defaultBPFFS
	}
	if err := ensureBPFFS(o.BPFFS); err != nil {
		return fmt.Errorf("%w: %w", ErrNoPins, err)
	}
	root := pinRoot(&o)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("%w: make %s: %w", ErrNoPins, root, err)
	}
	names, err := Interfaces(o)
	if err != nil {
		return err
	}
	for _, name := range names {
		d, err := Open(Options{Interface: name, Instance: o.Instance, BPFFS: o.BPFFS})
		if err != nil {
			continue // stale, or of another layout: who is given it will say so
		}
		if err := errors.Join(d.pinInner(), d.Close()); err != nil {
			return fmt.Errorf("give pins of %s away: %w", name, err)
		}
	}
	return chownAll(root, uid, gid)
}

// chownAll follows no link out of the directory, which may be another user's already, nor does it
// give away what has a name elsewhere, too.
func chownAll(path string, uid, gid int) error {
	dir, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	opened, err := dir.Stat(".")
	if err != nil {
		return err
	}
	if named, err := os.Lstat(path); err != nil || !os.SameFile(opened, named) {
		return errors.Join(err, fmt.Errorf("%s is no directory: remove it", path))
	}
	return fs.WalkDir(dir.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := dir.OpenFile(path, unix.O_PATH, 0) // so that what is looked at is what is given
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil || !info.IsDir() && !alone(info) {
			return err
		}
		return unix.Fchownat(int(f.Fd()), "", uid, gid, unix.AT_EMPTY_PATH)
	})
}

// alone tells whether it is a file, or a pin, that has one name.
func alone(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().IsRegular() && st.Nlink == 1
}

// settleOwner gives what root has pinned to the user whose the instance's directory is, who
// could not open it otherwise.
func (d *Datapath) settleOwner() error {
	if os.Geteuid() != 0 || d.dir == "" {
		return nil
	}
	root := pinRoot(&d.options)
	info, err := os.Lstat(root)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil
	}
	return chownAll(d.dir, int(st.Uid), int(st.Gid))
}

// rootsOwn tells whether the instance's directory is root's, which comes and goes with what is
// in it; another user's was made for that user.
func rootsOwn(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == 0
}
