// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Server is one of an upstream, as it stands in the file.
type Server struct {
	Address string // HOST:PORT
	Weight  int    // its share of the requests
}

// HealthCheck is how each server of an upstream is asked whether it can take requests.
type HealthCheck struct {
	Protocol  string        `json:"protocol"`          // http, tcp or grpc
	Path      string        `json:"path"`              // http: of a GET
	Host      string        `json:"host,omitempty"`    // http; "": the server's
	StatusMin int           `json:"status_min"`        // http: of the replies that are good
	StatusMax int           `json:"status_max"`        // http
	Service   string        `json:"service,omitempty"` // grpc; "": the server as a whole
	Interval  time.Duration `json:"interval"`
	Timeout   time.Duration `json:"timeout"` // of one check, connecting included
	Rise      int           `json:"rise"`    // good ones in a row, and the server is back
	Fall      int           `json:"fall"`    // bad ones in a row, and it is down
}

// servers adds what reads as HOST:PORT, or HOST:PORT weight=N.
func servers(dst *[]Server) func() reader {
	return func() reader {
		return scalar{want: "HOST:PORT or HOST:PORT weight=1 to 1000", example: "10.0.0.5:8080 or [2001:db8::5]:8080", set: func(s string) error {
			v := Server{Weight: 1}
			address, weight, given := strings.Cut(s, " weight=")
			if !isHostPort(address, false, 1) || given && whole(&v.Weight, 1, 1000).set(weight) != nil {
				return errWant
			}
			v.Address = address
			if slices.ContainsFunc(*dst, func(o Server) bool { return o.Address == address }) {
				return fmt.Errorf("given twice")
			}
			*dst = append(*dst, v)
			return nil
		}}
	}
}

// healthCheck: the mapping is there, or nobody asks.
func healthCheck(u *Upstream) mapping {
	h := &HealthCheck{}
	return mapping{
		rows: []row{
			{"protocol", "http", oneOf(&h.Protocol, "http", "tcp", "grpc")},
			{"path", "/", text(&h.Path, "a path", "", isTarget)},
			{"host", none, text(&h.Host, "a host name or an address", "app.internal", isHostName)},
			{"status", "200", statuses(&h.StatusMin, &h.StatusMax)},
			{"service", none, text(&h.Service, "the name of a gRPC service", "shop.v1.Orders", isServiceName)},
			{"interval", "5s", duration(&h.Interval, 100*time.Millisecond, time.Hour)},
			{"timeout", "2s", duration(&h.Timeout, 10*time.Millisecond, time.Minute)},
			{"rise", "2", whole(&h.Rise, 1, 100)},
			{"fall", "3", whole(&h.Fall, 1, 100)},
		},
		check: func(f *found) {
			if f.values == nil {
				return
			}
			u.Health = h
			of := map[string]string{"path": "http", "host": "http", "status": "http", "service": "grpc"}
			for _, key := range []string{"path", "host", "status", "service"} {
				if f.values[key] != nil && !f.faulty["protocol"] && h.Protocol != of[key] {
					f.fail(key, "only a check with `protocol: %s` has one", of[key])
				}
			}
		},
	}
}

// isTarget: a path, which may have a query.
func isTarget(s string) bool {
	return strings.HasPrefix(s, "/") && len(s) <= 1024 &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' })
}

func isServiceName(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool {
		return !letterOrDigit(r) && r != '.' && r != '_' && r != '-' && r != '/'
	})
}

// statuses is one status, or a range of them.
func statuses(least, most *int) scalar {
	return scalar{want: "a status from 200 to 599, or a range such as 200-399", set: func(s string) error {
		low, high, isRange := strings.Cut(s, "-")
		a, err := strconv.Atoi(low)
		b := a
		if isRange && err == nil {
			b, err = strconv.Atoi(high)
		}
		if err != nil || a < 200 || b > 599 || a > b {
			return errWant
		}
		*least, *most = a, b
		return nil
	}}
}

// offOr reads like s, and off as 0, or nothing.
func offOr[T time.Duration | int | string](dst *T, s scalar) scalar {
	return scalar{want: "off or " + s.want, set: func(text string) error {
		if text == "off" {
			*dst = *new(T)
			return nil
		}
		return s.set(text)
	}}
}
