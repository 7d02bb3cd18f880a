// SPDX-License-Identifier: Apache-2.0

// Package sandbox takes from a process what it does not need: system calls by seccomp, files by
// Landlock. It is for workers, which speak with strangers. Nothing of it can be taken back, and
// what is refused fails with an error, so that the Go runtime goes on whatever it asks for.
package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Readable are the directories that a confined process may still read: certificates of
// authorities, which crypto/x509 reads when an upstream is verified for the first time. Those
// that do not exist are left out.
var Readable = []string{"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"}

// Enter confines all threads of this process, those to come included. What the kernel cannot do
// is in missing, in words for an operator; the rest holds all the same. no_new_privs is set.
func Enter() (missing []string, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("set no_new_privs: %w", err)
	}
	without, err := restrictFiles(Readable)
	if err != nil {
		return nil, fmt.Errorf("restrict files by Landlock: %w", err)
	}
	if without != "" {
		missing = append(missing, without)
	}
	// Last, since it refuses what the others need.
	program := filter(os.Getpid())
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Without SPEC_ALLOW kernels before 5.16 switch the processor's speculation off for a
	// filtered process, which costs far more than the filter.
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EINVAL, unix.EPERM, unix.EACCES:
		return append(missing, fmt.Sprintf("no filter of system calls: this kernel has no CONFIG_SECCOMP_FILTER, or a container forbids it (%v)", errno)), nil
	default:
		return nil, fmt.Errorf("filter system calls: %w", errno)
	}
	if thread != 0 {
		return nil, fmt.Errorf("filter system calls: thread %d has a filter of its own", thread)
	}
	return missing, nil
}

// fileRights of Landlock by its ABI: what each version is the first to know.
var fileRights = []uint64{
	1: unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM,
	2: unix.LANDLOCK_ACCESS_FS_REFER,
	3: unix.LANDLOCK_ACCESS_FS_TRUNCATE,
	5: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV,
}

// LandlockABI is the version that the kernel has, 0 for none (before 5.13, or switched off).
func LandlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// restrictFiles leaves reading below the directories, and nothing else of the file system.
// Descriptors that are open stay as they are.
func restrictFiles(readable []string) (without string, err error) {
	abi := LandlockABI()
	if abi == 0 {
		return "no bounds for files: this kernel has no Landlock (5.13 or newer, and landlock in its list of security modules), or a container forbids it", nil
	}
	var all unix.LandlockRulesetAttr
	for version, rights := range fileRights {
		if version <= abi {
			all.Handled_access_fs |= rights
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&all)), unsafe.Sizeof(all.Handled_access_fs), 0)
	if errno != 0 {
		return "", fmt.Errorf("make rules: %w", errno)
	}
	defer unix.Close(int(fd))
	for _, dir := range readable {
		if err := allowReading(fd, dir); err != nil && !os.IsNotExist(err) {
			return "", fmt.Errorf("allow %s: %w", dir, err)
		}
	}
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
	if errno == syscall.ENOTSUP {
		return "no bounds for files: this program is linked with C, and knows not all of its threads; build it with CGO_ENABLED=0", nil
	}
	if errno != 0 {
		return "", errno
	}
	return "", nil
}

func allowReading(ruleset uintptr, dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{
		Allowed_access: unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR, Parent_fd: int32(fd),
	}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, ruleset, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
