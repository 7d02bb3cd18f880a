// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestErrorLog(t *testing.T) {
	prefix := fmt.Sprintf("] %d#0: ", os.Getpid())
	for _, tt := range []struct {
		name string
		log  func(*slog.Logger)
		want string
	}{
		{"plain", func(l *slog.Logger) { l.Info("serving") }, "[info" + prefix + "serving"},
		{"classic", func(l *slog.Logger) { l.Error("worker_connections are not enough", "worker_connections", 16384) },
			"[error" + prefix + "worker_connections are not enough worker_connections=16384"},
		{"crit", func(l *slog.Logger) { l.Log(context.Background(), LevelCrit, "no") }, "[crit" + prefix + "no"},
		{"above crit", func(l *slog.Logger) { l.Log(context.Background(), 99, "no") }, "[crit" + prefix + "no"},
		{"between", func(l *slog.Logger) { l.Log(context.Background(), slog.LevelWarn+1, "x") }, "[warn" + prefix + "x"},
		{"below", func(l *slog.Logger) { l.Debug("x") }, ""},
		{"values", func(l *slog.Logger) {
			l.Warn("x", "d", 1500*time.Millisecond, "u", uint64(7), "b", true, "e", errors.New("no such file"), "n", nil, "f", 0.5, "empty", "",
				"t", time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
		}, "[warn" + prefix + `x d=1.5s u=7 b=true e="no such file" n=<nil> f=0.5 empty="" t=2026-01-02T03:04:05.000000006Z`},
		{"groups", func(l *slog.Logger) {
			l.With("a", 1).WithGroup("g").With("b", 2).WithGroup("").Info("x", "c", 3, slog.Group("h", "d", 4), slog.Group("", "e", 5), slog.Attr{})
		}, "[info" + prefix + "x a=1 g.b=2 g.c=3 g.h.d=4 g.e=5"},
		{"hostile", func(l *slog.Logger) {
			l.Info("a\n2026/01/01 00:00:00 [crit] 1#0: forged", "k y\n", "v\r\n\"\\\xff\u2028", "w", "x=y z")
		}, "[info" + prefix + `a\x0A2026/01/01 00:00:00 [crit] 1#0: forged k\x20y\x0A="v\x0D\x0A\x22\x5C\xFF\xE2\x80\xA8" w="x=y z"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			tt.log(slog.New(NewHandler(&out, nil)))
			if tt.want == "" {
				if out.Len() != 0 {
					t.Errorf("wrote %q", out.String())
				}
				return
			}
			line := regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (.*)\n$`).FindStringSubmatch(out.String())
			if line == nil || line[1] != tt.want {
				t.Errorf("got  %qwant %q", out.String(), tt.want)
			}
		})
	}
}

func TestErrorLogCutsLongLines(t *testing.T) {
	var out bytes.Buffer
	l := slog.New(NewHandler(&out, nil))
	l.Error("panic", "stack", strings.Repeat("goroutine\n", 1<<20))
	l.Error("next")
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2 || len(lines[0]) >= maxErrorLine || !strings.HasSuffix(lines[0], "...") || !strings.HasSuffix(lines[1], "next") {
		t.Errorf("%d lines, the first of %d bytes", len(lines), len(lines[0]))
	}
}

// Each line is one write, so that processes that share a file do not mix.
type lineCounter struct{ writes, bad int }

func (c *lineCounter) Write(b []byte) (int, error) {
	c.writes++
	if bytes.Count(b, []byte{'\n'}) != 1 || b[len(b)-1] != '\n' {
		c.bad++
	}
	return len(b), nil
}

func TestErrorLogConcurrent(t *testing.T) {
	var out lineCounter
	h := NewHandler(&out, nil)
	var wg sync.WaitGroup
	for i := range 4 {
		l := slog.New(h).With("goroutine", i)
		wg.Go(func() {
			for range 200 {
				l.Info("x", "y", "z")
			}
		})
	}
	wg.Wait()
	if out.writes != 800 || out.bad != 0 {
		t.Errorf("%d writes, %d of them not a line", out.writes, out.bad)
	}
}

func TestLevels(t *testing.T) {
	for _, l := range levels {
		if got, err := ParseLevel(l.word); err != nil || got != l.level || LevelWord(got) != l.word {
			t.Errorf("%s is %v, %v", l.word, got, err)
		}
	}
	for _, word := range []string{"", "ERROR", "notice", "emerg"} {
		if _, err := ParseLevel(word); err == nil || !strings.Contains(err.Error(), "want debug") {
			t.Errorf("%q: %v", word, err)
		}
	}
	h := NewHandler(new(bytes.Buffer), slog.LevelError)
	derived := h.WithAttrs(nil)
	if h.Enabled(context.Background(), slog.LevelWarn) || !h.Enabled(context.Background(), LevelCrit) {
		t.Error("the level is not obeyed")
	}
	h.SetLevel(slog.LevelDebug) // while it runs
	if !h.Enabled(context.Background(), slog.LevelDebug) || !derived.Enabled(context.Background(), slog.LevelDebug) || h.Level() != slog.LevelDebug {
		t.Error("a changed level is not obeyed")
	}
}
