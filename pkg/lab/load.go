// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Load is honest traffic: GET requests over TLS, as fast as replies come.
type Load struct {
	URL      string
	HTTP2    bool
	Parallel int // connections of HTTP/1.1, streams of HTTP/2
	Duration time.Duration
	// Dial makes connections, in whichever namespace.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Result of a Load.
type Result struct {
	Requests, Errors int
	Duration         time.Duration
	P50, P99         time.Duration
	FirstError       error
}

// Rate is requests per second.
func (r *Result) Rate() float64 { return float64(r.Requests) / r.Duration.Seconds() }

// Run makes the traffic. A reply other than 200, or one that is cut, is an error.
func (l *Load) Run(ctx context.Context) *Result {
	transport := &http.Transport{
		DialContext: l.Dial, MaxIdleConnsPerHost: l.Parallel, ForceAttemptHTTP2: l.HTTP2,
		// The lab's certificate is self-signed and made a moment ago.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	if !l.HTTP2 {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	ctx, cancel := context.WithTimeout(ctx, l.Duration)
	defer cancel()
	started := time.Now()
	var mu sync.Mutex
	var all []time.Duration
	result := &Result{}
	var wg sync.WaitGroup
	for range l.Parallel {
		wg.Go(func() {
			took, err := l.worker(ctx, client)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				result.Errors++
				result.FirstError = err
			}
		})
	}
	wg.Wait()
	result.Duration = time.Since(started)
	result.Requests = len(all)
	slices.Sort(all)
	result.P50, result.P99 = percentile(all, 50), percentile(all, 99)
	return result
}

func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

// worker repeats the request until ctx ends or one fails.
func (l *Load) worker(ctx context.Context, client *http.Client) (took []time.Duration, err error) {
	for ctx.Err() == nil {
		began := time.Now()
		if err := get(client, l.URL); err != nil {
			return took, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

func get(client *http.Client, url string) error {
	r, err := client.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", r.StatusCode)
	}
	return nil
}

// DialFrom dials from the host's namespace.
func (l *Lab) DialFrom(host string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = l.In(host, func() error {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}
