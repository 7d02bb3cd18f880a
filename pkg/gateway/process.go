// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/host"
)

// Descriptors that a worker inherits, after the standard three.
const (
	fdControl = 3 + iota
	fdZone
	fdSignals
	fdLog
)

// nobody is the user of a worker where the configured one does not exist.
const nobody = 65534

// process is one run of a worker.
type process struct {
	cmd     *exec.Cmd
	control *control
	refused error // why it did not take its first configuration; settled when converse ends

	asking  sync.Mutex    // one question at a time
	answers chan *message // to it; nobody waits for more than one
	gone    chan struct{} // closed when the control socket has ended
	changed chan struct{} // upstreams' servers are others than it was told
	lines   net.Conn      // of its error log, until it has ended
}

// start executes this very binary as a worker on the core (-1: on any), with so many bytes
// of memory (0: any). The
// affinity is that of the starting thread, inherited before the child's runtime
// starts threads of its own; nothing later could pin them all.
func start(from *steady, slot, core int, memory int64, files []*os.File, credential *syscall.Credential) (*process, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("start worker %d: %w", slot, err)
	}
	defer theirs.Close()
	lines, itsLines, err := linePair()
	if err != nil {
		ours.close()
		return nil, fmt.Errorf("start worker %d: %w", slot, err)
	}
	defer itsLines.Close()
	// Not the path: that may hold another version by now.
	cmd := exec.Command("/proc/self/exe", "worker", "--slot", strconv.Itoa(slot))
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=400"}
	if memory > 0 {
		cmd.Env = append(cmd.Env, "GOMEMLIMIT="+strconv.FormatInt(memory, 10))
	}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = append(append([]*os.File{theirs}, files...), itsLines)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, Setpgid: true}
	if err := from.do(func() error { return startOn(core, cmd) }); err != nil {
		ours.close()
		lines.Close()
		return nil, fmt.Errorf("start worker %d: %w", slot, err)
	}
	return &process{cmd: cmd, control: ours, lines: lines, answers: make(chan *message, 1), gone: make(chan struct{}), changed: make(chan struct{}, 1)}, nil
}

// errGone: the worker ended before it answered.
var errGone = errors.New("the worker is gone")

// ask sends a message to a worker that serves and waits until it has done so.
func (p *process) ask(m *message, patience time.Duration) error {
	_, err := p.answer(m, patience)
	return err
}

// answer is ask, with what the worker says.
func (p *process) answer(m *message, patience time.Duration) (*message, error) {
	p.asking.Lock()
	defer p.asking.Unlock()
	select {
	case <-p.answers: // to a question that nobody waited for any longer
	default:
	}
	if err := p.control.send(m); err != nil {
		return nil, errors.Join(errGone, err)
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case a := <-p.answers:
			if a.Generation != m.generation() {
				continue
			}
			if a.Kind == kindRefused {
				return nil, errors.New(a.Error)
			}
			return a, nil
		case <-p.gone:
			return nil, errGone
		case <-late.C:
			return nil, fmt.Errorf("no answer within %s", patience)
		}
	}
}

// timerSlack is by how much a worker's timers may be late, in nanoseconds: nothing there
// is due to less. Its runtime has a thread that looks after the others every 20 µs while
// they are busy, and on a worker's only core that costs the requests.
const timerSlack = 2 * time.Millisecond

// startOn starts the command with the affinity of one core (-1: as it is, of all workers)
// and with no_new_privs. Both are a thread's and inherited, and the second cannot be taken
// back, so the calling thread is for this alone.
func startOn(core int, cmd *exec.Cmd) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	if core >= 0 {
		var one unix.CPUSet
		one.Set(core)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("pin to core %d: it is not among the allowed ones; set `pin: false` or `workers:`: %w", core, err)
		}
	}
	return cmd.Start()
}

// socketpair makes the control socket: our end, and the one to hand over.
func socketpair() (*control, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make control socket: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	ours := os.NewFile(uintptr(fds[0]), "control")
	conn, err := net.FileConn(ours)
	ours.Close() // conn has a descriptor of its own
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make control socket: %w", err)
	}
	return &control{conn: conn.(*net.UnixConn), patience: takeTime}, theirs, nil
}

// workerCredential is the user that workers run as: nil when this process may not
// give them another than its own. said tells what the operator should know.
func workerCredential(name string) (c *syscall.Credential, said string) {
	if !host.Has(unix.CAP_SETUID) || !host.Has(unix.CAP_SETGID) {
		return nil, "neither root nor with CAP_SETUID and CAP_SETGID: workers run as this user, without a change of user"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return &syscall.Credential{Uid: nobody, Gid: nobody, Groups: nil},
			fmt.Sprintf("no user %s: workers run as uid %d; `useradd --system %s` makes it", name, nobody, name)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if errors.Join(err1, err2) != nil {
		return &syscall.Credential{Uid: nobody, Gid: nobody}, fmt.Sprintf("user %s has no numeric id: workers run as uid %d", name, nobody)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, ""
}
