//! The page for operators on the admin listener.

mod browser;
mod driver;
mod live;

use std::{fs, net::Ipv4Addr};

use crate::{
    backend::Backend,
    harness::{Answer, Client, Proxy, Setup, get, until},
};

const TOKEN: &str = "a token of the operators, long enough";

/// Sends one request from an address of this machine.
fn ask_from(proxy: &Proxy, last: u8, method: &str, path: &str, lines: &[&str], body: &str) -> Answer {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("{method} {path} HTTP/1.1\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len());
    let source = Ipv4Addr::new(127, 0, 0, last);
    Client::connect_from(source, proxy.admin).unwrap().send(request).answer()
}

/// The page, as a browser asks for it.
fn page(proxy: &Proxy, path: &str, lines: &[&str]) -> Answer {
    let accept = ["Host: localhost", "Accept: text/html,*/*;q=0.8"];
    ask_from(proxy, 1, "GET", path, &[&accept, lines].concat(), "")
}

fn post(proxy: &Proxy, last: u8, path: &str, lines: &[&str], body: &str) -> Answer {
    let form = ["Host: localhost", "Content-Type: application/x-www-form-urlencoded"];
    ask_from(proxy, last, "POST", path, &[&form, lines].concat(), body)
}

/// The line with the cookie that this response sets.
fn cookie(answer: &Answer) -> String {
    let line = answer.header("set-cookie").unwrap_or_else(|| panic!("no cookie: {answer:?}"));
    format!("Cookie: {}", line.split(';').next().unwrap())
}

fn form_token(answer: &Answer) -> String {
    let text = answer.text();
    let (_, after) = text.split_once("name=\"form_token\" value=\"").unwrap_or_else(|| panic!("no form: {text}"));
    after.split('"').next().unwrap().to_owned()
}

#[test]
fn the_page_is_complete_and_escapes_everything() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "[[routes]]\nname = \"search\"\npath = \"/search\"\n");
    proxy.ask(&get("/search"));
    let hostile = "/?request=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&done=%3Cb%3E";
    for path in ["/", hostile] {
        let answer = page(&proxy, path, &[]);
        assert_eq!(answer.status, 200, "{answer:?}");
        let policy = answer.header("content-security-policy").unwrap();
        for part in
            ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "form-action 'self'"]
        {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(
            policy.contains("base-uri 'none'")
                && policy.contains("frame-ancestors 'none'")
                && !policy.contains("unsafe")
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("same-origin"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let text = answer.text();
        assert!(text.contains("Circuit breakers") && !text.contains("<script>") && !text.contains("<b>&"), "{text}");
        assert!(!text.contains("http://") && !text.contains("https://"), "{text}");
    }
    assert!(page(&proxy, hostile, &[]).text().contains("&lt;script&gt;alert(1)"));
    // A problem of the configuration shows text of the file.
    fs::write(&proxy.file, "[\"<img src=x onerror=alert(1)>\"]\na = 1\n").unwrap();
    until("the page to show the refused reload", || {
        page(&proxy, "/", &[]).text().contains("The last reload was refused")
    });
    assert!(!page(&proxy, "/", &[]).text().contains("<img"));
    // Others get the list.
    for accept in ["Accept: */*", "Accept: text/html;q=0, text/plain"] {
        let answer = ask_from(&proxy, 1, "GET", "/", &["Host: localhost", accept], "");
        assert!(answer.status == 200 && answer.text().starts_with("outrigger\n"), "{answer:?}");
    }
    assert_eq!(page(&proxy, "/nothing", &[]).status, 404);
    let assets = ["/assets/page.css", "/assets/page.js"].map(|path| page(&proxy, path, &[]));
    assert!(assets.iter().all(|asset| asset.status == 200 && asset.header("etag").is_some()), "{assets:?}");
}

#[test]
fn the_story_of_a_refused_request_is_found_by_its_id() {
    let app = Backend::start();
    let rules = "[[rate_limits.rules]]\nname = \"few\"\nrate = \"1/1h\"\nby = \"address\"\n";
    let proxy = Proxy::with(&app, rules);
    let refused = (0..3).map(|_| proxy.ask(&get("/"))).find(|answer| answer.status == 429).expect("a refused request");
    let id = refused.header("x-request-id").expect("a request id").to_owned();
    let story = || page(&proxy, &format!("/?request={id}"), &[]).text();
    until("the receipt to be kept", || story().contains("<ol class=\"story\">"));
    assert!(story().contains("few"), "{}", story());
    let shown = || page(&proxy, "/", &[]).text();
    until("the list to have it", || shown().contains(&format!("/?request={id}")));
    assert!(!shown().contains("127.0.0.1</td>"), "{}", shown());
}

#[test]
fn other_sites_neither_see_the_page_nor_act() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let html = "Accept: text/html";
    let rebound = ask_from(&proxy, 1, "GET", "/", &["Host: attacker.example", html], "");
    assert_eq!(rebound.status, 421, "{rebound:?}");
    let framed = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"];
    assert_eq!(page(&proxy, "/", &framed).status, 403);
    let followed = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    let shown = page(&proxy, "/", &followed);
    assert_eq!(shown.status, 200, "{shown:?}");
    let (cookie, token) = (cookie(&shown), form_token(&shown));
    let act = |lines: &[&str], body: &str| post(&proxy, 1, "/act", lines, body).status;
    let open = format!("form_token={token}&act=open+default");
    for foreign in
        ["Origin: http://attacker.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
    {
        assert_eq!(act(&[&cookie, foreign], &open), 403, "{foreign}");
    }
    assert_eq!(act(&[], &open), 400, "without the cookie");
    assert_eq!(act(&[&cookie], "form_token=&act=open+default"), 400, "without the form's token");
    let other = format!("Cookie: outrigger_admin={}", "0".repeat(64));
    assert_eq!(act(&[&other], &open), 400, "with another cookie");
    assert_eq!(act(&[&cookie], &format!("form_token={token}&act=drop+default")), 400);
    assert_eq!(act(&[&cookie], &format!("form_token={token}&act=open+%3Cb%3E")), 404);
    assert_eq!(act(&[&cookie], &format!("form_token={token}&act=restart")), 409);
    let breakers = |proxy: &Proxy| proxy.shows("/breakers")["breakers"].to_string();
    assert!(!breakers(&proxy).contains("\"open\""));
    // Without JavaScript: the form, and the page again.
    let done = post(&proxy, 1, "/act", &[&cookie, "Origin: http://localhost:80", "Sec-Fetch-Site: same-origin"], &open);
    assert_eq!((done.status, done.header("location")), (303, Some("/?done=breaker#h-breakers")), "{done:?}");
    assert!(breakers(&proxy).contains("\"open\""));
    let after = page(&proxy, "/?done=breaker", &[&cookie]).text();
    assert!(after.contains("The breaker is set.") && after.contains("an operator forced it"), "{after}");
}

#[test]
fn operators_log_in_with_the_token_and_out_again() {
    let app = Backend::start();
    let proxy = Setup::new(&app, "").env("OUTRIGGER_ADMIN_TOKEN", TOKEN).start();
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let ban = "{\"client\":\"user:ann@example.com\"}";
    let banned =
        ask_from(&proxy, 1, "POST", "/bans", &["Host: localhost", &bearer, "Content-Type: application/json"], ban);
    assert_eq!(banned.status, 201, "{banned:?}");
    let shown = page(&proxy, "/", &[]);
    assert!(shown.header("set-cookie").is_none() && !shown.text().contains("ann@example.com"), "{}", shown.text());
    assert!(!shown.text().contains("form_token"));
    for path in ["/act", "/logout"] {
        assert_eq!(post(&proxy, 1, path, &[], "form_token=a&act=restart").status, 401, "{path}");
    }
    for _ in 0..5 {
        let wrong = post(&proxy, 1, "/login", &[], "token=wrong");
        assert!(wrong.status == 403 && wrong.header("set-cookie").is_none(), "{wrong:?}");
    }
    let right = format!("token={}", TOKEN.replace(' ', "+").replace(',', "%2C"));
    let late = post(&proxy, 1, "/login", &[], &right);
    assert!(late.status == 429 && late.header("retry-after").is_some(), "{late:?}");
    proxy.says("admin_login_failed");
    // Another address does not wait for it.
    let done = post(&proxy, 2, "/login", &[], &right);
    assert_eq!(done.status, 303, "{done:?}");
    let line = done.header("set-cookie").unwrap();
    assert!(line.contains("HttpOnly") && line.contains("SameSite=Lax") && line.contains("Path=/"), "{line}");
    let cookie = cookie(&done);
    let shown = page(&proxy, "/", &[&cookie]);
    assert!(shown.text().contains("user:ann@example.com"), "{}", shown.text());
    let token = form_token(&shown);
    let lift = post(&proxy, 1, "/act", &[&cookie], &format!("form_token={token}&act=lift+user%3Aann%40example.com"));
    assert_eq!(lift.status, 303, "{lift:?}");
    let out = post(&proxy, 1, "/logout", &[&cookie], &format!("form_token={token}"));
    assert_eq!(out.status, 303, "{out:?}");
    assert_eq!(post(&proxy, 1, "/act", &[&cookie], &format!("form_token={token}&act=restart")).status, 401);
    assert!(!page(&proxy, "/", &[&cookie]).text().contains("form_token"));
}

/// Opens the live stream from an address of this machine.
fn watch(proxy: &Proxy, last: u8) -> (Client, u16) {
    let mut client = Client::connect_from(Ipv4Addr::new(127, 0, 0, last), proxy.admin).unwrap();
    client.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let status = client.head().unwrap().status;
    (client, status)
}

#[test]
fn viewers_are_few_and_keep_nothing_from_others() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut viewers: Vec<Client> = Vec::new();
    for last in [1, 2] {
        for number in 0..8 {
            let (client, status) = watch(&proxy, last);
            assert_eq!(status, 200, "viewer {number} of 127.0.0.{last}");
            viewers.push(client);
        }
        assert_eq!(watch(&proxy, last).1, 503, "half of the viewers may be of one address");
    }
    assert_eq!(watch(&proxy, 3).1, 503, "there are 16 at most");
    assert_eq!(proxy.admin("/metrics").status, 200);
    // The last one reads, the others do not: it sees a change all the same.
    let mut last = viewers.pop().unwrap();
    let forced = ask_from(
        &proxy,
        1,
        "POST",
        "/breakers/default",
        &["Host: localhost", "Content-Type: application/json"],
        "{\"force\":\"open\"}",
    );
    assert_eq!(forced.status, 200, "{forced:?}");
    last.take_through(b"an operator forced it").unwrap();
    drop(viewers);
    until("a viewer that left to make room", || watch(&proxy, 3).1 == 200);
}
