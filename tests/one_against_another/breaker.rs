//! Circuit breakers: responses that one client causes do not affect others.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::{Backend, Play},
    harness::{Form, Proxy, every_form, get, post, until, with_fields},
};

const RULES: &str =
    "breaker.failures = 3\nbreaker.min_calls = 5\nretry.attempts = 1\n[[routes]]\nname = \"api\"\npath = \"/api/**\"\n";
/// In force only while requests hang: the victim's have as long as they need.
const IMPATIENT: &str = "app.timeout = \"500ms\"\n";
const SLOW: &str = "breaker.slow_after = \"300ms\"\nbreaker.slow_rate = \"50%\"\n";
const ATTACKER: u8 = 10;
const VICTIM: u8 = 20;

fn answer(status: &str) -> Play {
    Play::Say(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into())
}

/// Every kind of failure that an endpoint can return, with its own route and without one.
#[test]
fn failures_of_one_client_do_not_affect_others() {
    let drip = Play::Drip(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), Duration::from_millis(10));
    let plays = [
        ("500", answer("500 Internal Server Error")),
        ("502", answer("502 Bad Gateway")),
        ("503", answer("503 Service Unavailable")),
        ("599", answer("599 Unheard Of")),
        ("no answer", Play::Hang),
        ("a closed connection", Play::SayAndClose(Vec::new())),
        ("half an answer", Play::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec())),
        ("garbage", Play::SayAndClose(b"\x16\x03\x01 nonsense\r\n\r\n".to_vec())),
        ("a slow answer", drip),
    ];
    let mut served = 0;
    for (what, play) in plays {
        let app = Backend::start();
        for path in ["/api/bad", "/bad"] {
            app.at(path, play.clone());
        }
        let rules = if what == "a slow answer" { format!("{SLOW}{RULES}") } else { RULES.to_owned() };
        let proxy = Proxy::with(&app, &rules);
        for prefix in ["/api", ""] {
            if what == "no answer" {
                proxy.changes_to(&format!("{IMPATIENT}{RULES}"));
            }
            Form::at_once(&Form::ALL, |form| {
                for _ in 0..8 {
                    // The attacker may get no response, or be rejected itself.
                    let request = form.request(&format!("{prefix}/bad"));
                    let _ = proxy.connect_as(ATTACKER).send(request).try_answer();
                }
            });
            if what == "no answer" {
                proxy.changes_to(&rules);
            }
            for request in every_form(&format!("{prefix}/good")).iter().cycle().take(10) {
                let good = proxy.ask_as(VICTIM, request);
                assert_eq!(good.status, 200, "{what}: {good:?}");
                served += 1;
            }
        }
    }
    println!("breaker: {served} of {served} requests of the other client served");
}

/// A 504 from the app itself counts even from a single client, but only for a second, and not while other clients are served.
#[test]
fn a_504_to_one_client_stops_requests_for_a_second_at_most() {
    let app = Backend::start();
    app.at("/api/bad", answer("504 Gateway Timeout"));
    // The failure rate is off, since three clients count as several: failures that all of them see are another case.
    let proxy = Proxy::with(&app, &format!("breaker.failure_rate = \"off\"\n{RULES}"));
    let attack = || (0..8).for_each(|_| _ = proxy.ask_as(ATTACKER, &get("/api/bad")));
    attack();
    let began = Instant::now();
    until("the other client to be served", || proxy.ask_as(VICTIM, &get("/api/good")).status == 200);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // Another client tries the same: only that client is rejected.
    for _ in 0..8 {
        let _ = proxy.ask_as(ATTACKER + 1, &get("/api/bad"));
        assert_eq!(proxy.ask_as(VICTIM, &get("/api/good")).status, 200);
    }
    for _ in 0..8 {
        let _ = proxy.ask_as(ATTACKER + 2, &get("/api/bad"));
    }
    assert_eq!(proxy.ask_as(VICTIM, &get("/api/good")).status, 200);
}

/// Unverified keys and users do not make one client several.
#[test]
fn a_client_with_many_unverified_keys_is_one() {
    let app = Backend::start();
    app.at("/api/bad", answer("500 Internal Server Error"));
    let proxy = Proxy::with(&app, &format!("identity.unknown_keys = \"count\"\n{RULES}"));
    for n in 0..20 {
        let request = with_fields(&get("/api/bad"), &[&format!("X-Api-Key: made-up-{n}")]);
        let status = proxy.ask_as(ATTACKER, &request).status;
        assert_eq!(status, if n < 3 { 500 } else { 503 }, "it alone is refused after three");
    }
    assert_eq!(proxy.ask_as(VICTIM, &get("/api/good")).status, 200);
}

/// The app has recovered. One client makes every probe fail, or occupies the probes; another one's requests close the breaker
/// nevertheless.
#[test]
fn failed_probes_of_one_client_do_not_keep_it_open_for_others() {
    let rules = format!("breaker.open = \"1s\"\nbreaker.probes = 2\nbreaker.ramp = \"0s\"\n{RULES}");
    let impatient = format!("{IMPATIENT}{rules}");
    for request in [get("/api/bad"), post("/api/bad", "x"), get("/api/hangs")] {
        let app = Backend::start();
        app.at("/api/bad", answer("500 Internal Server Error"));
        app.at("/api/hangs", Play::Hang);
        let proxy = Proxy::with(&app, &rules);
        for n in 0..2 {
            assert_eq!(proxy.ask_as(30 + n, &get("/api/bad")).status, 500);
        }
        proxy.changes_to(&impatient);
        assert!(matches!(proxy.ask_as(32, &get("/api/bad")).status, 500 | 504));
        assert_eq!(proxy.ask_as(VICTIM, &get("/api/good")).status, 503, "it is open");
        let ends = Instant::now() + Duration::from_secs(10);
        let closed = std::sync::atomic::AtomicBool::new(false);
        let is_closed = || closed.load(std::sync::atomic::Ordering::Relaxed);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !is_closed() && Instant::now() < ends {
                        let _ = proxy.connect_as(ATTACKER).send(&request).try_answer();
                    }
                });
            }
            let began = Instant::now();
            let is_open = || proxy.shows("/breakers")["breakers"][0]["state"] != "closed";
            until("the breaker to close", || {
                let _ = proxy.ask_as(VICTIM, &get("/api/good"));
                !is_open()
            });
            closed.store(true, std::sync::atomic::Ordering::Relaxed);
            println!("breaker: closed again {:?} after the app was back, beside failing probes", began.elapsed());
            assert!(began.elapsed() < Duration::from_secs(8));
        });
        proxy.changes_to(&rules);
        assert_eq!(proxy.ask_as(VICTIM, &get("/api/good")).status, 200);
    }
}
