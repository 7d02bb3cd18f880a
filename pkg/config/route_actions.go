// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of replies that are kept in memory, in bytes.
const (
	maxReply   = 1 << 20
	maxReplies = 16 << 20
)

func redirect(r *Route) mapping {
	v := &Redirect{}
	return mapping{
		rows: []row{
			{"status", "307", number(&v.Status, "301", "302", "303", "307", "308")},
			{"location", required, location(&v.Location)},
		},
		check: func(f *found) {
			if f.values != nil {
				r.Redirect = v
			}
		},
	}
}

func reply(c *Config, r *Route, seen *routesSeen) mapping {
	v := &Reply{}
	var body string
	return mapping{
		rows: []row{
			{"status", "200", replyStatus(&v.Status)},
			{"content_type", "text/plain; charset=utf-8", fieldValue(&v.ContentType)},
			{"body", none, anyText(&body)},
			{"file", none, file(&v.File, c.Path)},
		},
		check: func(f *found) {
			if f.values == nil {
				return
			}
			r.Reply = v
			key := "body"
			switch {
			case f.values["file"] != nil && f.values["body"] != nil:
				f.fail("file", "a reply has one of body and file")
			case f.values["file"] != nil:
				key = "file"
				v.Body = f.contents("file", v.File)
			case body != "":
				v.Body = []byte(body)
			}
			if (v.Status == 204 || v.Status == 304) && f.values[key] != nil {
				f.fail(key, "a reply with status %d has no body", v.Status)
			}
			if seen.bodies += len(v.Body); len(v.Body) > 0 && seen.bodies > maxReplies {
				f.fail(key, "the bodies of all replies are longer than %s together", SizeText(maxReplies))
			}
		},
	}
}

// contents is what the file named at the key file holds; nothing when only the text
// is looked at, without the machine.
func (f *found) contents(key, path string) []byte {
	if f.d.open == nil || f.faulty[key] {
		return nil
	}
	b, err := f.d.open(path)
	switch {
	case err != nil:
		f.fail(key, "%s: %v: give the path of a file that can be read", quote(path), unwrapPath(err))
	case len(b) > maxReply:
		f.fail(key, "%s is longer than %s", quote(path), SizeText(maxReply))
	}
	return b
}

// unwrapPath leaves what went wrong: the path is said in quotes.
func unwrapPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func maintenance(r *Route) mapping {
	v := &Maintenance{}
	return mapping{
		rows: []row{
			{"enabled", "false", boolean(&v.Enabled)},
			{"retry_after", "60s", duration(&v.RetryAfter, time.Second, 7*24*time.Hour)},
			{"content_type", "text/plain; charset=utf-8", fieldValue(&v.ContentType)},
			{"body", none, anyText(&v.Body)},
		},
		check: func(f *found) {
			if f.values != nil {
				r.Maintenance = v
			}
		},
	}
}

func rewrite(r *Route) mapping {
	v := &Rewrite{}
	return mapping{
		rows: []row{
			{"host", none, hostWithPort(&v.Host)},
			{"strip_prefix", none, urlPath(&v.StripPrefix)},
			{"add_prefix", none, urlPath(&v.AddPrefix)},
			{"regex", none, pathRegex(&v.Regex)},
			{"replacement", none, urlPath(&v.Replacement)},
		},
		check: func(f *found) {
			if f.values == nil {
				return
			}
			r.Rewrite = v
			switch {
			case f.faulty["regex"] || f.faulty["replacement"]:
			case (f.values["regex"] == nil) != (f.values["replacement"] == nil):
				f.fail("regex", "regex and replacement are given both or not at all")
			case v.Regex != "" && v.StripPrefix+v.AddPrefix != "":
				f.fail("regex", "a rewrite has either regex and replacement, or strip_prefix and add_prefix")
			case v.Regex != "":
				if most := regexp.MustCompile(v.Regex).NumSubexp(); highestGroup(v.Replacement) > most {
					f.fail("replacement", "%q: regex has %d groups", v.Replacement, most)
				}
			}
		},
	}
}

var groupReference = regexp.MustCompile(`\$(?:\$|\{?(\w*))`)

// highestGroup is the greatest $n; a name or nothing behind a $ is more than there can be.
func highestGroup(replacement string) int {
	most := 0
	for _, m := range groupReference.FindAllStringSubmatch(replacement, -1) {
		if m[0] == "$$" {
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return 1 << 20
		}
		most = max(most, n)
	}
	return most
}

func cors(r *Route) mapping {
	v := &CORS{}
	return mapping{
		rows: []row{
			{"allow_origins", required, list{example: "https://app.example.com", least: 1, most: 256, item: added(&v.AllowOrigins, origin)}},
			{"allow_methods", none, list{example: "GET", item: added(&v.AllowMethods, method)}},
			{"allow_headers", none, list{example: "X-Token", most: 64, item: added(&v.AllowHeaders, token)}},
			{"expose_headers", none, list{example: "X-Total", most: 64, item: added(&v.ExposeHeaders, token)}},
			{"credentials", "false", boolean(&v.Credentials)},
			{"max_age", "10m", duration(&v.MaxAge, 0, 24*time.Hour)},
		},
		check: func(f *found) {
			if f.values == nil {
				return
			}
			r.CORS = v
			if v.Credentials && slices.Contains(v.AllowOrigins, "*") {
				f.fail("credentials", "with the origin *, any page could act as the user: name the origins")
			}
		},
	}
}

func number(dst *int, words ...string) scalar {
	var s string
	one := oneOf(&s, words...)
	set := one.set
	one.set = func(text string) error {
		if err := set(text); err != nil {
			return err
		}
		*dst, _ = strconv.Atoi(s)
		return nil
	}
	return one
}

// replyStatus: 205 would need rules of its own, and 1xx end nothing.
func replyStatus(dst *int) scalar {
	n := whole(dst, 200, 599)
	set := n.set
	n.set = func(s string) error {
		if s == "205" {
			return fmt.Errorf("this status is not supported: 204 says nearly the same")
		}
		return set(s)
	}
	return n
}

func anyText(dst *string) scalar {
	return text(dst, "a text of up to "+SizeText(maxReply)+" bytes", "all is well", func(s string) bool { return len(s) <= maxReply })
}

func method(dst *string) scalar {
	return oneOf(dst, "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}

// hostPattern is a host name, or "*." and a domain for all names below it.
func hostPattern(dst *string) scalar {
	s := text(dst, "a host name without port, or *.DOMAIN for all names below it", "api.example.com or *.example.com", func(s string) bool {
		rest, wild := strings.CutPrefix(s, "*.")
		return isHostName(rest) && (!wild || strings.Trim(rest, "0123456789.") != "")
	})
	set := s.set
	s.set = func(text string) error { return set(strings.ToLower(text)) }
	return s
}

func hostWithPort(dst *string) scalar {
	return text(dst, "a host name, perhaps with a port", "app.internal:8080", func(s string) bool {
		return isHostName(s) || isHostPort(s, false, 1)
	})
}

// maxRegex bounds how much an expression can cost each request, in bytes of its text.
const maxRegex = 1024

func pathRegex(dst *string) scalar {
	s := text(dst, "a regular expression (RE2)", "/v[0-9]+/.*", func(s string) bool { return s != "" && len(s) <= maxRegex })
	set := s.set
	s.set = func(text string) error {
		if err := set(text); err != nil {
			return err
		}
		var fault *syntax.Error
		if _, err := regexp.Compile(text); errors.As(err, &fault) {
			return fmt.Errorf("%s at %s", fault.Code, quote(fault.Expr))
		}
		return nil
	}
	return s
}

var variable = regexp.MustCompile(`\$(\$|\w*)`)

// location is where a redirect goes.
func location(dst *string) scalar {
	s := text(dst, "a URL or a path, in which $host, $path and $query stand for the request's", "https://$host$path$query", func(s string) bool {
		_, err := url.Parse(variable.ReplaceAllString(s, ""))
		return s != "" && len(s) <= 4096 && err == nil && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' })
	})
	set := s.set
	s.set = func(text string) error {
		for _, v := range variable.FindAllString(text, -1) {
			if !slices.Contains([]string{"$host", "$path", "$query", "$$"}, v) {
				return fmt.Errorf("%s is not known: there are $host, $path and $query, and $$ for a dollar", v)
			}
		}
		return set(text)
	}
	return s
}

// origin is a scheme, host and port, as browsers send it.
func origin(dst *string) scalar {
	return text(dst, "an origin, SCHEME://*.DOMAIN, or *", "https://app.example.com or https://*.example.com", func(s string) bool {
		scheme, host, ok := strings.Cut(s, "://")
		host = strings.TrimPrefix(host, "*.")
		return s == "*" || ok && s == strings.ToLower(s) && (isHostName(host) || isHostPort(host, false, 1)) &&
			scheme != "" && !strings.ContainsFunc(scheme, func(r rune) bool { return !letterOrDigit(r) && !strings.ContainsRune("+-.", r) })
	})
}

// token is what names of fields are made of: RFC 9110, 5.6.2.
func token(dst *string) scalar {
	return text(dst, "the name of a header field", "X-Token", func(s string) bool {
		return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool {
			return !letterOrDigit(r) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
		})
	})
}

// fieldName is a field that a route may look at or change.
func fieldName(dst *string) scalar {
	s := token(dst)
	set := s.set
	s.set = func(text string) error {
		switch name := strings.ToLower(text); name {
		case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "expect":
			return fmt.Errorf("this field belongs to a connection or frames a message: it is not a route's")
		case "host":
			return fmt.Errorf("use the route's host to look at it, and rewrite.host to change it")
		case "x-request-id", "forwarded", "x-real-ip", "traceparent", "tracestate":
			return fmt.Errorf("this field is the gateway's own")
		default:
			if strings.HasPrefix(name, "x-forwarded-") {
				return fmt.Errorf("this field is the gateway's own")
			}
		}
		return set(text)
	}
	return s
}

// editedName is a field that a route may change: not what proves who a client is.
func editedName(dst *string) scalar {
	s := fieldName(dst)
	set := s.set
	s.set = func(text string) error {
		if name := strings.ToLower(text); name == "client-cert" || name == "client-cert-chain" || name == "x-consumer" || strings.HasPrefix(name, "x-client-cert-") {
			return fmt.Errorf("this field is the gateway's own")
		}
		return set(text)
	}
	return s
}

// fieldValue is one line of visible characters, without blanks at its ends.
func fieldValue(dst *string) scalar {
	return text(dst, "the value of a header field, up to 4k bytes", "gold", func(s string) bool {
		return isFieldText(s) && strings.TrimRight(s, " \t") == s
	})
}

// fieldPrefix is the beginning of such a line.
func fieldPrefix(dst *string) scalar {
	return text(dst, "the beginning of a header field's value", `"Bearer "`, func(s string) bool { return s != "" && isFieldText(s) })
}

func isFieldText(s string) bool {
	return len(s) <= 4096 && strings.TrimLeft(s, " \t") == s &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}
