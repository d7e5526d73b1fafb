//! The circuit breaker stops requests to a failing app, probes it with care, and restores all of its traffic.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    backend::{Backend, Play},
    harness::{Answer, Form, Proxy, Setup, every_form, get, post, until, with_fields},
};

/// Opens after three consecutive failures, and for long.
const THREE: &str = "breaker.failures = 3\nbreaker.failure_rate = \"off\"\nretry.attempts = 1\n";

const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn route(name: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\n")
}

/// The admin listener's view of a circuit breaker; null before its first request.
fn shown(proxy: &Proxy, name: &str) -> Value {
    let all = proxy.shows("/breakers");
    let found = all["breakers"].as_array().unwrap().iter().find(|breaker| breaker["name"] == name);
    found.cloned().unwrap_or(Value::Null)
}

fn stands(proxy: &Proxy, name: &str) -> String {
    shown(proxy, name)["state"].as_str().unwrap_or_default().to_owned()
}

/// Sends the same request from this many clients.
fn ask_as_many(proxy: &Proxy, clients: u8, request: &str) -> Vec<u16> {
    (0..clients).map(|n| proxy.ask_as(10 + n, request).status).collect()
}

#[track_caller]
fn is_refused(answer: &Answer) {
    answer.is_problem(503, "breaker_open");
    assert!(answer.stays_open(), "{answer:?}");
}

/// Forces a breaker as an operator does; returns the status.
fn force(proxy: &Proxy, name: &str, body: &str) -> u16 {
    let request = format!(
        "POST /breakers/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    crate::harness::Client::connect(proxy.admin).unwrap().send(request).answer().status
}

#[test]
fn failures_in_a_row_open_it_and_requests_stop() {
    Form::at_once(&Form::ALL, |form| {
        let app = Backend::start();
        app.says("/bad", FAILED);
        let proxy = Proxy::with(&app, &format!("{THREE}{}{}", route("bad"), route("good")));
        let ask = |path: &str| proxy.ask(&form.request(path));
        assert_eq!(ask_as_many(&proxy, 3, &form.request("/bad")), [500; 3]);
        let mut took = Vec::new();
        for _ in 0..20 {
            let asked = Instant::now();
            let answer = ask("/bad");
            took.push(asked.elapsed());
            is_refused(&answer);
            assert!((59..=60).contains(&answer.number("retry-after")), "{answer:?}");
        }
        took.sort_unstable();
        assert!(took[10] < Duration::from_millis(50), "half of the refusals took longer than {:?}", took[10]);
        assert_eq!(app.requests_to("/bad"), 3);
        assert_eq!(ask("/good").status, 200, "another route has another breaker");
        proxy.counts_rejections("breaker_open", 20);
        proxy.counts("outrigger_breaker_transitions_total", &[("breaker", "bad"), ("state", "open")], 1);
        assert_eq!(proxy.metric("outrigger_breaker_state", &[("breaker", "bad"), ("state", "open")]), 1.0);
        assert_eq!(proxy.metric("outrigger_breaker_state", &[("breaker", "good"), ("state", "closed")]), 1.0);
        let line = proxy.says("breaker bad opens");
        assert!(line.contains("consecutive_failures") && line.contains("\"event\":\"breaker\""), "{line}");
        proxy.comes_to_rest();
    });
}

#[test]
fn client_errors_and_disconnects_do_not_open_it() {
    let app = Backend::start();
    app.says("/404", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    app.says("/429", "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n");
    app.at("/hang", Play::Hang);
    let proxy = Proxy::with(&app, THREE);
    for _ in 0..5 {
        assert_eq!((proxy.get("/404").status, proxy.get("/429").status), (404, 429));
        let mut client = proxy.connect();
        let before = app.requests_to("/hang");
        client.send(get("/hang"));
        app.gets(before + 1, "/hang");
    }
    proxy.comes_to_rest();
    assert_eq!(
        (stands(&proxy, "default").as_str(), &shown(&proxy, "default")["failures_in_a_row"]),
        ("closed", &0.into())
    );
}

/// Clients with a deadline of a few milliseconds cannot open the breaker for others.
#[test]
fn short_client_deadlines_do_not_open_it() {
    let app = Backend::start();
    app.at("/", Play::Hang);
    let proxy = Proxy::with(&app, THREE);
    for form in Form::ALL {
        let before = app.requests();
        // On a busy machine the time may be over before the app is asked: that one counts for nothing anyway.
        until("the app to be asked twice", || {
            let answer = proxy.ask(&with_fields(&form.request("/"), &["X-Request-Timeout-Ms: 20"]));
            let was_asked = answer.text().contains("app-timeout");
            answer.is_problem(504, if was_asked { "app_timeout" } else { "deadline_exceeded" });
            app.requests() >= before + 2
        });
    }
    assert_eq!(stands(&proxy, "default"), "closed");
}

#[test]
fn a_503_with_retry_after_is_no_failure() {
    let app = Backend::start();
    app.says("/", "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::with(&app, THREE);
    for request in every_form("/").iter().cycle().take(2 * Form::NUMBER) {
        assert_eq!(proxy.ask(request).header("retry-after"), Some("2"));
    }
    assert_eq!(app.requests(), 2 * Form::NUMBER);
    app.says("/", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    for _ in 0..3 {
        assert_eq!(proxy.get("/").status, 503);
    }
    is_refused(&proxy.get("/"));
}

/// `Retry-After` may be a date in any of its three forms, even one in the past.
#[test]
fn retry_after_may_be_a_date() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, THREE);
    for date in [
        "Fri, 31 Dec 2100 23:59:59 GMT",
        "Friday, 31-Dec-60 23:59:59 GMT",
        "Fri Dec 31 23:59:59 2100",
        "Sun, 06 Nov 1994 08:49:37 GMT",
    ] {
        let answer = format!("HTTP/1.1 503 Service Unavailable\r\nRetry-After: {date}\r\nContent-Length: 0\r\n\r\n");
        app.says("/", &answer);
        for (n, request) in (10..20).zip(every_form("/").iter().cycle()) {
            assert_eq!(proxy.ask_as(n, request).header("retry-after"), Some(date));
        }
    }
    assert_eq!(app.requests(), 40);
    assert_eq!(stands(&proxy, "default"), "closed");
}

/// Failures that the request causes do not count: an unsupported method or version, or a deadline that the client set.
#[test]
fn failures_that_the_request_causes_do_not_open_it() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, &format!("{THREE}{}", route("api")));
    for (status, fields) in [
        ("501 Not Implemented", &[][..]),
        ("505 HTTP Version Not Supported", &[]),
        ("504 Gateway Timeout", &["X-Request-Timeout-Ms: 5000"]),
        ("503 Service Unavailable", &["X-Request-Timeout-Ms: 5000"]),
    ] {
        for path in ["/api", "/other"] {
            app.says(path, &format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
            let code: u16 = status[..3].parse().unwrap();
            for (n, request) in (10..20).zip(every_form(path).iter().cycle()) {
                assert_eq!(proxy.ask_as(n, &with_fields(request, fields)).status, code, "{path}");
            }
        }
    }
    assert_eq!((stands(&proxy, "default").as_str(), stands(&proxy, "api").as_str()), ("closed", "closed"));
}

/// Failures at one path do not count against others, unless the app fails at all of them.
#[test]
fn paths_without_a_route_fail_each_by_itself() {
    let app = Backend::start();
    app.says("/broken/1", FAILED);
    app.says("/broken/2", FAILED);
    app.at("/hangs", Play::Hang);
    // A short time for requests that hang only: the others have as long as they need.
    let short = format!("{THREE}app.timeout = \"100ms\"\n");
    let proxy = Proxy::with(&app, THREE);
    for request in every_form("/broken/1") {
        let _ = ask_as_many(&proxy, 10, &request);
    }
    proxy.changes_to(&short);
    for request in every_form("/hangs") {
        let _ = ask_as_many(&proxy, 10, &request);
    }
    proxy.changes_to(THREE);
    for request in every_form("/works") {
        assert_eq!(ask_as_many(&proxy, 5, &request), [200; 5]);
    }
    for path in ["/broken/1", "/broken/2", "/hangs"] {
        is_refused(&proxy.ask_as(30, &get(path)));
    }
    assert_eq!((app.requests_to("/broken/1"), app.requests_to("/broken/2"), app.requests_to("/hangs")), (3, 0, 3));
    // Now all paths hang.
    proxy.changes_to(&short);
    for path in ["/a", "/b", "/c"] {
        app.at(path, Play::Hang);
    }
    for (n, path) in ["/a", "/b", "/c"].into_iter().enumerate() {
        assert_eq!(proxy.ask_as(40 + n as u8, &get(path)).status, 504);
    }
    is_refused(&proxy.ask_as(50, &get("/works")));
}

#[test]
fn a_429_is_a_failure_if_configured() {
    let app = Backend::start();
    app.says("/", "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::with(&app, &format!("{THREE}breaker.count_429 = true\n"));
    assert_eq!(ask_as_many(&proxy, 3, &get("/")), [429; 3]);
    is_refused(&proxy.get("/"));
}

#[test]
fn slow_responses_open_it() {
    let app = Backend::start();
    app.at("/", Play::Drip(FINE.into(), Duration::from_millis(3)));
    let rules =
        "breaker.failures = 0\nbreaker.slow_after = \"50ms\"\nbreaker.min_calls = 4\nbreaker.window = \"10 calls\"\n";
    let proxy = Proxy::with(&app, rules);
    assert_eq!(ask_as_many(&proxy, 4, &get("/")), [200; 4]);
    is_refused(&proxy.get("/"));
    assert_eq!(shown(&proxy, "default")["reason"], "slow_call_rate");
}

/// Timeouts open the breaker of an app that hangs; once it recovers, only the permitted number of probes reach it at a time.
#[test]
fn a_hung_app_gets_only_probes_until_it_responds() {
    const PROBES: usize = 2;
    Form::at_once(&Form::ALL, |form| {
        let app = Backend::start();
        app.at("/", Play::Hang);
        let rules = "breaker.failures = 3\nbreaker.open = \"1500ms\"\nbreaker.probes = 2\nbreaker.successes = 4\n\
                     breaker.ramp = \"0s\"\nretry.attempts = 1\n";
        let proxy = Proxy::with(&app, &format!("{rules}app.timeout = \"200ms\"\n"));
        let request = &form.request("/");
        for _ in 0..3 {
            proxy.ask(request).is_problem(504, "app_timeout");
        }
        is_refused(&proxy.ask(request));
        // Keeps probes waiting.
        proxy.changes_to(rules);
        let gate = app.gate("/");
        let before = app.requests();
        let reached = || app.requests() - before;
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    let mut client = proxy.connect();
                    while client.send(request).answer().status != 200 {
                        thread::sleep(Duration::from_millis(5));
                    }
                });
            }
            until("the probes to reach the app", || reached() == PROBES);
            let refused = proxy.metric("outrigger_rejections_total", &[("reason", "breaker_open")]);
            until("all others to be refused meanwhile", || {
                proxy.metric("outrigger_rejections_total", &[("reason", "breaker_open")]) >= refused + 50.0
            });
            assert_eq!(reached(), PROBES);
            gate.add_permits(1000);
        });
        assert_eq!(stands(&proxy, "default"), "closed");
        proxy.comes_to_rest();
    });
}

#[test]
fn an_abandoned_probe_frees_its_permit_for_the_next() {
    Form::at_once(&Form::ALL, |form| {
        let app = Backend::start();
        app.says("/", FAILED);
        let rules = "breaker.failures = 3\nbreaker.open = \"300ms\"\nbreaker.probes = 1\nbreaker.successes = 1\n\
                     breaker.ramp = \"0s\"\nretry.attempts = 1\n";
        let proxy = Proxy::with(&app, rules);
        let request = &form.request("/");
        assert_eq!(ask_as_many(&proxy, 3, request), [500; 3]);
        let gate = app.gate("/");
        // The first probe hangs, and only one is allowed.
        let mut probe = None;
        until("a probe to reach the app", || {
            let mut client = proxy.connect();
            client.send(request);
            // It is the probe, or it is refused.
            until("one of both", || app.requests() == 4 || !client.stays_silent_for(Duration::from_millis(10)));
            let reached = app.requests() == 4;
            probe = reached.then_some(client);
            reached
        });
        is_refused(&proxy.ask(request));
        assert_eq!(stands(&proxy, "default"), "half_open");
        drop(probe);
        gate.add_permits(100);
        until("the next probe to pass", || proxy.ask(request).status == 200);
        until("it to close", || stands(&proxy, "default") == "closed");
        proxy.comes_to_rest();
    });
}

/// Fifty clients ask continuously while the breaker of a dead app is open: only a handful of requests reach the app.
#[test]
fn a_dead_app_gets_few_requests_under_load() {
    let app = Backend::start();
    app.says("/", FAILED);
    let rules = "breaker.failures = 5\nbreaker.open = \"500ms\"\nbreaker.probes = 2\nretry.attempts = 1\n";
    let proxy = Proxy::with(&app, rules);
    let ends = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        for n in 0..20 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut client = proxy.connect_as(10 + n);
                while Instant::now() < ends {
                    let status = client.send(get("/")).answer().status;
                    assert!(matches!(status, 500 | 503), "{status}");
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
    });
    // Requests in flight when it opened, then probes after 0.5 s, 1.5 s, … : at most two each, and one that replaces the first
    // that fails.
    let reached = app.requests();
    assert!(reached <= 5 + 20 + 3 * 3, "{reached} requests reached it");
}

#[test]
fn monitor_changes_no_response_and_counts_would_be_rejections() {
    let app = Backend::start();
    app.says("/", FAILED);
    for (rules, flag) in [("breaker.mode = \"monitor\"\n", "true"), ("", "monitor")] {
        let before = app.requests();
        let setup = Setup::new(&app, &format!("{THREE}{rules}"));
        let proxy = setup.env("FF_ENABLE_CIRCUIT_BREAKER", flag).start();
        for (n, request) in (10..20).zip(every_form("/").iter().cycle()) {
            assert_eq!(proxy.ask_as(n, request).status, 500);
        }
        assert_eq!(app.requests() - before, 10);
        assert_eq!(stands(&proxy, "default"), "open");
        let labels = [("reason", "breaker_open"), ("mode", "monitor")];
        proxy.counts("outrigger_refusals_total", &labels, 7);
        assert_eq!(proxy.metric("outrigger_rejections_total", &[]), 0.0);
    }
}

#[test]
fn an_operator_opens_and_closes_it_by_hand() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, &format!("{THREE}{}", route("pay")));
    assert_eq!(proxy.get("/pay").status, 200);
    assert_eq!(force(&proxy, "pay", r#"{"force": "open"}"#), 200);
    for request in every_form("/pay") {
        is_refused(&proxy.ask(&request));
    }
    assert_eq!((stands(&proxy, "pay").as_str(), &shown(&proxy, "pay")["forced"]), ("open", &true.into()));
    app.says("/pay", FAILED);
    assert_eq!(force(&proxy, "pay", r#"{"force": "closed"}"#), 200);
    for request in every_form("/pay").iter().cycle().take(2 * Form::NUMBER) {
        assert_eq!(proxy.ask(request).status, 500, "it passes, whatever the app does");
    }
    app.says("/pay", FINE);
    assert_eq!(force(&proxy, "pay", r#"{"force": "automatic"}"#), 200);
    assert_eq!((proxy.get("/pay").status, stands(&proxy, "pay").as_str()), (200, "closed"));
    let line = proxy.says("an operator changes how a breaker is controlled");
    assert!(line.contains("\"event\":\"breaker_forced\"") && line.contains("\"breaker\":\"pay\""), "{line}");
    for (name, body, status) in [
        ("pya", r#"{"force": "open"}"#, 404),
        ("pay", r#"{"force": "ajar"}"#, 400),
        ("pay", "{}", 400),
        ("pay", "", 400),
    ] {
        assert_eq!(force(&proxy, name, body), status, "{name} {body}");
    }
}

#[test]
fn only_operators_force_a_breaker() {
    let app = Backend::start();
    let proxy = Setup::new(&app, THREE).env("OUTRIGGER_ADMIN_TOKEN", "a secret of theirs").start();
    assert_eq!(force(&proxy, "default", r#"{"force": "open"}"#), 401);
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn routes_may_share_a_breaker_and_differ_in_its_rules() {
    let app = Backend::start();
    for path in ["/a", "/b", "/c"] {
        app.says(path, FAILED);
    }
    let shared = |name| format!("{}breaker = \"pair\"\n", route(name));
    let groups =
        "[[breaker.groups]]\nname = \"pair\"\nfailures = 2\n[[breaker.groups]]\nname = \"c\"\nmode = \"off\"\n";
    let proxy = Proxy::with(&app, &format!("{THREE}{groups}{}{}{}", shared("a"), shared("b"), route("c")));
    assert_eq!((proxy.ask_as(10, &get("/a")).status, proxy.ask_as(11, &get("/b")).status), (500, 500));
    is_refused(&proxy.get("/a"));
    is_refused(&proxy.get("/b"));
    for _ in 0..10 {
        assert_eq!(proxy.get("/c").status, 500);
    }
    // A config reload closes no breaker.
    proxy.changes_to(&format!("{THREE}breaker.ramp = \"1s\"\n{groups}{}{}{}", shared("a"), shared("b"), route("c")));
    is_refused(&proxy.get("/a"));
}

#[test]
fn a_route_may_have_a_fallback_response() {
    let app = Backend::start();
    app.says("/prices", FAILED);
    let fallback = "fallback = { status = 200, content_type = \"text/plain\", body = \"yesterday's prices\" }\n";
    let proxy = Proxy::with(&app, &format!("{THREE}{}{fallback}", route("prices")));
    assert_eq!(ask_as_many(&proxy, 3, &get("/prices")), [500; 3], "what the app says is passed on");
    for request in every_form("/prices") {
        let answer = proxy.ask(&request);
        assert_eq!((answer.status, answer.text().as_str()), (200, "yesterday's prices"));
        assert_eq!(answer.header("content-type"), Some("text/plain"));
    }
    proxy.counts("outrigger_fallbacks_total", &[], Form::NUMBER);
}

#[test]
fn the_environment_sets_the_defaults() {
    let app = Backend::start();
    app.says("/", FAILED);
    let setup = Setup::new(&app, "breaker.probes = 1\nretry.attempts = 1\n");
    let environment = setup.env("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "2").env("CIRCUIT_BREAKER_TIMEOUT", "5000");
    let proxy = environment.start();
    assert_eq!(ask_as_many(&proxy, 2, &get("/")), [500; 2]);
    let answer = proxy.get("/");
    is_refused(&answer);
    assert_eq!(answer.number("retry-after"), 5);
}

#[test]
fn switched_off_it_is_a_plain_proxy() {
    let mut app = Backend::start();
    app.says("/", FAILED);
    let proxy = Setup::new(&app, "breaker.failures = 1\n").env("FF_ENABLE_CIRCUIT_BREAKER", "false").start();
    for request in every_form("/").iter().cycle().take(2 * Form::NUMBER) {
        assert_eq!(proxy.ask(request).status, 500);
    }
    app.stop();
    for request in every_form("/") {
        let asked = Instant::now();
        proxy.ask(&request).is_problem(502, "app_unreachable");
        assert!(asked.elapsed() < Duration::from_secs(2), "nobody waits");
    }
}

#[test]
fn injected_faults_look_like_the_apps_own() {
    let app = Backend::start();
    let fault = |header: &str, what: &str| format!("[[faults]]\nheaders = {{ \"X-Chaos\" = \"{header}\" }}\n{what}\n");
    let rules = format!(
        "{THREE}{}{}{}{}",
        fault("abort", "abort = 503"),
        fault("reset", "reset = true"),
        fault("delay", "delay = \"300ms\""),
        fault("late", "delay = \"10s\"\nabort = 500")
    );
    Form::at_once(&Form::ALL, |form| {
        let proxy = Setup::new(&app, &rules).env("OUTRIGGER_ALLOW_FAULTS", "1").start();
        let with = |chaos: &str| with_fields(&form.request("/"), &[&format!("X-Chaos: {chaos}")]);
        let asked = Instant::now();
        assert_eq!(proxy.ask(&with("delay")).status, 200);
        assert!(asked.elapsed() >= Duration::from_millis(300));
        proxy.ask(&with("reset")).is_problem(502, "app_closed");
        // Its own deadline: the other requests have as long as they need.
        let late = with_fields(&with("late"), &["X-Request-Timeout-Ms: 500"]);
        proxy.ask(&late).is_problem(504, "deadline_exceeded");
        assert_eq!(proxy.ask(&with("other")).status, 200);
        // Three consecutive faults open the breaker, as if the app had failed.
        for _ in 0..3 {
            proxy.ask(&with("abort")).is_problem(503, "fault_injected");
        }
        is_refused(&proxy.ask(&post("/", "x")));
        assert!(proxy.metric("outrigger_faults_injected_total", &[]) >= 6.0);
    });
}

/// The app was not asked, so it is not the app's failure, and no circuit breaker learns of it.
#[test]
fn an_injected_delay_beyond_the_deadline_is_a_rejection_of_ours() {
    let app = Backend::start();
    let fault = "[[faults]]\ndelay = \"10s\"\n";
    let rules = format!("{THREE}app.timeout = \"300ms\"\n{fault}");
    let proxy = Setup::new(&app, &rules).env("OUTRIGGER_ALLOW_FAULTS", "1").start();
    Form::at_once(&Form::ALL, |form| {
        for client in 0..3 {
            let asked = Instant::now();
            proxy.ask_as(10 + client, &form.request("/late")).is_problem(504, "deadline_exceeded");
            let took = asked.elapsed();
            assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
        }
    });
    proxy.counts_rejections("deadline_exceeded", 3 * Form::NUMBER);
    assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0);
    assert_eq!(app.requests(), 0);
    let breaker = shown(&proxy, "default");
    assert_eq!((&breaker["state"], &breaker["failures_in_a_row"]), (&"closed".into(), &0.into()), "{breaker}");
}

#[test]
fn fault_injection_is_rejected_unless_the_environment_allows_it() {
    let app = Backend::start();
    let setup = Setup::new(&app, "[[faults]]\nabort = 503\n");
    let run = setup.run(&["run", "--config", "proxy.toml"]);
    assert_eq!(run.status.code(), Some(78));
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(said.contains("OUTRIGGER_ALLOW_FAULTS=1"), "{said}");
}
