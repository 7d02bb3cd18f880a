// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxText bounds a file, in bytes; a longer one is a mistake.
const maxText = 64 << 20

// tooLong says so of a file that is.
func (d *decoder) tooLong(b []byte) bool {
	if len(b) <= maxText {
		return false
	}
	d.fail(&yaml.Node{Line: 1, Column: 1}, "%d bytes: at most %d are read", len(b), maxText)
	return true
}

// document reads YAML by the table.
func (d *decoder) document(m mapping, b []byte) {
	if d.tooLong(b) {
		return
	}
	root := &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
	var doc, second yaml.Node
	documents := yaml.NewDecoder(bytes.NewReader(b))
	err := documents.Decode(&doc)
	if err == nil {
		if top := doc.Content[0]; top.ShortTag() != "!!null" {
			root = top
		}
		err = documents.Decode(&second)
	}
	switch {
	case err == nil:
		d.fail(&second, "a second document begins: one is read")
	case errors.Is(err, io.EOF):
		m.read(d, root, "")
	default:
		d.syntax(b, err)
	}
}

// syntaxError is how the YAML parser begins its errors.
var syntaxError = regexp.MustCompile(`^yaml: (?:line \d+: )?`)

func (d *decoder) syntax(b []byte, err error) {
	d.fail(faultPlace(b), "not YAML: %s", syntaxError.ReplaceAllString(err.Error(), ""))
}

// Bounds of faultPlace, which parses the text once for each line: more brackets can
// nest so deep that parsing is slow.
const (
	placeBytes    = 32 << 10
	placeLines    = 1000
	placeBrackets = 1000
)

// faultPlace is the line at which the text stops being YAML: the first that is not
// part of the longest beginning that parses. The parser's own idea of it is where
// the enclosing block began. In a long text it is not looked for.
func faultPlace(b []byte) *yaml.Node {
	at := &yaml.Node{Line: 1, Column: 1}
	count := func(s string) int { return bytes.Count(b, []byte(s)) }
	if len(b) > placeBytes || count("\n") > placeLines || count("[")+count("{")+count("- ")+count("? ") > placeBrackets {
		return at
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	end, n := len(b), len(lines)
	for ; n > 0; n-- {
		end -= len(lines[n-1])
		var doc yaml.Node
		if err := yaml.Unmarshal(b[:end], &doc); err == nil {
			break
		}
	}
	at.Line = max(n, 1)
	text := lines[at.Line-1]
	at.Column = 1 + len(text) - len(bytes.TrimLeft(text, " "))
	return at
}

// lines reads `key value` lines by the table; # begins a comment.
func (d *decoder) lines(m mapping, b []byte) {
	if d.tooLong(b) {
		return
	}
	root := &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		key := strings.TrimSpace(line)
		if key == "" {
			continue
		}
		column := 1 + strings.Index(line, key)
		v := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n, Column: column}
		if gap := strings.IndexAny(key, " \t"); gap >= 0 {
			v.Tag, v.Value = "!!str", strings.TrimSpace(key[gap:])
			v.Column += strings.LastIndex(key, v.Value)
			key = key[:gap]
		}
		k := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key, Line: n, Column: column}
		root.Content = append(root.Content, k, v)
	}
	m.read(d, root, "")
}
