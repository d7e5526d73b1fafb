//! `outrigger pause`: requests wait by order of an operator. `outrigger maintenance`: they are refused.

use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::{Value, json};
use xtask::Signal;

use crate::audit;
use crate::audit_commands::{KEYS, TRAIL};
use crate::backend::Backend;
use crate::harness::{Answer, Client, Form, PATIENCE, Proxy, Setup, every_form, from_address, get, post, until};
use crate::limits::EDGE;

/// Asks the admin listener to act.
pub fn act(proxy: &Proxy, path: &str, body: &str) -> Answer {
    let head = "Host: localhost\r\nContent-Type: application/json";
    let request = format!("POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    Client::connect(proxy.admin).unwrap().send(request).answer()
}

fn run(proxy: &Proxy, args: &[&str]) -> (bool, String) {
    let admin = proxy.admin.to_string();
    let output = proxy.run(&[args, &["--admin", &admin]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn waiting(proxy: &Proxy) -> u64 {
    let queue = proxy.shows("/admission")["queue"].clone();
    queue.as_object().unwrap().values().filter_map(Value::as_u64).sum()
}

/// Waits for a headline: it is made at most four times a second.
fn headline(proxy: &Proxy, is_it: impl Fn(&str) -> bool) {
    until("the headline", || is_it(proxy.shows("/status")["headline"]["text"].as_str().unwrap()));
}

/// Sends a request that waits.
pub fn held(proxy: &Proxy, request: &str) -> Client {
    let before = waiting(proxy);
    let mut client = proxy.connect();
    client.send(request);
    until("the request to wait", || waiting(proxy) == before + 1);
    client
}

/// The time of a pause does not count as time in the queue, even if it ends before that is over.
#[test]
fn a_short_pause_rejects_no_request_that_waited_before() {
    let app = Backend::start();
    let gate = app.gate("/a");
    let proxy = Proxy::with(&app, "admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"1s\"\n");
    let mut first = proxy.connect();
    first.send(get("/a"));
    app.gets(1, "/a");
    let mut second = held(&proxy, &get("/a"));
    let waits_since = Instant::now();
    assert!(run(&proxy, &["pause"]).0);
    assert!(run(&proxy, &["resume"]).0);
    // It waits for longer than `max_wait`, in which there was a pause.
    thread::sleep(Duration::from_millis(1200).saturating_sub(waits_since.elapsed()));
    gate.add_permits(2);
    for client in [&mut first, &mut second] {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn requests_of_every_form_wait_until_an_operator_resumes() {
    let app = Backend::start();
    // Neither a limit of permits nor `app.hold` is needed.
    for rules in ["", "app.hold = \"0s\"\nadmission.mode = \"off\"\n"] {
        let proxy = Proxy::with(&app, rules);
        assert_eq!(proxy.get("/").status, 200);
        let before = app.requests();
        let (is_done, text) = run(&proxy, &["pause", "--for", "60s"]);
        assert!(is_done && text.contains("at most 60 s"), "{text}");
        let mut clients: Vec<Client> = every_form("/a").iter().map(|request| held(&proxy, request)).collect();
        assert_eq!(app.requests(), before, "the app gets none");
        let end = format!("{} requests wait", clients.len());
        headline(&proxy, |text| text.starts_with("Paused since ") && text.ends_with(&end));
        proxy.counts("outrigger_paused", &[], 1);
        // The platform does not remove the Machine.
        for path in ["/health", "/health/ready", "/health/live", "/health/detailed"] {
            let health = proxy.get(path);
            let data = &health.json()["data"];
            assert_eq!((health.status, &data["requestsHeld"]), (200, &clients.len().into()), "{path}: {health:?}");
            assert!(data["pausedUntil"].is_string(), "{data}");
        }
        let (is_done, text) = run(&proxy, &["resume"]);
        assert!(is_done && text.contains(&format!("{} requests waited", clients.len())), "{text}");
        for client in &mut clients {
            assert_eq!(client.answer().status, 200);
        }
        assert_eq!(app.requests(), before + clients.len());
        assert_eq!(proxy.get("/").status, 200);
        proxy.counts("outrigger_paused", &[], 0);
        proxy.counts("outrigger_held_requests_total", &[], clients.len());
        let (is_done, text) = run(&proxy, &["resume"]);
        assert!(!is_done && text.contains("not paused"), "{text}");
        let receipts = proxy.shows("/requests")["receipts"].to_string();
        assert!(receipts.contains("since an operator had paused requests"), "{receipts}");
        proxy.says("an operator pauses requests");
        proxy.says("the pause has ended");
        until("the events", || {
            let events = proxy.shows("/status")["events"].to_string();
            events.contains("an operator pauses requests") && events.contains("the pause has ended")
        });
        drop(clients);
        proxy.comes_to_rest();
    }
}

#[test]
fn a_pause_ends_by_itself_and_has_bounds() {
    let app = Backend::start();
    let proxy =
        Proxy::with(&app, "app.max_held = 1\n[[routes]]\nname = \"quick\"\npath = \"/quick\"\ntimeout = \"50ms\"\n");
    for (wrong, text) in
        [("{\"for\":\"11m\"}", "at most"), ("{\"for\":\"0s\"}", "at most"), ("{\"to\":1}", "send"), ("x", "send")]
    {
        let answer = act(&proxy, "/pause", wrong);
        assert!(answer.status == 400 && answer.text().contains(text), "{wrong}: {answer:?}");
    }
    let begun = act(&proxy, "/pause", "").json();
    assert_eq!(begun["for_s"], 30.0, "{begun}");
    // Its own time is over before the pause.
    let late = proxy.get("/quick");
    late.is_problem(503, "paused");
    assert!((1..=30).contains(&late.number("retry-after")), "{late:?}");
    let mut first = held(&proxy, &get("/"));
    let full = proxy.get("/");
    full.is_problem(503, "paused");
    proxy.counts_rejections("paused", 2);
    proxy.has_receipt("paused", "app.pause");
    // The last length counts.
    assert_eq!(act(&proxy, "/pause", "{\"for\":\"200ms\"}").status, 200);
    assert_eq!(first.answer().status, 200);
    until("the pause to have ended", || proxy.shows("/status")["pause"].is_null());
    proxy.says("\"by\":\"limit\"");
}

/// A deploy: the app restarts during the pause.
#[test]
fn the_app_may_restart_during_a_pause() {
    let mut app = Backend::start();
    let gate = app.gate("/slow");
    let proxy = Proxy::start(&app);
    let mut slow = proxy.connect();
    slow.send(get("/slow"));
    app.gets(1, "/slow");
    assert_eq!(act(&proxy, "/pause", "{\"for\":\"60s\"}").status, 200);
    let mut waiting = held(&proxy, &post("/a", "hello"));
    gate.add_permits(1);
    assert_eq!(slow.answer().status, 200, "a request that the app has goes on");
    app.stop();
    app.resume();
    assert_eq!(proxy.get("/health").status, 200);
    app.stop();
    assert_eq!(act(&proxy, "/resume", "").status, 200);
    until("the app to be known as down", || proxy.shows("/breakers")["app"]["reachable"] == false);
    // The end of one cause does not end the other.
    assert_eq!(act(&proxy, "/pause", "{\"for\":\"60s\"}").status, 200);
    app.resume();
    until("the app to be known as back", || proxy.shows("/breakers")["app"]["reachable"] == true);
    assert_eq!(app.requests_to("/a"), 0);
    assert_eq!(act(&proxy, "/resume", "").status, 200);
    assert_eq!(waiting.answer().status, 200);
}

#[test]
fn a_reload_ends_no_pause_and_a_shutdown_does() {
    let app = Backend::start();
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"0s\"\n");
    assert_eq!(act(&proxy, "/pause", "{\"for\":\"10m\"}").status, 200);
    let mut client = held(&proxy, &get("/"));
    proxy.changes_to("server.lame_duck = \"0s\"\nadmission.max = 7\n");
    assert_eq!(waiting(&proxy), 1);
    proxy.signal(Signal::TERM);
    assert_eq!(client.answer().status, 200);
    assert!(proxy.ends_within(PATIENCE).success());
}

#[test]
fn orders_need_the_token_and_are_audited() {
    let app = Backend::start();
    let token = "a token of the operators, long enough";
    let setup = Setup::new(&app, TRAIL).env(KEYS.0, KEYS.1).env("OUTRIGGER_ADMIN_TOKEN", token);
    let proxy = setup.clone().start();
    for (path, body) in [("/pause", ""), ("/resume", ""), ("/maintenance", "{\"on\":true}")] {
        assert_eq!(act(&proxy, path, body).status, 401, "{path}");
    }
    assert_eq!(proxy.get("/").status, 200);
    for args in [&["pause", "--for", "5m"][..], &["resume"], &["maintenance", "on"], &["maintenance", "off"]] {
        let (is_done, text) = run(&proxy, args);
        assert!(is_done, "{args:?}: {text}");
    }
    let actions = ["pause", "resume", "maintenance.begin", "maintenance.end"];
    let has = |entries: &[Value], action: &str| {
        entries.iter().any(|entry| entry["action"] == action && entry["type"] == "admin.action")
    };
    until("the entries", || {
        let entries = audit::entries(&setup);
        actions.iter().all(|action| has(&entries, action))
    });
}

#[test]
fn maintenance_refuses_all_but_those_that_the_file_names() {
    let app = Backend::start();
    let rules = "[maintenance]\nallow = [\"192.0.2.0/24\"]\npaths = [\"/public\"]\nretry_after = \"90s\"\n";
    let rules = format!("{EDGE}{rules}");
    let proxy = Proxy::with(&app, &rules);
    assert_eq!(proxy.get("/").status, 200);
    let on = act(&proxy, "/maintenance", "{\"on\":true}");
    assert_eq!((on.status, on.json()), (200, json!({ "maintenance": true, "changed": true })));
    let check = || {
        let before = app.requests();
        Form::at_once(&Form::ALL, |form| {
            let refused = proxy.ask(&form.request("/a"));
            refused.is_problem(503, "maintenance");
            assert_eq!(refused.number("retry-after"), 90);
        });
        for path in ["/publicly", "/a/public", "/public%2fx/../y"] {
            assert_ne!(proxy.get(path).status, 200, "{path}");
        }
        assert_eq!(app.requests(), before, "the app gets none");
        assert_eq!(proxy.get("/public/a").status, 200);
        assert_eq!(proxy.ask(&from_address(&get("/a"), "192.0.2.7")).status, 200);
        proxy.ask(&from_address(&get("/a"), "198.51.100.7")).is_problem(503, "maintenance");
        let health = proxy.get("/health");
        assert_eq!((health.status, &health.json()["data"]["maintenance"]), (200, &true.into()), "{health:?}");
        proxy.counts("outrigger_maintenance", &[], 1);
    };
    check();
    headline(&proxy, |text| text.starts_with("Maintenance since "));
    proxy.has_receipt("maintenance", "maintenance.operator");
    // It survives a reload, and the end of the file's own.
    let in_file = rules.replace("[maintenance]\n", "[maintenance]\nenabled = true\n");
    proxy.changes_to(&in_file);
    let refused = act(&proxy, "/maintenance", "{\"on\":false}");
    assert!(refused.status == 409 && refused.text().contains("maintenance.enabled"), "{refused:?}");
    check();
    headline(&proxy, |text| text == "Maintenance by the configuration: requests are refused");
    assert_eq!(act(&proxy, "/maintenance", "{\"on\":true}").status, 200);
    proxy.changes_to(&rules);
    check();
    assert_eq!(act(&proxy, "/maintenance", "{\"on\":false}").json()["changed"], true);
    assert_eq!(act(&proxy, "/maintenance", "{\"on\":false}").json()["changed"], false);
    assert_eq!(proxy.get("/").status, 200);
    for (wrong, says) in [("paths = [\"a/*\"]", "is no path"), ("allow = [\"x\"]", "an address or a network")] {
        fs::write(&proxy.file, proxy.text(&format!("[maintenance]\n{wrong}\n"))).unwrap();
        let output = proxy.run(&["check", "--config", &proxy.file.display().to_string()]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(78) && error.contains(says), "{error}");
    }
}

/// A paused client that has gone leaves no place behind.
#[test]
fn a_client_that_leaves_during_a_pause_frees_its_place() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    assert_eq!(act(&proxy, "/pause", "{\"for\":\"60s\"}").status, 200);
    let clients: Vec<Client> = (0..5).map(|_| held(&proxy, &get("/"))).collect();
    drop(clients);
    until("the places to be free", || waiting(&proxy) == 0);
    assert_eq!(act(&proxy, "/resume", "").status, 200);
    assert_eq!(proxy.get("/").status, 200);
}
