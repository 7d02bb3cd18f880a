// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/common/expfmt"
	"golang.org/x/sys/unix"
)

// fileMode lets the owner's group read, as the textfile collector of node_exporter may.
const fileMode = 0o640

// KeepFile writes the metrics as text to the file until ctx ends, at once and then after each
// pause. A reader sees them whole, the old ones or the new. What cannot be written is logged
// when it begins and when it is over.
func (s *Server) KeepFile(ctx context.Context, path string, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	failed := false
	for {
		switch err := s.writeFile(path); {
		case err != nil && !failed:
			s.log.Error("metrics are not written to their file", "error", err)
			failed = true
		case err == nil && failed:
			s.log.Info("metrics are written to their file again", "file", path)
			failed = false
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) writeFile(path string) error {
	families, done, err := s.reader.Gather()
	defer done()
	if err != nil && len(families) == 0 {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if !s.gate.enter() { // shut down: what was gathered may lack everything
		return nil
	}
	s.gate.leave()
	made := path + ".new" // no collector reads it by this name
	_ = os.Remove(made)   // what one that was killed has left, or a pipe that nobody reads
	f, err := os.OpenFile(made, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	w := bufio.NewWriterSize(f, 64<<10)
	for _, family := range families {
		if _, err = expfmt.MetricFamilyToText(w, family); err != nil {
			break
		}
	}
	if err = errors.Join(err, w.Flush(), f.Chmod(fileMode), f.Close()); err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		_ = os.Remove(made)
		return fmt.Errorf("write metrics: %w", err)
	}
	return nil
}
