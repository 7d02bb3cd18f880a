// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// server is a server block.
type server struct {
	s       *scope
	names   []string // *.DOMAIN for all names below it
	named   bool     // it has some, perhaps none that can be translated
	listens []listen
	whole   *directive // a return that answers all requests
	byName  map[string]*directive
	inClear *directive // a return for what comes without TLS
}

// listen is one address of a server.
type listen struct {
	address       string
	ssl, http2    bool
	isDefault     bool
	d             *directive
	proxyProtocol bool
	listener      *listener // nil: it is not served
	wildcard      bool      // of every address
	six           bool      // IPv6, as written
	only          bool      // not IPv4, too
}

// listener is an address with all of its servers.
type listener struct {
	address      string
	from         *directive
	tls, http2   bool
	servers      []*server
	first        *server // for names that nobody has
	certificates [][2]setting
	minVersion   setting
	strict       []*directive // want TLS 1.3 alone
	mode, ca     setting      // of clients' certificates
}

// server reads a server block: where it listens and for which names.
func (t *translation) server(d *directive) {
	v := &server{s: d.scope(t.http), byName: map[string]*directive{}}
	for _, n := range v.s.own("server_name") {
		for _, name := range n.args {
			v.addName(t, n, strings.ToLower(name))
		}
	}
	old := len(v.s.own("ssl")) > 0 && v.s.own("ssl")[0].arg(0) == "on"
	h2 := v.s.one("http2")
	for _, l := range v.s.own("listen") {
		if one, ok := t.address(l); ok {
			one.ssl = one.ssl || old
			one.http2 = one.http2 || h2 != nil && h2.arg(0) == "on"
			v.listens = append(v.listens, one)
		}
	}
	if len(v.s.own("listen")) == 0 {
		v.listens = append(v.listens, listen{address: ":80", d: d, wildcard: true})
	}
	v.ifs(t)
	if list := v.s.own("return"); len(list) > 0 {
		v.whole = list[0]
	}
	t.servers = append(t.servers, v)
}

func (v *server) addName(t *translation, d *directive, name string) {
	v.named = true
	switch {
	case name == "_":
	case name == "":
		t.note(Differs, d, `requests without a host go to the default server of their listener`)
	case strings.HasPrefix(name, "~"):
		t.note(Missing, d, "%s: hosts are exact or *.DOMAIN: list them; what comes for them goes to the default server", name)
	case strings.HasPrefix(name, "."):
		v.addName(t, d, name[1:])
		v.addName(t, d, "*"+name)
	case strings.HasPrefix(name, "*.") && isHost(name[2:]) && strings.Trim(name[2:], "0123456789.") != "" || isHost(name):
		if !slices.Contains(v.names, name) {
			v.names = append(v.names, name)
		}
	default:
		t.note(Missing, d, "%s: hosts are exact or *.DOMAIN: what comes for it goes to the default server", name)
	}
}

// ifs finds the two that are common in whole servers: redirects of a name or of what came in
// the clear. All others close the server.
func (v *server) ifs(t *translation) {
	for _, d := range v.s.d.block {
		if d.name != "if" || len(d.block) != 1 || d.block[0].name != "return" || len(d.args) != 3 {
			continue
		}
		switch answer := d.block[0]; {
		case d.args[0] == "$host" && d.args[1] == "=" && slices.Contains(v.names, d.args[2]):
			v.byName[d.args[2]] = answer
			d.settle()
		case d.args[0] == "$scheme" && (d.args[1] == "=" && d.args[2] == "http" || d.args[1] == "!=" && d.args[2] == "https"):
			v.inClear = answer
			d.settle()
		}
	}
}

// address reads a listen directive.
func (t *translation) address(d *directive) (listen, bool) {
	l := listen{d: d}
	text := d.arg(0)
	if strings.HasPrefix(text, "unix:") {
		t.note(Missing, d, "the gateway listens on TCP alone")
		return l, false
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		if host, port = strings.Trim(text, "[]"), "80"; strings.Trim(text, "0123456789") == "" {
			host, port = "", text
		}
	}
	if host == "*" || host == "0.0.0.0" || host == "::" {
		l.six = host == "::"
		host = ""
	}
	l.only = l.six && !slices.Contains(d.args, "ipv6only=off")
	l.wildcard = host == ""
	if l.address = hostPort(net.JoinHostPort("localhost", port), port); l.address == "" {
		t.note(Missing, d, "want HOST:PORT")
		return l, false
	}
	l.address = ":" + port
	if !l.wildcard {
		if l.address = hostPort(net.JoinHostPort(host, port), port); l.address == "" {
			t.note(Missing, d, "want HOST:PORT")
			return l, false
		}
		if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
			t.note(Differs, d, "the name is looked up when the gateway starts")
		}
	}
	for _, p := range d.args[1:] {
		name, _, _ := strings.Cut(p, "=")
		switch name {
		case "ssl":
			l.ssl = true
		case "http2":
			l.http2 = true
		case "default_server", "default":
			l.isDefault = true
		case "proxy_protocol":
			l.proxyProtocol = true
		case "quic":
			t.note(Missing, d, "there is no HTTP/3")
			return l, false
		case "reuseport", "backlog", "deferred", "bind", "ipv6only", "so_keepalive", "fastopen", "rcvbuf", "sndbuf", "setfib", "accept_filter":
			t.note(Own, d, "%s: each worker has a socket of its own; IPv4 and IPv6 share one; see tcp for keepalive and fastopen", p)
		default:
			t.note(Missing, d, "%s is not known here", p)
		}
	}
	return l, true
}

// listen makes listeners of all servers' addresses.
func (t *translation) listen() {
	wild, four, six, secure := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, v := range t.servers {
		for _, l := range v.listens {
			secure[l.address] = secure[l.address] || l.ssl
			if l.wildcard {
				wild[l.address] = true
				six[l.address] = six[l.address] || l.six
				four[l.address] = four[l.address] || !l.only
			}
		}
	}
	proxied, plain := (*directive)(nil), (*directive)(nil)
	for _, v := range t.servers {
		for i := range v.listens {
			l := &v.listens[i]
			l.ssl = secure[l.address] // as in nginx, where one that says ssl says so for all of the address
			_, port, _ := net.SplitHostPort(l.address)
			if !l.wildcard && wild[":"+port] {
				t.note(Security, l.d, "one port is either for all addresses or for some, and another server listens on :%s: nothing of this one is served here. Give it a port of its own", port)
				continue
			}
			if l.wildcard && !six[l.address] && l.d.name == "listen" {
				t.note(Differs, l.d, "the gateway listens by IPv6, too; give it an address to have it otherwise")
			}
			if l.wildcard && !four[l.address] {
				t.note(Differs, l.d, "the gateway listens by IPv4, too; give it an address to have it otherwise")
			}
			if l.proxyProtocol {
				proxied = l.d
			} else {
				plain = l.d
			}
			t.join(v, l)
		}
	}
	t.proxyProtocol(proxied, plain)
}

// join adds the server to the listener of its address.
func (t *translation) join(v *server, l *listen) {
	at := slices.IndexFunc(t.listeners, func(o *listener) bool { return o.address == l.address })
	if at < 0 {
		if len(t.listeners) == 64 {
			t.note(Missing, l.d, "there are 64 listeners at most")
			return
		}
		at = len(t.listeners)
		t.listeners = append(t.listeners, &listener{address: l.address, from: l.d, tls: l.ssl, first: v})
	}
	o := t.listeners[at]
	l.listener = o
	o.http2 = o.http2 || l.http2
	if l.isDefault {
		o.first = v
	}
	if !slices.Contains(o.servers, v) {
		o.servers = append(o.servers, v)
	}
	if o.tls {
		t.certificates(v, o)
	}
}

func (t *translation) proxyProtocol(proxied, plain *directive) {
	switch {
	case proxied == nil:
	case len(t.out.trusted) == 0:
		t.note(Security, proxied, "nobody is trusted: name those who send PROXY headers in client_address.trusted, and set proxy_protocol: true. Until then their connections are refused as malformed")
	case plain != nil:
		set(&t.out.client, "proxy_protocol", "true", proxied)
		t.note(Security, proxied, "trusted ones must send a PROXY header on every listener here, on that of line %d, too", plain.line)
	default:
		set(&t.out.client, "proxy_protocol", "true", proxied)
	}
}

// certificates adds what a server has of TLS to a listener.
func (t *translation) certificates(v *server, o *listener) {
	chains, keys := v.s.all("ssl_certificate"), v.s.all("ssl_certificate_key")
	for i, c := range chains {
		if i >= len(keys) || strings.Contains(c.arg(0)+keys[i].arg(0), "$") || strings.HasPrefix(c.arg(0), "data:") || strings.HasPrefix(keys[i].arg(0), "engine:") {
			t.note(Missing, c, "want two files of PEM: without, a self-signed certificate is made")
			continue
		}
		pair := [2]setting{{"certificate", t.path(c.arg(0)), c.at()}, {"key", t.path(keys[i].arg(0)), keys[i].at()}}
		if slices.ContainsFunc(o.certificates, func(p [2]setting) bool { return p[0].value == pair[0].value }) {
			continue
		}
		if o.first == v {
			o.certificates = slices.Insert(o.certificates, 0, pair)
		} else {
			o.certificates = append(o.certificates, pair)
		}
	}
	version := setting{"min_version", "1.2", ""} // nginx's default of today
	if d := v.s.one("ssl_protocols"); d != nil {
		version.from = d.at()
		if !slices.Contains(d.args, "TLSv1.2") && slices.Contains(d.args, "TLSv1.3") {
			version.value = "1.3"
		}
		if slices.ContainsFunc(d.args, func(p string) bool { return p != "TLSv1.2" && p != "TLSv1.3" }) {
			t.note(Differs, d, "TLS 1.2 and 1.3 are all there is")
		}
	}
	if version.value == "1.3" {
		o.strict = append(o.strict, v.s.one("ssl_protocols"))
	}
	if o.minVersion.value != "" && (o.minVersion.value == "1.2" || version.value == "1.2") {
		for _, d := range o.strict {
			t.note(Security, d, "TLS 1.2 is taken, too: it is the listener's business, and another server on %s has it", o.address)
		}
	}
	if o.minVersion.value == "" || version.value == "1.2" {
		o.minVersion = version
	}
	t.clientCertificates(v, o)
}

func (t *translation) clientCertificates(v *server, o *listener) {
	verify, ca := v.s.one("ssl_verify_client"), v.s.one("ssl_client_certificate")
	if verify == nil || verify.arg(0) == "off" {
		if o.mode.value == "require" {
			t.note(Differs, v.s.d, "clients need a certificate here, too: it is the listener's business, and another server on %s wants one", o.address)
		}
		return
	}
	mode := map[string]string{"on": "require", "optional": "request"}[verify.arg(0)]
	switch {
	case mode == "" || ca == nil:
		t.note(Security, verify, "a certificate is verified against an authority (client_certificates) or not asked for: its routes answer 503")
		v.s.d.closed = true
	case o.ca.value != "" && o.ca.value != t.path(ca.arg(0)):
		t.note(Security, ca, "one listener has one file of authorities, and another server on %s has another: its routes answer 503", o.address)
		v.s.d.closed = true
	case o.mode.value == "require" || mode == "require":
		if o.mode.value != "require" && len(o.servers) > 1 {
			t.note(Differs, verify, "clients need a certificate for all servers on %s: it is the listener's business", o.address)
		}
		o.mode, o.ca = setting{"mode", "require", verify.at()}, setting{"ca", t.path(ca.arg(0)), ca.at()}
	default:
		o.mode, o.ca = setting{"mode", mode, verify.at()}, setting{"ca", t.path(ca.arg(0)), ca.at()}
	}
}

// path is of a file; a relative one begins at the main file.
func (t *translation) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(t.root, name)
}
