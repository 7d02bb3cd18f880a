// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/zone"
)

// A route's own limits hold in place of the general ones, in both directions.
func TestBodyLimits(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		up := newWitness(t, "up")
		g := newGateway(t, []string{up.address}, func(s *policy.Snapshot) {
			s.Sizes.BodyBytes = 1000
			all := s.Routes[0]
			for path, most := range map[string]int64{"/small": 10, "/large": 100_000, "/any": 0} {
				r := all
				r.Name, r.PathPrefix, r.BodyBytes = path[1:], path, ptr(most)
				s.Routes = append(s.Routes, r)
			}
		})
		client := g.client(h2)
		for _, row := range []struct {
			target       string
			size, status int
		}{
			{"/", 1000, 200}, {"/", 1001, 413}, {"/small", 10, 200}, {"/small", 11, 413}, {"/large", 100_000, 200}, {"/large", 100_001, 413}, {"/any", 300_000, 200},
		} {
			for _, chunked := range []bool{false, true} {
				var body io.Reader = strings.NewReader(strings.Repeat("x", row.size))
				if chunked {
					body = struct{ io.Reader }{body}
				}
				if resp, _ := g.askWith(client, "POST", "", row.target, body); resp.StatusCode != row.status {
					t.Errorf("%s, %d bytes, chunked %v: %d, want %d", row.target, row.size, chunked, resp.StatusCode, row.status)
				}
			}
		}
	})
}

// An upstream that takes its time is waited for as long as the route says: longer, or
// not so long, as the general limit.
func TestRouteTimeouts(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		const pause = 1200 * time.Millisecond
		slow := &witness{address: httpUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("body") {
				w.(http.Flusher).Flush()
			}
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, "late")
		})}
		g := newGateway(t, []string{slow.address}, func(s *policy.Snapshot) {
			s.Upstreams[0].HeaderTimeout, s.Timeouts.Body = 200*time.Millisecond, 200*time.Millisecond
			patient, impatient := s.Routes[0], s.Routes[0]
			patient.Name, patient.PathPrefix = "patient", "/patient"
			patient.Timeouts = &policy.Timeouts{Header: 20 * time.Second, Body: 20 * time.Second}
			s.Routes = append(s.Routes, patient)
			impatient.Name, impatient.PathPrefix = "impatient", "/impatient"
			impatient.Timeouts = &policy.Timeouts{Header: 20 * time.Second}
			s.Routes = append(s.Routes, impatient)
		})
		client := g.client(h2)
		if resp, body := g.ask(client, "GET", "", "/patient"); resp.StatusCode != 200 || body != "late" {
			t.Errorf("patient: %d %q", resp.StatusCode, body)
		}
		if resp, body := g.ask(client, "GET", "", "/patient?body"); resp.StatusCode != 200 || body != "late" {
			t.Errorf("patient of the body: %d %q", resp.StatusCode, body)
		}
		if resp, _ := g.ask(client, "GET", "", "/"); resp.StatusCode != 504 {
			t.Errorf("general: %d", resp.StatusCode)
		}
		if resp, _ := g.ask(client, "GET", "", "/impatient"); resp.StatusCode != 200 {
			t.Errorf("patient of the head: %d", resp.StatusCode)
		}
		resp, err := client.Get(g.url("/impatient?body"))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("a body that was cut passed for whole: %q", b)
		}
		resp.Body.Close()
	})
}

// A client that stops in the middle of its body is waited for as long as the route says.
func TestRouteTimeoutOfRequestBody(t *testing.T) {
	bothProtocols(t, func(t *testing.T, h2 bool) {
		up := newWitness(t, "up")
		g := newGateway(t, []string{up.address}, func(s *policy.Snapshot) {
			hasty := s.Routes[0]
			hasty.Name, hasty.PathPrefix, hasty.Timeouts = "hasty", "/hasty", &policy.Timeouts{Body: 200 * time.Millisecond}
			s.Routes = append(s.Routes, hasty)
		})
		client := g.client(h2)
		pause := func(target string) (int, error) {
			r, w := io.Pipe()
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				_, _ = io.WriteString(w, "half")
				select {
				case <-stop:
				case <-time.After(1500 * time.Millisecond):
				}
				_, _ = io.WriteString(w, "half")
				w.Close()
			}()
			req, _ := http.NewRequest("POST", g.url(target), r)
			req.ContentLength = 8
			resp, err := client.Do(req)
			_ = r.CloseWithError(errors.New("over"))
			if err != nil {
				return 0, err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			return resp.StatusCode, nil
		}
		if status, err := pause("/"); status != 200 {
			t.Errorf("general: %d %v", status, err)
		}
		if status, _ := pause("/hasty"); status == 200 {
			t.Error("hasty: it waited")
		}
		recs := g.records(2)
		if recs[0].Outcome != zone.RequestOK || recs[1].Outcome != zone.RequestClientTimeout {
			t.Errorf("%v, %v", recs[0].Outcome, recs[1].Outcome)
		}
	})
}
