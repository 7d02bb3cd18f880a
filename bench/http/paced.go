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
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// pacedWord as the first argument makes this program the client of the case of
// latency: so many requests a second, whatever the answers take.
const pacedWord = "paced-client"

const (
	pacedConnections = 64
	pacedRequest     = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
)

// pace is what one paced connection did.
type pace struct {
	took  []time.Duration
	bytes int64
	err   error
}

// pacedMain: ADDRESS CERTIFICATE SECONDS RATE. It prints requests, their 99th
// percentile in µs, and the bytes of the answers.
func pacedMain(args []string) int {
	total, err := runPaced(args)
	if err == nil && len(total.took) == 0 {
		err = errors.New("no request was answered")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "paced client:", err)
		return 1
	}
	slices.Sort(total.took)
	fmt.Printf("result %d %d %d\n", len(total.took), total.took[len(total.took)*99/100].Microseconds(), total.bytes)
	return 0
}

func runPaced(args []string) (total pace, err error) {
	if len(args) != 4 {
		return pace{}, errors.New("want ADDRESS CERTIFICATE SECONDS RATE")
	}
	chain, err := os.ReadFile(args[1])
	if err != nil {
		return pace{}, err
	}
	seconds, err1 := strconv.Atoi(args[2])
	rate, err2 := strconv.Atoi(args[3])
	host, _, err3 := net.SplitHostPort(args[0])
	if err := errors.Join(err1, err2, err3); err != nil {
		return pace{}, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(chain) || rate < 1 {
		return pace{}, fmt.Errorf("no certificate in %s, or %d requests a second", args[1], rate)
	}
	c := &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
	conns := make([]*tls.Conn, pacedConnections)
	for i := range conns {
		if conns[i], err = tls.Dial("tcp", args[0], c); err != nil {
			return pace{}, err
		}
		defer conns[i].Close()
	}
	paces := make([]pace, pacedConnections)
	interval := time.Second * pacedConnections / time.Duration(rate)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range paces {
		first := begin.Add(interval * time.Duration(i) / pacedConnections)
		wg.Go(func() {
			paces[i].err = paces[i].run(conns[i], first, interval, begin.Add(time.Duration(seconds)*time.Second))
		})
	}
	wg.Wait()
	for i := range paces {
		total.took = append(total.took, paces[i].took...)
		total.bytes += paces[i].bytes
		err = errors.Join(err, paces[i].err)
	}
	return total, err
}

// run sends a request each interval. One that had to wait for the answer to the one
// before counts from when it was due; that this program's timer was late is not the
// gateway's fault.
func (p *pace) run(c *tls.Conn, due time.Time, interval time.Duration, end time.Time) error {
	if err := c.SetDeadline(end.Add(5 * time.Second)); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	size := 0 // of an answer, by the first
	for ; due.Before(end); due = due.Add(interval) {
		start := due
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
			start = time.Now()
		}
		if _, err := io.WriteString(c, pacedRequest); err != nil {
			return err
		}
		n, err := readAnswer(c, answer, size)
		if err != nil {
			return err
		}
		size = n
		p.took = append(p.took, time.Since(start))
		p.bytes += int64(n)
	}
	return nil
}

// answerSize is what head and body have together; 0: that is not known yet.
func answerSize(b []byte) int {
	r := bufio.NewReader(bytes.NewReader(b))
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0
	}
	return len(b) - r.Buffered() + int(answer.ContentLength)
}

// readAnswer reads an answer with a Content-Length, of the size that the one before
// had; 0: there was none.
func readAnswer(c io.Reader, b []byte, size int) (n int, err error) {
	for {
		m, err := c.Read(b[n:])
		if n += m; err != nil {
			return n, err
		}
		if size == 0 {
			size = answerSize(b[:n])
		}
		switch {
		case n == size:
			if string(b[:15]) != "HTTP/1.1 200 OK" {
				return n, fmt.Errorf("answer begins %q", b[:15])
			}
			return n, nil
		case size > len(b) || size > 0 && n > size:
			return n, fmt.Errorf("answer of %d bytes, want %d", n, size)
		}
	}
}
