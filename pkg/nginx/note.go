// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"fmt"
	"strings"
)

// Kind says what became of a directive that is not simply translated.
type Kind int

// Kinds, the gravest first.
const (
	Security Kind = iota // it kept something closed: what it was for answers 503, or the text says what else
	Missing              // it is not translated
	Differs              // it is translated, and not to the same in all cases
	Own                  // the gateway does it by itself, or has no use for it
)

var kinds = []string{"SECURITY", "not translated", "differs", "by itself"}

func (k Kind) String() string { return kinds[k] }

// Note is what became of a directive, and what to do.
type Note struct {
	Kind      Kind
	File      string
	Line      int
	Directive string // with its arguments, perhaps cut
	Text      string
}

// String is "/etc/nginx/nginx.conf:12: SECURITY: auth_basic Private: …".
func (n Note) String() string {
	return fmt.Sprintf("%s:%d: %s: %s: %s", n.File, n.Line, n.Kind, n.Directive, n.Text)
}

// note says what became of a directive, and of all within it, unless that is translated by itself.
func (t *translation) note(kind Kind, d *directive, format string, args ...any) {
	if d.done = true; d.name != "server" && d.name != "location" {
		d.settle()
	}
	text := d.text()
	if len(text) > 80 {
		text = strings.ToValidUTF8(text[:77], "") + "..."
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	n := Note{kind, d.file, d.line, text, fmt.Sprintf(format, args...)}
	for _, o := range t.notes {
		if o == n { // a location of several names is translated several times
			return
		}
	}
	t.notes = append(t.notes, n)
}

func (d *directive) settle() {
	d.done = true
	for _, c := range d.block {
		c.settle()
	}
}

// leftOver notes what nobody has looked at, so that nothing is dropped in silence.
func (t *translation) leftOver(list []*directive) {
	for _, d := range list {
		if d.done {
			t.leftOver(d.block)
			continue
		}
		_, has := translated[d.name]
		reason, needless := owned[d.name]
		why, missed := missing[d.name]
		switch {
		case needless:
			t.note(Own, d, "%s", reason)
		case has:
			t.note(Own, d, "without effect: something more specific stands in its place, or nothing that is translated uses it")
		case missed:
			t.note(Missing, d, "%s", why)
		default:
			if why, closes := forbids(d); closes {
				t.note(Security, d, "%s; nothing that is served by this gateway is under it", why)
			} else {
				t.note(Missing, d, "it is not known here: see what it does for you, and whether the gateway has to")
			}
		}
	}
}
