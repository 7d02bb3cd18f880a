// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"regexp/syntax"
	"strings"
)

// takesEscapes tells whether an expression may match a path in which something is escaped that
// it does not match when it is not: by the percent sign or the digits, which nginx does not see,
// since it decodes first. What need not be escaped the gateway decodes, too, and a slash or a
// line's end that is escaped it refuses wherever that matters.
func takesEscapes(text string) bool {
	if strings.ContainsFunc(text, func(r rune) bool { return r >= 0x80 }) || strings.Contains(text, `\x{`) {
		return true // a character here, and several octets there
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return true
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil || len(prog.Inst) > 4096 {
		return true
	}
	a, takers := automaton{prog, map[uint32]bool{}}, 0
	for pc := range prog.Inst {
		i := &prog.Inst[pc]
		if i.Op == syntax.InstEmptyWidth && syntax.EmptyOp(i.Arg)&^(syntax.EmptyBeginText|syntax.EmptyEndText) != 0 {
			return true // what is beside it is looked at
		}
		after := a.step(map[uint32]bool{uint32(pc): true}, '%')
		if len(after) == 0 {
			continue
		}
		if takers++; takers > 32 {
			return true // rather than to look at each of what is counted out
		}
		for octet := range 256 {
			if octet == '/' || octet == '\n' || octet < 0x80 && unreserved.MatchString(string(rune(octet))) {
				continue
			}
			decoded := a.step(map[uint32]bool{uint32(pc): true}, rune(octet))
			for _, digits := range spellings(octet) {
				for state := range a.step(a.step(after, digits[0]), digits[1]) {
					if !decoded[state] {
						return true
					}
				}
			}
		}
	}
	return false
}

// spellings are the pairs of digits that clients may write for the octet.
func spellings(octet int) (out [][2]rune) {
	const lower, upper = "0123456789abcdef", "0123456789ABCDEF"
	for _, a := range [2]string{lower, upper} {
		for _, b := range [2]string{lower, upper} {
			out = append(out, [2]rune{rune(a[octet>>4]), rune(b[octet&15])})
		}
	}
	return out
}

// automaton is where an expression may stand in a text.
type automaton struct {
	prog *syntax.Prog
	seen map[uint32]bool // of follow
}

// step is where it may stand a character later. What asks whether a text begins or ends there
// is a place to stand.
func (a *automaton) step(from map[uint32]bool, r rune) map[uint32]bool {
	out := map[uint32]bool{}
	clear(a.seen)
	for pc := range from {
		switch i := &a.prog.Inst[pc]; i.Op {
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if i.MatchRune(r) {
				a.follow(i.Out, out)
			}
		}
	}
	return out
}

func (a *automaton) follow(pc uint32, out map[uint32]bool) {
	if a.seen[pc] {
		return
	}
	a.seen[pc] = true
	switch i := &a.prog.Inst[pc]; i.Op {
	case syntax.InstAlt, syntax.InstAltMatch:
		a.follow(i.Out, out)
		a.follow(i.Arg, out)
	case syntax.InstCapture, syntax.InstNop:
		a.follow(i.Out, out)
	default:
		out[pc] = true
	}
}
