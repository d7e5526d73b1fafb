//! Receipts: each reason for which Outrigger responds itself is provoked, and `outrigger why` names the rule, its numbers and the version
//! of the configuration.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};
use xtask::Signal;

use crate::abuse::ban;
use crate::audit;
use crate::audit_commands::{KEYS, TRAIL};
use crate::backend::{Backend, Play};
use crate::harness::{Answer, Client, Proxy, Setup, from_address, get, post, sha256, until, with_fields};
use crate::limits::{EDGE, NO_DEFAULTS, route, rule};
use crate::pause;

/// Reasons that other tests provoke, which call [`Proxy::has_receipt`]: they need peers, HTTP/2, addresses or a host without resources.
const ELSEWHERE: [&str; 12] = [
    "address_not_allowed",
    "app_connect_timeout",
    "loop_detected",
    "malformed_frame",
    "malformed_stream",
    "not_a_peer",
    "out_of_resources",
    "too_many_connections",
    "too_many_unfinished_heads",
    "too_many_uploads",
    // Chunks are read after the head; see `a_malformed_body_has_a_receipt`.
    "malformed_chunk",
    // A fault of Outrigger's own, which no test can provoke.
    "internal",
];

pub fn id(answer: &Answer) -> String {
    answer.json()["request_id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

#[track_caller]
fn receipt(proxy: &Proxy, id: &str) -> Value {
    let mut found = Value::Null;
    until("the receipt", || {
        found = proxy.shows(&format!("/requests/{id}"));
        found["receipts"].is_array()
    });
    let all = found["receipts"].as_array().unwrap().clone();
    assert_eq!(all.len(), 1, "{found}");
    all.into_iter().next().unwrap()
}

/// The answer is one of Outrigger's own, and its receipt names the rule and, among others, these numbers.
#[track_caller]
fn why(proxy: &Proxy, answer: &Answer, reason: &str, rule: &str, numbers: &Value) -> String {
    let receipt = receipt(proxy, &id(answer));
    assert_eq!((&receipt["reason"], &receipt["rule"]), (&reason.into(), &rule.into()), "{receipt}");
    assert_eq!(receipt["status"], answer.status, "{receipt}");
    assert_eq!(receipt["config_version"], 1, "{receipt}");
    for (name, number) in numbers.as_object().unwrap() {
        assert_eq!(&receipt["numbers"][name], number, "{name}: {receipt}");
    }
    // No subject without `--reveal`.
    for name in ["subject", "address", "path"] {
        assert!(receipt.get(name).is_none(), "{receipt}");
    }
    reason.to_owned()
}

fn rules() -> String {
    let routes = [
        route("small", "max_body = \"10B\""),
        route("limited", ""),
        route("broken", "breaker = \"fragile\""),
        route("quick", "timeout = \"200ms\"\nattempts = 1"),
        "[[routes]]\nname = \"login\"\npath = \"/api/login\"\n".to_owned(),
    ];
    let faults = "[[faults]]\nheaders = { \"X-Chaos\" = \"abort\" }\nabort = 503\n\
                  [[faults]]\nheaders = { \"X-Chaos\" = \"late\" }\ndelay = \"10s\"\n";
    let key = format!("[[identity.keys]]\nname = \"acme\"\nsha256 = \"{}\"\n", sha256("key-1"));
    format!(
        "{EDGE}{NO_DEFAULTS}client.max_head = \"1KiB\"\nclient.head_timeout = \"300ms\"\nclient.body_timeout = \"300ms\"\n\
         retry.attempts = 1\napp.hold = \"0s\"\naudit.directory = \"audit\"\n\
         {}[[breaker.groups]]\nname = \"fragile\"\n{}{faults}{key}",
        rule("few", "2/1h", "routes = [\"limited\"]"),
        routes.concat()
    )
}

const MALFORMED: [(&str, &str); 12] = [
    ("malformed_request_line", "HELLO\r\n\r\n"),
    ("malformed_target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("malformed_version", "GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
    ("malformed_connect", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
    ("malformed_field", "GET / HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n"),
    ("malformed_line_end", "GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n"),
    ("malformed_folded_field", "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n"),
    ("malformed_host", "GET / HTTP/1.1\r\n\r\n"),
    ("malformed_host_mismatch", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("malformed_length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"),
    ("malformed_encoding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"),
    (
        "malformed_length_and_encoding",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
];

#[test]
fn each_reason_has_a_receipt_with_its_rule_and_numbers() {
    let mut app = Backend::start();
    app.at("/hangs", Play::Hang);
    app.at("/quick", Play::Hang);
    app.at("/closes", Play::SayAndClose(Vec::new()));
    app.at("/babbles", Play::SayAndClose(b"SSH-2.0\r\n\r\n".to_vec()));
    let setup = Setup::new(&app, &rules()).env("OUTRIGGER_ALLOW_FAULTS", "1");
    let setup = setup.env(KEYS.0, KEYS.1);
    let proxy = setup.start();
    let none = json!({});
    let mut tested: BTreeSet<String> = BTreeSet::new();
    let mut tell = |answer: &Answer, reason: &str, rule: &str, numbers: &Value| {
        tested.insert(why(&proxy, answer, reason, rule, numbers));
    };

    for (reason, bytes) in MALFORMED {
        tell(&proxy.ask(bytes), reason, &format!("http.{reason}"), &none);
    }
    let large = with_fields(&get("/"), &[&format!("A: {}", "a".repeat(2000))]);
    tell(
        &proxy.ask(&large),
        "head_too_large",
        "client.max_head",
        &json!({ "max_head_bytes": 1024, "max_fields": 100 }),
    );
    tell(&proxy.ask("GET / HT"), "head_too_slow", "client.head_timeout", &json!({ "head_timeout_ms": 300 }));
    let slow = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhe";
    tell(&proxy.ask(slow), "body_too_slow", "client.body_timeout", &json!({ "body_timeout_ms": 300 }));
    let large = post("/small", &"x".repeat(20));
    tell(&proxy.ask(&large), "body_too_large", "routes.small.max_body", &json!({ "max_body_bytes": 10 }));
    tell(&proxy.get("/a/../b"), "path_dot_segment", "http.path_dot_segment", &none);
    tell(&proxy.get("/a%00"), "path_control_character", "http.path_control_character", &none);
    tell(&proxy.get("/api%2Flogin"), "path_ambiguous", "routes.path", &none);
    tell(&proxy.get("/metrics"), "not_public", "app.metrics", &none);
    tell(&proxy.get("/internal/audit/x"), "reserved_path", "audit", &none);
    let twice = with_fields(&get("/"), &["X-Api-Key: key-1", "X-Api-Key: key-1"]);
    tell(&proxy.ask(&twice), "repeated_credential", "identity", &none);

    let limited = from_address(&get("/limited"), "192.0.2.1");
    (0..2).for_each(|_| assert_eq!(proxy.ask(&limited).status, 200));
    let numbers = json!({ "used": 2, "limit": 2, "window_s": 3600, "cost": 1 });
    tell(&proxy.ask(&limited), "quota_exceeded", "rate_limits.few", &numbers);
    ban(&proxy, "address:192.0.2.2", "10m");
    let banned = from_address(&get("/"), "192.0.2.2");
    tell(&proxy.ask(&banned), "abnormal_usage_detected", "abuse.operator", &json!({ "times": 1 }));

    let force = "POST /breakers/fragile HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"force\": \"open\"}";
    assert_eq!(proxy.get("/broken").status, 200);
    assert_eq!(Client::connect(proxy.admin).unwrap().send(force).answer().status, 200);
    tell(&proxy.get("/broken"), "breaker_open", "breaker.fragile", &json!({ "failed": 0, "forced": 1 }));

    let chaos = |what: &str| with_fields(&get("/x"), &[&format!("X-Chaos: {what}")]);
    tell(&proxy.ask(&chaos("abort")), "fault_injected", "faults", &json!({ "status": 503 }));
    let late = with_fields(&chaos("late"), &["X-Request-Timeout-Ms: 250"]);
    tell(&proxy.ask(&late), "deadline_exceeded", "routes.default.client_timeout", &json!({ "timeout_ms": 250 }));
    tell(&proxy.get("/quick"), "app_timeout", "routes.quick.timeout", &json!({ "timeout_ms": 200, "attempts": 1 }));
    tell(&proxy.get("/closes"), "app_closed", "routes.default.attempts", &json!({ "attempts": 1, "max_attempts": 1 }));
    tell(&proxy.get("/babbles"), "app_invalid", "routes.default.attempts", &json!({ "attempts": 1 }));
    app.stop();
    // The first ones may still find connections that were kept.
    until("the app to refuse connections", || proxy.get("/").text().contains("app-unreachable"));
    tell(&proxy.get("/"), "app_unreachable", "app.address", &json!({ "hold_ms": 0 }));
    drop(proxy);

    tested.extend(each_reason_that_needs_a_proxy_of_its_own());
    let metrics = Proxy::start(&app).admin("/metrics").body;
    let reasons = ["outrigger_rejections_total{reason=\"", "outrigger_app_failures_total{reason=\""];
    let reasons = metrics.lines().filter_map(|line| reasons.iter().find_map(|start| line.strip_prefix(start)));
    let reasons: BTreeSet<&str> = reasons.filter_map(|rest| rest.split('"').next()).collect();
    let all = tested.iter().map(String::as_str).chain(ELSEWHERE);
    assert_eq!(all.collect::<BTreeSet<&str>>(), reasons, "every reason has a receipt that is tested");
}

fn each_reason_that_needs_a_proxy_of_its_own() -> [String; 7] {
    let app = Backend::start();
    // One permit, one place in the queue, and an app that hangs.
    let gate = app.gate("/slow");
    let one = "admission.min = 1\nadmission.max = 1\nadmission.initial = 1\nadmission.max_queue = 1\nadmission.max_wait = \"60s\"\n";
    let proxy = Proxy::with(&app, &format!("{NO_DEFAULTS}{one}"));
    let (mut first, mut second) = (proxy.connect(), proxy.connect());
    first.send(get("/slow"));
    app.gets(1, "/slow");
    second.send(get("/slow"));
    until("the queue to be full", || proxy.shows("/admission")["queue"]["medium"] == 1);
    let numbers = json!({ "limit": 1, "in_flight": 1, "queue": 1, "queue_limit": 1, "max_wait_ms": 60_000 });
    let refused = proxy.get("/");
    let overloaded = why(&proxy, &refused, "temporary_reduced_capacity", "admission.max_queue", &numbers);
    gate.add_permits(2);
    assert_eq!((first.answer().status, second.answer().status), (200, 200));

    let mut stopped = Backend::stopped();
    let proxy = Proxy::with(&stopped, &format!("{NO_DEFAULTS}app.hold = \"10s\"\napp.max_held = 1\n"));
    let mut held = proxy.connect();
    held.send(get("/"));
    until("it to wait", || proxy.shows("/breakers")["app"]["held"] == 1);
    let numbers = json!({ "held": 1, "hold_ms": 10_000, "max_held": 1 });
    let refused = proxy.get("/");
    let restarting = why(&proxy, &refused, "app_restarting", "app.hold", &numbers);
    stopped.resume();
    assert_eq!(held.answer().status, 200);
    // It was held, and the receipt says so. It is made when the response has been sent.
    until("its receipt", || {
        let shown = proxy.shows("/requests");
        let served = shown["receipts"].as_array().unwrap().iter().find(|receipt| receipt["status"] == 200);
        served.is_some_and(|held| held["steps"].to_string().contains("it waits until the app is back"))
    });

    let proxy = Proxy::with(&app, "app.max_held = 1\n");
    pause::act(&proxy, "/pause", "");
    let mut held = pause::held(&proxy, &get("/"));
    let paused = why(&proxy, &proxy.get("/"), "paused", "app.pause", &json!({ "held": 1, "max_held": 1 }));
    pause::act(&proxy, "/resume", "");
    assert_eq!(held.answer().status, 200);
    pause::act(&proxy, "/maintenance", "{\"on\":true}");
    let numbers = json!({ "retry_after_ms": 60_000 });
    let maintenance = why(&proxy, &proxy.get("/"), "maintenance", "maintenance.operator", &numbers);

    let mut proxy = Proxy::with(&app, "server.lame_duck = \"60s\"\n[health]\npath = \"/up\"\n");
    app.says("/up", "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    until("the app is unhealthy", || proxy.get("/health").json()["data"]["reason"] == "app_unhealthy");
    proxy.has_receipt("app_unhealthy", "health.path");
    proxy.signal(Signal::TERM);
    until("health to fail", || proxy.get("/health").json()["data"]["reason"] == "draining");
    proxy.has_receipt("draining", "server.lame_duck");

    let setup = Setup::new(&app, &format!("{NO_DEFAULTS}{}{}", TRAIL, audit::SURE));
    fs::write(audit::directory(&setup), "in the way").unwrap();
    let proxy = setup.start();
    proxy.says("the audit log cannot be written");
    let refused = proxy.get("/a");
    let unavailable = why(&proxy, &refused, "audit_unavailable", "audit.durability.data", &json!({}));

    [overloaded, restarting, paused, maintenance, unavailable, "app_unhealthy".into(), "draining".into()]
}

#[test]
fn a_malformed_body_has_a_receipt() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    why(&proxy, &answer, "malformed_chunk", "http.malformed_chunk", &json!({}));
}

/// A queue with room: it is the time in it that is over.
#[test]
fn a_request_that_waited_too_long_is_not_blamed_on_the_length_of_the_queue() {
    let app = Backend::start();
    let gate = app.gate("/slow");
    let one = "admission.min = 1\nadmission.max = 1\nadmission.initial = 1\nadmission.max_wait = \"200ms\"\n";
    let proxy = Proxy::with(&app, &format!("{NO_DEFAULTS}{one}"));
    let mut first = proxy.connect();
    first.send(get("/slow"));
    app.gets(1, "/slow");
    let refused = proxy.get("/");
    let numbers = json!({ "limit": 1, "in_flight": 1, "queue_limit": 2000, "max_wait_ms": 200 });
    why(&proxy, &refused, "temporary_reduced_capacity", "admission.max_wait", &numbers);
    gate.add_permits(1);
    assert_eq!(first.answer().status, 200);
}

/// Clients invent methods: a receipt keeps none of 30 KB.
#[test]
fn a_receipt_is_bounded_whatever_the_request_line_has() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let long = format!("{} /{} HTTP/1.1\r\n\r\n", "M".repeat(20_000), "p".repeat(5_000));
    let refused = proxy.ask(&long);
    let receipt = receipt(&proxy, &id(&refused));
    assert_eq!(receipt["method"], "-", "{receipt}");
    assert!(receipt.to_string().len() < 2000, "{receipt}");
}

/// Everything about a request of which the command line is asked, and nothing about another.
#[test]
fn why_prints_the_story_and_reveals_only_when_asked() {
    let app = Backend::start();
    app.at("/twice", Play::CloseFirst(Arc::new(AtomicUsize::new(1))));
    let rules = format!("{EDGE}{NO_DEFAULTS}{}retry.budget_min = 100\nreceipts.sample = \"off\"\n", TRAIL);
    let setup = Setup::new(&app, &rules).env(KEYS.0, KEYS.1);
    let proxy = setup.clone().start();
    let admin = proxy.admin.to_string();
    let ask = |args: &[&str]| {
        let output = setup.run(&[&["why"], args, &["--admin", &admin]].concat());
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let answer = proxy.ask(&from_address(&get("/twice"), "192.0.2.7"));
    assert_eq!(answer.status, 200);
    let request = answer.header("x-request-id").unwrap();
    let mut story = String::new();
    until("the receipt", || {
        let (is_found, text, _) = ask(&[request]);
        story = text;
        is_found
    });
    assert!(story.contains("the app closed the connection before its response; asked again"), "{story}");
    assert!(story.contains("ended with 200: success, after 2 attempts"), "{story}");
    assert!(!story.contains("192.0.2.7") && !story.contains("/twice"), "{story}");
    let (_, revealed, _) = ask(&[request, "--reveal"]);
    assert!(revealed.contains("client: address:192.0.2.7") && revealed.contains("path: /twice"), "{revealed}");
    let (_, json, _) = ask(&[request, "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["receipts"][0]["attempts"], 2, "{json}");
    // That somebody looked at a person's data is in the audit log.
    until("the entry", || audit::entries(&setup).iter().any(|entry| entry["action"] == "receipt.reveal"));

    // An ordinary request is not in the sample, and the proxy says what else may be the reason.
    let ordinary = proxy.get("/x");
    let (is_found, _, error) = ask(&[ordinary.header("x-request-id").unwrap()]);
    assert!(!is_found && error.contains("receipts.sample"), "{error}");
    let (is_found, _, error) = ask(&["../metrics"]);
    assert!(!is_found && error.contains("a request id has"), "{error}");
}

/// Further back than the memory, the audit log tells rule, numbers and version.
#[test]
fn the_audit_log_keeps_rule_and_numbers_of_what_it_has() {
    let app = Backend::start();
    let rules = format!("{EDGE}{NO_DEFAULTS}{}receipts.max = 0\n{}", TRAIL, rule("few", "1/1h", ""));
    let setup = Setup::new(&app, &rules).env(KEYS.0, KEYS.1);
    let proxy = setup.clone().start();
    let request = from_address(&get("/a"), "192.0.2.9");
    assert_eq!(proxy.ask(&request).status, 200);
    let refused = id(&proxy.ask(&request));
    let mut found = Value::Null;
    until("the entry", || {
        found = audit::entries(&setup).into_iter().find(|entry| entry["request_id"] == refused).unwrap_or_default();
        found.is_object()
    });
    let details = &found["details"];
    assert_eq!((&details["rule"], &details["config_version"]), (&"rate_limits.few".into(), &1.into()), "{found}");
    assert_eq!((&details["numbers"]["used"], &details["numbers"]["limit"]), (&1.into(), &1.into()), "{found}");
    let output = setup.run(&["why", &refused, "--json", "--admin", &proxy.admin.to_string(), "--config", "proxy.toml"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("rate_limits.few"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn switched_off_there_are_no_receipts() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "receipts.max = 0\n");
    proxy.get("/metrics").is_problem(404, "not_public");
    assert_eq!(proxy.shows("/requests"), json!({ "receipts": [], "in_memory": 0 }));
}
