// SPDX-License-Identifier: Apache-2.0

package escalate

// Conduct is how the exchanges of one identity have gone lately.
type Conduct struct {
	Who       uint64
	Good, Bad uint64 // with a 2xx; offences
}

// spotless says how many good exchanges outweigh an offence: a client whose every fifth
// request is an offence, or more, is none that the guard is for.
const spotless = 4

// IsGood tells whether the exchanges outweigh the offences.
func (c *Conduct) IsGood() bool { return c.Good > spotless*c.Bad }

// GoodOthers is how many identities of the list, other than the one, are good. The same one
// may be in it several times: once for each of its connections. The list is changed.
func GoodOthers(list []Conduct, except uint64) (n int) {
	for i := range list {
		c := &list[i]
		for j := range list[:i] {
			if list[j].Who == c.Who {
				list[j].Good, list[j].Bad = list[j].Good+c.Good, list[j].Bad+c.Bad
				*c = Conduct{}
				break
			}
		}
	}
	for _, c := range list {
		if c.IsGood() && c.Who != except {
			n++
		}
	}
	return n
}
