// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"regexp"
	"slices"
	"strings"
)

var fieldName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$")

// isField tells whether gateway.yaml takes a value: one line, without blanks at its ends.
func isField(s string) bool {
	return len(s) <= 4096 && strings.Trim(s, " \t") == s && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// ofConnection are fields that belong to a connection or frame a message.
var ofConnection = []string{"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "expect"}

// ofGateway are fields that the gateway sets by itself, or takes from nobody.
func ofGateway(name string) bool {
	return slices.Contains([]string{"x-request-id", "forwarded", "x-real-ip", "traceparent", "tracestate", "client-cert", "client-cert-chain", "x-consumer"}, name) ||
		strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "x-client-cert-")
}

// requestFields translates proxy_set_header. host is what nginx sends as Host without one.
func (t *translation) requestFields(a *action, s *scope, host string) {
	name := "proxy_set_header"
	if a.upstream.http2 {
		name = "grpc_set_header"
	}
	hostGiven := false
	for _, d := range s.all(name) {
		field, value := d.arg(0), d.arg(1)
		lower := strings.ToLower(field)
		hasVariable := strings.Contains(value, "$")
		switch {
		case lower == "host":
			hostGiven = true
			t.hostField(a, d, host, value)
		case lower == "upgrade" || lower == "connection" || slices.Contains(ofConnection, lower):
			t.connectionField(a, d, lower, value)
		case lower == "x-real-ip":
			t.note(Differs, d, "it is not sent, and taken from nobody: X-Forwarded-For begins with the same address")
		case slices.Contains([]string{"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"}, lower):
			t.note(Own, d, "the gateway sends it by itself; what a client says of it is believed of trusted proxies alone (client_address)")
		case ofGateway(lower):
			t.note(Differs, d, "it is not sent, and taken from nobody: X-Forwarded-For, -Proto and -Host, X-Request-Id and, with client certificates, X-Client-Cert-Subject are")
		case !fieldName.MatchString(field) || !isField(value):
			t.note(Missing, d, "it is no field")
		case hasVariable && strings.EqualFold(strings.ReplaceAll(strings.TrimPrefix(value, "$http_"), "_", "-"), field):
			t.note(Own, d, "it is passed on as the client sends it")
		case hasVariable:
			putEdit(&a.request, edit{field, "", d.at(), true}, true)
			t.note(Security, d, "there are no variables: the field is removed, so that no client can forge it. Proved clients are told by X-Client-Cert-Subject and X-Consumer")
		default:
			putEdit(&a.request, edit{field, value, d.at(), value == ""}, true)
		}
	}
	if !hostGiven {
		t.proxyHost(a, a.from[len(a.from)-1], host)
	}
}

func (t *translation) hostField(a *action, d *directive, host, value string) {
	switch {
	case slices.Contains([]string{"$host", "$http_host", "$host:$server_port"}, value):
		t.note(Own, d, "the client's Host is passed on as it is, with its port")
	case value == "$proxy_host":
		t.proxyHost(a, d, host)
	case value == "$server_name" || strings.Contains(value, "$") || hostPort(value, "80") == "":
		t.note(Missing, d, "rewrite.host has no variables: the upstream gets the client's Host")
	default:
		set(&a.rewrite, "host", value, d)
	}
}

// proxyHost has the upstream get its own name as Host, as nginx does unless told otherwise.
func (t *translation) proxyHost(a *action, d *directive, host string) {
	if hostPort(host, "80") == "" || strings.HasPrefix(host, "[") && !strings.Contains(host, "]:") {
		t.note(Differs, d, "the upstream gets the client's Host")
		return
	}
	set(&a.rewrite, "host", host, d)
}

func (t *translation) connectionField(a *action, d *directive, lower, value string) {
	switch {
	case lower == "upgrade" && strings.Contains(value, "$http_upgrade"):
		a.ws = "60s"
		d.done = true
	case lower == "upgrade" || lower == "connection":
		t.note(Own, d, "connections are kept by themselves; WebSockets are opened where a route has websocket")
	default:
		t.note(Missing, d, "it belongs to a connection or frames a message: it is not a route's")
	}
}

// replyFields translates add_header and proxy_hide_header.
func (t *translation) replyFields(a *action, s *scope) {
	for _, d := range s.all("proxy_hide_header") {
		if lower := strings.ToLower(d.arg(0)); fieldName.MatchString(d.arg(0)) && !ofGateway(lower) && !slices.Contains(ofConnection, lower) && lower != "host" {
			putEdit(&a.answers, edit{d.arg(0), "", d.at(), true}, true)
		} else {
			t.note(Missing, d, "it is not a route's field")
		}
	}
	for _, d := range s.all("add_header") {
		name, value := d.arg(0), d.arg(1)
		lower := strings.ToLower(name)
		switch {
		case strings.Contains(value, "$"):
			t.note(Missing, d, "there are no variables: for Access-Control fields there is cors; else have the upstream send it")
		case value == "" || !fieldName.MatchString(name) || !isField(value) || ofGateway(lower) || slices.Contains(ofConnection, lower) || lower == "host":
			t.note(Missing, d, "it is not a route's field, or not one line")
		default:
			putEdit(&a.answers, edit{name, value, d.at(), false}, false)
			if d.arg(2) != "always" {
				t.note(Differs, d, "it is added to all replies, whatever their status: as with always")
			}
		}
	}
}
