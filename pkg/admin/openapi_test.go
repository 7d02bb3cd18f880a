// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// The description and the code agree: the same operations, and replies as described.
func TestOpenAPI(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err == nil {
		err = doc.Validate(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	var described []string
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+path)
		}
	}
	s := serveRemote(t)
	var all []string
	for _, e := range append((&api{}).endpoints(), (&Remote{}).endpoints()...) {
		all = append(all, e.pattern)
	}
	slices.Sort(all)
	slices.Sort(described)
	if !slices.Equal(all, described) {
		t.Errorf("described are\n%s\nthere are\n%s", strings.Join(described, "\n"), strings.Join(all, "\n"))
	}
	doc.Servers = nil
	openapi3filter.RegisterBodyDecoder("image/svg+xml", openapi3filter.FileBodyDecoder)
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range all {
		method, path, _ := strings.Cut(op, " ")
		path = strings.ReplaceAll(strings.ReplaceAll(path, "{name}", "latency"), "{id}", "none")
		if path != "/v1/events" { // has no end
			checkReply(t, s, router, method, strings.ReplaceAll(path, "{kind}", "sources"), "")
		}
	}
	checkReply(t, s, router, "POST", "/v1/explain", `{"path":"/","client":"192.0.2.7"}`)
	checkReply(t, s, router, "POST", "/v1/drain", `{"drained":true}`)
	checkReply(t, s, router, "POST", "/v1/log", `{"level":"debug","for_ns":60000000000}`)
	checkReply(t, s, router, "POST", "/v1/tokens", `{"name":"described","role":"viewer"}`)
	checkReply(t, s, router, "POST", "/v1/verdicts", `{"source":"192.0.2.7","step":"thin","ttl_ns":60000000000}`)
	checkReply(t, s, router, "GET", "/v1/verdicts", "")
	checkReply(t, s, router, "POST", "/v1/keys", `{"op":"add","record":{"id":"","consumer":"c"}}`)
	checkReply(t, s, router, "POST", "/v1/keys", `{"op":"revoke","id":"a"}`)
	checkReply(t, s, router, "POST", "/v1/cache/purge", `{"kind":"all"}`)
	checkReply(t, s, router, "POST", "/v1/reload", `{"confirm_within_ns":1000000000}`)
}

func checkReply(t *testing.T, s *served, router routers.Router, method, path, body string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+s.boss)
	q.Header.Set("Content-Type", "application/json")
	r, err := s.client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	route, params, err := router.FindRoute(q)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: q, PathParams: params, Route: route},
		Status:                 r.StatusCode, Header: r.Header, Body: r.Body,
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	if err := openapi3filter.ValidateResponse(t.Context(), in); err != nil {
		t.Errorf("%s %s: status %d: %v", method, path, r.StatusCode, err)
	}
}
