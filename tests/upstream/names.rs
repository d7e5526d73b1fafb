//! Names are resolved while requests are served: all their addresses, and again when they change. A file in the place of
//! `/etc/hosts` has the addresses, in the proxy's own mount namespace.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use xtask::ports;

use crate::{
    backend::Backend,
    harness::{Form, Proxy, Setup, every_form, fresh_dir, until},
};

const IN_A_NAMESPACE: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";

/// `None`, with a note, if no namespace can be created.
fn hosts(text: &str) -> Option<PathBuf> {
    if !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success()) {
        println!("no mount namespace can be made: not tried");
        return None;
    }
    let file = fresh_dir().join("hosts");
    fs::write(&file, format!("127.0.0.1 localhost\n{text}")).unwrap();
    Some(file)
}

fn start(hosts: &Path, address: &str, rules: &str) -> Proxy {
    let setup = Setup::new(&Backend::start(), rules).app_at(address, rules);
    setup.through(&["unshare", "-m", "sh", "-c", IN_A_NAMESPACE, hosts.to_str().unwrap()]).start()
}

fn on(ip: &str, port: u16) -> Backend {
    Backend::start_at(SocketAddr::new(ip.parse().unwrap(), port))
}

#[test]
fn every_address_of_a_name_is_tried() {
    for order in [["127.0.0.1", "127.0.0.9"], ["127.0.0.9", "127.0.0.1"]] {
        let [first, second] = order;
        let Some(hosts) = hosts(&format!("{first} app.test\n{second} app.test\n")) else { return };
        let app = on("127.0.0.1", ports::free().unwrap());
        let port = app.address().rsplit_once(':').unwrap().1.to_owned();
        let proxy = start(&hosts, &format!("app.test:{port}"), "app.hold = \"0s\"");
        for request in every_form("/") {
            assert_eq!(proxy.ask(&request).status, 200);
        }
        assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0);
    }
}

#[test]
fn localhost_is_either_loopback_address() {
    for ip in ["127.0.0.1", "::1"] {
        let port = ports::free().unwrap();
        if std::net::TcpListener::bind((ip, 0)).is_err() {
            println!("this host has no {ip}: not tried");
            continue;
        }
        let app = on(ip, port);
        let rules = "app.hold = \"0s\"";
        let proxy = Setup::new(&app, rules).app_at(&format!("localhost:{port}"), rules).start();
        for request in every_form("/") {
            assert_eq!(proxy.ask(&request).status, 200, "{ip}");
        }
    }
}

#[test]
fn an_unknown_name_is_used_once_it_resolves_and_changes_are_followed() {
    let Some(hosts) = hosts("") else { return };
    let port = ports::free().unwrap();
    let (here, there) = (on("127.0.0.7", port), on("127.0.0.8", port));
    let proxy = start(&hosts, &format!("app.test:{port}"), "app.hold = \"10s\"\napp.timeout = \"12s\"");
    proxy.says("no address is found for app.test");
    let mut waiting: Vec<_> = every_form("/")
        .into_iter()
        .map(|request| {
            let mut client = proxy.connect();
            client.send(&request);
            client
        })
        .collect();
    let in_flight = || proxy.metric("outrigger_requests_in_flight", &[]);
    until("all to be in flight", || in_flight() == Form::NUMBER as f64);
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.7 app.test\n").unwrap();
    for client in &mut waiting {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(here.requests(), Form::NUMBER);
    assert!(proxy.metric("outrigger_name_lookups_failed_total", &[]) >= 1.0);

    // The address changes while the old one still works: requests follow the name.
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.8 app.test\n").unwrap();
    until("requests to go to the new address", || {
        assert_eq!(proxy.get("/").status, 200);
        there.requests() > 0
    });
    until("connections to the old one to be closed", || here.open_connections() == 0);

    // A name that no longer resolves does not mean that the app is down.
    let said = proxy.log().matches("no address is found").count();
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    until("the lookup to fail", || proxy.log().matches("no address is found").count() > said);
    for request in every_form("/") {
        assert_eq!(proxy.ask(&request).status, 200);
    }
}

#[test]
fn an_unknown_name_is_accepted_and_without_hold_a_502() {
    let rules = "app.hold = \"0s\"\napp.metrics = \"http://metrics.invalid:1/metrics\"";
    let setup = Setup::new(&Backend::start(), rules).app_at("app.invalid:80", rules);
    let checked = setup.run(&["check", setup.file.to_str().unwrap()]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{said}");
    assert!(said.contains("note: app.invalid:80 has no address now"), "{said}");
    let proxy = setup.start();
    for request in every_form("/") {
        proxy.ask(&request).is_problem(502, "app_unreachable");
    }
    assert!(proxy.admin("/metrics/all").body.contains("outrigger_app_metrics_up{process=\"proxy\"} 0"));
}
