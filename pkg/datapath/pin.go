// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const defaultBPFFS = "/sys/fs/bpf"

// beingMade ends the name of a directory that is not whole yet. It is so long that no
// interface can have that name.
const beingMade = "-being-made-anew"

// Names in the directory that are not BPF objects of the collection.
const (
	pinXDPLink = "xdp_link"
	// A directory whose presence says that the clsact qdisc was made by us; the
	// BPF file system holds no plain files.
	markClsact = "made_clsact"
	// Likewise: a gateway attached it for the time it runs, not an operator for good.
	markTransient = "transient"
)

type pinner interface {
	Pin(path string) error
	Close() error
}

// pinDir is where the objects of the interface are pinned.
func pinDir(o *Options) string {
	// The BPF file system refuses dots in names, an interface's name has no colons.
	return filepath.Join(pinRoot(o), strings.ReplaceAll(o.Interface, ".", ":"))
}

func pinRoot(o *Options) string {
	if o.Instance != "" {
		return filepath.Join(o.BPFFS, "xgw-"+o.Instance)
	}
	return filepath.Join(o.BPFFS, "xgw")
}

// ensureBPFFS mounts the BPF file system where it is missing.
func ensureBPFFS(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("no directory %s: this kernel has no BPF file system (CONFIG_BPF_SYSCALL): %w", path, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := CheckMount(); err != nil && path == defaultBPFFS {
		return err
	}
	if err := unix.Mount("bpf", path, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount the BPF file system: do it by hand with `mount -t bpf bpf %s`: %w", path, err)
	}
	return nil
}

// CheckMount tells whether a BPF file system that is mounted now would end with this
// process, and the kernel plane with it, although it was attached for good: that is so in a
// mount namespace made for one command.
func CheckMount() error {
	if !ownMountNamespace() {
		return nil
	}
	return errors.New("no BPF file system is at " + defaultBPFFS + " here, and one mounted now would go with this mount namespace, which `ip netns exec` " +
		"makes for each command: use `nsenter --net=/run/netns/NAME xgw …`, or, in a shell that stays, `mount -t bpf bpf " + defaultBPFFS + "`")
}

// ownMountNamespace tells whether a process that this one descends from has another mount
// namespace; those that may not be asked are passed over.
func ownMountNamespace() bool {
	own, err := os.Readlink("/proc/self/ns/mnt")
	for pid := os.Getppid(); err == nil && pid > 0; pid = parent(pid) {
		if other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil && other != own {
			return true
		}
	}
	return false
}

// parent is the process's, 0 for none that can be seen.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// PID (NAME) STATE PPID …, and the name may have anything in it.
	var state string
	var up int
	if _, err := fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &up); err != nil {
		return 0
	}
	return up
}

// pin puts all objects into a temporary directory and renames it into place.
func (d *Datapath) pin() (err error) {
	root := pinRoot(&d.options)
	_, statErr := os.Stat(root)
	madeRoot := os.IsNotExist(statErr)
	temp := d.dir + beingMade
	defer func() {
		if err != nil {
			_ = os.RemoveAll(temp)
			if madeRoot {
				_ = os.Remove(root) // fails when another interface moved in meanwhile: right
			}
		}
	}()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", root, err)
	}
	// What a killed process left half made is of no use to anyone.
	if err := os.RemoveAll(temp); err != nil {
		return fmt.Errorf("remove left-over %s: %w", temp, err)
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", temp, err)
	}
	for name, object := range d.objects.pinned() {
		if err := d.options.step("pin " + name); err != nil {
			return err
		}
		if err := object.Pin(filepath.Join(temp, name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	if err := d.options.step("rename"); err != nil {
		return err
	}
	if err := os.Rename(temp, d.dir); err != nil {
		return fmt.Errorf("rename %s to %s: %w", temp, d.dir, err)
	}
	return nil
}

// loadPins opens each pinned object and checks that its shape is this version's.
func (d *Datapath) loadPins() error {
	for name, p := range d.objects.programs() {
		prog, err := openPin(d, name, ebpf.LoadPinnedProgram)
		if name == tcIngress.name && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open pinned %s: %w: %w: `%s`, then attach again", name, err, ErrLayout, d.options.Command("detach"))
		}
		*p = prog
	}
	for name, m := range d.objects.maps() {
		opened, err := openPin(d, name, ebpf.LoadPinnedMap)
		if err != nil {
			return fmt.Errorf("open pinned %s: %w: %w: `%s`, then attach again", name, err, ErrLayout, d.options.Command("detach"))
		}
		*m = opened
	}
	return nil
}

// removePins takes the interface's directory away, and the root when it was the last.
func (d *Datapath) removePins() error {
	if err := os.RemoveAll(d.dir); err != nil {
		return fmt.Errorf("remove pins %s: %w", d.dir, err)
	}
	if !rootsOwn(pinRoot(&d.options)) {
		return nil
	}
	err := os.Remove(pinRoot(&d.options))
	if err == nil || os.IsNotExist(err) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", pinRoot(&d.options), err)
}

// MarkTransient notes that what is attached goes when the gateway stops, even if
// another process than the one that attached it stops it.
func (d *Datapath) MarkTransient() error {
	if err := os.Mkdir(filepath.Join(d.dir, markTransient), 0o700); err != nil {
		return fmt.Errorf("mark %s as transient: %w", d.dir, err)
	}
	return nil
}

// Transient tells whether MarkTransient was called for these pins.
func (d *Datapath) Transient() bool {
	_, err := os.Stat(filepath.Join(d.dir, markTransient))
	return err == nil
}

// Interfaces lists the interfaces that have pins of this instance, attached or
// stale. Only the instance and mount point of the options count.
func Interfaces(o Options) ([]string, error) {
	if o.BPFFS == "" {
		o.BPFFS = defaultBPFFS
	}
	entries, err := os.ReadDir(pinRoot(&o))
	if errors.Is(err, os.ErrNotExist) {
		var st unix.Statfs_t
		if err := unix.Statfs(o.BPFFS, &st); o.BPFFS == defaultBPFFS && err == nil && st.Type != unix.BPF_FS_MAGIC {
			return nil, CheckMount()
		}
		return nil, nil
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("list pins: not permitted: run it with sudo: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), beingMade) {
			names = append(names, strings.ReplaceAll(e.Name(), ":", "."))
		}
	}
	return names, nil
}
