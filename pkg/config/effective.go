// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Effective is what holds, defaults filled in, by the keys of the files: for people to read and
// for encoding/json. It has no secrets. These are in files that it names; of what it holds
// itself, values of header fields that routes set, add or want may be some, and texts of
// replies and of the script are long: of these it tells that they are there.
func (c *Config) Effective() map[string]any {
	out := effective(reflect.ValueOf(*c)).(map[string]any)
	out["buffers.conf"] = effective(reflect.ValueOf(c.Buffers))
	return out
}

// Hidden stands in Effective where a value may be a secret.
const Hidden = "(hidden)"

// effectiveNames are the keys of fields that are not called so; "" leaves one out, and a dot
// puts one into a mapping of its own.
var effectiveNames = map[string]string{
	"Config.Path": "", "Config.KeyScript": "", "Config.Buffers": "", "Config.Tickets": "session_tickets", "Config.Client": "client_address",
	"Config.Connections": "worker_connections", "Config.OpenFiles": "worker_rlimit_nofile",
	"Config.RequestLimits": "limit_req", "Config.ConnectionLimits": "limit_conn", "Config.Escalations": "escalate",
	"Listener.ClientCertificates": "client_certificates.mode", "Listener.ClientCA": "client_certificates.ca",
	"Certificate.Chain": "certificate", "Keys.Known": "known_time", "Keys.Unknown": "unknown_time", "Keys.Stale": "stale_time",
	"Route.WebSocket": "websocket", "Reply.File": "file",
}

// hidden are fields whose values may be secrets.
var hidden = []string{"HeaderValue.Value", "HeaderMatch.Equal", "HeaderMatch.Prefix"}

// wordy are types that are told as a text.
var wordy = []reflect.Type{reflect.TypeFor[netip.Prefix](), reflect.TypeFor[netip.Addr]()}

func effective(v reflect.Value) any {
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		if v.Int() == 0 {
			return "off"
		}
		return TimeText(time.Duration(v.Int()))
	case slices.Contains(wordy, v.Type()):
		return fmt.Sprint(v.Interface())
	case v.Type() == reflect.TypeFor[[]byte]():
		return fmt.Sprintf("(%d bytes)", v.Len())
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return effective(v.Elem())
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = effective(v.Index(i))
		}
		return out
	case reflect.Struct:
		out := map[string]any{}
		effectiveFields(v, out)
		return out
	}
	return v.Interface()
}

func effectiveFields(v reflect.Value, out map[string]any) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		at := v.Type().Name() + "." + f.Name
		key, renamed := effectiveNames[at]
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); !renamed && tag != "" {
			key = tag
		} else if !renamed {
			key = snake(f.Name)
		}
		value := effective(v.Field(i))
		if key == "" || value == nil {
			continue
		}
		if f.Type == reflect.TypeFor[Certificate]() { // its keys stand beside the others
			effectiveFields(v.Field(i), out)
			continue
		}
		if slices.Contains(hidden, at) {
			value = Hidden
		}
		group, inner, nested := strings.Cut(key, ".")
		if !nested {
			out[key] = value
			continue
		}
		if out[group] == nil {
			out[group] = map[string]any{}
		}
		out[group].(map[string]any)[inner] = value
	}
}

// snake is a field's name as a key: ProxyProtocol is proxy_protocol, AdminAPI admin_api.
func snake(name string) string {
	var b strings.Builder
	letters := []rune(name)
	for i, r := range letters {
		begins := i > 0 && unicode.IsUpper(r) && (!unicode.IsUpper(letters[i-1]) || i+1 < len(letters) && unicode.IsLower(letters[i+1]))
		if begins {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
