// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
	"github.com/xgw-project/xgw/pkg/gateway"
	"github.com/xgw-project/xgw/pkg/lab"
)

// rootless is a user that no machine has.
const rootless = 61234

// unitCapabilities are those of deploy/gateway-engine.service, which a test compares.
var unitCapabilities = map[string]uintptr{
	"CAP_BPF": unix.CAP_BPF, "CAP_PERFMON": unix.CAP_PERFMON, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
	"CAP_SETUID": unix.CAP_SETUID, "CAP_SETGID": unix.CAP_SETGID, "CAP_KILL": unix.CAP_KILL, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
}

// confine has the command start as the unit starts the supervisor.
func confine(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: rootless, Gid: rootless}}
	for _, c := range unitCapabilities {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, c)
	}
}

// mustBeRootless reads from /proc what the process may do.
func mustBeRootless(t *testing.T, pid int) {
	t.Helper()
	var mask uint64
	for _, c := range unitCapabilities {
		mask |= 1 << c
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", rootless), fmt.Sprintf("CapEff:\t%016x\n", mask), fmt.Sprintf("CapPrm:\t%016x\n", mask),
			"CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n",
		} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %q:\n%s", path, want, text)
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("core dumps are on: %v\n%s", err, limits)
	}
	// What a process that may not be dumped has in /proc is root's.
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/environ", pid), &st); err != nil || st.Uid != 0 {
		t.Errorf("others of its user may look into the supervisor: %d, %v", st.Uid, err)
	}
}

// A supervisor that was never root does all that one that is root does: both planes, reloads,
// verdicts, workers that die, upgrades and their way back, its own death, a clean stop.
func TestSupervisorWithoutRoot(t *testing.T) {
	needRoot(t, "makes a lab")
	if _, _, err := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); err == syscall.ENOTSUP {
		t.Skip("needs CGO_ENABLED=0, as `make test` has it: rights are given up by all threads, and those of C are not known")
	}
	const instance = "rootless"
	l := mustLab(t, "xgwrootless")
	dir := t.TempDir()
	ln, err := l.Listen(lab.Upstream, "tcp", "203.0.113.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: lab.NewUpstream()}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	t.Cleanup(func() { _ = os.Remove("/sys/fs/bpf/xgw-" + instance) })
	zone := gateway.ZonePath(instance)
	mustPrepareWithoutPins(t, l, instance, zone)
	// What will become the zone has been made by a stranger, who has it open.
	planted, err := os.Create(zone + ".new")
	if err != nil {
		t.Fatal(err)
	}
	defer planted.Close()
	if err := planted.Chown(rootless+1, rootless+1); err != nil {
		t.Fatal(err)
	}
	mustXGW(t, l, "--instance", instance, "prepare", "--user", strconv.Itoa(rootless))
	if err := os.Chown(dir, rootless, rootless); err != nil {
		t.Fatal(err)
	}
	fault := filepath.Join(dir, "fault")
	t.Setenv("XGW_TEST_FAULT", fault)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	// Root's certificate and configuration, which only root reads.
	chain, key := certificateFiles(t, t.TempDir())
	text := gatewayYAML(dir, ":443", "203.0.113.2:8080", "interfaces: [{name: edge0}]\npin: false\ntimeouts: {drain: 1s}\n")
	text = strings.Replace(text, "    server_names:", "    certificate: "+chain+"\n    key: "+key+"\n    server_names:", 1)
	start := func(cmd *exec.Cmd) error { confine(cmd); return l.Start(lab.Gateway, cmd) }
	first := startGateway(t, start, instance, dir, text)
	u := newUpgrader(t, first, instance)
	u.ctl = admin.NewClient(filepath.Join(dir, "xgw", instance+".sock"))
	mustBeRootless(t, u.pid)
	strangers, err1 := planted.Stat()
	if live, err := os.Stat(zone); err != nil || err1 != nil || os.SameFile(live, strangers) {
		t.Errorf("a stranger has the zone open: %v, %v", err, err1)
	}
	url := "https://" + lab.GatewayAddr.String() + "/"
	get(t, newClientIn(l), url)
	program := statusOf(t, l, instance).Program
	works := func() {
		t.Helper()
		mustBeRootless(t, u.pid)
		if _, err := u.ctl.Reload(0); err != nil {
			t.Errorf("reload: %v\n%s", err, first.log)
		}
		if _, err := u.ctl.AddVerdict(admin.AddVerdict{Source: "192.0.2.99", Step: "all", TTL: time.Hour}); err != nil {
			t.Errorf("verdict: %v", err)
		}
		if _, err := u.ctl.Explain(admin.ExplainRequest{Path: "/", Client: "192.0.2.99"}); err != nil {
			t.Errorf("explain: %v", err)
		}
		get(t, newClientIn(l), url)
	}
	works()
	u.upgrade(t)
	works()
	if now := statusOf(t, l, instance).Program; now == program {
		t.Error("the kernel plane has the program of before the upgrade")
	}
	if err := os.WriteFile(fault, []byte("check"), 0o644); err != nil {
		t.Fatal(err)
	}
	u.failing(t, 0, "made to fail")
	if err := os.Remove(fault); err != nil {
		t.Fatal(err)
	}
	works()
	// What root attaches or changes meanwhile is the gateway's, too.
	mustXGW(t, l, "--instance", instance, "upgrade", "edge0")
	works()
	_ = syscall.Kill(u.pid, syscall.SIGKILL)
	eventually(t, "the supervisor is gone", func() bool { return syscall.Kill(u.pid, 0) != nil })
	second := startGateway(t, start, instance, dir, text)
	u.running, u.pid = second, second.cmd.Process.Pid
	works()
	// It may end a worker that hangs, which is another user's process.
	for _, pid := range childrenOf(t, u.pid) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	second.stop(t)
	if s := ingressStatus(l, instance); s != nil {
		t.Error("still attached after a clean stop")
	}
}

// mustPrepareWithoutPins prepares a start where there is no BPF file system, and none can be
// mounted to stay: that is a note, and what was root's is given all the same.
func mustPrepareWithoutPins(t *testing.T, l *lab.Lab, instance, zone string) {
	t.Helper()
	if err := os.WriteFile(zone, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(zone)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tmpfs none /sys/fs/bpf && "$@"`, "sh",
		exe, "--instance", instance, "prepare", "--user", strconv.Itoa(rootless))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := l.Start(lab.Gateway, cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(said.String(), "note: no pins can be kept here") {
		t.Errorf("prepared without pins: %v, %s", err, said.String())
	}
	var st unix.Stat_t
	if err := unix.Stat(zone, &st); err != nil || st.Uid != rootless {
		t.Errorf("the zone is of %d, %v", st.Uid, err)
	}
}

func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range all {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), fmt.Sprintf("\nPPid:\t%d\n", pid)) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			children = append(children, child)
		}
	}
	if len(children) == 0 {
		t.Fatalf("process %d has no workers", pid)
	}
	return children
}

// attempts are what needs a capability that the unit's supervisor does not have, and which.
var attempts = map[string]struct {
	capability string
	try        func(dir string) error
}{
	"chown":         {"CAP_CHOWN", func(dir string) error { return os.Chown(dir+"/open", 1, 1) }},
	"write":         {"CAP_DAC_OVERRIDE", func(dir string) error { return os.WriteFile(dir+"/roots", nil, 0) }},
	"create":        {"CAP_DAC_OVERRIDE", func(dir string) error { return os.WriteFile(dir+"/new", nil, 0o600) }},
	"chmod":         {"CAP_FOWNER", func(dir string) error { return os.Chmod(dir+"/roots", 0o666) }},
	"lease":         {"CAP_LEASE", lease},
	"file rights":   {"CAP_SETFCAP", fileRights},
	"raw socket":    {"CAP_NET_RAW", func(string) error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
	"packet socket": {"CAP_NET_RAW", func(string) error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) }},
	"device":        {"CAP_MKNOD", func(string) error { return unix.Mknod("/dev/shm/xgw-device", unix.S_IFCHR|0o600, 1<<8|1) }},
	"chroot":        {"CAP_SYS_CHROOT", func(dir string) error { return unix.Chroot(dir) }},
	"priority":      {"CAP_SYS_NICE", func(string) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) }},
	"mount":         {"CAP_SYS_ADMIN", func(dir string) error { return unix.Mount("none", dir, "tmpfs", 0, "") }},
	"host name":     {"CAP_SYS_ADMIN", func(string) error { return unix.Sethostname([]byte("xgw")) }},
	"namespace":     {"CAP_SYS_ADMIN", func(string) error { return unix.Unshare(unix.CLONE_NEWNET) }},
	"clock":         {"CAP_SYS_TIME", func(string) error { now := unix.NsecToTimeval(time.Now().UnixNano()); return unix.Settimeofday(&now) }},
	"restart":       {"CAP_SYS_BOOT", func(string) error { return unix.Reboot(1) }}, // no command: refused before it is looked at
	"module":        {"CAP_SYS_MODULE", func(string) error { return unix.InitModule(nil, "") }},
	"accounting":    {"CAP_SYS_PACCT", func(string) error { return unix.Acct(dirOf("none")) }},
	"kernel's log":  {"CAP_SYSLOG", func(string) error { _, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_UNREAD, nil); return err }},
	"trace":         {"CAP_SYS_PTRACE", func(string) error { return unix.PtraceAttach(os.Getppid()) }},
	"alarm clock": {"CAP_WAKE_ALARM", func(string) error {
		fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME_ALARM, 0)
		_ = unix.Close(fd)
		return err
	}},
	"capability set": {"CAP_SETPCAP", func(string) error { return unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_WAKE_ALARM, 0, 0, 0) }},
	"hang-up":        {"CAP_SYS_TTY_CONFIG", func(string) error { _, _, errno := unix.Syscall(unix.SYS_VHANGUP, 0, 0, 0); return orNil(errno) }},
}

func dirOf(name string) string { return "/nonexistent/" + name }

func orNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func socket(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func lease(dir string) error {
	f, err := os.Open(dir + "/open")
	if err != nil {
		return fmt.Errorf("open: %v", err)
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return err
}

// fileRights gives a file CAP_NET_RAW.
func fileRights(dir string) error {
	value := [5]uint32{0x02000001, 1 << unix.CAP_NET_RAW}
	return unix.Setxattr(dir+"/own", "security.capability", unsafe.Slice((*byte)(unsafe.Pointer(&value)), 20), 0)
}

// The test's own process, started again with the rights of the supervisor, tries what needs
// each right that was taken, and is refused by the kernel; with root's rights the harmless ones
// of these succeed.
func TestTakenRightsAreRefused(t *testing.T) {
	if dir := os.Getenv("XGW_TEST_ATTEMPTS"); dir != "" {
		only := os.Getenv("XGW_TEST_HARMLESS")
		for name, a := range attempts {
			if only != "" && !slices.Contains(strings.Split(only, ","), name) {
				continue
			}
			var errno syscall.Errno
			if err := a.try(dir); errors.As(err, &errno) || err == nil {
				fmt.Printf("attempt %s: %d\n", name, int(errno))
			} else {
				fmt.Printf("attempt %s: %v\n", name, err)
			}
		}
		return
	}
	needRoot(t, "takes rights from a process")
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"open": 0o644, "roots": 0o600, "own": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dir, "own"), rootless, rootless); err != nil {
		t.Fatal(err)
	}
	run := func(how func(*exec.Cmd)) map[string]string {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestTakenRightsAreRefused$")
		cmd.Env = append(os.Environ(), "XGW_TEST_ATTEMPTS="+dir)
		how(cmd)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		all := map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^attempt ([^:]+): (.*)$`).FindAllStringSubmatch(string(out), -1) {
			all[m[1]] = m[2]
		}
		return all
	}
	got := run(confine)
	for name, a := range attempts {
		if _, kept := unitCapabilities[a.capability]; kept {
			t.Errorf("%s: the unit has %s", name, a.capability)
		}
		if e := got[name]; e != strconv.Itoa(int(unix.EPERM)) && e != strconv.Itoa(int(unix.EACCES)) &&
			e != strconv.Itoa(int(unix.ENOSYS)) { // a kernel without that
			t.Errorf("%s, which needs %s, comes to %q; want it refused", name, a.capability, e)
		}
	}
	harmless := []string{"chown", "write", "chmod", "raw socket", "priority"}
	t.Setenv("XGW_TEST_HARMLESS", strings.Join(harmless, ","))
	held := run(func(*exec.Cmd) {})
	for _, name := range harmless {
		if held[name] != "0" {
			t.Errorf("%s comes to %q for root: its refusal says nothing", name, held[name])
		}
	}
}
