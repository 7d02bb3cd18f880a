// SPDX-License-Identifier: Apache-2.0

package host

import "testing"

// What this machine says can be read, and is of one mind.
func TestReadStack(t *testing.T) {
	s, err := ReadStack()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Backlog) == 0 {
		t.Error("no CPU has a backlog")
	}
	r, err := ReadReceive("lo")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ReadReceive("lo"); err != nil || again.Packets < r.Packets {
		t.Errorf("%+v after %+v, %v", again, r, err)
	}
	if _, err := ReadReceive("nosuch0"); err == nil {
		t.Error("an interface that is not there has received something")
	}
}
