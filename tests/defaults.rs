//! With an empty config file the proxy changes nothing that an app or its users would notice.

use std::fs;

use crate::{
    backend::Backend,
    harness::{Form, Setup, from_address, get, with_fields},
};

/// A proxy whose config file has no key; environment variables set the addresses.
pub fn with_empty_file(app: &Backend) -> Setup {
    with_file(app, "# All defaults.\n")
}

/// The same with this config file.
pub fn with_file(app: &Backend, text: &str) -> Setup {
    let setup = Setup::new(app, "");
    fs::write(&setup.file, text).expect("the file can be written");
    let (address, h2c, admin) = (setup.address.to_string(), setup.h2c.to_string(), setup.admin.to_string());
    setup
        .env("OUTRIGGER_LISTEN", &address)
        .env("OUTRIGGER_H2C_LISTEN", &h2c)
        .env("OUTRIGGER_ADMIN_LISTEN", &admin)
        .env("OUTRIGGER_APP_ADDRESS", &app.address())
}

#[test]
fn a_page_with_many_parts_loads_repeatedly() {
    const PARTS: usize = 40;
    let app = Backend::start();
    let proxy = with_empty_file(&app).start();
    let loads = |ask: &mut dyn FnMut(&str) -> (u16, Vec<String>)| {
        for path in (0..3).flat_map(|_| std::iter::once("/".to_owned()).chain((0..PARTS).map(|n| format!("/part/{n}"))))
        {
            let (status, names) = ask(&path);
            assert_eq!(status, 200, "{path}");
            assert!(!names.iter().any(|name| name.contains("ratelimit") || name == "retry-after"), "{names:?}");
        }
    };
    Form::at_once(&Form::ALL, |form| {
        let mut client = proxy.connect();
        loads(&mut |path| {
            let answer = client.send(form.request(path)).answer();
            (answer.status, answer.headers.into_keys().collect())
        });
    });
    // `monitor` counts the requests that `enforce` would reject.
    let labels = [("reason", "quota_exceeded"), ("mode", "monitor")];
    assert!(proxy.metric("outrigger_refusals_total", &labels) > 100.0);
    assert_eq!(proxy.metric("outrigger_refusals_total", &[("mode", "enforce")]), 0.0);
    proxy.says("rate limits reject no request");
}

#[test]
fn a_section_of_rate_limits_enforces_them_at_once() {
    let app = Backend::start();
    let proxy = with_empty_file(&app).start();
    let statuses = |times: usize| {
        let mut client = proxy.connect();
        (0..times).map(|_| client.send(get("/")).answer().status).filter(|status| *status == 429).count()
    };
    assert_eq!(statuses(150), 0);
    let version = proxy.metric("outrigger_config_version", &[]);
    fs::write(&proxy.file, "[rate_limits]\n").unwrap();
    crate::harness::until("the change to be in force", || proxy.metric("outrigger_config_version", &[]) > version);
    assert!(statuses(150) > 40);
}

/// A request from a client of Fly's edge, which runs on this machine.
fn by_edge(request: &str, client: &str) -> String {
    let list = format!("X-Forwarded-For: 6.6.6.6, {client}, 66.241.124.1");
    with_fields(&from_address(request, client), &[&list, "Fly-Forwarded-Proto: https", "Fly-Request-Id: 01ABC-ams"])
}

#[test]
fn on_fly_130_clients_count_as_130() {
    const CLIENTS: usize = 130;
    let app = Backend::start();
    let shipped = include_str!("../config/proxy.toml");
    for (text, shows_limits) in [("# All defaults.\n", false), (shipped, true)] {
        let proxy = with_file(&app, text).env("FLY_APP_NAME", "shop").start();
        let mut edge = proxy.connect();
        for round in 0..3_usize {
            for n in 0..CLIENTS {
                let client = format!("203.0.113.{n}");
                let answer = edge.send(by_edge(&Form::nth(n + round).request("/"), &client)).answer();
                assert_eq!(answer.status, 200, "{client}: {answer:?}");
                assert_eq!(answer.seen("x-forwarded-for"), Some(format!("{client}, 127.0.0.1")));
                assert_eq!(answer.seen("fly-client-ip"), Some(client));
                assert_eq!(answer.seen("x-forwarded-proto").as_deref(), Some("https"));
                if shows_limits {
                    let limits = crate::limits::parsed(&answer, "ratelimit");
                    let remaining = limits["medium"]["r"];
                    assert!((99 - round as i64..=99).contains(&remaining), "nobody else's requests count: {limits:?}");
                }
            }
        }
        // Each client is identified separately, and there is no warning.
        assert_eq!(proxy.metric("outrigger_refusals_total", &[]), 0.0);
        assert_eq!(proxy.metric("outrigger_unbelieved_client_addresses", &[]), 0.0);
        assert!(!proxy.log().contains("count as one client"));
    }
}

#[test]
fn an_untrusted_proxy_in_front_is_detected() {
    const CLIENTS: usize = 60;
    let app = Backend::start();
    for header in ["X-Forwarded-For", "CF-Connecting-IP"] {
        let proxy = with_empty_file(&app).start();
        let mut nginx = proxy.connect();
        for n in 0..4 * CLIENTS {
            let line = format!("{header}: 203.0.113.{}", n % CLIENTS);
            let answer = nginx.send(with_fields(&Form::nth(n).request("/"), &[&line])).answer();
            assert_eq!(answer.status, 200);
        }
        let told = proxy.says("count as one client");
        let name = header.to_ascii_lowercase();
        assert!(told.contains("identity.trusted = [\\\"127.0.0.1/32\\\"]"), "{told}");
        assert!(told.to_ascii_lowercase().contains(&format!("identity.edge = \\\"{name}\\\"")), "{told}");
        assert_eq!(proxy.log().matches("count as one client").count(), 1, "once a minute");
        let shown = proxy.metric("outrigger_unbelieved_client_addresses", &[]);
        assert!((45.0..=75.0).contains(&shown), "about {CLIENTS}: {shown}");
    }
    // A single client without a proxy in front gives no warning.
    let proxy = with_empty_file(&app).start();
    for n in 0..50 {
        proxy.ask(&with_fields(&Form::nth(n).request("/"), &["X-Forwarded-For: 203.0.113.1"]));
    }
    assert!(proxy.metric("outrigger_unbelieved_client_addresses", &[]) < 2.0);
    assert!(!proxy.log().contains("count as one client"));
}

#[test]
fn settings_that_make_all_clients_one_cause_a_warning() {
    let app = Backend::start();
    let on_fly = with_file(&app, "[identity]\nedge = \"none\"\n").env("FLY_APP_NAME", "shop");
    let file = on_fly.file.to_str().unwrap().to_owned();
    let checked = on_fly.run(&["check", &file]);
    assert_eq!(checked.status.code(), Some(0), "it works");
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(said.contains("warning: ") && said.contains("all clients count as one"), "{said}");
    let explained = on_fly.run(&[
        "--config",
        &file,
        "explain",
        "GET",
        "/",
        "--from",
        "172.16.0.9",
        "-H",
        "Fly-Client-IP: 203.0.113.1",
    ]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(!explained.contains("203.0.113.1"), "{explained}");
    on_fly.start().says("all clients count as one");

    let right = with_empty_file(&app).env("FLY_APP_NAME", "shop");
    let file = right.file.to_str().unwrap().to_owned();
    assert!(right.run(&["check", &file]).stderr.is_empty());
    let args = ["--config", &file, "explain", "GET", "/", "--from", "172.16.0.9", "-H", "Fly-Client-IP: 203.0.113.1"];
    let explain = |args: &[&str]| String::from_utf8_lossy(&right.run(args).stdout).into_owned();
    assert!(explain(&args).contains("203.0.113.1: from fly-client-ip"), "{}", explain(&args));
    // The private network between Machines is IPv6, and the edge does not use it.
    let args = args.map(|arg| if arg == "172.16.0.9" { "fdaa:0:1:a7b::3" } else { arg });
    assert!(explain(&args).contains("fdaa:0:1:a7b::3: the connection"), "{}", explain(&args));
}
