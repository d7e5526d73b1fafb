//! Abuse bans: the rejections and failures that lead to a ban, its length, and the operators' controls.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::harness::{Answer, Client, Form, Proxy, Setup, every_form, from_address, get, sha256, until, with_fields};
use crate::limits::{EDGE, NO_DEFAULTS, rule};

const ENFORCE: &str = "abuse.mode = \"enforce\"\n";
/// A limit of five per kind in an hour; in these tests, an hour outlasts the test.
const FIVE: &str = "abuse.refusals = \"5/1h\"\nabuse.login_failures = \"5/1h\"\nabuse.not_found = \"5/1h\"\n";

/// An app with a path for each response that counts towards a ban.
fn refusing_app() -> Backend {
    let app = Backend::start();
    for status in [401, 403, 404] {
        app.says(&format!("/{status}"), &format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"));
    }
    app
}

#[track_caller]
fn is_banned(answer: &Answer) {
    answer.is_problem(403, "abnormal_usage_detected");
    assert!(answer.stays_open(), "{answer:?}");
}

/// Asks the admin listener for a change.
fn admin(proxy: &Proxy, method: &str, path: &str, fields: &[&str], body: &str) -> Answer {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Client::connect(proxy.admin).unwrap().send(with_fields(&request, fields)).answer()
}

fn bans(proxy: &Proxy) -> Vec<Value> {
    proxy.shows("/bans")["bans"].as_array().expect("a list").clone()
}

/// Bans a client as an operator.
#[track_caller]
pub fn ban(proxy: &Proxy, client: &str, length: &str) {
    let answer = admin(proxy, "POST", "/bans", &[], &json!({ "client": client, "for": length }).to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.json()["client"], client);
}

#[test]
fn scanners_password_guessers_and_persistent_clients_are_banned() {
    let app = refusing_app();
    let rules = format!("{EDGE}{ENFORCE}{FIVE}abuse.ban = \"1h\"\n{NO_DEFAULTS}");
    let rules = format!(
        "{rules}{}[[routes]]\nname = \"rare\"\npath = \"/rare\"\n",
        rule("rare", "1/1h", "routes = [\"rare\"]")
    );
    let proxy = Proxy::with(&app, &rules);
    let kinds: [(&str, &[&str], u16); 3] =
        [("not_found", &["/404"], 404), ("login_failures", &["/401", "/403"], 0), ("refusals", &["/rare"], 429)];
    for ((reason, paths, status), form) in kinds.into_iter().flat_map(|kind| Form::ALL.map(|form| (kind, form))) {
        let address = format!("203.0.113.{}", bans(&proxy).len());
        let mut client = proxy.connect();
        let mut ask = |path: &str| client.send(from_address(&form.request(path), &address)).answer();
        if reason == "refusals" {
            assert_eq!(ask("/rare").status, 200);
        }
        // The limit allows five; the sixth leads to a ban.
        for n in 0..6 {
            assert_eq!(ask("/").status, 200, "{reason}: after {n}");
            let answer = ask(paths[n % paths.len()]);
            assert!(answer.status == status || (status == 0 && matches!(answer.status, 401 | 403)), "{answer:?}");
        }
        until("the ban to be listed", || bans(&proxy).iter().any(|ban| ban["client"] == format!("address:{address}")));
        let before = app.requests();
        for path in ["/", "/404", "/rare", "/elsewhere"] {
            let answer = ask(path);
            is_banned(&answer);
            let left = answer.number("retry-after");
            assert!((3590..=3600).contains(&left), "{left}");
        }
        assert_eq!(app.requests(), before, "the app has rest");
        assert_eq!(ask("/health/live").status, 200);
        let answer = proxy.ask(&from_address(&form.request("/"), "198.51.100.1"));
        assert_eq!(answer.status, 200, "others are not affected");
    }
    for (reason, ..) in kinds {
        proxy.counts("outrigger_bans_total", &[("reason", reason), ("mode", "enforce")], Form::NUMBER);
    }
    let banned = kinds.len() * Form::NUMBER;
    proxy.counts("outrigger_banned_clients", &[], banned);
    proxy.counts_rejections("abnormal_usage_detected", banned * 4);
    proxy.counts("outrigger_refusals_total", &[("reason", "abnormal_usage_detected"), ("mode", "enforce")], banned * 4);
}

#[test]
fn each_ban_is_twice_as_long_up_to_a_bound_and_ends_on_time() {
    let app = refusing_app();
    let rules = format!("{EDGE}{ENFORCE}abuse.not_found = \"1/1h\"\nabuse.ban = \"1s\"\nabuse.max_ban = \"2s\"\n");
    let proxy = Proxy::with(&app, &rules);
    Form::at_once(&Form::ALL, |form| {
        let path = |path: &str| from_address(&form.request(path), &format!("203.0.113.{}", form as u8));
        let mut client = proxy.connect();
        for length in [1, 2] {
            // The limit allows one, and each ban resets the count.
            assert_eq!(client.send(path("/404")).answer().status, 404);
            assert_eq!(client.send(path("/404")).answer().status, 404);
            let answer = client.send(path("/")).answer();
            let asked = Instant::now();
            is_banned(&answer);
            assert_eq!(answer.number("retry-after"), length);
            // Requests during a ban do not extend it.
            is_banned(&client.send(path("/404")).answer());
            thread::sleep((asked + Duration::from_secs(length)).saturating_duration_since(Instant::now()));
            assert_eq!(client.send(path("/")).answer().status, 200);
        }
        assert_eq!(client.send(path("/404")).answer().status, 404);
        assert_eq!(client.send(path("/404")).answer().status, 404);
        let answer = client.send(path("/")).answer();
        is_banned(&answer);
        assert_eq!(answer.number("retry-after"), 2, "that is the longest");
    });
    proxy.counts("outrigger_bans_total", &[("mode", "enforce")], 3 * Form::NUMBER);
    let listed: Vec<_> = bans(&proxy).into_iter().map(|ban| ban["times"].clone()).collect();
    assert_eq!(listed, [3; Form::NUMBER]);
}

#[test]
fn a_network_on_the_list_is_never_banned() {
    let app = refusing_app();
    let rules = format!("{EDGE}{ENFORCE}{FIVE}abuse.allow = [\"203.0.113.0/24\", \"2001:db8::/32\"]\n");
    let proxy = Proxy::with(&app, &rules);
    let asks = |address: &str| {
        let mut client = proxy.connect();
        for n in 0..20 {
            client.send(from_address(&Form::nth(n).request("/404"), address)).answer();
        }
        client.send(from_address(&get("/"), address)).answer()
    };
    assert_eq!(asks("203.0.113.200").status, 200);
    assert_eq!(asks("2001:db8:7::1").status, 200);
    is_banned(&asks("203.0.114.1"));
    proxy.counts("outrigger_bans_total", &[], 1);
}

#[test]
fn by_default_bans_are_only_counted() {
    let app = refusing_app();
    let proxy = Proxy::with(&app, &format!("{FIVE}{NO_DEFAULTS}"));
    for request in every_form("/404") {
        let mut client = proxy.connect();
        for _ in 0..10 {
            assert_eq!(client.send(&request).answer().status, 404);
        }
    }
    proxy.counts("outrigger_bans_total", &[("reason", "not_found"), ("mode", "monitor")], 1);
    // The first five are within the limit, and the sixth still gets its response; `enforce` would have rejected all later ones.
    proxy.counts(
        "outrigger_refusals_total",
        &[("reason", "abnormal_usage_detected"), ("mode", "monitor")],
        10 * Form::NUMBER - 6,
    );
    assert_eq!(proxy.metric("outrigger_refusals_total", &[("mode", "enforce")]), 0.0);
    assert!(proxy.says("a client is banned").contains("\"mode\":\"monitor\""));
}

#[test]
fn an_operator_lists_adds_and_lifts_bans_and_they_hold_in_monitor_too() {
    let app = refusing_app();
    let key = format!("[[identity.keys]]\nname = \"acme\"\nsha256 = \"{}\"\n", sha256("key-1"));
    let proxy = Proxy::with(&app, &format!("{EDGE}{key}"));
    let ask = |address: &str, form: Form, fields: &[&str]| {
        proxy.ask(&from_address(&with_fields(&form.request("/"), fields), address))
    };
    ban(&proxy, "address:203.0.113.1", "1h");
    ban(&proxy, "address:2001:db8:1:2::/64", "2h");
    ban(&proxy, "key:acme", "30m");
    let listed: Vec<_> = bans(&proxy).into_iter().map(|ban| (ban["client"].clone(), ban["reason"].clone())).collect();
    let expected = ["key:acme", "address:203.0.113.1", "address:2001:db8:1:2::/64"];
    assert_eq!(listed, expected.map(|client| (json!(client), json!("operator"))), "the one that ends first is first");
    for form in Form::ALL {
        is_banned(&ask("203.0.113.1", form, &[]));
        is_banned(&ask("203.0.113.1", form, &["X-Api-Key: unknown"]));
        is_banned(&ask("2001:db8:1:2:3::4", form, &[]));
        is_banned(&ask("198.51.100.1", form, &["X-Api-Key: key-1"]));
        assert_eq!(ask("198.51.100.1", form, &[]).status, 200);
        assert_eq!(ask("2001:db8:1:3::4", form, &[]).status, 200);
    }
    for client in ["address:203.0.113.1", "address:2001:db8:1:2::7", "key:acme"] {
        assert_eq!(admin(&proxy, "DELETE", &format!("/bans/{client}"), &[], "").status, 204, "{client}");
    }
    assert!(bans(&proxy).is_empty());
    for form in Form::ALL {
        assert_eq!(ask("203.0.113.1", form, &["X-Api-Key: key-1"]).status, 200);
    }
    let wrong = [
        ("POST", "/bans", "{}", 400),
        ("POST", "/bans", "no JSON", 400),
        ("POST", "/bans", r#"{"client":"203.0.113.1"}"#, 400),
        ("POST", "/bans", r#"{"client":"address:somewhere"}"#, 400),
        ("POST", "/bans", r#"{"client":"address:203.0.113.1","for":"long"}"#, 400),
        ("POST", "/bans", r#"{"client":"address:203.0.113.1","until":"1h"}"#, 400),
        ("DELETE", "/bans/address:203.0.113.1", "", 404),
        ("DELETE", "/bans/nobody", "", 400),
    ];
    for (method, path, body, status) in wrong {
        let answer = admin(&proxy, method, path, &[], body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert!(answer.json()["error"].as_str().is_some_and(|text| text.len() > 10), "{answer:?}");
    }
    assert!(bans(&proxy).is_empty());
    // The default length is one hour.
    let answer = admin(&proxy, "POST", "/bans", &[], r#"{"client":"user:ann"}"#);
    assert_eq!((answer.status, &answer.json()["left_s"]), (201, &json!(3600.0)));
}

#[test]
fn with_a_token_configured_bans_need_it() {
    let app = Backend::start();
    let secret = "a token of the operators, long enough";
    let proxy = Setup::new(&app, "").env("OUTRIGGER_ADMIN_TOKEN", secret).start();
    let body = r#"{"client":"address:203.0.113.1"}"#;
    let wrong =
        [vec![], vec!["Authorization: Bearer wrong".to_owned()], vec![format!("Authorization: Basic {secret}")]];
    for fields in &wrong {
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        for (method, path) in [("POST", "/bans"), ("DELETE", "/bans/address:203.0.113.1"), ("GET", "/bans")] {
            let answer = admin(&proxy, method, path, &fields, if method == "POST" { body } else { "" });
            assert_eq!(answer.status, 401, "{method} {path} {fields:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"outrigger\""));
        }
    }
    let right = format!("Authorization: Bearer {secret}");
    let bans = || admin(&proxy, "GET", "/bans", &[&right], "").json()["bans"].as_array().unwrap().len();
    assert_eq!(bans(), 0);
    assert_eq!(admin(&proxy, "POST", "/bans", &[&right], body).status, 201);
    assert_eq!(bans(), 1);
    assert_eq!(admin(&proxy, "DELETE", "/bans/address:203.0.113.1", &[&right], "").status, 204);
    assert!(!proxy.log().contains(secret));
}

#[test]
fn a_client_pardoned_by_an_operator_starts_with_clean_counters() {
    let app = refusing_app();
    let proxy = Proxy::with(&app, &format!("{ENFORCE}{FIVE}abuse.ban = \"1h\"\n"));
    let mut client = proxy.connect();
    for _ in 0..6 {
        assert_eq!(client.send(get("/404")).answer().status, 404);
    }
    is_banned(&client.send(get("/")).answer());
    assert_eq!(admin(&proxy, "DELETE", "/bans/address:127.0.0.1", &[], "").status, 204);
    for n in 0..5 {
        let status = client.send(get("/404")).answer().status;
        assert_eq!(status, 404, "five are forgiven as at first; this is the answer to the one after {n}");
    }
    assert_eq!(client.send(get("/")).answer().status, 200);
}

#[test]
fn a_full_table_drops_the_ban_that_ends_first() {
    let app = refusing_app();
    let rules = format!("{EDGE}{ENFORCE}abuse.not_found = \"1/1h\"\nabuse.ban = \"10m\"\nabuse.max_bans = 3\n");
    let proxy = Proxy::with(&app, &rules);
    let listed = || bans(&proxy).iter().map(|ban| ban["client"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    for (client, length) in [("user:a", "1h"), ("user:b", "1m"), ("user:c", "3h"), ("user:d", "2h"), ("user:e", "4h")] {
        ban(&proxy, client, length);
    }
    assert_eq!(listed(), ["user:d", "user:c", "user:e"]);
    for n in 0..3 {
        for _ in 0..2 {
            proxy.ask(&from_address(&get("/404"), &format!("203.0.113.{n}")));
        }
    }
    until("the last to be banned", || listed().contains(&"address:203.0.113.2".to_owned()));
    assert_eq!(listed(), ["address:203.0.113.2", "user:c", "user:e"]);
    assert_eq!(proxy.metric("outrigger_banned_clients", &[]), 3.0);
}

#[test]
fn a_full_table_bans_no_client_for_requests_of_others() {
    let app = refusing_app();
    let rules = format!("{EDGE}{ENFORCE}abuse.not_found = \"1/1h\"\nrate_limits.max_keys = 4\n{NO_DEFAULTS}");
    let proxy = Proxy::with(&app, &rules);
    // The table has eight cells for far more clients, and each client stays within its limit.
    let mut client = proxy.connect();
    for n in 0..2_000_u32 {
        let address = format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
        let status = client.send(from_address(&get("/404"), &address)).answer().status;
        assert_eq!(status, 404, "{address} has asked once, and others {n} times");
    }
    assert!(bans(&proxy).is_empty(), "{} were banned", bans(&proxy).len());
}
