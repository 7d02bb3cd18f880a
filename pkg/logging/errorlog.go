// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// LevelCrit is above slog's levels: the gateway cannot do its work.
const LevelCrit = slog.LevelError + 4

// levels are the words of the error log, from the lowest.
var levels = [...]struct {
	level slog.Level
	word  string
}{
	{slog.LevelDebug, "debug"}, {slog.LevelInfo, "info"}, {slog.LevelWarn, "warn"}, {slog.LevelError, "error"}, {LevelCrit, "crit"},
}

// ParseLevel reads a level's word.
func ParseLevel(word string) (slog.Level, error) {
	for _, l := range levels {
		if l.word == word {
			return l.level, nil
		}
	}
	return 0, fmt.Errorf("log level %q: want debug, info, warn, error or crit", word)
}

// LevelWord is the word of the highest level that is not above l.
func LevelWord(l slog.Level) string {
	word := levels[0].word
	for _, known := range levels {
		if l >= known.level {
			word = known.word
		}
	}
	return word
}

// maxErrorLine bounds a line; a value such as a stack is cut there.
const maxErrorLine = 16 << 10

// Handler writes the error log, one call of Write for each line, so that lines of
// several processes do not mix. It waits for its writer, which should be a Queue: use it
// where an event is rare, not for each request.
type Handler struct {
	level *slog.LevelVar // shared by a handler and those derived from it, like out
	out   *lineWriter
	attrs string // formatted, of WithAttrs
	group string // with a dot at its end, of WithGroup
}

var _ slog.Handler = (*Handler)(nil)

// lineWriter is shared by a handler and those derived from it.
type lineWriter struct {
	mu     sync.Mutex
	out    io.Writer
	pid    int
	line   []byte
	syslog *Syslog // nil for none
}

// Also sends what the handler, and those derived from it, write to syslog as well.
func (h *Handler) Also(s *Syslog) {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.syslog = s
}

// NewHandler makes a handler for this process, writing records from level on; nil
// means info.
func NewHandler(out io.Writer, level slog.Leveler) *Handler {
	h := &Handler{level: new(slog.LevelVar), out: &lineWriter{out: out, pid: os.Getpid()}}
	if level != nil {
		h.level.Set(level.Level())
	}
	return h
}

// SetLevel changes from which level on records are written, by this handler and all that
// are derived from it.
func (h *Handler) SetLevel(l slog.Level) { h.level.Set(l) }

// Level is from which level on they are written.
func (h *Handler) Level() slog.Level { return h.level.Level() }

// Always is a handler for the same log that writes records of every level.
func (h *Handler) Always() *Handler {
	next := *h
	next.level = new(slog.LevelVar)
	next.level.Set(math.MinInt)
	return &next
}

// Enabled tells whether records of the level are written.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle writes one line, whatever bytes the record holds.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	w := h.out
	w.mu.Lock()
	defer w.mu.Unlock()
	b := appendStart(w.line[:0], r.Time, r.Level, w.pid)
	text := len(b)
	b = appendEscaped(b, r.Message, quoted)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.group, a)
		return true
	})
	return w.finish(b, text, r.Time, r.Level)
}

// Relay writes a line of another process of this program, whose number is pid, with its level
// and under that number, whatever it says itself. What is no such line is an error's text.
func (h *Handler) Relay(pid int, line []byte) error {
	level, said := slog.LevelError, bytes.TrimSuffix(line, []byte{'\n'})
	if m := startOfLine.FindSubmatch(said); m != nil {
		level, _ = ParseLevel(string(m[1])) // the expression has the words
		said = said[len(m[0]):]
	}
	w := h.out
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	b := appendStart(w.line[:0], now, level, pid)
	text := len(b)
	for _, c := range said { // it is escaped, unless that process has been taken over
		if c < ' ' || c > '~' {
			b = appendEscaped(b, []byte{c}, quoted)
		} else {
			b = append(b, c)
		}
	}
	return w.finish(b, text, now, level)
}

// startOfLine is what appendStart makes.
var startOfLine = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(debug|info|warn|error|crit)\] \d+#0: `)

// appendStart begins a line; zero stands where nginx has its thread.
func appendStart(b []byte, at time.Time, level slog.Level, pid int) []byte {
	if !at.IsZero() {
		b = at.AppendFormat(b, "2006/01/02 15:04:05 ")
	}
	b = append(b, '[')
	b = append(b, LevelWord(level)...)
	b = append(b, "] "...)
	b = strconv.AppendInt(b, int64(pid), 10)
	return append(b, "#0: "...)
}

// finish writes the line, whose text begins where it says. The lock is held.
func (w *lineWriter) finish(b []byte, text int, at time.Time, level slog.Level) error {
	if len(b) >= maxErrorLine {
		b = append(b[:maxErrorLine-4], "..."...)
	}
	if w.syslog != nil {
		w.syslog.Event(at, level, b[text:])
	}
	b = append(b, '\n')
	if w.line = b[:0]; cap(b) > 2*maxErrorLine {
		w.line = nil // a huge value is not kept for
	}
	_, err := w.out.Write(b)
	return err
}

// Flush returns when what was written is out, where the writer is a Queue: for a process that
// is about to exit.
func (h *Handler) Flush() {
	if q, ok := h.out.out.(*Queue); ok {
		q.Flush()
	}
}

// WithAttrs is a handler that adds attributes to each record.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	b := []byte(h.attrs)
	for _, a := range attrs {
		b = appendAttr(b, h.group, a)
	}
	next.attrs = string(b)
	return &next
}

// WithGroup is a handler that puts the name and a dot before names that follow.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.group += name + "."
	return &next
}

func appendAttr(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range v.Group() {
			b = appendAttr(b, group, member)
		}
		return b
	}
	b = append(b, ' ')
	b = appendWord(b, group)
	b = appendWord(b, a.Key)
	b = append(b, '=')
	return appendValue(b, v)
}

func appendValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindTime:
		return v.Time().AppendFormat(b, time.RFC3339Nano)
	}
	s := v.String()
	if s != "" && !strings.ContainsAny(s, " =\"\\") {
		return appendWord(b, s)
	}
	b = append(b, '"')
	b = appendQuotable(b, s)
	return append(b, '"')
}
