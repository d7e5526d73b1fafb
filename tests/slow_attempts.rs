//! Attempts that take too long: they are made again, a peer is asked as well, and an app that answers nothing is left.

use std::thread;

use crate::{
    backend::Backend,
    harness::{Proxy, from_address, get, post, until, with_fields},
    machines::{pair, with_cookie},
};

const OVERDUE: &str = "outrigger_app_attempts_overdue_total";
const HEDGES: &str = "outrigger_hedges_total";
const WON: &str = "outrigger_hedges_won_total";

fn put(path: &str) -> String {
    post(path, "a body").replacen("POST", "PUT", 1)
}

#[test]
fn an_overdue_attempt_is_made_again_once_and_only_if_that_is_safe() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "retry.attempt_timeout = \"100ms\"\nretry.attempts = 5\n");
    let gates = ["/get", "/put", "/order"].map(|path| app.gate(path));
    let mut clients: Vec<_> = [get("/get"), put("/put"), post("/order", "one")]
        .into_iter()
        .map(|request| {
            let mut client = proxy.connect();
            client.send(request);
            client
        })
        .collect();
    // The second attempts are overdue, too, and go on.
    proxy.counts(OVERDUE, &[], 4);
    assert_eq!(["/get", "/put", "/order"].map(|path| app.requests_to(path)), [2, 2, 1]);
    // The first ones were given up.
    until("the app to see that", || app.abandoned() == 2);
    gates.iter().for_each(|gate| gate.add_permits(3));
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(["/get", "/put", "/order"].map(|path| app.requests_to(path)), [2, 2, 1]);
}

#[test]
fn an_overdue_attempt_goes_on_without_budget() {
    let app = Backend::start();
    let rules = "retry.attempt_timeout = \"100ms\"\nretry.budget = \"1%\"\nretry.budget_min = 0\n";
    let proxy = Proxy::with(&app, rules);
    let gate = app.gate("/get");
    let mut client = proxy.connect();
    client.send(get("/get"));
    proxy.counts("outrigger_app_retries_denied_total", &[], 1);
    gate.add_permits(1);
    assert_eq!(client.answer().status, 200);
    assert_eq!((app.requests_to("/get"), app.abandoned()), (1, 0));
}

#[test]
fn a_response_that_is_slow_everywhere_is_waited_for() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "");
    // Enough for a percentile.
    for _ in 0..150 {
        assert_eq!(proxy.get("/poll").status, 200);
    }
    until("its latency to be known", || {
        proxy.metric("outrigger_attempt_timeout_seconds", &[("route", "default")]) > 0.0
    });
    let gate = app.gate("/poll");
    let mut client = proxy.connect();
    client.send(get("/poll"));
    // With the route's usual latency, the attempt is overdue after a quarter of a second; a second one waits for as long as it takes.
    proxy.counts(OVERDUE, &[], 2);
    assert_eq!(app.requests_to("/poll"), 152);
    gate.add_permits(1);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_peer_is_asked_as_well_and_the_first_response_counts() {
    let (a, b) = pair("retry.hedge = \"100ms\"\nretry.attempt_timeout = \"off\"");
    // The peer is faster: the app's request is cancelled.
    let held = a.app.gate("/slow");
    let answer = a.proxy.ask(&from_address(&get("/slow"), "192.0.2.9"));
    assert_eq!((answer.status, answer.seen("x-forwarded-for").as_deref()), (200, Some("192.0.2.9, 127.0.0.1")));
    assert_eq!((a.app.requests_to("/slow"), b.app.requests_to("/slow")), (1, 1));
    until("the app here to see that its request is cancelled", || a.app.abandoned() == 1);
    a.proxy.counts(WON, &[], 1);
    // The app is faster: the peer's request is cancelled.
    let there = b.app.gate("/slow");
    let mut client = a.proxy.connect();
    client.send(get("/slow"));
    b.app.gets(2, "/slow");
    held.add_permits(1);
    assert_eq!(client.answer().status, 200);
    until("the app there to see that its request is cancelled", || b.app.abandoned() == 1);
    a.proxy.counts(HEDGES, &[], 2);
    a.proxy.counts(WON, &[], 1);
    there.add_permits(10);
    // The connection is in step.
    assert_eq!(client.send(get("/next")).answer().status, 200);
    // A peer's status and body are relayed whatever they are.
    b.app.says("/gone", "HTTP/1.1 404 Gone\r\nContent-Length: 4\r\n\r\ngone");
    let gone = a.app.gate("/gone");
    let answer = a.proxy.get("/gone");
    assert_eq!((answer.status, answer.text().as_str()), (404, "gone"));
    gone.add_permits(10);
}

#[test]
fn a_failure_of_a_peer_is_no_response_and_sessions_stay_here() {
    let (a, b) =
        pair("retry.hedge = \"100ms\"\nretry.attempt_timeout = \"off\"\nretry.statuses = [429]\nretry.budget_min = 20");
    for (path, status) in [("/500", "500 Oops"), ("/429", "429 Too Many"), ("/503", "503 Down")] {
        b.app.says(path, &format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        let held = a.app.gate(path);
        let mut client = a.proxy.connect();
        client.send(get(path));
        b.app.gets(1, path);
        held.add_permits(1);
        assert_eq!(client.answer().status, 200, "{path}");
    }
    a.proxy.counts(WON, &[], 0);
    // The app here remembers the session; another client's request is hedged meanwhile.
    let (session, held) = (a.session(), a.app.gate("/cart"));
    let mut client = a.proxy.connect();
    client.send(with_cookie(&get("/cart"), &session));
    a.app.gets(1, "/cart");
    let other = a.app.gate("/other");
    assert_eq!(a.proxy.get("/other").status, 200);
    assert_eq!((b.app.requests_to("/other"), b.app.requests_to("/cart")), (1, 0));
    held.add_permits(1);
    assert_eq!(client.answer().status, 200);
    other.add_permits(1);
}

#[test]
fn a_measured_time_repeats_no_put() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "");
    for _ in 0..150 {
        assert_eq!(proxy.get("/item").status, 200);
    }
    until("its latency to be known", || {
        proxy.metric("outrigger_attempt_timeout_seconds", &[("route", "default")]) > 0.0
    });
    let gate = app.gate("/item");
    let mut clients = [put("/item"), get("/item")].map(|request| {
        let mut client = proxy.connect();
        client.send(request);
        client
    });
    // The GET is sent twice, and both attempts take too long.
    proxy.counts(OVERDUE, &[], 2);
    assert_eq!(app.requests_to("/item"), 150 + 3);
    gate.add_permits(3);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(app.requests_to("/item"), 150 + 3);
}

#[test]
fn only_safe_requests_are_hedged() {
    let (a, b) = pair("retry.hedge = \"100ms\"\nretry.attempt_timeout = \"off\"");
    let paths = ["/put", "/order", "/delete"];
    let gates = paths.map(|path| a.app.gate(path));
    let requests = [put("/put"), post("/order", "one"), get("/delete").replacen("GET", "DELETE", 1)];
    let mut clients = requests.map(|request| {
        let mut client = a.proxy.connect();
        client.send(request);
        client
    });
    for path in paths {
        a.app.gets(1, path);
    }
    // One that came later has been hedged by now.
    let slow = a.app.gate("/slow");
    for request in [get("/slow"), get("/slow").replacen("GET", "OPTIONS", 1)] {
        assert_eq!(a.proxy.ask(&request).status, 200);
    }
    assert_eq!((paths.map(|path| b.app.requests_to(path)), b.app.requests_to("/slow")), ([0; 3], 2));
    gates.iter().for_each(|gate| gate.add_permits(1));
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    slow.add_permits(10);
}

#[test]
fn hedges_are_within_their_budget() {
    let rules =
        "retry.hedge = \"50ms\"\nretry.attempt_timeout = \"off\"\nretry.hedge_budget = \"10%\"\nretry.budget_min = 0";
    let (a, b) = pair(rules);
    for n in 0..20 {
        assert_eq!(a.proxy.get(&format!("/{n}")).status, 200);
    }
    // The budget saves one request.
    let gate = a.app.gate("/slow");
    let clients: Vec<_> = (0..5)
        .map(|_| {
            let mut client = a.proxy.connect();
            client.send(get("/slow"));
            client
        })
        .collect();
    a.proxy.counts("outrigger_hedges_denied_total", &[], 4);
    a.proxy.counts(HEDGES, &[], 1);
    gate.add_permits(5);
    for mut client in clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(b.app.requests_to("/slow"), 1);
}

/// The app takes connections and requests, and answers nothing: neither health checks nor requests.
#[test]
fn an_app_that_answers_nothing_is_left_before_health_checks_notice() {
    let rules = "retry.attempt_timeout = \"200ms\"\nretry.hedge = \"off\"\npeers.timeout = \"10s\"";
    let (a, b) = pair(rules);
    let hung = ["/work", "/health/ready"].map(|path| a.app.gate(path));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(a.proxy.get("/work").status, 200));
        }
    });
    a.proxy.says("\"event\":\"app_silent\"");
    assert_eq!((a.app.requests_to("/work"), b.app.requests_to("/work")), (3, 3));
    // From now on requests go to the peer at once, also those that could not be sent again.
    for request in [get("/work"), post("/work", "order"), with_fields(&put("/work"), &["X-A: b"])] {
        assert_eq!(a.proxy.ask(&request).status, 200);
    }
    assert_eq!((a.app.requests_to("/work"), b.app.requests_to("/work")), (3, 6));
    // It answers a health check: requests are served here again.
    hung.iter().for_each(|gate| gate.add_permits(1000));
    until("requests to be served here again", || {
        let before = a.app.requests_to("/back");
        assert_eq!(a.proxy.get("/back").status, 200);
        a.app.requests_to("/back") > before
    });
}

/// Where the file names a health check of its own, the one for peers asks only a silent app, and what it found is not kept.
#[test]
fn a_silent_app_with_another_health_check_is_not_left_for_good() {
    let rules = "retry.attempt_timeout = \"200ms\"\nretry.hedge = \"off\"\nhealth.path = \"/up\"";
    let (a, b) = pair(rules);
    a.app.says("/health/ready", "HTTP/1.1 503 Warming\r\nContent-Length: 0\r\n\r\n");
    let hung = a.app.gate("/work");
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(a.proxy.get("/work").status, 200));
        }
    });
    assert_eq!(b.app.requests_to("/work"), 3);
    a.proxy.says("\"event\":\"app_silent\"");
    until("requests to be served here again", || {
        let before = a.app.requests_to("/back");
        assert_eq!(a.proxy.get("/back").status, 200);
        a.app.requests_to("/back") > before
    });
    hung.add_permits(10);
}

/// A request that may not be sent twice, to an app that has stopped: nothing of it was sent while the connection is not accepted.
#[test]
fn a_request_that_a_silent_app_did_not_accept_goes_to_a_peer_and_not_to_both() {
    let rules = "retry.attempt_timeout = \"200ms\"\nretry.hedge = \"off\"\npeers.timeout = \"10s\"";
    let (a, b) = pair(rules);
    a.app.accepts(false);
    let order = || with_fields(&post("/order", "one"), &["Connection: close"]);
    thread::scope(|scope| {
        let ordered = scope.spawn(|| a.proxy.ask(&order()));
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(a.proxy.get("/work").status, 200));
        }
        assert_eq!(ordered.join().unwrap().status, 200);
    });
    a.proxy.says("\"event\":\"app_silent\"");
    assert_eq!(b.app.requests_to("/order"), 1);
    // It goes on: it gets what the kernel kept for it.
    a.app.accepts(true);
    until("requests to be served here again", || {
        let before = a.app.requests_to("/back");
        assert_eq!(a.proxy.get("/back").status, 200);
        a.app.requests_to("/back") > before
    });
    assert_eq!((a.app.requests_to("/order"), b.app.requests_to("/order")), (0, 1));
}
