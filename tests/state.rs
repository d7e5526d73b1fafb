//! State that survives: after `kill -9`, a stop or a replaced Machine, the protection goes on where it was.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use outrigger_policy::breaker::SavedPosition;
use outrigger_policy::saved::{Saved, SavedKey};
use xtask::Signal;

use crate::abuse::ban;
use crate::backend::{Backend, Play};
use crate::harness::{Answer, Form, PATIENCE, Proxy, Setup, every_form, get, until};
use crate::limits::{NO_DEFAULTS, is_refused_by, rule};
use crate::machines::{machine, place};

/// In the proxy's own directory.
const STATE: &str = "state.directory = \"state\"\n";
/// Only what is urgent is written soon.
const URGENT: &str = "state.directory = \"state\"\nstate.every = \"1h\"\n";
/// Every change is written soon.
const SOON: &str = "state.directory = \"state\"\nstate.every = \"100ms\"\n";
const BANS: &str = "abuse.mode = \"enforce\"\nabuse.not_found = \"5/1h\"\nabuse.ban = \"1h\"\n";
const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";

fn file(setup: &Setup) -> PathBuf {
    setup.dir.join("state/snapshot")
}

/// The snapshot on disk.
fn saved(setup: &Setup) -> Option<Saved> {
    Saved::decode(&fs::read(file(setup)).ok()?).ok()
}

/// Waits until the snapshot on disk is like this, and returns it.
#[track_caller]
fn is_saved(setup: &Setup, what: &str, is: impl Fn(&Saved) -> bool) -> Saved {
    until(&format!("the snapshot to have {what}"), || saved(setup).is_some_and(|saved| is(&saved)));
    saved(setup).expect("it was there")
}

/// Ends the proxy as the kernel does when memory is short.
fn killed(mut proxy: Proxy) -> Setup {
    let setup = (*proxy).clone();
    proxy.signal(Signal::KILL);
    proxy.ends_within(PATIENCE);
    setup
}

/// The same configuration file, with other rules.
fn with_rules(setup: Setup, rules: &str) -> Setup {
    fs::write(&setup.file, setup.text(rules)).expect("the rules can be written");
    setup
}

/// How often starts ended with this result.
fn restores(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric("outrigger_state_restores_total", &[("result", result)])
}

fn is_banned(proxy: &Proxy) -> bool {
    proxy.get("/").status == 403
}

/// The clock and the circuit breaker of a snapshot; `None` unless it is open.
fn opened_until(saved: &Saved) -> Option<u64> {
    saved.breakers.iter().find_map(|(_, breaker)| match breaker.switch.position {
        SavedPosition::Open { until, .. } => Some(until),
        _ => None,
    })
}

#[test]
fn after_a_kill_in_an_outage_no_request_reaches_the_app_before_its_time() {
    let app = Backend::start();
    app.says("/bad", FAILED);
    let open = Duration::from_secs(5);
    let rules = format!(
        "{URGENT}breaker.failures = 3\nbreaker.failure_rate = \"off\"\nbreaker.open = \"5s\"\nretry.attempts = 1\n\
         [[routes]]\nname = \"bad\"\npath = \"/bad\"\n"
    );
    let proxy = Proxy::with(&app, &rules);
    // A moment before it opens.
    let opened = Instant::now();
    let statuses: Vec<u16> = (0..3).map(|n| proxy.ask_as(10 + n, &get("/bad")).status).collect();
    assert_eq!(statuses, [500; 3]);
    is_saved(&proxy, "an open breaker", |saved| opened_until(saved).is_some());
    let proxy = killed(proxy).start();
    assert_eq!(restores(&proxy, "file"), 1.0);
    assert_eq!(proxy.metric("outrigger_breaker_state", &[("breaker", "bad"), ("state", "open")]), 1.0);
    for request in every_form("/bad") {
        let (answer, asked) = (proxy.ask(&request), opened.elapsed());
        // A busy machine may need longer for all of this than the breaker stays open.
        if asked < open {
            answer.is_problem(503, "breaker_open");
            assert!(answer.number("retry-after") <= 5, "{answer:?}");
        }
    }
    let (asked_early, took) = (app.requests_to("/bad") > 3, opened.elapsed());
    assert!(!asked_early || took >= open, "the app was asked after {took:?}");
    app.says("/bad", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    // Then a probe passes, as it would have without the restart.
    until("the breaker to close", || proxy.get("/bad").status == 200);
    assert!(opened.elapsed() >= open, "it was open for {:?}", opened.elapsed());
}

#[test]
fn after_a_kill_a_ban_holds_and_its_history_counts() {
    let app = Backend::start();
    app.says("/404", "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::with(&app, &format!("{URGENT}{BANS}"));
    until("the ban", || proxy.get("/404").status == 403);
    is_saved(&proxy, "the ban", |saved| saved.bans.len() == 1);
    let asked = app.requests();
    let before = proxy.shows("/bans")["bans"][0].clone();
    let proxy = killed(proxy).start();
    for request in every_form("/") {
        proxy.ask(&request).is_problem(403, "abnormal_usage_detected");
    }
    assert_eq!(app.requests(), asked);
    let after = proxy.shows("/bans")["bans"][0].clone();
    for key in ["client", "reason", "times"] {
        assert_eq!(after[key], before[key]);
    }
    let left = |ban: &serde_json::Value| ban["left_s"].as_f64().expect("a number");
    assert!(left(&after) <= left(&before) && left(&after) > left(&before) - 60.0, "{before} and {after}");
    assert_eq!(proxy.ask_as(9, &get("/")).status, 200, "another client");
    // A lifted ban stays lifted.
    let lift = "DELETE /bans/address:127.0.0.1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(crate::harness::Client::connect(proxy.admin).unwrap().send(lift).answer().status, 204);
    is_saved(&proxy, "no ban", |saved| saved.bans.is_empty());
    assert!(!is_banned(&killed(proxy).start()));
}

#[test]
fn a_stop_writes_the_last_snapshot() {
    let app = Backend::start();
    let rules = format!(
        "{URGENT}server.lame_duck = \"0s\"\nrate_limits.mode = \"enforce\"\n{NO_DEFAULTS}{}",
        rule("few", "2/1h", "")
    );
    let mut proxy = Proxy::with(&app, &rules);
    is_saved(&proxy, "its first content", |_| true);
    assert_eq!([1, 2, 3].map(|_| proxy.get("/").status), [200, 200, 429]);
    assert!(saved(&proxy).is_some_and(|saved| saved.limits.is_empty()), "a rate limit is not urgent");
    let setup = (*proxy).clone();
    proxy.signal(Signal::TERM);
    assert!(proxy.ends_within(PATIENCE).success());
    assert!(!saved(&setup).expect("a snapshot").limits.is_empty());
    is_refused_by(&setup.start().get("/"), "few");
}

#[test]
fn after_a_kill_a_limit_has_not_refilled_but_aged() {
    let app = Backend::start();
    let rules = format!("{SOON}rate_limits.mode = \"enforce\"\n{NO_DEFAULTS}{}", rule("few", "5/1h", ""));
    let proxy = Proxy::with(&app, &rules);
    let began = Instant::now();
    for request in every_form("/").into_iter().take(5) {
        assert_eq!(proxy.ask(&request).status, 200);
    }
    let hour = 3_600_000_000_000;
    is_saved(&proxy, "the whole hour", |saved| {
        saved.limits.iter().any(|key| key.tat > saved.clock_ns + hour - 60_000_000_000)
    });
    let proxy = killed(proxy).start();
    let answer = proxy.get("/");
    is_refused_by(&answer, "few");
    // One request every twelve minutes.
    let (waits, passed) = (answer.number("retry-after"), began.elapsed().as_secs());
    assert!((719 - passed..=720).contains(&waits), "{waits} s, {passed} s after the first");
    let setup = killed(proxy);
    let one_more = saved(&setup).expect("a snapshot");
    // The Machine was off for 20 minutes: one request of twelve minutes is back, and most of another.
    let twenty_minutes = 20 * 60_000_000_000;
    let older = Saved { unix_ns: one_more.unix_ns - twenty_minutes, ..one_more };
    fs::write(file(&setup), older.encode()).unwrap();
    let proxy = setup.start();
    assert_eq!(proxy.get("/").status, 200);
    let answer = proxy.get("/");
    is_refused_by(&answer, "few");
    assert!((100..=240).contains(&answer.number("retry-after")), "{answer:?}");
}

#[test]
fn a_learned_concurrency_limit_is_where_a_restart_begins() {
    let app = Backend::start();
    let rules = format!("{SOON}admission.initial = 20\n");
    let proxy = Proxy::with(&app, &rules);
    let limit = |proxy: &Proxy| proxy.shows("/admission")["limit"].as_u64().expect("a number");
    assert_eq!(limit(&proxy), 20);
    // The bounds move it, as slow responses would, only sooner.
    proxy.changes_to(
        &format!("{rules}admission.max = 7\nadmission.initial = 5\n").replace("admission.initial = 20\n", ""),
    );
    is_saved(&proxy, "the new limit", |saved| saved.concurrency == Some(7.0));
    let setup = with_rules(killed(proxy), &rules);
    let proxy = setup.start();
    assert_eq!(limit(&proxy), 7);
    // An old limit may not fit the app of today, and bounds hold.
    let setup = killed(proxy);
    let old = saved(&setup).expect("a snapshot");
    let eleven_minutes = 11 * 60_000_000_000;
    fs::write(file(&setup), Saved { unix_ns: old.unix_ns - eleven_minutes, ..old.clone() }.encode()).unwrap();
    let proxy = setup.start();
    assert_eq!(limit(&proxy), 20);
    is_saved(&proxy, "what the new process writes", |saved| saved.unix_ns > old.unix_ns);
    let setup = killed(proxy);
    fs::write(file(&setup), Saved { concurrency: Some(1e9), ..saved(&setup).expect("a snapshot") }.encode()).unwrap();
    assert_eq!(limit(&setup.start()), 1000);
}

#[test]
fn a_spent_retry_budget_is_not_renewed() {
    let app = Backend::start();
    app.at("/", Play::SayAndClose(FAILED.into()));
    let rules = format!("{SOON}retry.statuses = [500]\nretry.backoff = \"1ms\"\nretry.budget = \"20%\"\n");
    let proxy = Proxy::with(&app, &rules);
    until("the budget to be spent", || {
        proxy.get("/");
        proxy.metric("outrigger_app_retries_denied_total", &[]) > 0.0
    });
    // Free retries of a second make the balance negative; later requests pay for them.
    let spent = |saved: &Saved| saved.retries.is_some_and(|budget| budget.tokens < 0.0);
    let before = is_saved(&proxy, "a negative balance", spent);
    let setup = killed(proxy);
    let before = saved(&setup).unwrap_or(before);
    let proxy = setup.start();
    let after = is_saved(&proxy, "what the new process writes", |saved| saved.unix_ns > before.unix_ns);
    let tokens = |saved: &Saved| saved.retries.map(|budget| budget.tokens);
    assert_eq!(tokens(&after), tokens(&before));
}

#[test]
fn a_snapshot_that_cannot_be_used_starts_clean_and_says_why() {
    let app = Backend::start();
    let rules = format!("{STATE}{BANS}server.machine = \"m1\"\n");
    let proxy = Proxy::with(&app, &rules);
    ban(&proxy, "address:127.0.0.1", "1h");
    let good = is_saved(&proxy, "the ban", |saved| saved.bans.len() == 1);
    let mut setup = killed(proxy);
    let bytes = good.encode();
    let flipped = {
        let mut bytes = bytes.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    let other_format = [&bytes[..8], &[7, 0], &bytes[10..]].concat();
    let ahead = Saved { unix_ns: good.unix_ns + 3_600_000_000_000, ..good.clone() };
    let foreign = Saved { machine: "m2".to_owned(), ..good };
    let cases: [(&str, &str, Vec<u8>); 8] = [
        ("damaged", "it is torn", bytes[..bytes.len() - 9].to_vec()),
        ("damaged", "its checksum is wrong", flipped),
        ("not_a_snapshot", "it is not a snapshot", b"{}".to_vec()),
        ("not_a_snapshot", "it is not a snapshot", Vec::new()),
        ("other_format", "it has format 7", other_format),
        ("other_machine", "it is of Machine \\\"m2\\\", and this is \\\"m1\\\"", foreign.encode()),
        ("future", "it is from the future", ahead.encode()),
        ("too_large", "more than 16777216", vec![0; (16 << 20) + 1]),
    ];
    for (kind, reason, content) in cases {
        fs::remove_file(setup.dir.join("outrigger.log")).unwrap();
        fs::write(file(&setup), content).unwrap();
        let proxy = setup.start();
        assert_eq!(proxy.get("/").status, 200, "{kind}");
        let line = proxy.says("state_ignored");
        assert!(line.contains(reason) && line.contains("WARN"), "{reason}: {line}");
        assert_eq!(proxy.log().matches("state_ignored").count(), 1);
        assert_eq!((restores(&proxy, kind), restores(&proxy, "file")), (1.0, 0.0), "{kind}");
        // The next snapshot is a good one.
        is_saved(&proxy, "new content", |saved| saved.machine == "m1" && saved.bans.is_empty());
        setup = killed(proxy);
    }
    fs::remove_file(setup.dir.join("outrigger.log")).unwrap();
    fs::remove_file(file(&setup)).unwrap();
    fs::create_dir(file(&setup)).unwrap();
    let proxy = setup.start();
    assert_eq!(proxy.get("/").status, 200);
    proxy.says("it is not a file");
    proxy.says("state_not_written");
    assert_eq!(restores(&proxy, "unreadable"), 1.0);
    // The good one, to be sure that it would have been restored.
    let setup = killed(proxy);
    fs::remove_dir(file(&setup)).unwrap();
    fs::write(file(&setup), bytes).unwrap();
    assert!(is_banned(&setup.start()));
}

#[test]
fn a_directory_that_cannot_be_written_fails_no_request() {
    let app = Backend::start();
    let proxy = Setup::new(&app, "state.directory = \"proxy.toml/state\"\nstate.every = \"100ms\"\n").start();
    let failed = || proxy.metric("outrigger_state_snapshots_total", &[("result", "failed")]);
    until("a second attempt", || failed() >= 2.0);
    for request in every_form("/") {
        assert_eq!(proxy.ask(&request).status, 200);
    }
    assert_eq!(proxy.log().matches("state_not_written").count(), 1, "one line, however often it fails");
    let status = proxy.shows("/status")["saved"].clone();
    assert!(status["error"].as_str().is_some_and(|error| error.contains("directory")), "{status}");
}

#[test]
fn limits_that_changed_while_it_was_down_keep_only_what_is_theirs() {
    let app = Backend::start();
    let all = |rules: &[String]| {
        format!("{SOON}abuse.refusals = \"off\"\nrate_limits.mode = \"enforce\"\n{NO_DEFAULTS}{}", rules.concat())
    };
    let (kept, gone) = (rule("kept", "3/1h", ""), rule("gone", "3/1h", "by = \"address\""));
    let proxy = Proxy::with(&app, &all(&[kept.clone(), gone]));
    assert_eq!([1, 2, 3, 4].map(|_| proxy.get("/").status), [200, 200, 200, 429]);
    is_saved(&proxy, "both keys", |saved| saved.limits.len() == 2);
    // Another limit in place of one, and the same name for other keys.
    let proxy = with_rules(killed(proxy), &all(&[kept, rule("new", "1/1h", "")])).start();
    is_refused_by(&proxy.get("/"), "kept");
    let before = is_saved(&proxy, "one key", |saved| saved.limits.len() == 1);
    let proxy = with_rules(killed(proxy), &all(&[rule("kept", "3/1h", "by = \"route\"")])).start();
    assert_eq!(proxy.get("/").status, 200, "it counts something else now");
    // A shorter window bounds what is left to wait.
    is_saved(&proxy, "its key", |saved| saved.limits.len() == 1 && saved.limits[0].tag != before.limits[0].tag);
    let proxy = with_rules(killed(proxy), &all(&[rule("kept", "1/1m", "by = \"route\"")])).start();
    let answer = proxy.get("/");
    is_refused_by(&answer, "kept");
    assert!(answer.number("retry-after") <= 60, "{answer:?}");
}

#[test]
fn a_hundred_thousand_keys_are_small_and_quick() {
    let app = Backend::start();
    let rules = format!("{SOON}rate_limits.mode = \"enforce\"\n{NO_DEFAULTS}{}", rule("few", "5/1h", ""));
    let proxy = Proxy::with(&app, &rules);
    assert_eq!(proxy.get("/").status, 200);
    let one = is_saved(&proxy, "a key", |saved| saved.limits.len() == 1);
    let setup = killed(proxy);
    // As many clients of the same limit, which the lowest bits say.
    let SavedKey { tag, tat } = one.limits[0];
    let mixed = |n: u64| ((n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.rotate_left(40)) & !0xfff) | (tag & 0xfff);
    let killed_at = one.unix_ns;
    let limits = (0..100_000).map(|n| SavedKey { tag: mixed(n), tat: tat + 3000 }).collect();
    fs::write(file(&setup), Saved { limits, ..one }.encode()).unwrap();
    let proxy = setup.start();
    let line: serde_json::Value = {
        let log = proxy.log();
        let line = log.lines().rfind(|line| line.contains("state_restored")).expect("a line").to_owned();
        serde_json::from_str(&line).expect("JSON")
    };
    let restored = line["fields"]["limits"].as_u64().or_else(|| line["limits"].as_u64()).expect("a number");
    assert!(restored > 99_000, "{line}");
    is_saved(&proxy, "all of them", |saved| saved.unix_ns > killed_at && saved.limits.len() as u64 >= restored);
    until("the snapshot to be counted", || proxy.metric("outrigger_state_snapshot_size_bytes", &[]) > 0.0);
    let size = proxy.metric("outrigger_state_snapshot_size_bytes", &[]);
    let took = proxy.metric("outrigger_state_snapshot_duration_seconds", &[]);
    println!("{restored} keys: {size} bytes in {took} s");
    assert!(size < 1_700_000.0 && took < 2.0, "{size} bytes in {took} s");
    // Without a change, no snapshot is written.
    let written = || proxy.metric("outrigger_state_snapshots_total", &[("result", "written")]);
    let before = written();
    thread::sleep(Duration::from_millis(500));
    assert!(written() <= before + 1.0);
}

#[test]
fn a_replaced_machine_gets_bans_limits_and_concurrency_from_its_peer() {
    let (here, there) = (place(), place());
    let rules = format!("{SOON}{BANS}rate_limits.mode = \"enforce\"\n{NO_DEFAULTS}{}", rule("few", "3/1h", ""));
    let a = machine("a", &[here, there], &format!("admission.max = 7\nadmission.initial = 6\n{rules}"));
    // Its only peer does not exist yet.
    assert_eq!(restores(&a.proxy, "none"), 1.0);
    ban(&a.proxy, "address:127.0.0.9", "1h");
    assert_eq!([1, 2, 3, 4].map(|_| a.proxy.get("/").status), [200, 200, 200, 429]);
    is_saved(&a.proxy, "the ban and the key", |saved| saved.bans.len() == 1 && !saved.limits.is_empty());
    let b = machine("b", &[there, here], &format!("admission.initial = 20\n{rules}"));
    assert_eq!(restores(&b.proxy, "peers"), 1.0, "{}", b.proxy.log());
    b.proxy.ask_as(9, &get("/")).is_problem(403, "abnormal_usage_detected");
    is_refused_by(&b.proxy.get("/"), "few");
    assert_eq!(b.proxy.ask_as(8, &get("/")).status, 200);
    assert_eq!(b.proxy.shows("/admission")["limit"], 6);
    // Its own snapshot comes first from now on.
    is_saved(&b.proxy, "its own name", |saved| saved.machine == "b" && saved.seed.is_none() && saved.bans.len() == 1);
    let setup = killed(b.proxy);
    drop(a);
    let proxy = setup.start();
    assert_eq!(restores(&proxy, "file"), 1.0);
    proxy.ask_as(9, &get("/")).is_problem(403, "abnormal_usage_detected");
}

#[test]
fn a_peer_that_says_nothing_or_lies_delays_a_start_by_a_second_at_most() {
    let (here, there) = (place(), place());
    // Accepts connections and never answers.
    let silent = std::net::TcpListener::bind(there).unwrap();
    let began = Instant::now();
    let b = machine("b", &[here, there], &format!("{SOON}{BANS}"));
    println!("serves after {:?}", began.elapsed());
    assert_eq!(restores(&b.proxy, "none"), 1.0);
    drop((b, silent));
    // A ban in an unsigned response is not believed.
    let there = place();
    let liar = Backend::start_at(there);
    let lie = Saved { machine: "a".to_owned(), ..Saved::default() }.encode();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", lie.len());
    for path in ["/.outrigger/probe", "/.outrigger/state"] {
        liar.at(path, Play::SayAndClose([head.as_bytes(), &lie].concat()));
    }
    let b = machine("b", &[place(), there], &format!("{SOON}{BANS}"));
    assert_eq!(restores(&b.proxy, "none"), 1.0);
    // It gets no request that a peer would accept: one is made only for a peer that has proved its identity.
    assert!(liar.requests_to("/.outrigger/probe") > 0);
    assert_eq!(liar.requests_to("/.outrigger/state"), 0);
}

#[test]
fn without_a_directory_nothing_is_written_and_clients_get_no_state() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, BANS);
    ban(&proxy, "address:127.0.0.1", "1h");
    assert!(is_banned(&proxy));
    let setup = killed(proxy);
    assert!(!setup.dir.join("state").exists());
    let proxy = setup.start();
    assert!(!is_banned(&proxy));
    assert_eq!(proxy.shows("/status")["saved"], serde_json::Value::Null);
    // The path is the app's on the public listener.
    let answers: Vec<Answer> = Form::ALL.map(|form| proxy.ask(&form.request("/.outrigger/state"))).into();
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.seen("host").is_some()));
}
