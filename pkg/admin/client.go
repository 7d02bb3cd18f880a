// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Client is a gateway in another process; its methods are as of Control.
type Client struct {
	path string
	http *http.Client
}

// NewClient is for the gateway whose socket is at the path. Nothing is sent yet.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		DisableKeepAlives: true,
	}}}
}

// Reload as of Control. ErrConfiguration when the file is wrong.
func (c *Client) Reload(confirm time.Duration) (r Reloaded, err error) {
	ask := map[string]time.Duration{}
	if confirm > 0 {
		ask["confirm_within_ns"] = confirm
	}
	return r, c.post("/v1/reload", ask, &r)
}

// Confirm as of Control.
func (c *Client) Confirm() error { return c.post("/v1/confirm", nil, &struct{}{}) }

// Status as of Control.
func (c *Client) Status() (s Status, err error) { return s, c.get("/v1/status", &s) }

// Verdicts as of Control.
func (c *Client) Verdicts() (list []Verdict, err error) { return list, c.get("/v1/verdicts", &list) }

// AddVerdict as of Control. ErrInvalid when something else must be asked for.
func (c *Client) AddVerdict(ask AddVerdict) (v Verdict, err error) {
	return v, c.post("/v1/verdicts", ask, &v)
}

// RemoveVerdict as of Control. ErrInvalid when the source is none.
func (c *Client) RemoveVerdict(source string) error {
	return c.post("/v1/verdicts/remove", map[string]string{"source": source}, &struct{}{})
}

func (c *Client) get(path string, into any) error {
	r, err := c.http.Get("http://gateway" + path)
	if err != nil {
		return c.unreachable(err)
	}
	return c.read(r, into)
}

// SetServer as of Control.
func (c *Client) SetServer(s ServerSetting) error { return c.post("/v1/servers", s, &struct{}{}) }

// remote is an error of the gateway, in its own words.
type remote struct {
	detail string
	kind   error
}

func (e *remote) Error() string { return e.detail }
func (e *remote) Unwrap() error { return e.kind }

func (c *Client) post(path string, ask, into any) error {
	return c.postUntil(context.Background(), path, ask, into)
}

func (c *Client) postUntil(ctx context.Context, path string, ask, into any) error {
	body, err := json.Marshal(ask)
	if err != nil {
		return err
	}
	if ask == nil {
		body = nil
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://gateway"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	r, err := c.http.Do(q)
	if err != nil {
		return c.unreachable(err)
	}
	return c.read(r, into)
}

func (c *Client) read(r *http.Response, into any) error {
	defer r.Body.Close()
	text, err := io.ReadAll(io.LimitReader(r.Body, bodyBytes))
	if err != nil {
		return fmt.Errorf("read the gateway's answer: %w", err)
	}
	if r.StatusCode == http.StatusOK {
		return json.Unmarshal(text, into)
	}
	var p problem
	if err := json.Unmarshal(text, &p); err != nil || p.Detail == "" {
		return fmt.Errorf("the gateway answers with status %d: is it of another version?", r.StatusCode)
	}
	e := &remote{detail: p.Detail}
	switch r.StatusCode {
	case http.StatusUnprocessableEntity:
		e.kind = ErrConfiguration
	case http.StatusBadRequest:
		e.kind = ErrInvalid
	}
	return e
}

func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: not permitted: run as the user that runs the gateway, or root", c.path)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%s: %w: start it by `xgw run`, or name another by --instance", c.path, ErrNoGateway)
	}
	return err
}
