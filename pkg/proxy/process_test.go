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
// index", "upstream" or "plain2", an upstream of HTTP/2. It says a line when it is ready, and ends with its input.
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

// helper starts one; end ends it and returns what else it said.
func helper(t testing.TB, spec string) (ready string, end func() string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"="+spec)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("helper %s: %v", spec, err)
	}
	return strings.TrimSpace(line), func() string {
		in.Close()
		rest, _ := io.ReadAll(r)
		if err := cmd.Wait(); err != nil {
			t.Errorf("helper %s: %v", spec, err)
		}
		return strings.TrimSpace(string(rest))
	}
}

// crowd starts n clients and waits until all have come to their state.
func (g *gateway) crowd(state string, n int) (leave func()) {
	g.Helper()
	_, end := helper(g.TB, fmt.Sprintf("crowd %s %s %d", g.address, state, n))
	return func() { end() }
}
