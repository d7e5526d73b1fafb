//! Outrigger's own responses as pages, for browsers; all others get JSON.

use std::fs;
use std::path::Path;

use crate::backend::Backend;
use crate::harness::{Answer, Form, Proxy, Setup, every_form, get, until, with_fields};
use crate::limits::{NO_DEFAULTS, route, rule};

/// As a browser writes it.
const BROWSER: &str = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

#[track_caller]
fn is_page(answer: &Answer, status: u16) -> String {
    let text = answer.text();
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (status, Some("text/html; charset=utf-8")),
        "{answer:?}"
    );
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    for (name, value) in [("vary", "Accept"), ("x-content-type-options", "nosniff"), ("cache-control", "no-store")] {
        assert_eq!(answer.header(name), Some(value), "{answer:?}");
    }
    let id = answer.header("x-request-id").unwrap();
    assert!(text.contains(&format!("Status {status}, request {id}")), "{text}");
    for loaded in ["http:", "https:", "src=", "href=", "url(", "<script", "{{"] {
        assert!(!text.contains(loaded), "{loaded}: {text}");
    }
    text
}

#[test]
fn a_browser_gets_a_page_and_a_program_the_same_json_as_before() {
    let mut app = Backend::start();
    let fallback = "fallback = { body = \"{}\" }";
    let rules = format!(
        "{NO_DEFAULTS}app.hold = \"0s\"\nretry.attempts = 1\n{}{}{}",
        rule("few", "1/1h", "routes = [\"limited\"]"),
        route("limited", ""),
        route("spare", fallback),
    );
    let proxy = Proxy::with(&app, &rules);
    proxy.get("/limited");
    app.stop();
    until("the app to refuse connections", || proxy.get("/").text().contains("app-unreachable"));
    for request in every_form("/limited") {
        let limited = is_page(&proxy.ask(&with_fields(&request, &[BROWSER])), 429);
        assert!(limited.contains("Too many requests") && limited.contains("Try again in 60 minutes"), "{limited}");
        for accept in ["Accept: */*", "Accept: application/json, text/plain, */*", "Accept: text/html;q=0", "A: b"] {
            let answer = proxy.ask(&with_fields(&request, &[accept]));
            answer.is_problem(429, "quota_exceeded");
            assert!(
                answer.header("vary").is_none() && answer.header("content-security-policy").is_none(),
                "{answer:?}"
            );
        }
    }
    Form::at_once(&Form::ALL, |form| {
        is_page(&proxy.ask(&with_fields(&form.request("/"), &[BROWSER])), 502);
        is_page(&proxy.ask(&with_fields(&form.request("/a/../b"), &[BROWSER])), 400);
    });
    // Byte for byte.
    let answer = proxy.ask(&with_fields(&get("/metrics"), &["Accept: */*"]));
    let id = answer.header("x-request-id").unwrap();
    let body = format!(
        "{{\"type\":\"urn:outrigger:problem:not-public\",\"title\":\"There is nothing here for the public\",\"status\":404,\
         \"detail\":\"metrics are on the admin listener; the operator can make this path public by naming it in a route\",\
         \"request_id\":\"{id}\"}}\n"
    );
    let date = answer.header("date").unwrap();
    let head = format!(
        "HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Request-Id: {id}\r\nDate: {date}\r\n\r\n",
        body.len()
    );
    assert_eq!((answer.head.trim_end(), answer.text()), (head.trim_end(), body));
    // Fallbacks and health checks keep their format.
    let spare = proxy.ask(&with_fields(&get("/spare"), &[BROWSER]));
    assert_eq!((spare.status, spare.text().as_str()), (200, "{}"));
    let health = proxy.ask(&with_fields(&get("/health"), &[BROWSER]));
    assert!(health.json()["data"]["reason"].is_string(), "{health:?}");
}

#[test]
fn early_rejections_are_pages_if_the_accept_header_has_arrived() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_head = \"1KiB\"\n");
    let folded = |accept: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{accept}\r\nA: b\r\n c\r\n\r\n");
    is_page(&proxy.ask(&folded(BROWSER)), 400);
    proxy.ask(&folded("Accept: */*")).is_problem(400, "malformed_folded_field");
    let large = format!("A: {}", "a".repeat(2000));
    let text = is_page(&proxy.ask(&with_fields(&get("/"), &[BROWSER, &large])), 431);
    assert!(text.contains("cookies"), "{text}");
    Form::at_once(&Form::ALL, |form| {
        let request = with_fields(&form.request("/"), &[BROWSER, &large]);
        assert_eq!(proxy.ask(&request).status, 431);
    });
}

#[test]
fn an_operator_may_write_the_page() {
    let app = Backend::start();
    let setup = Setup::new(&app, "");
    let file = setup.dir.join("page.html");
    let rules = |more: &str| format!("[pages]\ntemplate = \"{}\"\n{more}", file.display());
    let write = |text: &str| fs::write(&file, text).unwrap();
    write("<style>p { color: red }</style><p>{{status}} {{title}} {{detail}} {{request_id}} {{retry_after}}|");
    fs::write(&setup.file, setup.text(&rules(""))).unwrap();
    let mut proxy = setup.start();
    let ask = |proxy: &Proxy| proxy.ask(&with_fields(&get("/metrics"), &[BROWSER]));
    let answer = ask(&proxy);
    let id = answer.header("x-request-id").unwrap();
    let expected = format!("<style>p {{ color: red }}</style><p>404 Nothing is here Please check the address. {id} |");
    assert_eq!(answer.text(), expected);
    assert!(answer.header("content-security-policy").unwrap().contains("style-src 'sha256-"), "{answer:?}");
    // Not for each request, but with a reload.
    write("second {{status}}");
    assert_eq!(ask(&proxy).text().len(), expected.len());
    proxy.changes_to(&rules("# changed\n"));
    assert_eq!(ask(&proxy).text(), "second 404");
    // Mistakes are found beforehand, and a running proxy keeps what it has.
    let check = |proxy: &Proxy| {
        let output = proxy.run(&["check", "--config", &proxy.file.display().to_string()]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (wrong, says) in
        [("{{stauts}}", "is no placeholder"), ("{{status", "has no"), (&"a".repeat(70_000), "more than 65536")]
    {
        write(wrong);
        let (code, error) = check(&proxy);
        assert!(code == Some(78) && error.contains(says) && error.contains("template"), "{error}");
    }
    fs::remove_file(&file).unwrap();
    assert!(check(&proxy).1.contains("cannot be read"), "{:?}", check(&proxy));
    fs::write(&proxy.file, proxy.text(&rules("# again\n"))).unwrap();
    proxy.says("the changed configuration is rejected");
    assert_eq!(ask(&proxy).text(), "second 404");
    proxy.changes_to("pages.html = false\n");
    ask(&proxy).is_problem(404, "not_public");
    assert!(proxy.is_running() && !Path::new(&file).exists());
}
