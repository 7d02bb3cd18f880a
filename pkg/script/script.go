// SPDX-License-Identifier: Apache-2.0

// Package script runs ratelimit.lua: text to the calls that it makes, such as
// limit_req{…}, whose arguments config then reads like any other configuration. The
// script runs once, when the configuration is loaded, and computes values; it is never
// asked again.
//
// It runs in a process of its own, the same binary again, which has 100 ms of CPU time and
// 16 MiB of memory, and Lua without os, io, debug, load and require: whatever the script
// does, the gateway neither hangs nor grows.
package script

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xgw-project/xgw/pkg/config"
)

// Command is the argument by which the binary is a script's process: its main must call
// Main when it finds it.
const Command = "lua"

const (
	cpuTime = 100 * time.Millisecond
	memory  = 16 << 20 // bytes beyond those of the process at its start
	// wallTime is for a process that does not even run.
	wallTime  = 10 * time.Second
	maxSource = 4 << 20
	maxOutput = 32 << 20
	maxError  = 1 << 10
)

// output is what the process writes: calls, or why there are none.
type output struct {
	Calls []config.Call `json:"calls,omitempty"`
	Line  int           `json:"line,omitempty"`
	Error string        `json:"error,omitempty"`
}

// Run runs the script and returns its calls in their order. path is for messages: an error
// of the script is "ratelimit.lua:12: …".
func Run(path string, source []byte) ([]config.Call, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("%s: it is longer than %d MiB", path, maxSource>>20)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wallTime)
	defer cancel()
	// The running binary, whatever lies under its name by now.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", Command, filepath.Base(path))
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Stdin = bytes.NewReader(source)
	var out, complaint bounded
	out.left, complaint.left = maxOutput, 64<<10
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: the script did not end within %s", path, wallTime)
	case errors.As(err, &exit) && exit.ExitCode() != 1:
		// Main ends with 0 or 1. With anything else it was the Go runtime that ended it, in one of
		// many ways when the kernel refuses it memory.
		return nil, fmt.Errorf("%s: the script needs more than %d MiB of memory: it is for a few hundred limits, computed at load", path, memory>>20)
	case err != nil:
		return nil, fmt.Errorf("%s: run the script: %w: %s", path, err, firstLine(complaint.String()))
	}
	var result output
	d := json.NewDecoder(&out)
	d.UseNumber()
	if err := d.Decode(&result); err != nil {
		return nil, fmt.Errorf("%s: run the script: read its calls: %w", path, err)
	}
	if result.Error != "" {
		if result.Line > 0 {
			path = fmt.Sprintf("%s:%d", path, result.Line)
		}
		return nil, fmt.Errorf("%s: %s", path, result.Error[:min(len(result.Error), maxError)])
	}
	return result.Calls, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// bounded keeps what fits, and fails beyond.
type bounded struct {
	bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, errors.New("it says too much")
	}
	b.left -= len(p)
	return b.Buffer.Write(p)
}

var _ io.Writer = (*bounded)(nil)
