//! Events that operators have to see at once: each is on the open page within two seconds.

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::browser::press_button;
use super::driver::Browser;
use crate::backend::Backend;
use crate::harness::{Client, Proxy, Setup, get, until};
use crate::limits::{NO_DEFAULTS, rule};
use crate::pause::act;
use crate::run::Run;

/// From the moment at which `/status` shows it. The page is rendered once a second.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Waits for `text` on the page, and checks that it is there within two seconds after `/status` has it.
#[track_caller]
fn is_seen(browser: &Browser, proxy: &Proxy, text: &str, in_status: impl Fn(&Value) -> bool) {
    until(&format!("/status to have {text:?}"), || in_status(&proxy.shows("/status")));
    let began = Instant::now();
    browser.shows(text);
    let took = began.elapsed();
    assert!(took < AT_ONCE, "{text:?} was on the page after {took:?}");
}

fn headline(text: &'static str) -> impl Fn(&Value) -> bool {
    move |status| status["headline"].to_string().contains(text)
}

#[test]
fn events_are_on_the_open_page_within_two_seconds() {
    let app = Backend::start();
    let rules = "breaker.failures = 3\nadmission.max_wait = \"20s\"\n\
                 [[routes]]\nname = \"search\"\npath = \"/search\"\n[abuse]\nmode = \"enforce\"\n";
    let proxy = Proxy::with(&app, rules);
    proxy.get("/");
    let browser = Browser::start(1280, 1700);
    browser.open(&format!("http://{}/", proxy.admin));
    browser.shows("live, ");
    browser.run("window.sameLoad = true");

    // Failures that several clients see open a breaker.
    app.says("/search", "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let is_open = |status: &Value| {
        let breakers = status["breakers"]["breakers"].as_array().unwrap();
        breakers.iter().any(|breaker| breaker["name"] == "search" && breaker["state"] != "closed")
    };
    until("the breaker to open", || {
        (2..40).for_each(|last| drop(proxy.ask_as(last, &get("/search"))));
        is_open(&proxy.shows("/status"))
    });
    is_seen(&browser, &proxy, "Breaker \"search\" is ", is_open);

    // A ban.
    let ban = act(&proxy, "/bans", "{\"client\":\"address:192.0.2.7\"}");
    assert_eq!(ban.status, 201, "{ban:?}");
    is_seen(&browser, &proxy, "address:192.0.2.7", |status| status["bans"]["count"] == 1);

    // A refused reload.
    let good = fs::read_to_string(&proxy.file).unwrap();
    fs::write(&proxy.file, format!("app.hold = \"30\"\n{good}")).unwrap();
    is_seen(&browser, &proxy, "The last reload was refused", headline("The last reload was refused"));
    fs::write(&proxy.file, good).unwrap();

    // An overload.
    let held = app.gate("/slow");
    let clients: Vec<Client> = (0..60)
        .map(|_| {
            let mut client = proxy.connect();
            client.send(get("/slow"));
            client
        })
        .collect();
    is_seen(&browser, &proxy, "requests wait for one of", headline("requests wait for one of"));
    held.add_permits(clients.len());
    drop(clients);
    assert_eq!(browser.run("return window.sameLoad === true"), true, "it did not reload");
}

#[test]
fn pause_and_maintenance_need_no_mouse() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let browser = Browser::start(1280, 1700);
    browser.open(&format!("http://{}/", proxy.admin));
    browser.shows("live, ");
    press_button(&browser, "b-pause");
    is_seen(&browser, &proxy, "Paused since ", |status| status["pause"].is_object());
    let mut waiting = proxy.connect();
    waiting.send(get("/"));
    is_seen(&browser, &proxy, "1 request waits", |status| status["pause"]["waiting"] == 1);
    browser.shows("live, ");
    press_button(&browser, "b-resume");
    assert_eq!(waiting.answer().status, 200);
    until("the pause to end", || proxy.shows("/status")["pause"].is_null());
    browser.shows("Requests go on.");
    browser.shows("live, ");
    press_button(&browser, "b-maintenance");
    is_seen(&browser, &proxy, "Maintenance since ", |status| status["maintenance"].is_object());
    proxy.get("/").is_problem(503, "maintenance");
    browser.shows("live, ");
    press_button(&browser, "b-service");
    until("maintenance to end", || proxy.get("/").status == 200);
}

#[test]
fn the_restart_button_needs_no_mouse() {
    let run = Run::of_fixture();
    let before = run.child();
    let browser = Browser::start(1280, 1700);
    browser.open(&format!("http://{}/", run.admin));
    browser.shows("live, ");
    press_button(&browser, "b-restart");
    run.replaces(before);
    browser.shows("The app restarts");
}

/// Many routes and many clients: the page shows the busiest, and neither it nor `/status` grows or gets slow.
#[test]
fn ten_thousand_routes_and_a_hundred_thousand_clients_are_a_small_page() {
    const ROUTES: usize = 10_000;
    const CLIENTS: u32 = 100_000;
    /// A page is small enough for a phone, and `/status` for a script.
    const MOST_BYTES: usize = 150_000;
    /// This build is not optimized, and the machine does other work.
    const SOON: Duration = Duration::from_secs(1);
    let app = Backend::start();
    let routes: String = (0..ROUTES).map(|n| format!("[[routes]]\nname = \"r{n}\"\npath = \"/r{n}\"\n")).collect();
    // After the first request, all are rejected; each client has a key all the same.
    let few = rule("few", "1/1h", "by = \"machine\"") + &rule("each", "100000/1h", "by = \"address\"");
    let rules =
        format!("identity.edge = \"fly\"\n{NO_DEFAULTS}log.access = false\nlog.level = \"warn\"\n{few}{routes}");
    let setup = Setup::new(&app, &rules);
    let text = fs::read_to_string(&setup.file).unwrap().replacen("log.level = \"debug\"\n", "", 1);
    fs::write(&setup.file, text).unwrap();
    let proxy = setup.start();
    assert_eq!(proxy.get("/").status, 200);
    // One client is rejected much more often than the others.
    let (sender, receiver) = mpsc::channel();
    let senders: Vec<_> = (0..2)
        .map(|half| {
            let (mut client, done) = (proxy.connect(), sender.clone());
            thread::spawn(move || {
                for chunk in 0..CLIENTS / 2 / 100 {
                    let requests: String = (0..100)
                        .map(|n| {
                            let number = half * CLIENTS / 2 + chunk * 100 + n;
                            let client =
                                if n % 4 == 0 { u32::from_be_bytes([203, 0, 113, 9]) } else { 0x0a00_0000 + number };
                            let client = std::net::Ipv4Addr::from_bits(client);
                            let route = number as usize % ROUTES;
                            format!("GET /r{route} HTTP/1.1\r\nHost: a\r\nFly-Client-IP: {client}\r\n\r\n")
                        })
                        .collect();
                    client.send(requests);
                    (0..100).for_each(|_| assert_eq!(client.answer().status, 429));
                }
                done.send(()).unwrap();
            })
        })
        .collect();
    // Also while they come.
    let mut slowest = (Duration::ZERO, String::new());
    let mut ask = |path: &str, accept: &str| {
        let began = Instant::now();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
        let answer = Client::connect(proxy.admin).unwrap().send(request).answer();
        slowest = slowest.clone().max((began.elapsed(), path.to_owned()));
        assert!(answer.status == 200 && answer.body.len() < MOST_BYTES, "{path}: {} bytes", answer.body.len());
        answer.text()
    };
    while receiver.recv_timeout(Duration::from_millis(200)).is_err() {
        ask("/", "text/html");
        ask("/status", "*/*");
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    // A summary may be a quarter of a second old, without the last requests.
    let mut status = Value::Null;
    until("a summary with the last requests", || {
        status = serde_json::from_str(&ask("/status", "*/*")).unwrap();
        status["limits"]["limits"][0]["top_clients"][0]["refused"].as_u64() >= Some(u64::from(CLIENTS / 4))
    });
    let page = ask("/", "text/html");
    assert!(slowest.0 < SOON, "{slowest:?}");
    assert!(page.contains(" other routes"), "{page}");
    assert_eq!(status["traffic"]["routes"].as_array().unwrap().len(), 50);
    let top = status["limits"]["limits"][0]["top_clients"].clone();
    let (first, second) = (top[0]["refused"].as_u64().unwrap(), top[1]["refused"].as_u64().unwrap());
    assert!(top.as_array().unwrap().len() <= 5 && second < first / 2, "{top}");
    assert!(page.contains(top[0]["client"].as_str().unwrap()), "{page}");
}
