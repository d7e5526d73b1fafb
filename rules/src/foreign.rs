//! Unknown keys: names of other proxies, and keys that belong to another table.

use serde_json::Value as Json;

/// Names of other programs, in groups, and what is here in their place. A name without a dot stands for itself, whatever its case, with `_`,
/// `-` or no sign between its words.
#[rustfmt::skip]
const FOREIGN: &[(&[&str], &str)] = &[
    // Listeners and connections.
    (&["bind", "port", "listener", "listeners", "entry_points", "entry_point", "frontend", "frontends", "listen_addr", "http_port", "addr"],
     "`server.listen`, such as \"0.0.0.0:8080\""),
    (&["maxconn", "max_conn", "max_conns", "max_connections", "worker_connections", "connection_limit"],
     "`server.max_connections` for connections of clients, `admission.max` for concurrent requests to the app"),
    (&["limit_conn", "limit_conn_zone", "max_connections_per_ip"], "`server.max_address_share`"),
    (&["worker_processes", "workers", "worker_threads", "nbthread", "nbproc", "num_threads"], "`server.threads`"),
    (&["drain", "drain_time", "graceful_timeout", "grace_period", "shutdown_timeout", "hard_stop_after", "worker_shutdown_timeout", "grace_time_out", "request_accept_grace_timeout"],
     "`server.drain_timeout`, after `server.lame_duck`"),
    // Requests of clients.
    (&["client_max_body_size", "max_body_size", "max_request_bytes", "max_request_body_bytes", "request_body", "body_limit", "body_size_limit"],
     "`client.max_body`, or `max_body` of a route"),
    (&["client_body_timeout", "request_body_timeout"], "`client.body_timeout`"),
    (&["client_header_timeout", "header_timeout", "read_header_timeout", "timeout_http_request", "request_headers_timeout"],
     "`client.head_timeout`"),
    (&["keepalive_timeout", "keep_alive_timeout", "keep_alive", "idle_timeout", "timeout_http_keep_alive", "timeout_client"],
     "`client.idle_timeout`; `app.idle_timeout` for connections to the app"),
    (&["send_timeout", "write_timeout"], "`client.write_timeout`"),
    (&["large_client_header_buffers", "client_header_buffer_size", "max_header_size", "max_header_bytes", "max_request_headers_kb", "header_limit"],
     "`client.max_head`; `client.max_fields` for the number of headers"),
    // The app.
    (&["upstream", "upstreams", "backend", "backends", "cluster", "clusters", "service", "services", "load_balancer", "proxy_pass", "reverse_proxy",
       "servers", "endpoints", "target", "targets", "origin", "lb_endpoints", "load_assignment", "server_address"],
     "`app.address`: one app for each Outrigger"),
    (&["proxy_connect_timeout", "timeout_connect", "dial_timeout", "connection_timeout"], "`app.connect_timeout`"),
    (&["proxy_read_timeout", "proxy_send_timeout", "timeout_server", "response_header_timeout", "read_timeout", "request_timeout", "responding_timeouts", "response_timeout"],
     "`app.timeout`, or `timeout` of a route"),
    (&["timeouts"], "`app.timeout`, `app.connect_timeout` and the timeouts of [client]"),
    (&["keepalive", "max_idle_conns", "max_idle_conns_per_host", "pool_max_conn"], "`app.max_idle`"),
    (&["timeout_tunnel", "stream_idle_timeout", "proxy_timeout", "stream_timeout"], "`app.stream_timeout`"),
    (&["timeout_queue", "queue_timeout"], "`admission.max_wait`"),
    (&["max_pending_requests", "max_queue_size", "queue", "queue_size"], "`admission.max_queue`"),
    (&["max_requests", "max_concurrent", "max_concurrent_requests", "in_flight_req", "concurrency", "concurrency_limit", "adaptive_concurrency", "full_conn"],
     "`admission.max`: the concurrency limit adapts below it"),
    (&["load_balancing", "lb_policy", "balance", "weight", "round_robin", "least_conn", "replicas"],
     "no key: one app for each Outrigger; the other Machines are in [peers]"),
    (&["health_check", "health_checks", "httpchk", "health_uri", "health_path", "active_health", "http_health_check"], "`health.path`"),
    // Routes.
    (&["location", "locations", "router", "routers", "route_config", "virtual_hosts", "virtual_host", "handle", "handle_path", "use_backend", "default_backend", "acl", "route", "path", "paths", "matcher", "matchers"],
     "[[routes]], with `name` and `path`"),
    (&["http", "tcp", "udp"], "[[routes]] for routers, [app] for services, and [[rate_limits.rules]]"),
    (&["server_name", "server_names", "domain", "domains", "hostname", "hostnames", "host"], "`hosts` of [[routes]]"),
    (&["method"], "`methods` of [[routes]], a list"),
    (&["prefix", "path_prefix", "uri", "regex", "path_regex", "safe_regex", "pattern", "match", "rule", "path_beg"],
     "`path` of [[routes]]: \"/exact\", \"/items/{id}\" or \"/files/**\""),
    (&["rewrite", "rewrites", "strip_prefix", "prefix_rewrite", "replace_path", "redirect", "redirects", "redir", "try_files", "root", "file_server"],
     "no key: paths are forwarded unchanged, and responses are the app's"),
    // Protection.
    (&["limit", "limits", "quota", "quotas", "limit_req", "limit_req_zone", "rate_limit", "rate_limiting", "rate_limiter", "local_rate_limit", "throttle", "stick_table", "ratelimits"],
     "[[rate_limits.rules]], with `name` and `rate`"),
    (&["average"], "`rate`, such as \"100/1s\""),
    (&["retries", "num_retries", "max_retries", "proxy_next_upstream", "retry_on", "retry_policy", "lb_try_duration", "redispatch"],
     "`retry.attempts`, which counts the first one too, and `retry.statuses`"),
    (&["outlier_detection", "circuit_breakers", "max_fails", "fail_timeout", "max_ejection_percent", "fail_duration"],
     "[breaker]: `failures`, `failure_rate` and `open`"),
    (&["deny", "blocklist", "blacklist", "ban", "fail2ban", "ip_deny"], "[abuse]: temporary bans"),
    (&["allow", "whitelist", "allow_list", "ip_allow_list", "ip_white_list"], "`abuse.allow`, for clients that are never banned"),
    (&["sticky", "stick", "sticky_cookie", "sticky_sessions", "session_affinity", "ip_hash", "hash_policy", "consistent_hash"], "[affinity]"),
    (&["shadow", "dry_run", "report_only", "mirror"], "`mode = \"monitor\"` in the table of the feature"),
    (&["enabled", "enable", "disabled", "disable", "active"], "`mode`: \"enforce\", \"monitor\" or \"off\"; or a switch in [flags]"),
    // Clients.
    (&["real_ip_header", "real_ip", "forwarded_for", "use_remote_address", "client_ip_headers", "proxy_protocol"], "`identity.edge`"),
    (&["set_real_ip_from", "trusted_proxies", "trusted_ips", "xff_num_trusted_hops", "trust_proxy"], "`identity.trusted`"),
    (&["auth", "basic_auth", "forward_auth", "auth_basic", "authentication", "api_keys", "api_key"],
     "[[identity.keys]] for API keys, [identity.jwt] for tokens"),
    (&["add_header", "set_header", "set_headers", "header_up", "header_down", "custom_headers", "request_headers_to_add", "proxy_set_header", "cors"],
     "no key: apart from [headers], headers are forwarded as they are"),
    // Operation.
    (&["access_log", "accesslog"], "`log.access`"),
    (&["error_log", "logging", "logs", "log_format", "log_level", "loglevel", "debug", "verbose"], "[log]: `level`, `format` and `access`"),
    (&["metric", "prometheus", "stats", "dashboard", "api", "admin_address", "stats_uri", "telemetry", "tracing"], "[admin], which serves metrics and status"),
    (&["tls", "ssl", "ssl_certificate", "ssl_certificate_key", "cert", "certs", "certificate", "certificates", "cert_file", "key_pair", "https", "acme", "auto_https", "certificates_resolvers"],
     "no key: the edge in front of Outrigger has TLS"),
    (&["gzip", "encode", "compress", "compression", "brotli"], "no key: the app or the edge compresses"),
    (&["cache", "caching", "proxy_cache"], "no key: Outrigger has no cache"),
    (&["middleware", "middlewares", "plugins", "filters", "http_filters", "filter_chains"],
     "a table for each feature: [rate_limits], [breaker], [retry], [admission]; their order is fixed"),
    (&["global", "defaults", "events", "static_resources", "dynamic_resources", "settings", "config", "proxy", "outrigger", "main"],
     "no key: the tables [server], [client], [app] and so on are at the top"),
    (&["websocket", "websockets", "upgrade", "http2", "grpc"], "no key: it is forwarded; HTTP/2 has `server.h2c_listen`"),
];

/// Our name for another program's `name`.
pub fn foreign(name: &str) -> Option<&'static str> {
    let plain = |name: &str| name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).collect::<String>().to_lowercase();
    let found = plain(name);
    FOREIGN.iter().find(|(names, _)| names.iter().any(|known| plain(known) == found)).map(|(_, here)| *here)
}

/// The tables, among those most used first, that have a key `name`: `app`, `[routes]`.
pub fn owners(name: &str, schema: &Json) -> Vec<String> {
    let mut owners = Vec::new();
    collect(schema, schema, "", name, &mut owners);
    let rank = |owner: &String| {
        let first = ["server", "app", "client", "[routes]", "[rate_limits.rules]", "admission", "log"];
        first.iter().position(|known| known == owner).unwrap_or(first.len())
    };
    owners.sort_by_key(rank);
    owners
}

/// The table and the key in a name that joins both, such as `app_address`.
pub fn joined(name: &str, schema: &Json) -> Option<(String, String)> {
    let name = name.to_lowercase().replace('-', "_");
    name.match_indices('_').find_map(|(at, _)| {
        let (table, key) = (&name[..at], &name[at + 1..]);
        let is_it = |owner: &String| {
            let last = owner.trim_matches(['[', ']']).rsplit('.').next().unwrap_or_default();
            last.trim_end_matches('s') == table.trim_end_matches('s')
        };
        Some((owners(key, schema).into_iter().find(is_it)?, key.to_owned()))
    })
}

/// A table's name in brackets: `[app]`, `[[routes]]`.
pub fn bracketed(owner: &str) -> String {
    format!("[{owner}]")
}

fn resolve<'a>(root: &'a Json, schema: &'a Json) -> &'a Json {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    reference.and_then(|path| root.pointer(path.trim_start_matches('#'))).unwrap_or(schema)
}

fn collect(root: &Json, table: &Json, path: &str, name: &str, owners: &mut Vec<String>) {
    for (key, property) in table["properties"].as_object().into_iter().flatten() {
        let (property, is_list) = match resolve(root, property) {
            list if list["type"] == "array" => (resolve(root, &list["items"]), true),
            other => (other, false),
        };
        let within = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let within = if is_list { format!("[{within}]") } else { within };
        if property["properties"].get(name).is_some() {
            owners.push(within.clone());
        }
        if !is_list {
            collect(root, property, &within, name, owners);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::written::schema;

    #[test]
    fn names_of_other_proxies_are_known_in_every_spelling() {
        for (name, here) in [
            ("max_conns", "server.max_connections"),
            ("entryPoints", "server.listen"),
            ("routers", "[[routes]]"),
            ("proxy-read-timeout", "app.timeout"),
            ("trustedIPs", "identity.trusted"),
        ] {
            assert!(foreign(name).is_some_and(|text| text.contains(here)), "{name}");
        }
        assert_eq!(foreign("colour"), None);
    }

    #[test]
    fn every_key_that_is_named_exists() {
        let schema = schema();
        for (_, text) in FOREIGN {
            for key in text.split('`').skip(1).step_by(2).filter(|key| key.contains('.')) {
                let (table, key) = key.split_once('.').unwrap();
                assert!(owners(key, &schema).iter().any(|owner| owner == table), "{table}.{key}");
            }
            for table in text.split('[').filter_map(|part| part.split_once(']')).map(|(table, _)| table) {
                let mut path = table.split('.');
                let first = resolve(&schema, &schema["properties"][path.next().unwrap()]);
                assert!(first.is_object() && path.all(|key| first["properties"].get(key).is_some()), "{table}");
            }
        }
    }

    #[test]
    fn a_key_knows_its_tables() {
        assert_eq!(owners("max_connections", &schema())[0], "server");
        assert_eq!(owners("cost", &schema()), ["[routes]"]);
        assert_eq!(owners("leeway", &schema()), ["identity.jwt"]);
        assert_eq!(owners("redis", &schema()), ["rate_limits"]);
        assert_eq!(joined("app_address", &schema()), Some(("app".to_owned(), "address".to_owned())));
        assert_eq!(joined("REDIS_URL", &schema()), Some(("rate_limits.redis".to_owned(), "url".to_owned())));
        assert_eq!(joined("colour_of", &schema()), None);
        assert!(owners("timeout", &schema()).starts_with(&["app".to_owned(), "[routes]".to_owned()]));
    }
}
