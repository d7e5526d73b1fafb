//! Recovery from an app that restarts, is slow, or sends invalid responses: buffered requests, retries, and the final response.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::{Backend, Play},
    harness::{Client, Form, Proxy, every_form, get, post, until, with_fields},
    overload::{Load, mixed, run, served},
};

/// Number of requests that wait for the app.
fn held(proxy: &Proxy) -> u64 {
    proxy.shows("/breakers")["app"]["held"].as_u64().unwrap()
}

fn is_reachable(proxy: &Proxy) -> bool {
    proxy.shows("/breakers")["app"]["reachable"].as_bool().unwrap()
}

fn route(name: &str, more: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\n{more}\n")
}

#[track_caller]
fn is_at_rest(proxy: &Proxy) {
    proxy.comes_to_rest();
    let shown = proxy.shows("/admission");
    assert_eq!(shown["in_flight"], 0, "{shown}");
    assert!(shown["queue"].as_object().unwrap().values().all(|waiting| *waiting == 0), "{shown}");
}

#[test]
fn held_requests_are_served_by_priority_after_a_restart() {
    let priorities = ["low", "medium", "critical"].map(|name| route(name, &format!("priority = \"{name}\"")));
    let rules = format!("admission.min = 1\nadmission.max = 1\n{}", priorities.concat());
    Form::at_once(&Form::ALL, |form| {
        let mut app = Backend::stopped();
        let proxy = Proxy::with(&app, &rules);
        let mut clients: Vec<(&str, Client)> = Vec::new();
        for (n, path) in ["/low", "/medium", "/critical"].into_iter().enumerate() {
            let mut client = proxy.connect();
            client.send(form.request(path));
            until("the request to wait", || held(&proxy) == n as u64 + 1);
            clients.push((path, client));
        }
        assert!(!is_reachable(&proxy));
        assert_eq!(proxy.metric("outrigger_app_reachable", &[]), 0.0);
        let health = proxy.get("/health");
        assert_eq!((health.status, &health.json()["data"]["requestsHeld"]), (503, &3.into()));
        let gates = ["/low", "/medium", "/critical"].map(|path| app.gate(path));
        app.resume();
        // One permit: each request is sent only after the response to the more important one before it.
        for (n, path) in [(2, "/critical"), (1, "/medium"), (0, "/low")] {
            app.gets(1, path);
            let sent: usize = clients.iter().map(|(path, _)| app.requests_to(path)).sum();
            assert_eq!(sent, 3 - n, "{path}");
            gates[n].add_permits(1);
            assert_eq!(clients[n].1.answer().status, 200, "{path}");
        }
        until("the app to be known as back", || is_reachable(&proxy));
        proxy.counts("outrigger_held_requests_total", &[], 3);
        proxy.says("the app accepts connections again");
        assert_eq!(proxy.metric("outrigger_app_reachable", &[]), 1.0);
        drop(clients);
        is_at_rest(&proxy);
    });
}

/// The time for which the app was down does not count as time in the queue, even if it is back when that is over.
#[test]
fn a_short_outage_rejects_no_request_that_waited_before() {
    let mut app = Backend::start();
    let gate = app.gate("/get");
    let proxy = Proxy::with(&app, "admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"1s\"\n");
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.connect()).collect();
    clients[0].send(get("/get"));
    app.gets(1, "/get");
    for client in &mut clients[1..] {
        client.send(get("/get"));
    }
    until("the others to wait", || proxy.shows("/admission")["queue"]["medium"] == 2);
    let waits_since = Instant::now();
    app.stop();
    until("the app to be known as down", || !is_reachable(&proxy));
    app.resume();
    app.gets(2, "/get");
    // One of them has the permit. The other one waits for longer than `max_wait`, in which the app was down.
    thread::sleep(Duration::from_millis(1300).saturating_sub(waits_since.elapsed()));
    gate.add_permits(3);
    for mut client in clients {
        assert_eq!(client.answer().status, 200);
    }
    is_at_rest(&proxy);
}

/// With a body and without: only those fail that were with the app when it died and must not be sent twice.
#[test]
fn killing_the_app_under_load_fails_no_repeatable_request() {
    let mut app = Backend::start();
    app.works(&["/get", "/put"], 50, Duration::from_millis(20));
    let proxy = Proxy::start(&app);
    let put = "PUT /put HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_owned();
    let warm = || run(async { Load::on(&proxy).flow(vec![get("/get")], 300.0, Duration::from_secs(1)).await.unwrap() });
    assert_eq!(served(&warm()), 300);
    let (before, _) = proxy.memory_kib();
    let outcomes = thread::scope(|scope| {
        let load = scope.spawn(|| {
            run(async { Load::on(&proxy).flow(vec![get("/get"), put], 300.0, Duration::from_secs(4)).await.unwrap() })
        });
        thread::sleep(Duration::from_secs(1));
        for _ in 0..2 {
            app.stop();
            thread::sleep(Duration::from_millis(700));
            app.resume();
            thread::sleep(Duration::from_millis(300));
        }
        load.join().unwrap()
    });
    let failed: Vec<u16> = outcomes.iter().map(|one| one.status).filter(|status| *status != 200).collect();
    assert_eq!((failed.as_slice(), served(&outcomes)), (&[][..], 1200));
    proxy.counts("outrigger_requests_total", &[("outcome", "success")], 1500);
    assert!(proxy.metric("outrigger_held_requests_total", &[]) > 100.0);
    is_at_rest(&proxy);
    // Some hundred connections leave memory with the allocator.
    let (after, _) = proxy.memory_kib();
    assert!(after < before + 24 * 1024, "{before} KiB before, {after} after");
}

/// A POST that was with the app when it died gets an error and is never sent again; all others wait.
#[test]
fn only_orders_in_flight_at_a_killed_app_fail() {
    let mut app = Backend::start();
    app.works(&["/order"], 50, Duration::from_millis(50));
    let proxy = Proxy::start(&app);
    let (outcomes, stopped) = thread::scope(|scope| {
        let orders = mixed("/order").last().cloned().into_iter().collect();
        let load =
            scope.spawn(|| run(async { Load::on(&proxy).flow(orders, 100.0, Duration::from_secs(2)).await.unwrap() }));
        thread::sleep(Duration::from_millis(500));
        app.stop();
        let stopped = Instant::now();
        thread::sleep(Duration::from_millis(500));
        app.resume();
        (load.join().unwrap(), stopped)
    });
    assert!(outcomes.iter().all(|one| matches!(one.status, 200 | 502)), "{outcomes:?}");
    // Five were with the app, on average.
    let late: Vec<_> = outcomes.iter().filter(|one| one.status == 502 && one.asked > stopped).collect();
    assert!(late.is_empty(), "after {stopped:?}: {late:?}");
    assert!(app.whole_requests() <= outcomes.len(), "none came twice");
    is_at_rest(&proxy);
}

#[test]
fn a_request_held_for_too_long_gets_a_502() {
    let app = Backend::stopped();
    let proxy = Proxy::with(&app, "app.hold = \"400ms\"");
    Form::at_once(&Form::ALL, |form| {
        let asked = Instant::now();
        let answer = form.ask(&proxy, "/");
        answer.is_problem(502, "app_unreachable");
        assert_eq!(answer.number("retry-after"), 1);
        let took = asked.elapsed();
        assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(3), "{took:?}");
    });
    proxy.counts("outrigger_app_failures_total", &[("reason", "app_unreachable")], Form::NUMBER);
    is_at_rest(&proxy);
}

#[test]
fn held_requests_are_bounded_and_the_lowest_priority_is_rejected_first() {
    let priorities = ["low", "critical"].map(|name| route(name, &format!("priority = \"{name}\"")));
    let rules = format!("app.hold = \"10s\"\napp.max_held = 1\n{}", priorities.concat());
    Form::at_once(&Form::ALL, |form| {
        let mut app = Backend::stopped();
        let proxy = Proxy::with(&app, &rules);
        let mut low = proxy.connect();
        low.send(form.request("/low"));
        until("it to wait", || held(&proxy) == 1);
        let asked = Instant::now();
        proxy.ask(&form.request("/low")).is_problem(503, "app_restarting");
        assert!(asked.elapsed() < Duration::from_secs(2));
        let mut critical = proxy.connect();
        critical.send(form.request("/critical"));
        low.answer().is_problem(503, "app_restarting");
        app.resume();
        assert_eq!(critical.answer().status, 200);
        drop((low, critical));
        is_at_rest(&proxy);
    });
}

#[test]
fn a_client_that_disconnects_while_held_is_removed() {
    let mut app = Backend::stopped();
    let proxy = Proxy::with(&app, "app.hold = \"30s\"");
    let mut client = proxy.connect();
    client.send(get("/"));
    until("it to wait", || held(&proxy) == 1);
    drop(client);
    until("its place to be free", || held(&proxy) == 0);
    app.resume();
    until("the app to be known as back", || is_reachable(&proxy));
    assert_eq!(app.requests(), 0, "the app never hears of who has left");
    is_at_rest(&proxy);
}

/// Without `hold`, every request fails immediately while the app is down, even with an open breaker; once the app is back, no
/// request waits for the breaker to close.
#[test]
fn without_hold_all_fail_at_once_until_the_app_listens_again() {
    let mut app = Backend::stopped();
    let proxy = Proxy::with(&app, "app.hold = \"0s\"\nbreaker.failures = 3\nbreaker.open = \"10m\"");
    let mut took = Vec::new();
    for n in 0..40 {
        let asked = Instant::now();
        let answer = Form::nth(n).ask(&proxy, "/");
        took.push(asked.elapsed());
        assert!(matches!(answer.status, 502 | 503), "{answer:?}");
    }
    took.sort_unstable();
    assert!(took[20] < Duration::from_millis(50), "half of them took longer than {:?}", took[20]);
    assert!(proxy.metric("outrigger_rejections_total", &[("reason", "breaker_open")]) > 30.0);
    app.resume();
    let back = Instant::now();
    until("the app to be reached", || proxy.get("/").status == 200);
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
    for request in every_form("/").iter().cycle().take(20) {
        assert_eq!(proxy.ask(request).status, 200, "all of them, at once");
    }
}

#[test]
fn a_client_may_shorten_the_deadline_and_the_app_gets_the_remaining_time() {
    let app = Backend::start();
    app.at("/hang", Play::Hang);
    let rules = format!("app.timeout = \"20s\"\n{}", route("stubborn", "client_timeout = false\ntimeout = \"700ms\""));
    let proxy = Proxy::with(&app, &rules);
    app.at("/stubborn", Play::Hang);
    Form::at_once(&Form::ALL, |form| {
        let ask = |path: &str, ms: &str| {
            proxy.ask(&with_fields(&form.request(path), &[&format!("X-Request-Timeout-Ms: {ms}")]))
        };
        let asked = Instant::now();
        ask("/hang", "300").is_problem(504, "app_timeout");
        let took = asked.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
        let left: u64 = ask("/", "5000").seen("x-request-timeout-ms").unwrap().parse().unwrap();
        assert!((4000..=5000).contains(&left), "{left}");
        for no_wish in ["99999999", "soon", "-1", ""] {
            let left: u64 = ask("/", no_wish).seen("x-request-timeout-ms").unwrap().parse().unwrap();
            assert!((19_000..=20_000).contains(&left), "{no_wish:?}: {left}");
        }
        let asked = Instant::now();
        ask("/stubborn", "100").is_problem(504, "app_timeout");
        assert!(asked.elapsed() >= Duration::from_millis(700));
    });
}

#[test]
fn the_time_in_the_queue_is_part_of_a_requests_time() {
    let rules = "admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"20s\"\napp.timeout = \"20s\"\n";
    Form::at_once(&Form::ALL, |form| {
        let app = Backend::start();
        let gate = app.gate("/gate");
        let proxy = Proxy::with(&app, rules);
        let mut first = proxy.connect();
        first.send(get("/gate"));
        app.gets(1, "/gate");
        // The request times out while it waits.
        let impatient = with_fields(&form.request("/"), &["X-Request-Timeout-Ms: 300"]);
        let asked = Instant::now();
        proxy.ask(&impatient).is_problem(504, "deadline_exceeded");
        assert!(asked.elapsed() >= Duration::from_millis(300));
        // It gets a permit in time, and the app receives the remaining time.
        let mut patient = proxy.connect();
        patient.send(with_fields(&form.request("/"), &["X-Request-Timeout-Ms: 15000"]));
        until("it to wait", || proxy.metric("outrigger_admission_queue", &[]) == 1.0);
        assert!(patient.stays_silent_for(Duration::from_millis(500)));
        gate.add_permits(1);
        let left: u64 = patient.answer().seen("x-request-timeout-ms").unwrap().parse().unwrap();
        assert!(left <= 14_500 && left > 0, "{left}");
        assert_eq!(first.answer().status, 200);
        drop((first, patient));
        is_at_rest(&proxy);
    });
}

/// Every invalid response of an app ends in a defined status and leaves no state behind.
#[test]
fn a_malformed_response_leaves_no_state_behind() {
    let app = Backend::start();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
    let large = format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(1 << 20));
    let many: String = (0..2000).map(|n| format!("X-{n}: {}\r\n", "x".repeat(500))).collect();
    let plays = [
        ("/late/drip", Play::Drip(head.into(), Duration::from_secs(1)), 504, "app_timeout"),
        ("/hints", Play::HintForever, 502, "app_invalid"),
        ("/large", Play::Say(large.into()), 502, "app_invalid"),
        ("/many", Play::Say(format!("HTTP/1.1 200 OK\r\n{many}\r\n").into()), 502, "app_invalid"),
        ("/garbage", Play::SayAndClose(b"\x16\x03\x01\x02\x00garbage\r\n\r\n".to_vec()), 502, "app_invalid"),
        ("/half", Play::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()), 502, "app_closed"),
        ("/nothing", Play::SayAndClose(Vec::new()), 502, "app_closed"),
        ("/late/hang", Play::Hang, 504, "app_timeout"),
        ("/late/ignores", Play::Ignore, 504, "app_timeout"),
    ];
    for (path, play, ..) in &plays {
        app.at(path, play.clone());
    }
    // A short time for responses that do not come only: the others have as long as they need.
    let rules = "retry.attempts = 1\nbreaker.open = \"1s\"\nbreaker.failures = 0\nbreaker.failure_rate = \"off\"\n\
                 [[routes]]\nname = \"late\"\npath = \"/late/**\"\ntimeout = \"1s\"\n";
    let proxy = Proxy::with(&app, rules);
    Form::at_once(&Form::ALL, |form| {
        for (path, _, status, reason) in &plays {
            println!("{path} {form:?}");
            let asked = Instant::now();
            form.ask(&proxy, path).is_problem(*status, reason);
            assert!(asked.elapsed() < Duration::from_secs(4), "{path} took {:?}", asked.elapsed());
        }
    });
    for (reason, plays) in [("app_timeout", 3), ("app_invalid", 4), ("app_closed", 2)] {
        proxy.counts("outrigger_app_failures_total", &[("reason", reason)], plays * Form::NUMBER);
    }
    let upgrade = with_fields(&get("/late/hang"), &["Connection: Upgrade", "Upgrade: websocket"]);
    proxy.ask(&upgrade).is_problem(504, "app_timeout");
    // A body that the app does not read, longer than any buffer.
    let mut client = proxy.connect();
    client.send("POST /late/ignores HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n");
    client.gives_up_sending_after(Duration::from_millis(200));
    while client.try_send(vec![b'x'; 1 << 20]).is_ok() {}
    client.answer().is_problem(504, "app_timeout");
    // A response that ends after its header section closes the client's connection.
    app.at("/breaks", Play::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec()));
    for request in every_form("/breaks") {
        assert!(proxy.connect().send(&request).try_answer().is_err());
    }
    drop(client);
    is_at_rest(&proxy);
    assert_eq!(proxy.get("/").status, 200, "it goes on");
}

/// Sends requests sequentially; returns how many failed.
fn failed(proxy: &Proxy, requests: usize, request: &str) -> usize {
    let mut client = proxy.connect();
    (0..requests).filter(|_| client.send(request).answer().status != 200).count()
}

#[test]
fn retries_hide_faults_within_their_budget_and_never_beyond() {
    const REQUESTS: usize = 1000;
    // With a fifth of the responses failing, hiding all but one in a hundred needs a quarter more attempts; a fifth more, the
    // default, leaves four in a hundred.
    for (budget, visible, most) in [("20%", 0.06, 1.2), ("30%", 0.015, 1.3)] {
        let app = Backend::start();
        app.at("/", Play::FailFifth(Arc::new(AtomicUsize::new(0))));
        let rules = format!("retry.statuses = [500]\nretry.budget = \"{budget}\"\nretry.backoff = \"1ms\"\n");
        let proxy = Proxy::with(&app, &rules);
        let began = Instant::now();
        let failed = failed(&proxy, REQUESTS, &get("/")) as f64 / REQUESTS as f64;
        let free = 3.0 * (began.elapsed().as_secs_f64() + 1.0);
        let attempts = app.requests() as f64;
        println!("{budget}: {failed} failed, {attempts} attempts, {free} free ones at the most");
        assert!(failed <= visible, "{failed} failed");
        assert!(attempts <= most * REQUESTS as f64 + 3.0, "{attempts} attempts");
        proxy.counts("outrigger_app_retries_total", &[], app.requests() - REQUESTS);
    }
}

#[test]
fn a_dead_app_gets_no_more_than_a_fifth_more_requests() {
    let app = Backend::start();
    app.says("/", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    app.at("/closes", Play::SayAndClose(Vec::new()));
    let proxy = Proxy::with(&app, "retry.statuses = [500]\nretry.backoff = \"1ms\"\n");
    for path in ["/", "/closes"] {
        assert_eq!(failed(&proxy, 500, &get(path)), 500);
        let attempts = app.requests_to(path);
        assert!((500..=603).contains(&attempts), "{path}: {attempts}");
    }
    assert!(proxy.metric("outrigger_app_retries_denied_total", &[]) > 500.0);
}

#[test]
fn requests_that_are_not_repeatable_are_not_repeated() {
    let app = Backend::start();
    app.says("/500", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    app.at("/closes", Play::SayAndClose(Vec::new()));
    let proxy = Proxy::with(&app, "retry.statuses = [500]\n");
    for path in ["/500", "/closes"] {
        assert!(proxy.ask(&post(path, "an order")).status >= 500);
        assert_eq!(app.requests_to(path), 1, "{path}");
    }
    // Repeatable requests with a body are retried too, while the proxy still has the body.
    let put =
        |bytes: usize| format!("PUT /500 HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n{}", "x".repeat(bytes));
    assert_eq!(proxy.ask(&put(60_000)).status, 500);
    assert_eq!(app.requests_to("/500"), 1 + 3, "three attempts");
    assert_eq!(proxy.ask(&put(200_000)).status, 500);
    assert_eq!(app.requests_to("/500"), 1 + 3 + 1, "it is longer than what is kept");
}

/// A repeatable request of this form, with a body or without.
fn repeatable(form: Form, path: &str) -> String {
    form.request(path).replacen("POST", "PUT", 1)
}

/// The attempts in the access log for the only request for `path`.
#[track_caller]
fn attempts_logged(proxy: &Proxy, path: &str) -> u64 {
    let line = proxy.says(&format!("\"path\":\"{path}\""));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    line["attempts"].as_u64().unwrap()
}

/// Outrigger keeps connections to the app. One that turns out to be dead is replaced, and all attempts are left.
#[test]
fn a_dead_kept_connection_costs_no_attempt() {
    // The next request of an HTTP/1.0 client has another connection, and maybe another thread, which keeps others to the app.
    let kept = [Form::Bare, Form::Sized, Form::Chunked, Form::Http2, Form::Http2Body];
    Form::at_once(&kept, |form| {
        let warm = if Form::HTTP11.contains(&form) { Form::Bare } else { Form::Http2 };
        for closed in 0..2 {
            let dead = 1;
            let app = Backend::start();
            let proxy = Proxy::with(&app, "retry.attempts = 2\n");
            let mut client = proxy.connect();
            // The same client, because a connection to the app is kept for the thread that used it.
            assert_eq!(client.send(warm.request("/warm")).answer().status, 200);
            app.at("/r", Play::CloseFirst(Arc::new(AtomicUsize::new(dead + closed))));
            assert_eq!(client.send(repeatable(form, "/r")).answer().status, 200);
            assert_eq!(app.requests_to("/r"), dead + closed + 1);
            assert_eq!(attempts_logged(&proxy, "/r"), closed as u64 + 1);
            proxy.counts("outrigger_app_reconnects_total", &[], dead);
            proxy.counts("outrigger_app_retries_total", &[], closed);
            drop(client);
            is_at_rest(&proxy);
        }
    });
}

#[test]
fn a_wait_for_the_app_costs_no_attempt() {
    Form::at_once(&Form::ALL, |form| {
        let mut app = Backend::stopped();
        app.at("/r", Play::CloseFirst(Arc::new(AtomicUsize::new(1))));
        let proxy = Proxy::with(&app, "retry.attempts = 2\n");
        // The first request finds that the app is down: its connection is refused.
        let mut client = proxy.connect();
        client.send(repeatable(form, "/r"));
        until("it to wait", || held(&proxy) == 1);
        app.resume();
        assert_eq!(client.answer().status, 200);
        assert_eq!((app.requests_to("/r"), attempts_logged(&proxy, "/r")), (2, 2));
        proxy.counts("outrigger_app_retries_total", &[], 1);
        drop(client);
        is_at_rest(&proxy);
    });
}

/// A request that waits in vain was never sent, and one that may not be repeated is sent once after its wait.
#[test]
fn a_wait_for_the_app_is_no_reason_to_send_a_request_twice() {
    let mut app = Backend::stopped();
    app.at("/order", Play::CloseFirst(Arc::new(AtomicUsize::new(1))));
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    client.send(post("/order", "an order"));
    until("it to wait", || held(&proxy) == 1);
    app.resume();
    client.answer().is_problem(502, "app_closed");
    assert_eq!((app.requests_to("/order"), attempts_logged(&proxy, "/order")), (1, 1));
    drop(client);
    is_at_rest(&proxy);
}

#[test]
fn a_retry_waits_for_the_apps_retry_after_or_is_not_made() {
    let app = Backend::start();
    let later = |seconds: u32| {
        format!("HTTP/1.1 503 Service Unavailable\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n")
    };
    app.says("/soon", &later(1));
    app.says("/late", &later(60));
    let proxy = Proxy::with(&app, "retry.statuses = [503]\nretry.attempts = 2\napp.timeout = \"10s\"\n");
    let put = |path: &str| format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    for (n, ask) in [get, put as fn(&str) -> String].into_iter().enumerate() {
        let asked = Instant::now();
        assert_eq!(proxy.ask(&ask("/soon")).status, 503);
        assert!(asked.elapsed() >= Duration::from_secs(1));
        assert_eq!(app.requests_to("/soon"), 2 * (n + 1));
        let asked = Instant::now();
        assert_eq!(proxy.ask(&ask("/late")).status, 503, "the app's own answer");
        assert!(asked.elapsed() < Duration::from_secs(5));
        assert_eq!(app.requests_to("/late"), n + 1);
    }
}

#[test]
fn a_route_may_try_more_often_or_not_at_all() {
    let app = Backend::start();
    for path in ["/eager", "/once"] {
        app.says(path, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    }
    let routes =
        route("eager", "attempts = 4\nretry_statuses = [502]") + &route("once", "attempts = 1\nretry_statuses = [502]");
    let proxy = Proxy::with(&app, &format!("retry.backoff = \"1ms\"\n{routes}"));
    assert_eq!((proxy.get("/eager").status, proxy.get("/once").status), (502, 502));
    assert_eq!((app.requests_to("/eager"), app.requests_to("/once")), (4, 1));
}
