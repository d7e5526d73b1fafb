//! Apps with odd habits: each has a behaviour that docs/run.md describes.

use std::process::Command;

use xtask::{Signal, process};

use super::*;

#[test]
fn an_app_that_listens_late_gets_the_requests_that_waited() {
    let run = Run::start(QUICK, &app(&["late=2"]));
    until("the admin listener", || run.try_shown().is_some());
    let answer = run.get("/");
    assert_eq!((answer.status, answer.body), (200, run.child().to_string()));
}

#[test]
fn an_app_that_listens_on_ipv6_only_is_found() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let run = Run::serving(QUICK, &app(&["ipv6"]));
    assert_eq!(run.get("/").status, 200);
}

#[test]
fn an_app_that_listens_elsewhere_gets_a_message_with_the_right_port() {
    let port = local().port().to_string();
    let rules = format!("{QUICK}run.start_timeout = \"5s\"\nrun.max_restarts = 0\n");
    let mut run = Run::start(&rules, &app(&[&format!("port={port}")]));
    let line = run.says("app_silent");
    let address = line.split("localhost:").nth(1).unwrap();
    let own: String = address.chars().take_while(char::is_ascii_digit).collect();
    assert!(line.contains(&format!("it listens on {port}")), "{line}");
    assert!(line.contains(&format!("the port in PORT, which is {own}")), "{line}");
    assert_eq!(run.ends().code(), Some(143));
}

#[test]
fn an_app_that_listens_nowhere_gets_a_message() {
    let rules = format!("{QUICK}run.start_timeout = \"1s\"\nrun.max_restarts = 0\n");
    let mut run = Run::start(&rules, &app(&["never"]));
    let line = run.says("app_silent");
    assert!(line.contains("it listens on no port"), "{line}");
    assert_eq!(run.ends().code(), Some(143));
}

#[test]
fn an_app_that_ignores_sigterm_is_killed() {
    let rules = format!("{QUICK}run.stop_grace = \"300ms\"\n");
    let mut run = Run::serving(&rules, &app(&["stubborn"]));
    let child = run.child();
    let (status, said) = run.restart();
    assert!(status.success(), "{said}");
    assert_ne!(run.child(), child);
    run.process.signal(Signal::TERM);
    assert!(run.ends().success());
    assert_eq!(run.log().matches("\"app_killed\"").count(), 2, "{}", run.log());
}

#[test]
fn an_app_that_goes_to_the_background_is_given_up_and_ended() {
    let rules = format!("{QUICK}run.max_restarts = 1\nrun.stop_grace = \"1s\"\n");
    let mark = format!("record={}", fresh_dir().join("record").display());
    let mut run = Run::start(&rules, &app(&["daemon", &mark]));
    assert_eq!(run.ends().code(), Some(1));
    assert!(run.says("app_given_up").contains("run it in the foreground"));
    let left = Command::new("pgrep").args(["-f", &format!("app.py daemon {mark}")]).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

/// The app has Outrigger's own standard output: not a byte passes through Outrigger.
#[test]
fn a_flood_on_standard_output_costs_nothing() {
    let record = fresh_dir().join("record");
    let command = app(&["flood=1024", &format!("record={}", record.display())]);
    let run = Run::through(&["sh", "-c", "exec \"$@\" > /dev/null", "sh"], QUICK, &command);
    run.serves();
    until("the flood to end", || {
        assert_eq!(run.get("/").status, 200);
        executed(&record).contains_key("flooded")
    });
    let status = fs::read_to_string(format!("/proc/{}/status", run.process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 200 << 10, "{kib} KiB");
}

#[test]
fn output_passes_unchanged_or_as_json_lines() {
    let run = Run::serving(QUICK, &app(&["talks"]));
    assert_eq!(run.says("it says something"), "it says something");
    assert_eq!(run.says("\"own\": \"json\""), "{\"own\": \"json\"}");
    let run = Run::serving(&format!("{QUICK}run.output = \"json\"\n"), &app(&["talks"]));
    let line: Value = serde_json::from_str(&run.says("it says something")).unwrap();
    assert_eq!((&line["message"], &line["stream"]), (&"it says something".into(), &"stdout".into()));
    assert_eq!(line["pid"], run.child());
    assert_eq!(run.says("\"own\": \"json\""), "{\"own\": \"json\"}");
}

#[test]
fn a_restart_also_works_while_the_app_is_down() {
    let run = Run::serving("run.backoff = \"1h\"\nrun.max_backoff = \"1h\"\n", &app(&[]));
    process::signal(run.child(), Signal::KILL);
    run.is("waiting");
    let (status, said) = run.restart();
    assert!(status.success(), "{said}");
    run.serves();
    assert_eq!(run.get("/").body, run.child().to_string());
}
