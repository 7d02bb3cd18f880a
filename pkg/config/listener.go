// SPDX-License-Identifier: Apache-2.0

package config

// maxListeners: the sockets of all are handed to a worker with one message.
const maxListeners = 64

func listener(c *Config) mapping {
	l := &Listener{}
	var tls, http2 string
	var single Certificate
	return mapping{
		rows: []row{
			{"address", ":443", listenAddress(&l.Address)},
			{"tls", "on", oneOf(&tls, "on", "off")},
			{"http2", "auto", oneOf(&http2, "auto", "on", "off")},
			{"certificate", none, file(&single.Chain, c.Path)},
			{"key", none, file(&single.Key, c.Path)},
			{"certificates", none, list{example: "{certificate: a.pem, key: a.key}", item: func() reader { return certificate(c, l) }}},
			{"server_names", none, list{example: "gateway.example.com", item: added(&l.ServerNames, certificateName)}},
			{"min_version", "1.3", oneOf(&l.MinVersion, "1.3", "1.2")},
			{"client_certificates", none, mapping{rows: []row{
				{"mode", "off", oneOf(&l.ClientCertificates, "off", "request", "require")},
				{"ca", none, file(&l.ClientCA, c.Path)},
			}, check: func(f *found) { checkClientCA(f, l) }}},
		},
		check: func(f *found) {
			l.TLS, l.HTTP2 = tls != "off", http2 == "on" || http2 == "auto" && tls != "off"
			if checkPair(f, &single) && single.Chain != "" {
				if len(l.Certificates) > 0 {
					f.fail("certificates", "a certificate stands beside the list: put it into the list, as its first")
				}
				l.Certificates = append(l.Certificates, single)
			}
			for _, other := range c.Listeners {
				if other.Address == l.Address && !f.faulty["address"] {
					f.fail("address", "another listener has %s", l.Address)
				}
			}
			for _, key := range []string{"certificate", "key", "certificates", "server_names", "min_version", "client_certificates"} {
				if _, there := f.values[key]; there && !l.TLS {
					f.fail(key, "the listener is without TLS, so it would never be used: leave it out, or `tls: on`")
				}
			}
			c.Listeners = append(c.Listeners, *l)
		},
	}
}

func certificate(c *Config, l *Listener) mapping {
	p := Certificate{}
	return mapping{
		rows: []row{
			{"certificate", required, file(&p.Chain, c.Path)},
			{"key", required, file(&p.Key, c.Path)},
			{"ocsp", none, file(&p.OCSP, c.Path)},
		},
		check: func(*found) { l.Certificates = append(l.Certificates, p) },
	}
}

// checkPair tells whether certificate and key are both there, or neither.
func checkPair(f *found, p *Certificate) bool {
	switch {
	case f.faulty["certificate"] || f.faulty["key"]:
		return false
	case p.Chain != "" && p.Key == "":
		f.fail("certificate", "its key is missing: give both, or neither for a certificate that is made")
		return false
	case p.Chain == "" && p.Key != "":
		f.fail("key", "its certificate is missing: give both, or neither for a certificate that is made")
		return false
	}
	return true
}

func checkClientCA(f *found, l *Listener) {
	switch {
	case f.faulty["mode"] || f.faulty["ca"]:
	case l.ClientCertificates == "off" && l.ClientCA != "":
		f.fail("ca", "no certificate of a client is asked for: add `mode: require`, or request")
	case l.ClientCertificates != "off" && l.ClientCA == "":
		f.fail("mode", "ca is missing: the file of the authorities that clients' certificates are from")
	}
}
