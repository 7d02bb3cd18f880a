// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/logging"
)

// longestLine is what a worker's line is read into: above what logging lets one be.
const longestLine = 32 << 10

// SetLogLevel changes from which level on (debug, info, warn, error or crit) supervisor and
// workers write the error log, until that is done again or the gateway is started anew.
func (s *supervisor) SetLogLevel(word string) error {
	level, err := logging.ParseLevel(word)
	if err != nil {
		return err
	}
	h, ok := s.log.Handler().(*logging.Handler)
	if !ok {
		return fmt.Errorf("log level %s: this error log has none", word)
	}
	was := logging.LevelWord(h.Level())
	h.SetLevel(level)
	s.crew.setLogLevel(word)
	s.log.Info("log level is changed", "from", was, "to", word)
	return nil
}

// LogLevel is the error log's.
func (s *supervisor) LogLevel() string {
	if h, ok := s.log.Handler().(*logging.Handler); ok {
		return logging.LevelWord(h.Level())
	}
	return ""
}

// reopen opens both logs' files anew, which logrotate has moved away.
func (s *supervisor) reopen(drainer *logging.Drainer) {
	err := drainer.Reopen()
	if s.options.ErrorLog != nil {
		err = errors.Join(err, s.options.ErrorLog.Reopen())
	}
	if err != nil {
		s.log.Error("log stays as it was", "error", err)
	}
}

// setLogLevel tells all workers, and those that are still to come.
func (c *crew) setLogLevel(word string) {
	c.mu.Lock()
	c.logLevel = word
	c.mu.Unlock()
	_ = c.askAll(func(slot int, p *process) error {
		if err := p.control.send(&message{Kind: kindLogLevel, LogLevel: word}); err != nil {
			c.log.Warn("worker did not hear of the log level", "worker", slot, "error", err)
		}
		return nil
	})
}

// linePair makes the socket that a worker's lines of the error log come by, each in a message
// of its own: our end, and the one to hand over.
func linePair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket of log lines: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "log"), os.NewFile(uintptr(fds[1]), "log")
	conn, err := net.FileConn(ours)
	ours.Close() // conn has a descriptor of its own
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket of log lines: %w", err)
	}
	return conn, theirs, nil
}

// relay writes the lines of a worker to the error log, and so to syslog, until it has ended.
func relay(lines net.Conn, pid int, log *slog.Logger) {
	h, ok := log.Handler().(*logging.Handler)
	b := make([]byte, longestLine)
	for {
		n, err := lines.Read(b)
		if err != nil {
			return
		}
		if ok {
			_ = h.Relay(pid, b[:n]) // a queue takes it or counts it
		}
	}
}

// lineWriter is a worker's end. When the supervisor is gone, lines go where that wrote them
// by default.
type lineWriter struct {
	supervisor net.Conn
	otherwise  io.Writer
	gone       atomic.Bool
}

func (w *lineWriter) Write(line []byte) (int, error) {
	if !w.gone.Load() {
		n, err := w.supervisor.Write(line)
		if err == nil {
			return n, nil
		}
		w.gone.Store(true)
	}
	return w.otherwise.Write(line)
}

// workerLog is the error log of a worker: nothing there waits for it.
func workerLog(slot int, stderr io.Writer) (*slog.Logger, *logging.Handler, *logging.Queue, error) {
	f := os.NewFile(fdLog, "log")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("worker %d: this command is for the supervisor, which hands it a socket for its log: %w", slot, err)
	}
	q := logging.NewQueue(&lineWriter{supervisor: conn, otherwise: stderr})
	h := logging.NewHandler(q, nil)
	return slog.New(h).With("worker", slot), h, q, nil
}
