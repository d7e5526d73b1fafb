//! A change that was taken back, as operators see it, and their orders.

use std::fs;

use xtask::{Signal, http};

use super::{GOOD, Shape, Traffic, app, save, undone};
use crate::audit;
use crate::audit_commands::{KEYS, TRAIL};
use crate::harness::{PATIENCE, Proxy, Setup, until};

const HARMFUL: &str = "reload.probation = \"2m\"\nretry.attempts = 1\napp.timeout = \"1ms\"\n";

/// Runs a command with the address of the admin listener: whether it succeeds, and what it says.
pub fn run(proxy: &Setup, args: &[&str]) -> (bool, String) {
    let admin = proxy.admin.to_string();
    let output = proxy.run(&[args, &["--admin", &admin]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[track_caller]
fn is_undone(proxy: &Proxy, text: &str) {
    let before = undone(proxy);
    save(proxy, text);
    until("the change to be taken back", || undone(proxy) > before);
}

#[test]
fn a_change_that_was_taken_back_is_shown_everywhere_and_not_tried_again() {
    let app = app();
    let setup = Setup::new(&app, &format!("{GOOD}{TRAIL}")).env(KEYS.0, KEYS.1);
    let mut proxy = setup.start();
    let traffic = Traffic::start(&proxy, 6, Shape::Steady);
    traffic.is_usual(&proxy);
    let harmful = proxy.text(&format!("{HARMFUL}{TRAIL}"));
    is_undone(&proxy, &harmful);

    // Metric, log, history, status, headline, page, audit log.
    assert_eq!(proxy.metric("outrigger_config_rollbacks_total", &[("measure", "timeout"), ("mode", "enforce")]), 1.0);
    assert_eq!(proxy.metric("outrigger_config_last_reload_successful", &[]), 0.0);
    let line = proxy.says("config_rollback");
    assert!(line.contains("504: 0 % before") && line.contains("is taken back"), "{line}");
    until("the status to show it", || proxy.shows("/status")["config"]["undone"]["measure"] == "timeout");
    let status = proxy.shows("/status");
    assert_eq!(status["config"]["undone"]["is_in_file"], true);
    assert!(status["headline"].to_string().contains("was taken back"), "{}", status["headline"]);
    assert!(status["events"].to_string().contains("is taken back: 504"), "{}", status["events"]);
    let (_, text) = run(&proxy, &["status"]);
    assert!(text.contains("TAKEN BACK") && text.contains("504: 0 % before"), "{text}");
    let page = http::send("GET", proxy.admin, "/", &[("accept", "text/html")], "", PATIENCE).unwrap().body;
    assert!(page.contains("was taken back at"), "{page}");
    until("the audit log to have it", || {
        audit::entries(&proxy).iter().any(|entry| entry.to_string().contains("rollback"))
    });

    // Neither a save of the same content nor SIGHUP nor the command brings it back.
    let version = proxy.metric("outrigger_config_version", &[]);
    fs::write(&proxy.file, &harmful).unwrap();
    proxy.says("config_still_undone");
    proxy.signal(Signal::HUP);
    let (is_done, text) = run(&proxy, &["reload"]);
    assert!(!is_done && text.contains("was taken back before (504"), "{text}");
    assert_eq!(proxy.metric("outrigger_config_version", &[]), version);

    // Another content is a new change, and is taken back as well.
    is_undone(&proxy, &format!("# once more\n{harmful}"));
    // An operator may insist.
    let (is_done, text) = run(&proxy, &["reload", "--force"]);
    assert!(is_done && text.contains("without probation"), "{text}");
    assert_eq!(proxy.metric("outrigger_config_on_probation", &[]), 0.0);
    assert_eq!(proxy.get("/api/x").status, 504);
    assert!(proxy.shows("/status")["config"]["undone"].is_null());
    until("the order to be in the audit log", || {
        audit::entries(&proxy).iter().any(|entry| entry.to_string().contains("config.force"))
    });
    assert_eq!(undone(&proxy), 2.0);
    drop(traffic);
}

#[test]
fn monitor_only_says_so_and_off_does_not_look() {
    let app = app();
    let proxy = Setup::new(&app, GOOD).start();
    let traffic = Traffic::start(&proxy, 6, Shape::Steady);
    traffic.is_usual(&proxy);
    save(&proxy, &proxy.text(&format!("reload.mode = \"monitor\"\n{HARMFUL}")));
    until("it to be noticed", || {
        proxy.metric("outrigger_config_rollbacks_total", &[("measure", "timeout"), ("mode", "monitor")]) == 1.0
    });
    assert!(proxy.says("config_rollback").contains("would be taken back"));
    assert_eq!(proxy.get("/api/x").status, 504);
    until("the status to show it", || proxy.shows("/status")["config"]["undone"]["is_kept"] == true);

    save(&proxy, &proxy.text(&format!("reload.mode = \"off\"\n{HARMFUL}")));
    assert_eq!(proxy.metric("outrigger_config_on_probation", &[]), 0.0);
    assert!(proxy.shows("/status")["config"]["undone"].is_null());
    assert_eq!(undone(&proxy), 0.0);
}

#[test]
fn a_change_during_a_probation_returns_to_the_last_good_rules() {
    let app = app();
    let proxy = Setup::new(&app, &format!("{GOOD}client.max_fields = 90\n")).start();
    let traffic = Traffic::start(&proxy, 6, Shape::Steady);
    traffic.is_usual(&proxy);
    // Neither has proved to be good when the next one comes.
    save(
        &proxy,
        &proxy.text(&format!("{GOOD}client.max_body = \"5B\"\n[[routes]]\nname = \"new\"\npath = \"/new\"\n")),
    );
    is_undone(&proxy, &proxy.text(HARMFUL));
    proxy.get("/new");
    let routes = |name| proxy.metric("outrigger_requests_total", &[("route", name)]);
    assert_eq!(routes("new"), 0.0, "the first change is not in force");
    assert_eq!(proxy.ask(&crate::harness::post("/api/x", "longer than that")).status, 200);
}
