// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// helperVariable makes the test binary a client, or a server, in a process of its own, so that
// its memory and its goroutines are not the gateway's: "crowd address state count", "abuse address
// index", "good address h2" (or fresh), "upstream" or "plain2", an upstream of HTTP/2. It says a line when it is ready, and ends with its input.
const helperVariable = "XGW_TEST_HELPER"

func helperMain(spec string) error {
	f := strings.Fields(spec)
	switch f[0] {
	case "crowd":
		n, err := strconv.Atoi(f[3])
		if err != nil {
			return err
		}
		return crowdMain(f[1], f[2], n)
	case "good":
		return goodMain(f[1], f[2] == "true", f[2] == "fresh")
	case "abuse":
		i, err := strconv.Atoi(f[2])
		if err != nil {
			return err
		}
		return abuses[i].main(f[1])
	case "plain2":
		return plain2Main()
	}
	s := httptest.NewServer(http.HandlerFunc(abuseUpstream))
	fmt.Println(strings.TrimPrefix(s.URL, "http://"))
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// process is a helper that runs.
type process struct {
	t    testing.TB
	spec string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	said string // its first line
}

func startHelper(t testing.TB, spec string) *process {
	t.Helper()
	p := &process{t: t, spec: spec, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), helperVariable+"="+spec)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	p.said = p.line()
	return p
}

func (p *process) line() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("helper %s: %v", p.spec, err)
	}
	return strings.TrimSpace(line)
}

// ask writes a line and reads the answer.
func (p *process) ask(line string) string {
	p.t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		p.t.Fatalf("helper %s: %v", p.spec, err)
	}
	return p.line()
}

// end ends it and returns what else it said.
func (p *process) end() string {
	p.in.Close()
	rest, _ := io.ReadAll(p.out)
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("helper %s: %v", p.spec, err)
	}
	return strings.TrimSpace(string(rest))
}

// helper starts one that answers nothing.
func helper(t testing.TB, spec string) (ready string, end func() string) {
	t.Helper()
	p := startHelper(t, spec)
	return p.said, p.end
}

// crowd starts n clients and waits until all have come to their state.
func (g *gateway) crowd(state string, n int) (leave func()) {
	g.Helper()
	_, end := helper(g.TB, fmt.Sprintf("crowd %s %s %d", g.address, state, n))
	return func() { end() }
}
