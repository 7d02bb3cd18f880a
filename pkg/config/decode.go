// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// decoder collects faults while it walks one file.
type decoder struct {
	file string
	errs []error
}

func (d *decoder) fail(n *yaml.Node, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Column: n.Column, Msg: fmt.Sprintf(format, args...)})
}

// field reads one value of a mapping. where names the value in messages.
type field func(n *yaml.Node, where string)

// object reads a mapping whose keys are exactly those of fields.
func (d *decoder) object(n *yaml.Node, where string, fields map[string]field) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, "%s: want keys and values, such as %s", prefixed(where), example(fields))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := join(where, key.Value)
		read, ok := fields[key.Value]
		switch line, twice := seen[key.Value]; {
		case !ok:
			d.fail(key, "%s: unknown key%s", name, suggestion(key.Value, fields))
		case twice:
			d.fail(key, "%s: given before, on line %d", name, line)
		case value.Kind == yaml.AliasNode:
			d.fail(value, "%s: aliases are not supported: write the value out", name)
		default:
			read(value, name)
		}
		seen[key.Value] = key.Line
	}
}

func prefixed(where string) string {
	if where == "" {
		return "the file"
	}
	return where
}

func join(where, key string) string {
	if where == "" {
		return key
	}
	return where + "." + key
}

func example(fields map[string]field) string {
	return "`" + sortedKeys(fields)[0] + ": …`"
}

func sortedKeys(fields map[string]field) []string {
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// suggestion is the known key nearest to what was written, if any is near.
func suggestion(key string, fields map[string]field) string {
	best, distance := "", 1+len(key)/3
	for _, k := range sortedKeys(fields) {
		if n := editDistance(key, k); n <= distance {
			best, distance = k, n-1
		}
	}
	if best == "" {
		return fmt.Sprintf("; known are %s", strings.Join(sortedKeys(fields), ", "))
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's; keys are short and ASCII.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// list reads a sequence, each item by item.
func (d *decoder) list(item field) field {
	return func(n *yaml.Node, where string) {
		if n.Kind != yaml.SequenceNode {
			d.fail(n, "%s: want a list", where)
			return
		}
		for i, v := range n.Content {
			if v.Kind == yaml.AliasNode {
				d.fail(v, "%s[%d]: aliases are not supported: write the value out", where, i)
				continue
			}
			item(v, fmt.Sprintf("%s[%d]", where, i))
		}
	}
}

// text reads a scalar and hands it to set, whose error is the fault.
func (d *decoder) text(set func(string) error) field {
	return func(n *yaml.Node, where string) {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			d.fail(n, "%s: want a value", where)
			return
		}
		if err := set(n.Value); err != nil {
			d.fail(n, "%s: %v", where, err)
		}
	}
}

func (d *decoder) string(dst *string, check func(string) error) field {
	return d.text(func(s string) error {
		*dst = s
		if check == nil {
			return nil
		}
		return check(s)
	})
}

func (d *decoder) strings(dst *[]string, check func(string) error) field {
	return d.list(d.text(func(s string) error {
		*dst = append(*dst, s)
		return check(s)
	}))
}

func oneOf(words ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(words, s) {
			return nil
		}
		return fmt.Errorf("%q: want %s", s, strings.Join(words, " or "))
	}
}

func (d *decoder) bool(dst *bool) field {
	return d.text(func(s string) error {
		if err := oneOf("true", "false")(s); err != nil {
			return err
		}
		*dst = s == "true"
		return nil
	})
}

// integer reads a whole number in [low, high].
func integer[T int | int64 | uint64](d *decoder, dst *T, low, high T) field {
	return d.text(func(s string) error {
		v, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), 10, 64)
		if err != nil || v < int64(low) || v > int64(high) {
			return fmt.Errorf("%q: want a whole number from %d to %d", s, low, high)
		}
		*dst = T(v)
		return nil
	})
}

// size reads bytes, with k, m or g for powers of 1024.
func size[T int | int64](d *decoder, dst *T, low, high T) field {
	return d.text(func(s string) error {
		v, err := parseSize(s)
		if err != nil || v < int64(low) || v > int64(high) {
			return fmt.Errorf("%q: want a size from %d to %d bytes, such as 64k or 128m", s, low, high)
		}
		*dst = T(v)
		return nil
	})
}

func parseSize(s string) (int64, error) {
	shift := 0
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'k', 'K':
			shift = 10
		case 'm', 'M':
			shift = 20
		case 'g', 'G':
			shift = 30
		}
	}
	if shift > 0 {
		s = s[:len(s)-1]
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 || v > 1<<40 {
		return 0, errors.New("not a size")
	}
	return v << shift, nil
}

func (d *decoder) duration(dst *time.Duration, low, high time.Duration) field {
	return d.text(func(s string) error {
		v, err := time.ParseDuration(s)
		if err != nil || v < low || v > high {
			return fmt.Errorf("%q: want a time from %s to %s with its unit, such as %s", s, low, high, min(max(low, 10*time.Second), high))
		}
		*dst = v
		return nil
	})
}
