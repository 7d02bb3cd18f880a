// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFaults bounds what is said about one file: a list of a million entries can be
// wrong in each.
const maxFaults = 100

// decoder collects faults while it walks one file.
type decoder struct {
	file string
	errs []*Error
	// later holds checks across the file, which run when all of it has been read.
	later []func()
	// open reads a file that the text names; nil when files are not looked at.
	open func(path string) ([]byte, error)
}

func (d *decoder) fail(n *yaml.Node, format string, args ...any) {
	switch len(d.errs) {
	case maxFaults:
		d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Column: n.Column, Msg: fmt.Sprintf("more than %d faults: the rest is not listed", maxFaults)})
	case maxFaults + 1:
	default:
		d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Column: n.Column, Msg: fmt.Sprintf(format, args...)})
	}
}

// faults are in the order of the text; those of the same place in that of reading.
func (d *decoder) faults() []error {
	out := make([]error, len(d.errs))
	slices.SortStableFunc(d.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	for i, e := range d.errs {
		out[i] = e
	}
	return out
}

// reader takes a value from its node. where names the value in messages.
type reader interface {
	read(d *decoder, n *yaml.Node, where string)
	// absent fills in what holds when the value is not in the file.
	absent(d *decoder)
	// wanted says what may stand here.
	wanted() string
}

// row is one key of a mapping.
type row struct {
	key string
	// initial is the default in the words of the file, read like a written one.
	initial string
	value   reader
}

// Values of row.initial that are no text of the file.
const (
	none     = ""         // nothing holds when the key is absent
	required = "required" // the key must be there
)

// mapping reads keys and values by a table.
type mapping struct {
	rows []row
	// check, if any, runs when all keys have been read or filled in.
	check func(f *found)
}

// found is a mapping as it stands in the file.
type found struct {
	d      *decoder
	node   *yaml.Node
	where  string
	values map[string]*yaml.Node // of known keys, by key
	faulty map[string]bool       // known keys whose value is wrong, or that are misspelt
}

// fail says what is wrong at a key's value, or at the mapping when the key is absent.
func (f *found) fail(key, format string, args ...any) {
	at, where := f.node, f.where
	if n, ok := f.values[key]; ok {
		at, where = n, join(f.where, key)
	}
	f.d.fail(at, "%s%s", prefix(where), fmt.Sprintf(format, args...))
}

func (m mapping) read(d *decoder, n *yaml.Node, where string) {
	if n.Kind != yaml.MappingNode || !coreTag(n) {
		d.fail(n, "%swant %s", prefix(where), m.wanted())
		return
	}
	f := &found{d: d, node: n, where: where, values: map[string]*yaml.Node{}, faulty: map[string]bool{}}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		line, twice := lines[key.Value]
		lines[key.Value] = key.Line
		r := m.row(key)
		switch {
		case r == nil:
			meant, hint := suggestion(key.Value, m.rows)
			f.faulty[meant] = true
			d.fail(key, "%s: unknown key%s", join(where, plain(key.Value)), hint)
		case twice:
			d.fail(key, "%s: given before, on line %d", join(where, key.Value), line)
		default:
			before := len(d.errs)
			f.values[r.key] = value
			readValue(d, r.reader(), value, join(where, r.key))
			f.faulty[r.key] = f.faulty[r.key] || len(d.errs) > before
		}
	}
	m.complete(f)
}

func (m mapping) wanted() string { return "keys and values, such as `" + m.rows[0].key + ": …`" }

// row finds the row of a key; nil when there is none.
func (m mapping) row(key *yaml.Node) *row {
	if key.Kind != yaml.ScalarNode {
		return nil
	}
	i := slices.IndexFunc(m.rows, func(r row) bool { return r.key == key.Value })
	if i < 0 {
		return nil
	}
	return &m.rows[i]
}

func (m mapping) absent(d *decoder) {
	m.complete(&found{d: d, node: &yaml.Node{Line: 1, Column: 1}})
}

// complete fills in the keys that are not there.
func (m mapping) complete(f *found) {
	for _, r := range m.rows {
		if _, there := f.values[r.key]; there {
			continue
		}
		value := r.reader()
		if r.initial == required && f.values != nil && !f.faulty[r.key] {
			f.d.fail(f.node, "%s%s is missing: want %s", prefix(f.where), r.key, value.wanted())
			f.faulty[r.key] = true
		}
		value.absent(f.d)
	}
	if m.check != nil {
		m.check(f)
	}
}

// reader is the row's, with the default as its example and as what absence means.
func (r row) reader() reader {
	s, ok := r.value.(scalar)
	if !ok || r.initial == required || r.initial == none {
		return r.value
	}
	s.initial = r.initial
	if s.example == "" && !s.closed {
		s.example = r.initial
	}
	return s
}

// list reads a sequence, each item by a reader of its own.
type list struct {
	least, most int  // items; most 0: no bound
	one         bool // absent means one item, all of it defaults
	example     string
	item        func() reader
}

func (l list) wanted() string { return "a list, such as `- " + l.example + "`" }

func (l list) read(d *decoder, n *yaml.Node, where string) {
	if n.Kind != yaml.SequenceNode || !coreTag(n) {
		d.fail(n, "%s: want %s", where, l.wanted())
		return
	}
	if len(n.Content) < l.least {
		d.fail(n, "%s: want at least %d, such as `- %s`", where, l.least, l.example)
	}
	for i, v := range n.Content {
		if l.most > 0 && i == l.most {
			d.fail(v, "%s: want at most %d", where, l.most)
			return
		}
		readValue(d, l.item(), v, where+"["+strconv.Itoa(i)+"]")
	}
}

func (l list) absent(d *decoder) {
	if l.one {
		l.item().absent(d)
	}
}

// scalar reads one plain value.
type scalar struct {
	want    string // what may stand here, in words
	example string // without one, the default is it
	closed  bool   // want lists all there is: no example
	initial string // default; "" for none
	// set takes the text. Its error is errWant or what to say instead.
	set func(string) error
}

// errWant: the text is not what the scalar wants.
var errWant = errors.New("not what is wanted")

func (s scalar) read(d *decoder, n *yaml.Node, where string) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		d.fail(n, "%s: want %s", where, s.wanted())
		return
	}
	if !coreTag(n) {
		d.fail(n, "%s: tag %s is not supported: write the value alone", where, plain(n.Tag))
		return
	}
	switch err := s.set(n.Value); {
	case errors.Is(err, errWant):
		d.fail(n, "%s: %s: want %s", where, quote(n.Value), s.wanted())
	case err != nil:
		d.fail(n, "%s: %s: %v", where, quote(n.Value), err)
	}
}

func (s scalar) wanted() string {
	if s.example == "" {
		return s.want
	}
	return s.want + ", such as " + s.example
}

func (s scalar) absent(d *decoder) {
	if s.initial == "" {
		return
	}
	if err := s.set(s.initial); err != nil {
		panic(fmt.Sprintf("default %q is refused: %v", s.initial, err)) // any test finds it
	}
}

// readValue refuses aliases, so that no text can be small and mean a lot.
func readValue(d *decoder, r reader, n *yaml.Node, where string) {
	if n.Kind == yaml.AliasNode {
		d.fail(n, "%s: aliases are not supported: write the value out", where)
		return
	}
	r.read(d, n, where)
}

// coreTag: the node has no tag of its own, or one that YAML defines for its kind.
func coreTag(n *yaml.Node) bool {
	switch n.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!map", "!!seq":
		return true
	}
	return false
}

func prefix(where string) string {
	if where == "" {
		return ""
	}
	return where + ": "
}

func join(where, key string) string {
	if where == "" {
		return key
	}
	return where + "." + key
}

// maxQuoted bounds how much of a wrong value is shown.
const maxQuoted = 64

func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.QuoteToASCII(s[:maxQuoted]) + "…"
	}
	return strconv.Quote(s)
}

// plain shows a key as it is when it looks like one, else quoted, so that no file
// can forge a line of messages.
func plain(s string) string {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == ':' }
	if s == "" || len(s) > maxQuoted || strings.ContainsFunc(s, odd) {
		return quote(s)
	}
	return s
}

// suggestion finds the known key nearest to what was written, if any is near, and
// says so; else it lists all.
func suggestion(key string, rows []row) (meant, hint string) {
	known := make([]string, len(rows))
	for i, r := range rows {
		known[i] = r.key
	}
	best, distance := "", 1+min(len(key), maxQuoted)/3
	for _, k := range known {
		if n := editDistance(key[:min(len(key), maxQuoted)], k); n <= distance {
			best, distance = k, n-1
		}
	}
	if best == "" {
		return "", "; known are " + strings.Join(known, ", ")
	}
	return best, fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's over bytes, two neighbours that changed places
// counting as one edit.
func editDistance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			cost := row[j]
			if a[i] != b[j] {
				cost++
			}
			next[j+1] = min(cost, next[j]+1, row[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}
