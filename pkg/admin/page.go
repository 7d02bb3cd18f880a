// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"embed"
	"net/http"
	"time"
)

// embedded is the dashboard and the description of the API. The page asks nobody but this
// gateway for anything.
//
//go:embed openapi.yaml page
var embedded embed.FS

// page is a file of the dashboard, and what it is.
type page struct{ name, kind string }

var pages = map[string]page{
	"/{$}":           {"page/index.html", "text/html; charset=utf-8"},
	"/dashboard.css": {"page/dashboard.css", "text/css; charset=utf-8"},
	"/dashboard.js":  {"page/dashboard.js", "text/javascript; charset=utf-8"},
}

func static(name, kind string) http.HandlerFunc {
	text, err := embedded.ReadFile(name)
	if err != nil {
		panic(err) // it is in the binary, or it does not build
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", kind)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
	}
}
