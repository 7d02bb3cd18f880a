// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"io"
	"strings"
)

// WriteText writes the plan for an operator: what would be attached, then what was
// found, worst first, each with the command that mends it.
func (p Plan) WriteText(w io.Writer) error {
	var b strings.Builder
	if p.Mode == "" {
		fmt.Fprintf(&b, "%s: attach would be refused in %s mode\n", p.Interface, p.Wanted)
	} else {
		fmt.Fprintf(&b, "%s: would attach in %s mode", p.Interface, p.Mode)
		if p.Mode != p.Wanted {
			fmt.Fprintf(&b, ", chosen by %s", p.Wanted)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "  %s\n", p.Facts)
	if p.Flap != "" {
		fmt.Fprintf(&b, "  link reset: %s\n", p.Flap)
	}
	for _, f := range p.Findings {
		fmt.Fprintf(&b, "%-7s %s\n", f.Severity, f.Title)
		if f.Evidence != "" {
			fmt.Fprintf(&b, "        seen: %s\n", f.Evidence)
		}
		if f.Mend != "" {
			fmt.Fprintf(&b, "        mend: %s\n", f.Mend)
		}
	}
	if p.Instead != "" {
		fmt.Fprintf(&b, "instead, as it is now: %s\n", p.Instead)
	}
	for _, h := range p.Pinholes {
		fmt.Fprintf(&b, "keep open: %s to port %d (%s)\n", h.Source, h.Port, h.Why)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
