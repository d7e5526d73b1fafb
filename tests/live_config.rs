//! The config is reloaded while the proxy runs, or rejected with a reason, without an effect on requests.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xtask::{Signal, wait};

use crate::backend::Backend;
use crate::harness::{Client, Proxy, Setup, get, until};

/// Time until a saved file is in force.
const SOON: Duration = Duration::from_secs(1);

const SLOW_ONLY: &str = "[[routes]]\nname = \"slow\"\npath = \"/slow\"\n";

#[track_caller]
fn version_becomes(proxy: &Proxy, version: f64) {
    let saved = Instant::now();
    until("the new version", || proxy.metric("outrigger_config_version", &[]) >= version);
    let took = saved.elapsed();
    assert_eq!(proxy.metric("outrigger_config_version", &[]), version);
    // The check itself, a scrape on a busy machine, adds to the proxy's time.
    assert!(took < SOON + Duration::from_millis(500), "it took {took:?}");
}

#[test]
fn a_saved_file_is_in_force_within_a_second_however_it_is_saved() {
    let app = Backend::start();
    let mut proxy = Proxy::with(&app, SLOW_ONLY);
    let count = |proxy: &Proxy, route| proxy.metric("outrigger_requests_total", &[("route", route)]);
    proxy.get("/new");
    until("the first request to be counted", || count(&proxy, "default") == 1.0);

    let rules = proxy.text("[[routes]]\nname = \"new\"\npath = \"/new\"\n");
    fs::write(&proxy.file, &rules).unwrap();
    version_becomes(&proxy, 2.0);
    proxy.get("/new");
    until("the new route to be counted", || count(&proxy, "new") == 1.0);

    // As editors save: to another file, then renamed over it.
    let beside = proxy.dir.join("proxy.toml.swp");
    fs::write(&beside, proxy.text("client.max_fields = 50\n")).unwrap();
    fs::rename(&beside, &proxy.file).unwrap();
    version_becomes(&proxy, 3.0);
    assert_eq!(count(&proxy, "new"), 0.0, "a route that is gone leaves no series");

    proxy.signal(Signal::HUP);
    version_becomes(&proxy, 4.0);
}

/// A file saved between the first reading and the first look for changes counts as changed.
#[test]
fn a_file_saved_during_the_start_comes_into_force() {
    let app = Backend::start();
    for _ in 0..5 {
        let proxy = Setup::new(&app, SLOW_ONLY).launch();
        // The listeners open after the file was read, and before the process looks for changes.
        until("the listener to open", || TcpStream::connect(proxy.address).is_ok());
        fs::write(&proxy.file, proxy.text("[[routes]]\nname = \"new\"\npath = \"/new\"\n")).unwrap();
        let proxy = proxy.ready();
        until("the new route to be in force", || {
            proxy.get("/new");
            proxy.metric("outrigger_requests_total", &[("route", "new")]) > 0.0
        });
    }
}

#[test]
fn a_mistake_is_reported_with_its_position_and_the_previous_rules_stay() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_head = \"1KiB\"\n");
    fs::write(&proxy.file, proxy.text("client.max_hed = \"2KiB\"\n")).unwrap();
    until("the refusal", || proxy.metric("outrigger_config_reloads_total", &[("result", "refused")]) == 1.0);

    let line = proxy.says("the changed configuration is rejected");
    let checked = proxy.run(&["check", proxy.file.to_str().unwrap()]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(78));
    assert!(said.contains("unknown key `max_hed`") && said.contains("did you mean `max_head`?"), "{said}");
    for part in said.lines().filter(|part| !part.trim().is_empty()) {
        let in_json = serde_json::to_string(part).unwrap();
        assert!(line.contains(in_json.trim_matches('"')), "the log does not say {part:?}: {line}");
    }
    assert_eq!(proxy.metric("outrigger_config_version", &[]), 1.0);
    proxy
        .ask(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1100)))
        .is_problem(431, "head_too_large");

    fs::write(&proxy.file, proxy.text("client.max_head = \"2KiB\"\n")).unwrap();
    version_becomes(&proxy, 2.0);
}

#[test]
fn settings_that_cannot_change_live_are_reported() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let moved = fs::read_to_string(&proxy.file).unwrap().replace(&proxy.address.to_string(), "127.0.0.1:1");
    fs::write(&proxy.file, moved).unwrap();
    assert!(proxy.says("take effect at the next start").contains("server.listen"));
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn fifty_changes_under_load_fail_no_request() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let (stop, failed, done) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, failed, done, address) =
                (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&done), proxy.address);
            thread::spawn(move || {
                let mut client = Client::connect(address).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let is_fine = client.send(get("/x")).try_answer().is_ok_and(|answer| answer.status == 200);
                    done.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(usize::from(!is_fine), Ordering::Relaxed);
                }
            })
        })
        .collect();
    for change in 0..50 {
        fs::write(&proxy.file, proxy.text(&format!("client.max_fields = {}\n", 100 + change))).unwrap();
        let version = f64::from(change) + 2.0;
        until("the change to be in force", || proxy.metric("outrigger_config_version", &[]) == version);
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {}", done.load(Ordering::Relaxed));
    assert!(done.load(Ordering::Relaxed) > 100);
}

#[test]
fn the_environment_wins_over_the_file() {
    let app = Backend::start();
    let port = xtask::ports::free().unwrap();
    let proxy = Setup::new(&app, "").env("OUTRIGGER_APP_ADDRESS", &format!("127.0.0.1:{port}")).start();
    proxy.get("/").is_problem(502, "app_unreachable");
    let wrong = Setup::new(&app, "").env("OUTRIGGER_LISTEN", "8080").run(&["check", "proxy.toml"]);
    assert_eq!(wrong.status.code(), Some(78));
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(
        said.starts_with("error: environment, OUTRIGGER_LISTEN: `listen` needs an address and a port, got \"8080\""),
        "{said}"
    );
}

#[test]
fn a_process_that_cannot_start_says_why() {
    let app = Backend::start();
    let wrong = Setup::new(&app, "[limits]\nper_minute = 3\n");
    let refused = wrong.run(&["run", "--config", "proxy.toml"]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("unknown section `limits`"));

    let taken = Setup::new(&app, "");
    let _holder = TcpListener::bind(taken.address).unwrap();
    let failed = taken.run(&["run", "--config", "proxy.toml"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("server.listen") && said.contains("another process has the port"), "{said}");

    let missing = taken.run(&["check", "no-such-file.toml"]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-file.toml: cannot be read"));
}

#[test]
fn the_commands_work() {
    let app = Backend::start();
    let setup = Setup::new(
        &app,
        "[[routes]]\nname = \"login\"\npath = \"/login\"\nmethods = [\"POST\"]\npriority = \"critical\"\n",
    );
    let ask = |args: &[&str]| {
        let output = setup.run(&[&["--config", "proxy.toml"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ask(&["check"]).contains("valid, 1 routes"));
    let explained = ask(&["explain", "POST", "/login?next=/", "-H", "Host: a"]);
    assert!(explained.contains("route          login") && explained.contains("priority       critical"), "{explained}");
    let schema: serde_json::Value = serde_json::from_str(&ask(&["schema"])).unwrap();
    assert!(schema["properties"]["server"].is_object());
    assert!(ask(&["--version"]).starts_with("outrigger "));
    assert!(ask(&["completions", "bash"]).contains("complete"));
    let wrong = setup.run(&["--config", "proxy.toml", "explain", "post", "/"]);
    assert_eq!(wrong.status.code(), Some(1));
}

#[test]
fn a_request_in_flight_finishes_under_the_rules_it_began_with() {
    let app = Backend::start();
    let gate = app.gate("/slow");
    let proxy = Proxy::with(&app, "app.timeout = \"30s\"\n");
    let mut client = proxy.connect();
    client.send(get("/slow"));
    app.gets(1, "/slow");
    fs::write(&proxy.file, proxy.text("app.timeout = \"1ms\"\n")).unwrap();
    version_becomes(&proxy, 2.0);
    proxy.get("/slow").is_problem(504, "app_timeout");
    gate.add_permits(1);
    assert_eq!(client.answer().status, 200);
    wait::until("rest", Duration::from_secs(5), || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0).unwrap();
}

#[test]
fn all_mistakes_are_reported_at_once_with_position_and_suggestion() {
    let app = Backend::start();
    let rules = "client.head_timeout = 10\nclient.max_hed = \"1KiB\"\nserver.threads = 300\n[limits]\n[caching]\n[shadow]\n\
                 [quotas]\n[[routes]]\nname = \"a\"\npath = \"/api\"\npriorty = \"high\"\n";
    let setup = Setup::new(&app, "");
    fs::write(&setup.file, rules).unwrap();
    let checked = setup.run(&["check", "proxy.toml"]);
    assert_eq!(checked.status.code(), Some(78));
    let said = String::from_utf8(checked.stderr).unwrap();
    let places = [
        ("proxy.toml:1:23", "`head_timeout`"),
        ("proxy.toml:2:8", "`max_hed`"),
        ("proxy.toml:3:18", "`threads`"),
        ("proxy.toml:4:2", "unknown section `limits`"),
        ("proxy.toml:5:2", "unknown section `caching`"),
        ("proxy.toml:6:2", "unknown section `shadow`"),
        ("proxy.toml:7:2", "unknown section `quotas`"),
        ("proxy.toml:11:1", "`priorty`"),
    ];
    for (place, problem) in places {
        let arrow = format!("--> {place}\n");
        let found = said.split("\n\n").any(|error| error.contains(&arrow) && error.contains(problem));
        assert!(found, "no {problem} at {place} in:\n{said}");
    }
    assert!(said.contains("did you mean `max_head`?") && said.contains("did you mean `priority`?"), "{said}");
    assert_eq!(said.matches("hint: ").count(), places.len(), "{said}");
}
