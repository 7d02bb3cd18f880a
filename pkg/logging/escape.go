// SPDX-License-Identifier: Apache-2.0

package logging

import "encoding/binary"

// How a byte is written: as it is, in quotes only, or never but as \xHH.
const (
	plain = iota
	quoted
	escaped
)

// classes has what each byte is. What ends a line, a quoted string or a field, or
// is not ASCII, is never written as it is: no client can forge a line.
var classes = func() (table [256]byte) {
	for c := range table {
		switch {
		case c == ' ':
			table[c] = quoted
		case c < ' ' || c > '~' || c == '"' || c == '\\':
			table[c] = escaped
		}
	}
	return table
}()

// appendQuotable is for what stands within quotes: spaces stay. The caller writes
// the quotes.
func appendQuotable[T string | []byte](b []byte, s T) []byte { return appendEscaped(b, s, quoted) }

// appendWord is for what ends at a space: it has none.
func appendWord[T string | []byte](b []byte, s T) []byte { return appendEscaped(b, s, plain) }

// appendEscaped copies runs of bytes up to the class, and escapes the rest.
func appendEscaped[T string | []byte](b []byte, s T, upTo byte) []byte {
	const hex = "0123456789ABCDEF"
	at := len(b)
	b = append(b, s...)
	if clean(b[at:], upTo) { // as most are
		return b
	}
	b = b[:at]
	from := 0
	for i := range len(s) {
		if c := s[i]; classes[c] > upTo {
			b = append(b, s[from:i]...)
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
			from = i + 1
		}
	}
	return append(b, s[from:]...)
}

// clean tells whether all bytes may stay as they are; it looks at eight at a time.
func clean(p []byte, upTo byte) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	least := ones * uint64(' '+1-upTo) // a space is allowed within quotes
	for ; len(p) >= 8; p = p[8:] {
		x := binary.LittleEndian.Uint64(p)
		quote, slash := x^ones*'"', x^ones*'\\'
		// Bits of bytes below least, above '~', and of those that became zero.
		if ((x-least)&^x|(x+ones)|x|(quote-ones)&^quote|(slash-ones)&^slash)&high != 0 {
			return false
		}
	}
	for _, c := range p {
		if classes[c] > upTo {
			return false
		}
	}
	return true
}
