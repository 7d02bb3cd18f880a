// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a log's file, which logrotate moves away and Reopen makes anew. It may
// be written and opened anew at the same time.
type File struct {
	current atomic.Pointer[os.File]

	mu   sync.Mutex // of Reopen and Close; writing needs none
	path string     // empty for what is no file
}

// Open opens a log for appending, with its directory where that is missing, mode
// 0640: lines hold addresses of clients. Path "-" is the standard stream, and
// "off" is nothing.
func Open(path string, standard *os.File) (*File, error) {
	f := new(File)
	switch path {
	case "off":
		return f, nil
	case "-":
		// A copy: to write to descriptors 1 and 2 themselves when nobody reads them any
		// more ends a Go process by SIGPIPE.
		fd, err := unix.FcntlInt(standard.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, fmt.Errorf("open log: copy %s: %w", standard.Name(), err)
		}
		f.current.Store(os.NewFile(uintptr(fd), standard.Name()))
		return f, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	f.path = path
	if err := f.Reopen(); err != nil {
		return nil, err
	}
	return f, nil
}

// Off tells that everything written is thrown away.
func (f *File) Off() bool { return f.current.Load() == nil }

// Reopen opens the path again and closes what was open. With an error the old file
// stays in use. Standard streams stay as they are.
func (f *File) Reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.path == "" {
		return nil
	}
	// Not to wait for the reader of a pipe.
	next, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if old := f.current.Swap(next); old != nil {
		return old.Close() // after a write that is under way
	}
	return nil
}

func (f *File) Write(b []byte) (int, error) {
	for {
		out := f.current.Load()
		if out == nil {
			return len(b), nil
		}
		n, err := out.Write(b)
		if errors.Is(err, os.ErrClosed) && n == 0 && f.current.Load() != out {
			continue // opened anew meanwhile
		}
		return n, err
	}
}

// Close closes the file; what is written later is thrown away.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path = ""
	if old := f.current.Swap(nil); old != nil {
		return old.Close()
	}
	return nil
}
