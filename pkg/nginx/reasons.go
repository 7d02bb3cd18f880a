// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"slices"
	"strings"
)

// translated are directives that have a place in the translation.
var translated = table(`
	: http server location upstream listen server_name ssl_certificate ssl_certificate_key ssl_protocols ssl_client_certificate ssl_verify_client
	: proxy_pass grpc_pass proxy_set_header grpc_set_header proxy_hide_header add_header return rewrite client_max_body_size default_type
	: proxy_connect_timeout proxy_read_timeout proxy_send_timeout grpc_connect_timeout grpc_read_timeout grpc_send_timeout keepalive_timeout
	: client_header_timeout client_body_timeout send_timeout large_client_header_buffers limit_req_zone limit_req limit_req_status limit_req_dry_run
	: limit_conn_zone limit_conn limit_conn_status limit_conn_dry_run set_real_ip_from real_ip_header real_ip_recursive access_log error_log
	: worker_processes worker_connections worker_rlimit_nofile events tcp_nopush tcp_nodelay http2 ssl proxy_ssl_verify proxy_ssl_trusted_certificate
	: proxy_ssl_name grpc_ssl_verify grpc_ssl_trusted_certificate grpc_ssl_name
	: proxy_next_upstream proxy_next_upstream_tries grpc_next_upstream grpc_next_upstream_tries allow deny auth_basic auth_request satisfy internal try_files`)

// owned are directives that the gateway needs not, with the reason.
var owned = table(`
	the gateway passes encodings through: have the upstream compress: gzip gzip_vary gzip_proxied gzip_comp_level gzip_buffers gzip_http_version gzip_min_length gzip_types gzip_disable gzip_static gunzip brotli brotli_comp_level brotli_types brotli_static
	only for files, which the gateway does not serve: sendfile sendfile_max_chunk aio aio_write directio output_buffers open_file_cache open_file_cache_valid open_file_cache_min_uses open_file_cache_errors types include index etag log_not_found if_modified_since disable_symlinks
	tables grow by themselves: types_hash_max_size types_hash_bucket_size server_names_hash_max_size server_names_hash_bucket_size variables_hash_max_size variables_hash_bucket_size map_hash_max_size map_hash_bucket_size proxy_headers_hash_max_size proxy_headers_hash_bucket_size
	workers are pinned to their cores, run as gateway_worker and accept as they can (pin, worker_user): user worker_cpu_affinity worker_priority use multi_accept accept_mutex accept_mutex_delay pcre_jit thread_pool worker_shutdown_timeout worker_aio_requests timer_resolution
	the service manager's business: pid daemon master_process lock_file working_directory env
	what a module would do is told where it is used: load_module
	bodies are streamed, in bounded memory, never through a disk: proxy_buffering proxy_buffers proxy_buffer_size proxy_busy_buffers_size proxy_request_buffering proxy_max_temp_file_size proxy_temp_path proxy_temp_file_write_size client_body_buffer_size client_body_temp_path client_body_in_file_only client_header_buffer_size postpone_output grpc_buffer_size fastcgi_temp_path uwsgi_temp_path scgi_temp_path
	HTTP/1.1 with kept connections is what upstreams get; protocol: http2 is another: proxy_http_version proxy_socket_keepalive
	there is no bound for requests of a connection: keepalive_requests keepalive_time keepalive_disable http2_max_requests http2_max_concurrent_streams http2_recv_timeout http2_idle_timeout
	it tells no version: server_tokens
	cut connections are reset, and lingering is bounded: reset_timedout_connection lingering_close lingering_time lingering_timeout
	ciphers and curves are those of Go, with forward secrecy alone: ssl_ciphers ssl_prefer_server_ciphers ssl_dhparam ssl_ecdh_curve ssl_conf_command proxy_ssl_ciphers proxy_ssl_protocols proxy_ssl_session_reuse grpc_ssl_ciphers grpc_ssl_protocols grpc_ssl_session_reuse
	sessions are resumed by tickets whose keys all workers share (session_tickets): ssl_session_cache ssl_session_timeout ssl_session_tickets ssl_buffer_size ssl_early_data
	the name of the server is always sent: proxy_ssl_server_name grpc_ssl_server_name
	names are looked up by the machine's resolver, each resolve of an upstream: resolver resolver_timeout
	the log's format is a superset of combined, or log: {format: json}: log_format open_log_file_cache log_subrequest limit_req_log_level limit_conn_log_level
	names with _ are not taken from clients, nor fields that are malformed: ignore_invalid_headers underscores_in_headers
	there is nothing like it to switch: server_name_in_redirect port_in_redirect absolute_redirect msie_padding chunked_transfer_encoding charset_types variables_hash request_pool_size connection_pool_size proxy_pass_header`)

// missing say what to do about directives that are not translated.
var missing = table(`
	the gateway serves no files: put a server of files behind it, as an upstream: root alias autoindex autoindex_exact_size autoindex_format autoindex_localtime expires random_index
	an upstream must speak HTTP: put a server in front of it (for PHP: php-fpm behind Apache, nginx or Caddy): fastcgi_pass fastcgi_param fastcgi_index fastcgi_split_path_info fastcgi_read_timeout fastcgi_buffers fastcgi_buffer_size uwsgi_pass uwsgi_param scgi_pass scgi_param memcached_pass
	the gateway keeps no copies of replies: put a cache behind it: proxy_cache proxy_cache_path proxy_cache_key proxy_cache_valid proxy_cache_bypass proxy_no_cache proxy_cache_use_stale proxy_cache_lock proxy_cache_methods proxy_cache_min_uses proxy_cache_revalidate proxy_cache_background_update proxy_store fastcgi_cache fastcgi_cache_path fastcgi_cache_key
	replies of the gateway and of upstreams go out as they are: have the upstream say it: error_page proxy_intercept_errors recursive_error_pages sub_filter sub_filter_once sub_filter_types add_trailer addition_types ssi charset source_charset override_charset
	replies' Location and Set-Cookie are passed on as they are: have the upstream make the public ones, by X-Forwarded-Host and X-Forwarded-Proto: proxy_redirect proxy_cookie_domain proxy_cookie_path proxy_cookie_flags
	there are no variables: where a limit needs one, ratelimit.lua has functions; for upstreams there are routes by headers and split: map geo set split_clients geoip_country geoip_city geoip2 uninitialized_variable_warn
	the gateway is for HTTP: keep nginx for this: stream mail
	copies are made by a route's mirror: mirror mirror_request_body
	there is no HTTP/3: http3 quic_retry quic_gso ssl_early_data_quic http3_hq
	staples are given as files (ocsp: of certificates): ssl_stapling ssl_stapling_verify ssl_stapling_file ssl_stapling_responder ssl_trusted_certificate
	give a file of keys in hex, session_tickets.file: ssl_session_ticket_key
	an upstream's health asks its servers: health_check
	the metrics are on 9090: stub_status status vhost_traffic_status_zone vhost_traffic_status_display`)

// closing are directives that keep somebody out in a way that the gateway cannot.
var closing = table(`
	clients are let in by something the gateway cannot ask: auth_jwt auth_jwt_key_file auth_delay auth_basic_user_file auth_request_set
	it decides who gets in: access_by_lua access_by_lua_block access_by_lua_file rewrite_by_lua rewrite_by_lua_block rewrite_by_lua_file server_rewrite_by_lua_block server_rewrite_by_lua_file js_access modsecurity modsecurity_rules modsecurity_rules_file app_protect_enable limit_except secure_link secure_link_md5 secure_link_secret valid_referers perl
	certificates are not looked up in lists of revoked ones: ssl_crl ssl_ocsp proxy_ssl_crl grpc_ssl_crl
	it changes what the upstream is asked: proxy_method proxy_pass_request_headers proxy_pass_request_body proxy_set_body`)

// table reads lines of "reason: name name …".
func table(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndex(line, ": "); i >= 0 {
			for name := range strings.FieldsSeq(line[i+2:]) {
				out[name] = line[:i]
			}
		}
	}
	return out
}

// forbids tells whether a directive keeps somebody out, in a way that is not translated. Of a
// name that nobody knows the worst is assumed when it sounds like it.
func forbids(d *directive) (string, bool) {
	if reason, ok := closing[d.name]; ok {
		return reason, d.arg(0) != "off"
	}
	known := func(m map[string]string) bool { _, ok := m[d.name]; return ok }
	if known(translated) || known(owned) || known(missing) {
		return "", false
	}
	sounds := func(part string) bool { return strings.Contains(d.name, part) }
	if slices.ContainsFunc([]string{"auth", "access", "deny", "allow", "secure", "security", "jwt", "waf", "naxsi", "protect", "captcha"}, sounds) && d.arg(0) != "off" {
		return "it is not known here, and sounds as if it kept somebody out", true
	}
	return "", false
}
