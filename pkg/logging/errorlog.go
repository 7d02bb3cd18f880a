// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
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

// levelWord is the word of the highest level that is not above l.
func levelWord(l slog.Level) string {
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
// several processes do not mix. It waits for its writer: use it where an event is
// rare, not for each request.
type Handler struct {
	level slog.Leveler
	out   *lineWriter
	attrs string // formatted, of WithAttrs
	group string // with a dot at its end, of WithGroup
}

var _ slog.Handler = (*Handler)(nil)

// lineWriter is shared by a handler and those derived from it.
type lineWriter struct {
	mu     sync.Mutex
	out    io.Writer
	prefix string // "PID#0: "; zero stands where nginx has its thread
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
	if level == nil {
		level = slog.LevelInfo
	}
	return &Handler{level: level, out: &lineWriter{out: out, prefix: strconv.Itoa(os.Getpid()) + "#0: "}}
}

// Enabled tells whether records of the level are written.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle writes one line, whatever bytes the record holds.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	w := h.out
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.line[:0]
	if !r.Time.IsZero() {
		b = r.Time.AppendFormat(b, "2006/01/02 15:04:05 ")
	}
	b = append(b, '[')
	b = append(b, levelWord(r.Level)...)
	b = append(b, "] "...)
	b = append(b, w.prefix...)
	text := len(b)
	b = appendEscaped(b, r.Message, quoted)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.group, a)
		return true
	})
	if len(b) >= maxErrorLine {
		b = append(b[:maxErrorLine-4], "..."...)
	}
	if w.syslog != nil {
		w.syslog.Event(r.Time, r.Level, b[text:])
	}
	b = append(b, '\n')
	if w.line = b[:0]; cap(b) > 2*maxErrorLine {
		w.line = nil // a huge value is not kept for
	}
	_, err := w.out.Write(b)
	return err
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
