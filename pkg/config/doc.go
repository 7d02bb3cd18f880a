// SPDX-License-Identifier: Apache-2.0

// Package config reads text and yields values: gateway.yaml, and beside it buffers.conf
// for what concerns the shared zone, and what ratelimit.lua calls. Every fault is reported with file,
// line and column, all of them at once, and a misspelt key with the nearest known
// one. Nothing is applied here.
//
// These are all keys; [] stands for the items of a list. Everything has a default
// but routes and upstreams, and what a list's items must have:
//
//	key                            default         value
//	interfaces[].name              required        the name of a network interface
//	interfaces[].mode              auto            auto or native or generic or tc
//	allow[]                        none            a prefix or an address
//	deny[]                         none            a prefix or an address
//	port_guard.mode                count           off or count or enforce
//	port_guard.tcp[]               none            a port or a range of them
//	port_guard.udp[]               none            a port or a range of them
//	admin[].source                 required        a prefix or an address
//	admin[].port                   22              a port, 1 to 65535
//	budgets.essential              10000           off or a whole number from 1 to 100000000
//	budgets.echo                   1000            off or a whole number from 1 to 100000000
//	budgets.unclassified           1000            off or a whole number from 1 to 100000000
//	verdicts.stale_after           5s              a time with its unit from 1s to 1h
//	verdicts.guard                 1               off or a whole number from 1 to 1000
//	verdicts.share                 false           true or false
//	spread                         off             auto or off
//	packet_limits[].name           required        a name: 1 to 63 letters, digits and any of -_./@+
//	packet_limits[].key            required        source or prefix or port or queue or interface
//	packet_limits[].count          required        syns or packets or bytes
//	packet_limits[].port           none            a port, 1 to 65535
//	packet_limits[].rate           required        a whole number from 1 to 100000000000, with k, m or g for thousands; packets as 2Mpps and bytes as 1Gbit/s or 10MB/s, too
//	packet_limits[].burst          none            a whole number from 1 to 100000000000, with k, m or g for thousands; without it, the rate
//	packet_limits[].dry_run        false           true or false
//	listeners[].address            :443            HOST:PORT, or :PORT for every address
//	listeners[].tls                on              on or off
//	listeners[].http2              auto            auto or on or off
//	listeners[].certificate        none            the path of a file
//	listeners[].key                none            the path of a file
//	listeners[].certificates[].certificate required        the path of a file
//	listeners[].certificates[].key required        the path of a file
//	listeners[].certificates[].ocsp none            the path of a file
//	listeners[].server_names[]     none            a host name or an address
//	listeners[].min_version        1.3             1.3 or 1.2
//	listeners[].client_certificates.mode off             off or request or require
//	listeners[].client_certificates.ca none            the path of a file
//	session_tickets.rotate         12h             a time with its unit from 1s to 72h
//	session_tickets.file           none            the path of a file
//	handshakes.concurrent          1024            a whole number from 0 to 1048576
//	handshakes.per_second          4000            a whole number from 0 to 1048576
//	client_address.trusted[]       none            a prefix or an address
//	client_address.proxy_protocol  false           true or false
//	client_address.header          off             off or X-Forwarded-For or Forwarded
//	telemetry.address              127.0.0.1:9090  HOST:PORT, or :PORT for every address
//	telemetry.certificate          none            the path of a file
//	telemetry.key                  none            the path of a file
//	telemetry.file                 off             off or a path from the root
//	telemetry.otlp.endpoint        off             off or http://HOST:PORT, or https://HOST:PORT
//	telemetry.otlp.ca              none            the path of a file
//	telemetry.otlp.interval        10s             a time with its unit from 1s to 1h
//	telemetry.otlp.trace_one_in    off             off or a whole number from 1 to 1073741824
//	admin_api.address              127.0.0.1:8444  off or HOST:PORT, or :PORT for every address
//	admin_api.server_names[]       none            a host name or an address
//	admin_api.certificate          none            the path of a file
//	admin_api.key                  none            the path of a file
//	admin_api.client_ca            none            the path of a file
//	admin_api.clients[].subject    required        a name: 1 to 63 letters, digits and any of -_./@+
//	admin_api.clients[].role       required        viewer or operator or admin
//	workers                        auto            auto or a whole number from 1 to 256
//	pin                            true            true or false
//	worker_user                    gateway_worker  the name of a user
//	worker_connections             16384           a whole number from 1 to 1048576
//	worker_rlimit_nofile           65535           a whole number from 1024 to 1073741824
//	worker_memory                  auto            auto or a size from 64m to 1024g bytes
//	tcp.nodelay                    true            true or false
//	tcp.nopush                     false           true or false
//	tcp.keepalive                  15s             off or a time with its unit from 1s to 2h
//	tcp.user_timeout               off             off or a time with its unit from 1s to 1h
//	tcp.fastopen                   off             off or a whole number from 1 to 65536
//	overload_delay                 5ms             off or a time with its unit from 1ms to 10s
//	timeouts.keepalive             75s             a time with its unit from 1m to 2m
//	timeouts.header                10s             a time with its unit from 100ms to 10m
//	timeouts.body                  60s             a time with its unit from 100ms to 1h
//	timeouts.write                 60s             a time with its unit from 100ms to 1h
//	timeouts.handshake             10s             a time with its unit from 100ms to 1m
//	timeouts.drain                 10s             a time with its unit from 100ms to 24h
//	timeouts.min_rate              500             a whole number from 0 to 1073741824
//	limits.line_bytes              8k              a size from 256 to 64k bytes
//	limits.header_bytes            32k             a size from 1k to 1m bytes
//	limits.header_fields           100             a whole number from 10 to 1000
//	limits.body_bytes              0               a size from 0 to 1024g bytes
//	routes[].name                  required        a name: 1 to 63 letters, digits and any of -_./@+
//	routes[].host                  none            a host name without port, or *.DOMAIN for all names below it
//	routes[].path                  /               the beginning of a path
//	routes[].path_exact            none            the beginning of a path
//	routes[].path_regex            none            a regular expression (RE2)
//	routes[].methods[]             none            GET or HEAD or POST or PUT or PATCH or DELETE or OPTIONS
//	routes[].headers[].name        required        the name of a header field
//	routes[].headers[].equal       none            the value of a header field, up to 4k bytes
//	routes[].headers[].prefix      none            the beginning of a header field's value
//	routes[].listeners[]           none            HOST:PORT, or :PORT for every address
//	routes[].upstream              none            a name: 1 to 63 letters, digits and any of -_./@+
//	routes[].split[].upstream      required        a name: 1 to 63 letters, digits and any of -_./@+
//	routes[].split[].weight        1               a whole number from 0 to 1000000
//	routes[].redirect.status       307             301 or 302 or 303 or 307 or 308
//	routes[].redirect.location     required        a URL or a path, in which $host, $path and $query stand for the request's
//	routes[].reply.status          200             a whole number from 200 to 599
//	routes[].reply.content_type    text/plain; charset=utf-8 the value of a header field, up to 4k bytes
//	routes[].reply.body            none            a text of up to 1m bytes
//	routes[].reply.file            none            the path of a file
//	routes[].maintenance.enabled   false           true or false
//	routes[].maintenance.retry_after 60s             a time with its unit from 1s to 168h
//	routes[].maintenance.content_type text/plain; charset=utf-8 the value of a header field, up to 4k bytes
//	routes[].maintenance.body      none            a text of up to 1m bytes
//	routes[].rewrite.host          none            a host name, perhaps with a port
//	routes[].rewrite.strip_prefix  none            the beginning of a path
//	routes[].rewrite.add_prefix    none            the beginning of a path
//	routes[].rewrite.regex         none            a regular expression (RE2)
//	routes[].rewrite.replacement   none            the beginning of a path
//	routes[].request_headers.set[].name required        the name of a header field
//	routes[].request_headers.set[].value required        the value of a header field, up to 4k bytes
//	routes[].request_headers.add[].name required        the name of a header field
//	routes[].request_headers.add[].value required        the value of a header field, up to 4k bytes
//	routes[].request_headers.remove[] none            the name of a header field
//	routes[].reply_headers.set[].name required        the name of a header field
//	routes[].reply_headers.set[].value required        the value of a header field, up to 4k bytes
//	routes[].reply_headers.add[].name required        the name of a header field
//	routes[].reply_headers.add[].value required        the value of a header field, up to 4k bytes
//	routes[].reply_headers.remove[] none            the name of a header field
//	routes[].timeouts.header       none            a time with its unit from 1ms to 1h
//	routes[].timeouts.body         none            a time with its unit from 100ms to 1h
//	routes[].timeouts.total        none            a time with its unit from 10ms to 24h
//	routes[].body_bytes            none            a size from 0 to 1024g bytes
//	routes[].cors.allow_origins[]  required        an origin, SCHEME://*.DOMAIN, or *
//	routes[].cors.allow_methods[]  none            GET or HEAD or POST or PUT or PATCH or DELETE or OPTIONS
//	routes[].cors.allow_headers[]  none            the name of a header field
//	routes[].cors.expose_headers[] none            the name of a header field
//	routes[].cors.credentials      false           true or false
//	routes[].cors.max_age          10m             a time with its unit from 0s to 24h
//	routes[].mirror                none            a name: 1 to 63 letters, digits and any of -_./@+
//	routes[].keys.mode             require         require or optional
//	routes[].keys.scopes[]         none            a scope: 1 to 64 letters, digits and any of -_./@+:
//	routes[].keys.headers[]        none            the name of a header field
//	routes[].keys.pass             false           true or false
//	routes[].websocket             off             off or a time with its unit from 1s to 24h
//	upstreams[].name               required        a name: 1 to 63 letters, digits and any of -_./@+
//	upstreams[].servers[]          required        HOST:PORT or HOST:PORT weight=1 to 1000
//	upstreams[].protocol           http1           http1 or http2
//	upstreams[].connect_timeout    2s              a time with its unit from 1ms to 1m
//	upstreams[].header_timeout     5s              a time with its unit from 1ms to 1h
//	upstreams[].idle_timeout       60s             a time with its unit from 1s to 1h
//	upstreams[].max_connections    512             a whole number from 1 to 65536
//	upstreams[].max_idle           256             a whole number from 0 to 65536
//	upstreams[].balance            round_robin     round_robin or least_conn or p2c or hash
//	upstreams[].hash_by            address         address, path, or the name of a header field
//	upstreams[].retries            1               a whole number from 0 to 8
//	upstreams[].max_fails          3               a whole number from 0 to 1000
//	upstreams[].fail_time          5s              a time with its unit from 100ms to 1h
//	upstreams[].max_pending        128             a whole number from 0 to 65536
//	upstreams[].pending_timeout    1s              a time with its unit from 1ms to 1m
//	upstreams[].max_requests       4096            a whole number from 1 to 1048576
//	upstreams[].total_timeout      off             off or a time with its unit from 10ms to 24h
//	upstreams[].slow_start         10s             off or a time with its unit from 1s to 1h
//	upstreams[].resolve            10s             a time with its unit from 1s to 1h
//	upstreams[].health.protocol    http            http or tcp or grpc
//	upstreams[].health.path        /               a path
//	upstreams[].health.host        none            a host name or an address
//	upstreams[].health.status      200             a status from 200 to 599, or a range such as 200-399
//	upstreams[].health.service     none            the name of a gRPC service
//	upstreams[].health.interval    5s              a time with its unit from 100ms to 1h
//	upstreams[].health.timeout     2s              a time with its unit from 10ms to 1m
//	upstreams[].health.rise        2               a whole number from 1 to 100
//	upstreams[].health.fall        3               a whole number from 1 to 100
//	upstreams[].tls.server_name    none            a host name or an address
//	upstreams[].tls.verify         true            true or false
//	upstreams[].tls.ca             none            the path of a file
//	keys.store                     file            file or redis
//	keys.file                      none            the path of a file
//	keys.known_time                1m              a time with its unit from 1s to 24h
//	keys.unknown_time              5s              a time with its unit from 100ms to 1h
//	keys.stale_time                1h              a time with its unit from 1s to 720h
//	redis.address                  none            HOST:PORT
//	redis.user                     none            a name: 1 to 63 letters, digits and any of -_./@+
//	redis.password_file            none            the path of a file
//	redis.tls                      off             on or off
//	redis.database                 0               a whole number from 0 to 65536
//	redis.prefix                   xgw:            1 to 63 letters, digits and any of -_.:
//	log.access                     -               a path from the root or - or off
//	log.format                     combined        combined or json
//	log.sampling[].routes[]        none            a name: 1 to 63 letters, digits and any of -_./@+
//	log.sampling[].share           required        a number from 0 to 1
//	log.sampling[].slow            500ms           a time with its unit from 1ms to 1h
//	log.redact[]                   none            the name of a query parameter
//	log.error                      -               a path from the root or -
//	log.level                      info            debug or info or warn or error or crit
//	log.syslog.address             off             off or HOST:PORT
//	log.syslog.transport           udp             udp or tcp or tls
//	log.syslog.facility            local0          user or daemon or local0 or local1 or local2 or local3 or local4 or local5 or local6 or local7
//	log.syslog.size                2048            a whole number from 480 to 8192
//	log.syslog.ca                  none            the path of a file
//	state                          /var/lib/xgw    a path from the root
//	buffers.conf
//	shared_memory_zone             128m            a size from 1m to 64g bytes
//	access_ring                    1m              a size from 64k to 1g bytes
//	ratelimit.lua
//	limit_req.name                 required        a name: 1 to 63 letters, digits and any of -_./@+
//	limit_req.key[]                address         address, route, host, api_key, consumer, header:NAME, jwt:CLAIM or jwt:CLAIM:HEADER, or a list of those
//	limit_req.match.route[]        none            a name: 1 to 63 letters, digits and any of -_./@+, or a list of those
//	limit_req.match.method[]       none            GET or HEAD or POST or PUT or PATCH or DELETE or OPTIONS, or a list of those
//	limit_req.match.tier[]         none            a name: 1 to 63 letters, digits and any of -_./@+, or a list of those
//	limit_req.rate                 required        a rate such as 100r/s, 30r/m, 5r/h or 1000r/d
//	limit_req.burst                1               a whole number from 1 to 1000000000
//	limit_req.nodelay              false           true or false
//	limit_req.delay                none            a whole number from 1 to 1000000000: so many of the burst pass at once, the others wait for their turn; without it, 1
//	limit_req.dry_run              false           true or false
//	limit_req.status               429             a whole number from 400 to 599
//	limit_req.scope                gateway         gateway or cluster
//	limit_conn.name                required        a name: 1 to 63 letters, digits and any of -_./@+
//	limit_conn.count               connections     connections or requests
//	limit_conn.key[]               address         address, route, host, api_key, consumer, header:NAME, jwt:CLAIM or jwt:CLAIM:HEADER, or a list of those
//	limit_conn.match.route[]       none            a name: 1 to 63 letters, digits and any of -_./@+, or a list of those
//	limit_conn.match.method[]      none            GET or HEAD or POST or PUT or PATCH or DELETE or OPTIONS, or a list of those
//	limit_conn.match.tier[]        none            a name: 1 to 63 letters, digits and any of -_./@+, or a list of those
//	limit_conn.max                 required        a whole number from 1 to 1000000000
//	limit_conn.dry_run             false           true or false
//	limit_conn.status              429             a whole number from 400 to 599
//	packet_limit.name              required        a name: 1 to 63 letters, digits and any of -_./@+
//	packet_limit.key               required        source or prefix or port or queue or interface
//	packet_limit.count             required        syns or packets or bytes
//	packet_limit.port              none            a port, 1 to 65535
//	packet_limit.rate              required        a whole number from 1 to 100000000000, with k, m or g for thousands; packets as 2Mpps and bytes as 1Gbit/s or 10MB/s, too
//	packet_limit.burst             none            a whole number from 1 to 100000000000, with k, m or g for thousands; without it, the rate
//	packet_limit.dry_run           false           true or false
//	escalate.name                  required        a name: 1 to 63 letters, digits and any of -_./@+
//	escalate.on[]                  none            429 or 401 or http2 or handshake or malformed, or a list of those
//	escalate.count                 required        a whole number from 1 to 1000000
//	escalate.within                10s             a time with its unit from 100ms to 1h
//	escalate.step                  thin            thin or syns or new or all
//	escalate.most                  all             thin or syns or new or all
//	escalate.ttl                   1m              a time with its unit from 200ms to 24h
//	escalate.dry_run               false           true or false
//
// Times are written as 1m30s, sizes as 64k, 128m or 1g (powers of 1024). There are
// no YAML aliases and tags: each value stands where it holds. In buffers.conf a
// line is a key and its value, and # begins a comment.
package config
