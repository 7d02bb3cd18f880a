// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func keyStore(c *Config) mapping {
	k := &c.Keys
	return mapping{
		rows: []row{
			{"store", "file", oneOf(&k.Store, "file", "redis")},
			{"file", none, file(&k.File, c.Path)},
			{"known_time", "1m", duration(&k.Known, time.Second, 24*time.Hour)},
			{"unknown_time", "5s", duration(&k.Unknown, 100*time.Millisecond, time.Hour)},
			{"stale_time", "1h", duration(&k.Stale, time.Second, 30*24*time.Hour)},
		},
		check: func(f *found) {
			if f.values["store"] != nil && k.Store == "redis" && k.File != "" {
				f.fail("file", "keys are in redis: take one of store and file out")
			}
			f.d.later = append(f.d.later, func() {
				if k.Store == "redis" && c.Redis.Address == "" {
					f.fail("store", "give redis.address, too")
				}
				if k.File == "" && k.Store == "file" {
					k.File = filepath.Join(c.State, "keys")
				}
			})
		},
	}
}

func redis(r *Redis, gateway string) mapping {
	var tls string
	return mapping{
		rows: []row{
			{"address", none, serverAddress(&r.Address)},
			{"user", none, label(&r.User)},
			{"password_file", none, file(&r.PasswordFile, gateway)},
			{"tls", "off", oneOf(&tls, "on", "off")},
			{"database", "0", whole(&r.Database, 0, 1<<16)},
			{"prefix", "xgw:", text(&r.Prefix, "1 to 63 letters, digits and any of -_.:", "shop:", func(s string) bool {
				return s != "" && len(s) <= 63 && !strings.ContainsFunc(s, func(r rune) bool { return !letterOrDigit(r) && !strings.ContainsRune("-_.:", r) })
			})},
		},
		check: func(f *found) {
			r.TLS = tls == "on"
			if f.values != nil && f.values["address"] == nil && !f.faulty["address"] {
				f.fail("address", "a redis needs one, such as 127.0.0.1:6379")
			}
		},
	}
}

// serverAddress is where to connect to.
func serverAddress(dst *string) scalar {
	return text(dst, "HOST:PORT", "127.0.0.1:6379", func(s string) bool { return isHostPort(s, false, 1) })
}

// keyHeaders are where API keys are looked for unless a route says otherwise.
var keyHeaders = []string{"Authorization", "X-API-Key"}

func routeKeys(r *Route) mapping {
	k := &RouteKeys{}
	var mode string
	return mapping{
		rows: []row{
			{"mode", "require", oneOf(&mode, "require", "optional")},
			{"scopes", none, list{example: "orders:read", most: 32, item: added(&k.Scopes, scope)}},
			{"headers", none, list{example: "X-API-Key", least: 1, most: 8, item: added(&k.Headers, fieldName)}},
			{"pass", "false", boolean(&k.Pass)},
		},
		check: func(f *found) {
			if f.values == nil {
				return
			}
			k.Optional = mode == "optional"
			if len(k.Headers) == 0 {
				k.Headers = slices.Clone(keyHeaders)
			}
			r.Keys = k
		},
	}
}

// scope is one of an API key.
func scope(dst *string) scalar {
	return text(dst, "a scope: 1 to 64 letters, digits and any of -_./@+:", "orders:read", func(s string) bool {
		return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
			return !letterOrDigit(r) && !strings.ContainsRune("-_./@+:", r)
		})
	})
}
