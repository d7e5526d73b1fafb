//! Long transfers: uploads, downloads, event streams, WebSockets. They are not delayed, use bounded memory, and end with their
//! client.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use crate::{
    backend::{Backend, PATTERN, Play},
    h2c::{request, with_h2},
    harness::{Client, Form, Hash, Proxy, every_form, get, post, until, with_fields},
};

/// How much a large body may add to the proxy's resident memory.
const GROWTH_KIB: u64 = 16 << 10;
const LARGE: u64 = 200 << 20;

#[test]
fn a_large_download_arrives_complete_in_little_memory() {
    let app = Backend::start();
    app.at("/large", Play::Stream(LARGE));
    let proxy = Proxy::start(&app);
    proxy.get("/warm");
    let (before, _) = proxy.memory_kib();
    let mut client = proxy.connect();
    assert_eq!(client.send(get("/large")).head().unwrap().header("content-length"), Some("209715200"));
    let mut received = 0_u64;
    while received < LARGE {
        let piece = client.piece().expect("the download goes on");
        assert!(!piece.is_empty(), "cut off after {received} bytes");
        let at = usize::try_from(received % PATTERN.len() as u64).unwrap();
        let expected = PATTERN[at..].iter().chain(PATTERN.iter().cycle());
        assert!(piece.iter().zip(expected).all(|(is, should)| is == should), "wrong bytes after {received}");
        received += piece.len() as u64;
    }
    assert_eq!(received, LARGE);
    let (_, peak) = proxy.memory_kib();
    assert!(peak - before < GROWTH_KIB, "grew from {before} KiB to {peak} KiB");
    assert_eq!(client.send(get("/next")).answer().status, 200);
}

#[test]
fn a_large_upload_arrives_complete_in_little_memory() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    proxy.get("/warm");
    let (before, _) = proxy.memory_kib();
    for chunked in [false, true] {
        let mut client = proxy.connect();
        let framing =
            if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {LARGE}") };
        client.send(format!("PUT /large HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
        let (mut left, mut hash) = (LARGE, Hash::default());
        while left > 0 {
            let piece = &PATTERN[..usize::try_from(left).unwrap_or(usize::MAX).min(PATTERN.len())];
            hash.add(piece);
            left -= piece.len() as u64;
            if chunked {
                client.send(format!("{:x}\r\n", piece.len())).send(piece).send("\r\n");
            } else {
                client.send(piece);
            }
        }
        if chunked {
            client.send("0\r\n\r\n");
        }
        let answer = client.answer();
        assert_eq!(answer.json()["body"]["bytes"], LARGE);
        assert_eq!(answer.json()["body"]["hash"], hash.text());
    }
    let (_, peak) = proxy.memory_kib();
    assert!(peak - before < GROWTH_KIB, "grew from {before} KiB to {peak} KiB");
}

#[test]
fn backpressure_bounds_the_memory_of_slow_readers() {
    let app = Backend::start();
    app.at("/large", Play::Stream(LARGE));
    app.at("/ignore", Play::Ignore);
    let proxy = Proxy::start(&app);
    every_form("/warm").iter().for_each(|request| drop(proxy.ask(request)));
    let (before, _) = proxy.memory_kib();
    let mut clients = Vec::new();
    for request in every_form("/large").iter().cycle().take(3 * Form::NUMBER) {
        let mut client = proxy.connect();
        client.send(request);
        clients.push(client);
    }
    for _ in 0..8 {
        let mut client = proxy.connect();
        client.send(format!("POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
        // As much as fits into all buffers on the way; the app reads no body.
        client.gives_up_sending_after(Duration::from_millis(300));
        let sent = (0..1000).take_while(|_| client.try_send(PATTERN).is_ok()).count();
        assert!(sent < 1000, "64 MB were taken from us, and by nobody");
        clients.push(client);
    }
    app.gets(3 * Form::NUMBER, "/large");
    app.gets(8, "/ignore");
    let (_, peak) = proxy.memory_kib();
    // The buffers of both directions fit; the length of the body must not matter.
    let bound = 2 << 10;
    let each = (peak - before) / clients.len() as u64;
    assert!(each < bound, "{each} KiB each: grew from {before} KiB to {peak} KiB");
    assert_eq!(proxy.get("/next").status, 200, "others are served meanwhile");
}

#[test]
fn an_event_arrives_before_the_next_is_sent() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "app.timeout = \"2s\"");
    for accept in ["", "Accept: text/event-stream\r\n"] {
        let events = app.events("/events");
        let mut client = proxy.connect();
        let head = client.send(format!("GET /events HTTP/1.1\r\nHost: a\r\n{accept}\r\n")).head().unwrap();
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        for n in 0..20 {
            events.send(format!("data: {n}\n\n")).unwrap();
            let event = client.take_through(b"\n\n").expect("the event");
            assert!(String::from_utf8_lossy(&event).ends_with(&format!("data: {n}\n\n")));
        }
        if !accept.is_empty() {
            // A declared event stream may be silent for longer than other responses.
            assert!(client.take(2).is_ok() && client.stays_silent_for(Duration::from_millis(2500)));
            events.send("data: late\n\n".into()).unwrap();
            client.take_through(b"late\n\n").expect("the late event");
        }
        drop(events);
        let end = client.take_through(b"0\r\n\r\n").expect("the end");
        assert!(!end.is_empty());
    }
}

#[test]
fn a_web_socket_carries_bytes_both_ways_at_once() {
    let app = Backend::start();
    app.at("/ws", Play::Upgrade);
    let proxy = Proxy::with(&app, "client.body_timeout = \"2s\"\napp.timeout = \"2s\"\nclient.max_body = \"1KiB\"");
    let mut client = upgraded(&proxy, "");
    for n in 0..20 {
        let message = format!("message {n}");
        assert_eq!(client.send(&message).take(message.len()).unwrap(), message.as_bytes());
    }
    // Silence beyond every other timeout, and more bytes than a body may have.
    assert!(client.stays_silent_for(Duration::from_millis(2500)));
    assert_eq!(client.send(PATTERN).take(PATTERN.len()).unwrap(), PATTERN);
    client.finish_sending();
    client.is_closed();
    proxy.comes_to_rest();
    until("the app to see the end", || app.open_connections() == 0);
    proxy.counts("outrigger_requests_total", &[("outcome", "success")], 1);
    proxy.counts("outrigger_responses_total", &[("status", "1xx")], 1);
    let messages: usize = (0..20).map(|n| format!("message {n}").len()).sum();
    for family in ["outrigger_request_body_bytes_total", "outrigger_response_body_bytes_total"] {
        proxy.counts(family, &[], messages + PATTERN.len());
    }
}

#[test]
fn an_event_stream_or_a_web_socket_is_not_a_slow_request() {
    let app = Backend::start();
    app.at("/ws", Play::Upgrade);
    let events = [app.events("/get"), app.events("/post")];
    let proxy = Proxy::start(&app);
    proxy.get("/fast");
    let web_socket = upgraded(&proxy, "");
    let mut streams = [proxy.connect(), proxy.connect()];
    streams[0].send(get("/get")).head().unwrap();
    streams[1].send(post("/post", "x")).head().unwrap();
    drop((web_socket, events));
    for stream in &mut streams {
        stream.take_through(b"0\r\n\r\n").expect("the end of the stream");
    }
    drop(streams);
    proxy.comes_to_rest();
    proxy.counts("outrigger_requests_total", &[("outcome", "success")], 4);
    proxy.counts("outrigger_request_duration_seconds_count", &[], 1);
    proxy.counts("outrigger_stream_duration_seconds_count", &[("kind", "event_stream")], 2);
    proxy.counts("outrigger_stream_duration_seconds_count", &[("kind", "upgrade")], 1);
    proxy.counts("outrigger_time_to_first_byte_seconds_count", &[], 4);
}

#[test]
fn bytes_sent_right_behind_an_upgrade_reach_the_app() {
    let app = Backend::start();
    app.at("/ws", Play::Upgrade);
    let proxy = Proxy::start(&app);
    assert_eq!(upgraded(&proxy, "early bytes").take(11).unwrap(), b"early bytes");
}

#[test]
fn an_upgrade_that_the_app_declines_is_an_ordinary_request() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    let answer = client.send(upgrade("/plain")).answer();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.seen("upgrade").as_deref(), Some("websocket"));
}

#[test]
fn a_tunnel_of_any_protocol_begins_behind_the_body() {
    let app = Backend::start();
    app.at("/ws", Play::Upgrade);
    let proxy = Proxy::with(&app, "client.max_body = \"4KiB\"");
    let large = "tunnel ".repeat(3000);
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let mut client = proxy.connect();
        let head = "POST /ws HTTP/1.1\r\nHost: a\r\nUpgrade: x/1, y\r\nConnection: upgrade\r\n";
        assert_eq!(client.send(format!("{head}{body}early")).head().unwrap().status, 101);
        assert_eq!(client.take(5).unwrap(), b"early");
        // Its bytes are no body.
        assert_eq!(client.send(&large).take(large.len()).unwrap(), large.as_bytes());
    }
    proxy.comes_to_rest();
}

#[test]
fn a_handshake_that_the_app_may_have_read_is_not_repeated() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    app.at("/ws", Play::CloseFirst(Arc::new(AtomicUsize::new(1))));
    // The app closes a kept connection when it has read the request; and a new one.
    assert_eq!(proxy.get("/other").status, 200);
    proxy.ask(&upgrade("/ws")).is_problem(502, "app_closed");
    assert_eq!(app.requests_to("/ws"), 1);
    let answer = proxy.ask(&upgrade("/ws"));
    assert_eq!((answer.status, app.requests_to("/ws")), (200, 2), "{answer:?}");
}

/// A WebSocket upgrade request.
fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A connection after the protocol switch; `early` was sent with the request.
fn upgraded(proxy: &Proxy, early: &str) -> Client {
    let mut client = proxy.connect();
    let head = client.send(format!("{}{early}", upgrade("/ws"))).head().unwrap();
    assert_eq!(head.status, 101, "{head:?}");
    assert_eq!(head.header("upgrade"), Some("websocket"));
    assert!(head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")), "{head:?}");
    client
}

#[test]
fn an_upgrade_has_every_limit_of_a_body() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_body = \"4KiB\"\nclient.body_timeout = \"300ms\"");
    let web_socket = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for fields in ["", "Upgrade: x\r\n", "Upgrade: websocket\r\n", "Connection: Upgrade\r\nUpgrade: x\r\n", web_socket]
    {
        let head = format!("POST /up HTTP/1.1\r\nHost: a\r\n{fields}");
        let mut client = proxy.connect();
        client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n2000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x2000)));
        client.answer().is_problem(413, "body_too_large");
        let mut client = proxy.connect();
        client.send(format!("{head}Content-Length: 8192\r\n\r\n")).answer().is_problem(413, "body_too_large");
        for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
            let mut client = proxy.connect();
            client.send(format!("{head}{framing}\r\n\r\n5\r\nhe")).answer().is_problem(408, "body_too_slow");
        }
        // Within the limits, it is an ordinary request; the app sees only an upgrade that `Connection` names.
        let mut client = proxy.connect();
        let answer = client.send(format!("{head}Content-Length: 5\r\n\r\nhello")).answer();
        assert_eq!((answer.status, &answer.json()["body"]["bytes"]), (200, &5.into()), "{fields}");
        let offered = fields.strip_prefix("Connection: Upgrade\r\nUpgrade: ").map(str::trim_end);
        assert_eq!(answer.seen("upgrade").as_deref(), offered, "{fields}");
        assert_eq!(answer.seen("connection").as_deref(), offered.map(|_| "Upgrade"), "{fields}");
        assert_eq!(client.send(get("/next")).answer().status, 200, "{fields}");
    }
}

#[test]
fn the_proxy_writes_no_bytes_of_its_own_into_a_tunnel() {
    let app = Backend::start();
    app.at("/ws", Play::Upgrade);
    // It switches protocols and disconnects.
    let gone = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbye";
    app.at("/gone", Play::Interrupt(gone.to_vec()));
    let proxy = Proxy::with(&app, "app.stream_timeout = \"300ms\"");
    let mut client = proxy.connect();
    assert_eq!(client.send(upgrade("/gone")).head().unwrap().status, 101);
    assert_eq!(client.take(3).unwrap(), b"bye");
    client.send("frames that nobody reads");
    assert_eq!(client.rest().unwrap_or_default(), b"");
    // Silence ends the tunnel, without a byte that says why.
    let mut silent = upgraded(&proxy, "");
    assert_eq!(silent.rest().unwrap_or_default(), b"");
    proxy.comes_to_rest();
    assert_eq!((app.requests_to("/gone"), app.requests_to("/ws")), (1, 1), "no handshake is repeated");
    assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0);
}

#[test]
fn an_event_stream_may_pause_for_any_method() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "app.timeout = \"2s\"");
    let chunked = "POST /events HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
                   2\r\n{}\r\n0\r\n\r\n";
    let mut streams = Vec::new();
    for request in [get("/events"), post("/events", "{}"), chunked.to_owned()] {
        let events = app.events("/events");
        let mut client = proxy.connect();
        assert_eq!(client.send(&request).head().unwrap().header("content-type"), Some("text/event-stream"));
        events.send("data: early\n\n".into()).unwrap();
        client.take_through(b"early\n\n").expect("the first event");
        client.take(2).expect("the end of its chunk");
        streams.push((events, client));
    }
    std::thread::sleep(Duration::from_millis(2500));
    for (events, client) in &mut streams {
        assert!(client.stays_silent_for(Duration::from_millis(1)));
        events.send("data: late\n\n".into()).unwrap();
        client.take_through(b"late\n\n").expect("the late event");
    }
    let events = app.events("/events");
    with_h2(&proxy, async |mut sender| {
        let (answer, _) = sender.send_request(request("GET", "/events"), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        for event in ["data: early\n\n", "data: late\n\n"] {
            events.send(event.into()).unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), event);
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
    });
    // Other responses must not pause, even if the client accepts an event stream.
    let part = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n";
    app.at("/json", Play::Drip([&part[..], b"[1,2"].concat(), Duration::from_millis(1)));
    let mut client = proxy.connect();
    client.send(with_fields(&post("/json", "{}"), &["Accept: text/event-stream, application/json"]));
    let began = Instant::now();
    assert!(client.try_answer().is_err() && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_response_may_begin_before_the_request_ends() {
    let app = Backend::start();
    app.at("/dialogue", Play::Interrupt(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec()));
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    client.send("POST /dialogue HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    assert_eq!(client.answer().text(), "hi");
}

#[test]
fn a_disconnect_frees_everything_and_reaches_the_app() {
    let app = Backend::start();
    app.at("/hang", Play::Hang);
    app.at("/large", Play::Stream(LARGE));
    app.at("/ignore", Play::Ignore);
    app.at("/ws", Play::Upgrade);
    let events = app.events("/events");
    let proxy = Proxy::start(&app);
    // More bytes than the proxy buffers before it contacts the app, but not all.
    let upload = format!("POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(70_000));
    let requests = [get("/hang"), get("/large"), get("/events"), upload, upgrade("/ws")];
    let paths = ["/hang", "/large", "/events", "/ignore", "/ws"];
    let mut clients: Vec<_> = requests
        .iter()
        .map(|request| {
            let mut client = proxy.connect();
            client.send(request);
            client
        })
        .collect();
    paths.iter().for_each(|path| app.gets(1, path));
    proxy.counts("outrigger_requests_in_flight", &[], paths.len());
    assert_eq!(clients[4].head().unwrap().status, 101);
    drop(clients);
    proxy.comes_to_rest();
    // The handler that ignores its connection does not notice; all others do.
    until("the app to see the clients leave", || app.open_connections() == 1);
    drop(events);
    proxy.counts("outrigger_requests_total", &[("outcome", "client_closed")], paths.len() - 1);
    for path in &paths[..4] {
        let line = proxy.says(&format!("\"path\":\"{path}\""));
        assert!(line.contains("\"status\":499"), "{line}");
    }
    assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0, "it was not the app's fault");
}
