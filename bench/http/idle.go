// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// idleName is the case of connections that had one exchange and then do nothing. What counts is by
// how much all processes of a gateway are larger with them than they were before any load, so it
// comes first and once: what a process has got it seldom gives back.
const (
	idleName        = "idle memory"
	idleWord        = "idle-client"
	idleConnections = 8000 // HAProxy wants two descriptors for each, and 20,000 are what machines often give
	idleWait        = 15 * time.Second
)

// rest notes what gateways have before any load.
func rest(all []*gateway) error {
	for _, g := range all {
		var err error
		if g.fresh, err = resident("/proc", g.process.cmd.Process.Pid); err != nil {
			return err
		}
	}
	return nil
}

// resident is the KiB of memory of a tree of processes.
func resident(proc string, root int) (kib int, err error) {
	tree, err := processTree(proc, root)
	if err != nil {
		return 0, err
	}
	for _, pid := range tree {
		text, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "status"))
		if err != nil {
			return 0, fmt.Errorf("read memory: %w", err)
		}
		_, after, found := strings.Cut(string(text), "\nVmRSS:")
		number, _, _ := strings.Cut(strings.TrimSpace(after), " ")
		n, err := strconv.Atoi(number)
		if !found || err != nil {
			return 0, fmt.Errorf("read memory of process %d: no VmRSS", pid)
		}
		kib += n
	}
	return kib, nil
}

// turnIdle measures the first time, and says the same again in later rounds.
func (b *bench) turnIdle(c *benchCase, g *gateway, round int) (float64, error) {
	if round > 0 {
		return g.idle, nil
	}
	file := b.place.file("idle-" + g.name)
	client, err := b.lab.client.start(idleWord, file, []string{self(), idleWord, hostPort(c, g.url(c)), b.place.file("cert.pem"), strconv.Itoa(idleConnections)}, "")
	if err != nil {
		return 0, err
	}
	defer client.stop()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if err := client.alive(); err != nil {
			return 0, err
		}
		if strings.Contains(client.lastLines(), "ready") {
			break
		}
		if time.Now().After(end) {
			return 0, errors.New("the connections take too long")
		}
	}
	time.Sleep(idleWait) // for what is given back while nothing happens
	now, err := resident("/proc", g.process.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	g.idle = float64(now-g.fresh) / idleConnections
	if g.name == ours {
		b.answered += idleConnections
	}
	fmt.Fprintf(b.progress, "%-47s %-11s %8.1f KiB a connection, %d MiB before\n", c.name, g.name, g.idle, g.fresh>>10)
	return g.idle, client.alive()
}

// idleMain: ADDRESS CERTIFICATE CONNECTIONS. It says when all are there, and stays until it is told to end.
func idleMain(args []string) int {
	if err := runIdle(args); err != nil {
		fmt.Fprintln(os.Stderr, "idle client:", err)
		return 1
	}
	return 0
}

func runIdle(args []string) error {
	if len(args) != 3 {
		return errors.New("want ADDRESS CERTIFICATE CONNECTIONS")
	}
	chain, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(args[0])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(chain) {
		return fmt.Errorf("no certificate in %s", args[1])
	}
	config := &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, CurvePreferences: []tls.CurveID{tls.X25519}}
	conns := make([]*tls.Conn, n)
	for i := range conns {
		c, err := tls.Dial("tcp", args[0], config)
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		conns[i] = c
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		answer := make([]byte, 2000)
		if k, err := c.Read(answer); err != nil || !strings.HasPrefix(string(answer[:k]), "HTTP/1.1 200 ") {
			return fmt.Errorf("connection %d: answer %q, %w", i, answer[:k], err)
		}
	}
	fmt.Println("ready")
	over := make(chan error, 1)
	for _, c := range conns { // none is to end: what is closed costs nothing
		go func() {
			for {
				if _, err := c.Read(make([]byte, 2000)); err != nil {
					over <- fmt.Errorf("a connection ended: %w", err)
					return
				}
			}
		}()
	}
	return <-over
}
