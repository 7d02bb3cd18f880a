// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Body writes n bytes that anybody can compute: byte i is i modulo 251.
func Body(w io.Writer, n int64) error {
	const period = 251 * 128
	pattern := make([]byte, period)
	for i := range pattern {
		pattern[i] = byte(i % 251)
	}
	for n > 0 {
		piece := pattern[:min(n, period)]
		if _, err := w.Write(piece); err != nil {
			return err
		}
		n -= int64(len(piece))
	}
	return nil
}

// BodyHash is the SHA-256 of Body, in hexadecimal.
func BodyHash(n int64) string {
	h := sha256.New()
	_ = Body(h, n) // a hash takes everything
	return hex.EncodeToString(h.Sum(nil))
}

// NewUpstream is a server to stand behind the gateway:
//
//	/            a reply of 100 bytes
//	/bytes/N     N bytes of Body, with their length
//	/chunked/N   the same without
//	/hash        the SHA-256 of the request's body, and its length
//	/echo        the request's body, as it comes
//	/headers     what was received, as JSON
//	/status/N    status N
//	/slow/MS     a reply after so many milliseconds
//	/cut/N       a length of N, half of it, and the end of the connection
func NewUpstream() http.Handler {
	mux := http.NewServeMux()
	small := []byte(fmt.Sprintf("%-99s\n", "hello from the upstream"))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(small) })
	mux.HandleFunc("/bytes/{n}", number("n", func(w http.ResponseWriter, n int64) {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_ = Body(w, n)
	}))
	mux.HandleFunc("/chunked/{n}", number("n", func(w http.ResponseWriter, n int64) {
		w.(http.Flusher).Flush()
		_ = Body(w, n)
	}))
	mux.HandleFunc("/hash", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%x %d\n", h.Sum(nil), n)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "method": r.Method, "uri": r.RequestURI, "headers": r.Header})
	})
	mux.HandleFunc("/status/{n}", number("n", func(w http.ResponseWriter, n int64) {
		w.WriteHeader(int(min(max(n, 200), 599)))
	}))
	mux.HandleFunc("/slow/{n}", number("n", func(w http.ResponseWriter, n int64) {
		time.Sleep(time.Duration(min(n, 60_000)) * time.Millisecond)
		_, _ = w.Write(small)
	}))
	mux.HandleFunc("/cut/{n}", number("n", func(w http.ResponseWriter, n int64) {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_ = Body(w, n/2)
		panic(http.ErrAbortHandler)
	}))
	return mux
}

func number(name string, fn func(http.ResponseWriter, int64)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue(name), 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "want a number", http.StatusBadRequest)
			return
		}
		fn(w, n)
	}
}
