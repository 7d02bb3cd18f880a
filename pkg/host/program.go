// SPDX-License-Identifier: Apache-2.0

package host

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programInfo is the beginning of the kernel's struct bpf_prog_info, up to the name.
type programInfo struct {
	Type, ID          uint32
	Tag               [8]byte
	Jited, Xlated     uint32
	JitedAt, XlatedAt uint64
	LoadTime          uint64
	UID, Maps         uint32
	MapIDs            uint64
	Name              [unix.BPF_OBJ_NAME_LEN]byte
}

// programName is the name of a loaded BPF program; "" for those who may not ask
// (CAP_SYS_ADMIN). It is asked here, with bare system calls, since whoever owns the
// hook is a fact of the machine, and this package is a leaf that loads nothing.
func programName(id uint32) string {
	get := struct{ ID, Next, Flags uint32 }{ID: id}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_GET_FD_BY_ID, uintptr(unsafe.Pointer(&get)), unsafe.Sizeof(get))
	if errno != 0 {
		return ""
	}
	defer unix.Close(int(fd))
	// The kernel's pointer to it is a number to Go, so it must not move or go.
	info := new(programInfo)
	var pin runtime.Pinner
	pin.Pin(info)
	defer pin.Unpin()
	ask := struct {
		FD, Length uint32
		Info       uint64
	}{FD: uint32(fd), Length: uint32(unsafe.Sizeof(*info)), Info: uint64(uintptr(unsafe.Pointer(info)))}
	_, _, errno = unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&ask)), unsafe.Sizeof(ask))
	if errno != 0 {
		return ""
	}
	return unix.ByteSliceToString(info.Name[:])
}
