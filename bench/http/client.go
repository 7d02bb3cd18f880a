// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// clientWord as the first argument makes this program the client of the cases
// with a handshake for each request. wrk will not do: its new connections resume
// the session of the one before, and it does not say so.
const clientWord = "handshake-client"

const (
	handshakeConnections = 16
	handshakeRequest     = "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
)

// tally is what one connection loop did.
type tally struct {
	requests, resumed, bytes int64
	err                      error
}

// clientMain: ADDRESS CERTIFICATE SECONDS RESUME. It prints requests, how many of
// them resumed a session, and the bytes of the answers.
func clientMain(args []string) int {
	total, err := runClient(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "handshake client:", err)
		return 1
	}
	fmt.Printf("result %d %d %d\n", total.requests, total.resumed, total.bytes)
	return 0
}

func runClient(args []string) (tally, error) {
	if len(args) != 4 {
		return tally{}, errors.New("want ADDRESS CERTIFICATE SECONDS RESUME")
	}
	chain, err := os.ReadFile(args[1])
	if err != nil {
		return tally{}, err
	}
	duration, err := strconv.Atoi(args[2])
	if err != nil {
		return tally{}, err
	}
	host, _, err := net.SplitHostPort(args[0])
	if err != nil {
		return tally{}, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(chain) {
		return tally{}, fmt.Errorf("no certificate in %s", args[1])
	}
	deadline := time.Now().Add(time.Duration(duration) * time.Second)
	tallies := make([]tally, handshakeConnections)
	var wg sync.WaitGroup
	for i := range tallies {
		c := &tls.Config{
			RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
			// The one exchange that every gateway's TLS library has.
			CurvePreferences: []tls.CurveID{tls.X25519},
		}
		if args[3] == "true" {
			c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		wg.Go(func() { tallies[i] = connections(args[0], c, deadline) })
	}
	wg.Wait()
	var total tally
	for _, t := range tallies {
		total.requests += t.requests
		total.resumed += t.resumed
		total.bytes += t.bytes
		if total.err == nil {
			total.err = t.err // one of many alike
		}
	}
	return total, total.err
}

// connections makes one after the other until the deadline.
func connections(address string, c *tls.Config, deadline time.Time) tally {
	var t tally
	answer := make([]byte, 4096)
	for time.Now().Before(deadline) {
		n, resumed, err := exchange(address, c, answer)
		if err != nil {
			t.err = err
			return t
		}
		t.requests++
		t.bytes += int64(n)
		if resumed {
			t.resumed++
		}
	}
	return t
}

// exchange is one connection with one request. It returns the bytes of the body.
func exchange(address string, c *tls.Config, answer []byte) (n int, resumed bool, err error) {
	raw, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return 0, false, err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, false, err
	}
	conn := tls.Client(raw, c)
	if _, err := io.WriteString(conn, handshakeRequest); err != nil {
		return 0, false, err
	}
	for {
		k, err := conn.Read(answer[n:])
		n += k
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, false, err
		}
		if n == len(answer) {
			return 0, false, errors.New("answer is too long")
		}
	}
	r := bufio.NewReader(bytes.NewReader(answer[:n]))
	line, _ := r.ReadString('\n')
	if line != "HTTP/1.1 200 OK\r\n" {
		return 0, false, fmt.Errorf("answer begins %q", line)
	}
	_, body, found := bytes.Cut(answer[:n], []byte("\r\n\r\n"))
	if !found {
		return 0, false, errors.New("answer without an end of its head")
	}
	return len(body), conn.ConnectionState().DidResume, nil
}

// parseClient wants every handshake to be of the kind that the case names; those
// that open the caches of a resuming client are full.
func parseClient(text string, c *benchCase) (int64, error) {
	n, err := resultLine(text, 3)
	if err != nil {
		return 0, err
	}
	requests, resumed := n[0], n[1]
	if !c.resume && resumed > 0 {
		return 0, fmt.Errorf("%d of %d handshakes resumed a session", resumed, requests)
	}
	if full := requests - resumed; c.resume && full > handshakeConnections+requests/50 {
		return 0, fmt.Errorf("%d of %d handshakes were full", full, requests)
	}
	return requests, checkBytes(requests, n[2], c)
}
