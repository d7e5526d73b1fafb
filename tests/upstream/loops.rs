//! An upstream that leads back to the proxy: rejected where the config shows it, detected by `Via` where it does not.

use std::{fs, net::SocketAddr, time::Duration};

use xtask::ports;

use crate::{
    backend::Backend,
    harness::{Client, Form, Proxy, Setup, every_form, get, until, with_fields},
};

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::free().unwrap()))
}

#[test]
fn an_upstream_that_is_our_listener_is_rejected_with_its_position() {
    let setup = Setup::new(&Backend::start(), "");
    let file = setup.dir.join("checked.toml");
    let keys = "[affinity]\n[peers]\nlisten = \"127.0.0.1:3083\"\n";
    for (text, line, key) in [
        ("server.listen = \"127.0.0.1:3080\"\napp.address = \"127.0.0.1:3080\"\n", 2, "server.listen"),
        ("server.listen = \"0.0.0.0:3080\"\napp.address = \"127.0.0.1:3080\"\n", 2, "server.listen"),
        ("server.listen = \"0.0.0.0:3080\"\napp.address = \"localhost:3080\"\n", 2, "server.listen"),
        ("server.listen = \"127.0.0.1:3080\"\napp.address = \"LOCALHOST.:3080\"\n", 2, "server.listen"),
        ("server.listen = \"[::]:3080\"\napp.address = \"[::1]:3080\"\n", 2, "server.listen"),
        ("server.listen = \"[::]:3080\"\napp.address = \"127.0.0.1:3080\"\n", 2, "server.listen"),
        ("server.h2c_listen = \"127.0.0.1:3082\"\napp.address = \"127.0.0.1:3082\"\n", 2, "server.h2c_listen"),
        ("admin.listen = \"0.0.0.0:3091\"\napp.address = \"localhost:3091\"\n", 2, "admin.listen"),
        ("admin.listen = \"127.0.0.1:3091\"\napp.metrics = \"http://localhost:3091/metrics\"\n", 2, "admin.listen"),
        ("app.metrics = \"http://127.0.0.1:8080/metrics\"\n", 1, "server.listen"),
        (&format!("app.address = \"127.0.0.1:3083\"\n{keys}list = [\"10.0.0.1:3083\"]\n"), 1, "peers.listen"),
        (&format!("{keys}list = [\"10.0.0.1:3083\", \"127.0.0.1:8080\"]\n"), 4, "server.listen"),
    ] {
        fs::write(&file, text).unwrap();
        let setup = setup.clone().env("OUTRIGGER_AFFINITY_KEYS", "0123456789abcdef0123456789abcdef");
        let setup = setup.env("OUTRIGGER_MACHINE", "a");
        for command in ["check", "run"] {
            let ended = setup.run(if command == "check" {
                &["check", "checked.toml"]
            } else {
                &["run", "--config", "checked.toml"]
            });
            let said = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(ended.status.code(), Some(78), "{text}: {said}");
            assert!(said.contains(&format!("checked.toml:{line}:")) && said.contains(key), "{text}: {said}");
            assert!(said.contains("hint:"), "{said}");
        }
    }
    // This Machine is usually among its peers.
    fs::write(&file, format!("{keys}list = [\"127.0.0.1:3083\", \"10.0.0.1:3083\"]\n")).unwrap();
    let setup = setup.env("OUTRIGGER_AFFINITY_KEYS", "0123456789abcdef0123456789abcdef").env("OUTRIGGER_MACHINE", "a");
    assert!(setup.run(&["check", "checked.toml"]).status.success());
    let setup = setup.env("OUTRIGGER_APP_ADDRESS", "localhost:8080");
    let said = String::from_utf8(setup.run(&["check", "checked.toml"]).stderr).unwrap();
    assert!(said.contains("OUTRIGGER_APP_ADDRESS") && said.contains("server.listen"), "{said}");
}

#[test]
fn an_upstream_changed_to_our_listener_is_rejected_and_the_old_one_stays() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for (index, address) in [proxy.address.to_string(), format!("localhost:{}", proxy.h2c.port())].iter().enumerate() {
        super::moves_to(&proxy, address);
        proxy.counts("outrigger_config_reloads_total", &[("result", "refused")], index + 1);
        assert!(proxy.says("the changed configuration is rejected").contains("this proxy itself"));
        assert_eq!(proxy.get("/").status, 200);
    }
    // The process's current listeners count, not those that the file sets for the next start.
    let rules = fs::read_to_string(&proxy.file).unwrap();
    let moved =
        rules.replace(&format!("server.listen = \"{}\"", proxy.address), &format!("server.listen = \"{}\"", local()));
    fs::write(&proxy.file, moved).unwrap();
    proxy.counts("outrigger_config_reloads_total", &[("result", "refused")], 3);
    super::moves_to(&proxy, &proxy.address.to_string());
    proxy.counts("outrigger_config_reloads_total", &[("result", "refused")], 4);
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn requests_have_via_of_every_proxy() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let name = proxy.get("/").seen("via").unwrap();
    assert!(name.starts_with("1.1 outrigger-"), "{name}");
    for form in Form::ALL {
        let answer = form.ask(&proxy, "/");
        let via = name.replacen("1.1", form.version(), 1);
        assert_eq!(answer.seen("via").unwrap(), via);
        assert_eq!((answer.header("via"), answer.seen("cdn-loop")), (None, None));
        let answer = proxy.ask(&with_fields(&form.request("/"), &["Via: 1.0 fred", "VIA: 1.1 p.example.net"]));
        assert_eq!(answer.seen("via").unwrap(), format!("1.0 fred, 1.1 p.example.net, {via}"));
    }

    proxy.changes_to("headers.via = false");
    for request in every_form("/") {
        let answer = proxy.ask(&with_fields(&request, &["Via: 1.0 fred", "CDN-Loop: a"]));
        assert_eq!(answer.seen("via").unwrap(), "1.0 fred");
        assert_eq!(answer.seen("cdn-loop").unwrap(), name.replace("1.1 ", "a, "));
    }
}

#[test]
fn a_request_that_comes_back_is_a_508() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let via = proxy.get("/").seen("via").unwrap();
    let before = app.requests();
    for request in every_form("/") {
        for field in [format!("Via: 1.0 fred, {via} (x), 1.1 other"), format!("CDN-Loop: a; b=1, {}", &via[4..])] {
            proxy.ask(&with_fields(&request, &[&field])).is_problem(508, "loop_detected");
        }
    }
    proxy.counts_rejections("loop_detected", 2 * Form::NUMBER);
    proxy.has_receipt("loop_detected", "app.address");
    assert_eq!(app.requests(), before);
}

#[test]
fn chained_proxies_work_and_a_loop_ends_at_once() {
    let app = Backend::start();
    let inner = Proxy::start(&app);
    let outer = Setup::new(&app, "").app_at(&inner.address.to_string(), "").start();
    for request in every_form("/") {
        let answer = outer.ask(&request);
        assert_eq!((answer.status, answer.seen("via").unwrap().matches("outrigger-").count()), (200, 2), "{answer:?}");
    }
    // Now the inner proxy forwards to the outer one.
    super::moves_to(&inner, &outer.address.to_string());
    inner.says("requests go to");
    outer.comes_to_rest();
    let made = |proxy: &Proxy| proxy.metric("outrigger_connections_total", &[]);
    let before = (made(&outer), made(&inner));
    for _ in 0..2 {
        for request in every_form("/") {
            // The outer proxy rejects the returning request, which has another id; this rejection becomes the response to the
            // first one.
            let answer = outer.ask(&request);
            let problem = answer.json();
            assert_eq!((answer.status, answer.header("content-type")), (508, Some("application/problem+json")));
            assert_eq!(problem["type"], "urn:outrigger:problem:loop-detected", "{problem}");
            assert_eq!(problem["status"], 508, "{problem}");
            let (refused, answered) = (problem["request_id"].as_str().unwrap(), answer.header("x-request-id").unwrap());
            assert_ne!(refused, answered);
            assert!(outer.says(&format!("\"request_id\":\"{refused}\"")).contains("\"reason\":\"loop_detected\""));
            assert!(outer.says(&format!("\"request_id\":\"{answered}\"")).contains("\"attempts\":1"));
        }
    }
    outer.counts_rejections("loop_detected", 2 * Form::NUMBER);
    let made = (made(&outer) - before.0, made(&inner) - before.1);
    let requests = 2.0 * Form::NUMBER as f64;
    // Those of the client, which has two of them for each of four requests over HTTP/2, and those of the inner proxy.
    assert!(made.0 <= 2.0 * requests + 4.0 && made.1 <= requests, "{requests} requests made {made:?} connections");
    // No breaker of the outer proxy opens, since the inner one responds.
    assert_eq!(outer.metric("outrigger_breaker_state", &[("state", "open")]), 0.0);
}

#[test]
fn a_name_that_later_resolves_to_the_proxy_is_a_508() {
    let hosts = crate::harness::fresh_dir().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    if !std::process::Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success()) {
        println!("no mount namespace can be made: not tried");
        return;
    }
    let rules = "app.hold = \"0s\"";
    let setup = Setup::new(&Backend::start(), rules);
    let address = format!("app.test:{}", setup.address.port());
    let setup = setup.app_at(&address, rules);
    let proxy = setup.through(&["unshare", "-m", "sh", "-c", script, hosts.to_str().unwrap()]).start();
    for request in every_form("/") {
        proxy.ask(&request).is_problem(502, "app_unreachable");
    }
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.1 app.test\n").unwrap();
    proxy.says("this proxy itself: that one is not used");
    for request in every_form("/") {
        proxy.ask(&request).is_problem(508, "loop_detected");
    }
    let mut client = Client::connect(proxy.address).unwrap();
    until("the proxy to serve others", || client.send(get("/")).answer().status == 508);
    assert!(!client.stays_silent_for(Duration::ZERO) || proxy.metric("outrigger_connections_total", &[]) < 20.0);
}
