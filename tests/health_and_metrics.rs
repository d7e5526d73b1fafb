//! The proxy's reports about itself and the app: health, metrics, logs.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::backend::{Backend, Play};
use crate::harness::{Client, Form, Proxy, every_form, get, post, sum, until};
use crate::{openmetrics, promtool};

const HEALTH: [&str; 4] = ["/health", "/health/detailed", "/health/ready", "/health/live"];

#[test]
fn health_is_the_apps_response_or_the_proxys_if_the_app_is_down() {
    let mut app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_body = \"1B\"\n");
    for path in HEALTH {
        app.says(path, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"ok\":true}");
        let answer = proxy.get(path);
        assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}"), "{path}");
    }
    // The app's own negative health response is passed on unchanged.
    app.says("/health/ready", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 12\r\n\r\n{\"ok\":false}");
    assert_eq!(proxy.get("/health/ready").text(), "{\"ok\":false}");
    app.stop();
    for path in HEALTH {
        let answer = proxy.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (503, Some("application/json")), "{path}");
        let body = answer.json();
        let data = &body["data"];
        assert_eq!((&body["ok"], &data["status"]), (&false.into(), &"unhealthy".into()), "{body}");
        assert_eq!(data["reason"], "app_unreachable", "{body}");
        assert!(data["uptime"].is_u64() && data["version"].is_string(), "{body}");
        let timestamp = data["timestamp"].as_str().unwrap();
        assert!(timestamp.len() >= 20 && timestamp.contains('T') && timestamp.ends_with('Z'), "{timestamp}");
        assert!(answer.header("retry-after").is_some() && answer.header("cache-control") == Some("no-store"));
    }
    proxy.counts("outrigger_requests_total", &[("route", "health"), ("outcome", "unavailable")], HEALTH.len());
    app.resume();
    until("health to be the app's again", || proxy.get("/health").status == 200);
}

#[test]
fn a_hung_health_check_gets_a_response_of_the_proxy() {
    let app = Backend::start();
    app.at("/health", Play::Hang);
    let proxy = Proxy::start(&app);
    let answer = proxy.get("/health");
    assert_eq!((answer.status, &answer.json()["data"]["reason"]), (503, &"app_timeout".into()));
}

#[test]
fn the_apps_own_health_check_decides_about_the_platforms() {
    let mut app = Backend::start();
    let ok = |status: u16| format!("HTTP/1.1 {status} Status\r\nContent-Length: 2\r\n\r\nup");
    for path in HEALTH {
        app.says(path, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    }
    app.says("/up", &ok(200));
    let proxy = Proxy::with(&app, "[health]\npath = \"/up\"\n");
    let statuses = || HEALTH.map(|path| proxy.get(path).status);
    until("the app is healthy", || statuses() == [200; 4]);
    let answer = proxy.get("/health");
    let body = answer.json();
    assert_eq!((&body["ok"], &body["data"]["status"]), (&true.into(), &"healthy".into()), "{body}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    // Its own endpoint is one, too. They have no limits, so a flood of them must not reach the app, and others are served.
    let (began, asked) = (Instant::now(), app.requests_to("/up"));
    let mut attacker = proxy.connect();
    for _ in 0..2000 {
        assert_eq!(attacker.send(get("/up")).answer().json()["data"]["status"], "healthy");
    }
    assert_eq!(proxy.get("/").status, 200);
    let most = began.elapsed().as_secs() as usize + 2;
    assert!(app.requests_to("/up") - asked <= most, "one check a second");
    // A response that says no is one of an app that is alive.
    app.says("/up", &ok(500));
    until("the app is unhealthy", || statuses() == [503, 503, 503, 200]);
    assert_eq!(proxy.get("/health").json()["data"]["reason"], "app_unhealthy");
    // No response: it is not alive.
    app.at("/up", Play::Hang);
    until("the app is silent", || statuses() == [503; 4]);
    app.says("/up", &ok(401));
    until("the app is alive again", || statuses() == [503, 503, 503, 200]);
    proxy.changes_to("[health]\npath = \"/up\"\nexpect = [401]\n");
    until("401 is healthy", || statuses() == [200; 4]);
    app.stop();
    until("the app is gone", || statuses() == [503; 4]);
    for path in ["/up", "/health"] {
        assert!(proxy.get(path).json()["data"]["reason"].is_string(), "{path}");
    }
}

#[test]
fn an_app_without_a_health_check_is_healthy_while_it_accepts_connections() {
    let mut app = Backend::start();
    let proxy = Proxy::with(&app, "[health]\npath = \"none\"\n");
    let statuses = || HEALTH.map(|path| proxy.get(path).status);
    until("the app is healthy", || statuses() == [200; 4]);
    app.stop();
    until("the app is gone", || statuses() == [503; 4]);
    app.resume();
    until("the app is back", || statuses() == [200; 4]);
    // Without the section, the app gets these requests again.
    proxy.changes_to("");
    app.says("/health", "HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(proxy.get("/health").status, 418);
}

/// Metric families that the proxy and an app both have, and one with awkward labels.
const OF_THE_APP: &str = "# HELP process_cpu_seconds_total CPU.\n# TYPE process_cpu_seconds_total counter\n\
    process_cpu_seconds_total 5\n# HELP app_pool_connections Connections.\n# TYPE app_pool_connections gauge\n\
    app_pool_connections{pool=\"postgres\",state=\"idle \\\"}\\\"\"} 3\n# HELP app_wait_seconds Waits.\n\
    # TYPE app_wait_seconds histogram\napp_wait_seconds_bucket{le=\"1\"} 1\napp_wait_seconds_bucket{le=\"+Inf\"} 1\n\
    app_wait_seconds_sum 0.5\napp_wait_seconds_count 1\n";

#[test]
fn prometheus_accepts_every_endpoint_even_if_the_app_is_dead() {
    let mut app = Backend::start();
    let length = OF_THE_APP.len();
    app.says("/metrics", &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{OF_THE_APP}"));
    let proxy = Proxy::start(&app);
    // Traffic of every kind, so that every family has samples.
    proxy.get("/");
    proxy.ask(&post("/", "hello"));
    proxy.ask("GET / HTTP/1.1\r\n\r\n");
    proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n");
    let own = proxy.admin("/metrics");
    assert_eq!(own.status, 200);
    promtool::check(&own.body).unwrap();

    let all = proxy.admin("/metrics/all");
    promtool::check(&all.body).unwrap();
    assert_eq!(sum(&all.body, "outrigger_app_metrics_up", &[]), 1.0);
    assert_eq!(sum(&all.body, "process_cpu_seconds_total", &[("process", "app")]), 5.0);
    assert!(all.body.matches("# TYPE process_cpu_seconds_total").count() == 1, "no family twice");
    assert_eq!(sum(&all.body, "app_pool_connections", &[("process", "app"), ("pool", "postgres")]), 3.0);
    assert!(sum(&all.body, "outrigger_requests_total", &[("process", "proxy")]) >= 3.0);

    app.stop();
    let all = proxy.admin("/metrics/all");
    assert_eq!(all.status, 200, "an app that is down is a metric, not an error");
    promtool::check(&all.body).unwrap();
    assert_eq!(sum(&all.body, "outrigger_app_metrics_up", &[]), 0.0);
    assert!(all.body.contains("outrigger_app_metrics_up{process=\"proxy\"} 0"), "it is said, not left out");
    assert_eq!(sum(&all.body, "process_cpu_seconds_total", &[("process", "app")]), 0.0);
}

#[test]
fn a_scraper_that_asks_for_openmetrics_gets_it() {
    let app = Backend::start();
    let of_app = "# TYPE app_waits summary\napp_waits{quantile=\"0.5\"} 1\napp_waits{x=\"1\",quantile=\"1\"} 1\napp_waits_sum 2\n\
                  app_waits_count 2\n# TYPE app_jobs_total counter\napp_jobs_total 7 1700000000250\n\
                  # TYPE app_jobs_created gauge\napp_jobs_created 1.7e9\n# TYPE app_done counter\napp_done 3\n";
    let page = format!("{OF_THE_APP}{of_app}");
    app.says("/metrics", &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len()));
    let proxy = Proxy::start(&app);
    proxy.get("/");
    proxy.ask(&post("/", "hello"));
    proxy.counts("outrigger_requests_total", &[], 2);
    let [own, all] = ["/metrics", "/metrics/all"].map(|path| proxy.openmetrics(path));
    let families = openmetrics::families(&[own.clone(), all.clone()]).unwrap();
    for family in [
        "counter outrigger_requests",
        "counter outrigger_request_body_bytes bytes",
        "histogram outrigger_request_duration_seconds seconds",
        "counter process_cpu_seconds seconds",
        "histogram app_wait_seconds seconds",
        "summary app_waits",
        // Their names do not fit together in OpenMetrics.
        "unknown app_jobs_total",
        "unknown app_jobs_created",
        "unknown app_done",
    ] {
        assert!(families.iter().any(|known| known == family), "{family}: {families:#?}");
    }
    assert!(
        own.contains("\noutrigger_request_body_bytes_total{route=\"default\"} 5\n") && own.ends_with("\n# EOF\n"),
        "{own}"
    );
    assert!(all.contains("\napp_jobs_total{process=\"app\"} 7 1700000000.250\n"), "{all}");
    // The same series as in the text format, apart from how bounds are written.
    let series = |page: &str| {
        let names = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once([' ', '{']));
        names.map(|(name, _)| name.to_owned()).collect::<HashSet<_>>()
    };
    assert_eq!(series(&own), series(&proxy.admin("/metrics").body));
    assert_eq!(series(&all), series(&proxy.admin("/metrics/all").body));
}

#[test]
fn bodies_and_responses_are_counted_by_route() {
    let app = Backend::start();
    app.says("/api/x", "HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabc");
    let rules = "[[routes]]\nname = \"api\"\npath = \"/api/{rest}\"\nmax_body = \"1KiB\"\n";
    let proxy = Proxy::with(&app, rules);
    for request in every_form("/api/x") {
        assert_eq!(proxy.ask(&request).status, 201);
    }
    // Outrigger's own responses, and a method that it does not know.
    proxy.ask("PURGE /api/x HTTP/1.1\r\nHost: a\r\n\r\n");
    proxy.ask(&Form::Sized.with_body("/api/x", &"x".repeat(2000))).is_problem(413, "body_too_large");
    proxy.ask("GET / HTTP/1.1\r\n\r\n");
    let api = ("route", "api");
    let responses = "outrigger_responses_total";
    for (labels, count) in
        [([api, ("method", "GET"), ("status", "2xx")], 3), ([api, ("method", "POST"), ("status", "2xx")], 3)]
    {
        proxy.counts(responses, &labels, count);
    }
    proxy.counts(responses, &[api, ("method", "other"), ("status", "2xx")], 1);
    proxy.counts(responses, &[api, ("method", "POST"), ("status", "4xx")], 1);
    proxy.counts(responses, &[("route", "default"), ("method", "other"), ("status", "4xx")], 1);
    proxy.counts("outrigger_requests_total", &[], 9);
    proxy.counts(responses, &[], 9);
    // Not the framing of chunks, and of the rejected body what was read.
    let received = proxy.metric("outrigger_request_body_bytes_total", &[api]);
    assert!((15.0..=2015.0).contains(&received), "{received}");
    let sent = proxy.metric("outrigger_response_body_bytes_total", &[api]);
    assert!(sent > 7.0 * 3.0, "seven of the app, and a problem: {sent}");
    proxy.counts("outrigger_time_to_first_byte_seconds_count", &[api], 7);
    proxy.counts("outrigger_time_to_first_byte_seconds_count", &[], 7);
}

#[test]
fn the_access_log_says_where_a_request_spent_its_time() {
    let app = Backend::start();
    let permits = Arc::new(Semaphore::new(0));
    app.at("/slow", Play::EchoAfter(Arc::clone(&permits)));
    app.at("/closes", Play::SayAndClose(Vec::new()));
    let rules = "admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"1m\"\nclient.max_body = \"1KiB\"\n";
    let proxy = Proxy::with(&app, rules);
    let line = |path: &str| -> serde_json::Value {
        serde_json::from_str(&proxy.says(&format!("\"path\":\"{path}\""))).unwrap()
    };
    let (mut slow, mut queued) = (proxy.connect(), proxy.connect());
    slow.send(post("/slow", "hello"));
    until("the request to be with the app", || app.requests_to("/slow") > 0);
    queued.send(get("/queued"));
    until("the request to wait", || proxy.metric("outrigger_admission_queue", &[]) > 0.0);
    let both_wait = Instant::now();
    until("another scrape", || proxy.admin("/metrics").status == 200);
    let waited = both_wait.elapsed().as_secs_f64() * 1000.0;
    permits.add_permits(1);
    assert_eq!((slow.answer().status, queued.answer().status), (200, 200));
    let (slow, queued) = (line("/slow"), line("/queued"));
    let time = |line: &serde_json::Value, field: &str| line[field].as_f64().unwrap();
    assert!(time(&slow, "app_ms") >= waited && time(&slow, "queue_ms") == 0.0, "{waited}: {slow}");
    assert!(time(&queued, "queue_ms") >= waited, "{waited}: {queued}");
    for line in [&slow, &queued] {
        let [queue, app, first, all] = ["queue_ms", "app_ms", "ttfb_ms", "duration_ms"].map(|field| time(line, field));
        assert!(queue + app <= first + 0.01 && first <= all + 0.01, "{line}");
    }
    assert_eq!((&slow["request_bytes"], &queued["request_bytes"]), (&5.into(), &0.into()));
    // A failed attempt has a time and no response; a rejected request has neither.
    proxy.ask(&post("/closes", "hello")).is_problem(502, "app_closed");
    let failed = line("/closes");
    assert!(failed["app_ms"].is_number() && failed["ttfb_ms"].is_null(), "{failed}");
    proxy.ask(&post("/large", &"x".repeat(2000))).is_problem(413, "body_too_large");
    let rejected = line("/large");
    assert!(rejected["app_ms"].is_null() && rejected["ttfb_ms"].is_null() && rejected["queue_ms"] == 0.0, "{rejected}");
}

#[test]
fn an_app_whose_metrics_are_nonsense_or_hang_does_not_break_the_proxys() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let nonsense =
        "<html>\n# TYPE outrigger_open_connections histogram\noutrigger_open_connections 7\nx{ 1\n\0\n# TYPE\n";
    let error = "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops".to_owned();
    let html = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{nonsense}", nonsense.len());
    for (answer, up) in [(error, 0.0), (html, 1.0)] {
        app.says("/metrics", &answer);
        let all = proxy.admin("/metrics/all");
        assert_eq!(all.status, 200);
        promtool::check(&all.body).unwrap();
        assert_eq!(sum(&all.body, "outrigger_app_metrics_up", &[]), up);
        assert_eq!(sum(&all.body, "outrigger_open_connections", &[("process", "app")]), 0.0);
    }
    app.at("/metrics", Play::Hang);
    let all = proxy.admin("/metrics/all");
    assert_eq!((all.status, sum(&all.body, "outrigger_app_metrics_up", &[])), (200, 0.0));
}

#[test]
fn a_thousand_paths_make_no_new_series() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "[[routes]]\nname = \"items\"\npath = \"/items/{id}\"\npriority = \"low\"\n");
    let mut client = proxy.connect();
    let mut ask = |path: &str| assert_eq!(client.send(get(path)).answer().status, 200);
    ask("/items/first");
    ask("/other");
    let series = || {
        let text = proxy.admin("/metrics").body;
        let names = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        names.map(|(name, _)| name.to_owned()).collect::<HashSet<_>>()
    };
    proxy.counts("outrigger_requests_total", &[], 2);
    let before = series();
    for n in 0..500 {
        ask(&format!("/items/{n}"));
        ask(&format!("/random-{n}/{n}?q={n}"));
    }
    proxy.counts("outrigger_requests_total", &[("route", "items"), ("priority", "low"), ("outcome", "success")], 501);
    proxy.counts("outrigger_requests_total", &[("route", "default"), ("priority", "medium")], 501);
    proxy.counts("outrigger_request_duration_seconds_count", &[], 1002);
    assert_eq!(series().difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn every_outcome_has_its_own_count() {
    let app = Backend::start();
    for (path, status) in [("/302", "302 Found"), ("/404", "404 Not Found"), ("/500", "500 Oops"), ("/503", "503 Busy")]
    {
        app.says(path, &format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
    }
    let proxy = Proxy::start(&app);
    for path in ["/", "/302", "/404", "/500", "/503"] {
        proxy.get(path);
        proxy.ask(&post(path, "hello"));
    }
    proxy.ask("GET / HTTP/1.1\r\n\r\n");
    for (outcome, count) in [("success", 2), ("redirect", 2), ("client_error", 2), ("server_error", 4), ("rejected", 1)]
    {
        proxy.counts("outrigger_requests_total", &[("outcome", outcome)], count);
        proxy.counts("outrigger_request_duration_seconds_count", &[("outcome", outcome)], count);
    }
}

#[test]
fn the_log_is_json_without_secrets() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let secret = "Authorization: Bearer s3cr3t\r\nCookie: session=s3cr3t\r\nX-Api-Key: s3cr3t\r\n";
    for method in ["GET", "POST"] {
        let answer = proxy.ask(&format!(
            "{method} /x/\"quoted\"?token=s3cr3t HTTP/1.1\r\nHost: a\r\n{secret}Content-Length: 0\r\n\r\n"
        ));
        let id = answer.header("x-request-id").unwrap().to_owned();
        let line: serde_json::Value = serde_json::from_str(&proxy.says(&id)).unwrap();
        assert_eq!((&line["method"], &line["status"]), (&method.into(), &200.into()), "{line}");
        assert_eq!((&line["route"], &line["outcome"]), (&"default".into(), &"success".into()), "{line}");
        assert_eq!((&line["client"], &line["attempts"]), (&"127.0.0.1".into(), &1.into()), "{line}");
        assert!(line["path"].as_str().unwrap().starts_with("/x/") && line["duration_ms"].is_number(), "{line}");
    }
    let log = proxy.log();
    assert!(!log.contains("s3cr3t"), "{log}");
    for line in log.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["timestamp"].is_string()),
            "{line}"
        );
    }
}

#[test]
fn a_request_rejected_before_parsing_is_in_the_access_log() {
    let app = Backend::start();
    let proxy =
        Proxy::with(&app, "client.max_head = \"2KiB\"\nclient.head_timeout = \"500ms\"\nclient.max_body = \"1MiB\"");
    let large = format!("GET /large HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(3000));
    let refused = [
        ("GET /lost?token=s3cr3t HTTP/1.1\r\n\r\n", 400, "/lost"),
        ("HELLO\r\n\r\n", 400, "-"),
        ("POST /twice HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, "/twice"),
        (&large, 431, "/large"),
        ("GET /slow HTTP/1.1\r\nHost: a\r\n", 408, "/slow"),
        ("POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413, "/big"),
    ];
    for (request, status, path) in refused {
        let answer = proxy.ask(request);
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_eq!(answer.json()["request_id"], id.as_str());
        let line: serde_json::Value = serde_json::from_str(&proxy.says(&id)).unwrap();
        assert_eq!((&line["status"], &line["path"]), (&status.into(), &path.into()), "{line}");
        assert_eq!((&line["outcome"], &line["client"]), (&"rejected".into(), &"127.0.0.1".into()), "{line}");
        let reason = line["reason"].as_str().unwrap();
        assert!(proxy.metric("outrigger_rejections_total", &[("reason", reason)]) >= 1.0, "{line}");
    }
    assert!(!proxy.log().contains("s3cr3t"));
}

#[test]
fn the_last_change_of_the_file_is_in_the_metrics() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let is_good = || proxy.metric("outrigger_config_last_reload_successful", &[]);
    assert_eq!(is_good(), 1.0);
    fs::write(&proxy.file, proxy.text("app.timeoot = \"1s\"")).unwrap();
    until("the file to be refused", || is_good() == 0.0);
    proxy.changes_to("app.timeout = \"1s\"");
    assert_eq!(is_good(), 1.0);
}

#[test]
fn the_admin_listener_serves_no_requests_and_the_public_one_no_metrics() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    assert_eq!(proxy.admin("/nonsense").status, 404);
    assert_eq!(proxy.admin("/healthz").body.trim(), "serving");
    assert_eq!(app.requests(), 0);
    proxy.get("/metrics").is_problem(404, "not_public");
    assert_eq!(app.requests_to("/metrics"), 0);
    // Idle admin connections do not delay other requests.
    let silent: Vec<_> = (0..50).map(|_| Client::connect(proxy.admin).unwrap()).collect();
    assert_eq!(proxy.admin("/healthz").status, 200);
    drop(silent);
}
