// SPDX-License-Identifier: Apache-2.0

package logging

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
