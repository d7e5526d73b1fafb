//! The client's response when the app fails, and the details that stay hidden from it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::{Backend, Habit, Play},
    harness::{Form, Proxy, every_form, get, post},
};

#[test]
fn an_app_that_is_down_is_a_502_until_it_is_up() {
    let mut app = Backend::stopped();
    let proxy = Proxy::with(&app, "app.hold = \"0s\"");
    for request in every_form("/") {
        let answer = proxy.ask(&request);
        answer.is_problem(502, "app_unreachable");
        assert!(answer.header("retry-after").is_some());
    }

    proxy.counts("outrigger_app_failures_total", &[("reason", "app_unreachable")], Form::NUMBER);
    proxy.counts("outrigger_requests_total", &[("outcome", "bad_gateway")], Form::NUMBER);
    let line = proxy.says("app_unreachable");
    assert!(line.contains(&app.address()) && line.contains("WARN"), "{line}");
    app.resume();
    assert_eq!(proxy.get("/").status, 200, "the app is back");
}

#[test]
fn an_app_that_does_not_respond_in_time_is_a_504() {
    let app = Backend::start();
    app.at("/hang", Play::Hang);
    app.at("/slow/hang", Play::Hang);
    app.at("/half", Play::Say(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()));
    let slow = "[[routes]]\nname = \"slow\"\npath = \"/slow/**\"\ntimeout = \"900ms\"";
    let proxy = Proxy::with(&app, &format!("app.timeout = \"300ms\"\n{slow}"));
    Form::at_once(&Form::ALL, |form| {
        for (path, least) in [("/hang", 300), ("/half", 300), ("/slow/hang", 900)] {
            let began = Instant::now();
            form.ask(&proxy, path).is_problem(504, "app_timeout");
            let took = began.elapsed();
            let fits = took >= Duration::from_millis(least) && took < Duration::from_millis(least + 2000);
            assert!(fits, "{path} took {took:?}");
        }
    });
    proxy.counts("outrigger_app_failures_total", &[("reason", "app_timeout")], 3 * Form::NUMBER);
    proxy.counts("outrigger_requests_total", &[("outcome", "gateway_timeout")], 3 * Form::NUMBER);
    assert_eq!(app.requests_to("/hang"), Form::NUMBER, "what may have been done is not done again");
}

#[test]
fn an_app_that_closes_before_its_response_is_a_502() {
    let app = Backend::start();
    app.at("/nothing", Play::SayAndClose(Vec::new()));
    app.at("/half", Play::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()));
    let proxy = Proxy::with(&app, "retry.budget_min = 100\n");
    for path in ["/nothing", "/half"] {
        for request in every_form(path) {
            proxy.ask(&request).is_problem(502, "app_closed");
        }
    }
    proxy.counts("outrigger_app_failures_total", &[("reason", "app_closed")], 2 * Form::NUMBER);

    // Two retries of each repeatable request, none of the others.
    assert_eq!(app.requests_to("/nothing"), Form::NUMBER + 2 * Form::WITHOUT_BODY.len());
}

#[test]
fn an_app_that_does_not_speak_http_is_a_502() {
    let app = Backend::start();
    let garbage = [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "\0\0\0\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad: a\0b\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    ];
    for (n, bytes) in garbage.iter().enumerate() {
        app.at(&format!("/{n}"), Play::SayAndClose(bytes.as_bytes().to_vec()));
    }
    let proxy = Proxy::start(&app);
    for (n, bytes) in garbage.iter().enumerate() {
        println!("answering {bytes:?}");
        for request in every_form(&format!("/{n}")) {
            proxy.ask(&request).is_problem(502, "app_invalid");
        }
    }
    proxy.counts("outrigger_app_failures_total", &[("reason", "app_invalid")], garbage.len() * Form::NUMBER);
}

#[test]
fn an_incomplete_response_never_looks_complete() {
    let app = Backend::start();
    app.at("/length", Play::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()));
    app.at(
        "/chunks",
        Play::SayAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec()),
    );
    app.at(
        "/bad",
        Play::SayAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n".to_vec()),
    );
    app.at("/pause", Play::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()));
    // The others have as long as they need.
    let proxy = Proxy::with(&app, "[[routes]]\nname = \"pause\"\npath = \"/pause\"\ntimeout = \"1s\"\n");
    let paths = ["/length", "/chunks", "/bad", "/pause"];
    let truncated = AtomicUsize::new(0);
    Form::at_once(&Form::ALL, |form| {
        for path in paths {
            match proxy.connect().send(form.request(path)).try_answer() {
                // If it fails before any byte was sent, the client still gets an error response.
                Ok(answer) => answer.is_problem(502, "app_invalid"),
                Err(_) => _ = truncated.fetch_add(1, Ordering::Relaxed),
            }
        }
    });
    let truncated = truncated.into_inner();
    proxy.counts("outrigger_requests_total", &[("outcome", "truncated")], truncated);
    assert!(truncated >= 3 * Form::NUMBER, "{truncated}");
    proxy.comes_to_rest();
}

#[test]
fn an_early_response_of_the_app_is_forwarded() {
    let app = Backend::start();
    app.at("/", Play::Interrupt(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nlate".to_vec()));
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (429, "late"));
}

/// Many concurrent clients, each on one connection; fails on any response but a 200.
fn hammer(proxy: &Proxy, rounds: usize) {
    thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                let mut client = proxy.connect();
                for n in 0..rounds {
                    let path = format!("/{worker}/{n}");
                    let request = match n % 3 {
                        0 => get(&path),
                        1 => post(&path, "hello"),
                        _ => format!(
                            "PUT {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
                        ),
                    };
                    let answer = client.send(&request).answer();
                    assert_eq!(answer.status, 200, "request {n}: {request:?} got {answer:?}");
                    assert_eq!(answer.json()["target"], path);
                }
            });
        }
    });
}

#[test]
fn an_app_that_closes_kept_connections_unannounced_fails_no_request() {
    for habit in [Habit::Close, Habit::CloseSoon] {
        let app = Backend::start();
        app.habit(habit);
        let proxy = Proxy::start(&app);
        hammer(&proxy, 240);
        assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0);
        proxy.counts("outrigger_requests_total", &[("outcome", "success")], 960);
        // Each POST arrived once: requests that the app may have processed are not repeated.
        for worker in 0..4 {
            let posts = (1..240).step_by(3).map(|n| app.requests_to(&format!("/{worker}/{n}")));
            assert!(posts.into_iter().all(|times| times == 1), "a POST came more than once");
        }
    }
}

#[test]
fn an_app_that_restarts_fails_no_request_that_comes_after() {
    let mut app = Backend::start();
    let proxy = Proxy::start(&app);
    hammer(&proxy, 30);
    for _ in 0..3 {
        app.stop();
        app.resume();
        // The proxy still holds its old connections to the app; none of them may cost a request.
        hammer(&proxy, 30);
    }
    assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0);
}

#[test]
fn a_response_with_two_lengths_is_forwarded_with_one_or_rejected() {
    let app = Backend::start();
    app.says("/twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\nhi");
    let chunks = "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    app.says("/both", &format!("HTTP/1.1 200 OK\r\n{chunks}"));
    let proxy = Proxy::start(&app);
    for (form, path) in Form::ALL.into_iter().flat_map(|form| [(form, "/twice"), (form, "/both")]) {
        let mut client = proxy.connect();
        let answer = client.send(form.request(path)).head().unwrap();
        if answer.status != 502 {
            let lengths = answer.head.to_ascii_lowercase().matches("content-length").count();
            let encodings = answer.head.to_ascii_lowercase().matches("transfer-encoding").count();
            // Without chunks, the end of the connection or of the stream is the end of the body.
            let least = usize::from(Form::HTTP11.contains(&form));
            assert!((least..=1).contains(&(lengths + encodings)), "{form:?}: {answer:?}");
        }
    }
}
