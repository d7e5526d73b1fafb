//! `outrigger backtest`: what it says of rules is what these rules then do, and the traffic record says nothing of anybody.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::backend::{Backend, Play, Workers};
use crate::harness::{Client, Proxy, Setup, fresh_dir, get, post, sha256, until, with_fields};
use crate::house::postgres_in;
use crate::limits::{NO_DEFAULTS, route, rule};

/// Rules with a record in `directory`.
pub fn recording(directory: &Path, rules: &str) -> String {
    format!("traffic.record = true\ntraffic.directory = {directory:?}\n{rules}")
}

/// Waits until this many requests are in the record of `proxy`.
#[track_caller]
pub fn has_recorded(proxy: &Proxy, requests: usize) {
    proxy.counts("outrigger_traffic_recorded_total", &[], requests);
}

/// Writes a file with these rules beside that of `setup`.
fn file(setup: &Setup, name: &str, rules: &str) -> String {
    let file = setup.dir.join(name);
    fs::write(&file, setup.text(rules)).expect("the rules can be written");
    file.to_str().expect("a path in UTF-8").to_owned()
}

/// The report of a backtest of `rules`, for the traffic of `proxy`, whose file was in force.
#[track_caller]
pub fn backtest(proxy: &Setup, rules: &str) -> Value {
    let proposed = file(proxy, "proposed.toml", rules);
    let in_force = proxy.file.to_str().expect("a path in UTF-8");
    let output = proxy.run(&["backtest", &proposed, "--config", in_force, "--since", "1h", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Rejections by route and tier, in one of the report's columns. Without those of a route as a whole.
pub fn rejected(report: &Value, column: &str) -> BTreeMap<(String, String), u64> {
    let rows = report["routes"].as_array().expect("a list").iter();
    let of_tier = rows.filter_map(|row| {
        let tier = row["tier"].as_str()?;
        let count = row["rejected"][column].as_u64().expect("a number");
        Some(((row["route"].as_str().expect("a name").to_owned(), tier.to_owned()), count))
    });
    of_tier.filter(|(_, count)| *count > 0).collect()
}

/// Fails if two counts are further apart than this share of the first.
#[track_caller]
fn are_near(measured: &BTreeMap<(String, String), u64>, predicted: &BTreeMap<(String, String), u64>, share: f64) {
    for key in measured.keys().chain(predicted.keys()) {
        let count = |of: &BTreeMap<_, u64>| of.get(key).copied().unwrap_or_default();
        let (measured, predicted) = (count(measured), count(predicted));
        let apart = measured.abs_diff(predicted) as f64;
        assert!(apart <= measured as f64 * share, "{key:?}: measured {measured}, predicted {predicted}");
    }
}

fn key(name: &str, tier: &str) -> String {
    format!(
        "[[identity.keys]]\nname = \"{name}\"\nsha256 = \"{}\"\ntier = \"{tier}\"\n",
        sha256(&format!("key-of-{name}"))
    )
}

/// The rules of the test: limits of a day, so no quota returns while it runs.
fn rules(of_client: u32, of_search: u32, of_failures: u32) -> String {
    let routes = ["search", "upload", "orders"].map(|name| route(name, "")).concat();
    let keys = [key("acme", "free"), key("emca", "pro")].concat();
    let limits = [
        rule("each", &format!("{of_client}/1d"), "by = \"client-and-route\""),
        rule("search", &format!("{of_search}/1d"), "by = \"route\"\nroutes = [\"search\"]"),
        rule("failures", &format!("{of_failures}/1d"), "count = \"failures\"\nroutes = [\"orders\"]\ntiers = false"),
    ];
    format!("tiers.free = \"2x\"\ntiers.pro = \"5x\"\n{NO_DEFAULTS}{keys}{}{routes}", limits.concat())
}

/// The same traffic each time: anonymous clients, and two with keys, on three routes. Returns the rejections by route and tier.
fn traffic(proxy: &Proxy) -> (usize, BTreeMap<(String, String), u64>) {
    let clients: [(&str, u8, Option<&str>); 4] =
        [("anonymous", 11, None), ("anonymous", 12, None), ("free", 13, Some("acme")), ("pro", 14, Some("emca"))];
    let (mut sent, mut rejected) = (0, BTreeMap::new());
    let mut connections: Vec<Client> = clients.iter().map(|(_, address, _)| proxy.connect_as(*address)).collect();
    for round in 0..90 {
        for ((tier, _, key), client) in clients.iter().zip(&mut connections) {
            for (route, every) in [("search", 1), ("upload", 2), ("orders", 3)] {
                if round % every != 0 {
                    continue;
                }
                let request = if route == "upload" { post("/upload", "hello") } else { get(&format!("/{route}")) };
                let request = match key {
                    Some(key) => with_fields(&request, &[&format!("X-Api-Key: key-of-{key}")]),
                    None => request,
                };
                sent += 1;
                if client.send(&request).answer().status == 429 {
                    *rejected.entry((route.to_owned(), (*tier).to_owned())).or_default() += 1;
                }
            }
        }
    }
    (sent, rejected)
}

#[test]
fn a_replay_says_what_the_same_rules_did_and_what_tighter_ones_will_do() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    app.at("/orders", Play::Say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()));
    let proxy = Proxy::with(&app, &recording(&directory, &rules(40, 200, 25)));
    let (sent, measured) = traffic(&proxy);
    has_recorded(&proxy, sent);
    assert!(measured.len() >= 5, "each route and most tiers are rejected: {measured:?}");

    let tight = rules(15, 60, 10);
    let report = backtest(&proxy, &recording(&directory, &tight));
    assert_eq!(report["requests"], sent);
    assert_eq!(rejected(&report, "recorded"), measured, "{report:#}");
    are_near(&measured, &rejected(&report, "in_force"), 0.01);
    assert!(report["fidelity"]["apart"].as_f64().expect("a share") <= 0.01, "{report:#}");

    let other = Proxy::with(&app, &tight);
    let (_, then) = traffic(&other);
    assert!(then.values().sum::<u64>() > measured.values().sum(), "{then:?}");
    are_near(&then, &rejected(&report, "proposed"), 0.05);
    let by_limit = report["limits"].as_array().expect("a list");
    for limit in ["each", "search", "failures"] {
        let row = by_limit.iter().find(|row| row["name"] == limit).unwrap_or_else(|| panic!("{limit}: {report:#}"));
        let live = other.metric("outrigger_limit_refusals_total", &[("limit", limit), ("mode", "enforce")]);
        let predicted = row["proposed"].as_f64().expect("a number");
        assert!((live - predicted).abs() <= live * 0.05, "{limit}: {live} and {predicted}");
    }
    let clients = report["clients"].as_array().expect("a list");
    assert_eq!(clients.len(), 4, "one pseudonym for each client: {report:#}");
    assert!(clients.iter().any(|client| client["by"] == "key"), "{report:#}");
}

#[test]
fn a_replay_opens_the_breaker_that_the_rules_would_open() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    app.at("/search", Play::Say(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec()));
    let rules = |mode: &str| {
        let breaker =
            "breaker.failures = 5\nbreaker.min_clients = 1\nbreaker.open = \"1h\"\nbreaker.max_open = \"1h\"\n";
        recording(&directory, &format!("breaker.mode = \"{mode}\"\n{breaker}{}", route("search", "")))
    };
    let proxy = Proxy::with(&app, &rules("off"));
    let ask = |proxy: &Proxy| {
        let mut client = proxy.connect();
        (0..30).filter(|_| client.send(get("/search")).answer().status == 503).count()
    };
    assert_eq!(ask(&proxy), 0);
    has_recorded(&proxy, 30);
    let report = backtest(&proxy, &rules("enforce"));
    let rejected = ask(&Proxy::with(&app, &rules("enforce")));
    assert_eq!(report["rejected"]["proposed"], rejected, "{report:#}");
    assert_eq!(report["breakers"][0]["name"], "search", "{report:#}");
    assert_eq!(report["breakers"][0]["proposed"], 1, "{report:#}");
    assert_eq!(report["rejected"]["in_force"], 0, "{report:#}");
}

#[test]
fn a_replay_queues_requests_by_the_recorded_times() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    app.at("/work", Play::Work(Workers::new(64, Duration::from_millis(100))));
    let rules = |admission: &str| recording(&directory, &format!("{admission}{}", route("work", "")));
    let proxy = Proxy::with(&app, &rules("admission.min = 20\n"));
    // Twelve requests at a time, three times: an app with one permit takes 1.2 s for them.
    for _ in 0..3 {
        let mut clients: Vec<Client> = (21..33).map(|address| proxy.connect_as(address)).collect();
        for client in &mut clients {
            client.send(get("/work"));
        }
        clients.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    }
    has_recorded(&proxy, 36);
    let one = "admission.min = 1\nadmission.max = 1\nadmission.initial = 1\nadmission.max_wait = \"450ms\"\n";
    let report = backtest(&proxy, &rules(one));
    let waits = |column: &str| report["waits"][column]["requests"].as_u64().expect("a number");
    assert_eq!((waits("recorded"), waits("in_force")), (0, 0), "{report:#}");
    assert!(waits("proposed") >= 3, "{report:#}");
    assert!(report["rejected"]["proposed"].as_u64() > Some(6), "some do not get a permit in time: {report:#}");
    let longest = report["waits"]["proposed"]["longest_ms"].as_f64().expect("a number");
    assert!((50.0..=450.0).contains(&longest), "{report:#}");
}

/// The contents of all files below `directory`.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(directory).expect("the record").map(|file| file.expect("a file").path());
    files.map(|file| (file.clone(), fs::read(&file).expect("a file"))).collect()
}

#[test]
fn the_record_names_nobody_and_has_no_parameters() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let users = "[[routes]]\nname = \"users\"\npath = \"/users/{id}\"\n[[routes]]\nname = \"files\"\npath = \"/files/**\"\n\
                 [[routes]]\nname = \"beta\"\npath = \"/beta\"\nheaders = { \"X-Beta\" = \"*\" }\n\
                 [[routes]]\nname = \"tenant\"\npath = \"/tenant\"\nhosts = [\"*.shop.example\"]\n";
    let proxy = Proxy::with(&app, &recording(&directory, &format!("{}{users}", key("customer-acme", "pro"))));
    let mut client = proxy.connect_as(77);
    let key = "X-Api-Key: key-of-customer-acme";
    let requests = [
        get("/users/annabel"),
        get("/users/annabel?token=tokentext"),
        get("/files/reports/4711-quarterly"),
        get("/unknown/ann@example.com/0189a3f2-7c1b-7d30-a5c2-93f8e1b0c4d7"),
        with_fields(&get("/beta"), &["X-Beta: betavalue"]),
        get("/tenant").replace("outrigger.test", "tenantname.shop.example"),
        post("/users/bertram", "bodytext"),
    ];
    for request in &requests {
        assert_eq!(client.send(with_fields(request, &[key, "User-Agent: agenttext"])).answer().status, 200);
    }
    has_recorded(&proxy, requests.len());
    let files = contents(&directory);
    assert_eq!(files.len(), 1);
    let bytes = &files[0].1;
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    for secret in [
        "annabel",
        "bertram",
        "token",
        "4711",
        "quarterly",
        "example.com",
        "0189a3f2",
        "betavalue",
        "tenantname",
        "key-of",
        "customer",
        "acme",
        "agenttext",
        "bodytext",
        "127.0.0",
        "outrigger.test",
    ] {
        assert!(!has(secret.as_bytes()), "{secret} is in the record");
    }
    assert!(!has(&[127, 0, 0, 77]), "the address is in the record");
    // The test sees what is there.
    for kept in ["/users/~", "/files/reports/~", "/unknown/~/~", "x-beta", "~.shop.example", "GET", "POST"] {
        assert!(has(kept.as_bytes()), "{kept} is not in the record");
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&files[0].0).expect("a file").permissions().mode() & 0o777, 0o600);
}

#[test]
fn nothing_is_recorded_unless_the_file_says_so() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let off = format!("traffic.directory = {directory:?}\n");
    let proxy = Proxy::with(&app, &off);
    (0..5).for_each(|_| assert_eq!(proxy.get("/").status, 200));
    proxy.comes_to_rest();
    assert!(!directory.exists());
    // It is switched on and off without a restart.
    proxy.changes_to(&recording(&directory, ""));
    (0..3).for_each(|_| assert_eq!(proxy.get("/").status, 200));
    has_recorded(&proxy, 3);
    proxy.changes_to(&off);
    (0..5).for_each(|_| assert_eq!(proxy.get("/").status, 200));
    proxy.comes_to_rest();
    has_recorded(&proxy, 3);
    assert_eq!(proxy.metric("outrigger_traffic_lost_total", &[]), 0.0);
}

#[test]
fn a_record_that_cannot_be_written_costs_no_request() {
    let directory = fresh_dir().join("record");
    fs::write(&directory, "a file in its place").expect("a file");
    let app = Backend::start();
    let proxy = Proxy::with(&app, &recording(&directory, ""));
    let mut client = proxy.connect();
    (0..20).for_each(|_| assert_eq!(client.send(get("/")).answer().status, 200));
    proxy.counts("outrigger_traffic_lost_total", &[("reason", "not_written")], 20);
    proxy.says("traffic_not_recorded");
    // With room again, it goes on by itself.
    fs::remove_file(&directory).expect("the file");
    until("the record to go on", || {
        assert_eq!(client.send(get("/")).answer().status, 200);
        proxy.metric("outrigger_traffic_recorded_total", &[]) > 0.0
    });
}

#[test]
fn scripts_get_an_exit_code_a_text_and_a_picture() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let rules = |rate: &str| recording(&directory, &format!("{NO_DEFAULTS}{}", rule("each", rate, "")));
    let proxy = Proxy::with(&app, &rules("100/1d"));
    let mut client = proxy.connect();
    (0..20).for_each(|_| assert_eq!(client.send(get("/")).answer().status, 200));
    has_recorded(&proxy, 20);
    let (same, tight) = (file(&proxy, "same.toml", &rules("100/1d")), file(&proxy, "tight.toml", &rules("10/1d")));
    let picture = proxy.dir.join("backtest.svg");
    let (in_force, picture) = (proxy.file.to_str().expect("UTF-8"), picture.to_str().expect("UTF-8"));
    let run = |proposed: &str, more: &[&str]| {
        let arguments = [&["backtest", proposed, "--config", in_force, "--since", "1h"], more].concat();
        let output = proxy.run(&arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let fail = ["--fail-if-refusals-rise", "10%"];
    let (code, text, _) = run(&same, &fail);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("20 requests") && text.contains("fidelity: "), "{text}");
    let (code, text, error) = run(&tight, &[&fail[..], &["--picture", picture]].concat());
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("rejections rise by 50.00%") && text.contains("10 of 20"), "{text}{error}");
    let svg = fs::read_to_string(picture).expect("the picture");
    assert!(svg.starts_with("<svg") && !svg.contains("script") && svg.contains("proposed rules: 10"), "{svg}");

    let (code, _, error) = run(&tight, &["--until", "2h"]);
    assert_eq!(code, Some(1), "{error}");
    let nowhere = proxy.dir.join("nowhere");
    let (code, _, error) = run(&tight, &["--traffic", nowhere.to_str().expect("UTF-8")]);
    assert!(code == Some(1) && error.contains("record = true"), "{error}");
    let wrong = file(&proxy, "wrong.toml", "rate_limits.medium = \"10\"");
    assert_eq!(run(&wrong, &[]).0, Some(78));
}

/// A route that the file in force does not have: the recorded words of paths lead to it.
#[test]
fn a_replay_knows_paths_without_a_route_by_their_words() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let proxy = Proxy::with(&app, &recording(&directory, NO_DEFAULTS));
    let mut client = proxy.connect();
    for number in 0..12 {
        assert_eq!(client.send(get(&format!("/shop/orders/{number}"))).answer().status, 200);
        assert_eq!(client.send(get("/about")).answer().status, 200);
    }
    has_recorded(&proxy, 24);
    let orders = "[[routes]]\nname = \"orders\"\npath = \"/shop/orders/{id}\"\n";
    let limit = rule("few", "5/1d", "routes = [\"orders\"]");
    let report = backtest(&proxy, &recording(&directory, &format!("{NO_DEFAULTS}{limit}{orders}")));
    let of_orders: BTreeMap<_, _> = [(("orders".to_owned(), "anonymous".to_owned()), 7)].into();
    assert_eq!(rejected(&report, "proposed"), of_orders, "{report:#}");
}

/// Times that are drawn are drawn the same way.
#[test]
fn two_readings_give_the_same_report() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let workers: Arc<Workers> = Workers::new(4, Duration::from_millis(5));
    app.at("/work", Play::Work(workers));
    let rules = recording(&directory, &format!("{NO_DEFAULTS}{}", rule("each", "20/1d", "")));
    let proxy = Proxy::with(&app, &rules);
    let mut client = proxy.connect();
    (0..40).for_each(|_| drop(client.send(get("/work")).answer()));
    has_recorded(&proxy, 40);
    let wider = recording(&directory, &format!("{NO_DEFAULTS}{}", rule("each", "30/1d", "")));
    let report = || {
        let mut report = backtest(&proxy, &wider);
        for varying in ["seconds", "requests_per_second"] {
            report[varying] = Value::Null;
        }
        report
    };
    let first = report();
    assert_eq!(first, report());
    assert_eq!(first["rejected"]["proposed"], 10, "{first:#}");
    assert!(first["notes"].to_string().contains("20 requests were rejected then"), "{first:#}");
}

#[test]
fn the_audit_log_can_be_replayed_from_disk_and_from_postgresql() {
    let app = Backend::start();
    let rules = |rate: &str| {
        let audit = "audit.directory = \"trail\"\naudit.default = \"data\"\nserver.lame_duck = \"0s\"\n";
        format!("{audit}{NO_DEFAULTS}{}{}", rule("each", rate, ""), route("search", ""))
    };
    let setup = Setup::new(&app, &rules("20/1d"));
    let postgres = postgres_in(&setup.dir);
    let keys = ("OUTRIGGER_AUDIT_KEYS", "k1:fedcba9876543210fedcba9876543210");
    let setup = setup.env(keys.0, keys.1).env("OUTRIGGER_AUDIT_DATABASE_URL", &postgres.url("app"));
    let proxy = setup.start();
    let mut client = proxy.connect();
    let rejected = (0..40).filter(|_| client.send(get("/search")).answer().status == 429).count();
    assert_eq!(rejected, 20);
    until("PostgreSQL to have all", || {
        let count = "select count(*) from audit_events where route = 'search'";
        postgres.sql("app", count).is_ok_and(|count| count.trim() == "40")
    });
    let proposed = file(&proxy, "proposed.toml", &rules("30/1d"));
    let in_force = proxy.file.to_str().expect("UTF-8");
    for (source, name) in [("--audit", "the audit log"), ("--database", "the audit log in PostgreSQL")] {
        let output = proxy.run(&["backtest", &proposed, "--config", in_force, "--since", "1h", "--json", source]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["source"], name);
        let counts = ["recorded", "in_force", "proposed"].map(|column| report["rejected"][column].as_u64());
        assert_eq!(counts, [Some(20), Some(20), Some(10)], "{report:#}");
        assert!(report["notes"].to_string().contains("only requests of routes with"), "{report:#}");
        assert_eq!(report["clients"].as_array().map(Vec::len), Some(1), "{report:#}");
    }
}

/// Clients are told apart although no rule in force asks for that.
#[test]
fn limits_that_are_off_can_be_tried() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let proxy = Proxy::with(&app, &recording(&directory, "flags.prioritized_rate_limit = false\n"));
    for address in [31, 32] {
        let mut client = proxy.connect_as(address);
        (0..12).for_each(|_| assert_eq!(client.send(get("/")).answer().status, 200));
    }
    has_recorded(&proxy, 24);
    let report = backtest(&proxy, &recording(&directory, &format!("{NO_DEFAULTS}{}", rule("each", "10/1d", ""))));
    assert_eq!(report["rejected"]["proposed"], 4, "{report:#}");
}

/// A file that may not grow ends in the middle of a write, as on a full disk.
#[test]
fn a_full_disk_costs_no_request_and_no_recorded_one() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    // 32 KiB; without the signal, the write fails.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"];
    let rules = recording(&directory, "log.access = false\n");
    let proxy = Setup::new(&app, &rules).through(&limited).start();
    let mut client = proxy.connect();
    let mut sent = 0;
    until("the disk to be full", || {
        for _ in 0..250 {
            assert_eq!(client.send(get("/")).answer().status, 200);
            sent += 1;
        }
        proxy.metric("outrigger_traffic_lost_total", &[("reason", "not_written")]) > 0.0
    });
    let (recorded, lost) = ("outrigger_traffic_recorded_total", "outrigger_traffic_lost_total");
    until("all requests to be counted", || proxy.metric(recorded, &[]) + proxy.metric(lost, &[]) >= f64::from(sent));
    let report = backtest(&proxy, &rules);
    assert_eq!(report["requests"].as_f64(), Some(proxy.metric(recorded, &[])), "{report:#}");
    assert!(proxy.metric(recorded, &[]) > 100.0, "{sent} sent");
}

/// The replay has the times at which the limits decided, however fast the requests came.
#[test]
fn limits_that_refill_are_replayed_exactly() {
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let limits = [rule("each", "50/1s", "burst = 5"), rule("all", "80/1s", "burst = 20\nby = \"machine\"")];
    let proxy = Proxy::with(&app, &recording(&directory, &format!("{NO_DEFAULTS}{}", limits.concat())));
    let mut clients: Vec<Client> = [41, 42].map(|address| proxy.connect_as(address)).into();
    let (mut rejected, mut sent) = (0_u64, 0);
    // Until both outcomes were seen often enough.
    until("rejections and responses", || {
        for client in &mut clients {
            for _ in 0..50 {
                rejected += u64::from(client.send(get("/")).answer().status == 429);
                sent += 1;
            }
        }
        rejected >= 100 && sent - rejected >= 100
    });
    has_recorded(&proxy, sent as usize);
    let report = backtest(&proxy, &recording(&directory, NO_DEFAULTS));
    assert_eq!(report["rejected"]["recorded"], rejected);
    assert_eq!(report["rejected"]["in_force"], rejected, "{report:#}");
    assert_eq!(report["fidelity"]["apart"], 0.0);
}
