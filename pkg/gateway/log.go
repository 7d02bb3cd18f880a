// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/admin"
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
	s.audit().Info("log level is changed", "from", was, "to", word)
	return nil
}

// audit is the error log for what no level leaves out: who changes something.
func (s *supervisor) audit() *slog.Logger {
	if h, ok := s.log.Handler().(*logging.Handler); ok {
		return slog.New(h.Always())
	}
	return s.log
}

// LogLevel is the error log's.
func (s *supervisor) LogLevel() string {
	if h, ok := s.log.Handler().(*logging.Handler); ok {
		return logging.LevelWord(h.Level())
	}
	return ""
}

// levelChange is a level of the error log that is for a time.
type levelChange struct {
	mu    sync.Mutex
	back  string // "": what is stays
	until time.Time
	end   *time.Timer
}

// longestLevel is how long a level may be for a time at most.
const longestLevel = 24 * time.Hour

// Logging is the level, and when it goes back.
func (s *supervisor) Logging() admin.Logging {
	c := &s.level
	c.mu.Lock()
	defer c.mu.Unlock()
	return admin.Logging{Level: s.LogLevel(), Until: c.until, Back: c.back}
}

// SetLogging changes the level, for a time or to stay.
func (s *supervisor) SetLogging(ask admin.SetLogging) error {
	if _, err := logging.ParseLevel(ask.Level); err != nil {
		return fmt.Errorf("%w: %w", admin.ErrInvalid, err)
	}
	if ask.For < 0 || ask.For > longestLevel {
		return fmt.Errorf("%w: for %s: want up to %s, or 0 for a level that stays", admin.ErrInvalid, ask.For, longestLevel)
	}
	c := &s.level
	c.mu.Lock()
	defer c.mu.Unlock()
	back := c.back
	if back == "" {
		back = s.LogLevel()
	}
	if err := s.SetLogLevel(ask.Level); err != nil {
		return err
	}
	if c.end != nil {
		c.end.Stop()
	}
	c.back, c.until, c.end = "", time.Time{}, nil
	note := ""
	if ask.For > 0 {
		note = "for " + ask.For.String()
		c.back, c.until = back, time.Now().Add(ask.For)
		until := c.until
		c.end = time.AfterFunc(ask.For, func() { s.levelBack(until) })
	}
	s.events.Tell(admin.Event{Kind: "log_level", About: "gateway", What: ask.Level, Note: note})
	return nil
}

// levelBack ends the change that was to end then, unless there is another by now.
func (s *supervisor) levelBack(until time.Time) {
	c := &s.level
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.until.Equal(until) {
		return
	}
	back := c.back
	c.back, c.until, c.end = "", time.Time{}, nil
	if err := s.SetLogLevel(back); err != nil {
		s.log.Error("log level does not go back", "to", back, "error", err)
		return
	}
	s.events.Tell(admin.Event{Kind: "log_level", About: "gateway", What: back, Note: "the time of the other one is over"})
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
	c.tellAll(&message{Kind: kindLogLevel, LogLevel: word})
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
