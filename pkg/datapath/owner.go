// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/host"
)

// Allowed tells why this process may not load and attach programs, whatever its user: nil where
// it has the rights.
func Allowed() error {
	// CAP_BPF is known from Linux 5.8 on; before, and beside it, CAP_SYS_ADMIN is all.
	if host.Has(unix.CAP_NET_ADMIN) && (host.Has(unix.CAP_SYS_ADMIN) || host.Has(unix.CAP_BPF) && host.Has(unix.CAP_PERFMON)) {
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
	dir, err := openDir(root)
	if err != nil {
		return err
	}
	return chownAll(dir, uid, gid)
}

// chownAll follows no link out of the directory, which may be another user's already, nor does it
// give away what has a name elsewhere, too. It closes dir.
func chownAll(dir *os.Root, uid, gid int) error {
	defer dir.Close()
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

// openDir opens a directory, and no link in its place.
func openDir(path string) (*os.Root, error) {
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	named, err := os.Lstat(path)
	return sureOf(dir, named, err)
}

// openOwn opens the directory of the interface's pins in that of the instance, likewise.
func (d *Datapath) openOwn() (*os.Root, error) {
	all, err := openDir(pinRoot(&d.options))
	if err != nil {
		return nil, err
	}
	defer all.Close()
	name := filepath.Base(d.dir)
	dir, err := all.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	named, err := all.Lstat(name)
	return sureOf(dir, named, err)
}

// sureOf returns dir if it is what has that name.
func sureOf(dir *os.Root, named os.FileInfo, err error) (*os.Root, error) {
	var opened os.FileInfo
	if err == nil {
		opened, err = dir.Stat(".")
	}
	if err == nil && !os.SameFile(opened, named) {
		err = fmt.Errorf("%s is a link to elsewhere: remove it", dir.Name())
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// openPin opens a pin in the interface's directory. Whoever the directory belongs to may have put
// links to pins of another owner there, which are not ours to change or to take off.
func openPin[T any](d *Datapath, name string, load func(string, *ebpf.LoadPinOptions) (T, error)) (object T, err error) {
	dir, err := d.openOwn()
	if err != nil {
		return object, err
	}
	defer dir.Close()
	f, err := dir.OpenFile(name, unix.O_PATH, 0) // so that what is looked at is what is opened
	if err != nil {
		return object, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return object, err
	}
	if !alone(info) {
		return object, fmt.Errorf("%s is a link to elsewhere: remove it", filepath.Join(d.dir, name))
	}
	return load(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil)
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
	dir, err := d.openOwn()
	if err != nil {
		return err
	}
	return chownAll(dir, int(st.Uid), int(st.Gid))
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
