// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"slices"

	"golang.org/x/sys/unix"
)

// rule says what becomes of a system call.
type rule int

const (
	refused  rule = iota // EPERM
	allowed              // whatever its arguments are
	unknown              // ENOSYS: libc has another way then
	threads              // clone, for threads of this process
	families             // socket, of the families that a worker needs
	own                  // tgkill, to this process
)

// everywhere are the calls of a worker that all architectures have. What is not here is
// refused: bpf, execve, ptrace, mount, module, keyctl, io_uring, listen, kill, prctl, ….
var everywhere = map[int]rule{
	// connections
	unix.SYS_READ: allowed, unix.SYS_WRITE: allowed, unix.SYS_READV: allowed, unix.SYS_WRITEV: allowed,
	unix.SYS_RECVFROM: allowed, unix.SYS_SENDTO: allowed, unix.SYS_RECVMSG: allowed, unix.SYS_SENDMSG: allowed,
	unix.SYS_ACCEPT4: allowed, unix.SYS_SOCKET: families, unix.SYS_CONNECT: allowed, unix.SYS_BIND: allowed,
	unix.SYS_GETSOCKNAME: allowed, unix.SYS_GETPEERNAME: allowed, unix.SYS_SETSOCKOPT: allowed, unix.SYS_GETSOCKOPT: allowed,
	unix.SYS_SHUTDOWN: allowed, unix.SYS_CLOSE: allowed, unix.SYS_SPLICE: allowed, unix.SYS_SENDFILE: allowed,
	unix.SYS_EPOLL_CREATE1: allowed, unix.SYS_EPOLL_CTL: allowed, unix.SYS_EPOLL_PWAIT: allowed, unix.SYS_PPOLL: allowed,
	unix.SYS_EVENTFD2: allowed, unix.SYS_PIPE2: allowed, unix.SYS_FCNTL: allowed, unix.SYS_DUP: allowed, unix.SYS_DUP3: allowed,
	// files; which ones is for Landlock and the user to say
	unix.SYS_OPENAT: allowed, unix.SYS_FSTAT: allowed, unix.SYS_NEWFSTATAT: allowed, unix.SYS_LSEEK: allowed, unix.SYS_PREAD64: allowed,
	unix.SYS_GETDENTS64: allowed, unix.SYS_READLINKAT: allowed,
	// memory
	unix.SYS_MMAP: allowed, unix.SYS_MUNMAP: allowed, unix.SYS_MREMAP: allowed, unix.SYS_MPROTECT: allowed,
	unix.SYS_MADVISE: allowed, unix.SYS_MINCORE: allowed, unix.SYS_BRK: allowed,
	// threads, signals and time
	unix.SYS_CLONE: threads, unix.SYS_CLONE3: unknown, unix.SYS_SET_ROBUST_LIST: allowed, unix.SYS_RSEQ: allowed,
	unix.SYS_FUTEX: allowed, unix.SYS_SCHED_YIELD: allowed, unix.SYS_SCHED_GETAFFINITY: allowed, unix.SYS_TGKILL: own,
	unix.SYS_RT_SIGACTION: allowed, unix.SYS_RT_SIGPROCMASK: allowed, unix.SYS_RT_SIGRETURN: allowed, unix.SYS_SIGALTSTACK: allowed,
	unix.SYS_NANOSLEEP: allowed, unix.SYS_CLOCK_NANOSLEEP: allowed, unix.SYS_CLOCK_GETTIME: allowed, unix.SYS_CLOCK_GETRES: allowed,
	unix.SYS_GETTIMEOFDAY: allowed, unix.SYS_RESTART_SYSCALL: allowed, unix.SYS_EXIT: allowed, unix.SYS_EXIT_GROUP: allowed,
	// who and where it is
	unix.SYS_GETPID: allowed, unix.SYS_GETTID: allowed, unix.SYS_GETPPID: allowed, unix.SYS_GETUID: allowed, unix.SYS_GETEUID: allowed,
	unix.SYS_GETGID: allowed, unix.SYS_GETEGID: allowed, unix.SYS_GETCPU: allowed, unix.SYS_GETRUSAGE: allowed,
	unix.SYS_GETRANDOM: allowed, unix.SYS_UNAME: allowed,
}

// socketFamilies are IPv4, IPv6, and netlink, which Go asks for names of interfaces when an
// address has a zone.
var socketFamilies = []uint32{unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// span is a run of system calls, from a number up to the next span's, that one rule is for.
type span struct {
	from uint32
	rule rule
}

// spans cut all numbers into runs.
func spans() []span {
	rules := map[int]rule{}
	numbers := []int{}
	for _, list := range []map[int]rule{everywhere, here} {
		for n, r := range list {
			rules[n] = r
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	all := []span{{0, refused}}
	put := func(from int, r rule) {
		last := &all[len(all)-1]
		if int(last.from) == from {
			last.rule = r
			return
		}
		if last.rule != r {
			all = append(all, span{uint32(from), r})
		}
	}
	next := 0 // number
	for _, n := range numbers {
		if n > next {
			put(next, refused)
		}
		put(n, rules[n])
		next = n + 1
	}
	put(next, refused)
	return all
}

// Offsets in struct seccomp_data. Both architectures have their low half first.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
)

// filter is the program for a process of the id. It searches the number by halves: seven
// comparisons. Since 5.11 the kernel runs it only for calls whose arguments it looks at: it
// tries each number beforehand and remembers those that are always allowed.
func filter(pid int) []unix.SockFilter {
	const jumpIfEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	program := []unix.SockFilter{
		load(offArch),
		{Code: jumpIfEqual, Jt: 1, K: auditArch},
		result(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
		load(offNumber),
	}
	return append(program, search(spans(), uint32(pid))...)
}

// search finds the span of the number that is loaded.
func search(all []span, pid uint32) []unix.SockFilter {
	if len(all) == 1 {
		return decide(all[0].rule, pid)
	}
	half := len(all) / 2
	below, above := search(all[:half], pid), search(all[half:], pid)
	// At most some 200 instructions: the jump fits into its 8 bits, which a test holds.
	jump := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jt: uint8(len(below)), K: all[half].from}
	return append(append([]unix.SockFilter{jump}, below...), above...)
}

func decide(r rule, pid uint32) []unix.SockFilter {
	pass, refuse := result(unix.SECCOMP_RET_ALLOW), result(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM))
	switch r {
	case allowed:
		return []unix.SockFilter{pass}
	case unknown:
		return []unix.SockFilter{result(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))}
	case threads:
		return []unix.SockFilter{load(offArg0), {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.CLONE_THREAD}, pass, refuse}
	case own:
		return anyOf([]uint32{pid})
	case families:
		return anyOf(socketFamilies)
	}
	return []unix.SockFilter{refuse}
}

// anyOf allows calls whose first argument is one of the values.
func anyOf(values []uint32) []unix.SockFilter {
	program := []unix.SockFilter{load(offArg0)}
	for i, v := range values {
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(values) - i), K: v})
	}
	return append(program, result(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)), result(unix.SECCOMP_RET_ALLOW))
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func result(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}
