// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
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
	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/logging"
)

// longestLine is what a worker's line is read into: above what logging lets one be.
const longestLine = 32 << 10

// setLogLevel changes from which level on supervisor and workers write the error log.
func (s *supervisor) setLogLevel(word string) error {
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

// levelByHand is what operators made of the error log's level (debug, info, warn, error or
// crit); zero: it is as configured.
type levelByHand struct {
	Stays   string    `json:"stays,omitempty"`
	ForTime string    `json:"for_time,omitempty"` // instead, until then
	Until   time.Time `json:"until,omitzero"`
}

// levelChange is that, and what it came to here.
type levelChange struct {
	mu         sync.Mutex
	configured string
	set        levelByHand
	end        *time.Timer // of a level for a time
}

// back is what there is but for a time. The lock is held.
func (c *levelChange) back() string { return cmp.Or(c.set.Stays, c.configured) }

// byHand is what goes to another supervisor.
func (c *levelChange) byHand() levelByHand {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.set
}

// longestLevel is how long a level may be for a time at most.
const longestLevel = 24 * time.Hour

// Logging is the level, and when it goes back.
func (s *supervisor) Logging() admin.Logging {
	c := &s.level
	c.mu.Lock()
	defer c.mu.Unlock()
	out := admin.Logging{Level: s.LogLevel(), Until: c.set.Until}
	if c.set.ForTime != "" {
		out.Back = c.back()
	}
	return out
}

// SetLogging changes the level, for a time or to stay.
func (s *supervisor) SetLogging(ask admin.SetLogging) error {
	if s.aside.isCalled() {
		return fmt.Errorf("%w: %w", admin.ErrImpossible, errHanded)
	}
	if _, err := logging.ParseLevel(ask.Level); err != nil {
		return fmt.Errorf("%w: %w", admin.ErrInvalid, err)
	}
	if ask.For < 0 || ask.For > longestLevel {
		return fmt.Errorf("%w: for %s: want up to %s, or 0 for a level that stays", admin.ErrInvalid, ask.For, longestLevel)
	}
	c := &s.level
	c.mu.Lock()
	defer c.mu.Unlock()
	set, note := levelByHand{Stays: ask.Level}, ""
	if ask.For > 0 {
		set, note = levelByHand{Stays: c.set.Stays, ForTime: ask.Level, Until: time.Now().Add(ask.For)}, "for "+config.TimeText(ask.For)
	}
	if err := s.setLevel(set); err != nil {
		return err
	}
	s.events.Tell(admin.Event{Kind: "log_level", About: "gateway", What: ask.Level, Note: note})
	return nil
}

// takeLevel decides as operators did at another supervisor.
func (s *supervisor) takeLevel(set levelByHand) {
	c := &s.level
	c.mu.Lock()
	defer c.mu.Unlock()
	same := set.Stays == c.set.Stays && set.ForTime == c.set.ForTime && set.Until.Equal(c.set.Until)
	if same {
		return
	}
	if err := s.setLevel(set); err != nil {
		s.log.Warn("log level is not as it was set by hand", "error", err)
	}
}

// setLevel makes it so. The lock of level is held.
func (s *supervisor) setLevel(set levelByHand) error {
	c := &s.level
	was := c.set
	c.set = set
	if now := cmp.Or(set.ForTime, c.back()); now != s.LogLevel() {
		if err := s.setLogLevel(now); err != nil {
			c.set = was
			return err
		}
	}
	if c.end != nil {
		c.end.Stop()
		c.end = nil
	}
	if set.ForTime != "" {
		c.end = time.AfterFunc(time.Until(set.Until), func() { s.levelBack(set.Until) })
	}
	return nil
}

// levelBack ends the change that was to end then, unless there is another by now.
func (s *supervisor) levelBack(until time.Time) {
	c := &s.level
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.set.Until.Equal(until) {
		return
	}
	if err := s.setLevel(levelByHand{Stays: c.set.Stays}); err != nil {
		s.log.Error("log level does not go back", "to", c.back(), "error", err)
		return
	}
	s.events.Tell(admin.Event{Kind: "log_level", About: "gateway", What: c.back(), Note: "the time of the other one is over"})
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
