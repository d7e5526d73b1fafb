//! Access control of the admin listener.

use std::{collections::BTreeSet, fs};

use crate::{
    backend::Backend,
    harness::{Answer, Client, Proxy, Setup},
};

const TOKEN: &str = "a token of the operators, long enough";
const NAMED: &str = "ann@example.com";

/// The table of docs/operations.md: method, path and required access of each endpoint. A test of the proxy compares it with the
/// router.
fn endpoints() -> Vec<(String, String, String)> {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let docs = fs::read_to_string(docs).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let (method, path) = cells.next()?.strip_suffix('`')?.split_once(' ')?;
        let is_method = ["GET", "POST", "DELETE"].contains(&method);
        is_method.then_some((method.to_owned(), path.to_owned(), cells.next()?.to_owned()))
    };
    docs.lines().filter_map(row).collect()
}

/// Sends one request with exactly these header lines.
fn ask(proxy: &Proxy, method: &str, path: &str, lines: &[&str]) -> Answer {
    let path = path.replace("{client}", "address:192.0.2.1").replace("{name}", "default");
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{lines}Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    let mut client = Client::connect(proxy.admin).unwrap();
    client.send(request);
    // A stream has no end.
    if path == "/events" { client.head().unwrap() } else { client.answer() }
}

#[test]
fn every_endpoint_requires_what_the_documentation_says() {
    let app = Backend::start();
    let proxy = Setup::new(&app, "admin.hosts = [\"Admin.Example\"]").env("OUTRIGGER_ADMIN_TOKEN", TOKEN).start();
    let token = format!("Authorization: Bearer {TOKEN}");
    let ban = format!("{{\"client\":\"user:{NAMED}\"}}");
    let request = format!(
        "POST /bans HTTP/1.1\r\nHost: localhost\r\n{token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{ban}",
        ban.len()
    );
    assert_eq!(Client::connect(proxy.admin).unwrap().send(request).answer().status, 201);
    let endpoints = endpoints();
    let needs: BTreeSet<&str> = endpoints.iter().map(|(_, _, needs)| needs.as_str()).collect();
    assert_eq!(needs, BTreeSet::from(["nothing", "nothing; for HTML own host", "operator", "own host", "session"]));
    let own = format!("Host: {}", proxy.admin);
    for (method, path, needs) in &endpoints {
        let ask = |lines: &[&str]| ask(&proxy, method, path, lines);
        let (is_open, is_for_operators) = (needs.starts_with("nothing"), needs == "operator" || needs == "session");
        let expect = |status| if is_open { 200 } else { status };
        for host in [&own, "Host: LOCALHOST.:80", "Host: [::1]", "Host: admin.example:9091"] {
            let answer = ask(&[host, &token]);
            assert!(![401, 403, 421].contains(&answer.status), "{method} {path} {host}: {answer:?}");
            let answer = ask(&[host]);
            assert_eq!(answer.status == 401, is_for_operators, "{method} {path} {host}: {answer:?}");
            assert!(!answer.text().contains(NAMED), "{method} {path}: {answer:?}");
        }
        assert_eq!(ask(&[&own, "Authorization: Bearer wrong"]).status == 401, is_for_operators);
        for (lines, status) in [
            (&["Host: attacker.example"][..], 421),
            (&["Host: attacker.example:9091", "Origin: http://attacker.example:9091"], 421),
            (&[&own, "Origin: http://attacker.example"], 403),
            (&[&own, "Sec-Fetch-Site: cross-site"], 403),
            (&[&own, &own], 400),
            (&["Host: user@localhost"], 400),
            (&[], 400),
        ] {
            let answer = ask(&[lines, &[&token]].concat());
            assert_eq!(answer.status, expect(status), "{method} {path} {lines:?}: {answer:?}");
        }
        // The host of an absolute target is checked too, and HTTP/1.0 is no way around the check.
        let absolute = format!("http://attacker.example{path}");
        let answer = Client::connect(proxy.admin)
            .unwrap()
            .send(format!("{method} {absolute} HTTP/1.1\r\n{own}\r\n{token}\r\nContent-Length: 0\r\n\r\n"))
            .answer();
        assert_eq!(answer.status, expect(421), "{method} {absolute}: {answer:?}");
        let old = format!("{method} {path} HTTP/1.0\r\n{token}\r\nContent-Length: 0\r\n\r\n");
        let answer = Client::connect(proxy.admin).unwrap().send(old).answer();
        assert_eq!(answer.status, expect(400), "{method} {path} HTTP/1.0: {answer:?}");
    }
    // No other client was banned or unbanned.
    let answer = ask(&proxy, "GET", "/bans", &[&own, &token]);
    assert_eq!(answer.json()["bans"].as_array().unwrap().len(), 1, "{answer:?}");
}

#[test]
fn without_a_token_a_page_of_a_rebound_name_changes_nothing() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let own = format!("Host: {}", proxy.admin);
    for (method, path, needs) in endpoints() {
        let answer = ask(&proxy, &method, &path, &[&own]);
        assert!(![401, 403, 421].contains(&answer.status), "{method} {path}: {answer:?}");
        let rebound =
            ["Host: attacker.example:9091", "Origin: http://attacker.example:9091", "Sec-Fetch-Site: same-origin"];
        let answer = ask(&proxy, &method, &path, &rebound);
        assert_eq!(answer.status, if needs.starts_with("nothing") { 200 } else { 421 }, "{method} {path}: {answer:?}");
    }
    assert_eq!(proxy.get("/").status, 200);
    // Hosts can be added while the proxy runs.
    assert_eq!(ask(&proxy, "GET", "/breakers", &["Host: admin.example"]).status, 421);
    proxy.changes_to("admin.hosts = [\"admin.example\"]\nadmin.max_connections = 32");
    assert_eq!(ask(&proxy, "GET", "/breakers", &["Host: admin.example"]).status, 200);
}

#[test]
fn oversized_and_malformed_requests_are_rejected_and_the_next_is_served() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let large = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    for nonsense in ["\0\x01\x02 nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", &large] {
        let mut client = Client::connect(proxy.admin).unwrap();
        let _ = client.try_send(nonsense);
        let answer = client.try_answer();
        assert!(answer.as_ref().map_or(true, |answer| answer.status >= 400), "{answer:?}");
    }
    let body = format!("{{\"client\":\"user:{}\"}}", "x".repeat(300 << 10));
    let request = format!(
        "POST /bans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = Client::connect(proxy.admin).unwrap().send(request).try_answer();
    assert!(answer.as_ref().map_or(true, |answer| answer.status >= 400), "{answer:?}");
    assert_eq!(proxy.admin("/healthz").status, 200);
}
