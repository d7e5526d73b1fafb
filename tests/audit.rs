//! The audit log as the proxy writes it: which events it records, which it never records, and its state after a crash or on a
//! full disk.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use xtask::Signal;

use crate::backend::Backend;
use crate::harness::{Answer, Client, Form, Proxy, Setup, every_form, get, post, sha256, until, with_fields};
use crate::limits::{EDGE, NO_DEFAULTS};

/// Records every request, off the hot path.
const TRAIL: &str = "audit.directory = \"trail\"\naudit.default = \"data\"\nserver.lame_duck = \"0s\"\n";
pub const SURE: &str = "audit.durability.data = \"before-response\"\naudit.durability.deletion = \"before-response\"\n";

pub fn directory(setup: &Setup) -> PathBuf {
    setup.dir.join("trail")
}

/// All entries of a spool, in the order of each chain.
pub fn entries(setup: &Setup) -> Vec<Value> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory(setup)).map_or_else(
        |_| Vec::new(),
        |files| {
            files
                .flatten()
                .map(|file| file.path())
                .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
                .collect()
        },
    );
    files.sort();
    let text = files.iter().map(|file| fs::read_to_string(file).unwrap_or_default());
    let lines: Vec<String> = text.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines
        .iter()
        .filter(|line| line.starts_with("{\"seq\""))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn find(setup: &Setup, wanted: &[(&str, &str)]) -> Vec<Value> {
    let is_it = |entry: &Value| {
        wanted.iter().all(|(name, value)| {
            let found = name.split('.').fold(entry, |at, key| &at[key]);
            found.as_str().map_or_else(|| found.to_string(), str::to_owned) == *value
        })
    };
    entries(setup).into_iter().filter(is_it).collect()
}

/// Waits for an entry.
#[track_caller]
fn finds(setup: &Setup, wanted: &[(&str, &str)]) -> Value {
    until(&format!("an entry with {wanted:?}"), || !find(setup, wanted).is_empty());
    find(setup, wanted).remove(0)
}

pub fn id(answer: &Answer) -> String {
    answer.header("x-request-id").expect("an id").to_owned()
}

/// Checks that every entry has the hash of the one before; returns the number of entries.
#[track_caller]
pub fn is_chained(setup: &Setup) -> usize {
    let mut files: Vec<PathBuf> = fs::read_dir(directory(setup)).unwrap().flatten().map(|file| file.path()).collect();
    files.sort();
    let (mut count, mut chain, mut last) = (0, String::new(), (0, "0".repeat(64)));
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "jsonl")) {
        let name = file.file_name().unwrap().to_string_lossy().split('-').next().unwrap().to_owned();
        if name != chain {
            (chain, last) = (name, (0, "0".repeat(64)));
        }
        for line in fs::read_to_string(file).unwrap().lines().filter(|line| line.starts_with("{\"seq\"")) {
            let entry: Value = serde_json::from_str(line).unwrap();
            assert_eq!(
                (entry["seq"].as_u64(), entry["prev"].as_str()),
                (Some(last.0 + 1), Some(last.1.as_str())),
                "{line}"
            );
            last = (last.0 + 1, sha256(line));
            count += 1;
        }
    }
    count
}

/// Runs `outrigger audit search` for a type and outcome; newest first.
#[track_caller]
fn search(setup: &Setup, event: &str, outcome: &str) -> Vec<Value> {
    let file = setup.file.to_str().unwrap();
    let said = setup.run(&["audit", "search", "--type", event, "--outcome", outcome, "--json", "--config", file]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let lines = String::from_utf8(said.stdout).unwrap();
    let found: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!found.is_empty(), "{event} {outcome} is not found");
    found
}

#[test]
fn actions_and_actors_are_recorded_for_every_method() {
    let app = Backend::start();
    for (path, status) in [("/documents/7", 404), ("/login/no", 401), ("/broken", 500)] {
        app.says(path, &format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"));
    }
    let key = sha256("a-key-of-ann-that-is-long");
    let rules = format!(
        "{EDGE}{TRAIL}audit.headers = [\"User-Agent\"]\naudit.parameters = [\"id\"]\n\
         [[identity.keys]]\nname = \"ann\"\nsha256 = \"{key}\"\ntier = \"pro\"\n\
         [[routes]]\nname = \"login\"\npath = \"/login/**\"\naudit = \"authentication\"\n\
         [[routes]]\nname = \"documents\"\npath = \"/documents/{{id}}\"\naudit = \"data\"\n\
         [[routes]]\nname = \"quiet\"\npath = \"/quiet\"\naudit = \"off\"\n"
    );
    let proxy = Proxy::with(&app, &rules);
    let fields = ["X-Api-Key: a-key-of-ann-that-is-long", "User-Agent: curl/8", "Fly-Client-IP: 192.0.2.7"];
    let ask = |request: &str| proxy.ask(&with_fields(request, &fields));
    let rows: [(String, &str, &str, &str); 8] = [
        (get("/documents/42"), "data.read", "success", "data"),
        (post("/documents/42", "{}"), "data.write", "success", "data"),
        (get("/documents/42").replace("GET", "DELETE"), "data.delete", "success", "deletion"),
        (get("/documents/7"), "data.read", "failure", "data"),
        (get("/broken"), "data.read", "error", "data"),
        (post("/login/yes", "{}"), "auth.login", "success", "authentication"),
        (post("/login/no", "{}"), "auth.failed", "failure", "authentication"),
        (get("/login/no"), "auth.failed", "failure", "authentication"),
    ];
    for (request, event, outcome, class) in rows {
        let answer = ask(&request);
        let entry = finds(&proxy, &[("request_id", &id(&answer))]);
        assert_eq!(
            (entry["type"].as_str(), entry["outcome"].as_str(), entry["class"].as_str()),
            (Some(event), Some(outcome), Some(class)),
            "{entry}"
        );
        assert_eq!(
            (entry["status"].as_u64(), entry["actor"]["kind"].as_str()),
            (Some(answer.status.into()), Some("key")),
            "{entry}"
        );
        assert_eq!(
            (entry["actor"]["tier"].as_str(), entry["headers"]["user-agent"].as_str()),
            (Some("pro"), Some("curl/8")),
            "{entry}"
        );
        assert!(entry["actor"]["id"].as_str().is_some_and(|id| id.starts_with("k_")), "{entry}");
        assert!(entry["client"].as_str().is_some_and(|id| id.starts_with("a_")), "{entry}");
        if entry["route"] == "documents" {
            assert!(entry["resource"]["id"] == "42" || entry["resource"]["id"] == "7", "{entry}");
        }
    }
    for request in every_form("/quiet") {
        ask(&request);
    }
    let health = proxy.get("/health");
    let marker = id(&ask(&get("/documents/42")));
    finds(&proxy, &[("request_id", &marker)]);
    assert!(find(&proxy, &[("route", "quiet")]).is_empty());
    assert!(find(&proxy, &[("request_id", &id(&health))]).is_empty());
    let actors: BTreeSet<_> =
        find(&proxy, &[("actor.kind", "key")]).iter().map(|e| e["actor"]["id"].to_string()).collect();
    assert_eq!(actors.len(), 1, "one client is one actor");
    for (event, outcome) in [
        ("auth.login", "success"),
        ("auth.failed", "failure"),
        ("data.read", "success"),
        ("data.write", "success"),
        ("data.delete", "success"),
    ] {
        for entry in search(&proxy, event, outcome) {
            assert!(actors.contains(&entry["actor"]["id"].to_string()), "{entry}");
        }
    }
    is_chained(&proxy);
}

#[test]
fn rejections_bans_breakers_reloads_and_flags_are_recorded() {
    let app = Backend::start();
    app.says("/no", "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n");
    app.says("/500", "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let more = "abuse.mode = \"enforce\"\nabuse.login_failures = \"2/1h\"\nbreaker.failures = 3\nretry.attempts = 1\n";
    let rules = format!("{EDGE}{TRAIL}{more}{NO_DEFAULTS}");
    let rare = "[[rate_limits.rules]]\nname = \"rare\"\nby = \"client\"\nrate = \"1/1h\"\nroutes = [\"rare\"]\n\
                [[routes]]\nname = \"rare\"\npath = \"/rare\"\n";
    let proxy = Proxy::with(&app, &format!("{rules}{rare}"));
    let from = |request: &str, last: u8| proxy.ask(&with_fields(request, &[&format!("Fly-Client-IP: 192.0.2.{last}")]));
    assert_eq!(from(&get("/rare"), 1).status, 200);
    for request in every_form("/rare") {
        let refused = from(&request, 1);
        assert_eq!(refused.status, 429);
        let entry = finds(&proxy, &[("request_id", &id(&refused)), ("type", "security.rate_limited")]);
        assert_eq!(
            (entry["outcome"].as_str(), entry["reason"].as_str()),
            (Some("refused"), Some("quota_exceeded")),
            "{entry}"
        );
    }
    for _ in 0..3 {
        from(&get("/no"), 2);
    }
    let ban = finds(&proxy, &[("type", "security.banned"), ("action", "ban"), ("outcome", "success")]);
    assert_eq!(
        (ban["reason"].as_str(), ban["actor"]["kind"].as_str()),
        (Some("login_failures"), Some("address")),
        "{ban}"
    );
    assert_eq!(from(&get("/no"), 2).status, 403);
    let refused = finds(&proxy, &[("type", "security.banned"), ("outcome", "refused")]);
    assert_eq!(refused["actor"]["id"], ban["actor"]["id"]);
    for last in 10..13 {
        from(&get("/500"), last);
    }
    finds(&proxy, &[("type", "security.breaker"), ("action", "open"), ("details.breaker", "default")]);
    let refused = from(&get("/500"), 20);
    assert_eq!(refused.status, 503);
    finds(&proxy, &[("type", "security.breaker"), ("outcome", "refused"), ("request_id", &id(&refused))]);
    proxy.changes_to(&format!("{rules}flags.session_affinity = \"10%\"\n{rare}"));
    finds(&proxy, &[("type", "admin.config_change"), ("outcome", "success")]);
    let flag = finds(&proxy, &[("type", "admin.flag_change"), ("details.flag", "session_affinity")]);
    assert_eq!(
        (flag["details"]["from"].as_str(), flag["details"]["to"].as_str()),
        (Some("true"), Some("10%")),
        "{flag}"
    );
    fs::write(&proxy.file, "[nonsense").unwrap();
    finds(&proxy, &[("type", "admin.config_change"), ("outcome", "refused")]);
    // A file that cannot be parsed sets no audit directory.
    fs::write(&proxy.file, proxy.text(&format!("{rules}flags.session_affinity = \"10%\"\n{rare}"))).unwrap();
    for (event, outcome, kind) in [
        ("security.rate_limited", "refused", "address"),
        ("security.banned", "success", "address"),
        ("security.breaker", "success", "system"),
        ("admin.config_change", "success", "operator"),
        ("admin.config_change", "refused", "operator"),
        ("admin.flag_change", "success", "operator"),
    ] {
        for entry in search(&proxy, event, outcome) {
            assert_eq!(entry["actor"]["kind"], kind, "{entry}");
        }
    }
    is_chained(&proxy);
}

#[test]
fn forged_headers_of_a_client_are_recorded() {
    let app = Backend::start();
    let rules = format!("{TRAIL}[identity.jwt]\nsecret_file = \"secret\"\n");
    let setup = Setup::new(&app, &rules);
    fs::write(setup.dir.join("secret"), "a secret of at least thirty-two bytes").unwrap();
    let secret = setup.dir.join("secret");
    fs::write(&setup.file, setup.text(&rules.replace("\"secret\"", &format!("{secret:?}")))).unwrap();
    let proxy = setup.env("OUTRIGGER_AFFINITY_KEYS", &"k".repeat(32)).env("OUTRIGGER_MACHINE", "a").start();
    let token = "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4iLCJleHAiOjk5OTk5OTk5OTl9.AAAA";
    for (field, what) in [(token, "bad_token"), ("X-Forwarded-For: 1.2.3.4", "forwarding_field")] {
        for request in every_form("/") {
            let answer = proxy.ask(&with_fields(&request, &[field]));
            assert_eq!(answer.status, 200);
            let entry = finds(&proxy, &[("request_id", &id(&answer)), ("type", "security.forged")]);
            assert_eq!(entry["reason"], what, "{entry}");
            finds(&proxy, &[("request_id", &id(&answer)), ("class", "data")]);
        }
    }
}

#[test]
fn no_stored_byte_reveals_a_secret_or_a_name() {
    let app = Backend::start();
    let key = sha256("credential-in-a-key-that-is-long");
    let rules = format!(
        "{EDGE}{TRAIL}{SURE}audit.headers = [\"User-Agent\", \"X-Note\"]\n[[identity.keys]]\nname = \"ann-of-the-docs\"\nsha256 = \"{key}\"\n"
    );
    let proxy = Proxy::with(&app, &rules);
    let hostile = "a[2Jb\\\"}\t,\"outcome\":\"x\u{202e}";
    let note = format!("X-Note: {hostile}");
    let fields = [
        "X-Api-Key: credential-in-a-key-that-is-long",
        "Authorization: Bearer credential-in-a-token",
        "Cookie: s=credential-in-a-cookie",
        "Proxy-Authorization: Basic credential-in-basic",
        "Fly-Client-IP: 198.51.100.77",
        note.as_str(),
    ];
    for form in Form::ALL {
        let request = form.with_body("/documents?token=credential-in-a-query", "credential-in-a-body");
        assert_eq!(proxy.ask(&with_fields(&request, &fields)).status, 200);
    }
    let long = format!("User-Agent: {}", "x".repeat(20_000));
    let answer = proxy.ask(&with_fields(&get("/long"), &[&long]));
    let entry = finds(&proxy, &[("request_id", &id(&answer))]);
    assert!(entry["headers"]["user-agent"].as_str().is_some_and(|agent| agent.len() < 300), "{entry}");
    let entries = entries(&proxy);
    let noted = entries.iter().find(|entry| entry["headers"]["x-note"].is_string()).expect("the note");
    assert_eq!(noted["headers"]["x-note"].as_str(), Some(hostile), "as it was sent, and nothing but text");
    for file in fs::read_dir(directory(&proxy)).unwrap().flatten() {
        let bytes = fs::read(file.path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for secret in ["credential", "ann-of-the-docs", "198.51.100.77"] {
            assert!(!text.contains(secret), "{secret:?} is in {:?}", file.path());
        }
    }
    is_chained(&proxy);
}

#[test]
fn monitor_and_off_write_no_entry() {
    let app = Backend::start();
    for (mode, monitored) in [("monitor", Form::NUMBER as f64), ("false", 0.0)] {
        let proxy = Setup::new(&app, TRAIL).env("FF_ENABLE_AUDIT_TRAIL", mode).start();
        for request in every_form("/") {
            assert_eq!(proxy.ask(&request).status, 200);
        }
        proxy.comes_to_rest();
        assert_eq!(proxy.metric("outrigger_audit_monitored_total", &[("class", "data")]), monitored);
        assert!(find(&proxy, &[("class", "data")]).is_empty());
    }
}

/// Repeats a request until the proxy stops listening; returns the request ids of the app's responses.
pub fn ask_until_it_ends(address: SocketAddr, request: String) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut seen = Vec::new();
        while let Ok(mut client) = Client::connect(address) {
            while client.try_send(&request).is_ok()
                && let Ok(answer) = client.try_answer()
            {
                if answer.status == 200 {
                    seen.push(id(&answer));
                }
                if answer.closes() {
                    break;
                }
            }
        }
        seen
    })
}

/// Kills the proxy at different times: the audit log must have every request whose response a client received.
pub fn killed(rounds: usize, load: Duration) {
    let app = Backend::start();
    let rules = format!("{TRAIL}{SURE}audit.segment_size = \"64KiB\"\n");
    let setup = Setup::new(&app, &rules);
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for round in 0..rounds {
        let mut proxy = setup.clone().start();
        let address = proxy.address;
        let requests = [get("/a"), post("/b", "hello")];
        let clients: Vec<_> = (0..8).map(|n| ask_until_it_ends(address, requests[n % 2].clone())).collect();
        // A different moment in each round of load; there is no event to wait for.
        let moment = load / 2 + load * u32::try_from(round * 7919 % 100).unwrap() / 200;
        thread::sleep(moment);
        proxy.signal(Signal::KILL);
        proxy.ends_within(Duration::from_secs(10));
        seen.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
        drop(proxy);
        let entered: BTreeSet<String> =
            entries(&setup).iter().filter_map(|entry| entry["request_id"].as_str().map(str::to_owned)).collect();
        let missing: Vec<_> = seen.difference(&entered).collect();
        assert!(missing.is_empty(), "round {round}: {} of {} are missing: {missing:?}", missing.len(), seen.len());
    }
    let proxy = setup.start();
    until("what was recovered to be on disk", || proxy.metric("outrigger_audit_writable", &[]) == 1.0);
    assert!(is_chained(&proxy) >= seen.len());
    assert!(seen.len() > rounds * 10, "{} answers in {rounds} rounds", seen.len());
    assert!(find(&proxy, &[("action", "audit.missing")]).is_empty());
    let ids: Vec<_> =
        entries(&proxy).iter().filter_map(|entry| entry["request_id"].as_str().map(str::to_owned)).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "nothing is entered twice");
}

#[test]
fn responses_sent_are_in_the_audit_log_after_a_kill() {
    killed(8, Duration::from_millis(400));
}

#[test]
#[ignore = "minutes: cargo xtask soak --tests"]
fn responses_sent_are_in_the_audit_log_after_200_kills() {
    killed(200, Duration::from_millis(800));
}

/// Requests of a class that must be recorded first are rejected; all others are served and counted.
#[test]
fn an_unwritable_audit_log_stops_only_requests_that_must_be_recorded() {
    let app = Backend::start();
    let rules = format!(
        "{TRAIL}{SURE}audit.queue = 64\n[[routes]]\nname = \"in\"\npath = \"/in\"\naudit = \"authentication\"\n"
    );
    let setup = Setup::new(&app, &rules);
    // A file in place of the directory: the proxy cannot open anything below it.
    fs::write(directory(&setup), "in the way").unwrap();
    let proxy = setup.start();
    proxy.says("the audit log cannot be written");
    assert_eq!(proxy.metric("outrigger_audit_writable", &[]), 0.0);
    for request in every_form("/a") {
        let refused = proxy.ask(&request);
        refused.is_problem(503, "audit_unavailable");
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(app.requests(), 0, "the app has not seen what could not be written down");
    for _ in 0..300 {
        assert_eq!(proxy.get("/in").status, 200);
    }
    until("what is beyond the queue to be counted", || {
        proxy.metric("outrigger_audit_lost_total", &[("class", "authentication")]) > 0.0
    });
    fs::remove_file(directory(&proxy)).unwrap();
    until("the trail to be written again", || proxy.metric("outrigger_audit_writable", &[]) == 1.0);
    let answer = proxy.get("/a");
    assert_eq!(answer.status, 200);
    finds(&proxy, &[("request_id", &id(&answer))]);
    let gap = finds(&proxy, &[("action", "audit.gap"), ("class", "authentication")]);
    let lost = gap["details"]["lost"].as_u64().unwrap();
    let kept = find(&proxy, &[("type", "auth.login")]).len() as u64;
    assert_eq!(lost + kept, 300, "nothing is lost without being counted: {gap}");
    assert!(gap["details"]["signature"].is_string());
    is_chained(&proxy);
}

#[test]
fn a_full_spool_stays_within_its_bound_and_reports_it() {
    let app = Backend::start();
    let rules = format!(
        "{TRAIL}audit.durability.deletion = \"before-response\"\naudit.segment_size = \"64KiB\"\naudit.max_size = \"512KiB\"\naudit.queue = 600\n"
    );
    let proxy = Proxy::with(&app, &rules);
    let mut client = proxy.connect();
    let delete = get("/a").replace("GET", "DELETE");
    let mut refused = None;
    until("a request that has to be entered to be refused", || {
        for _ in 0..50 {
            assert_eq!(client.send(get("/a")).answer().status, 200, "who need not wait is served");
        }
        let answer = client.send(&delete).answer();
        refused = (answer.status == 503).then_some(answer);
        refused.is_some()
    });
    refused.expect("a refusal").is_problem(503, "audit_unavailable");
    proxy.says("spool_full");
    until("what is lost to be counted", || {
        for _ in 0..50 {
            client.send(get("/a")).answer();
        }
        proxy.metric("outrigger_audit_lost_total", &[("why", "spool_full")]) > 0.0
    });
    let bytes: u64 =
        fs::read_dir(directory(&proxy)).unwrap().flatten().map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes < 600 << 10, "{bytes}");
}

#[test]
fn a_removed_segment_does_not_stop_the_audit_log() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, &format!("{TRAIL}{SURE}"));
    assert_eq!(proxy.get("/a").status, 200);
    fs::rename(directory(&proxy), proxy.dir.join("away")).unwrap();
    until("requests to be entered again", || proxy.get("/a").status == 200 && directory(&proxy).join("HEAD").exists());
    let answer = proxy.get("/b");
    assert_eq!(answer.status, 200);
    finds(&proxy, &[("request_id", &id(&answer))]);
}

/// A change is recorded once: when it is made, or at the next start.
#[test]
fn flags_changed_while_the_process_is_down_are_recorded_at_its_start() {
    let app = Backend::start();
    let setup = Setup::new(&app, TRAIL);
    let changes = |setup: &Setup| find(setup, &[("type", "admin.flag_change")]).len();
    for (flag, live, known) in [("", "10%", 1), ("10%", "10%", 1), ("monitor", "monitor", 2)] {
        let rules = |flag: &str| format!("{TRAIL}flags.session_affinity = \"{flag}\"\n");
        let text = if flag.is_empty() { TRAIL.to_owned() } else { rules(flag) };
        fs::write(&setup.file, setup.text(&text)).unwrap();
        let mut proxy = setup.clone().start();
        if flag != live {
            proxy.changes_to(&rules(live));
        }
        until("the changes to be entered", || changes(&proxy) >= known);
        proxy.signal(Signal::TERM);
        assert!(proxy.ends_within(Duration::from_secs(15)).success());
        assert_eq!(changes(&setup), known, "{flag:?}, then {live:?}");
    }
}

/// Changes to the audit log itself are recorded too.
#[test]
fn switching_the_audit_log_off_is_its_last_entry() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, TRAIL);
    assert_eq!(proxy.get("/a").status, 200);
    proxy.changes_to(&format!("{TRAIL}flags.audit_trail = false\n"));
    let off = finds(&proxy, &[("type", "admin.flag_change"), ("details.flag", "audit_trail")]);
    assert_eq!((off["details"]["from"].as_str(), off["details"]["to"].as_str()), (Some("true"), Some("false")));
    let unseen = id(&proxy.get("/b"));
    proxy.changes_to(TRAIL);
    let seen = id(&proxy.get("/c"));
    finds(&proxy, &[("request_id", &seen)]);
    assert!(find(&proxy, &[("request_id", &unseen)]).is_empty());
}

#[test]
fn a_read_is_recorded_even_if_the_client_disconnects() {
    let app = Backend::start();
    app.at("/documents/42", crate::backend::Play::Stream(64 << 20));
    let rules = format!(
        "{TRAIL}audit.parameters = [\"id\"]\n[[routes]]\nname = \"documents\"\npath = \"/documents/{{id}}\"\naudit = \"data\"\n"
    );
    let proxy = Proxy::with(&app, &rules);
    let mut client = proxy.connect();
    client.send(get("/documents/42"));
    client.answer_to_head();
    drop(client);
    let entry = finds(&proxy, &[("reason", "client_closed")]);
    assert_eq!((entry["resource"]["id"].as_str(), entry["type"].as_str()), (Some("42"), Some("data.read")), "{entry}");
}

/// More rejections than the audit log records one by one: the rest is counted.
#[test]
fn a_flood_of_rejections_is_recorded_with_its_count() {
    let app = Backend::start();
    let rare = "[[rate_limits.rules]]\nname = \"rare\"\nby = \"client\"\nrate = \"1/1h\"\n";
    let proxy = Proxy::with(&app, &format!("{TRAIL}{NO_DEFAULTS}{rare}"));
    let refused: usize = thread::scope(|scope| {
        let flood = || {
            let mut client = proxy.connect();
            (0..1500).filter(|_| client.send(get("/a")).answer().status == 429).count()
        };
        let floods: Vec<_> = (0..4).map(|_| scope.spawn(flood)).collect();
        floods.into_iter().map(|flood| flood.join().unwrap()).sum()
    });
    let counted = || {
        let found = find(&proxy, &[("type", "security.rate_limited")]);
        found.iter().map(|entry| entry["details"]["count"].as_u64().unwrap_or(1)).sum::<u64>()
    };
    until("all refusals to be entered", || counted() == refused as u64);
    assert!(find(&proxy, &[("type", "security.rate_limited")]).len() < refused, "the rest is entered as one");
}

#[test]
fn clients_cannot_reach_the_audit_endpoints_of_an_earlier_app() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, TRAIL);
    for path in ["/internal/audit/batches", "/%69nternal//audit/retention"] {
        for request in every_form(path) {
            let refused = proxy.ask(&request);
            refused.is_problem(404, "reserved_path");
            finds(&proxy, &[("request_id", &id(&refused)), ("type", "security.forged")]);
        }
    }
    assert_eq!(app.requests(), 0);
}

/// An audit log that began without the operator's keys is read with both.
#[test]
fn keys_added_later_decrypt_earlier_entries() {
    let app = Backend::start();
    let setup = Setup::new(&app, TRAIL);
    for key in ["", "k1:0123456789abcdef0123456789abcdef"] {
        let mut proxy = setup.clone().env("OUTRIGGER_AUDIT_KEYS", key).start();
        let answer = proxy.get("/a");
        finds(&proxy, &[("request_id", &id(&answer))]);
        proxy.signal(Signal::TERM);
        assert!(proxy.ends_within(Duration::from_secs(15)).success());
    }
    assert!(find(&setup, &[("action", "audit.unvouched")]).is_empty());
    is_chained(&setup);
    let file = setup.file.to_str().unwrap().to_owned();
    let verified = setup
        .env("OUTRIGGER_AUDIT_KEYS", "k1:0123456789abcdef0123456789abcdef")
        .run(&["audit", "verify", "--config", &file]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&[verified.stdout, verified.stderr].concat()));
}
