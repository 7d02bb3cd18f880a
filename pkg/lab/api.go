// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// APIClient makes GET requests under a key, and keeps count of what comes of them. Unlike
// a Load it goes on when it is refused.
type APIClient struct {
	URL, Key string // the key goes into the field X-Key
	Bearer   string // a token; "": none

	OK, Limited, Failed atomic.Int64 // 200, 429, anything else
	failure             atomic.Value

	http *http.Client
}

// APIClient is one at the host. A request that takes longer than the timeout has failed.
func (l *Lab) APIClient(host, key string, h2 bool, timeout time.Duration) *APIClient {
	t := &http.Transport{
		DialContext: l.DialFrom(host), MaxIdleConnsPerHost: 64, ForceAttemptHTTP2: h2,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	if !h2 {
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	url := "https://" + net.JoinHostPort(GatewayAddr.String(), "443") + "/"
	return &APIClient{URL: url, Key: key, http: &http.Client{Transport: t, Timeout: timeout}}
}

// Call makes one request, which is not counted when ctx ends meanwhile.
func (c *APIClient) Call(ctx context.Context) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		panic(err) // the address is the lab's own
	}
	req.Header.Set("X-Key", c.Key)
	if c.Bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.Bearer)
	}
	r, err := c.http.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	switch {
	case ctx.Err() != nil:
	case err == nil && r.StatusCode == http.StatusOK:
		c.OK.Add(1)
	case err == nil && r.StatusCode == http.StatusTooManyRequests:
		c.Limited.Add(1)
	default:
		if err == nil {
			err = fmt.Errorf("status %d", r.StatusCode)
		}
		c.failure.Store(err.Error())
		c.Failed.Add(1)
	}
}

// Run calls on so many connections at once, each time after a pause, until stop, which
// closes them.
func (c *APIClient) Run(parallel int, pause time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for ctx.Err() == nil {
				c.Call(ctx)
				time.Sleep(pause)
			}
		})
	}
	return func() { cancel(); wg.Wait(); c.Close() }
}

// Close closes its connections.
func (c *APIClient) Close() { c.http.CloseIdleConnections() }

func (c *APIClient) String() string {
	s := fmt.Sprintf("%d answers, %d times 429, %d failed", c.OK.Load(), c.Limited.Load(), c.Failed.Load())
	if last := c.failure.Load(); last != nil {
		s += fmt.Sprintf(" (last: %v)", last)
	}
	return s
}
