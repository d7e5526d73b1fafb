//! The app's address: without a config file, by name, moved, or only on this host.

mod loops;
mod names;
mod resources;

use std::{
    fs,
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::Backend,
    harness::{Client, Form, Proxy, Setup, every_form, get, until},
};

#[test]
fn without_a_file_every_default_is_in_force_until_there_is_one() {
    let app = Backend::start();
    let setup = Setup::new(&app, "");
    fs::remove_file(&setup.file).unwrap();
    let file = setup.dir.join("config/proxy.toml");
    let (listen, admin) = (setup.address.to_string(), setup.admin.to_string());
    let setup = setup.env("OUTRIGGER_LISTEN", &listen).env("OUTRIGGER_ADMIN_LISTEN", &admin);
    let setup = setup.env("OUTRIGGER_APP_ADDRESS", &app.address()).env("OUTRIGGER_CONFIG", "");
    let checked = setup.run(&["check"]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && said.contains("config/proxy.toml does not exist"), "{said}");

    let proxy = setup.start_without_naming_a_file();
    assert!(proxy.says("config/proxy.toml does not exist").contains("all settings have their defaults"));
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(proxy.metric("outrigger_config_reloads_total", &[]), 0.0);

    let version = |number: f64| until("the version", || proxy.metric("outrigger_config_version", &[]) == number);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "client.max_head = \"1KiB\"\n").unwrap();
    version(2.0);
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1100));
    proxy.ask(&long).is_problem(431, "head_too_large");

    fs::remove_file(&file).unwrap();
    proxy.says("there is no configuration file, the current configuration stays in force");
    proxy.ask(&long).is_problem(431, "head_too_large");
    fs::write(&file, "client.max_head = \"2KiB\"\n").unwrap();
    version(3.0);
    assert_eq!(proxy.ask(&long).status, 200);
    assert_eq!(proxy.metric("outrigger_config_reloads_total", &[("result", "refused")]), 0.0);
}

#[test]
fn a_file_that_was_named_has_to_be_there() {
    let setup = Setup::new(&Backend::start(), "");
    let missing = setup.dir.join("missing.toml");
    let missing = missing.to_str().unwrap();
    let by_variable = setup.clone().env("OUTRIGGER_CONFIG", missing);
    for (setup, args) in [
        (&setup, &["run", "--config", missing][..]),
        (&setup, &["check", missing][..]),
        (&by_variable, &["run"][..]),
        (&by_variable, &["check"][..]),
    ] {
        let ended = setup.run(args);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(78), "{args:?}: {said}");
        assert!(said.contains("missing.toml") && said.contains("cannot be read") && said.contains("hint:"), "{said}");
    }
}

/// Saves the proxy's rules with another `app.address`.
fn moves_to(proxy: &Proxy, address: &str) {
    let rules = fs::read_to_string(&proxy.file).unwrap();
    let line = rules.lines().find(|line| line.starts_with("app.address")).unwrap();
    fs::write(&proxy.file, rules.replace(line, &format!("app.address = \"{address}\""))).unwrap();
}

/// A request in every form waits, the app moves to `app`, and they are served there.
fn follow(proxy: &Proxy, app: &Backend) {
    let waiting: Vec<_> = every_form("/held")
        .into_iter()
        .map(|request| {
            let mut client = proxy.connect();
            client.send(&request);
            client
        })
        .collect();
    let in_flight = || proxy.metric("outrigger_requests_in_flight", &[]);
    until("all to be in flight", || in_flight() == Form::NUMBER as f64);
    let moved = Instant::now();
    moves_to(proxy, &app.address());
    for mut client in waiting {
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // The proxy checks the file ten times a second, and reads it once it is stable.
    assert!(moved.elapsed() < Duration::from_secs(3), "{:?}", moved.elapsed());
    assert_eq!(app.requests_to("/held"), Form::NUMBER);
    assert_eq!(proxy.get("/new").status, 200);
    proxy.says("requests go to");
}

#[test]
fn requests_that_wait_for_an_app_follow_it_to_another_address() {
    for to_socket in [false, true] {
        let proxy = Proxy::with(&Backend::stopped(), "app.hold = \"10s\"\napp.timeout = \"12s\"");
        let app = if to_socket { Backend::start_unix(&crate::harness::socket(&proxy.dir)) } else { Backend::start() };
        follow(&proxy, &app);
        let away = proxy.log().matches("\"event\":\"app_away\"").count();
        assert_eq!(away, 1, "the app was away once");
    }
}

#[test]
fn requests_that_are_connecting_follow_the_app_to_another_address() {
    // Its accept queue is full, so connecting takes forever, as to a host that is down.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    rustix::net::listen(&silent, 0).unwrap();
    let mut fillers = Vec::new();
    while let Ok(filler) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        fillers.push(filler);
    }
    let rules = "app.hold = \"0s\"\napp.connect_timeout = \"10s\"\napp.timeout = \"12s\"";
    let app = Backend::start();
    let setup = Setup::new(&app, rules).app_at(&address.to_string(), rules);
    follow(&setup.start(), &app);
}

#[test]
fn kept_connections_to_a_former_address_are_closed_unused() {
    let (before, after) = (Backend::start(), Backend::start());
    let proxy = Proxy::with(&before, "app.idle_timeout = \"1h\"");
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(before.open_connections(), 1);
    moves_to(&proxy, &after.address());
    proxy.says("requests go to");
    for _ in 0..4 {
        assert_eq!(proxy.get("/").status, 200);
    }
    assert_eq!((before.requests(), after.requests()), (1, 4));
    until("the connection to be closed", || before.open_connections() == 0);
}

#[test]
fn repeated_address_changes_do_not_extend_the_hold() {
    let apps = [Backend::start(), Backend::start()];
    let proxy = Proxy::start(&apps[0]);
    let asking = {
        let (address, h2c) = (proxy.address, proxy.h2c);
        thread::spawn(move || {
            let began = Instant::now();
            let mut longest = Duration::ZERO;
            while began.elapsed() < Duration::from_secs(3) {
                for request in every_form("/") {
                    let asked = Instant::now();
                    let answer = Client::connect(address).unwrap().with_h2c(h2c).send(&request).answer();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    longest = longest.max(asked.elapsed());
                }
            }
            longest
        })
    };
    for round in 1..8 {
        moves_to(&proxy, &apps[round % 2].address());
        until("the change", || proxy.metric("outrigger_config_version", &[]) > round as f64);
    }
    let longest = asking.join().unwrap();
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(apps.iter().all(|app| app.requests() > 0));
    assert_eq!(proxy.ask(&get("/")).status, 200);
}
