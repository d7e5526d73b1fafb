//! A process that drains loses no request, and exits as soon as it has no work left.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xtask::Signal;

use crate::backend::{Backend, Play};
use crate::harness::{Client, Proxy, Setup, get, until};

#[test]
fn health_fails_first_while_everything_is_still_served() {
    let app = Backend::start();
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"4s\"\n");
    assert_eq!(proxy.get("/health").status, 200);
    let mut kept = proxy.connect();
    assert_eq!(kept.send(get("/a")).answer().status, 200);

    proxy.signal(Signal::TERM);
    until("health to fail", || proxy.get("/health").status == 503);
    assert_eq!(proxy.get("/health").json()["data"]["reason"], "draining");
    assert_eq!(proxy.get("/health/ready").status, 503);
    assert_eq!(proxy.get("/health/live").status, 200);
    assert_eq!(proxy.admin("/healthz").status, 503);
    let answer = kept.send(get("/b")).answer();
    assert_eq!(answer.status, 200);
    assert!(answer.closes(), "the client is asked to connect elsewhere: {answer:?}");
    let status = proxy.ends_within(Duration::from_secs(10));
    assert!(status.success(), "{status}");
}

#[test]
fn draining_under_load_fails_no_request() {
    let app = Backend::start();
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"500ms\"\n");
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (stop, done, address) = (Arc::clone(&stop), Arc::clone(&done), proxy.address);
            thread::spawn(move || {
                let mut failures = Vec::new();
                // Until the proxy stops listening: only refused connections may fail.
                while !stop.load(Ordering::Relaxed) {
                    let mut client = match Client::connect(address) {
                        Ok(client) => client,
                        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => break,
                        Err(e) => {
                            failures.push(format!("connecting: {e}"));
                            break;
                        }
                    };
                    loop {
                        match client.try_send(get("/x")).and_then(|()| client.try_answer()) {
                            Ok(answer) if answer.status == 200 => {
                                done.fetch_add(1, Ordering::Relaxed);
                                if answer.closes() {
                                    break;
                                }
                            }
                            Ok(answer) => failures.push(format!("{answer:?}")),
                            Err(e) => {
                                failures.push(format!("asking: {e}"));
                                break;
                            }
                        }
                    }
                }
                failures
            })
        })
        .collect();
    until("some requests", || done.load(Ordering::Relaxed) > 500);
    proxy.signal(Signal::TERM);
    let status = proxy.ends_within(Duration::from_secs(10));
    stop.store(true, Ordering::Relaxed);
    let failures: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert!(failures.is_empty(), "of {}: {failures:?}", done.load(Ordering::Relaxed));
    assert!(status.success(), "{status}");
}

#[test]
fn requests_in_flight_finish_and_the_process_exits_at_once() {
    let app = Backend::start();
    let gate = app.gate("/slow");
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"0s\"\n");
    let mut client = proxy.connect();
    client.send(get("/slow"));
    app.gets(1, "/slow");
    proxy.signal(Signal::TERM);
    until("the listener to close", || Client::connect(proxy.address).is_err());
    assert!(proxy.is_running());
    gate.add_permits(1);
    let answer = client.answer();
    assert_eq!(answer.status, 200);
    assert!(answer.closes());
    let answered = Instant::now();
    let status = proxy.ends_within(Duration::from_secs(5));
    assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
    assert!(status.success(), "{status}");
}

#[test]
fn drain_timeout_closes_remaining_connections() {
    let app = Backend::start();
    let _gate = app.gate("/never");
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"0s\"\nserver.drain_timeout = \"1s\"\n");
    let mut client = proxy.connect();
    client.send(get("/never"));
    app.gets(1, "/never");
    let began = Instant::now();
    proxy.signal(Signal::TERM);
    let status = proxy.ends_within(Duration::from_secs(5));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(status.success(), "{status}");
    proxy.says("drain_timeout is over");
}

#[test]
fn a_second_signal_ends_the_drain() {
    let app = Backend::start();
    let _gate = app.gate("/never");
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"60s\"\n");
    let mut client = proxy.connect();
    client.send(get("/never"));
    app.gets(1, "/never");
    proxy.signal(Signal::TERM);
    proxy.says("health checks fail now");
    proxy.signal(Signal::TERM);
    until("the listener to close", || Client::connect(proxy.address).is_err());
    proxy.signal(Signal::TERM);
    let status = proxy.ends_within(Duration::from_secs(5));
    assert!(status.success(), "{status}");
}

/// A platform may stop a Machine in its first moment. The signal comes as soon as a connection is accepted.
#[test]
fn a_signal_in_the_first_moment_drains_as_well() {
    let app = Backend::start();
    for _ in 0..8 {
        let mut proxy = Setup::new(&app, "server.lame_duck = \"0s\"\n").launch();
        until("the first connection", || Client::connect(proxy.address).is_ok());
        proxy.signal(Signal::TERM);
        let status = proxy.ends_within(Duration::from_secs(10));
        assert!(status.success(), "{status}\n{}", proxy.log());
        proxy.says("draining");
    }
}

#[test]
fn streams_go_on_until_drain_timeout_and_then_end() {
    let app = Backend::start();
    app.at("/ws", Play::Upgrade);
    let events = app.events("/events");
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"0s\"\nserver.drain_timeout = \"4s\"\n");
    let mut socket = proxy.connect();
    socket.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(socket.head().unwrap().status, 101);
    let mut stream = proxy.connect();
    assert_eq!(stream.send(get("/events")).head().unwrap().status, 200);
    proxy.signal(Signal::TERM);
    until("the listener to close", || Client::connect(proxy.address).is_err());
    events.send("data: still here\n\n".into()).unwrap();
    stream.take_through(b"still here\n\n").unwrap();
    assert_eq!(socket.send("still here").take(10).unwrap(), b"still here");
    let status = proxy.ends_within(Duration::from_secs(10));
    assert!(status.success(), "{status}");
    proxy.says("drain_timeout is over");
    assert!(stream.rest().is_ok_and(|rest| !rest.ends_with(b"0\r\n\r\n")), "what is cut off does not look complete");
}

#[test]
fn idle_connections_do_not_delay_the_end() {
    let app = Backend::start();
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"0s\"\n");
    let mut resting: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    for client in &mut resting[..10] {
        assert_eq!(client.send(get("/")).answer().status, 200);
    }
    let told = Instant::now();
    proxy.signal(Signal::TERM);
    resting.iter_mut().for_each(Client::is_closed);
    let status = proxy.ends_within(Duration::from_secs(10));
    assert!(status.success() && told.elapsed() < Duration::from_secs(3), "{status} after {:?}", told.elapsed());
}
