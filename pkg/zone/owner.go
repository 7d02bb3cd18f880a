// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// owner is the process that made a zone. A process id alone would name a stranger
// once it is given out again.
type owner struct {
	pid   int
	start uint64 // clock ticks since boot; 0: not known
}

func ownerIn(h words) owner {
	return owner{pid: int(int32(min(h.load(headPID), 1<<30))), start: h.load(headStart)}
}

// alive tells whether the process runs. One that was killed and waits to be reaped
// does not. Without /proc the id has to do.
func (o owner) alive() bool {
	if o.pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", o.pid))
	if err != nil {
		err := unix.Kill(o.pid, 0)
		return err == nil || errors.Is(err, unix.EPERM)
	}
	state, start, err := parseStat(stat)
	if err != nil {
		return true
	}
	return state != 'Z' && state != 'X' && (o.start == 0 || o.start == start)
}

// self is this process.
func self() owner {
	o := owner{pid: os.Getpid()}
	if stat, err := os.ReadFile("/proc/self/stat"); err == nil {
		_, o.start, _ = parseStat(stat)
	}
	return o
}

// parseStat picks state (field 3) and start time (field 22) out of /proc/PID/stat;
// see proc_pid_stat(5). The command's name, in parentheses, may hold anything.
func parseStat(stat []byte) (state byte, start uint64, err error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, 0, errors.New("read process status: no command name")
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("read process status: %d fields", len(fields)+2)
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("read process status: start time: %w", err)
	}
	return fields[0][0], start, nil
}

// occupant looks who owns the file in the place of a new zone: pid 0 for none. It
// is an error when that file must not be replaced: its owner is alive and has not agreed,
// or it is no zone at all. A zone of another layout version has its owner in the same place.
func occupant(path string, agreed int) (pid int, err error) {
	f, err := openRegular(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := make(words, headStart+1)
	if _, err := f.ReadAt(bytesOf(h), 0); errors.Is(err, io.EOF) || err == nil && h[headMagic] != magic {
		return 0, fmt.Errorf("%w: remove the file or choose another one", ErrNotZone)
	} else if err != nil {
		return 0, err
	}
	o := ownerIn(h)
	if o.alive() && o.pid != agreed {
		return 0, fmt.Errorf("%w by process %d: stop it, or give this one an --instance of its own", ErrInUse, o.pid)
	}
	return o.pid, nil
}

// openRegular opens a file for reading that may be anything: a pipe must not make
// it wait.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%w: not a regular file", ErrNotZone))
	}
	return f, nil
}
