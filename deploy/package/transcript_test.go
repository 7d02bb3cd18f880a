// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// turn is a command of a console's transcript, and what came of it.
type turn struct{ command, said string }

// transcript reads the README's one: "# " begins a command, "> " goes on with it.
func transcript(t *testing.T) (turns []turn) {
	t.Helper()
	readme, err := os.ReadFile(top + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```console\n")
	text, _, whole := strings.Cut(rest, "```\n")
	if !whole {
		t.Fatal("README.md has no transcript")
	}
	for line := range strings.Lines(text) {
		last := len(turns) - 1
		switch {
		case strings.HasPrefix(line, "# "):
			turns = append(turns, turn{command: line[2:]})
		case last < 0:
			t.Fatalf("the transcript begins with %q", line)
		case strings.HasPrefix(line, "> "):
			turns[last].command += line[2:]
		default:
			turns[last].said += line
		}
	}
	return turns
}

var (
	figures = regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)
	days    = regexp.MustCompile(`(Mon|Tue|Wed|Thu|Fri|Sat|Sun), N (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) N`)
	spaces  = regexp.MustCompile(`\s+`)
)

// without figures and days, which differ each time.
func without(s string) string {
	return spaces.ReplaceAllString(days.ReplaceAllString(figures.ReplaceAllString(s, "N"), "N"), " ")
}

// The way of a new user from the package to the first request through a gateway that is
// attached: the README's commands, on a machine that had nothing of it, and what the README says
// came of them.
func TestTranscriptOfTheREADME(t *testing.T) {
	turns := transcript(t)
	m := newMachine(t)
	mustRun(t, "cp", mustPackages(t, "amd64")+"/xgw-amd64.deb", m.root+"/root/")
	script := "cd /root\nbegan=$(date +%s%N)\n"
	for i, turn := range turns {
		script += fmt.Sprintf("echo '==%d=='\n%s", i, turn.command)
	}
	found := m.boot(t, "exec 2>&1\n"+script+"echo '==end=='\necho $((($(date +%s%N) - began) / 1000000))\n")
	t.Log(found)
	_, took, _ := strings.Cut(found, "==end==\n")
	var ms int
	if _, err := fmt.Sscan(took, &ms); err != nil || ms > 5*60_000 {
		t.Errorf("it took %q ms, want at most five minutes", took)
	}
	for i, turn := range turns {
		_, rest, _ := strings.Cut(found, fmt.Sprintf("==%d==\n", i))
		said, _, _ := strings.Cut(rest, "==")
		for line := range strings.Lines(turn.said) {
			line, _, _ := strings.Cut(line, "…") // the rest, or all of it, is left out
			if !strings.Contains(without(said), strings.TrimSpace(without(line))) {
				t.Errorf("%ssays\n%snot as recorded: %s", turn.command, said, line)
			}
		}
	}
}
