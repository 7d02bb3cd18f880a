// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if addresses := os.Getenv("XGW_CONFINED"); addresses != "" {
		confined(strings.Fields(addresses))
		return
	}
	os.Exit(m.Run())
}

// run is what the kernel makes of the program.
func run(t *testing.T, program []unix.SockFilter, arch, number, arg0 uint32) uint32 {
	t.Helper()
	var a uint32
	for i := 0; i < len(program); i++ {
		jump := func(yes bool) {
			if yes {
				i += int(program[i].Jt)
			} else {
				i += int(program[i].Jf)
			}
		}
		switch in := program[i]; in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = map[uint32]uint32{offNumber: number, offArch: arch, offArg0: arg0}[in.K]
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= in.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&in.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		default:
			t.Fatalf("instruction %d: code %#x", i, in.Code)
		}
	}
	t.Fatalf("call %d: the program has no end", number)
	return 0
}

func TestFilter(t *testing.T) {
	const (
		pass   = unix.SECCOMP_RET_ALLOW
		refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		pid    = 4711
	)
	program := filter(pid)
	if len(program) > 250 {
		t.Errorf("%d instructions: jumps may not fit", len(program))
	}
	for number := range uint32(1 << 12) {
		r, ok := everywhere[int(number)]
		if !ok {
			r = here[int(number)]
		}
		// The first argument when the call shall pass, and when not.
		args := map[rule][2]uint32{threads: {unix.CLONE_THREAD | unix.CLONE_VM, unix.CLONE_VM}, own: {pid, 1}, families: {unix.AF_INET6, unix.AF_ALG}}[r]
		good, bad := args[0], args[1]
		wantGood, wantBad := uint32(pass), uint32(refuse)
		switch r {
		case allowed:
			wantBad = pass
		case refused:
			wantGood = refuse
		case unknown:
			wantGood = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
			wantBad = wantGood
		}
		if got := run(t, program, auditArch, number, good); got != wantGood {
			t.Errorf("call %d(%#x): %#x, want %#x", number, good, got, wantGood)
		}
		if got := run(t, program, auditArch, number, bad); got != wantBad {
			t.Errorf("call %d(%#x): %#x, want %#x", number, bad, got, wantBad)
		}
		for _, other := range []uint32{unix.AUDIT_ARCH_I386, 0} {
			if got := run(t, program, other, number, good); got != refuse {
				t.Errorf("call %d of another architecture: %#x", number, got)
			}
		}
	}
	const x32 = 1 << 30
	for _, number := range []uint32{x32, x32 + unix.SYS_READ, x32 + unix.SYS_MMAP, 1<<32 - 1} {
		if got := run(t, program, auditArch, number, 0); got != refuse {
			t.Errorf("call %#x: %#x", number, got)
		}
	}
}

// report is what the confined process found.
type report struct {
	Missing []string
	Refused map[string]string // by what was tried: the error, "" for none
	Works   map[string]string // likewise
}

// TestEnter confines a process, which tries what it must not and does what it must.
func TestEnter(t *testing.T) {
	var addresses []string
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue // a machine without IPv6
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"XGW_CONFINED=" + strings.Join(addresses, " ")}
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close() // it waits for this
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	var r report
	if err := json.NewDecoder(out).Decode(&r); err != nil {
		t.Fatal(err)
	}
	for what, said := range r.Works {
		if said != "" {
			t.Errorf("%s: %s", what, said)
		}
	}
	files := LandlockABI() > 0 && !strings.Contains(strings.Join(r.Missing, " "), "files")
	if want := map[bool]int{true: 0, false: 1}[files]; len(r.Missing) != want {
		t.Errorf("missing: %q", r.Missing)
	}
	for what, said := range r.Refused {
		if said == "" && (files || !strings.Contains(what, "file")) {
			t.Errorf("%s is not refused", what)
		}
	}
	if len(r.Works) < 6 || len(r.Refused) < 15 {
		t.Errorf("it tried too little: %+v", r)
	}
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	if err != nil || len(all) < 5 {
		t.Fatalf("threads: %q, %v", all, err)
	}
	for _, path := range all {
		status, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended
		}
		if err != nil || !strings.Contains(string(status), "Seccomp:\t2") || !strings.Contains(string(status), "NoNewPrivs:\t1") {
			t.Errorf("%s, %v:\n%s", path, err, status)
		}
	}
	if !files {
		t.Logf("files were not tried: %q", r.Missing)
	}
}

// confined is the process of TestEnter.
func confined(addresses []string) {
	r := report{Refused: map[string]string{}, Works: map[string]string{}}
	startThreads(4)
	var err error
	if r.Missing, err = Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	listening, socketErr := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	r.Works["socket"] = text(socketErr)
	for what, call := range map[string][4]uintptr{
		"bpf": {unix.SYS_BPF, 99}, "ptrace": {unix.SYS_PTRACE, unix.PTRACE_TRACEME}, "mount": {unix.SYS_MOUNT}, "init_module": {unix.SYS_INIT_MODULE},
		"finit_module": {unix.SYS_FINIT_MODULE}, "keyctl": {unix.SYS_KEYCTL}, "add_key": {unix.SYS_ADD_KEY}, "execve": {unix.SYS_EXECVE},
		"execveat": {unix.SYS_EXECVEAT}, "unshare": {unix.SYS_UNSHARE}, "setns": {unix.SYS_SETNS}, "kill": {unix.SYS_KILL, uintptr(os.Getppid())},
		"tgkill of another": {unix.SYS_TGKILL, uintptr(os.Getppid()), uintptr(os.Getppid())}, "io_uring": {unix.SYS_IO_URING_SETUP, 1}, "fork": {unix.SYS_CLONE, uintptr(unix.SIGCHLD)},
		"perf_event_open": {unix.SYS_PERF_EVENT_OPEN}, "process_vm_readv": {unix.SYS_PROCESS_VM_READV}, "listen": {unix.SYS_LISTEN, uintptr(listening), 1},
		"unix socket": {unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM}, "crypto socket": {unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET}, "prctl": {unix.SYS_PRCTL, unix.PR_GET_DUMPABLE},
	} {
		_, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3])
		r.Refused[what] = ""
		if errno == unix.EPERM { // any other error would come from the call itself
			r.Refused[what] = errno.Error()
		}
	}
	_, err = os.ReadFile("/etc/passwd")
	r.Refused["file to read"] = text(err)
	_, err = os.Create(filepath.Join(os.TempDir(), "xgw-confined"))
	r.Refused["file to make"] = text(err)
	_, err = os.ReadDir("/proc")
	r.Refused["file names"] = text(err)

	startThreads(8)
	runtime.GC()
	time.Sleep(time.Millisecond)
	r.Works["certificates"] = ""
	if _, err := os.ReadDir("/etc/ssl"); err != nil && !os.IsNotExist(err) {
		r.Works["certificates"] = err.Error()
	}
	for _, address := range addresses {
		c, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err == nil {
			_, err = c.Write([]byte("x"))
			err = errors.Join(err, c.Close())
		}
		r.Works["dial "+address] = text(err)
	}
	_, err = net.Interfaces()
	r.Works["interfaces"] = text(err)
	r.Works["signal to itself"] = text(unix.Tgkill(os.Getpid(), unix.Gettid(), 0))
	r.Works["threads"] = ""
	r.Works["entering again"] = "it is not refused"
	if _, err := Enter(); err != nil { // prctl is refused
		r.Works["entering again"] = ""
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(1)
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// startThreads makes so many threads, which stay.
func startThreads(n int) {
	var up sync.WaitGroup
	for range n {
		up.Add(1)
		go func() {
			runtime.LockOSThread()
			up.Done()
			select {}
		}()
	}
	up.Wait()
}

// BenchmarkCall is what a system call costs: plain, and in a confined process. It must come
// last, for there is no way back.
func BenchmarkCall(b *testing.B) {
	fd, err := unix.Open("/dev/null", unix.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	one := []byte{0}
	write := func(b *testing.B) {
		for b.Loop() {
			if _, err := syscall.Write(fd, one); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("plain", write)
	if _, err := Enter(); err != nil {
		b.Fatal(err)
	}
	b.Run("confined", write)
}
